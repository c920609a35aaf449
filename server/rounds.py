"""The rounds: describe, refresh, synthesise, fine-tune, distil, publish, redistribute."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from flwr.serverapp import Grid

from clients.payload import pack
from fedkd.checkpoints.derivation import to_fetch
from fedkd.checkpoints.manifest import MANIFEST_NAME, SIGNATURE_NAME, Manifest, check_name
from fedkd.checkpoints.registry import Registry
from fedkd.recipe import Recipe, to_yaml
from server.cloud import Cloud
from server.delivery import Shopfront, check_bytes, record
from server.exchange import Check, Exchange, QuorumError, exchange, first_line, need_quorum
from server.state import RunState, seed_of

WAIT_S = 120.0


@dataclass
class Member:
    """A node as it described itself."""

    id: int
    name: str
    role: str
    index: int
    edge: str
    digest: str
    blobs: set[str]


class Federation:
    """One run: members, current checkpoint, and the phases that move it from round to round."""

    def __init__(
        self,
        grid: Grid,
        recipe: Recipe,
        run: Path,
        registry: Path,
        *,
        registry_url: str = "",
        wait_s: float = WAIT_S,
    ) -> None:
        self.grid, self.recipe, self.run, self.wait_s = grid, recipe, run, wait_s
        self.recipe_text = to_yaml(recipe)
        self.state = RunState(run)
        self.registry = Registry(registry)
        self.registry_url = registry_url or recipe.federation.registry_url  # empty: blobs go along in messages
        self.shopfront = Shopfront(self.registry, self.registry_url)
        self.cloud = Cloud(recipe, self.state, self.registry)
        self.members: dict[str, Member] = {}
        self.current = ""  # reference of the published checkpoint, name:version
        self.metrics: dict[str, Any] = {}  # what the current checkpoint scored

    def go(self) -> None:
        """Run every round that is not finished yet; QuorumError when too few nodes take part."""
        base = self.cloud.base()
        self.shopfront.offer(base["checkpoint"], self.state.progress(0, "base"))
        self.current, self.metrics = base["checkpoint"], base["metrics"]
        for number in range(1, self.recipe.federation.rounds + 1):
            if self.state.finished(number, "redistribute") is None:
                self.round(number)
            self.adopt(number)

    def adopt(self, number: int) -> None:
        """Make the round's student the current checkpoint, unless it is only a candidate."""
        published = self.state.finished(number, "publish")
        if published is not None and published["alias"] == "latest":
            self.current, self.metrics = published["checkpoint"], published["metrics"]

    def round(self, number: int) -> None:
        """One round; phases with durable results are not done again."""
        self.state.event("round_start", round=number, rounds=self.recipe.federation.rounds)
        self.describe(number)
        if self.state.finished(number, "finetune") is None:
            self.refresh(number, "refresh")
            if self.state.finished(number, "synthesise") is None:
                self.synthesise(number)
            self.finetune(number)
        if self.state.finished(number, "distil") is None:
            self.local(number, "distil", lambda: self.distil(number))
        if self.state.finished(number, "publish") is None:
            parent, metrics = self.current, self.metrics
            self.local(number, "publish", lambda: self.cloud.publish(number, parent, metrics))
        self.offer(number)
        self.adopt(number)
        self.refresh(number, "redistribute")
        self.state.event("round_end", round=number)

    def offer(self, number: int) -> None:
        """Let nodes pull the round's student, also when the server was stopped before they could."""
        published = self.state.finished(number, "publish")
        assert published is not None
        self.shopfront.offer(published["checkpoint"], self.state.progress(number, "publish"))

    # The phases, in order.

    def describe(self, number: int) -> None:
        """Ask every node what it is; members are known by name from here on."""
        ids = self.wait()
        requests = {f"{node:020d}": (node, self.content(number, "describe")) for node in ids}
        result = self.ask(number, "describe", "query.describe", requests, lambda key, task, files: task)
        self.members, taken = {}, {}
        for key, facts in sorted(result.answers.items()):
            try:
                blobs = {str(digest) for digest in facts["blobs"]}
                labels = (
                    check_name(str(facts["name"])),
                    str(facts["role"]),
                    int(facts["index"]),
                    str(facts["edge"]),
                )
                member = Member(int(key), *labels, str(facts["digest"]), blobs)
            except (KeyError, TypeError, ValueError) as error:
                result.left_out[key] = f"its description is malformed: {first_line(error)}"
                continue
            if member.name in self.members:
                result.left_out[key] = f"another node is called '{member.name}' too; give it a name of its own"
                continue
            self.members[member.name], taken[member.name] = member, member
        result.answers = dict(taken)
        expected = self.recipe.federation.edges + self.recipe.federation.users
        need_quorum("describe", self.recipe.federation.quorum, max(expected, len(ids)), result)
        self.keep(number, "describe", result)

    def refresh(self, number: int, phase: str) -> None:
        """Let edges behind the published checkpoint take what they lack; `redistribute` does so after a round."""
        manifest = self.registry.manifest(self.current)
        behind = [edge for edge in self.of_role("edge") if edge.digest != manifest.digest]
        requests = {edge.name: (edge.id, self.content(number, phase, edge, manifest)) for edge in behind}

        def check(name: str, task: dict[str, Any], files: dict[str, bytes]) -> dict[str, int]:
            if task["digest"] != manifest.digest:
                raise ValueError("it serves another checkpoint than the published one")
            return check_bytes(task, manifest)

        result = self.ask(number, phase, "train.refresh", requests, check)
        record(self.state, number, phase, self.registry_url, result.answers)
        for name in result.answers:
            self.members[name].digest = manifest.digest
            self.members[name].blobs |= {entry.sha256 for entry in manifest.files}
        if phase == "refresh":
            for name in result.left_out:
                self.members.pop(name, None)
            if behind:
                need_quorum(phase, self.recipe.federation.quorum, len(behind), result)
        self.keep(number, phase, result)

    def synthesise(self, number: int) -> None:
        """Ask every user for D'_n; keep the sets as Parquet files."""
        manifest = self.registry.manifest(self.current)
        users = self.of_role("user")
        requests = {user.name: (user.id, self.content(number, "synthesise", user, manifest)) for user in users}
        folder = self.state.round_folder(number) / "sets"
        costs: dict[str, dict[str, int]] = {}

        def check(name: str, task: dict[str, Any], files: dict[str, bytes]) -> dict[str, Any]:
            self.cloud.accept_set(files["set"])
            audit = {str(key): value for key, value in dict(task["audit"]).items()}
            if not all(value is None or isinstance(value, int | float) for value in audit.values()):
                raise ValueError("its audit holds something that is not a number")
            cost = check_bytes(task, manifest)
            self.state.write_bytes(folder / f"{name}.parquet", files["set"])
            costs[name] = cost
            return {"name": name, "edge": self.members[name].edge, **audit}

        result = self.ask(number, "synthesise", "train.synthesise", requests, check)
        record(self.state, number, "synthesise", self.registry_url, costs)
        self.keep(number, "synthesise", result, users=list(result.answers.values()), quorum=True)

    def finetune(self, number: int) -> None:
        """Give each edge the union of its users' sets; keep its adapter and metrics."""
        folder, sets = self.state.round_folder(number), self.user_sets(number)
        edges = [edge for edge in self.of_role("edge") if edge.name in sets]
        requests = {}
        for edge in edges:
            files = {path.stem: path.read_bytes() for path in sets[edge.name]}
            requests[edge.name] = (edge.id, self.content(number, "finetune", edge, files=files))

        def check(name: str, task: dict[str, Any], files: dict[str, bytes]) -> dict[str, Any]:
            self.cloud.accept_adapter(self.current, files["adapter"])
            facts = {key: task["metrics"].get(key) for key in ("accuracy", "known", "taught", "concepts")}
            loss = [float(value) for value in task["loss"]]
            self.state.write_bytes(folder / "adapters" / f"{name}.safetensors", files["adapter"])
            return {"name": name, **facts, "loss": loss}

        result = self.ask(number, "finetune", "train.finetune", requests, check)
        self.keep(number, "finetune", result, edges=list(result.answers.values()), quorum=True)

    def distil(self, number: int) -> dict[str, Any]:
        """Train the student on the sets of all edges that sent an adapter."""
        tuned = self.state.finished(number, "finetune")
        assert tuned is not None
        folder, sets = self.state.round_folder(number), self.user_sets(number)
        names = [edge["name"] for edge in tuned["edges"]]
        adapters = {name: folder / "adapters" / f"{name}.safetensors" for name in names}
        facts = self.cloud.distil(number, self.current, {name: sets[name] for name in names}, adapters)
        return {**facts, "parent": self.current}

    # What the phases share.

    def user_sets(self, number: int) -> dict[str, list[Path]]:
        """The kept sets of a round, by edge, in the order of the users' names."""
        made = self.state.finished(number, "synthesise")
        assert made is not None
        sets: dict[str, list[Path]] = {}
        for user in sorted(made["users"], key=lambda user: user["name"]):
            path = self.state.round_folder(number) / "sets" / f"{user['name']}.parquet"
            sets.setdefault(user["edge"], []).append(path)
        return sets

    def of_role(self, role: str) -> list[Member]:
        """Members of a role by index, then name: never by order of arrival."""
        found = (member for member in self.members.values() if member.role == role)
        return sorted(found, key=lambda member: (member.index, member.name))

    def wait(self) -> list[int]:
        """Wait until all nodes of the recipe are there, at most `wait_s` seconds; then whoever is there."""
        expected = self.recipe.federation.edges + self.recipe.federation.users
        deadline = time.monotonic() + self.wait_s
        while len(ids := sorted(self.grid.get_node_ids())) < expected and time.monotonic() < deadline:
            self.state.event("waiting", nodes=len(ids), expected=expected)
            time.sleep(1.0)
        if not ids:
            raise QuorumError(f"no node connected within {self.wait_s:g} s; start edges and users, then resume the run")
        return ids

    def content(
        self,
        number: int,
        phase: str,
        member: Member | None = None,
        manifest: Manifest | None = None,
        files: dict[str, bytes] | None = None,
    ) -> Any:
        """An instruction: recipe, seeds, where to pull checkpoints from, and with a manifest its signature.

        When there is nowhere to pull from, the blobs that the member lacks go along.
        """
        task: dict[str, Any] = {
            "recipe": self.recipe_text,
            "run": str(self.run),
            "round": number,
            "phase": phase,
            "evaluation_seed": self.cloud.evaluation_seed,
        }
        if self.registry_url:
            task["registry"] = self.registry_url
        files = dict(files or {})
        if files:
            task["sets"] = sorted(files)
        if member is not None:
            task["seed"] = seed_of(self.recipe.run.seed, number, member.role, member.index)
        if member is not None and manifest is not None:
            source = self.registry.resolve(manifest.reference)
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

    def ask(self, number: int, phase: str, kind: str, requests: dict[str, tuple[int, Any]], check: Check) -> Exchange:
        """One exchange with the recipe's time and size limits."""
        self.state.event("phase_start", round=number, phase=phase, nodes=self.names(requests))
        config = self.recipe.federation
        return exchange(
            self.grid,
            requests,
            kind,
            group=str(number),
            timeout_s=config.phase_timeout_s,
            max_bytes=int(config.max_message_mb * 2**20),
            check=check,
            progress=self.state.progress(number, phase),
        )

    def names(self, requests: Iterable[str]) -> list[str]:
        """Names of the asked nodes, where they are known already."""
        return [name for name in requests if name in self.members]

    def keep(self, number: int, phase: str, result: Exchange, *, quorum: bool = False, **facts: Any) -> None:
        """Make an exchange durable: as the phase when the quorum holds, else as what stopped the run."""
        entry = result.entry(phase)
        if quorum:
            try:
                need_quorum(phase, self.recipe.federation.quorum, result.asked, result)
            except QuorumError:
                self.state.finish(number, "stopped", {"entry": entry, **facts})
                raise
        self.state.finish(number, phase, {"entry": entry, **facts})
        self.state.event("phase_end", round=number, phase=phase, **{k: v for k, v in entry.items() if k != "name"})

    def local(self, number: int, phase: str, work: Callable[[], dict[str, Any]]) -> None:
        """A phase of the server's own: measured and made durable."""
        self.state.event("phase_start", round=number, phase=phase, nodes=[])
        started = time.monotonic()
        facts = work()
        result = Exchange(seconds=time.monotonic() - started)
        self.keep(number, phase, result, **facts)
