"""A federated round whose cloud step is a few-step method."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from fedkd.checkpoints.registry import Registry
from fedkd.distillation.student import is_full
from fedkd.models.pipeline import load_pipeline
from server.rounds import Federation
from server.summary import compose

SMALL = ("distillation.steps=4", "distillation.progressive.start_steps=4", "distillation.progressive.end_steps=2")


@pytest.mark.parametrize(
    ("method", "form", "scheduler", "steps"),
    [
        ("progressive", "full", "DDIMScheduler", 2),
        ("adversarial", "lora", "LCMScheduler", 4),
        ("consistency", "lora", "LCMScheduler", 4),
    ],
)
def test_a_few_step_method_publishes_a_student_that_says_how_it_is_drawn(
    run_with: Callable[..., Federation], method: str, form: str, scheduler: str, steps: int
) -> None:
    made = run_with({}, f"distillation.method={method}", f"distillation.student={form}", *SMALL)
    made.go()
    registry = Registry(made.registry.root)
    manifest = registry.manifest("tiny:v1")
    assert manifest.sampling == {"scheduler": scheduler, "num_inference_steps": steps, "guidance_scale": 1.0}
    pipe = load_pipeline(str(registry.resolve("tiny:v1")))
    assert type(pipe.scheduler).__name__ == scheduler
    student = (made.run / "state" / "round-001" / "student.safetensors").read_bytes()
    assert is_full(student) == (form == "full")
    assert compose(made.recipe, made.run, made.registry.root)["rounds"][0]["student"]["sampling"] == manifest.sampling


def test_rounds_before_the_last_make_a_student_that_edges_can_fine_tune(run_with: Callable[..., Federation]) -> None:
    made = run_with({}, "distillation.method=consistency", "federation.rounds=2", *SMALL)
    made.go()
    first, last = (Registry(made.registry.root).manifest(f"tiny:{version}") for version in ("v1", "v2"))
    assert first.sampling == {} and last.sampling["scheduler"] == "LCMScheduler"
    assert first.parents == ("tiny:v0",) and last.parents == ("tiny:v1",)
