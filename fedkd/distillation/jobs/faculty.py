"""The teachers of a distillation job: read from a recipe, checked against the base before anything is trained."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline

from fedkd.distillation.jobs.foreign_adapter import own_form
from fedkd.distillation.student import NAME, PREVIOUS
from fedkd.distillation.teachers import BASE
from fedkd.models.adapter import AdapterError, load_adapter, remove_adapters
from fedkd.models.pipeline import denoiser_of, load_pipeline
from fedkd.models.source import SHIPPED, resolve_model
from fedkd.recipe import Recipe, TeacherConfig
from fedkd.training.noise import NoiseSchedule

LORA_FILE = "pytorch_lora_weights.safetensors"
RESERVED = {BASE, NAME, PREVIOUS, "merged", "__base__"}
GIVE_NAME = "give letters, digits, '-' and '_', at most 64"
Resolve = Callable[[str], str]


class TeacherError(ValueError):
    """A teacher that cannot teach on this base; the message names the field, the value and what is allowed."""


@dataclass
class Faculty:
    """Teachers by name, in the recipe's order; BASE is the base itself."""

    names: list[str] = field(default_factory=list)
    adapters: dict[str, bytes] = field(default_factory=dict)
    modules: dict[str, Any] = field(default_factory=dict)
    fixed: dict[str, float] = field(default_factory=dict)  # lambda of teacher_weights=fixed
    concepts: dict[str, list[str]] = field(default_factory=dict)  # what each draws
    origin: dict[str, str] = field(default_factory=dict)  # the adapter or checkpoint it came from

    @contextmanager
    def drawing(self, pipe: DiffusionPipeline, name: str) -> Iterator[DiffusionPipeline]:
        """`pipe` with the teacher's weights; afterwards as it was."""
        denoiser = denoiser_of(pipe)
        slot = slot_of(pipe)
        try:
            if name in self.adapters:
                load_adapter(denoiser, self.adapters[name], name)
                denoiser.set_adapter(name)
            elif name in self.modules:
                setattr(pipe, slot, self.modules[name])
            yield pipe
        finally:
            setattr(pipe, slot, denoiser)
            if name in self.adapters:
                remove_adapters(denoiser)


def slot_of(pipe: DiffusionPipeline) -> str:
    """The pipeline's name for its denoiser: unet or transformer."""
    return "unet" if getattr(pipe, "unet", None) is not None else "transformer"


def assemble(recipe: Recipe, pipe: DiffusionPipeline, resolve: Resolve = resolve_model) -> Faculty:
    """The teachers of `recipe.teachers` on the base `pipe`, which stays as it is.

    `resolve` turns a checkpoint's text (folder, shipped name, hub id, registry NAME:VERSION) into a folder
    or hub id. Raises TeacherError for a teacher that is unreadable, not finite, of another architecture or
    latent space, or made for another base, and for two of one name.
    """
    faculty = Faculty()
    for place, teacher in enumerate(recipe.teachers):
        name, known = None, recipe.prompts.known + recipe.prompts.taught
        if teacher.adapter:
            path = adapter_file(teacher.adapter, place)
            name = teacher.name or name_from(path.parent if path.name == LORA_FILE else path.with_suffix(""))
            data = read_adapter(path, pipe, place, teacher, recipe.model.path)
            faculty.adapters[_free(name, faculty, place)] = data
            faculty.origin[name] = teacher.adapter
        else:
            where = f"teachers[{place}].checkpoint={teacher.checkpoint}"
            found = _resolved(teacher.checkpoint, resolve, where) if teacher.checkpoint else ""
            if not found or found == resolve_model(recipe.model.path):
                name, known = _free(BASE, faculty, place, base=True), recipe.prompts.known
                faculty.origin[name] = recipe.model.path
            else:
                name = _free(teacher.name or name_from(Path(teacher.checkpoint)), faculty, place)
                faculty.modules[name] = read_checkpoint(found, pipe, recipe, where)
                faculty.origin[name] = teacher.checkpoint
        faculty.names.append(name)
        faculty.fixed[name] = teacher.weight
        faculty.concepts[name] = list(teacher.concepts or known)
    return faculty


def name_from(path: Path) -> str:
    """A teacher's name from its file or folder."""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", path.name).strip("-")[:64] or "teacher"


def _free(name: str, faculty: Faculty, place: int, *, base: bool = False) -> str:
    """`name`, if no earlier teacher has it and it can be one."""
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", name):
        raise TeacherError(f"teachers[{place}].name={name!r} is not allowed; {GIVE_NAME}")
    if name in faculty.names and base:
        raise TeacherError(f"teachers[{place}] is the base, which is a teacher already; leave one of the two out")
    if name in faculty.names:
        raise TeacherError(f"teachers[{place}].name={name} is an earlier teacher's; give each a name of its own")
    if name in RESERVED and not base:
        raise TeacherError(f"teachers[{place}].name={name} is reserved; give another, such as {name}-1")
    return name


