"""Junk for an edge: requests made by schemathesis from its own OpenAPI description, and damaged hand-offs."""

from __future__ import annotations

import importlib.util
import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import httpx
import requests

from fedkd.cli.benchmarks.soak_answers import note_of
from fedkd.cli.benchmarks.soak_edge import SoakEdge
from fedkd.cli.benchmarks.soak_reference import CATALOGUE
from fedkd.recipe import RecipeError

HOLDER = "junk"
SAFETENSORS = "application/x-safetensors"
SENDERS = 6
GIVE_UP_S = 3.0  # then the client goes away, as junk's clients do
HAND_OFF_SHARE = 0.1
ROUND = 200  # requests for one operation in one mode, at a time


@dataclass
class JunkTally:
    """What junk was answered; `failed` are answers 5xx (but 504 for a deadline), `untrue` what OpenAPI does not say."""

    sent: int = 0
    statuses: Counter[str] = field(default_factory=Counter)
    operations: Counter[str] = field(default_factory=Counter)
    given_up: int = 0
    failed: list[str] = field(default_factory=list)
    untyped: list[str] = field(default_factory=list)
    untrue: Counter[str] = field(default_factory=Counter)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, what: str, answer: Any) -> None:
        """Count one answer (of requests or httpx); None where the client gave up."""
        with self._lock:
            self.sent += 1
            self.operations[what] += 1
            if answer is None:
                self.given_up += 1
                return
            self.statuses[str(answer.status_code)] += 1
            error = error_of(answer)
            late = answer.status_code == 504 and error.get("code") == "deadline_exceeded"
            if answer.status_code >= 500 and not late:
                self.failed.append(note_of(f"{what}: {answer.status_code} {answer.text}"))
            if answer.status_code >= 400 and set(error) != {"message", "type", "param", "code"}:
                self.untyped.append(note_of(f"{what}: {answer.status_code} {answer.text}"))

    def doubt(self, reason: str) -> None:
        """Count an answer that is not as the edge describes itself."""
        with self._lock:
            self.untrue[reason] += 1


def error_of(answer: Any) -> dict[str, Any]:
    """The error in OpenAI's form that an answer is; {} when it is none."""
    try:
        error = answer.json()["error"]
    except (ValueError, KeyError, TypeError):
        return {}
    return error if isinstance(error, dict) else {}


def check_schemathesis() -> None:
    """RecipeError when schemathesis is not installed."""
    if not importlib.util.find_spec("schemathesis"):
        raise RecipeError("junk requests need schemathesis; `pip install schemathesis`, or give junk=0")


def junk(edge: SoakEdge, count: int, seed: int, say: Callable[[str], None]) -> JunkTally:
    """Send `count` requests: nine of ten from the OpenAPI description, in and out of its rules, one a hand-off."""
    tally = JunkTally()
    damaged = int(HAND_OFF_SHARE * count)
    described(edge, count - damaged, seed, tally, say)
    hand_offs(edge, damaged, seed, tally)
    return tally


