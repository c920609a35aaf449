"""Students as parent plus LoRA: who holds the parent's weights needs the LoRA file alone, and makes the rest."""

from __future__ import annotations

import contextlib
import shutil
import threading
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from filelock import FileLock

from fedkd.checkpoints.lora_merge import LORA_NAME, merge_lora, modules_of, tensors_of
from fedkd.checkpoints.manifest import CheckpointError, Derivation, FileEntry, Gone, Manifest, file_digest

CHAIN = 16  # merges that a manifest remembers: who is further behind fetches the weights
Fetch = Callable[[FileEntry, Path], None]  # writes the entry's content to the path, going on with what is there


def derive_student(parent: Path, child: Path, lora: bytes, component: str) -> tuple[Derivation, ...]:
    """Make `child`/`component`'s weights from those of `parent` (pipeline folders) and a LoRA file; how it was done.

    `lora`: in diffusers' form, kept as pytorch_lora_weights.safetensors in the child, where plain diffusers finds it.
    CheckpointError when it does not fit the parent's weights.
    """
    path = child / LORA_NAME
    (child / component).mkdir(parents=True, exist_ok=True)
    path.write_bytes(lora)
    sources = sorted((parent / component).glob("*.safetensors"))
    there = {name for source in sources for name in tensors_of(source)}
    for index in (parent / component).glob("*.safetensors.index.json"):
        shutil.copyfile(index, child / component / index.name)
    strange = sorted(module for module in modules_of(path) if f"{module}.weight" not in there)
    if strange or not sources:
        changed = next(iter(strange), component)
        raise CheckpointError(f"the LoRA file changes '{changed}', which the parent does not have")
    found = []
    for left in (child / component).glob("*.safetensors"):
        left.unlink()
    for source in sources:
        made = child / component / source.name
        if merge_lora(source, path, made):
            found.append(Derivation(file_digest(made), file_digest(source), file_digest(path), path.stat().st_size))
    return tuple(found)


def to_fetch(manifest: Manifest, held: Collection[str]) -> list[FileEntry]:
    """What somebody who holds the contents `held` has to be given: LoRA files in the place of what they give."""
    derivations = {each.sha256: each for each in manifest.derived}
    wanted: dict[str, FileEntry] = {}
    for entry in manifest.files:
        if entry.sha256 in held:
            continue
        steps = chain(derivations, entry.sha256, held)
        if steps is None:
            wanted[entry.sha256] = entry
        else:
            loras = (FileEntry(LORA_NAME, step.lora, step.lora_size) for step in steps)
            wanted |= {lora.sha256: lora for lora in loras if lora.sha256 not in held}
    return list(wanted.values())


def chain(derivations: dict[str, Derivation], sha256: str, held: Collection[str]) -> list[Derivation] | None:
    """The merges that lead from something held to the content, first one first; None when there are none."""
    steps: list[Derivation] = []
    while (step := derivations.get(sha256)) is not None and len(steps) < len(derivations):
        steps.insert(0, step)
        sha256 = step.base
        if sha256 in held:
            return steps
    return None


def waves(manifest: Manifest, lacking: Sequence[FileEntry]) -> tuple[list[FileEntry], list[FileEntry]]:
    """What to bring first, and what may be made of it then."""
    derived = {each.sha256 for each in manifest.derived}
    return ([e for e in lacking if e.sha256 not in derived], [e for e in lacking if e.sha256 in derived])


class Deriver:
    """Brings contents of a manifest: made from what is here where that can be done, fetched otherwise.

    `find` says where a content lies here, if it does; `folder` keeps what is in between. It is a `Fetch` itself.
    What was made has to have the digest that the manifest names; else it is fetched after all.
    """

    def __init__(
        self,
        manifest: Manifest,
        find: Callable[[str], Path | None],
        fetch: Fetch,
        folder: Path,
        made: Callable[[int], None] | None = None,
    ) -> None:
        self.derivations = {each.sha256: each for each in manifest.derived}
        self.find, self.fetch, self.folder = find, fetch, folder
        self.made = made or (lambda size: None)
        self.fetched_bytes = 0
        self._count, self._merging = threading.Lock(), threading.Lock()

    def __call__(self, entry: FileEntry, part: Path) -> None:
        """Write the entry's content to `part`; CheckpointError when it can be neither made nor had."""
        if entry.sha256 not in self.derivations:
            self._fetch(entry, part)
            return
        with self._merging:
            self._obtain(entry, part)

    def can_make(self, sha256: str) -> bool:
        """Whether merges lead from something that lies here to the content."""
        bases = {each.base for each in self.derivations.values()}
        held = {digest for digest in bases if self.find(digest) is not None}
        return chain(self.derivations, sha256, held) is not None

    def clear(self) -> None:
        """Delete what was in between."""
        for path in self.folder.glob("between-*"):
            if not path.suffix:
                path.unlink(missing_ok=True)

    def _fetch(self, entry: FileEntry, part: Path) -> None:
        self.fetch(entry, part)
        with self._count:
            self.fetched_bytes += entry.size

    def _obtain(self, entry: FileEntry, part: Path) -> None:
        step = self.derivations.get(entry.sha256)
        if step is not None and self.can_make(entry.sha256) and self._merge(step, entry, part):
            return
        try:
            self._fetch(entry, part)
        except Gone:  # a store that leaves out what can be made
            if step is None or not self._merge(step, entry, part):
                raise

    def _merge(self, step: Derivation, entry: FileEntry, part: Path) -> bool:
        """Make the content; False when an ingredient cannot be had, or it comes out with another digest."""
        with contextlib.suppress(CheckpointError):
            base = self._ingredient(FileEntry(entry.path, step.base, entry.size))
            lora = self._ingredient(FileEntry(LORA_NAME, step.lora, step.lora_size))
            merge_lora(base, lora, part)
            if file_digest(part) == entry.sha256:
                self.made(entry.size)
                return True
        part.unlink(missing_ok=True)
        return False

    def _ingredient(self, entry: FileEntry) -> Path:
        """Where a merge's ingredient lies, once it is brought."""
        found = self.find(entry.sha256)
        if found is not None:
            return found
        path = self.folder / f"between-{entry.sha256}"
        self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock"), thread_local=False):  # another process may bring the same
            if not path.is_file():
                self._obtain(entry, path.with_suffix(".part"))
                path.with_suffix(".part").rename(path)
        return path
