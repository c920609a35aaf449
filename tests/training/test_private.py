"""DP-SGD clips and noises each picture's gradient, costs what the accountant says, and is refused without Opacus."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
import torch
from torch import nn

from fedkd.recipe import DPConfig, RecipeError, load_recipe
from fedkd.synthesis.synthesise import synthesise
from fedkd.training import private
from fedkd.training.finetune import finetune, privacy_of
from fedkd.training.loop import TrainingError
from fedkd.training.private import spent_by, train_privately
from tests.distillation.classroom import pictures

ROWS = 6
DATA = torch.linspace(-1, 3, ROWS * 3).reshape(ROWS, 3)


def trained(monkeypatch: pytest.MonkeyPatch, clip: float, noise: float, seed: int = 1) -> torch.Tensor:
    """The weight's move after one step of plain gradient descent on all rows."""
    monkeypatch.setattr(private, "new_optimizer", lambda found, rate: torch.optim.SGD(found, lr=rate))
    monkeypatch.setattr(private, "cosine", lambda step, steps: 1.0)
    layer = nn.Linear(3, 1, bias=False)
    nn.init.constant_(layer.weight, 0.5)
    before = layer.weight.detach().clone()
    train_privately(
        layer.train(),
        layer.parameters(),
        lambda rows, generator: layer(DATA[rows]).square().mean(),
        rows=ROWS,
        batch_size=ROWS,
        steps=1,
        learning_rate=1.0,
        noise_multiplier=noise,
        max_grad_norm=clip,
        generator=torch.Generator().manual_seed(seed),
    )
    return (before - layer.weight.detach()).flatten()


def per_picture() -> torch.Tensor:
    """(ROWS, 3) gradients by hand: d/dw (w.x)^2 = 2 (w.x) x."""
    return 2 * (DATA @ torch.full((3, 1), 0.5)) * DATA


def test_without_noise_and_clipping_the_step_is_the_plain_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    assert torch.allclose(trained(monkeypatch, 1e6, 0.0), per_picture().mean(0), atol=1e-5)


def test_each_pictures_gradient_is_clipped_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    each = per_picture()
    clipped = each * (0.5 / each.norm(dim=1, keepdim=True)).clamp(max=1.0)
    assert torch.allclose(trained(monkeypatch, 0.5, 0.0), clipped.mean(0), atol=1e-4)


def test_the_noise_is_that_of_its_multiplier(monkeypatch: pytest.MonkeyPatch) -> None:
    clean = trained(monkeypatch, 0.5, 0.0)
    moves = torch.stack([trained(monkeypatch, 0.5, 4.0, seed) - clean for seed in range(60)])
    assert float(moves.std()) == pytest.approx(4.0 * 0.5 / ROWS, rel=0.2)


def test_less_epsilon_is_more_noise_and_the_promise_is_kept() -> None:
    found = [spent_by(DPConfig(epsilon=epsilon), rows=200, batch_size=32, steps=50) for epsilon in (1.0, 4.0, 16.0)]
    spent = [each for each in found if each is not None]
    assert [each.epsilon <= epsilon for each, epsilon in zip(spent, (1.0, 4.0, 16.0), strict=True)] == [True] * 3
    assert spent[0].noise_multiplier > spent[1].noise_multiplier > spent[2].noise_multiplier > 0
    assert spent_by(DPConfig(), rows=200, batch_size=32, steps=50) is None


def test_an_adapter_is_trained_privately_and_the_pipeline_left_as_it_was(tiny_pipeline: Any) -> None:
    overrides = ["finetune.steps=2", "finetune.batch_size=4", "finetune.dp.epsilon=8"]
    config, data = load_recipe("quickstart", overrides).finetune, pictures(0, 8)
    keys = list(tiny_pipeline.unet.state_dict())
    first, history = finetune(tiny_pipeline, data, config, seed=1)
    second, _ = finetune(tiny_pipeline, data, config, seed=1)
    assert len(history["loss"]) == 2 and first != second  # a seed that others know must not give the noise away
    assert list(tiny_pipeline.unet.state_dict()) == keys
    assert not any(module._forward_hooks for module in tiny_pipeline.unet.modules())
    spent = privacy_of(config, len(data))
    assert spent is not None and 0 < spent.epsilon <= 8


def test_a_users_audit_names_epsilon_only_where_its_pictures_are_private(tiny_pipeline: Any) -> None:
    small = ["synthesis.personal_steps=2", "synthesis.samples=3", "synthesis.num_inference_steps=2"]
    small += ["finetune.batch_size=2", "finetune.dp.epsilon=8"]
    audits = {}
    for method in ("text_to_image", "both"):
        recipe = load_recipe("quickstart", [*small, f"synthesis.method={method}"])
        audits[method] = synthesise(tiny_pipeline, pictures(0, 4), recipe, 1)[1]
    assert 0 < audits["text_to_image"]["epsilon"] <= 8 and audits["text_to_image"]["delta"] == 1e-5
    assert "epsilon" not in audits["both"]


def test_mistakes_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RecipeError, match=r"finetune\.dp\.epsilon"):
        load_recipe("quickstart", ["finetune.dp.epsilon=-1"])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(TrainingError, match=r"fedkd\[dp\]"):
        spent_by(DPConfig(epsilon=1.0), rows=10, batch_size=2, steps=1)
