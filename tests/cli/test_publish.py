"""`fedkd publish`, `pull` and `registry serve` by the front door: what moves is said, a mistake is one line."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from fedkd.checkpoints.registry import Registry
from fedkd.checkpoints.signing import generate_keys
from fedkd.cli.byte_bar import size
from fedkd.cli.publish import publish
from fedkd.cli.pull import pull
from fedkd.cli.registry import registry as registry_verbs
from fedkd.recipe import load_recipe, save_recipe
from tests.checkpoints.folders import make_model, write_weights

ROOT = Path(__file__).resolve().parents[2]
LORA = "pytorch_lora_weights.safetensors"
SERVE = """
import sys
from fedkd.cli.registry import registry
sys.argv[0] = "fedkd"
registry()
"""

app = typer.Typer()
app.command("publish")(publish)
app.command("pull")(pull)
app.add_typer(registry_verbs, name="registry")


def fedkd(*words: object) -> Any:
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every command runs in an empty folder of its own."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.delenv("FEDKD_TOKEN", raising=False)
    return tmp_path / "work"


@contextmanager
def served(root: Path, token: str = "") -> Iterator[str]:
    """`fedkd registry serve` in a process of its own; yields the URL it prints."""
    process = subprocess.Popen(
        [sys.executable, "-c", SERVE, "serve", str(root), "--port", "0"],
        env={**os.environ, "PYTHONPATH": str(ROOT), "FEDKD_TOKEN": token},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        found = re.search(r"http://\S+", process.stdout.readline())
        assert found
        yield found[0]
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=20)


def test_a_folder_is_published_and_pulled_and_says_what_moved(tmp_path: Path, place: Path) -> None:
    model = make_model(tmp_path / "model", size_bytes=100_000)
    first = fedkd("publish", model, "--name", "m", "--to", tmp_path / "there", "--licence", "mit")
    assert first.exit_code == 0, first.output
    assert re.search(r"published m:v0 to \S+: 20[01] kB moved \(3 blobs\), 0 B saved \(0\.0%\)", first.stdout)
    write_weights(model / "unet/w.safetensors", "two", 1000)
    second = fedkd("publish", model, "--name", "m", "--to", tmp_path / "there")
    assert re.search(r"published m:v1 .*\(1 blob\), 100 kB saved \(9[78]\.\d%\)", second.stdout)
    pulled = fedkd("pull", "m:v0", "--from", tmp_path / "there", "--registry", "mine")
    assert pulled.exit_code == 0, pulled.output
    assert pulled.stdout.strip() == str(place / "mine/versions/m/v0") and "pulled m:v0" in pulled.stderr
    assert Registry(place / "mine").manifest("m:v0").licence == "mit"


def test_a_version_of_the_local_registry_is_published_by_its_name(tmp_path: Path) -> None:
    Registry(Path("checkpoints/registry")).publish(make_model(tmp_path / "model"), name="m")
    done = fedkd("publish", "m", "--to", (tmp_path / "there").as_uri())
    assert done.exit_code == 0 and Registry(tmp_path / "there").versions("m") == ["v0"]


def test_a_run_leaves_with_the_latest_of_its_registry(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "quickstart"
    save_recipe(load_recipe("quickstart", [f"run.registry={run / 'registry'}"]), run / "recipe.yaml")
    registry = Registry(run / "registry")
    registry.publish(make_model(tmp_path / "model"), name="tiny-sd")
    registry.publish(make_model(tmp_path / "model", unet="two"), name="tiny-sd", parents=["tiny-sd:v0"], round=1)
    done = fedkd("publish", run, "--to", tmp_path / "there")
    assert done.exit_code == 0 and "published tiny-sd:v1" in done.stdout, done.output


def test_the_student_of_a_job_leaves_with_its_lora(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "job"
    name = next(n for n in ("distill-consistency", "distill-federated") if load_recipe(n).kind == "distillation")
    save_recipe(load_recipe(name), run / "recipe.yaml")
    unfinished = fedkd("publish", run, "--to", tmp_path / "there")
    assert unfinished.exit_code == 2 and "no student yet" in unfinished.stderr
    make_model(run / "checkpoint")
    write_weights(run / LORA, "lora")
    (run / "report.json").write_text(json.dumps({"sampling": {"num_inference_steps": 2}, "sheets": []}))
    done = fedkd("publish", run, "--name", "fast", "--to", tmp_path / "there")
    assert done.exit_code == 0, done.output
    there = Registry(tmp_path / "there")
    assert (there.resolve("fast") / LORA).read_bytes() == (run / LORA).read_bytes()
    assert there.manifest("fast").sampling == {"num_inference_steps": 2}
    assert not list(run.glob(".publish-*"))
    assert "published fast:v0" in fedkd("publish", run, "--name", "fast", "--to", tmp_path / "there").stdout


def test_a_key_signs_what_is_published_and_a_pull_may_ask_for_it(tmp_path: Path) -> None:
    (private, public), (_, stranger) = generate_keys(tmp_path / "ours"), generate_keys(tmp_path / "theirs")
    model = make_model(tmp_path / "model")
    assert fedkd("publish", model, "--name", "m", "--to", tmp_path / "there", "--key", private).exit_code == 0
    refused = fedkd("pull", "m", "--from", tmp_path / "there", "--trusted-key", stranger, "--require-signature")
    assert refused.exit_code == 2 and "not trusted" in refused.stderr and refused.stderr.count("\n") == 1
    taken = fedkd("pull", "m", "--from", tmp_path / "there", "--trusted-key", public, "--require-signature")
    assert taken.exit_code == 0, taken.output


def test_a_served_registry_is_pulled_from_with_its_token(tmp_path: Path) -> None:
    registry = Registry(tmp_path / "registry")
    registry.publish(make_model(tmp_path / "model"), name="m")
    with served(registry.root, token="secret") as url:
        refused = fedkd("pull", "m", "--from", url)
        assert refused.exit_code == 2 and "give --token or FEDKD_TOKEN" in refused.stderr
        taken = fedkd("pull", "m", "--from", url, "--token", "secret")
        assert taken.exit_code == 0 and "3 blobs" in taken.stderr, taken.output
        again = fedkd("pull", "m", "--from", url, "--token", "secret")
        assert "(0 blobs)" in again.stderr and Path(again.stdout.strip()).is_dir()
        unknown = fedkd("pull", "n", "--from", url, "--token", "secret")
        assert unknown.exit_code == 2 and "known names: m" in unknown.stderr


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["publish", "m", "--to", "there"], "known names: none"),
        (["publish", "no/folder", "--to", "there"], "'no/folder' does not exist"),
        (["publish", ".", "--to", "there"], "holds neither model_index.json"),
        (["publish", "{model}", "--to", "there"], "--name NAME"),
        (["publish", "{model}", "--name", "a b", "--to", "there"], "is no checkpoint name"),
        (["publish", "{model}", "--name", "m", "--to", "gopher://x"], "is no place for checkpoints"),
        (["publish", "{model}", "--name", "m", "--to", "http://127.0.0.1:9"], "read-only"),
        (["publish", "{model}", "--name", "m", "--to", "hf:nobody"], "hf:OWNER/NAME"),
        (["publish", "{model}", "--name", "m", "--to", "there", "--key", "none.pem"], "cannot be used as a key"),
        (["publish", "{model}", "--name", "m", "--to", "there", "--key", "{public}"], "cannot be used as a key"),
        (["pull", "m", "--from", "nowhere"], "it lists no checkpoints"),
        (["pull", "m:../x", "--from", "nowhere"], "is no version"),
        (["pull", "m", "--from", "nowhere", "--trusted-key", "none.pem"], "'none.pem' cannot be used as a key"),
        (["pull", "m", "--from", "nowhere", "--require-signature"], "--trusted-key FILE"),
        (["pull", "m", "--from", "http://127.0.0.1:9"], "cannot be reached"),
        (["pull", "m", "--from", "ftp://127.0.0.1:9/x"], "'ftp://127.0.0.1:9/x' cannot be reached"),
        (["registry", "serve", "nowhere"], "is no registry"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(words: list[str], told: str, tmp_path: Path) -> None:
    model, (_, public) = make_model(tmp_path / "model"), generate_keys(tmp_path / "keys")
    done = fedkd(*(word.format(model=model, public=public) for word in words))
    assert done.exit_code == 2 and told in done.stderr, done.output
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert not Path("there/versions").exists() and not Path("checkpoints/registry/versions").exists()


@pytest.mark.parametrize(("count", "text"), [(0, "0 B"), (999, "999 B"), (1234, "1.23 kB"), (4_000_000_000, "4 GB")])
def test_bytes_are_written_with_a_unit(count: int, text: str) -> None:
    assert size(count) == text
