"""Traffic of a soak: devices that draw with the edge, some that vanish in mid-session, some with a wrong token."""

from __future__ import annotations

import asyncio
import base64
import random
import secrets
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field

import httpx
from httpx_sse import aconnect_sse
from PIL import Image

from fedkd.cli.benchmarks.soak_answers import Refused, asked, opened
from fedkd.cli.benchmarks.soak_devices import SplitDevice, vanish
from fedkd.cli.benchmarks.soak_edge import SoakEdge
from fedkd.cli.benchmarks.soak_reference import CATALOGUE, Drawn, References
from fedkd.serving.device import AsyncEdgeClient, EdgeError

TIMEOUT_S = 120.0
CLIENT, DEVICE, WHOLE, STREAM = "split, the client", "split, by hand", "whole", "whole, streamed"
KINDS = (CLIENT, DEVICE, WHOLE, STREAM)
SHARES = (0.4, 0.25, 0.2, 0.15)


@dataclass
class Tally:
    """What became of the requests; `wrong` and `failed` say what each was, as far as room is."""

    pictures: Counter[str] = field(default_factory=Counter)
    exact: int = 0
    vanished: Counter[str] = field(default_factory=Counter)
    sessions: int = 0
    requests: int = 0
    wrong_tokens: int = 0
    let_in: int = 0
    stolen: int = 0
    wrong: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    latencies_s: list[float] = field(default_factory=list)


@dataclass
class Traffic:
    """All users of one soak. `vanish` and `wrong` are shares of split sessions and of requests."""

    edge: SoakEdge
    references: References
    tally: Tally
    vanish: float
    wrong: float
    seed: int = 0

    async def run(self, users: int, until: float) -> None:
        """Let `users` draw until time.monotonic() is `until`."""
        async with asyncio.TaskGroup() as group:
            for place in range(users):
                group.create_task(User(self, place).live(until))


