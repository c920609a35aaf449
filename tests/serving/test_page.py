"""The page at `/`: its files, the planner's table, the checkpoints, and all of it in a real Chromium."""

from __future__ import annotations

import base64
import io
import re
import shlex
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import typer
from PIL import Image, ImageStat

from fedkd.checkpoints.cache import CheckpointCache
from fedkd.checkpoints.collection import collect
from fedkd.checkpoints.registry import Registry
from fedkd.cli.main import app
from fedkd.planning.split import best_split
from fedkd.planning.system import EUCI_LINK, Device, ModelCost, cost
from fedkd.serving.edge import create_app
from fedkd.serving.routes_page import PAGE, PAGE_PATHS
from fedkd.serving.sources import CloudSource, RegistrySource
from tests.serving.running import error_of, running, until

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), "")
PHONE, SERVER = Device("device", 2e9, 5.0), Device("edge", 20e9, 60.0)


@pytest.fixture(scope="module")
def registry(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Registry:
    """tiny:v0 and what two rounds made of it; v1 was removed since."""
    found = Registry(tmp_path_factory.mktemp("registry"))
    parent = found.publish(tiny_folder, name="tiny", licence="Apache-2.0").reference
    for number in (1, 2, 3):
        parent = found.publish(
            tiny_folder,
            name="tiny",
            parents=[parent],
            round=number,
            edges=["edge-0", "edge-1"],
            metrics={"accuracy": 0.5 + number / 10, "by_class": {"7": 1.0}},
        ).reference
    collect(found)
    return found


@pytest.fixture(scope="module")
def http(registry: Registry) -> Iterator[httpx.Client]:
    """An edge that serves the registry's latest version."""
    served = create_app(models={"tiny": RegistrySource(registry, "tiny")}, num_inference_steps=4)
    with running(served) as client:
        yield client


def test_the_page_is_served_with_a_strict_policy_and_asked_for_once(http: httpx.Client) -> None:
    assert {"/", "/page.css", "/page.js", "/icon.svg"} <= set(PAGE_PATHS)
    for path in PAGE_PATHS:
        answer = http.get(path)
        assert answer.status_code == 200
        assert answer.headers["content-security-policy"].startswith("default-src 'none'; script-src 'self';")
        assert answer.headers["x-content-type-options"] == "nosniff"
        again = http.get(path, headers={"If-None-Match": f'"other", W/{answer.headers["etag"]}'})
        assert again.status_code == 304 and again.content == b"" and again.headers["etag"] == answer.headers["etag"]
        assert http.head(path).headers["content-length"] == str(len(answer.content))
    assert http.get("/").headers["content-type"] == "text/html; charset=utf-8"
    assert http.get("/page.js").headers["content-type"] == "text/javascript; charset=utf-8"


def test_the_page_needs_nothing_from_elsewhere() -> None:
    for file in PAGE.iterdir():
        text = file.read_text("utf-8").replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?://|@import|innerHTML|eval\(|\sstyle=|\son\w+=", text), file.name


def test_the_plan_is_the_planners_own(http: httpx.Client) -> None:
    asked = {"steps": 5, "device_flops_per_s": 2e9, "device_watts": 5, "edge_flops_per_s": 20e9, "edge_watts": 60}
    found = http.get("/v1/plan", params={**asked, "decode": "device"}).json()
    plan: dict[str, Any] = {"num_inference_steps": 5, "guidance": True, "decode": "device"}
    work = ModelCost(**found["work"])
    for order, costs in found["costs"].items():
        for steps in range(6):
            expected = cost(work, PHONE, SERVER, EUCI_LINK, device_steps=steps, order=order, **plan)
            assert costs["delay_s"][steps] == pytest.approx(expected.delay_s, rel=1e-5)
            assert costs["energy_j"][steps] == pytest.approx(expected.energy_j, rel=1e-5)
            parts = [costs[part][steps] for part in ("device_s", "edge_s", "network_s")]
            assert sum(parts) == pytest.approx(expected.delay_s, rel=1e-4)
            joules = parts[0] * PHONE.watts + parts[1] * SERVER.watts
            assert joules == pytest.approx(expected.energy_j, rel=1e-4)
    chosen = best_split(work, PHONE, SERVER, EUCI_LINK, **plan)
    assert found["chosen"]["device_steps"] == chosen.device_steps
    assert (found["chosen"]["order"], found["chosen"]["reasons"]) == (chosen.order, list(chosen.reasons))


def test_the_plan_counts_evaluations_and_keeps_to_a_limit(http: httpx.Client) -> None:
    heun = http.get("/v1/plan", params={"steps": 4, "scheduler": "HeunDiscreteScheduler"}).json()
    assert heun["evaluations"] == 7 and len(heun["costs"]["edge_first"]["delay_s"]) == 8
    assert http.get("/v1/plan").json()["evaluations"] == 4
    slow = {"device_flops_per_s": 1e8, "edge_flops_per_s": 1e9}
    free, limited = (http.get("/v1/plan", params=slow | more).json()["chosen"] for more in ({}, {"delay_limit_s": 1e6}))
    assert free["device_steps"] == 0 < limited["device_steps"] and limited["delay_s"] <= 1e6
    cold = http.get("/v1/plan", params={"cold_device": True}).json()["costs"]["device_first"]["network_s"]
    warm = http.get("/v1/plan").json()["costs"]["device_first"]["network_s"]
    assert cold[0] == warm[0] and cold[2] > warm[2]


def test_the_plan_tells_the_speed_that_traffic_has_shown(http: httpx.Client) -> None:
    for seed in range(2):
        assert http.post("/v1/images/generations", json={"prompt": "a", "seed": seed}).status_code == 200
    assert http.get("/v1/plan").json()["measured_flops_per_s"] > 0


@pytest.mark.parametrize(
    ("asked", "status", "param"),
    [
        ({"steps": 0}, 422, "steps"),
        ({"steps": "many"}, 422, "steps"),
        ({"edge_watts": 0}, 422, "edge_watts"),
        ({"bandwidth_bps": "nan"}, 422, "bandwidth_bps"),
        ({"device_flops_per_s": "inf"}, 422, "device_flops_per_s"),
        ({"delay_limit_s": 0}, 422, "delay_limit_s"),
        ({"scheduler": "Nothing"}, 422, "scheduler"),
        ({"decode": "nobody"}, 422, "decode"),
        ({"model": "other"}, 404, "model"),
    ],
)
def test_a_plan_that_cannot_be_is_refused(http: httpx.Client, asked: dict[str, Any], status: int, param: str) -> None:
    answer = http.get("/v1/plan", params=asked)
    assert answer.status_code == status and error_of(answer)["param"] == param


def test_checkpoints_tell_their_lineage_and_scores(http: httpx.Client, registry: Registry) -> None:
    found = {each["reference"]: each for each in http.get("/v1/checkpoints").json()["data"]}
    assert list(found) == ["tiny:v3", "tiny:v2", "tiny:v0", "tiny:v1"]
    assert [each["state"] for each in found.values()] == ["here", "here", "here", "collected"]
    latest = found["tiny:v3"]
    assert latest["served_as"] == ["tiny"] and latest["aliases"] == ["latest"]
    assert latest["digest"] == registry.manifest("tiny").digest
    assert (latest["round"], latest["parents"], latest["edges"]) == (3, ["tiny:v2"], ["edge-0", "edge-1"])
    assert latest["metrics"] == {"accuracy": 0.8}
    assert not found["tiny:v2"]["served_as"]  # the same files under another number


def test_checkpoints_of_a_cache_and_of_a_plain_folder(registry: Registry, tiny_folder: Path, tmp_path: Path) -> None:
    cache = CheckpointCache(tmp_path / "cache")
    served = create_app(models={"cached": CloudSource(str(registry.root), "tiny", cache), "plain": str(tiny_folder)})
    with running(served) as client:
        found = {each["reference"]: each for each in client.get("/v1/checkpoints").json()["data"]}
    assert found["tiny:v3"]["served_as"] == ["cached"] and found["tiny:v3"]["state"] == "here"
    assert found["tiny:v2"] == {**found["tiny:v2"], "state": "elsewhere", "digest": "", "served_as": []}
    assert found["plain"]["served_as"] == ["plain"] and found["plain"]["size_bytes"] > 0


def test_only_the_pages_files_need_no_token(tiny_folder: Path) -> None:
    with running(create_app(str(tiny_folder), token="secret")) as client:
        assert all(client.get(path).status_code == 200 for path in PAGE_PATHS)
        for path in ("/v1/plan", "/v1/checkpoints"):
            assert client.get(path).status_code == 401
            assert client.get(path, headers={"Authorization": "Bearer secret"}).status_code == 200


# ---- in a real browser -----------------------------------------------------------------------------------------

Open = Callable[..., AbstractContextManager[Any]]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A headless Chromium of this machine."""
    playwright = pytest.importorskip("playwright.sync_api")
    if not CHROMIUM:
        pytest.skip("the page was not looked at: no chromium or google-chrome on PATH; apt-get install chromium")
    with playwright.sync_playwright() as started:
        playwright.expect.set_options(timeout=30_000)
        found = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield found
        found.close()


@pytest.fixture
def opened(browser: Any) -> Open:
    """Opens a URL in a new window; fails at its end when the console said anything but what `expected` matches."""

    @contextmanager
    def open_page(url: str, *, width: int = 1100, scheme: str = "light", expected: str = "$^") -> Iterator[Any]:
        page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
        said: list[str] = []
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.goto(url)
        try:
            yield page
        finally:
            page.close()
        assert not [text for text in said if not re.search(expected, text)]

    return open_page


def ready(page: Any) -> Any:
    """The page once its edge has told it everything."""
    expect(page.locator("#chosen")).not_to_be_empty()
    page.wait_for_selector("#checkpoints li")
    return page


def expect(locator: Any) -> Any:
    """What a place of the page comes to be; the page's policy allows no polling by script."""
    from playwright.sync_api import expect

    return expect(locator)


def test_a_picture_is_drawn_with_previews(http: httpx.Client, opened: Open) -> None:
    with opened(str(http.base_url)) as page:
        ready(page)
        page.fill("#prompt", "a red seven")
        page.fill("#steps", "8")
        page.fill("#seed", "3")
        page.click("#draw")
        page.wait_for_selector("#picture[data-kind=final]")
        assert page.locator("#previews img").count() >= 1
        expect(page.locator("#picture")).to_have_js_property("naturalWidth", 32)
        assert "Done in" in page.text_content("#status") and page.text_content("#problem") == ""
        assert page.get_attribute("#picture", "alt") == "Picture of: a red seven"
        shown = _pixels(page)
        box = page.locator("#picture").bounding_box()
        screen = Image.open(io.BytesIO(page.screenshot(full_page=True))).convert("RGB")
    answer = http.post(
        "/v1/images/generations", json={"prompt": "a red seven", "num_inference_steps": 8, "seed": 3, "exact": True}
    )
    expected = Image.open(io.BytesIO(base64.b64decode(answer.json()["data"][0]["b64_json"])))
    assert shown == list(expected.convert("RGBA").tobytes())
    left, top, width, height = (box[side] for side in ("x", "y", "width", "height"))
    on_screen = screen.crop((round(left), round(top), round(left + width), round(top + height)))
    for drawn, seen in zip(ImageStat.Stat(expected.convert("RGB")).mean, ImageStat.Stat(on_screen).mean, strict=True):
        assert seen == pytest.approx(drawn, abs=12)  # borders and rounded corners included


def _pixels(page: Any) -> list[int]:
    """What the picture shows, red, green, blue and alpha of each pixel."""
    found: list[int] = page.evaluate(
        """() => {
            const canvas = Object.assign(document.createElement('canvas'), {width: 32, height: 32});
            const context = canvas.getContext('2d');
            context.drawImage(document.querySelector('#picture'), 0, 0);
            return Array.from(context.getImageData(0, 0, 32, 32).data);
        }"""
    )
    return found


def understood(line: str) -> dict[str, Any]:
    """What `fedkd generate` takes from a command line."""
    program, verb, *words = shlex.split(line)
    assert (program, verb) == ("fedkd", "generate")
    group: Any = typer.main.get_command(app)
    found: dict[str, Any] = group.commands["generate"].make_context("generate", words).params
    return found


def test_the_slider_and_the_switches_move_the_plan_and_the_command(http: httpx.Client, opened: Open) -> None:
    with opened(str(http.base_url)) as page:
        ready(page)
        assert page.text_content("#share") == "2 of 4"
        before = page.text_content("#costs")
        page.focus("#device-steps")
        page.keyboard.press("ArrowRight")
        assert page.text_content("#share") == "3 of 4" and page.text_content("#costs") != before
        assert "--device-steps 3 --order device_first" in page.text_content("#command")
        assert "does steps 1 to 3" in page.text_content("#parts")
        page.focus("[name=order][value=device_first]")
        page.keyboard.press("ArrowRight")
        assert "--device-steps 3 --order edge_first" in page.text_content("#command")
        assert page.locator("#bar > div").all_text_contents() == ["edge 1", "device 3"]
        page.check("[name=decode][value=device]")
        expect(page.locator("#command")).to_contain_text("--decode device")
        page.fill("#prompt", "it's -o x")
        page.fill("#steps", "6")
        expect(page.locator("#share")).to_have_text("3 of 6")
        asked = understood(page.text_content("#command"))
        assert (asked["prompt"], asked["steps"], asked["device_steps"]) == ("it's -o x", 6, 3)
        assert (list(asked["edge"]), asked["order"], asked["decode"]) == ([str(http.base_url)], "edge_first", "device")
        page.fill("#prompt", "--seven")
        assert understood(page.text_content("#command"))["prompt"] == "--seven"
        page.click("#assumptions summary")
        page.fill("[name=device_flops_per_s]", "0.001")
        expect(page.locator("#chosen")).to_have_text("All 6 steps at the edge")
        page.click("#take-choice")
        assert page.text_content("#share") == "0 of 6" and page.is_disabled("#take-choice")
        assert "the planner takes 0" in page.get_attribute("#delay-chart", "aria-label")


def test_the_checkpoints_are_listed_with_their_parents(http: httpx.Client, opened: Open) -> None:
    with opened(str(http.base_url)) as page:
        items = ready(page).locator("#checkpoints li").all_text_contents()
    assert len(items) == 4 and "served" in items[0] and "from tiny:v2" in items[0] and "accuracy 0.8" in items[0]
    assert "files removed" in items[3]


def test_a_wrong_request_is_told_in_the_edges_words(http: httpx.Client, opened: Open) -> None:
    with opened(str(http.base_url), expected="status of 422") as page:
        ready(page)
        page.evaluate("document.querySelector('#prompt').maxLength = 10000")
        page.fill("#prompt", "a" * 4001)
        page.click("#draw")
        expect(page.locator("#problem")).to_contain_text("prompt:")
        assert page.is_enabled("#draw")


def test_a_picture_is_cancelled(http: httpx.Client, opened: Open) -> None:
    with opened(str(http.base_url)) as page:
        ready(page).fill("#steps", "1000")
        page.click("#draw")
        expect(page.locator("#status")).to_contain_text("Step")
        page.click("#cancel")
        expect(page.locator("#status")).to_have_text("Cancelled.")
        assert until(lambda: "fedkd_open_sessions 0.0" in http.get("/metrics").text)
        assert page.is_enabled("#draw") and page.is_hidden("#cancel")


def test_nothing_sticks_out_of_a_narrow_window(http: httpx.Client, opened: Open) -> None:
    with opened(str(http.base_url), width=360, scheme="dark") as page:
        ready(page).click("#assumptions summary")
        assert page.evaluate("document.documentElement.scrollWidth") == 360
        unnamed = "[...document.querySelectorAll('input, select, textarea')].filter(e => !e.labels.length).length"
        assert page.evaluate(unnamed) == 0


def test_a_token_is_asked_for_and_kept_for_the_tab_alone(tiny_folder: Path, opened: Open) -> None:
    models = {"tiny": str(tiny_folder), "other": str(tiny_folder)}
    served = create_app(models=models, token="secret", num_inference_steps=4)
    with running(served) as client, opened(str(client.base_url), expected="status of 401") as page:
        page.wait_for_selector("#token-form:not([hidden])")
        page.fill("#token", "guess")
        page.keyboard.press("Enter")
        expect(page.locator("#token-problem")).to_contain_text("token")
        page.fill("#token", "secret")
        page.keyboard.press("Enter")
        ready(page)
        page.click("#draw")
        page.wait_for_selector("#picture[data-kind=final]")
        assert "secret" not in page.content() and "FEDKD_TOKEN" in page.text_content("#command-hint")
        kept = "[sessionStorage.length, localStorage.length, document.cookie]"
        assert page.evaluate(kept) == [1, 0, ""]
        page.reload()
        ready(page)
        assert page.is_hidden("#token-form")
        page.select_option("#model", "other")
        expect(page.locator("#served")).to_contain_text("other")
        expect(page.locator("#command")).to_contain_text("--model other")
