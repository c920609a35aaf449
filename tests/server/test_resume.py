"""A server killed in the distil phase of round 2 and resumed gives the same student, bit for bit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.server.conftest import Done, federation, small_recipe

ROOT = Path(__file__).resolve().parents[2]
VICTIM = """
import sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from tests.server.conftest import federation, small_recipe
model, out = Path(sys.argv[1]), Path(sys.argv[2])
federation(small_recipe(model, out), out).go()
"""


def in_distil_of_round_2(log: Path) -> bool:
    if not log.is_file():
        return False
    events = [json.loads(line) for line in log.read_text().splitlines() if line.endswith("}")]
    return any(e["event"] == "phase_start" and (e.get("round"), e.get("phase")) == (2, "distil") for e in events)


def test_a_server_killed_in_distil_of_round_2_resumes_to_the_same_student(
    undisturbed: Done, tiny_folder: Path, tmp_path: Path
) -> None:
    run = tmp_path / "small"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", VICTIM, str(tiny_folder), str(tmp_path)]
    victim = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while not in_distil_of_round_2(run / "progress.jsonl"):
            assert victim.poll() is None, "the server ended before it could be killed"
            time.sleep(0.002)
    finally:
        victim.send_signal(signal.SIGKILL)
        victim.wait()
    assert not (run / "state/round-002/publish.json").exists()
    resumed = federation(small_recipe(tiny_folder, tmp_path), tmp_path)
    resumed.go()
    kinds = [message.metadata.message_type for message in resumed.grid.sent]  # type: ignore[attr-defined]
    assert "train.synthesise" not in kinds and "train.finetune" not in kinds
    for file in ("state/round-002/student.safetensors", "state/round-002/replay.parquet"):
        assert (run / file).read_bytes() == (undisturbed.run / file).read_bytes()
    unet = "registry/versions/tiny/v2/unet/diffusion_pytorch_model.safetensors"
    assert (run / unet).read_bytes() == (undisturbed.run / unet).read_bytes()
