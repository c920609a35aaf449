"""Split sessions: followed, cancelled, given up, taken over from another edge, and nobody else's."""

from __future__ import annotations

import io
import json
import secrets
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from PIL import Image
from safetensors.torch import load

from fedkd.inference.denoiser import take_up
from fedkd.inference.handoff import HandOff
from fedkd.serving.edge import create_app
from tests.serving.running import error_of, running, stepped, until

SLOW = {"prompt": "a seven", "num_inference_steps": 1000, "order": "edge_first"}
SMALL = {"prompt": "a seven", "num_inference_steps": 4, "device_steps": 2, "seed": 3}


@pytest.fixture(scope="module")
def app(tiny_folder: Path) -> Any:
    return create_app(str(tiny_folder), name="tiny")


@pytest.fixture(scope="module")
def http(app: Any) -> Iterator[httpx.Client]:
    with running(app) as client:
        yield client


@pytest.fixture(autouse=True)
def nothing_is_left(app: Any) -> Iterator[None]:
    """After each test the edge has no session and no job."""
    yield
    app.state.edge.steps.call(lambda: None).result()
    assert until(lambda: len(app.state.edge.sessions) == 0)
    assert until(lambda: not any(served.users for served, _ in app.state.edge.models.users()))
    assert until(lambda: app.state.edge.steps.stats()["running"] + app.state.edge.steps.stats()["waiting"] == 0)


@pytest.fixture(scope="module")
def expected(tiny_pipeline: Any) -> bytes:
    made = tiny_pipeline(
        "a seven", num_inference_steps=4, guidance_scale=2.0, generator=torch.Generator().manual_seed(3)
    )
    return made.images[0].tobytes()


def events_of(http: httpx.Client, session: str, **query: Any) -> list[tuple[str, dict[str, Any]]]:
    """All events of a session, until it ends."""
    found, event = [], ""
    with http.stream("GET", f"/v1/sessions/{session}/events", params=query) as answer:
        assert answer.status_code == 200 and answer.headers["content-type"].startswith("text/event-stream")
        for line in answer.iter_lines():
            if line.startswith("event: "):
                event = line[7:]
            elif line.startswith("data: "):
                found.append((event, json.loads(line[6:])))
    return found


class Behind(threading.Thread):
    """A call in a thread of its own, and what it answered."""

    def __init__(self, work: Any) -> None:
        super().__init__()
        self.work, self.answer = work, None
        self.start()

    def run(self) -> None:
        self.answer = self.work()

    def result(self) -> Any:
        self.join(60)
        return self.answer


def test_progress_and_previews_are_followed_over_both_parts_of_the_edge(
    http: httpx.Client, tiny_pipeline: Any, expected: bytes
) -> None:
    name = secrets.token_hex(16)
    following = Behind(lambda: events_of(http, name, previews=1, wait_s=10))
    session = http.post("/v1/sessions", json=SMALL | {"order": "edge_first", "id": name})
    assert session.status_code == 201 and session.headers["X-Fedkd-Session"] == name
    ended = http.post(f"/v1/sessions/{name}/handoff", content=stepped(tiny_pipeline, session.content, 2))
    assert Image.open(io.BytesIO(ended.content)).tobytes() == expected
    events = following.result()
    progress = [data for event, data in events if event == "session.progress"]
    assert progress[-1] == {"step": 2, "total": 4, "by": "edge"}
    previews = [data for event, data in events if event == "session.preview"]
    for data in previews:
        import base64

        assert Image.open(io.BytesIO(base64.b64decode(data["b64_png"]))).size == (32, 32)
    assert events[-1] == ("session.ended", {"status": "finished", "step": 4, "total": 4})


def test_closing_a_session_cancels_its_running_work(app: Any, http: httpx.Client) -> None:
    name = secrets.token_hex(16)
    opening = Behind(lambda: http.post("/v1/sessions", json=SLOW | {"id": name}))
    following = Behind(lambda: events_of(http, name, wait_s=10, previews=5))
    calls = app.state.edge.steps.stats()["calls"]
    assert until(lambda: app.state.edge.steps.stats()["calls"] >= calls + 3)  # the prompt, and previews
    assert http.post(f"/v1/sessions/{name}/handoff", content=b"x").json()["error"]["code"] == "session_busy"
    assert http.delete(f"/v1/sessions/{name}").status_code == 204
    assert opening.result().status_code == 409 and error_of(opening.result())["code"] == "cancelled"
    assert following.result()[-1] == ("session.ended", {"status": "closed"})
    assert "session.preview" in {event for event, _ in following.result()}
    assert http.delete(f"/v1/sessions/{name}").status_code == 404


