"""Several edges: any of them takes a request, one of them draws it, and the client sees one answer."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from fedkd.serving.device import EdgeClient
from fedkd.serving.edge import create_app
from fedkd.serving.loopback import free_port
from tests.serving.edges import AFTER, BEFORE, HALFWAY, Relay, relay
from tests.serving.running import error_of, running, stepped, until

IMAGES = "/v1/images/generations"
# `exact`: what an earlier test broke off may still be in an engine, and shared forwards round differently
ASKED = {"prompt": "a seven", "seed": 3, "num_inference_steps": 3, "exact": True}
SLOW = {"prompt": "a seven", "num_inference_steps": 1000}
OPEN = {"prompt": "a seven", "num_inference_steps": 4, "device_steps": 2, "seed": 3, "exact": True}


class Running:
    """An edge of a test: its app, its client, and what the others call it."""

    def __init__(self, app: Any, http: httpx.Client) -> None:
        self.app, self.http, self.url = app, http, str(http.base_url).rstrip("/")
        self.cluster = app.state.edge.cluster

    def drawn(self) -> float:
        """Pictures decoded here."""
        return sum(
            sample.value
            for metric in self.app.state.edge.metrics.pictures.collect()
            for sample in metric.samples
            if sample.name.endswith("_total")
        )

    def knows(self, *urls: str) -> bool:
        """Whether these peers are healthy, as far as this edge knows."""
        return {peer.url for peer in self.cluster.peers if peer.healthy} >= set(urls)


@contextmanager
def edge(folder: Path | dict[str, Any], peers: list[str], *, port: int = 0, **settings: Any) -> Iterator[Running]:
    """An edge that serves the tiny model (or several, by name) beside `peers`."""
    port = port or free_port()
    models = folder if isinstance(folder, dict) else {"tiny": str(folder)}
    given = {"num_inference_steps": 3, "gossip_s": 0.05, "dispatch": "round-robin", **settings}
    app = create_app(models=models, peers=peers, url=f"http://127.0.0.1:{port}", **given)
    with running(app, port=port) as http:
        yield Running(app, http)


@contextmanager
def edges(folder: Any, count: int, **settings: Any) -> Iterator[list[Running]]:
    """Edges that all know each other; each was given the whole list, itself included."""
    ports = [free_port() for _ in range(count)]
    urls = [f"http://127.0.0.1:{port}" for port in ports]
    with ExitStack() as stack:
        found = [stack.enter_context(edge(folder, urls, port=port, **settings)) for port in ports]
        for each in found:
            assert until(lambda each=each: each.knows(*(url for url in urls if url != each.url)))
        yield found


@pytest.fixture(scope="module")
def pair(tiny_folder: Path) -> Iterator[list[Running]]:
    with edges(tiny_folder, 2) as found:
        yield found


@pytest.fixture(scope="module")
def behind(tiny_folder: Path) -> Iterator[Running]:
    """An edge that draws all it is asked for itself, to be known through a relay."""
    with edge(tiny_folder, ["http://127.0.0.1:9"], dispatch="local") as found:
        yield found


@contextmanager
def beside(behind: Running, folder: Any, **settings: Any) -> Iterator[tuple[Running, Relay]]:
    """An edge whose only peer is a relay to `behind`, and the first that it asks."""
    with relay(behind.url, **settings) as between, edge(folder, [between.url]) as front:
        assert until(lambda: front.knows(between.url))
        yield front, between


class Cable:
    """A way to the edge at `upstream` that is cut, once, after an answer's first `marker`."""

    def __init__(self, upstream: str, marker: bytes) -> None:
        self.port, self.marker, self.cut = int(upstream.rpartition(":")[2]), marker, False
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = socket.create_connection(("127.0.0.1", self.port))
                for ends in ((near, far), (far, near)):
                    threading.Thread(target=self._carry, args=ends, daemon=True).start()

    def _carry(self, source: socket.socket, to: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                to.sendall(data)
                if self.marker in data and not self.cut:
                    self.cut = True
                    break
        for end in (source, to):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Carry nothing any more."""
        self._listener.close()


def test_any_edge_takes_a_request_and_the_picture_is_the_same_wherever_it_is_drawn(pair: list[Running]) -> None:
    first, second = pair
    before = [each.drawn() for each in pair]
    answers = [first.http.post(IMAGES, json=ASKED).raise_for_status() for _ in range(4)]
    assert [answer.headers["X-Fedkd-Edge"] for answer in answers].count(second.url) == 2
    assert len({answer.json()["data"][0]["b64_json"] for answer in answers}) == 1
    assert [each.drawn() - was for each, was in zip(pair, before, strict=True)] == [2, 2]


def test_what_was_sent_on_once_is_drawn_where_it_lands(pair: list[Running]) -> None:
    before = pair[1].drawn()
    for _ in range(3):
        answer = pair[1].http.post(IMAGES, json=ASKED, headers={"X-Fedkd-Hop": pair[0].url})
        assert answer.status_code == 200 and "X-Fedkd-Edge" not in answer.headers
    assert pair[1].drawn() - before == 3


def test_a_client_may_be_told_where_to_ask_instead(pair: list[Running]) -> None:
    answers = [pair[0].http.post(IMAGES, json=ASKED, headers={"X-Fedkd-Forward": "redirect"}) for _ in range(2)]
    assert sorted(answer.status_code for answer in answers) == [200, 307]
    (told,) = (answer for answer in answers if answer.status_code == 307)
    assert told.headers["Location"].startswith(pair[1].url)
    for _ in range(2):  # by turns it would be sent back
        assert httpx.post(told.headers["Location"], json=ASKED, trust_env=False).status_code == 200


def test_a_picture_is_streamed_through_another_edge(pair: list[Running]) -> None:
    streams = []
    for _ in range(2):
        with pair[0].http.stream("POST", IMAGES, json=ASKED | {"stream": True, "partial_images": 2}) as answer:
            assert answer.headers["content-type"].startswith("text/event-stream")
            lines = [line for line in answer.iter_lines() if line.startswith("data: ")]
            streams.append((answer.headers["X-Fedkd-Edge"], [json.loads(line[6:])["b64_json"] for line in lines]))
    assert {url for url, _ in streams} == {each.url for each in pair}
    assert streams[0][1] == streams[1][1] and len(streams[0][1]) == 3


def test_a_stream_that_breaks_off_goes_on_at_another_edge(behind: Running, tiny_folder: Path) -> None:
    asked = ASKED | {"stream": True, "partial_images": 2, "num_inference_steps": 40}
    cable = Cable(behind.url, b"partial_image")
    with closing(cable), edge(tiny_folder, [cable.url]) as front:
        assert until(lambda: front.knows(cable.url))
        streams = []
        for _ in range(2):  # by turns: once here, once there and here
            with front.http.stream("POST", IMAGES, json=asked) as answer:
                lines = [line for line in answer.iter_lines() if line.startswith("data: ")]
            streams.append([json.loads(line[6:])["b64_json"] for line in lines])
    assert cable.cut and streams[0] == streams[1] and len(streams[0]) == 3


def test_a_session_is_found_from_whichever_edge_is_asked(pair: list[Running], tiny_pipeline: Any) -> None:
    pictures = []
    for first in pair:
        for _ in range(2):
            opened = first.http.post("/v1/sessions", json=OPEN)
            assert opened.status_code == 201
            path = opened.headers["Location"]
            back = stepped(tiny_pipeline, opened.content, 2)
            for other in pair:
                busy = other.http.post(f"{path}/handoff", content=b"junk")
                assert error_of(busy)["code"] == "hand_off_refused"
            pictures.append(pair[1].http.post(f"{path}/handoff", content=back).raise_for_status().content)
            assert error_of(pair[0].http.delete(path))["code"] == "session_not_found"
    assert len(set(pictures)) == 1


def test_a_session_that_runs_elsewhere_is_followed_and_closed(pair: list[Running]) -> None:
    for place in range(2):  # by turns: once here, once there
        name, heard = f"{place:032x}", []

        def follow(name: str = name, heard: list[str] = heard) -> None:
            with pair[1].http.stream("GET", f"/v1/sessions/{name}/events", params={"wait_s": 20}) as answer:
                heard.extend(line for line in answer.iter_lines() if line.startswith("event: "))

        follower = threading.Thread(target=follow)
        follower.start()
        asked = OPEN | {"id": name, "num_inference_steps": 1000, "order": "edge_first"}
        opening = threading.Thread(target=lambda asked=asked: pair[0].http.post("/v1/sessions", json=asked))
        opening.start()
        assert until(lambda heard=heard: len(heard) > 2)
        assert pair[0].http.delete(f"/v1/sessions/{name}").status_code == 204
        follower.join(20)
        opening.join(20)
        assert heard[-1] == "event: session.ended"


def test_a_client_that_leaves_ends_the_work_at_the_other_edge(pair: list[Running]) -> None:
    for _ in range(2):
        with pytest.raises(httpx.ReadTimeout):
            pair[0].http.post(IMAGES, json=SLOW, timeout=0.4)
    for each in pair:
        assert until(lambda each=each: not each.app.state.edge.steps.backlog())


@pytest.mark.parametrize("when", [BEFORE, AFTER, HALFWAY])
def test_a_request_whose_edge_dies_is_answered_once_by_another(behind: Running, tiny_folder: Path, when: str) -> None:
    with beside(behind, tiny_folder, dies_at=f"POST {IMAGES}", when=when) as (front, between):
        answers = [front.http.post(IMAGES, json={"prompt": "a seven"}) for _ in range(3)]
        assert [answer.status_code for answer in answers] == [200] * 3
        assert {answer.headers["X-Fedkd-Edge"] for answer in answers} == {front.url}
        assert sum(IMAGES in line for line in between.seen) == 1
        assert not front.knows(between.url)


def test_an_edge_that_does_not_answer_gets_nothing_until_it_does(tiny_folder: Path) -> None:
    port = free_port()
    with edge(tiny_folder, [f"http://127.0.0.1:{port}"]) as front:
        url = front.url
        assert {front.http.post(IMAGES, json=ASKED).headers["X-Fedkd-Edge"] for _ in range(2)} == {url}
        with edge(tiny_folder, [url], port=port) as late:
            assert until(lambda: front.knows(late.url))
            assert len({front.http.post(IMAGES, json=ASKED).headers["X-Fedkd-Edge"] for _ in range(2)}) == 2
        assert until(lambda: not front.knows(late.url))
        assert {front.http.post(IMAGES, json=ASKED).headers["X-Fedkd-Edge"] for _ in range(2)} == {url}
        metrics = front.http.get("/metrics").text
        assert f'fedkd_peer_healthy{{peer="http://127.0.0.1:{port}"}} 0.0' in metrics
        assert f'fedkd_forwarded_total{{outcome="answered",peer="http://127.0.0.1:{port}"}} 1.0' in metrics


def test_an_edge_without_room_leaves_a_request_to_another(behind: Running, tiny_folder: Path) -> None:
    full = (f"POST {IMAGES}", 429, {"Retry-After": "7"})
    with beside(behind, tiny_folder, refuses=(full,) * 9) as (front, between):
        answers = [front.http.post(IMAGES, json=ASKED) for _ in range(4)]
        assert {answer.headers["X-Fedkd-Edge"] for answer in answers} == {front.url}
        assert sum(IMAGES in line for line in between.seen) == 2
        front.app.state.edge.steps.close()  # takes nothing any more
        refused = [front.http.post(IMAGES, json=ASKED) for _ in range(2)]
        assert [answer.status_code for answer in refused] == [429] * 2
        assert {answer.headers["Retry-After"] for answer in refused} == {"1"}


def test_a_model_that_only_another_edge_serves_is_answered_here_too(tiny_folder: Path, tmp_path: Path) -> None:
    other = free_port()
    with edge(tiny_folder, [f"http://127.0.0.1:{other}"], dispatch="social") as front:
        both = {"tiny": str(tiny_folder), "small": str(_changed(tiny_folder, tmp_path / "small"))}
        with edge(both, [front.url], port=other, dispatch="social") as back:
            assert until(lambda: front.knows(back.url))
            assert [model["id"] for model in front.http.get("/v1/models").json()["data"]] == ["tiny", "small"]
            assert front.http.get("/v1/models/small").json()["id"] == "small"
            answer = front.http.post(IMAGES, json=ASKED | {"model": "small"}).raise_for_status()
            assert answer.headers["X-Fedkd-Edge"] == back.url
            with EdgeClient(front.url, cache_dir=tmp_path / "cache") as device:
                drawn = device.generate("a seven", model="small", device_steps=1, num_inference_steps=3, seed=3)
            assert drawn.device_steps == 1 and drawn.exact
            assert error_of(front.http.post(IMAGES, json=ASKED | {"model": "none"}))["code"] == "model_not_found"


def test_another_version_of_a_model_is_no_stand_in(tiny_folder: Path, tmp_path: Path) -> None:
    port = free_port()
    with (
        edge(tiny_folder, [f"http://127.0.0.1:{port}"]) as front,
        edge({"tiny": str(_changed(tiny_folder, tmp_path / "newer"))}, [front.url], port=port) as back,
    ):
        assert until(lambda: front.knows(back.url))
        assert {front.http.post(IMAGES, json=ASKED).headers["X-Fedkd-Edge"] for _ in range(2)} == {front.url}


def test_a_model_on_demand_is_fetched_where_that_is_best_and_another_gives_way(
    tiny_folder: Path, tmp_path: Path
) -> None:
    others = {name: str(_changed(tiny_folder, tmp_path / name)) for name in ("b", "c")}
    with edge(tiny_folder, [], on_demand=others) as found:
        assert [model["id"] for model in found.http.get("/v1/models").json()["data"]] == ["tiny", "b", "c"]
        for name in ("b", "c"):
            assert found.http.post(IMAGES, json=ASKED | {"model": name}).status_code == 200
            assert found.app.state.edge.models.names() == ["tiny", name]
        assert found.http.get("/v1/model", params={"model": "b"}).json()["name"] == "b"
    with edge(tiny_folder, [], on_demand={"b": str(tmp_path / "none")}) as found:
        assert error_of(found.http.post(IMAGES, json=ASKED | {"model": "b"}))["code"] == "not_fetched"


def test_edges_show_each_other_a_token_and_sessions_stay_their_owners(tiny_folder: Path, tmp_path: Path) -> None:
    book = tmp_path / "tokens.yaml"
    book.write_text("tokens: [{name: ann, token: a}, {name: bob, token: b}]")
    with edges(tiny_folder, 2, tokens=str(book), peer_token="p") as (first, second):
        ann, bob = ({"Authorization": f"Bearer {token}"} for token in "ab")
        assert first.http.post(IMAGES, json=ASKED).status_code == 401
        assert error_of(first.http.get("/v1/peers/report", headers=ann))["code"] == "not_a_peer"
        assert len({first.http.post(IMAGES, json=ASKED, headers=ann).headers["X-Fedkd-Edge"] for _ in range(2)}) == 2
        for _ in range(2):
            path = first.http.post("/v1/sessions", json=OPEN, headers=ann).headers["Location"]
            for each in (first, second):
                posing = bob | {"X-Fedkd-Owner": "ann"}
                assert error_of(each.http.delete(path, headers=posing))["code"] == "session_not_found"
                hopping = posing | {"X-Fedkd-Hop": "x"}
                assert error_of(each.http.delete(path, headers=hopping))["code"] == "session_not_found"
            assert second.http.delete(path, headers=ann).status_code == 204


def test_the_edges_are_listed_with_what_is_known_of_them(pair: list[Running]) -> None:
    data = pair[0].http.get("/v1/peers").json()["data"]
    assert [each["url"] for each in data] == [each.url for each in pair]
    assert all(each["healthy"] and each["models"] == ["tiny"] and each["flops_per_s"] > 0 for each in data)


def test_an_edge_alone_has_no_routes_for_others(tiny_folder: Path) -> None:
    with running(create_app(str(tiny_folder), num_inference_steps=3)) as http:
        assert http.get("/v1/peers").status_code == 404
        assert "X-Fedkd-Edge" not in http.post(IMAGES, json=ASKED).headers


def _changed(folder: Path, to: Path) -> Path:
    """A copy of a model whose denoiser differs."""
    import shutil

    from safetensors.torch import load_file, save_file

    shutil.copytree(folder, to)
    path = to / "unet" / "diffusion_pytorch_model.safetensors"
    save_file({key: value * 0.9 for key, value in load_file(path).items()}, path)
    return to
