"""`fedkd checkpoints` shows what a registry holds, and a mistake is one line that names what there is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from fedkd.checkpoints.registry import Registry
from fedkd.checkpoints.signing import generate_keys, sign
from fedkd.cli.main import app
from tests.checkpoints.folders import make_model, write_weights


@pytest.fixture()
def registry(tmp_path: Path) -> Registry:
    registry, model = Registry(tmp_path / "r"), make_model(tmp_path / "model", "0", size_bytes=2000)
    registry.publish(model, name="m", licence="apache-2.0", base_model="tiny-sd")
    for number in range(1, 4):
        write_weights(model / "unet/w.safetensors", str(number), 2000)
        facts = {"round": number, "metrics": {"known": 0.5}, "edges": ["edge-0"], "recipe_digest": "ab" * 32}
        registry.publish(model, name="m", parents=[f"m:v{number - 1}"], **facts)
    return registry


def run(registry: Registry, *arguments: str) -> Any:
    return CliRunner().invoke(app, ["checkpoints", *arguments, "--registry", str(registry.root)])


def test_ls_shows_sizes_what_is_new_and_what_points_at_a_version(registry: Registry) -> None:
    lines = run(registry, "ls").stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["VERSION", "m:v0", "m:v1", "m:v2", "m:v3"]
    assert lines[-1].split() == ["m:v3", "4.2", "kB", "2.1", "kB", "3", "m:v2", "latest"]
    assert run(registry, "ls", "m").stdout.splitlines() == lines


def test_show_tells_where_a_version_comes_from(registry: Registry) -> None:
    text = run(registry, "show", "m").stdout
    for told in ("m:v3", "latest", "edge-0", "known 0.5", "unet/w.safetensors", "signed:     no"):
        assert told in text
    assert json.loads(run(registry, "show", "m:v0", "--json").stdout)["licence"] == "apache-2.0"


def test_lineage_and_diff(registry: Registry) -> None:
    lines = run(registry, "lineage", "m").stdout.splitlines()
    assert lines[0] == "m:v3  round 3, taught by edge-0, recipe abababababab" and lines[-1].split()[0] == "m:v0"
    text = run(registry, "diff", "m:v0", "m").stdout
    assert "~ unet/w.safetensors" in text and "vae" not in text and "2.1 kB of 4.2 kB differ" in text


def test_pin_gc_and_rollback(registry: Registry) -> None:
    assert "m:v1 is pinned" in run(registry, "pin", "m:v1").stdout
    assert "would free" in run(registry, "gc", "--dry-run").stdout and len(registry.versions("m")) == 4
    run(registry, "unpin", "m:v1")
    text = run(registry, "gc").stdout
    assert "removed m:v1" in text and "keep    m:v2  for rollback" in text
    assert run(registry, "rollback", "m").stdout == "m: latest was v3, is now v2\n"
    assert "removed by gc" in run(registry, "lineage", "m").stdout


def test_verify_names_every_damaged_version_and_fails(registry: Registry) -> None:
    assert run(registry, "verify").stdout.splitlines() == [f"m:v{number}  sound" for number in range(4)]
    path = registry.root / "versions/m/v2/unet/w.safetensors"
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    result = run(registry, "verify")
    assert result.exit_code == 2 and result.stderr.startswith("error: 1 of 4 versions failed: m:v2")
    assert "m:v3  sound" in result.stdout and run(registry, "verify", "m:v3").exit_code == 0


def test_verify_demands_a_signature_by_the_key_that_is_given(registry: Registry, tmp_path: Path) -> None:
    private, public = generate_keys(tmp_path / "keys")
    registry.publish(make_model(tmp_path / "model", "signed"), name="s", sign=lambda folder: sign(folder, private))
    assert run(registry, "verify", "s", "--key", str(public)).stdout == "s:v0  sound, signature trusted\n"
    assert "signed:     yes" in run(registry, "show", "s").stdout
    other = generate_keys(tmp_path / "other")[1]
    for arguments in (("s:v0", "--key", str(other)), ("m:v0", "--key", str(public))):
        result = run(registry, "verify", *arguments)
        assert result.exit_code == 2 and len(result.stderr.splitlines()) == 1 and "sign" in result.stderr


def test_verify_tells_of_a_name_that_points_at_nothing(registry: Registry) -> None:
    (registry.root / "names/m/candidate").write_text("v9")
    result = run(registry, "verify")
    assert result.exit_code == 2 and "candidate of 'm' is v9" in result.stderr
    (registry.root / "names/m/candidate").unlink()
    (registry.root / "names/m/latest").write_text("v9")
    assert "rollback m vN" in run(registry, "verify").stderr
    assert run(registry, "rollback", "m", "v1").stdout == "m: latest was v9, is now v1\n"
    assert run(registry, "verify").exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["show", "n"], "known names: m"),
        (["show", "m:v9"], "known versions: v0, v1, v2, v3, latest"),
        (["show", "../m"], "no checkpoint name"),
        (["ls", "n"], "known names: m"),
        (["verify", "n"], "known names: m"),
        (["diff", "m:v0", "m:candidate"], "known versions"),
        (["rollback", "m", "v9"], "known versions"),
        (["unpin", "m"], "is not pinned"),
        (["pin", "m:v9"], "known versions"),
        (["lineage", "m:v9"], "known versions"),
        (["verify", "m", "--key", "none.pem"], "'none.pem' cannot be used as a key"),
    ],
)
def test_a_mistake_is_one_line(arguments: list[str], told: str, registry: Registry) -> None:
    result = run(registry, *arguments)
    assert result.exit_code == 2 and told in result.stderr
    assert result.stderr.startswith("error: ") and len(result.stderr.splitlines()) == 1


def test_a_folder_that_is_no_registry_is_told_and_not_made(tmp_path: Path) -> None:
    result = run(Registry(tmp_path / "nowhere"), "gc")
    assert result.exit_code == 2 and "--registry" in result.stderr and not (tmp_path / "nowhere").exists()
