"""The cloud's own work in a round: the base, the replay, distilling the student, publishing it."""

from __future__ import annotations

import math
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from safetensors import safe_open

from fedkd.checkpoints.audit_log import AuditLog
from fedkd.checkpoints.derivation import CHAIN, derive_student
from fedkd.checkpoints.lora_merge import LORA_NAME
from fedkd.checkpoints.manifest import CheckpointError, Derivation, Manifest, file_digest
from fedkd.checkpoints.registry import Registry
from fedkd.checkpoints.signing import key_claim, sign, signer_of
from fedkd.data.packing import PackError, gather, pack_dataset, unpack_dataset, unpack_rows
from fedkd.distillation.distil import distil
from fedkd.distillation.pictures import draw_replay
from fedkd.distillation.robust import update_outliers
from fedkd.distillation.student import install_student, is_full
from fedkd.distillation.teachers import BASE
from fedkd.evaluation.accuracy import evaluate
from fedkd.models.adapter import AdapterError, adapter_config, check_adapter, diffusers_lora_bytes
from fedkd.models.pipeline import denoiser_of, load_pipeline, named_scheduler, save_pipeline
from fedkd.models.source import resolve_model
from fedkd.models.updates import largest_share, update_of
from fedkd.recipe import Recipe, recipe_digest, with_sampling
from server.state import RunState, seed_of

NO_LIMIT = 2**62


