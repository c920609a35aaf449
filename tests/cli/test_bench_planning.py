"""EUCI's figure, the limited link, and delays predicted from profiles, in the benchmarks of planning."""

from __future__ import annotations

import socket
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from fedkd.cli.benchmarks import papers_euci, planning_delay
from fedkd.cli.benchmarks.charts import lines
from fedkd.cli.benchmarks.collected import collect, wanted
from fedkd.cli.benchmarks.limiter import limited
from fedkd.cli.benchmarks.planning_delay import PROBES, STEPS, Passed
from fedkd.cli.benchmarks.request import Request
from fedkd.cli.benchmarks.result import Table, write
from fedkd.planning.machines import Link, PlanningError
from fedkd.planning.system import cost


def test_euci_s_figure_reproduces_as_far_as_its_equations_go(tmp_path: Path) -> None:
    result = collect(Request("papers"), "papers", ["euci"])
    assert all(shown.holds for shown in result.shows), [shown.line for shown in result.shows]
    assert {"paper (W)", "ours (J)", "Eq. 2 as printed (J)"} <= set(result.tables[0].columns)
    assert any("cannot come from Eq. 2" in note for note in result.notes)
    assert {path.name for path in write(result, tmp_path)} == {"papers.json", "papers.md", "papers.png"}


def test_the_ratio_holds_for_eq_2_as_printed_and_fig_8_needs_some_50_steps() -> None:
    assert papers_euci.as_printed_j(0) / papers_euci.as_printed_j(110) == pytest.approx(1.2166, abs=1e-4)
    assert papers_euci.steps_for_the_printed_energy(on_device=False) == 46
    assert papers_euci.steps_for_the_printed_energy(on_device=True) == 57


def test_only_known_parts_can_be_asked_for() -> None:
    assert wanted(Request("papers", overrides=["only=b"]), ["a", "b"]) == ["b"]
    assert wanted(Request("papers"), ["a", "b"]) == ["a", "b"]
    with pytest.raises(PlanningError, match="give only=a or only=b"):
        wanted(Request("papers", overrides=["only=c"]), ["a", "b"])


def test_figures_below_zero_are_inside_their_panel() -> None:
    from matplotlib.figure import Figure

    axes = Figure().subplots()
    lines(Table("t", ["1", "2"], {"a": {"1": [-3.0], "2": [-2.0]}}, plain=True, chart="lines"), axes)
    low, high = axes.get_ylim()
    assert low < -3 and high > -2


def test_a_part_that_stops_costs_only_its_own_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    def stops(request: Request) -> None:
        raise OSError("the edge did not answer")

    monkeypatch.setitem(sys.modules, "fedkd.cli.benchmarks.papers_broken", SimpleNamespace(tables_and_shows=stops))
    result = collect(Request("papers"), "papers", ["broken", "euci"])
    assert [shown.holds for shown in result.shows].count(False) == 1
    assert "broken ran to its end (it stopped: the edge did not answer)" in result.shows[0].what
    assert result.tables


def test_the_limiter_passes_all_bytes_no_faster_than_its_bandwidth() -> None:
    sent = bytes(range(256)) * 100
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            peer, _ = server.accept()
            with peer:
                while data := peer.recv(65536):
                    peer.sendall(data)

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        with limited(f"http://127.0.0.1:{server.getsockname()[1]}", 1e6) as limiter:
            port = int(limiter.url.rpartition(":")[2])
            began = time.monotonic()
            with socket.create_connection(("127.0.0.1", port)) as client:
                client.sendall(sent)
                client.shutdown(socket.SHUT_WR)
                back = b"".join(iter(lambda: client.recv(65536), b""))
            took_s = time.monotonic() - began
            assert back == sent
            assert (limiter.up_bytes, limiter.down_bytes) == (len(sent), len(sent))
            assert took_s >= 8 * len(sent) / 1e6
            limiter.reset(2e6)
            assert (limiter.bandwidth_bps, limiter.up_bytes) == (2e6, 0)
        thread.join(10)


def test_profiles_from_probes_predict_a_world_that_is_as_the_model_says() -> None:
    device_s, edge_s, encode_s, decode_s, rest_s, up, down = 0.03, 0.01, 0.004, 0.02, 0.015, 2500, 14000
    seconds = {"step_s": 0.02, "guided_step_s": device_s, "encode_s": encode_s / 2, "decode_s": decode_s}

    def world(steps: int, bandwidth_bps: float) -> float:
        compute_s = steps * device_s + (STEPS - steps) * edge_s + encode_s + decode_s + 3 * rest_s
        return compute_s + 8 * (up + down) / bandwidth_bps

    measured = {
        (planning_delay.OPEN_BPS, order, steps): [Passed(world(steps, 1e30), up, down)] for order, steps in PROBES
    }
    device, edge, models = planning_delay.profiles(measured, seconds, guided=True)
    for order, steps in planning_delay.SPLITS:
        found = cost(
            models[order],
            device,
            edge,
            Link(1e6, 0.0),
            num_inference_steps=STEPS,
            device_steps=steps,
            guidance=True,
            order=order,
            decode="edge",
        )
        assert found.delay_s == pytest.approx(world(steps, 1e6))