def adapter_file(given: str, place: int) -> Path:
    """The safetensors file that `teachers[place].adapter` means: a file or a folder's one, one's own or shipped."""
    where = f"teachers[{place}].adapter={given}"
    own = Path(given).expanduser()
    path = own if own.exists() or own.is_absolute() else SHIPPED / given
    if path.is_dir():
        inside = [path / LORA_FILE] if (path / LORA_FILE).is_file() else sorted(path.glob("*.safetensors"))
        if len(inside) != 1:
            raise TeacherError(
                f"{where} is a folder with {len(inside)} safetensors files; give one of them, or {LORA_FILE}"
            )
        path = inside[0]
    if not path.is_file():
        shipped = sorted(str(p.relative_to(SHIPPED)) for p in SHIPPED.glob("*-edges/*.safetensors"))
        more = f"; shipped: {', '.join(shipped)}" if shipped else ""
        raise TeacherError(f"{where} does not exist; give a LoRA file of fedkd or diffusers, or its folder{more}")
    return path


def read_adapter(path: Path, pipe: DiffusionPipeline, place: int, teacher: TeacherConfig, base: str) -> bytes:
    """The adapter's bytes in fedkd's form, shown to load into the base; TeacherError when they do not."""
    where, denoiser = f"teachers[{place}].adapter={teacher.adapter}", denoiser_of(pipe)
    try:
        data = own_form(path.read_bytes())
        try:
            load_adapter(denoiser, data, "tried")
        finally:
            remove_adapters(denoiser)
    except (AdapterError, OSError, ValueError) as error:
        reason = str(error).removeprefix("the adapter ").removeprefix("the adapter's ")
        raise TeacherError(f"{where}: {reason}; give a finite LoRA that was made for model.path={base}") from error
    return data


def _resolved(given: str, resolve: Resolve, where: str) -> str:
    try:
        return resolve(given)
    except ValueError as error:
        raise TeacherError(f"{where}: {error}") from error


def read_checkpoint(found: str, pipe: DiffusionPipeline, recipe: Recipe, where: str) -> Any:
    """The denoiser of a whole model that speaks the base's language: its latents, texts and noise."""
    run = recipe.run
    try:
        other = load_pipeline(found, device=str(pipe.device), dtype=run.dtype, without=recipe.model.without)
    except ValueError as error:
        raise TeacherError(f"{where}: {error}") from error
    unlike = architecture(denoiser_of(other), denoiser_of(pipe)) or language(other, pipe)
    if unlike:
        raise TeacherError(
            f"{where} {unlike} than model.path={recipe.model.path}; give a model fine-tuned from that one"
        )
    return denoiser_of(other)


def architecture(other: Any, base: Any) -> str:
    """How another denoiser differs in its architecture; '' when it does not."""
    if type(other) is not type(base):
        return f"is a {type(other).__name__}, another architecture ({type(base).__name__})"
    theirs = {key: tuple(tensor.shape) for key, tensor in other.state_dict().items()}
    ours = {key: tuple(tensor.shape) for key, tensor in base.state_dict().items()}
    unlike = [key for key in ours | theirs if ours.get(key) != theirs.get(key)]
    if not unlike:
        return ""
    shapes = f"{theirs.get(unlike[0], 'missing')} and not {ours.get(unlike[0], 'missing')}"
    return f"has another architecture ({unlike[0]} is {shapes})"


def language(other: DiffusionPipeline, base: DiffusionPipeline) -> str:
    """How another model's latents, texts or noise differ; '' when one model can teach the other."""
    for key in ("latent_channels", "scaling_factor", "shift_factor"):
        theirs, ours = getattr(other.vae.config, key, None), getattr(base.vae.config, key, None)
        if theirs != ours:
            return f"has another latent space (vae.{key}={theirs} and not {ours})"
    if not same_weights(other.vae, base.vae):
        return "has another latent space (other VAE weights)"
    for name in ("text_encoder", "text_encoder_2", "text_encoder_3"):
        if not same_weights(getattr(other, name, None), getattr(base, name, None)):
            return f"has another {name}"
    theirs, ours = NoiseSchedule.of(other.scheduler), NoiseSchedule.of(base.scheduler)
    if theirs.prediction != ours.prediction:
        return f"predicts something else (prediction_type={theirs.prediction} and not {ours.prediction})"
    if len(theirs) != len(ours) or not torch.allclose(theirs.alpha, ours.alpha, atol=1e-4):
        return "has another noise schedule"
    return ""


def same_weights(one: torch.nn.Module | None, other: torch.nn.Module | None) -> bool:
    """Whether two modules have the same weights up to 16-bit rounding; None equals None alone."""
    if one is None or other is None:
        return one is other
    theirs, ours = one.state_dict(), other.state_dict()
    return theirs.keys() == ours.keys() and all(
        ours[key].shape == tensor.shape and torch.allclose(tensor.float(), ours[key].float(), rtol=1e-2, atol=1e-3)
        for key, tensor in theirs.items()
    )
