"""The rounds: describe, refresh, synthesise, fine-tune, distil, publish, redistribute."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from flwr.serverapp import Grid

from fedkd.checkpoints.manifest import Manifest
from fedkd.checkpoints.registry import Registry
from fedkd.recipe import Recipe
from server.answers import Answers
from server.cloud import Cloud
from server.crew import Crew, Requests
from server.delivery import Shopfront, check_bytes
from server.drawings import captions_path, draw_sets
from server.events import note_start
from server.exchange import Exchange, need_quorum
from server.instructions import Instructions
from server.receipts import check_captions, check_missing, check_receipt, receipt_path, receipts
from server.state import RunState


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
        wait_s: float | None = None,
    ) -> None:
        self.grid, self.recipe, self.run = grid, recipe, run
        self.state = RunState(run)
        self.registry = Registry(registry)
        self.registry_url = registry_url or recipe.federation.registry_url  # empty: blobs go along in messages
        self.shopfront = Shopfront(self.registry, self.registry_url)
        self.cloud = Cloud(recipe, self.state, self.registry)
        self.audit = self.cloud.audit
        self.instructions = Instructions(recipe, run, self.registry, self.registry_url, self.cloud.evaluation_seed)
        wait_s = recipe.federation.wait_s if wait_s is None else wait_s
        self.crew = Crew(grid, recipe, self.state, self.audit, registry_url=self.registry_url, wait_s=wait_s)
        self.by_edge = recipe.federation.sets_route == "edge"  # sets go from users to edges, receipts come here
        self.current = ""  # reference of the published checkpoint, name:version
        self.metrics: dict[str, Any] = {}  # what the current checkpoint scored
        self.after_round: Callable[[int], None] = lambda number: None  # whoever wants to know of finished rounds

    def go(self) -> None:
        """Run every round that is not finished yet; QuorumError when too few nodes take part."""
        resumed = note_start(self.state, self.recipe.federation.rounds)
        if resumed is not None:
            self.audit.add("resumed", round=resumed["round"], phase=resumed["phase"])
        try:
            self.rounds()
        except Exception as error:
            self.audit.add("stopped", why=str(error)[:1000])
            raise

    def rounds(self) -> None:
        """The base, and the rounds one after another."""
        base = self.cloud.base()
        self.shopfront.offer(base["checkpoint"], self.state.progress(0, "base"))
        self.current, self.metrics = base["checkpoint"], base["metrics"]
        for number in range(1, self.recipe.federation.rounds + 1):
            if self.state.finished(number, "redistribute") is None:
                self.round(number)
            self.adopt(number)
            self.after_round(number)

    def adopt(self, number: int) -> None:
        """Make the round's student the current checkpoint, unless it is only a candidate."""
        published = self.state.finished(number, "publish")
        if published is not None and published["alias"] == "latest":
            self.current, self.metrics = published["checkpoint"], published["metrics"]

    def round(self, number: int) -> None:
        """One round; phases with durable results are not done again."""
        self.state.event("round_start", round=number, rounds=self.recipe.federation.rounds)
        self.crew.describe(number, self.instructions)
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

    def refresh(self, number: int, phase: str) -> None:
        """Let edges behind the published checkpoint take what they lack; `redistribute` does so after a round."""
        manifest = self.published()
        behind = [edge for edge in self.crew.of_role("edge") if edge.digest != manifest.digest]
        content = self.instructions.content
        requests: Requests = {edge.name: (edge.id, content(number, phase, edge, manifest)) for edge in behind}

        def check(name: str, task: dict[str, Any], files: dict[str, bytes]) -> dict[str, int]:
            if task["digest"] != manifest.digest:
                raise ValueError("it serves another checkpoint than the published one")
            return check_bytes(task, manifest)

        result = self.crew.ask(number, phase, "train.refresh", requests, check)
        self.crew.account(number, phase, result, result.answers)
        for name in result.answers:
            self.crew.members[name].digest = manifest.digest
            self.crew.members[name].blobs |= {entry.sha256 for entry in manifest.files}
        if phase == "refresh":
            for name in result.left_out:
                self.crew.members.pop(name, None)
            if behind:
                need_quorum(phase, self.recipe.federation, len(behind), result)
        self.crew.keep(number, phase, result)

    def synthesise(self, number: int) -> None:
        """Ask every user for D'_n; keep the sets as Parquet files, or only the receipts of those that went to edges."""
        manifest, answers = self.published(), Answers(self.state, number, "synthesise")
        edges = {edge.name for edge in self.crew.of_role("edge")}
        users = [user for user in self.crew.of_role("user") if user.name not in answers.kept]
        idle = [user for user in users if user.edge not in edges]
        content = self.instructions.content
        requests: Requests = {
            user.name: (user.id, content(number, "synthesise", user, manifest)) for user in users if user not in idle
        }
        folder = self.state.round_folder(number) / "sets"

        def check(name: str, task: dict[str, Any], files: dict[str, bytes]) -> dict[str, Any]:
            receipt = check_receipt(task, files, self.recipe) if self.by_edge else None
            pictures = receipt["count"] if receipt else self.cloud.accept_set(files["set"])
            audit = {str(key): value for key, value in dict(task["audit"]).items()}
            if not all(value is None or isinstance(value, int | float) for value in audit.values()):
                raise ValueError("its audit holds something that is not a number")
            facts = {"name": name, "edge": self.crew.members[name].edge, **audit}
            answer = {"facts": facts, "pictures": pictures, "cost": check_bytes(task, manifest)}
            return {**answer, "receipt": receipt} if receipt else answer

        def store(name: str, answer: dict[str, Any], files: dict[str, bytes], result: Exchange) -> None:
            gave = {"edge": answer["facts"]["edge"], "pictures": answer["pictures"]}
            if receipt := answer.get("receipt"):
                result.edge[name] = receipt["sent"]
                path = receipt_path(self.state, number, name)
                answers.store(name, answer, path, json.dumps(receipt).encode(), result)
                gave |= {"what": "receipt", "digest": receipt["digest"], "bytes": receipt["bytes"]}
            else:
                digest = answers.store(name, answer, folder / f"{name}.parquet", files["set"], result)
                gave |= {"what": "set", "digest": digest}
            self.audit.add("gave", round=number, node=name, **gave)

        result = self.crew.ask(number, "synthesise", "train.synthesise", requests, check, store)
        answers.restore(result)
        for user in idle:
            result.left_out[user.name] = f"its edge '{user.edge}' takes no part in this round"
        self.crew.account(
            number, "synthesise", result, {name: answer["cost"] for name, answer in result.answers.items()}
        )
        users_facts = [answer["facts"] for answer in result.answers.values()]
        self.crew.keep(number, "synthesise", result, users=users_facts, quorum=True)

    def finetune(self, number: int) -> None:
        """Give each edge the union of its users' sets, or their receipts; keep its adapter and metrics."""
        folder, answers = self.state.round_folder(number), Answers(self.state, number, "finetune")
        sets: Mapping[str, list[Any]] = receipts(self.state, number) if self.by_edge else self.user_sets(number)
        missing: dict[str, str] = {}  # users whose sets their edges could not use, and why
        requests: Requests = {}
        for edge in self.crew.of_role("edge"):
            if edge.name in sets and edge.name not in answers.kept:
                given = sets[edge.name]
                along = {"receipts": given} if self.by_edge else {"files": {path.stem: path for path in given}}
                requests[edge.name] = (edge.id, self.instructions.content(number, "finetune", edge, **along))

        def check(name: str, task: dict[str, Any], files: dict[str, bytes]) -> dict[str, Any]:
            without = check_missing(task, sets[name]) if self.by_edge else {}
            missing.update(without)
            if without and len(without) == len(sets[name]):
                raise ValueError(f"no set of its users could be used: {'; '.join(sorted(set(without.values())))}")
            told = {"missing": without, "captions": check_captions(task, self.recipe)} if self.by_edge else {}
            self.cloud.accept_adapter(self.current, files["adapter"])
            facts = {key: task["metrics"].get(key) for key in ("accuracy", "known", "taught", "concepts")}
            if "privacy" in task:
                facts["privacy"] = {key: float(task["privacy"][key]) for key in ("epsilon", "delta")}
            return {"name": name, **facts, "loss": [float(value) for value in task["loss"]], **told}

        def store(name: str, answer: dict[str, Any], files: dict[str, bytes], result: Exchange) -> None:
            path = folder / "adapters" / f"{name}.safetensors"
            if self.by_edge:
                captions = json.dumps(answer.pop("captions")).encode()
                self.state.write_bytes(captions_path(self.state, number, name), captions)
            digest = answers.store(name, answer, path, files["adapter"], result)
            used = len(sets[name]) - len(answer.get("missing", ()))
            self.audit.add("gave", round=number, node=name, what="adapter", digest=digest, sets=used)

        result = self.crew.ask(number, "finetune", "train.finetune", requests, check, store)
        answers.restore(result)
        for edge in result.answers.values():
            missing |= edge.pop("missing", {})
        for user, why in sorted(missing.items()):
            self.audit.add("refused", round=number, phase="finetune", node=user, why=why)
        facts = {"missing": missing} if missing else {}
        self.crew.keep(number, "finetune", result, edges=list(result.answers.values()), quorum=True, **facts)

    def distil(self, number: int) -> dict[str, Any]:
        """Train the student on the sets of all edges that sent an adapter, or on what their adapters draw."""
        tuned = self.state.finished(number, "finetune")
        assert tuned is not None
        names = [edge["name"] for edge in tuned["edges"]]
        adapters = {name: self.state.round_folder(number) / "adapters" / f"{name}.safetensors" for name in names}
        if self.by_edge:
            sets = draw_sets(self.cloud, number, self.current, adapters)
        else:
            sets = {name: paths for name, paths in self.user_sets(number).items() if name in adapters}
        facts = self.cloud.distil(number, self.current, sets, adapters)
        for name, why in sorted(facts["left_out"].items()):
            self.audit.add("distrusted", round=number, node=name, why=why)
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

    def published(self) -> Manifest:
        """The current checkpoint's manifest, its files verified."""
        self.registry.resolve(self.current)
        return self.registry.manifest(self.current)

    def local(self, number: int, phase: str, work: Callable[[], dict[str, Any]]) -> None:
        """A phase of the server's own: measured and made durable."""
        self.state.event("phase_start", round=number, phase=phase, nodes=[])
        started = time.monotonic()
        facts = work()
        result = Exchange(seconds=time.monotonic() - started)
        self.crew.keep(number, phase, result, **facts)
