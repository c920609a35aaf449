"""Adversarial distillation: the hinge losses and R1 by hand, and who learns from what."""

import copy
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import Dinov2Config, Dinov2Model

from fedkd.distillation.adversarial import Adversarial
from fedkd.distillation.discriminator import Heads, features_of
from fedkd.models.conditioning import predict, take
from fedkd.models.pipeline import denoiser_of
from tests.distillation.classroom import alone, classroom, family, gradient, levels, recipe, student_alone, x0_of_v


class Slope(nn.Module):
    """A head made by hand: logits are w * feature, one a value."""

    def __init__(self, slopes: list[float]) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor(slopes))

    def forward(self, features: list[torch.Tensor], *, frozen: bool = False) -> torch.Tensor:
        w = self.w.detach() if frozen else self.w
        return torch.cat([w[i] * feature.flatten(1) for i, feature in enumerate(features)], dim=1)


def test_the_discriminators_loss_is_hinge_plus_r1_of_a_hand_made_head() -> None:
    with classroom(family("sd"), recipe("method=adversarial", "adversarial.r1=0.5"), edges=1) as method:
        assert isinstance(method, Adversarial)
        method.heads = Slope([2.0, -1.0])  # type: ignore[assignment]
        real = [torch.full((3, 1, 2, 2), 0.3), torch.full((3, 1, 1, 4), 0.8)]
        fake = [torch.full((3, 1, 2, 2), -0.7), torch.full((3, 1, 1, 4), -2.0)]
        # logits of real: 0.6 and -0.8, of fake: -1.4 and 2.0; half of the places each
        hinge = (0.4 + 1.8) / 2 + (0.0 + 3.0) / 2
        r1 = 0.5 / 2 * (4 * 2.0**2 + 4 * 1.0**2)  # four values a feature, slope w each
        loss = method.discriminator_loss(real, fake)
        assert float(loss.detach()) == pytest.approx(hinge + r1, rel=1e-5)
        # d/dw: real below 1 pushes -feature, fake above -1 pushes +feature, R1 gives r1 * 4 w
        (slope,) = torch.autograd.grad(loss, [method.heads.w])  # type: ignore[list-item]
        assert slope.tolist() == pytest.approx([-0.3 / 2 + 0.5 * 4 * 2.0, -0.8 / 2 - 2.0 / 2 - 0.5 * 4], rel=1e-5)


def test_r1_of_the_real_heads_is_the_squared_gradient_of_their_logits() -> None:
    with classroom(family("sd"), recipe("method=adversarial"), edges=1) as method:
        assert isinstance(method, Adversarial)
        generator = torch.Generator().manual_seed(0)
        widths = [head[1].in_channels for head in method.heads.heads]  # type: ignore[index]
        real = [torch.randn(3, width, 4, 4, generator=generator) for width in widths]
        fake = [torch.randn(3, width, 4, 4, generator=generator) for width in widths]
        losses = []
        for r1 in (0.0, 1.0):
            method.config.adversarial.r1 = r1
            losses.append(float(method.discriminator_loss([f.clone() for f in real], fake).detach()))
        watched = [f.clone().requires_grad_(True) for f in real]
        slopes = torch.autograd.grad(method.heads(watched).sum(), watched)
        expected = 0.5 * sum(float((s**2).sum()) / 3 for s in slopes)
        assert losses[1] - losses[0] == pytest.approx(expected, rel=1e-3)


def test_every_term_of_the_loss_is_the_papers() -> None:
    chosen = recipe("method=adversarial", "model.guidance_scale=1.0", "adversarial.weight=0.3", "adversarial.r1=0.01")
    with classroom(family("sd"), chosen, edges=1) as method:
        assert isinstance(method, Adversarial)
        found = method.loss(torch.Generator().manual_seed(3))
        generator = torch.Generator().manual_seed(3)
        batch = method.batch(generator)
        t = torch.tensor([249, 499, 749, 999])[torch.randint(4, (4,), generator=generator)]
        scheduler, denoiser = method.lesson.scheduler, method.student.denoiser
        x_t = scheduler.add_noise(batch.x0, torch.randn(batch.x0.shape, generator=generator), t)
        own = x0_of_v(scheduler, student_alone(method, x_t, t, batch.conditions), x_t, t)
        again = torch.randint(1000, (4,), generator=generator)
        noise = torch.randn(batch.x0.shape, generator=generator)
        alpha, sigma = levels(scheduler, again)
        noisy = alpha * own + sigma * noise
        denoiser.set_adapter("edge-0")
        with features_of(denoiser) as fake:
            predict(denoiser, noisy, again, batch.conditions)
        with features_of(denoiser) as real, torch.no_grad():
            predict(denoiser, alpha * batch.x0 + sigma * noise, again, batch.conditions)
        denoiser.set_adapter("student")
        adversarial = -method.heads(fake).mean()
        told = x0_of_v(
            scheduler, alone(denoiser, "edge-0", noisy.detach(), again, batch.conditions), noisy.detach(), again
        )
        cumprod = scheduler.alphas_cumprod[again]
        c = (cumprod / (1 - cumprod)).clamp(min=1)
        distill = (c * ((own - told) ** 2).mean((1, 2, 3))).mean()
        watched = [feature.detach().requires_grad_(True) for feature in real]
        logits, others = method.heads(watched), method.heads([feature.detach() for feature in fake])
        slopes = torch.autograd.grad(logits.sum(), watched)
        r1 = 0.01 / 2 * sum((s**2).flatten(1).sum(1).mean() for s in slopes)
        hinge = (1 - logits).clamp(min=0).mean() + (1 + others).clamp(min=0).mean() + r1
        expected = {"adversarial": adversarial, "distill": distill, "discriminator": hinge}
        for key, value in expected.items():
            assert float(found[key].detach()) == pytest.approx(float(value.detach()), rel=2e-3, abs=1e-5), key
        total = distill + 0.3 * adversarial
        assert float(found["loss"].detach()) == pytest.approx(float((total + hinge).detach()), rel=1e-3)
        ours, theirs = gradient(method, found["loss"]), gradient(method, total)
        assert theirs.norm() > 0 and (ours - theirs).norm() < 1e-2 * theirs.norm()


