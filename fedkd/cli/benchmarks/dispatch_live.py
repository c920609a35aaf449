"""The live part of `fedkd bench dispatch`: four unequal edges on this machine, one of which is killed meanwhile."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from fedkd.cli.benchmarks.dispatch_live_load import MIXED_STEPS, Fate, arrivals, drawn_by, send_all
from fedkd.cli.benchmarks.request import Request
from fedkd.cli.benchmarks.result import Shown, Table, at_most

OURS, RIVALS = "social", ("round-robin", "least-connections")
ROW_S = (0.06, 0.08, 0.12, 0.24)  # speeds 4 : 3 : 2 : 1
MODELS = ("a", "b", "c", "d", "e")
REQUESTS, QUICK_REQUESTS = 2000, 24
LOAD = 0.8
FETCH_S = 3.0
MAX_WAITING = 64
VICTIM = 1
KILLED_AT, DOWN_S = 0.4, 3.0  # the share of the requests that have come; how long until it is started again
WARM_REQUESTS = 4
CALLS = 2  # a picture's prompt is encoded, and its latents are decoded
START_S = 300.0
MODULE = "fedkd.cli.benchmarks.dispatch_live_edge"


@dataclass(frozen=True)
class Site:
    """One edge: where it listens, who the others are, what it holds, and what makes it slow.

    `row_s` is waited for each row of a forward; `fetch_s` before a model that is not among `held` is loaded. The
    numbers of requests that it answered go to the file `answer_log`.
    """

    port: int
    peers: tuple[str, ...]
    models: dict[str, str]
    held: tuple[str, ...]
    row_s: float
    fetch_s: float
    max_waiting: int
    answer_log: str
    gossip_s: float = 0.5

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.port}"


def tables_and_shows(request: Request) -> tuple[list[Table], list[Shown]]:
    """Delays under our rule and two that load balancers know: the same arrivals, edges and accident for each."""
    with tempfile.TemporaryDirectory() as scratch, running_edges(Path(scratch)) as edges:
        rate_per_s = LOAD * edges.pictures_per_s(WARM_REQUESTS)
        count = QUICK_REQUESTS if request.quick else REQUESTS
        wanted = arrivals(count, rate_per_s, MODELS, len(ROW_S), seed=0)
        request.say(f"live: {count} requests a rule, {rate_per_s:.1f} a second, {wanted[-1].at_s:.0f} s each")
        fates: dict[str, list[Fate]] = {}
        for rule in (OURS, *RIVALS):
            edges.choose(rule)
            fates[rule] = send_all(edges.urls, wanted, lambda: edges.accident(KILLED_AT * wanted[-1].at_s))
            sent = edges.answered()
            for fate in fates[rule]:
                fate.sent = sent[fate.wanted.number]
            delays = np.array([fate.delay_s for fate in fates[rule]])
            request.say(f"live: {rule}: mean {np.nanmean(delays):.2f} s, p99 {np.nanpercentile(delays, 99):.2f} s")
        return [_delays(fates, rate_per_s), _edges(fates, edges.urls)], _shows(fates)


def _delays(fates: dict[str, list[Fate]], rate_per_s: float) -> Table:
    columns = ["mean s", "p50 s", "p99 s", "answered once", "lost", "twice", "asked again", "told to wait"]
    rows: dict[str, dict[str, list[float]]] = {}
    for rule, found in fates.items():
        p50, p99 = np.nanpercentile([fate.delay_s for fate in found], [50, 99])
        figures = [
            _mean(found),
            float(p50),
            float(p99),
            sum(fate.sent == 1 and len(fate.answers) == 1 for fate in found),
            sum(not fate.answers for fate in found),
            _twice(found),
            sum(fate.broken for fate in found),
            sum(fate.busy for fate in found),
        ]
        rows[rule] = {name: [float(value)] for name, value in zip(columns, figures, strict=True)}
    title = f"Four live edges, {rate_per_s:.1f} requests a second, one edge killed and started again"
    return Table(title, columns, rows, plain=True, digits=2)


def _edges(fates: dict[str, list[Fate]], urls: list[str]) -> Table:
    columns = [f"{1000 * row_s:.0f} ms a row" for row_s in ROW_S]
    rows = {
        rule: {name: [share] for name, share in zip(columns, drawn_by(found, urls), strict=True)}
        for rule, found in fates.items()
    }
    return Table("Who drew what: share of the requests by edge", columns, rows)


def _shows(fates: dict[str, list[Fate]]) -> list[Shown]:
    shows = []
    for rival in RIVALS:
        ratio, tail = _mean(fates[OURS]) / _mean(fates[rival]), _p99(fates[OURS]) / _p99(fates[rival])
        shows.append(at_most(f"live: mean delay of {OURS} over {rival}", ratio, 0.999))
        shows.append(at_most(f"live: p99 delay of {OURS} over {rival}", tail, 0.999))
    every = [fate for found in fates.values() for fate in found]
    shows.append(at_most("live: requests lost", sum(not fate.answers for fate in every), 0))
    shows.append(at_most("live: requests answered twice", sum(_twice(found) for found in fates.values()), 0))
    pictures = [{answer for fate in same for answer in fate.answers} for same in zip(*fates.values(), strict=True)]
    differ = sum(len(each) > 1 for each in pictures)
    shows.append(at_most("live: pictures that differ by the edge that drew them", differ, 0))
    return shows


def _twice(found: list[Fate]) -> int:
    return sum(fate.sent > 1 for fate in found)


def _mean(found: list[Fate]) -> float:
    return float(np.mean([fate.delay_s for fate in found]))


def _p99(found: list[Fate]) -> float:
    return float(np.percentile([fate.delay_s for fate in found], 99))


class Edges:
    """The four edges, each a process that can be killed and started again in its place."""

    def __init__(self, context: Any, sites: list[Site]) -> None:
        self.context, self.sites = context, sites
        self.urls = [site.url for site in sites]
        self.rule = OURS
        self.processes = [self._started(site) for site in sites]

    def _started(self, site: Site) -> Any:
        process = self.context.Process(target=_serve, args=(site, self.rule), daemon=True)
        process.start()
        return process

    def choose(self, rule: str) -> None:
        """Go by this rule, once all edges are up and know of each other."""
        self.rule = rule
        self.wait()
        with httpx.Client(trust_env=False, timeout=30) as http:
            for url in self.urls:
                http.post(f"{url}/benchmark/{rule}").raise_for_status()

    def wait(self) -> None:
        """Until every edge answers and holds all others for healthy, or START_S has passed."""
        deadline = time.monotonic() + START_S
        with httpx.Client(trust_env=False, timeout=10) as http:
            for url, process in zip(self.urls, self.processes, strict=True):
                while not _sees_all(http, url, len(self.urls)):
                    if time.monotonic() > deadline or not process.is_alive():
                        raise RuntimeError(f"the edge at {url} did not come up")
                    time.sleep(0.2)

    def pictures_per_s(self, warm: int) -> float:
        """Pictures of mixed steps that all edges can draw a second, by the speeds they have measured of themselves."""
        self.wait()
        for url in self.urls:
            _send_warm(url, warm)
        with httpx.Client(trust_env=False, timeout=30) as http:
            reports = [http.get(f"{url}/v1/peers/report").raise_for_status().json() for url in self.urls]
        steps = float(np.mean(MIXED_STEPS))
        return sum(1 / (steps * each["models"][MODELS[0]]["row_s"] + CALLS * each["call_s"]) for each in reports)

    async def accident(self, at_s: float) -> None:
        """Kill an edge after so many seconds, and start it again."""
        await asyncio.sleep(at_s)
        self.processes[VICTIM].kill()
        await asyncio.to_thread(self.processes[VICTIM].join)
        await asyncio.sleep(DOWN_S)
        self.processes[VICTIM] = await asyncio.to_thread(self._started, self.sites[VICTIM])

    def answered(self) -> Counter[int]:
        """How often each request was answered since this was last asked, as the edges wrote it down."""
        found: Counter[int] = Counter()
        for path in (Path(site.answer_log) for site in self.sites):
            if path.exists():
                found.update(map(int, path.read_text().split()))
                os.truncate(path, 0)
        return found

    def close(self) -> None:
        """End them."""
        for process in self.processes:
            process.kill()
            process.join()


@contextmanager
def running_edges(scratch: Path) -> Iterator[Edges]:
    """The four edges, their models in `scratch`; forked from a process that has imported what they need."""
    from fedkd.serving.loopback import free_port

    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["fedkd.models.pipeline", MODULE])  # the first silences notices of the second
    maker = context.Process(target=_make, args=(str(scratch),))
    maker.start()
    maker.join()
    ports = [free_port() for _ in ROW_S]
    urls = tuple(f"http://127.0.0.1:{port}" for port in ports)
    edges = Edges(context, [_site(place, port, urls, scratch) for place, port in enumerate(ports)])
    try:
        yield edges
    finally:
        edges.close()


def _site(place: int, port: int, urls: tuple[str, ...], scratch: Path) -> Site:
    # All hold the model that is asked for most; of the others each is held by every second edge.
    held = tuple(name for number, name in enumerate(MODELS) if number == 0 or (number + place) % 2 == 0)
    models = {name: str(scratch / name) for name in MODELS}
    return Site(port, urls, models, held, ROW_S[place], FETCH_S, MAX_WAITING, str(scratch / f"answered-{place}"))


def _make(root: str) -> None:
    from fedkd.cli.benchmarks.dispatch_live_edge import make_models

    make_models(root, MODELS)


def _serve(site: Site, rule: str) -> None:
    from fedkd.cli.benchmarks.dispatch_live_edge import serve

    serve(site, rule)


def _send_warm(url: str, count: int) -> None:
    with httpx.Client(trust_env=False, timeout=120) as http:
        for number in range(count):
            body = {"prompt": "a", "seed": number, "num_inference_steps": 4, "guidance_scale": 1.0}
            http.post(f"{url}/v1/images/generations", json=body, headers={"X-Fedkd-Forward": "here"}).raise_for_status()


def _sees_all(http: httpx.Client, url: str, count: int) -> bool:
    try:
        data = http.get(f"{url}/v1/peers").raise_for_status().json()["data"]
    except httpx.HTTPError:
        return False
    return len(data) == count and all(each["healthy"] for each in data)
