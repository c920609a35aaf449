"""A training state is one safetensors file, whole or not there, and gives back exactly what was put in."""

from pathlib import Path

import pytest
import torch
from diffusers.training_utils import EMAModel
from safetensors.torch import save_file

from fedkd.training.state import (
    ema_tensors,
    load_state,
    optimizer_tensors,
    restore_ema,
    restore_optimizer,
    save_state,
)


def parameters() -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [torch.nn.Parameter(torch.randn(3, 2, generator=generator)), torch.nn.Parameter(torch.zeros(2))]


def stepped(optimizer: torch.optim.Optimizer, weights: list[torch.nn.Parameter], steps: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        for weight in weights:
            weight.grad = torch.randn(weight.shape, generator=generator)
        optimizer.step()


def test_facts_and_tensors_come_back(tmp_path: Path) -> None:
    facts = {"step": 3, "curves": {"loss": [0.1, 1 / 3]}}
    tensors = {"a": torch.randn(2, 3).t(), "b": torch.tensor(4), "c": torch.randn(3).bfloat16()}
    save_state(tmp_path / "deep" / "state.safetensors", facts, tensors)
    found = load_state(tmp_path / "deep" / "state.safetensors")
    assert found is not None and found[0] == facts
    assert set(found[1]) == set(tensors) and all(torch.equal(found[1][key], tensors[key]) for key in tensors)
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["state.safetensors"]


def test_tensors_that_share_memory_are_saved(tmp_path: Path) -> None:
    shared = torch.randn(4)
    save_state(tmp_path / "s", {}, {"a": shared, "b": shared[:2]})
    found = load_state(tmp_path / "s")
    assert found is not None and torch.equal(found[1]["b"], shared[:2])


def test_no_state_is_none(tmp_path: Path) -> None:
    assert load_state(tmp_path / "state.safetensors") is None


def test_a_file_that_is_no_state_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match="cannot be read"):
        load_state(path)
    path.write_bytes(b"garbage" * 10)
    with pytest.raises(ValueError, match="cannot be read"):
        load_state(path)


def test_an_optimiser_goes_on_where_it_was(tmp_path: Path) -> None:
    one, two = parameters(), parameters()
    first, second = torch.optim.AdamW(one, lr=0.1), torch.optim.AdamW(two, lr=0.1)
    stepped(first, one, 3, 0)
    save_state(tmp_path / "s", {}, optimizer_tensors(first))
    found = load_state(tmp_path / "s")
    assert found is not None
    for mine, theirs in zip(two, one, strict=True):
        mine.data.copy_(theirs.data)
    restore_optimizer(second, found[1])
    stepped(first, one, 2, 1)
    stepped(second, two, 2, 1)
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def test_an_average_goes_on_where_it_was(tmp_path: Path) -> None:
    weights = parameters()
    averages = [EMAModel(weights, decay=0.9, use_ema_warmup=True, power=0.75) for _ in range(2)]
    for _ in range(3):
        weights[0].data += 1
        averages[0].step(weights)
    save_state(tmp_path / "s", {}, ema_tensors(averages[0]))
    found = load_state(tmp_path / "s")
    assert found is not None
    restore_ema(averages[1], found[1], 3)
    weights[0].data += 1
    for average in averages:
        average.step(weights)
    pairs = zip(averages[0].shadow_params, averages[1].shadow_params, strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_no_average_is_no_tensors() -> None:
    assert ema_tensors(None) == {}
    restore_ema(None, {}, 3)
