"""A client whose pictures shall not suffer from what others send: it draws the same few, exactly, over and over."""

from __future__ import annotations

import base64
import threading
import time
from dataclasses import dataclass, field

import httpx

from fedkd.cli.benchmarks.soak_answers import Refused, note_of, opened
from fedkd.cli.benchmarks.soak_edge import SoakEdge
from fedkd.cli.benchmarks.soak_reference import CATALOGUE, References

HOLDER = "bystander"
PAUSE_S = 0.2


@dataclass
class Bystander:
    """Draws as long as the block runs; every picture has to be that of diffusers, byte for byte."""

    edge: SoakEdge
    references: References
    pictures: int = 0
    busy: int = 0
    disturbed: list[str] = field(default_factory=list)
    latencies_s: list[float] = field(default_factory=list)

    def __enter__(self) -> Bystander:
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._live, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _live(self) -> None:
        headers, place = self.edge.headers(HOLDER), 0
        folder = self.edge.folders[self.edge.versions[-1]]
        with httpx.Client(base_url=self.edge.url, headers=headers, timeout=120, trust_env=False) as http:
            while not self._over.wait(PAUSE_S):
                drawn, place = CATALOGUE[place % len(CATALOGUE)], place + 1
                began = time.perf_counter()
                try:
                    answer = http.post("/v1/images/generations", json={**drawn.body, "exact": True})
                    if answer.status_code == 429:
                        self.busy += 1
                        self._over.wait(float(answer.headers["retry-after"]))
                        continue
                    if answer.status_code != 200:
                        raise Refused(f"{answer.status_code} {answer.text}")
                    self.latencies_s.append(time.perf_counter() - began)
                    image = opened(base64.b64decode(answer.json()["data"][0]["b64_json"]))
                    if not self.references.is_right(image, [folder], drawn, exact=True):
                        raise Refused(f"another picture than {drawn}")
                    self.pictures += 1
                except (Refused, httpx.HTTPError) as error:
                    self.disturbed.append(note_of(f"{type(error).__name__}: {error}"))