def test_the_students_gradient_does_not_touch_the_heads_nor_theirs_the_student() -> None:
    with classroom(family("sd"), recipe("method=adversarial"), edges=1) as method:
        assert isinstance(method, Adversarial)
        heads = list(method.heads.parameters())
        found = method.loss(torch.Generator().manual_seed(0))
        for key in ("adversarial", "distill"):
            touched = torch.autograd.grad(found[key], heads, retain_graph=True, allow_unused=True)
            assert all(g is None for g in touched)
            assert gradient(method, found[key]).norm() > 0
        assert gradient(method, found["discriminator"]).norm() == 0
        assert any(g.norm() > 0 for g in torch.autograd.grad(found["discriminator"], heads))


def test_frozen_heads_say_the_same() -> None:
    torch.manual_seed(0)
    heads, features = Heads([4, 8]), [torch.randn(2, 4, 4, 4), torch.randn(2, 8, 2, 2)]
    assert heads(features).shape == (2, 16 + 4)
    assert torch.allclose(heads(features), heads(features, frozen=True))


@pytest.mark.parametrize("name", ["sd", "sdxl", "sd3"])
def test_features_come_from_every_family_a_row_each(name: str) -> None:
    with classroom(family(name), recipe("method=adversarial"), edges=1) as method:
        assert isinstance(method, Adversarial)
        batch = method.batch(torch.Generator().manual_seed(0))
        index, which = torch.full((4,), 500), torch.tensor([0, 1, 0, 1])
        found = method.features(batch.x0, batch.x0, index, batch.conditions, which)
        assert found and all(feature.ndim == 4 and len(feature) == 4 for feature in found)


def test_no_hook_stays_on_the_network() -> None:
    denoiser = denoiser_of(family("sd"))
    with pytest.raises(RuntimeError), features_of(denoiser):
        raise RuntimeError
    assert not any(module._forward_hooks for module in denoiser.modules())


def test_whole_models_as_teachers_leave_the_discriminator_on_the_bases_features() -> None:
    """Features of different networks cannot be told apart by one set of heads, so theirs are the base's."""
    pipe = family("sd")
    whole = copy.deepcopy(denoiser_of(pipe))
    with classroom(pipe, recipe("method=adversarial"), edges=1, modules={"whole": whole}) as method:
        assert isinstance(method, Adversarial)
        batch = method.batch(torch.Generator().manual_seed(0))
        index = torch.full((4,), 500)
        mixed = method.features(batch.x0, batch.x0, index, batch.conditions, torch.tensor([0, 1, 1, 2]))
        base = method.features(batch.x0, batch.x0, index, batch.conditions, torch.full((4,), 2))
        for of_mixed, of_base in zip(mixed, base, strict=True):
            assert len(of_mixed) == 4
            assert torch.allclose(of_mixed[1:], of_base[1:], atol=1e-5)
    with classroom(pipe, recipe("method=adversarial"), edges=0, modules={"whole": whole}) as method:
        assert torch.isfinite(method.loss(torch.Generator().manual_seed(0))["loss"])


def test_the_student_is_asked_on_its_few_timesteps_alone() -> None:
    with classroom(family("sd"), recipe("method=adversarial", "adversarial.timesteps=2"), edges=1) as method:
        assert isinstance(method, Adversarial)
        assert method.grid.tolist() == [499, 999]
        assert take(method.lesson.examples.conditions, torch.tensor([0]))["encoder_hidden_states"].shape[0] == 1


def test_dinov2_sees_the_decoded_pictures_and_passes_gradients_to_the_student(tmp_path: Path) -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "patch_size": 2, "image_size": 32}
    Dinov2Model(Dinov2Config(**sizes)).save_pretrained(tmp_path / "dinov2")
    chosen = recipe("method=adversarial", "adversarial.features=dinov2", f"adversarial.dinov2={tmp_path / 'dinov2'}")
    with classroom(family("sd"), chosen, edges=1) as method:
        assert isinstance(method, Adversarial)
        x0 = method.lesson.examples.latents[:2].clone().requires_grad_(True)
        index, conditions = torch.tensor([5, 5]), method.lesson.examples.empty(2)
        found = method.features(x0, torch.zeros_like(x0), index, conditions, torch.zeros(2, dtype=torch.long))
        assert [tuple(f.shape) for f in found] == [(2, 16, 257, 1)] * 4  # 16 x 16 patches and the class token
        (slope,) = torch.autograd.grad(method.heads(found, frozen=True).sum(), [x0])
        assert slope.abs().max() > 0
        losses = method.loss(torch.Generator().manual_seed(1))
        assert all(torch.isfinite(value) for value in losses.values())


def test_a_dinov2_that_is_not_there_is_named(tmp_path: Path) -> None:
    chosen = recipe("method=adversarial", "adversarial.features=dinov2", f"adversarial.dinov2={tmp_path}")
    with pytest.raises(ValueError, match=r"distillation\.adversarial\.dinov2"), classroom(family("sd"), chosen):
        pass
