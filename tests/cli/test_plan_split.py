"""`fedkd plan split` and `fedkd plan profile`, by the front door."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from fedkd.cli.plan import plan


def run(*arguments: object) -> Result:
    return CliRunner().invoke(plan, [str(argument) for argument in arguments])


EUCI = ("split", "--steps", 110, "--no-guidance", "--order", "device_first", "--weight-delay", 0)


def test_the_largest_share_within_a_second_is_shown_with_its_reason() -> None:
    found = run(*EUCI, "--delay-limit", 1)
    assert found.exit_code == 0
    assert re.search(r"^18\* +device_first +0\.9705 +30\.08", found.stdout, re.M)
    assert "the least energy within 1 s" in found.stdout and "a data sheet's peak" in found.stdout


def test_json_has_the_plan_and_the_whole_front() -> None:
    facts = json.loads(run(*EUCI, "--delay-limit", 1, "--json").stdout)
    assert facts["plan"]["device_steps"] == 18 and facts["plan"]["edge"] == "rtx-4090"
    assert [each["device_steps"] for each in facts["front"] if each["chosen"]] == [18]
    assert len(facts["front"]) == 19
    front = facts["front"]
    assert [each["delay_s"] for each in front] == sorted(each["delay_s"] for each in front)
    # no weight on delay: QoE (Eq. 8) is what it costs in units of the edge alone
    assert [each["qoe"] for each in front] == pytest.approx(
        [-0.5 * each["energy_j"] / front[0]["energy_j"] for each in front]
    )


def test_a_long_front_is_thinned_unless_all_is_asked_for() -> None:
    short, long = (run(*EUCI, *more).stdout.splitlines() for more in ((), ("--all",)))
    assert len(short) < 25 < 110 < len(long)


@pytest.mark.parametrize(("suffix", "begins"), [("png", b"\x89PNG"), ("svg", b"<?xml")])
def test_the_front_is_drawn(tmp_path: Path, suffix: str, begins: bytes) -> None:
    path = tmp_path / f"front.{suffix}"
    assert run("split", "--steps", 8, "--delay-limit", 3, "--plot", path).exit_code == 0
    assert path.read_bytes().startswith(begins)
    assert list(tmp_path.iterdir()) == [path]


def test_privacy_and_a_smaller_model_change_the_plan() -> None:
    private = json.loads(run("split", "--steps", 20, "--private", 4, "--json").stdout)["plan"]
    assert (private["order"], private["device_steps"]) == ("edge_first", 4)
    small = ("--device-model", "sd-1.5", "--model", "sdxl", "--device-quality", 0.8, "--weight-quality", 1)
    assert json.loads(run("split", *small, "--json").stdout)["plan"]["quality"] <= 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--delay-limit", 0.05), "delay_limit_s=0.05 cannot be met; give at least 0."),
        (("--bandwidth", 0), "bandwidth_bps=0"),
        (("--bandwidth", "nan"), "bandwidth_bps=nan"),
        (("--steps", 0), "num_inference_steps=0"),
        (("--device", "iphone"), "did you mean iphone-14-pro-max"),
        (("--device", "jetson-agx-orin"), "give --bandwidth"),
        (("--model", "./nowhere"), "nowhere"),
        (("--model", "sd1.5"), "or one of sd-1.5, sd-2.1, sd-2.1-768, sdxl"),
        (("--plot", "front.gif"), ".png or .svg"),
        (("--plot", "/nowhere/front.png"), "no folder"),
        (("--waiting", -1), "waiting_s=-1"),
        (("--device-quality", -1), "device_quality=-1"),
        (("--edge-miss", "--edge", "rtx-3080-ti"), "backhaul=None"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(arguments: tuple[object, ...], said: str) -> None:
    found = run("split", *arguments)
    assert found.exit_code == 2
    assert found.stderr.startswith("error: ") and said in found.stderr and found.stderr.count("\n") == 1


@pytest.mark.parametrize("verb", ["split", "profile"])
def test_help_shows_an_example(verb: str) -> None:
    found = run(verb, "--help")
    assert found.exit_code == 0 and f"Example: fedkd plan {verb}" in " ".join(found.stdout.split())


def test_this_machine_s_profile_is_measured_written_and_planned_with(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "laptop.json"
    options = ("--name", "laptop", "--watts", 15, "--bandwidth", 2e7, "--repeats", 1, "-o", path)
    found = run("profile", tiny_folder, *options)
    assert found.exit_code == 0 and "GFLOP/s" in found.stdout
    facts = json.loads(path.read_text())
    assert facts["timings"]["step_s"] > 0 and facts["machine"]["torch"] and not facts["peak"]
    planned = run("split", "--model", tiny_folder, "--steps", 6, "--device", path, "--edge", "rtx-4090-fp16", "--json")
    assert planned.exit_code == 0, planned.stderr
    assert json.loads(planned.stdout)["plan"]["num_inference_steps"] == 6
    other = run("split", "--model", "sd-1.5", "--device", path)
    assert f"laptop: measured on {tiny_folder}, so its speed in FLOP/s is taken for sd-1.5" in other.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--role", "cloud"), "--role cloud is not known"),
        (("-o", "/nowhere/p.json"), "no folder '/nowhere'"),
        (("--device", "warp"), "--device warp cannot be used here"),
        (("--bandwidth", 0), "bandwidth_bps=0"),
        (("--watts", -1), "watts=-1"),
    ],
)
def test_a_profile_that_cannot_be_measured_is_an_error(
    tiny_folder: Path, tmp_path: Path, arguments: tuple[object, ...], said: str
) -> None:
    found = run("profile", tiny_folder, "-o", tmp_path / "p.json", "--repeats", 1, *arguments)
    assert found.exit_code == 2 and said in found.stderr
    assert list(tmp_path.iterdir()) == []