class Cloud:
    """Models and registry of the server. Holds one pipeline at a time: the parent of the coming student."""

    def __init__(self, recipe: Recipe, state: RunState, registry: Registry) -> None:
        self.recipe, self.state, self.registry = recipe, state, registry
        self._parent: tuple[str, Any] | None = None
        self.signing_key = Path(recipe.run.signing_key).expanduser() if recipe.run.signing_key else None
        self.signer = key_claim(self.signing_key) if self.signing_key is not None else ""  # a bad key stops here
        self.audit = AuditLog(state.run, self.signing_key)

    @property
    def evaluation_seed(self) -> int:
        """One seed for every evaluation of a run: models are compared on the same prompts and noise."""
        return seed_of(self.recipe.run.seed, "evaluation")

    def load(self, path: Path | str) -> Any:
        """A pipeline with the recipe's device, dtype and scheduler."""
        run = self.recipe.run
        return load_pipeline(
            str(path),
            device=run.device,
            dtype=run.dtype,
            scheduler=self.recipe.model.scheduler,
            without=self.recipe.model.without,
        )

    def parent(self, reference: str) -> Any:
        """The pipeline of a published checkpoint, kept until another is asked for."""
        if self._parent is None or self._parent[0] != reference:
            self._parent = None
            self._parent = (reference, self.load(self.registry.resolve(reference)))
        return self._parent[1]

    def base(self) -> dict[str, Any]:
        """Publish the base model and evaluate it, once a run: {"checkpoint", "metrics"}."""
        known = self.state.finished(0, "base")
        if known is not None:
            return known
        self.state.event("phase_start", round=0, phase="base")
        started, model = time.monotonic(), self.recipe.model
        source, temporary = resolve_model(model.path), self.state.folder / "base"
        if not Path(source).is_dir():
            save_pipeline(self.load(source), temporary, dtype="float16")
            source = str(temporary)
        facts = {"name": model.name, "licence": licence_of(Path(source)), "base_model": model.path}
        manifest = self.registry.publish(Path(source), alias="latest", sign=self.sign, **facts)  # type: ignore[arg-type]
        self.check_signer(manifest)
        self.log_published(manifest, "latest")
        shutil.rmtree(temporary, ignore_errors=True)
        progress = self.state.progress(0, "base")
        metrics = evaluate(self.parent(manifest.reference), self.recipe, seed=self.evaluation_seed, progress=progress)
        done = {"checkpoint": manifest.reference, "metrics": metrics, "seconds": time.monotonic() - started}
        self.state.finish(0, "base", done)
        self.state.event("phase_end", round=0, phase="base", seconds=done["seconds"])
        return done

    def sign(self, folder: Path) -> None:
        """Sign a finished version with run.signing_key, if the recipe names one."""
        if self.signing_key is not None:
            sign(folder, self.signing_key)

    def check_signer(self, manifest: Manifest) -> None:
        """CheckpointError when the version was there already and somebody else had signed it."""
        if self.signer and signer_of(self.registry.folder(manifest.reference)) != self.signer:
            raise CheckpointError(
                f"{manifest.reference} in '{self.registry.root}' was signed with another key before; set "
                "run.signing_key to that key, or run.registry to a registry of your own"
            )

    def log_published(self, manifest: Manifest, alias: str, **facts: Any) -> None:
        """Write into the audit log what a checkpoint was made of, and sign the log up to there."""
        identity = {"checkpoint": manifest.reference, "digest": manifest.digest, "parents": list(manifest.parents)}
        self.audit.add("published", round=manifest.round, **identity, alias=alias, **facts)
        self.audit.sign_head()

    def lessons(self, number: int, weights: dict[str, float]) -> dict[str, dict[str, Any]]:
        """What each teacher of a round gave: its mean lambda, and the digest of its adapter if it has one."""
        folder = self.state.round_folder(number) / "adapters"
        files = {name: folder / f"{name}.safetensors" for name in sorted(weights)}
        digests = {name: {"adapter": file_digest(path)} for name, path in files.items() if path.is_file()}
        return {name: {"lambda": weights[name], **digests.get(name, {})} for name in files}

    def accept_set(self, data: bytes) -> int:
        """The number of pictures of a user's synthetic set; PackError when it is malformed, empty or too large."""
        rows = unpack_rows(
            data,
            max_bytes=int(self.recipe.federation.max_message_mb * 2**20),
            max_pictures=self.recipe.trust.max_pictures,
            side=self.recipe.model.resolution,
        )
        count = sum(1 for _ in rows)
        if not count:
            raise PackError("the synthetic set is empty")
        return count

    def accept_adapter(self, reference: str, data: bytes) -> None:
        """Raise AdapterError unless the adapter is one of the recipe's kind, finite, and small against the parent."""
        denoiser, lora = denoiser_of(self.parent(reference)), self.recipe.finetune.lora
        check_adapter(data, denoiser)
        config = adapter_config(data)
        if (config["r"], sorted(config["target_modules"])) != (lora.rank, sorted(lora.target_modules)):
            raise AdapterError("the adapter has another rank or other target modules than finetune.lora")
        share, layer = largest_share(update_of(data), denoiser)
        if not share <= self.recipe.trust.max_update:
            limit = self.recipe.trust.max_update
            raise AdapterError(f"the adapter's update of '{layer}' is {share:.3g} times its weight (limit {limit:g})")

    def replay(self, number: int, parent: str) -> Dataset:
        """The parent's own pictures of known concepts, drawn once a round and kept."""
        path = self.state.round_folder(number) / "replay.parquet"
        if not path.is_file():
            seed = seed_of(self.recipe.run.seed, number, "replay")
            progress = self.state.progress(number, "replay")
            drawn = draw_replay(self.parent(parent), self.recipe, seed=seed, progress=progress)
            self.state.write_bytes(path, pack_dataset(drawn))
        return unpack_dataset(path.read_bytes(), max_bytes=NO_LIMIT)

    def distil(
        self, number: int, parent: str, sets: dict[str, list[Path]], adapters: dict[str, Path]
    ) -> dict[str, Any]:
        """Train the round's student from durable inputs only; writes student.safetensors, returns facts."""
        folder = self.state.round_folder(number)
        shares = {
            edge: gather((path.read_bytes() for path in paths), folder / "gathered" / f"{place}.arrow")
            for place, (edge, paths) in enumerate(sorted(sets.items()))
        }
        replay = self.replay(number, parent)
        if len(replay):
            shares[BASE] = replay
        progress = self.state.progress(number, "distil")
        given = {edge: path.read_bytes() for edge, path in sorted(adapters.items())}
        done = distil(
            self.parent(parent),
            shares,
            given,
            self.round_recipe(number),
            distrusted=update_outliers(given, self.recipe.trust),
            seed=seed_of(self.recipe.run.seed, number, "distil"),
            folder=folder / "distil",
            after_step=lambda step, total, losses: progress(step, total, **shown_losses(losses)),
        )
        self.state.write_bytes(folder / "student.safetensors", done.student)
        for used in ("distil", "gathered"):
            shutil.rmtree(folder / used, ignore_errors=True)
        return {
            "loss": done.curves,
            "teacher_weights": done.teacher_weights,
            "left_out": done.left_out,
            "sampling": done.drawing.sampling(),
            "scheduler_config": done.drawing.scheduler_config(),
        }

    def round_recipe(self, number: int) -> Recipe:
        """The recipe of a round: few-step methods make the last student alone, since edges cannot fine-tune one."""
        distillation = self.recipe.distillation
        if number < self.recipe.federation.rounds and distillation.method != "federated":
            distillation = replace(distillation, method="federated")
        return replace(self.recipe, distillation=distillation)

    def publish(self, number: int, parent: str, parent_metrics: dict[str, Any]) -> dict[str, Any]:
        """Merge, save, evaluate and publish the student: {"checkpoint", "alias", "metrics"}.

        It becomes `latest`, or a `candidate` when it knows less than its parent by more than
        evaluation.max_known_drop.
        """
        folder = self.state.round_folder(number) / "student"
        source = self.registry.resolve(parent)
        self._parent = None
        pipe, distilled = self.load(source), self.state.finished(number, "distil")
        assert distilled is not None
        student = (self.state.round_folder(number) / "student.safetensors").read_bytes()
        if is_full(student):
            install_student(pipe, student)
        sampling: dict[str, Any] = distilled["sampling"]
        component = "unet" if getattr(pipe, "unet", None) is not None else "transformer"
        changed = {component, LORA_NAME}
        if sampling:
            pipe.scheduler = named_scheduler(sampling["scheduler"]).from_config(distilled["scheduler_config"])
            changed |= {"scheduler", "model_index.json"}
        save_pipeline(pipe, folder, dtype="float16")
        keep_unchanged(source, folder, changed)
        derived: tuple[Derivation, ...] = ()
        if not is_full(student):
            lora = diffusers_lora_bytes(student, component, stored_dtype(source / component))
            derived = derive_student(source, folder, lora, component)
        recipe = with_sampling(self.recipe, sampling)
        metrics = evaluate(
            load_pipeline(
                str(folder), device=recipe.run.device, dtype=recipe.run.dtype, scheduler=recipe.model.scheduler
            ),
            recipe,
            seed=self.evaluation_seed,
            progress=self.state.progress(number, "publish"),
        )
        before, after = parent_metrics.get("known"), metrics.get("known")
        drop = before - after if before is not None and after is not None else 0.0
        alias = "candidate" if drop > self.recipe.evaluation.max_known_drop else "latest"
        manifest: Manifest = self.registry.publish(
            folder,
            name=self.recipe.model.name,
            parents=[parent],
            recipe_digest=recipe_digest(self.recipe),
            round=number,
            metrics={**metrics, **privacy_of(self.state, number)},
            alias=alias,
            licence=self.registry.manifest(parent).licence,
            base_model=self.recipe.model.path,
            sampling=sampling,
            derived=(*derived, *self.registry.manifest(parent).derived)[:CHAIN],
            edges=sorted(edge["name"] for edge in (self.state.finished(number, "finetune") or {}).get("edges", [])),
            sign=self.sign,
        )
        self.check_signer(manifest)
        self.log_published(manifest, alias, teachers=self.lessons(number, distilled["teacher_weights"]))
        shutil.rmtree(folder, ignore_errors=True)
        return {"checkpoint": manifest.reference, "alias": alias, "metrics": metrics}


