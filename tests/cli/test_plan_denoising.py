"""`fedkd plan denoising`, `condition` and `profile-conditions` by the front door."""

import json

import pytest
import typer
from typer.testing import CliRunner

from fedkd.cli.plan_condition import condition, profile_conditions
from fedkd.cli.plan_denoising import denoising

app = typer.Typer(pretty_exceptions_enable=False)
for verb, name in ((denoising, "denoising"), (condition, "condition"), (profile_conditions, "profile-conditions")):
    app.command(name)(verb)


def run(*words: str):
    return CliRunner().invoke(app, list(words))


def test_a_round_of_the_paper_s_is_planned_beside_baselines(tmp_path):
    found = run("denoising", "--compare", "--plot", str(tmp_path / "budget.svg"))
    assert found.exit_code == 0
    for words in ("user 5", "all or nothing", "equal steps", "5 of 5", "60 of 60"):
        assert words in found.stdout
    assert (tmp_path / "budget.svg").read_text().startswith("<?xml")


def test_the_example_is_a_file_to_start_from(tmp_path):
    (tmp_path / "users.json").write_text(run("denoising", "--example").stdout)
    found = json.loads(run("denoising", str(tmp_path / "users.json"), "--joint", "--json", "--compare").stdout)
    assert found["satisfied"] == 3
    assert len(found["plans"]) == 3
    assert found["plans"][0]["condition"]
    assert found["compared"]["equal steps"]["bytes"] >= found["bytes"]


def test_a_condition_is_chosen_and_its_fronts_are_shown(tmp_path):
    found = run("condition", "--preference", "0.8", "--quality", "0.75", "--plot", str(tmp_path / "front.png"))
    assert found.exit_code == 0
    assert found.stdout.startswith("hed, resolution")
    assert (tmp_path / "front.png").stat().st_size > 1000
    facts = json.loads(run("condition", "--json", "--method", "vce").stdout)
    assert set(facts["fronts"]) == {"canny", "hed", "depth", "seg"}


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (("denoising", "--users", "0"), "users=0 leaves nobody"),
        (("denoising", "--edge-steps", "-1"), "edge_steps=-1 must be a whole number"),
        (("denoising", "--objective", "best"), "objective='best' is not known"),
        (("condition", "--bandwidth", "0"), "up_bps=0 must be positive"),
        (("condition", "--bandwidth", "nan"), "up_bps holds NaN"),
        (("condition", "--quality", "0.99"), "give at most 0."),
        (("condition", "--preference", "2"), "must lie in 0..1"),
        (("condition", "--extraction", "-1"), "extraction_s=-1 must be 0 or more"),
        (("condition", "--method", "x"), "method='x' is not known"),
        (("profile-conditions", "--steps", "0"), "--steps 0 must be whole numbers"),
        (("profile-conditions", "--levels", "2"), "--levels 2 must be numbers above 0 and at most 1"),
        (("profile-conditions", "--strength", "0"), "--strength 0"),
        (("profile-conditions", "--controlnet", "cany=x"), "no condition of this name"),
        (("profile-conditions", "--perceptual", "x"), "--perceptual x is not known"),
    ],
)
def test_a_mistake_is_one_line_and_exit_2(words, error):
    found = run(*words)
    assert found.exit_code == 2
    assert found.stderr.startswith("error: ")
    assert error in found.stderr
    assert found.stderr.count("\n") == 1


def test_a_profile_is_measured_on_pictures_and_used(tmp_path):
    out = tmp_path / "mine.json"
    found = run(
        *("profile-conditions", "--count", "2", "--resolutions", "0.5", "--levels", "0.5", "--steps", "2,4"),
        *("--perceptual", "ssim", "--prompt-scorer", "classifier", "--out", str(out)),
    )
    assert found.exit_code == 0, found.stderr
    facts = json.loads(out.read_text())
    assert facts["about"]["perceptual"] == "ssim"
    assert set(facts["conditions"]) == {"canny", "soft-edge", "seg", "depth"}
    assert all(len(scores) == 5 and scores[0] == 0 for scores in facts["perceptual"])
    used = run("condition", "--profile", str(out), "--steps", "4", "--quality", "0.1")
    assert used.exit_code == 0, used.stderr