def described(edge: SoakEdge, count: int, seed: int, tally: JunkTally, say: Callable[[str], None]) -> None:
    """Requests that schemathesis makes for each operation in turn, valid ones and such that break a rule."""
    import schemathesis
    from schemathesis import GenerationMode
    from schemathesis.core.result import Ok

    _teach_hand_offs(edge)
    schema = schemathesis.openapi.from_url(f"{edge.url}/openapi.json", headers=edge.headers(HOLDER))
    operations = [found.ok() for found in schema.get_all_operations() if isinstance(found, Ok)]
    left = [(operation, mode) for operation in operations for mode in GenerationMode]
    gate = threading.BoundedSemaphore(2 * SENDERS)
    rounds = 0
    with ThreadPoolExecutor(SENDERS) as senders:
        while tally.sent < count and left:
            for operation, mode in list(left):
                share = min(ROUND, max(1, (count - tally.sent) // len(left)))
                cases = list(_cases(operation, mode, share, seed + rounds))
                if len(cases) < share // 2:  # little can be varied here, so once is enough
                    left.remove((operation, mode))
                for case in cases[: max(0, count - tally.sent)]:
                    gate.acquire()
                    senders.submit(_send, case, edge, tally).add_done_callback(lambda _: gate.release())
            rounds += 1
            say(f"junk: {tally.sent} of {count} requests sent")


def _teach_hand_offs(edge: SoakEdge) -> None:
    """Tell schemathesis what a hand-off's bytes are like: any bytes, or a real one with something wrong in it."""
    import schemathesis
    from hypothesis import strategies

    body = {**CATALOGUE[0].body, "device_steps": 1}
    opened = httpx.post(f"{edge.url}/v1/sessions", json=body, headers=edge.headers(HOLDER), trust_env=False)
    wrong = strategies.integers(0, 2**32).map(lambda seed: damaged(random.Random(seed), opened.content))
    schemathesis.openapi.media_type(SAFETENSORS, strategies.binary(max_size=2000) | wrong)

    @schemathesis.serializer(SAFETENSORS)
    def as_it_is(_: Any, value: Any) -> bytes:
        return value if isinstance(value, bytes) else repr(value).encode()


def _cases(operation: Any, mode: Any, count: int, seed: int) -> Iterator[Any]:
    """So many requests for one operation, fewer where there are no more; none where the mode does not apply."""
    import hypothesis
    from hypothesis import HealthCheck, Phase, given, settings
    from hypothesis.errors import HypothesisException

    made: list[Any] = []

    @hypothesis.seed(seed)
    @settings(
        max_examples=count,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def collect(case: Any) -> None:
        made.append(case)

    with suppress(HypothesisException):
        collect()
    return iter(made)


def _send(case: Any, edge: SoakEdge, tally: JunkTally) -> None:
    from schemathesis.checks import CHECKS

    what = f"{case.method} {case.operation.path}"
    try:
        answer = case.call(base_url=edge.url, headers=edge.headers(HOLDER), timeout=GIVE_UP_S)
    except requests.RequestException:
        tally.add(what, None)
        return
    except Exception as error:  # schemathesis made something that cannot be sent
        tally.doubt(f"not sent: {type(error).__name__}")
        return
    tally.add(what, answer)
    wanted = ("status_code_conformance", "content_type_conformance", "response_schema_conformance")
    for check in CHECKS.get_by_names(list(wanted)):
        try:
            case.validate_response(answer, checks=[check])
        except BaseException as error:
            title = str(getattr(error, "exceptions", [error])[0]).strip().splitlines()[0]
            tally.doubt(f"{what}: {answer.status_code}: {title[:120]}")


def hand_offs(edge: SoakEdge, count: int, seed: int, tally: JunkTally) -> None:
    """Sessions that are really open, and hand-offs for them with bytes changed, cut, added or exchanged."""
    dice = random.Random(seed)
    with httpx.Client(base_url=edge.url, headers=edge.headers(HOLDER), timeout=GIVE_UP_S, trust_env=False) as http:
        location, good = "", b""
        for place in range(count):
            if place % 20 == 0 or not location:
                body = {**CATALOGUE[place % len(CATALOGUE)].body, "device_steps": dice.randint(0, 4)}
                opened = _post(http, "/v1/sessions", "POST /v1/sessions", tally, json=body)
                if opened is not None and opened.status_code == 201:
                    location, good = opened.headers["location"], opened.content
                continue
            path = f"{location}/handoff" if dice.random() < 0.7 else "/v1/sessions/resume?device_steps=1"
            answer = _post(http, path, "a damaged hand-off", tally, content=damaged(dice, good))
            if answer is not None and answer.status_code in (200, 404):  # it was taken: its session is over
                location = ""


def _post(http: httpx.Client, path: str, what: str, tally: JunkTally, **content: Any) -> httpx.Response | None:
    """A request that counts; None when the client gave up."""
    answer = None
    with suppress(httpx.HTTPError):
        answer = http.post(path, **content)
    tally.add(what, answer)
    return answer


def damaged(dice: random.Random, good: bytes) -> bytes:
    """A hand-off with something wrong in it."""
    data = bytearray(good)
    match dice.randrange(6):
        case 0:  # in the header, mostly
            data[dice.randrange(min(2000, len(data)))] ^= 1 << dice.randrange(8)
        case 1:
            for _ in range(dice.randint(1, 100)):
                data[dice.randrange(len(data))] = dice.randrange(256)
        case 2:
            del data[dice.randrange(len(data)) :]
        case 3:
            data += dice.randbytes(dice.randint(1, 1000))
        case 4:
            data[:8] = dice.randrange(1 << 63).to_bytes(8, "little")
        case _:
            words = (b"F32", b"latents", b"DDIMScheduler", b'"step"', b"generator", b"0")
            data = data.replace(dice.choice(words), dice.choice((b"F16", b"I64", b"XXXX", b"-1", b"1e999", b"null")))
    return bytes(data)
