"""A method carried out: its phases in order, each a training loop, with a state that a killed run goes on from."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from diffusers.training_utils import EMAModel

from fedkd.distillation.method import Method
from fedkd.training.loop import is_main_process, new_optimizer, step_generator, thinned, train
from fedkd.training.state import (
    Tensors,
    ema_tensors,
    load_state,
    optimizer_tensors,
    restore_ema,
    restore_optimizer,
    save_state,
)

STATE, STAGES = "state.safetensors", "stages"
AfterStep = Callable[[int, int, dict[str, float]], None]  # (steps done, of all, losses)
Watch = Callable[[int, Method], None]  # (steps done, the method as it is then)
Curves = dict[str, list[float]]


@dataclass
class Course:
    """A method on its way. With a `folder`, the state is kept there every `distillation.save_every` steps."""

    method: Method
    seed: int
    folder: Path | None = None
    after_step: AfterStep | None = None
    watch: Watch | None = None
    curves: Curves = field(default_factory=dict)
    stages: dict[int, bytes] = field(default_factory=dict)  # students of finished phases by their step count

    def run(self) -> Curves:
        """Go through all phases, from the saved state if there is one; returns curves of at most 100 points.

        A resumed run ends with bit for bit the student of an undisturbed one on the same machine. With
        several phases a curve's name begins with its phase.
        """
        found = load_state(self.folder / STATE) if self.folder else None
        facts, tensors = found or ({"phase": 0, "curves": {}}, {})
        if found and self.folder and facts.get("identity") != self.identity:
            raise ValueError(
                f"the saved state '{self.folder / STATE}' is of another recipe or seed; "
                "take that recipe again, another run.name, or delete the state to start over"
            )
        self.curves = facts["curves"]
        for phase in range(len(self.method.phases())):
            if phase < facts["phase"]:
                self._stage(phase, kept=True)
                continue
            self._phase(phase, tensors if phase == facts["phase"] else {}, facts)
            self._stage(phase)
        return {name: thinned(values) for name, values in self.curves.items()}

    @property
    def identity(self) -> str:
        """A digest of what decides the student, apart from its pictures and teachers."""
        config = dataclasses.asdict(self.method.config)
        for harmless in ("save_every", "sample_every", "gradient_checkpointing"):
            config.pop(harmless)
        return hashlib.sha256(json.dumps([config, self.seed], sort_keys=True).encode()).hexdigest()

    def _phase(self, phase: int, tensors: Tensors, facts: dict[str, int]) -> None:
        """One training loop; `tensors` are the saved state of this very phase, or empty."""
        method, config, phases = self.method, self.method.config, self.method.phases()
        name, steps = phases[phase]
        before, total = sum(s for _, s in phases[:phase]), sum(s for _, s in phases)
        prefix = f"{name}: " if len(phases) > 1 else ""
        method.setup(phase)
        student = method.student.parameters
        extra = [p for module in method.extra_modules().values() for p in module.parameters()]
        optimizer = new_optimizer(student, config.learning_rate, extra, method.learning_rate_factor)
        ema = EMAModel(student, decay=config.ema_decay, use_ema_warmup=True, power=0.75) if config.ema_decay else None
        first = 0
        if tensors:
            first = facts["step"] + 1
            method.load_state(tensors)
            restore_optimizer(optimizer, tensors)
            restore_ema(ema, tensors, first)

        def after_step(step: int, losses: dict[str, float]) -> None:
            method.after_step()
            if ema:
                ema.step(student)
            for key, value in losses.items():
                self.curves.setdefault(prefix + key, []).append(value)
            if self.folder and is_main_process() and ((step + 1) % config.save_every == 0 or step + 1 == steps):
                moments = optimizer_tensors(optimizer) | ema_tensors(ema)
                state = {"identity": self.identity, "phase": phase, "step": step, "curves": self.curves}
                save_state(self.folder / STATE, state, method.state() | moments)
            if self.after_step:
                self.after_step(before + step + 1, total, losses)
            if self.watch:
                self.watch(before + step + 1, method)

        seed = phase_seed(self.seed, phase)
        train(
            student,
            lambda draw: method.loss(step_generator(seed, draw)),
            steps=steps,
            learning_rate=config.learning_rate,
            first_step=first,
            optimizer=optimizer,
            after_step=after_step,
            gradient_accumulation_steps=config.gradient_accumulation_steps,
            mixed_precision=config.mixed_precision,
        )
        if ema:
            ema.copy_to(student)

    def _stage(self, phase: int, *, kept: bool = False) -> None:
        """Keep the student of a finished phase, if it is one that can be drawn from; `kept`: an earlier run did."""
        steps = self.method.student_steps(phase)
        if steps is None:
            return
        path = self.folder / STAGES / f"{steps}-steps.safetensors" if self.folder else None
        if kept and path:
            if path.is_file():  # else somebody took it away, and it cannot be had again
                self.stages[steps] = path.read_bytes()
            return
        self.stages[steps] = self.method.student.to_bytes()
        if path and is_main_process():
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.with_name(path.name + ".part")
            part.write_bytes(self.stages[steps])
            os.replace(part, path)


def phase_seed(seed: int, phase: int) -> int:
    """A phase's own seed, so that phases do not see the same batches."""
    return int(torch.randint(2**31, (1,), generator=step_generator(seed, 10**9 + phase))) if phase else seed