@pytest.mark.parametrize("path", ["/v1/sessions", "/v1/images/generations"])
def test_a_client_that_goes_away_ends_its_work(app: Any, http: httpx.Client, path: str) -> None:
    cancelled = app.state.edge.steps.stats()["cancelled"]
    plan = {name: value for name, value in SLOW.items() if name != "order" or path == "/v1/sessions"}
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{http.base_url}{path}", json=plan, timeout=0.3, trust_env=False)
    assert until(lambda: app.state.edge.steps.stats()["cancelled"] == cancelled + 1)


def test_a_stream_that_nobody_reads_any_more_ends_its_work(app: Any, http: httpx.Client) -> None:
    cancelled = app.state.edge.steps.stats()["cancelled"]
    plan = {"prompt": "a", "num_inference_steps": 1000, "stream": True, "n": 2}
    with http.stream("POST", "/v1/images/generations", json=plan) as answer:
        assert answer.status_code == 200
        assert until(lambda: app.state.edge.steps.stats()["running"])
    assert until(lambda: app.state.edge.steps.stats()["cancelled"] == cancelled + 2)


def test_a_deadline_that_passes_is_said(http: httpx.Client) -> None:
    for path, plan in (
        ("/v1/sessions", SLOW),
        ("/v1/images/generations", {"prompt": "a", "num_inference_steps": 1000}),
    ):
        late = http.post(path, json=plan | {"deadline_s": 0.05})
        assert late.status_code == 504 and error_of(late)["code"] == "deadline_exceeded"


@pytest.mark.parametrize("done", [0, 1, 2])
def test_a_second_edge_takes_over_where_the_first_one_died(
    tiny_folder: Path, http: httpx.Client, tiny_pipeline: Any, expected: bytes, done: int
) -> None:
    with running(create_app(str(tiny_folder), name="first")) as first:
        session = first.post("/v1/sessions", json=SMALL | {"exact": True})
    with_conditions = stepped(tiny_pipeline, session.content, done, with_conditions=True)
    query = {"device_steps": 2, "exact": True}
    resumed = http.post("/v1/sessions/resume", params=query, content=with_conditions)
    assert resumed.status_code == 201, resumed.text
    conditions = take_up(HandOff.from_bytes(session.content)).conditions
    assert (HandOff.from_bytes(resumed.content).conditions is None) == (done == 2)
    data = stepped(tiny_pipeline, resumed.content, 2 - done, conditions=conditions)
    ended = http.post(f"{resumed.headers['Location']}/handoff", content=data)
    assert Image.open(io.BytesIO(ended.content)).tobytes() == expected
    assert ended.headers["X-Fedkd-Exact"] == "true"


def test_an_edge_first_picture_is_taken_over_too(http: httpx.Client, tiny_pipeline: Any, expected: bytes) -> None:
    session = http.post("/v1/sessions", json=SMALL | {"device_steps": 4, "exact": True})
    begun = stepped(tiny_pipeline, session.content, 1, with_conditions=True)
    http.delete(session.headers["Location"])
    resumed = http.post(
        "/v1/sessions/resume", params={"device_steps": 1, "order": "edge_first", "exact": True}, content=begun
    )
    assert resumed.status_code == 201 and HandOff.from_bytes(resumed.content).step == 3
    data = stepped(tiny_pipeline, resumed.content, 1)
    ended = http.post(f"{resumed.headers['Location']}/handoff", params={"result": "both"}, content=data)
    found = load(ended.content)
    assert Image.open(io.BytesIO(found["png"].numpy().tobytes())).tobytes() == expected
    assert found["latents"].shape == (1, 4, 8, 8)


