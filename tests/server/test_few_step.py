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
FEW = ("federation.edges=1", "federation.users=2")  # the method is the cloud's, however many nodes there are


@pytest.mark.parametrize(
    ("method", "form", "scheduler", "steps"),
    [
        ("progressive", "full", "DDIMScheduler", 2),
        ("adversarial", "lora", "LCMScheduler", 4),
    ],
)
def test_a_few_step_method_publishes_a_student_that_says_how_it_is_drawn(
    run_with: Callable[..., Federation], method: str, form: str, scheduler: str, steps: int
) -> None:
    made = run_with({}, f"distillation.method={method}", f"distillation.student={form}", *SMALL, *FEW)
    made.go()
    says_how_it_is_drawn(made, form, scheduler, steps)


def says_how_it_is_drawn(made: Federation, form: str, scheduler: str, steps: int) -> None:
    """The last round's student is of this form, and its manifest, its folder and the report name its sampler."""
    number = made.recipe.federation.rounds
    registry = Registry(made.registry.root)
    manifest = registry.manifest(f"tiny:v{number}")
    assert manifest.sampling == {"scheduler": scheduler, "num_inference_steps": steps, "guidance_scale": 1.0}
    pipe = load_pipeline(str(registry.resolve(f"tiny:v{number}")))
    assert type(pipe.scheduler).__name__ == scheduler
    student = (made.run / "state" / f"round-{number:03}" / "student.safetensors").read_bytes()
    assert is_full(student) == (form == "full")
    last = compose(made.recipe, made.run, made.registry.root)["rounds"][-1]
    assert last["student"]["sampling"] == manifest.sampling


def test_rounds_before_the_last_make_a_student_that_edges_can_fine_tune(run_with: Callable[..., Federation]) -> None:
    made = run_with({}, "distillation.method=consistency", "federation.rounds=2", *SMALL, *FEW)
    made.go()
    says_how_it_is_drawn(made, "lora", "LCMScheduler", 4)
    first, last = (Registry(made.registry.root).manifest(f"tiny:{version}") for version in ("v1", "v2"))
    assert first.sampling == {} and last.sampling["scheduler"] == "LCMScheduler"
    assert first.parents == ("tiny:v0",) and last.parents == ("tiny:v1",)