def shown_losses(losses: dict[str, float]) -> dict[str, float]:
    """The loss of a step for whoever watches; nothing where it is not finite."""
    return {"loss": float(losses["loss"])} if math.isfinite(losses.get("loss", math.nan)) else {}


def keep_unchanged(parent: Path, child: Path, changed: set[str]) -> None:
    """Give the child the parent's own files for everything but what is `changed` (first path parts): sent once.

    A changed component keeps the parent's config.json, a scheduler its own.
    """
    for path in parent.rglob("*"):
        inside = path.relative_to(parent)
        weights = inside.parts[0] in changed and inside.name != "config.json"
        if path.is_file() and not weights and (child / inside).is_file():
            shutil.copyfile(path, child / inside)


def stored_dtype(folder: Path) -> torch.dtype:
    """The type of a component's stored weights."""
    with safe_open(next(iter(sorted(folder.glob("*.safetensors")))), framework="pt") as file:
        return file.get_tensor(next(iter(file.keys()))).dtype


def licence_of(folder: Path) -> str:
    """The licence that a model folder's README card names, or an empty string."""
    card = folder / "README.md"
    lines = card.read_text(encoding="utf-8").splitlines() if card.is_file() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("license:")), "")


def privacy_of(state: RunState, number: int) -> dict[str, Any]:
    """{"privacy": {node: {"epsilon", "delta"}}} of the edges and users that trained with differential privacy."""
    edges = (state.finished(number, "finetune") or {}).get("edges", [])
    users = (state.finished(number, "synthesise") or {}).get("users", [])
    told = {edge["name"]: edge["privacy"] for edge in edges if "privacy" in edge}
    told |= {user["name"]: {key: user[key] for key in ("epsilon", "delta")} for user in users if "epsilon" in user}
    return {"privacy": told} if told else {}
