"""The step's cost: all variants do the same work, and memory is counted right."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from fedkd.cli.benchmarks import step_cost, step_memory, step_variants
from fedkd.cli.benchmarks.request import Request
from fedkd.cli.benchmarks.step_variants import LOOP, OURS, SAMPLED, VARIANTS, WHOLE
from fedkd.recipe import Recipe, load_recipe


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return load_recipe("quickstart", ["distillation.batch_size=4", "distillation.lora.rank=2"])


def trained(recipe: Recipe, variant: str, *, randomise: bool) -> torch.Tensor:
    bench = step_variants.bench_of(recipe, "tiny")
    steps, _ = step_variants.stepper(bench, variant, 3, (3,))
    generator = torch.Generator().manual_seed(0)
    for name, parameter in bench.denoiser.named_parameters():
        if ".teacher-" in name and randomise:
            parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)
    steps[3](0)
    return torch.cat([p.detach().flatten() for n, p in bench.denoiser.named_parameters() if ".student." in n])


def test_the_set_adapter_loop_and_the_mixed_forward_teach_the_same(recipe: Recipe) -> None:
    ours, loop = (trained(recipe, variant, randomise=True) for variant in (OURS, LOOP))
    assert torch.allclose(ours, loop, atol=1e-5) and not torch.equal(ours, trained(recipe, OURS, randomise=False))


def test_one_unet_a_teacher_teaches_what_fresh_adapters_teach(recipe: Recipe) -> None:
    ours, whole = (trained(recipe, variant, randomise=False) for variant in (OURS, WHOLE))
    assert torch.allclose(ours, whole, atol=1e-5)


def test_a_step_runs_in_bfloat16(recipe: Recipe) -> None:
    half = replace(recipe, run=replace(recipe.run, dtype="bfloat16"))
    for variant in VARIANTS:
        assert torch.isfinite(trained(half, variant, randomise=False)).all()


def test_live_tensors_are_counted_at_their_peak() -> None:
    held = torch.zeros(1000)

    def work() -> None:
        a = held + 1
        b = a + 1  # held, a and b: 12 kB
        del a
        c = b.view(10, 100)  # no memory of its own
        d = c + 1  # held, b, d
        del b, c, d

    assert step_memory.live_tensor_peak(work, [held]) == 12_000


def test_what_autograd_keeps_counts_as_live() -> None:
    weight = torch.ones(1000, requires_grad=True)

    def work() -> None:
        x = weight * 2
        for _ in range(5):
            x = x.exp()  # its result is kept for the way back
        x.sum().backward()

    assert step_memory.live_tensor_peak(work, [weight]) >= 7 * 4_000


def test_a_fresh_process_tells_its_resident_set_beside_its_tensors(recipe: Recipe) -> None:
    fresh, here = (
        measure(recipe, SAMPLED, 1, "tiny") for measure in (step_memory.measure, step_memory.in_this_process)
    )
    assert fresh["resident_bytes"] > fresh["resident_before_bytes"] > 0
    assert fresh["parameter_bytes"] == here["parameter_bytes"]
    assert fresh["tensor_bytes"] == pytest.approx(here["tensor_bytes"], rel=0.05)


def test_memory_grows_by_the_adapters(recipe: Recipe) -> None:
    one, many = (step_memory.in_this_process(recipe, SAMPLED, count, "tiny") for count in (1, 3))
    assert 0 < many["parameter_bytes"] - one["parameter_bytes"] < 0.2 * one["parameter_bytes"]
    assert one["tensor_bytes"] > one["parameter_bytes"]


def test_an_unknown_size_is_refused(recipe: Recipe) -> None:
    with pytest.raises(ValueError, match="--size huge is not known; give tiny or sd15"):
        step_variants.bench_of(recipe, "huge")


def test_the_sd15_size_is_stable_diffusion_1_5() -> None:
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        unet: Any = UNet2DConditionModel(**step_variants.SD15_UNET)
    assert sum(parameter.numel() for parameter in unet.parameters()) == 859_520_964


def test_the_plan_has_every_variant_and_number_of_teachers() -> None:
    keys = step_cost.keys(Request("step-cost"))
    assert len(keys) == len(set(keys)) == 4 * (5 + 1)
