"""Losses sent to an experiment tracker through accelerate."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from types import TracebackType

import torch
from accelerate import Accelerator
from omegaconf import OmegaConf

from fedkd.recipe import Recipe
from fedkd.training.loop import TrainingError, is_main_process


def check_tracker(name: str) -> None:
    """Raise TrainingError when the package of the tracker `name` is not installed; '' is none."""
    if name and find_spec(name) is None:
        raise TrainingError(
            f"run.tracker={name} is not installed; pip install 'fedkd[{name}]', or leave run.tracker empty"
        )


class Tracker:
    """The recipe's tracker for the time of a `with` block; does nothing where the recipe names none."""

    def __init__(self, recipe: Recipe, run: Path) -> None:
        self.recipe, self.run = recipe, run
        self.accelerator: Accelerator | None = None

    def __enter__(self) -> Tracker:
        run, config = self.recipe.run, self.recipe.distillation
        if run.tracker and is_main_process():
            self.accelerator = Accelerator(
                cpu=torch.device(run.device).type == "cpu",
                mixed_precision=config.mixed_precision,
                log_with=run.tracker,
                project_dir=str(self.run / "tracker"),
            )
            # The recipe as flat plain values is what every tracker takes.
            self.accelerator.init_trackers(f"fedkd-{run.name}", config=flat(self.recipe))
        return self

    def log(self, losses: dict[str, float], step: int) -> None:
        """Send a step's losses."""
        if self.accelerator:
            self.accelerator.log(losses, step=step)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.accelerator:
            for tracker in self.accelerator.trackers:
                tracker.finish()


def flat(recipe: Recipe) -> dict[str, str | int | float | bool]:
    """{"distillation.steps": 300, ...}: numbers as they are, everything else as text."""
    found: dict[str, str | int | float | bool] = {}

    def walk(value: object, name: str) -> None:
        if isinstance(value, dict):
            for key, item in value.items():
                walk(item, f"{name}.{key}" if name else str(key))
        else:
            found[name] = value if isinstance(value, int | float | bool) else str(value)

    walk(OmegaConf.to_container(OmegaConf.structured(recipe)), "")
    return found
