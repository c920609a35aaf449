"""The report of a made-up run: whole, stopped early, with odd captions and odd numbers."""

import html.parser
import json
import re

import pytest
from PIL import Image

from fedkd.evaluation.charts import bar_chart, line_chart
from fedkd.evaluation.contact_sheet import contact_sheet
from fedkd.evaluation.report import write_report
from fedkd.evaluation.report_rows import checkpoint_words
from fedkd.evaluation.units import duration, energy, size

SEVEN = "a red seven on a <b>blue</b> & \"plain\" 'background'"


@pytest.fixture
def out(tmp_path):
    (tmp_path / "pictures").mkdir()
    for name in ("base-7", "student-7", "split-0"):
        Image.new("RGB", (8, 8), "red").save(tmp_path / "pictures" / f"{name}.png")
    return tmp_path


@pytest.fixture
def run():
    """A report as a federated run of one round composes it."""
    scores = {"accuracy": 0.7, "known": 0.9, "taught": 0.1, "concepts": {"zero": 0.9, "seven": 0.1}}
    student = scores | {"taught": 0.85, "concepts": {"zero": 0.88, "seven": 0.85}}
    edge = scores | {"name": "edge-0", "loss": [0.5, 0.3, 0.2]}
    traffic = {"up": 1_500_000, "down": 2_000}
    phases = [
        {
            "name": "synthesise",
            "seconds": 12.5,
            "bytes": traffic,
            "asked": 4,
            "answered": 3,
            "left_out": [{"node": "user-3", "reason": "raised ValueError: <no pictures>"}],
        }
    ]
    audit = {"private": 20, "drawn": 40, "redrawn": 2, "refused": 1, "kept": 39, "distance_min": 0.031}
    return {
        "name": "quickstart",
        "description": "digits",
        "fedkd_version": "0.1.0",
        "started": "2030-01-01T00:00:00Z",
        "wall_seconds": 421.0,
        "command": "fedkd simulate quickstart",
        "recipe": {"prompts": {"known": ["zero"], "taught": ["seven"]}, "serving": {"token": "s3cret"}},
        "base": scores,
        "student": student,
        "edges": [edge],
        "concepts": {"known": {"base": 0.9, "student": 0.88}, "taught": {"base": 0.1, "student": 0.85}},
        "rounds": [
            {
                "round": 1,
                "bytes": traffic,
                "phases": phases,
                "users": [{"name": "user-0", "edge": "edge-0"} | audit],
                "edges": [edge],
                "student": student | {"loss": {"task": [0.4, 0.2], "distill": [0.1, 0.05]}, "published_as": "latest"},
                "checkpoint": "tiny-sd:v1",
            }
        ],
        "split": {
            "bitwise_equal": True,
            "images": [
                {
                    "prompt": SEVEN,
                    "order": "edge_first",
                    "device_steps": 4,
                    "edge_steps": 8,
                    "scheduler": "DDIMScheduler",
                    "bytes_up": 0,
                    "bytes_down": 17_000,
                    "device_seconds": 0.2,
                    "edge_seconds": 0.4,
                    "delay_s": 0.012,
                    "energy_j": 0.0034,
                    "bitwise_equal": True,
                    "picture": "pictures/split-0.png",
                }
            ],
        },
        "pictures": [
            {
                "concept": "seven",
                "kind": "taught",
                "prompt": SEVEN,
                "base": "pictures/base-7.png",
                "student": "pictures/student-7.png",
            }
        ],
        "checkpoint": {"name": "tiny-sd", "version": "v1", "path": "runs/x/v1", "digest": "sha256:abc"},
        "seeds": {"run": 0},
    }


def federated(run):
    """The same run with what a federation leaves besides: bytes by node, events, lambda, lineage, audit log."""
    item = run["rounds"][0]
    item["phases"][0]["ledger"] = [
        {"node": f"user-{index}", "up": 1000 * index, "down": 500, "registry": 2_800_000} for index in range(60)
    ]
    item["users"][0] |= {"feature_distance_min": 0.0417, "private_distance_mean": 0.2, "distance_mean": 0.3}
    item["edges"][0] |= {"privacy": {"epsilon": 3.21, "delta": 1e-5}}
    item["student"] |= {"teacher_weights": {"edge-0": 0.61, "base": 0.39}, "left_out": {"edge-1": "its norm"}}
    events = [{"round": 1, "phase": "finetune", "node": "edge-1", "what": "left out: <i>not finite</i>"}]
    version = {"reference": "tiny-sd:v1", "state": "here", "parents": ["tiny-sd:v0"], "round": 1, "edges": ["edge-0"]}
    version |= {"size_bytes": 2_900_000, "fetch_bytes": 190_000, "known": 0.9, "taught": 0.8, "signer": "key:abc"}
    audit = {"lines": 17, "head": "f00d", "verified": True, "problem": "", "signer": "key:abc", "signed": 15}
    status = {"state": "unfinished", "round": 2, "phase": "distil", "last": "2030-01-01 00:10:00+00:00"}
    return run | {"events": events, "lineage": [version], "audit": audit, "status": status}


