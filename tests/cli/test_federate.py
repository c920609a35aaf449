"""`fedkd federate`: options that do not fit are named before anything is started."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from fedkd.cli.main import app
from fedkd.serving.loopback import free_port


def said(*words: str) -> str:
    done = CliRunner().invoke(app, ["federate", *words])
    assert done.exit_code == 2, done.output
    return " ".join(done.output.split())


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["quickstart"], "give --root-certificates FILE"),
        (["quickstart", "--insecure", "--root-certificates", "ca.crt"], "give --root-certificates FILE"),
        (["quickstart", "--netns"], "--netns is for --local"),
        (["quickstart", "--local", "--insecure"], "--local starts a SuperLink of its own"),
        (["quickstart", "--insecure", "--superlink", "here"], "is not HOST:PORT"),
        (["quickstart", "--root-certificates", "/nowhere/ca.crt"], "no such file"),
    ],
)
def test_options_that_do_not_fit(words: list[str], expected: str) -> None:
    assert expected in said(*words)


def test_no_superlink() -> None:
    place = f"127.0.0.1:{free_port()}"
    assert f"no SuperLink answers at {place}" in said("quickstart", "--insecure", "--superlink", place)


def test_a_recipe_of_another_kind_names_its_verb(tmp_path: Path) -> None:
    assert "run: fedkd distill distill-federated" in said("distill-federated", f"run.out={tmp_path}", "--local")
