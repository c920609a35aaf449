"""`fedkd keys`: make keys, sign a published version, check it."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from fedkd.cli.keys import keys
from tests.checkpoints.published import Source


def run(*arguments: object) -> Result:
    return CliRunner().invoke(keys, [str(argument) for argument in arguments])


@pytest.fixture()
def version(tmp_path: Path) -> Path:
    source = Source(tmp_path / "source")
    return source.registry.folder(source.publish("one").reference)


def test_new_keys_sign_and_verify_a_version(version: Path, tmp_path: Path) -> None:
    made = run("new", tmp_path / "keys")
    assert made.exit_code == 0 and "serving.trusted_keys" in made.stdout
    private, public = tmp_path / "keys/signing.key", tmp_path / "keys/signing.pub"
    assert run("sign", version, "--key", private).exit_code == 0
    checked = run("verify", version, "--key", public)
    assert checked.exit_code == 0 and "m:v0: whole, signed by key:" in checked.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("sign", "{version}"), "give one of --key"),
        (("sign", "{version}", "--key", "/none.key"), "'/none.key' cannot be used as a key: it does not exist"),
        (("verify", "{version}"), "give at least one of --key"),
        (("verify", "{version}", "--key", "{public}"), "m:v0 is not signed"),
        (("verify", "/none", "--key", "{public}"), "'/none' is no published checkpoint"),
        (("new", "{keys}"), "exists already and is left alone"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(
    arguments: tuple[str, ...], said: str, version: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "keys"
    run("new", folder)
    places = {"version": version, "keys": folder, "public": folder / "signing.pub"}
    done = run(*(argument.format(**places) for argument in arguments))
    assert done.exit_code == 2
    assert done.stderr.startswith("error: ") and said in done.stderr and done.stderr.count("\n") == 1