class User:
    """One holder of a token, who draws one picture after the other in one of four ways."""

    def __init__(self, traffic: Traffic, place: int) -> None:
        self.traffic, self.edge, self.tally = traffic, traffic.edge, traffic.tally
        self.name = f"user-{place}"
        self.dice = random.Random(f"{traffic.seed}/{place}")
        self.due = {"vanish": self.dice.random(), "wrong": self.dice.random()}

    async def live(self, until: float) -> None:
        """Draw until then; what fails is counted, and does not end this user."""
        cache = self.edge.scratch / f"device-of-{self.name}"
        headers = self.edge.headers(self.name)
        async with (
            AsyncEdgeClient(self.edge.url, token=self.edge.tokens[self.name], cache_dir=cache) as client,
            httpx.AsyncClient(base_url=self.edge.url, headers=headers, timeout=TIMEOUT_S, trust_env=False) as http,
        ):
            while time.monotonic() < until:
                drawn = self.dice.choice(CATALOGUE)
                kind = self.dice.choices(KINDS, SHARES)[0]
                began = time.perf_counter()
                self.tally.requests += 1
                try:
                    if self.its_turn("wrong", self.traffic.wrong):
                        await self.with_a_wrong_token(http, drawn)
                    elif kind in (CLIENT, DEVICE) and self.its_turn("vanish", self.traffic.vanish):
                        self.tally.sessions += 1
                        self.tally.vanished[await vanish(self.dice, self.edge, self.name, http, drawn)] += 1
                    else:
                        self.tally.sessions += kind in (CLIENT, DEVICE)
                        await self.draw(kind, client, http, drawn)
                        self.tally.latencies_s.append(time.perf_counter() - began)
                except (EdgeError, Refused, httpx.HTTPError, OSError) as error:
                    note(self.tally.failed, f"{kind}: {type(error).__name__}: {error}")

    def its_turn(self, what: str, share: float) -> bool:
        """Whether this time is one of the `share` of times: evenly, so that short runs have theirs too."""
        self.due[what] += share
        if self.due[what] < 1:
            return False
        self.due[what] -= 1
        return True

    async def draw(self, kind: str, client: AsyncEdgeClient, http: httpx.AsyncClient, drawn: Drawn) -> None:
        """One picture, compared with those of the versions that may have served it."""
        before = await self.version(http)
        asked_exact = self.dice.random() < 0.5
        named = ""
        if kind == CLIENT:
            image, exact = await self.by_client(client, drawn, asked_exact)
        elif kind == DEVICE:
            device = SplitDevice(self.edge, self.traffic.references, http, self.dice)
            image, exact, named = await device.draw(drawn, asked_exact, thief=self.thief())
            self.tally.stolen += device.stolen
        elif kind == WHOLE:
            image, exact, named = await self.whole(http, drawn, asked_exact)
        else:
            image, exact = await self.streamed(http, drawn, asked_exact)
        after = await self.version(http)
        versions = [self.edge.versions.index(named)] if named else range(before, after + 1)
        folders = [self.edge.folders[self.edge.versions[place]] for place in versions]
        right = await asyncio.to_thread(self.traffic.references.is_right, image, folders, drawn, exact=exact)
        self.tally.pictures[kind] += 1
        self.tally.exact += exact
        what = f"{kind}, versions {list(versions)}, {drawn}, exact={asked_exact}, said exact={exact}"
        if not right:
            note(self.tally.wrong, f"another picture: {what}")
        elif asked_exact and not exact and kind != DEVICE:
            note(self.tally.wrong, f"not exact though asked: {what}")

    async def version(self, http: httpx.AsyncClient) -> int:
        """The place of the version that is served now."""
        answer = await http.get("/v1/model")
        answer.raise_for_status()
        return self.edge.versions.index(answer.json()["digest"])

    async def by_client(self, client: AsyncEdgeClient, drawn: Drawn, exact: bool) -> tuple[Image.Image, bool]:
        """By the project's own client, in either order, split anywhere."""
        total = 2 * drawn.steps - 1 if "Heun" in drawn.scheduler else drawn.steps
        result = await client.generate(
            **drawn.body,
            device_steps=self.dice.randint(0, total),
            order="device_first" if self.dice.random() < 0.5 else "edge_first",
            exact=exact,
            with_latents=False,
        )
        for text in result.notes:
            note(self.tally.failed, f"{CLIENT}: a note: {text}")
        return result.image, bool(result.exact)

    async def whole(self, http: httpx.AsyncClient, drawn: Drawn, exact: bool) -> tuple[Image.Image, bool, str]:
        """As OpenAI's clients ask; the version is named where the edge names it."""
        answer = await asked(http, "/v1/images/generations", json={**drawn.body, "exact": exact})
        image = opened(base64.b64decode(answer.json()["data"][0]["b64_json"]))
        return image, answer.headers["x-fedkd-exact"] == "true", answer.headers.get("x-fedkd-model-digest", "")

    async def streamed(self, http: httpx.AsyncClient, drawn: Drawn, exact: bool) -> tuple[Image.Image, bool]:
        """As OpenAI's clients stream, with previews."""
        body = {**drawn.body, "exact": exact, "stream": True, "partial_images": 2}
        async with aconnect_sse(http, "POST", "/v1/images/generations", json=body) as source:
            if source.response.status_code != 200:
                await source.response.aread()
                raise Refused(f"{source.response.status_code} {source.response.text[:200]}")
            async for event in source.aiter_sse():
                if event.event == "image_generation.completed":
                    found = event.json()
                    return opened(base64.b64decode(found["b64_json"])), bool(found.get("fedkd_exact"))
                if event.event == "error":
                    raise Refused(event.data[:200])
        raise Refused("the stream ended without a picture")

    async def with_a_wrong_token(self, http: httpx.AsyncClient, drawn: Drawn) -> None:
        """Ask with a token that nobody has: 401 in OpenAI's form, or it counts as let in."""
        self.tally.wrong_tokens += 1
        wrong = self.dice.choice(["", "Bearer", f"Bearer {secrets.token_hex(8)}", "Basic dXNlcjpwYXNz"])
        path = self.dice.choice(["/v1/images/generations", "/v1/sessions"])
        answer = await http.post(path, json=drawn.body, headers={"Authorization": wrong})
        refused = answer.status_code == 401
        if refused:
            with suppress(ValueError, KeyError, TypeError):
                refused = answer.json()["error"]["type"] == "authentication_error"
        self.tally.let_in += not refused

    def thief(self) -> dict[str, str]:
        """Headers of another holder, who shall not get at this one's sessions."""
        others = [name for name in self.edge.tokens if name not in (self.name, "watcher")]
        return self.edge.headers(self.dice.choice(others)) if others else {}


def note(lines: list[str], line: str) -> None:
    """Keep a line; their number counts."""
    lines.append(line[:400])
