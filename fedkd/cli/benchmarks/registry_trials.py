"""Kills, full disks and damaged blobs in a registry's life, each followed by a look at all that was published."""

from __future__ import annotations

import contextlib
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from fedkd.cli.benchmarks.registry_faults import NAME, OPERATIONS, Children, Say, Site, carry_out, small_disk
from fedkd.cli.benchmarks.registry_ledger import Damage, Ledger, look_at, make_model, needed_by, sound, spoil

SIZES = {"unet": 300_000, "vae": 150_000, "text_encoder": 60_000}  # bytes of a model's weights
LARGE_BYTES = 6_000_000  # every so often the UNet is this large, so that kills fall within a write
DISK_BYTES = 4_000_000


class Trials:
    """A cloud, a mirror and an edge that go through faults; `damage` counts what came of them."""

    def __init__(self, site: Site, say: Say, seed: int = 0) -> None:
        self.site, self.say = site, say
        self.noise, self.children = np.random.default_rng(seed), Children(seed)
        self.dice = self.children.dice
        self.cloud, self.mirror = Ledger(), Ledger()
        self.damage: dict[str, Damage] = {}
        self.counts: dict[str, Counter[str]] = {operation: Counter() for operation in OPERATIONS}
        self.new_model(everything=True)
        self.finish("publish", "start")

    def new_model(self, *, everything: bool = False) -> None:
        """The next model to publish: as a rule only its UNet is new."""
        sizes = dict(SIZES) if self.dice.random() > 0.1 else {**SIZES, "unet": LARGE_BYTES}
        make_model(self.site.model, self.noise, sizes, only="" if everything else "unet")

    def kills(self, wanted: int) -> None:
        """Operations that are killed until `wanted` were; after each, a look at everything; then one that ends."""
        done = 0
        while done < wanted:
            for operation in OPERATIONS:
                self.prepare(operation)
                for _ in range(self.dice.randint(1, 4)):
                    how = self.dice.choice(["touch", "moment"])
                    before = self.site.cache.digest
                    ended = self.children.run(operation, self.either(), kill=how)
                    self.counts[operation][how if ended.how == "killed" else "ended first"] += 1
                    if ended.how == "refused":
                        self.damage_of(operation).stuck += 1
                        self.say(f"{operation} fails after kills: {ended.text}")
                    done += ended.how == "killed"
                    self.settle(operation, ended.text if ended.how == "done" else "")
                    self.look(operation, before, swapped=operation == "swap")
                self.finish(operation, operation)
            self.say(f"{done} of {wanted} kills; {self.total()}")

    def prepare(self, operation: str) -> None:
        """Give an operation something to do, and gc something that it must not remove."""
        if operation != "gc of a mirror" and operation != "gc":
            self.new_model()
        if operation in ("pull", "swap"):
            self.finish("publish", operation)
        if operation == "gc":
            from fedkd.checkpoints.manifest import CheckpointError
            from fedkd.checkpoints.names import pin, unpin

            registry = self.site.cloud
            for version in registry.pins(NAME):
                unpin(registry, f"{NAME}:{version}")
            with contextlib.suppress(CheckpointError):  # that is counted where everything is looked at
                pin(registry, f"{NAME}:{self.dice.choice(registry.versions(NAME) or ['v0'])}")
        if operation.startswith("gc"):
            ledger = self.cloud if operation == "gc" else self.mirror
            registry = self.site.cloud if operation == "gc" else self.site.mirror
            ledger.spared |= set(ledger.published) - needed_by(registry)

    def settle(self, operation: str, made: str) -> None:
        """Write down what an operation that came to its end says it made."""
        if made and operation == "publish":
            self.cloud.add(made, self.site.model)
        elif made and operation == "pull":
            self.mirror.add(made, self.site.model)

    def finish(self, operation: str, after: str) -> None:
        """The same operation undisturbed: it has to succeed on what the killed ones left."""
        before = self.site.cache.digest
        ended = self.children.run(operation, self.either())
        if ended.how != "done":
            self.damage_of(after).stuck += 1
            self.say(f"after a killed {after}, {operation} fails: {ended.text}")
        self.settle(operation, ended.text if ended.how == "done" else "")
        self.look(after, before, swapped=operation == "swap")

    def either(self) -> Site:
        """The site as it is seen over HTTP, or as a folder."""
        return self.dice.choice([self.site, replace(self.site, url=str(self.site.folder / "cloud"))])

    def look(self, operation: str, cache_before: str, *, swapped: bool) -> None:
        """Read everything: what loads must be right, what was published must load, the edge must have old or new."""
        from fedkd.checkpoints.manifest import CheckpointError

        found = self.damage_of(operation)
        for registry, ledger in ((self.site.cloud, self.cloud), (self.site.mirror, self.mirror)):
            look_at(registry, ledger, found)
        cache = self.site.cache
        try:
            if cache.digest:
                found.corrupt += not sound(cache.path())
        except CheckpointError as error:
            found.lost += 1
            self.say(f"the edge's model is gone: {error}")
        allowed = {cache_before}
        with contextlib.suppress(CheckpointError):  # that is counted above
            allowed |= {self.site.cloud.manifest(NAME).digest} if swapped else set()
        found.corrupt += cache.digest not in allowed

    def full_disks(self, wanted: int) -> bool:
        """Writes that fail midway, then a disk that is really full; whether the latter could be had."""
        for number in range(wanted):
            operation = ("publish", "pull", "swap")[number % 3]
            self.prepare(operation)
            limit = self.dice.randint(0, self.largest_bytes())
            before = self.site.cache.digest
            ended = self.children.run(operation, self.either(), file_limit_bytes=limit)
            self.counts.setdefault("full disk", Counter())["refused" if ended.how == "refused" else "ended first"] += 1
            self.one_line(ended.text, "full disk")
            self.settle(operation, ended.text if ended.how == "done" else "")
            self.look("full disk", before, swapped=operation == "swap")
            self.finish(operation, "full disk")
        return self.small_disks()

    def small_disks(self) -> bool:
        """Publish to a small disk until it is full; what got its name before has to stay whole."""
        from fedkd.checkpoints.manifest import CheckpointError

        folder = self.site.folder / "small"
        with small_disk(folder, DISK_BYTES) as mounted:
            if mounted:
                site, ledger = Site(folder, ""), Ledger()
                found = self.damage_of("full disk")
                for _ in range(40):
                    make_model(self.site.folder / "next", self.noise, SIZES, only="unet" if ledger.published else "")
                    try:
                        parents = [f"{NAME}:v0"] if ledger.published else []
                        made = site.cloud.publish(self.site.folder / "next", name=NAME, parents=parents)
                    except (CheckpointError, OSError) as error:
                        self.one_line(str(error), "full disk")
                        self.counts["full disk"]["refused"] += 1
                        break
                    ledger.add(made.reference, self.site.folder / "next")
                look_at(site.cloud, ledger, found)
                ledger.spared |= set(ledger.published) - needed_by(site.cloud)
                carry_out("gc", site)  # on the full disk
                look_at(site.cloud, ledger, found)
                try:
                    make_model(self.site.folder / "next", self.noise, SIZES, only="unet")
                    made = site.cloud.publish(self.site.folder / "next", name=NAME, parents=[f"{NAME}:v0"])
                except (CheckpointError, OSError):
                    found.stuck += 1
                look_at(site.cloud, ledger, found)
        shutil.rmtree(folder, ignore_errors=True)
        shutil.rmtree(self.site.folder / "next", ignore_errors=True)
        return mounted

    def damaged_blobs(self, wanted: int) -> None:
        """Blobs that are cut short or have one flipped bit: refused wherever they lie, and then repaired."""
        self.counts["damaged blob"] = Counter()
        found = self.damage_of("damaged blob")
        for number in range(wanted):
            self.new_model()
            for operation in ("publish", "pull", "swap"):
                self.finish(operation, "damaged blob")
            place = ("cloud", "mirror", "edge")[number % 3]
            store = {"cloud": self.site.cloud.blobs, "mirror": self.site.mirror.blobs, "edge": self.site.cache.blobs}
            entry = self.dice.choice(self.site.cloud.manifest(NAME).files)
            how = spoil(store[place], entry.sha256, self.dice.randrange(entry.size), cut=number % 2 == 0)
            self.counts["damaged blob"][how] += 1
            if place == "cloud":
                found.corrupt += self.pulls_from_damaged()
            found.corrupt += loads(place, self.site)
            self.finish({"cloud": "publish", "mirror": "pull", "edge": "swap"}[place], "damaged blob")
            found.stuck += not loads(place, self.site)

    def pulls_from_damaged(self) -> int:
        """1 when a new mirror accepts a version with a damaged blob, else 0."""
        fresh = replace(self.either(), folder=self.site.folder / "fresh")
        ended = self.children.run("pull", fresh)
        named = fresh.mirror.names()
        shutil.rmtree(fresh.folder, ignore_errors=True)
        self.one_line(ended.text, "damaged blob")
        return int(ended.how == "done" or bool(named))

    def one_line(self, text: str, where: str) -> None:
        """An error has to be one line."""
        self.damage_of(where).stuck += "\n" in text

    def largest_bytes(self) -> int:
        """Size of the largest file of the model to be published."""
        return max(path.stat().st_size for path in self.site.model.rglob("*") if path.is_file())

    def damage_of(self, operation: str) -> Damage:
        """The count of an operation."""
        return self.damage.setdefault(operation, Damage())

    def total(self) -> str:
        """The damage so far in words."""
        corrupt, lost, stuck = (
            sum(getattr(d, key) for d in self.damage.values()) for key in ("corrupt", "lost", "stuck")
        )
        return f"{corrupt} corrupt versions loadable, {lost} published versions lost, {stuck} repairs failed"


def loads(place: str, site: Site) -> bool:
    """Whether the newest version at the cloud, the mirror or the edge is handed out."""
    from fedkd.checkpoints.manifest import CheckpointError

    try:
        if place == "edge":
            site.cache.path()
        else:
            (site.cloud if place == "cloud" else site.mirror).resolve(NAME)
    except CheckpointError:
        return False
    return True


def rows(trials: Trials) -> Iterator[tuple[str, dict[str, list[float]]]]:
    """(fault, columns) of the table."""
    for operation, counts in trials.counts.items():
        found = trials.damage_of(operation)
        killed = counts["touch"] + counts["moment"]
        others = sum(counts.values()) - killed - counts["ended first"]
        figures = {
            "faults": killed + others,
            "at a touched file": counts["touch"],
            "at a moment": counts["moment"],
            "ended before": counts["ended first"],
            "corrupt": found.corrupt,
            "lost": found.lost,
            "not repaired": found.stuck,
        }
        yield operation, {column: [float(value)] for column, value in figures.items()}
