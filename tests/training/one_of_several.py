"""Trains a small model and a student; run as a program, it is one of several processes."""

import sys
from pathlib import Path

import torch
from accelerate.state import PartialState
from safetensors.torch import save_file

from fedkd.distillation.distil import distil
from fedkd.distillation.teachers import BASE
from fedkd.training.loop import train
from tests.distillation.classroom import family, pictures, random_adapter, recipe

DATA = torch.randn(64, 3, generator=torch.Generator().manual_seed(0))


def weights() -> list[torch.nn.Parameter]:
    """The weights of a linear model."""
    return [torch.nn.Parameter(torch.tensor([1.0, -2.0, 0.5])), torch.nn.Parameter(torch.zeros(1))]


def rows_loss(parameters: list[torch.nn.Parameter], rows: list[int]) -> dict[str, torch.Tensor]:
    """Its squared error on some rows."""
    told = DATA[rows] @ parameters[0] + parameters[1]
    return {"loss": ((told - DATA[rows].sum(1)) ** 2).mean(), "size": told.abs().mean()}


def learn(out: Path, parts: int) -> None:
    """Train with `parts` batches a step in each process, and write each process's weights to `out`."""
    mine = weights()
    train(
        mine,
        lambda n: rows_loss(mine, [2 * n, 2 * n + 1]),
        steps=4,
        learning_rate=0.1,
        gradient_accumulation_steps=parts,
    )
    state = PartialState()
    rank = state.process_index
    save_file({str(i): p.detach() for i, p in enumerate(mine)}, out / f"plain-{rank}.safetensors")
    pipe = family("sd")
    chosen = recipe(
        "method=adversarial",
        "steps=3",
        "batch_size=2",
        "save_every=1",
        "teacher_weights=provenance",
        f"gradient_accumulation_steps={parts}",
    )
    sets = {"edge-0": pictures(0), BASE: pictures(9)}
    made = distil(pipe, sets, {"edge-0": random_adapter(pipe.unet, 3)}, chosen, seed=1, folder=out / "run")
    (out / f"student-{rank}.safetensors").write_bytes(made.student)
    (out / f"processes-{rank}").write_text(str(state.num_processes))


if __name__ == "__main__":
    torch.set_num_threads(1)
    learn(Path(sys.argv[1]), int(sys.argv[2]))
