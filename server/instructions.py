"""What nodes are told: recipe, seeds, where to pull checkpoints from, and with a manifest its signature."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from flwr.app import RecordDict

from clients.payload import pack
from fedkd.checkpoints.derivation import to_fetch
from fedkd.checkpoints.manifest import MANIFEST_NAME, SIGNATURE_NAME, Manifest
from fedkd.checkpoints.registry import Registry
from fedkd.recipe import Recipe, to_yaml
from server.members import Member
from server.state import seed_of


class Instructions:
    """Makes the contents of messages to nodes. With no `registry_url` the blobs that a node lacks go along."""

    def __init__(self, recipe: Recipe, run: Path, registry: Registry, registry_url: str, evaluation_seed: int) -> None:
        self.recipe, self.run, self.registry, self.registry_url = recipe, run, registry, registry_url
        self.evaluation_seed = evaluation_seed
        self.recipe_text = to_yaml(recipe)

    def content(
        self,
        number: int,
        phase: str,
        member: Member | None = None,
        manifest: Manifest | None = None,
        files: Mapping[str, Path] | None = None,
        receipts: list[dict[str, Any]] | None = None,
    ) -> Callable[[], RecordDict]:
        """What builds the instruction when its turn comes; `files` go along as the sets to learn from.

        `receipts` speak of the sets that the edge has already.
        """
        return lambda: self.build(number, phase, member, manifest, files or {}, receipts)

    def build(
        self,
        number: int,
        phase: str,
        member: Member | None,
        manifest: Manifest | None,
        sets: Mapping[str, Path],
        receipts: list[dict[str, Any]] | None = None,
    ) -> RecordDict:
        """An instruction as a message's content."""
        task: dict[str, Any] = {
            "recipe": self.recipe_text,
            "run": str(self.run),
            "round": number,
            "phase": phase,
            "evaluation_seed": self.evaluation_seed,
        }
        if self.registry_url:
            task["registry"] = self.registry_url
        files = {name: path.read_bytes() for name, path in sets.items()}
        if files:
            task["sets"] = sorted(files)
        if receipts is not None:
            task["receipts"] = receipts
        if member is not None:
            task["seed"] = seed_of(self.recipe.run.seed, number, member.role, member.index)
        if member is not None and manifest is not None:
            source = self.registry.folder(manifest.reference)
            task["manifest"] = (source / MANIFEST_NAME).read_text(encoding="utf-8")
            if signature := self.registry.signature(manifest.reference):
                files[SIGNATURE_NAME] = signature
            if not self.registry_url:
                lacking = (entry.sha256 for entry in to_fetch(self.mergeable(manifest), member.blobs))
                files |= {sha256: self.registry.blobs.path(sha256).read_bytes() for sha256 in lacking}
        return pack(task, files)

    def mergeable(self, manifest: Manifest) -> Manifest:
        """The manifest without derivations whose LoRA file gc has removed here."""
        here = self.registry.blobs.find
        return replace(manifest, derived=tuple(each for each in manifest.derived if here(each.lora) is not None))
