"""lambda of EUCI Eq. 6: how far each teacher is trusted, for all pictures alike or for each picture."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from fedkd.distillation.losses import normalised
from fedkd.distillation.teachers import BASE, Teachers
from fedkd.models.conditioning import take
from fedkd.recipe import DistillationConfig
from fedkd.training.examples import Examples

PROBES = 4  # noise levels at which a teacher's error on a picture is measured


def set_weights(
    teachers: Teachers,
    config: DistillationConfig,
    examples: Examples,
    source: torch.Tensor,
    *,
    held_out: torch.Tensor,
    fixed: dict[str, float] | None = None,
    base_teaches: bool = False,
    distrusted: dict[str, str] | None = None,
    seed: int,
) -> dict[str, str]:
    """Fill `teachers.table` by `distillation.teacher_weights`; returns {teacher: why its lambda is 0}.

    `distrusted` are teachers that are known to be none, by reason: their lambda is 0 whatever their loss.

    `source` (N,) says which teacher drew a picture, -1 where nobody knows. `held_out` (M,) are indices of
    pictures that the student is not trained on; teachers are judged on those.

    The global kinds (uniform, size, validation) trust edges alone, as the paper has it, unless
    `base_teaches` makes the base a teacher like any other.
    `provenance` asks each teacher about its own pictures, and the base about the replay. `confidence`
    weighs teachers on each picture by how well they predict it. Raises ValueError when no teacher is left
    or when `provenance` is asked for pictures of unknown origin.
    """
    names = teachers.names
    edges = [i for i, name in enumerate(names) if name != BASE or base_teaches]
    errors = held_out_errors(teachers, examples, source, held_out, seed)
    left_out = outliers(names, errors, config.outlier) | (distrusted or {})
    trusted = torch.tensor([float(name not in left_out) for name in names])
    if left_out and not trusted[edges].any():
        reasons = "; ".join(f"{name}: {reason}" for name, reason in left_out.items())
        raise ValueError(f"no teacher is left ({reasons}); give one that is better, or raise distillation.outlier")
    row = torch.zeros(len(names))
    match config.teacher_weights:
        case "uniform":
            row[edges] = 1.0
        case "size":
            row[edges] = torch.tensor([float((source == i).sum()) for i in edges])
        case "validation":
            row[edges] = (1 / errors["all"][edges].clamp(min=1e-8)).nan_to_num(nan=0.0)
        case "fixed":
            row = torch.tensor([(fixed or {}).get(name, 0.0) for name in names])
        case "provenance":
            if bool((source < 0).any()):
                raise ValueError(
                    "distillation.teacher_weights=provenance needs to know who drew each picture; "
                    "use data.source=prompts, or teacher_weights=confidence"
                )
            teachers.table = torch.eye(len(names))[source] * trusted
            # A picture whose teacher is out has nobody to ask: the others share it.
            teachers.table = normalised(torch.where(teachers.table.sum(1, True) > 0, teachers.table, trusted))
            return left_out
        case "confidence":
            error = picture_errors(teachers, examples, torch.arange(len(examples)), seed)
            error = torch.where(trusted > 0, error, torch.inf)  # those left out may not be finite
            scale = error[:, trusted > 0].std(correction=0).clamp(min=1e-8)
            teachers.table = torch.softmax(-error / scale, dim=1)
            return left_out
        case other:
            raise ValueError(f"distillation.teacher_weights={other!r} is not known")
    row = row * trusted
    teachers.table = normalised((row if row.any() else trusted)[None])
    return left_out


def held_out_errors(
    teachers: Teachers, examples: Examples, source: torch.Tensor, held_out: torch.Tensor, seed: int
) -> dict[str, torch.Tensor]:
    """{"all": mean error of each teacher on all held-out pictures, "own": on its own, "base": the base's there}."""
    count = len(teachers.names)
    if not len(held_out):
        return {key: torch.ones(count) for key in ("all", "own", "base")}
    error = picture_errors(teachers, examples, held_out, seed, with_base=True)
    mine = [source[held_out] == i for i in range(count)]
    mine = [rows if rows.any() else torch.ones_like(rows) for rows in mine]
    return {
        "all": error[:, :count].mean(0),
        "own": torch.stack([error[rows, i].mean() for i, rows in enumerate(mine)]),
        "base": torch.stack([error[rows, count].mean() for rows in mine]),
    }


def outliers(names: list[str], errors: dict[str, torch.Tensor], factor: float) -> dict[str, str]:
    """{teacher: reason} for those whose held-out error on their own pictures is not finite or far above the base's."""
    found = {}
    for i, name in enumerate(names):
        own, base = float(errors["own"][i]), float(errors["base"][i])
        if not torch.isfinite(errors["own"][i]):
            found[name] = "its held-out loss is not finite"
        elif own > factor * base:
            found[name] = f"its held-out loss {own:.4g} is {own / base:.1f} times the base's (limit {factor:g})"
    return found


@torch.no_grad()
def picture_errors(
    teachers: Teachers, examples: Examples, rows: torch.Tensor, seed: int, *, with_base: bool = False, batch: int = 128
) -> torch.Tensor:
    """(len(rows), teachers) squared output error of each teacher on each picture, at the same noise.

    `with_base` adds the bare base network as a last column.
    """
    schedule, names = teachers.schedule, teachers.names
    panel = Teachers(teachers.denoiser, [*names, BASE] if with_base else names, schedule, teachers.modules)
    found = []
    for part in rows.split(batch):
        x0 = examples.latents[part]
        conditions = take(examples.conditions, examples.caption[part])
        total = torch.zeros(len(x0), len(panel.names))
        for probe in range(PROBES):
            generator = torch.Generator("cpu").manual_seed(seed + probe)
            index = torch.full((len(x0),), (2 * probe + 1) * len(schedule) // (2 * PROBES))
            noise = torch.randn(x0.shape, generator=generator).to(x0)
            x_t = schedule.add_noise(x0, noise, index)
            target = schedule.target(x0, noise, index)
            for teacher in range(len(panel.names)):
                output = panel.raw(torch.full((len(x0),), teacher), x_t, index, conditions)
                error = F.mse_loss(output.float(), target.float(), reduction="none").flatten(1).mean(1)
                total[:, teacher] += error.cpu() / PROBES
        found.append(total)
    return torch.cat(found)
