"""`fedkd generate` by the front door: it says who did what, and a mistake is one line."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from PIL import Image
from typer.testing import CliRunner

from fedkd.cli.generate import generate
from fedkd.serving.loopback import free_port
from tests.serving.edges import relay, serve_in_thread

app = typer.Typer()
app.command("generate")(generate)


@pytest.fixture(scope="module")
def edge(tiny_folder: Path) -> Iterator[str]:
    """An edge that serves the tiny model."""
    torch.set_num_threads(1)
    with serve_in_thread(str(tiny_folder), name="tiny", num_inference_steps=4) as url:
        yield url


@pytest.fixture(autouse=True)
def place(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every command runs in an empty folder of its own; the model's files are fetched once."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "device-cache"))
    monkeypatch.delenv("FEDKD_TOKEN", raising=False)
    return tmp_path


def fedkd(*words: object) -> Any:
    return CliRunner().invoke(app, ["a red seven", "--seed", "5", *(str(word) for word in words)])


def pixels(name: str = "picture.png") -> bytes:
    with Image.open(name) as image:
        return image.tobytes()


def test_it_prints_who_did_what_and_what_it_cost(edge: str) -> None:
    result = fedkd("--edge", edge, "--device-steps", 3, "-o", "seven.png")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0] == "seven.png: 32x32, seed 5"
    assert lines[1].startswith("steps    device 3, then edge 1; decoded by the edge (DDIMScheduler")
    assert re.fullmatch(r"bytes    [\d,]+ up, [\d,]+ down; .*", lines[2])
    assert re.fullmatch(r"seconds  [\d.]+: device [\d.]+, edge [\d.]+, network [\d.]+", lines[3])
    assert "estimated: device" in lines[4] and "4.76 W (EUCI device) x" in lines[4]
    assert "denoising: 4/4" in result.stderr
    assert fedkd("--edge", edge, "--device-watts", 9, "--order", "edge_first").exit_code == 0
    assert pixels() == pixels("seven.png")


def test_the_planner_is_asked_and_says_why(edge: str) -> None:
    result = fedkd("--edge", edge, "--split", "auto", "--delay-limit", 1000)
    assert result.exit_code == 0, result.output
    assert "why      " in result.stdout and "within 1000 s" in result.stdout


def test_the_next_edge_takes_over_and_it_says_so(edge: str) -> None:
    fedkd("--edge", edge, "-o", "whole.png")
    with relay(edge, dies_at="/handoff") as first:
        result = fedkd("--edge", first.url, "--edge", edge, "--device-steps", 2)
    assert result.exit_code == 0 and pixels() == pixels("whole.png")
    assert f"edges    {first.url}, then {edge}" in result.stdout
    assert "note: " in result.stderr and "going on from step 2 of 4" in result.stderr


def test_what_is_not_exact_is_said(edge: str) -> None:
    assert "latents travelled as uint8" in fedkd("--edge", edge, "--device-steps", 2, "--wire", "uint8").stdout


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--split", "auto", "--device-steps", "2"], "exclude each other"),
        (["--delay-limit", "2"], "--split auto"),
        (["--device-steps", "5"], "give 0 to 4"),
        (["--scheduler", "DDIM"], "did you mean"),
        (["--model", "other"], "no model 'other'"),
        (["--device", "gpu"], "device='gpu'"),
        (["--device-checkpoint", "nowhere"], "model_index.json"),
        (["--dtype", "float16"], "same dtype"),
        (["-o", "no/where.png"], "make it first"),
        (["--edge", "not-a-url"], "not a URL"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(edge: str, words: list[str], named: str) -> None:
    result = fedkd("--edge", edge, *words)
    assert result.exit_code == 2
    error = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(error) == 1 and named in error[0] and "Traceback" not in result.output
    assert not Path("picture.png").exists()


def test_no_edge_at_all_is_one_line() -> None:
    result = fedkd("--edge", f"http://127.0.0.1:{free_port()}")
    assert result.exit_code == 2 and "start one with `fedkd serve`" in result.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--condition", "canny"], "give --source PICTURE too"),
        (["--source", "photo.png"], "give --condition canny too"),
        (["--extracted"], "--extracted is for --condition and --source"),
        (["--condition", "canny", "--source", "none.png"], "--source none.png cannot be read"),
        (["--condition", "canny", "--source", "text.png"], "--source text.png is no picture"),
        (["--condition", "canny", "--source", "huge.png"], "10000x10000 = 100 megapixels; give at most 64"),
        (["--condition-quality", "0"], "--condition-quality 0 must lie above 0"),
    ],
)
def test_a_source_that_cannot_be_followed_is_one_line(place: Path, words: list[str], said: str) -> None:
    from tests.data.test_conditions import bomb

    (place / "text.png").write_text("no picture")
    (place / "huge.png").write_bytes(bomb(10_000, 10_000))
    result = fedkd(*words)
    assert result.exit_code == 2 and said in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1 and not Path("picture.png").exists()


def test_a_model_that_no_picture_steers_says_so(edge: str) -> None:
    Image.new("RGB", (40, 30), "red").save("photo.png")
    result = fedkd("--edge", edge, "--condition", "canny", "--source", "photo.png")
    assert result.exit_code == 2 and "has no ControlNet" in result.stderr