VOID = {"meta", "img", "br", "link"}


class Page(html.parser.HTMLParser):
    """What a browser would find: balanced tags, sections, pictures and outside references."""

    def __init__(self, text: str):
        super().__init__()
        self.open, self.sections, self.sources, self.links, self.handlers = [], [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        if tag == "section":
            self.sections.append(found["id"])
        self.handlers += [name for name in found if name.startswith("on")]
        if "src" in found:
            self.sources.append(found["src"])
        if "href" in found:
            self.links.append(found["href"])
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def page_of(report, out) -> tuple[str, Page]:
    text = write_report(report, out).read_text(encoding="utf-8")
    return text, Page(text)


def test_a_whole_run_has_every_section(run, out):
    _, page = page_of(run, out)
    assert page.sections == [
        "pictures", "accuracy", "split", "rounds", "guard", "losses", "checkpoint", "recipe",
    ]  # fmt: skip


def test_a_federated_run_shows_bytes_privacy_events_lineage_and_audit_log(run, out):
    text, page = page_of(federated(run), out)
    assert page.sections == [
        "pictures", "accuracy", "split", "rounds", "bytes", "guard", "events", "teachers", "losses", "checkpoint",
        "lineage", "audit", "recipe",
    ]  # fmt: skip
    figures = ("user-59", "20 more", "0.0417", "3.21", "1e-05", "0.61", "its norm", "190 kB", "17 lines", "f00d")
    for figure in (*figures, "round 2, distil", "00:10:00", "1.5 times as far"):
        assert figure in text, figure
    assert "<i>not finite" not in text


def test_a_broken_audit_log_is_said(run, out):
    run = federated(run)
    run["audit"] |= {"verified": False, "problem": "line 3 was changed"}
    text, _ = page_of(run, out)
    assert "does not hold: line 3 was changed" in text and "none was changed" not in text


HOSTILE = "\"'><script src=https://evil.example/x.js></script><img src=http://evil.example onerror=alert(1)>"


def with_hostile_words(value):
    """Every text of a report made hostile, but for what a picture's path or a phase's order means."""
    if isinstance(value, dict):
        return {k: v if k in ("kind", "order", "state") else with_hostile_words(v) for k, v in value.items()}
    if isinstance(value, list):
        return [with_hostile_words(item) for item in value]
    return HOSTILE if isinstance(value, str) else value


def test_hostile_names_captions_and_reasons_stay_text_and_load_nothing(run, out):
    run = federated(run)
    run["edges"][0]["concepts"][HOSTILE] = run["student"]["concepts"][HOSTILE] = 0.5
    text, page = page_of(with_hostile_words(run), out)
    assert "evil.example" in text and "<script" not in text and "<img src=http" not in text
    assert page.links == ["report.json"] and page.sources == [] and page.handlers == []


def test_the_page_needs_nothing_outside_itself(run, out):
    text, page = page_of(run, out)
    assert page.links == ["report.json"]
    assert len(page.sources) == 3 and all(s.startswith("data:image/png;base64,") for s in page.sources)
    assert "<script" not in text and "@import" not in text and "url(" not in text


def test_the_figures_are_on_the_page(run, out):
    text, _ = page_of(run, out)
    for figure in ("10% → 85%", "90% → 88%", "1.5 MB up", "7 min 1 s", "12.5 s", "3 of 4", "0.031", "3.4 mJ"):
        assert figure in text, figure


def test_bytes_moved_stand_against_bytes_of_full_models_for_each_round(run, out):
    cost = {"moved": 1_200_000, "full": 31_200_000, "models": 3, "nodes": 3, "share": 1.2 / 31.2, "via": "registry"}
    run["rounds"][0]["checkpoint_bytes"] = cost
    text, _ = page_of(run, out)
    words = "checkpoints to nodes: 1.2 MB moved of 31.2 MB (3 nodes, 3 × 10.4 MB), 3.8%, pulled from the registry"
    assert f"Round 1: {words}." in text and "1.2 MB of 31.2 MB" in text
    assert json.loads((out / "report.json").read_text())["rounds"][0]["checkpoint_bytes"] == cost


@pytest.mark.parametrize("cost", [None, {}, {"moved": 0, "full": 0, "models": 0, "nodes": 0, "share": None}])
def test_a_round_in_which_no_node_took_a_checkpoint_says_nothing(run, out, cost):
    run["rounds"][0]["checkpoint_bytes"] = cost
    assert checkpoint_words(cost) == "" and "Checkpoints to nodes" not in page_of(run, out)[0]


def test_a_checkpoint_that_one_node_had_all_parts_of_is_plain_too():
    cost = {"moved": 0, "full": 5000, "models": 1, "nodes": 1, "share": 0.0, "via": "messages"}
    assert checkpoint_words(cost).endswith("0 B moved of 5 kB (1 node, 1 × 5 kB), 0%, in Flower's messages")


def test_captions_and_reasons_are_escaped(run, out):
    text, _ = page_of(run, out)
    assert "<b>blue" not in text and "<no pictures>" not in text
    assert "&lt;b&gt;blue&lt;/b&gt; &amp; " in text


def test_the_page_and_the_json_agree_and_leave_no_part_behind(run, out):
    write_report(run, out)
    assert json.loads((out / "report.json").read_text())["student"]["taught"] == 0.85
    assert not list(out.glob("*.part"))


def test_a_token_is_in_neither_file(run, out):
    text, _ = page_of(run, out)
    assert "s3cret" not in text and "s3cret" not in (out / "report.json").read_text()


@pytest.mark.parametrize(
    "part",
    ["base", "student", "edges", "concepts", "rounds", "split", "pictures", "checkpoint", "recipe", "seeds"],
)
def test_a_run_without_a_part_still_has_a_page(run, out, part):
    for value in ("missing", None):
        run.pop(part, None)
        if value is None:
            run[part] = None
        text, page = page_of(run, out)
        assert part not in page.sections
        assert ("it stopped before its first distillation" in text) == (part == "student")


def test_half_a_round_still_has_a_page(run, out):
    run["rounds"] = [{"round": 1, "phases": [{"name": "describe"}, {"name": "synthesise", "seconds": 3.0}]}]
    text, _ = page_of(run, out)
    assert "synthesise" in text


def test_an_empty_report_has_a_page(out):
    _, page = page_of({}, out)
    assert page.sections == []


def test_numbers_that_are_not_finite_become_null(run, out):
    run["edges"][0]["loss"] = [0.5, float("nan"), float("inf")]
    run["student"]["taught"] = float("nan")
    text, _ = page_of(run, out)
    assert json.loads((out / "report.json").read_text())["edges"][0]["loss"] == [0.5, None, None]
    assert not re.search(r"\bnan\b", text.lower())


@pytest.mark.parametrize("path", ["pictures/none.png", "../secret.png", "report.json", None, 3])
def test_a_picture_that_is_not_there_or_not_ours_is_left_out(run, out, path):
    Image.new("RGB", (2, 2)).save(out.parent / "secret.png")
    run["pictures"][0]["base"] = path
    text, page = page_of(run, out)
    assert len(page.sources) == 2 and "no picture" in text


def test_a_concept_without_a_score_has_no_bar():
    chart = bar_chart({"base": {"seven": 0.5, "eight": None}}, "accuracy")
    assert chart.count("<rect") == 1 and "eight" in chart


def test_charts_of_nothing_are_empty():
    assert bar_chart({}, "accuracy") == "" and line_chart({"edge": [None]}, "loss") == ""


@pytest.mark.parametrize("values", [[0.0], [0.0, 0.0], [5.0], [-1.0, 2.0], [1e-9, 3e-9], [None, 1.0, None]])
def test_any_curve_can_be_drawn(values):
    Page(line_chart({"edge": values}, "loss"))


def test_units_are_the_readers():
    sizes = {0: "0 B", 999: "999 B", 1500: "1.5 kB", 999_999: "1 MB", 2_500_000: "2.5 MB", None: "–"}
    durations = {0.0123: "12.3 ms", 4: "4 s", 75.2: "75.2 s", 125: "2 min 5 s", 7300: "2 h 1 min"}
    energies = {2e-6: "2 µJ", 0.5: "500 mJ", 30.961: "31 J", 4200: "4.2 kJ"}
    assert {v: size(v) for v in sizes} == sizes
    assert {v: duration(v) for v in durations} == durations
    assert {v: energy(v) for v in energies} == energies


def test_a_contact_sheet_holds_every_picture():
    sheet = contact_sheet([Image.new("RGB", (4, 4), "red")] * 5, columns=3, scale=2, gap=1)
    assert sheet.size == (3 * 9 + 1, 2 * 9 + 1)
    assert sheet.getpixel((1, 1)) == (255, 0, 0)
    assert sheet.getpixel((sheet.width - 2, sheet.height - 2)) == (255, 255, 255)


def test_a_contact_sheet_needs_a_picture():
    with pytest.raises(ValueError, match="images is empty"):
        contact_sheet([])