def test_what_cannot_be_resumed_is_refused(http: httpx.Client, tiny_pipeline: Any) -> None:
    session = http.post("/v1/sessions", json=SMALL)
    http.delete(session.headers["Location"])
    found = HandOff.from_bytes(session.content)
    assert found.conditions is not None

    def refused(data: bytes, status: int, said: str, **query: Any) -> None:
        answer = http.post("/v1/sessions/resume", params={"device_steps": 2} | query, content=data)
        assert answer.status_code == status, answer.text
        assert said in error_of(answer)["message"]

    from dataclasses import replace

    states = found.conditions["encoder_hidden_states"]
    refused(b"", 400, "malformed")
    refused(b"x" * 100, 400, "malformed")
    refused(replace(found, conditions=None).to_bytes(), 400, "no conditions")
    refused(replace(found, conditions={"encoder_hidden_states": states[:, :3]}).to_bytes(), 400, "shapes")
    refused(replace(found, conditions={"encoder_hidden_states": states[:1]}).to_bytes(), 400, "2 rows")
    refused(replace(found, model="0" * 64).to_bytes(), 404, "no model of digest")
    refused(replace(found, latents=torch.zeros(1, 4, 16, 16)).to_bytes(), 400, "shape")
    refused(stepped(tiny_pipeline, session.content, 3, with_conditions=True), 400, "stands at step 3")
    refused(session.content, 422, "device_steps=9 is more", device_steps=9)
    refused(session.content, 422, "device_steps", device_steps=-1)
    refused(session.content, 422, "order", order="both")


def test_latents_travel_in_a_lossy_form_when_asked_for_and_the_answer_says_so(
    http: httpx.Client, tiny_pipeline: Any
) -> None:
    session = http.post("/v1/sessions", json=SMALL | {"wire": "uint8"})
    assert HandOff.from_bytes(session.content).form == "uint8"
    data = stepped(tiny_pipeline, session.content, 2)
    ended = http.post(f"{session.headers['Location']}/handoff", content=data)
    assert ended.status_code == 200 and ended.headers["X-Fedkd-Exact"] == "false"


def test_an_id_is_taken_once(http: httpx.Client) -> None:
    name = secrets.token_hex(16)
    assert http.post("/v1/sessions", json=SMALL | {"id": name}).status_code == 201
    again = http.post("/v1/sessions", json=SMALL | {"id": name})
    assert again.status_code == 409 and error_of(again)["code"] == "id_taken"
    assert http.post("/v1/sessions", json=SMALL | {"id": "mine"}).status_code == 422
    assert http.delete(f"/v1/sessions/{name}").status_code == 204


def test_a_stolen_session_is_not_there_for_another_token(tiny_folder: Path, tmp_path: Path) -> None:
    tokens = tmp_path / "tokens.yaml"
    tokens.write_text("tokens: [{name: ann, token: a}, {name: bob, token: b}]")
    with running(create_app(str(tiny_folder), tokens=str(tokens))) as http:
        ann, bob = ({"Authorization": f"Bearer {token}"} for token in "ab")
        place = http.post("/v1/sessions", json=SMALL, headers=ann).headers["Location"]
        for method, path in (("POST", f"{place}/handoff"), ("GET", f"{place}/events?wait_s=0"), ("DELETE", place)):
            answer = http.request(method, path, headers=bob, content=b"x" if method == "POST" else None)
            assert answer.status_code == 404 and error_of(answer)["code"] == "session_not_found"
        assert http.delete(place, headers=ann).status_code == 204


def test_a_session_nobody_comes_back_to_expires_by_itself(tiny_folder: Path) -> None:
    app = create_app(str(tiny_folder), session_lifetime_s=0.1)
    with running(app) as http:
        assert http.post("/v1/sessions", json=SMALL).status_code == 201
        assert until(lambda: not app.state.edge.sessions._sessions)
        assert not app.state.edge.models.users()[0][1]
        assert 'fedkd_sessions_total{outcome="expired"} 1.0' in http.get("/metrics").text


def test_a_full_edge_says_when_to_come_again_and_goes_on(tiny_folder: Path) -> None:
    app = create_app(str(tiny_folder), max_waiting=1)
    with running(app) as http:
        slow = [Behind(lambda: http.post("/v1/sessions", json=SLOW | {"num_inference_steps": 200})) for _ in range(4)]
        assert until(lambda: app.state.edge.steps.stats()["busy"] or any(each.answer for each in slow))
        answers = [each.result() for each in slow]
        refused = [each for each in answers if each.status_code == 429]
        assert refused and all(int(each.headers["Retry-After"]) >= 1 for each in refused)
        assert {error_of(each)["code"] for each in refused} == {"busy"}
        assert any(each.status_code == 201 for each in answers)
