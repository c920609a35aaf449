"""The one training loop: draws are numbered, gradients accumulate and are averaged, and precision is checked."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fedkd.training.loop import TrainingError, cosine, is_main_process, new_optimizer, step_generator, thinned, train
from tests.training.one_of_several import DATA, learn, rows_loss, weights

ROOT = Path(__file__).resolve().parents[2]


def test_two_batches_of_two_are_one_batch_of_four() -> None:
    whole, parts = weights(), weights()
    one = train(whole, lambda n: rows_loss(whole, list(range(4 * n, 4 * n + 4))), steps=5, learning_rate=0.1)
    two = train(
        parts,
        lambda n: rows_loss(parts, [2 * n, 2 * n + 1]),
        steps=5,
        learning_rate=0.1,
        gradient_accumulation_steps=2,
    )
    for a, b in zip(whole, parts, strict=True):
        assert torch.allclose(a, b, atol=1e-6)
    assert one["loss"] == pytest.approx(two["loss"], abs=1e-5) and one["size"] == pytest.approx(two["size"], abs=1e-5)


def test_draws_are_numbered_through_steps_and_parts() -> None:
    parameters, seen = weights(), list[int]()

    def loss_of(draw: int) -> dict[str, torch.Tensor]:
        seen.append(draw)
        return rows_loss(parameters, [draw])

    train(parameters, loss_of, steps=3, learning_rate=0.1, gradient_accumulation_steps=2)
    assert seen == [0, 1, 2, 3, 4, 5]


def test_a_run_in_two_halves_with_one_optimiser_is_a_run_in_one() -> None:
    whole, halves = weights(), weights()
    train(whole, lambda n: rows_loss(whole, [n]), steps=6, learning_rate=0.1)
    optimizer = new_optimizer(halves, 0.1)

    class Stopped(Exception):
        pass

    def stop(step: int, losses: dict[str, float]) -> None:
        if step == 2:
            raise Stopped

    with pytest.raises(Stopped):
        train(
            halves, lambda n: rows_loss(halves, [n]), steps=6, learning_rate=0.1, optimizer=optimizer, after_step=stop
        )
    train(halves, lambda n: rows_loss(halves, [n]), steps=6, learning_rate=0.1, optimizer=optimizer, first_step=3)
    assert all(torch.equal(a, b) for a, b in zip(whole, halves, strict=True))


def test_a_step_is_adamw_with_a_clipped_gradient_and_the_schedules_rate() -> None:
    ours, theirs = weights(), weights()
    train(ours, lambda n: {"loss": 100 * rows_loss(ours, [n])["loss"]}, steps=3, learning_rate=0.1)
    optimizer = torch.optim.AdamW(theirs, lr=0.1, weight_decay=1e-4)
    for step in range(3):
        optimizer.param_groups[0]["lr"] = 0.1 * (step + 1) / 20  # warm-up
        optimizer.zero_grad()
        (100 * rows_loss(theirs, [step])["loss"]).backward()
        norm = torch.cat([p.grad.flatten() for p in theirs if p.grad is not None]).norm()
        for p in theirs:
            assert p.grad is not None
            p.grad *= min(1.0, 1.0 / float(norm))
        optimizer.step()
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(ours, theirs, strict=True))


def test_the_second_group_learns_at_its_own_rate() -> None:
    first, second = weights()
    optimizer = new_optimizer([first], 0.1, [second], 0.25)
    rates = []
    train(
        [first, second],
        lambda n: rows_loss([first, second], [n]),
        steps=2,
        learning_rate=0.1,
        optimizer=optimizer,
        after_step=lambda step, losses: rates.append([g["lr"] for g in optimizer.param_groups]),
    )
    assert all(b == pytest.approx(a / 4) for a, b in rates)


def test_the_rate_rises_and_then_falls_to_a_twentieth() -> None:
    factors = [cosine(step, 200) for step in range(200)]
    assert factors[:20] == sorted(factors[:20]) and factors[20] == 1.0
    assert factors[20:] == sorted(factors[20:], reverse=True) and factors[-1] == pytest.approx(0.05, abs=0.001)


def test_bfloat16_autocast_runs_on_the_cpu_with_float32_weights() -> None:
    parameters, kinds = weights(), set[torch.dtype]()

    def loss_of(draw: int) -> dict[str, torch.Tensor]:
        told = DATA[:4] @ parameters[0][:, None]
        kinds.add(told.dtype)
        return {"loss": (told.float() ** 2).mean()}

    history = train(parameters, loss_of, steps=3, learning_rate=0.1, mixed_precision="bf16")
    assert kinds == {torch.bfloat16} and {p.dtype for p in parameters} == {torch.float32}
    assert all(torch.isfinite(torch.tensor(history["loss"])))


def test_precision_is_that_of_the_call_and_not_of_the_one_before() -> None:
    for precision, dtype in (("bf16", torch.bfloat16), ("no", torch.float32), ("bf16", torch.bfloat16)):
        kinds = list[torch.dtype]()
        parameters = weights()

        def loss_of(draw: int, kinds: list = kinds, w: list = parameters) -> dict[str, torch.Tensor]:
            told = DATA[:4] @ w[0][:, None]
            kinds.append(told.dtype)
            return {"loss": (told.float() ** 2).mean()}

        train(parameters, loss_of, steps=1, learning_rate=0.1, mixed_precision=precision)
        assert kinds == [dtype]


def test_fp16_on_the_cpu_is_refused() -> None:
    with pytest.raises(TrainingError, match=r"mixed_precision=fp16 needs a GPU; use bf16 or no"):
        train(weights(), lambda n: {}, steps=1, learning_rate=0.1, mixed_precision="fp16")


def test_a_loss_that_is_not_finite_stops_training_and_names_the_step() -> None:
    parameters = weights()

    def loss_of(draw: int) -> dict[str, torch.Tensor]:
        return {"loss": parameters[0].sum() * (torch.nan if draw == 2 else 1.0)}

    with pytest.raises(TrainingError, match=r"not finite at step 2; lower the learning rate \(0\.1\)"):
        train(parameters, loss_of, steps=5, learning_rate=0.1)


def test_a_draws_randomness_depends_on_its_number_and_the_seed_alone() -> None:
    same = [torch.rand(3, generator=step_generator(4, 7)) for _ in range(2)]
    assert torch.equal(*same)
    others = [torch.rand(3, generator=step_generator(*pair)) for pair in ((4, 8), (5, 7), (0, 0))]
    assert all(not torch.equal(same[0], other) for other in others)


def test_curves_are_thinned_to_the_means_of_equal_blocks() -> None:
    assert thinned([1.0, 2.0, 3.0]) == [1.0, 2.0, 3.0]
    assert thinned([float(i) for i in range(200)], points=100)[:2] == [0.5, 2.5]


def test_one_process_is_the_main_one() -> None:
    assert is_main_process()


def free_port() -> int:
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return int(opened.getsockname()[1])


def test_two_processes_learn_as_one_that_accumulates_two_batches(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--master_addr=127.0.0.1"]
    program = [f"--master_port={free_port()}", "-m", "tests.training.one_of_several", str(tmp_path / "two"), "1"]
    done = subprocess.run(
        [*launcher, *program], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    learn(tmp_path / "one", 2)
    assert (tmp_path / "two" / "processes-1").read_text() == "2"
    for name in ("plain", "student"):
        ranks = [load_file(tmp_path / "two" / f"{name}-{rank}.safetensors") for rank in range(2)]
        single = load_file(tmp_path / "one" / f"{name}-0.safetensors")
        for key, tensor in single.items():
            assert torch.equal(ranks[0][key], ranks[1][key])
            assert torch.allclose(ranks[0][key], tensor, atol=2e-4), key
    assert [path.name for path in (tmp_path / "two" / "run").iterdir()] == ["state.safetensors"]
