"""Events reach their readers in order; slow readers lose old progress and hold nobody up."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from fedkd.serving.errors import EdgeFault
from fedkd.serving.streaming import MAX_READERS, MAX_WAITING_EVENTS, Channel, event_bytes, kept_alive


def parsed(data: bytes) -> tuple[str, dict[str, Any]]:
    event, text = data.decode().strip().split("\n")
    return event.removeprefix("event: "), json.loads(text.removeprefix("data: "))


async def collected(channel: Channel, previews: int = 0) -> list[tuple[str, dict[str, Any]]]:
    return [parsed(data) async for data in channel.read(previews)]


def test_an_event_is_two_lines_and_an_empty_one() -> None:
    assert event_bytes("x", {"text": "a\nb"}) == b'event: x\ndata: {"text": "a\\nb"}\n\n'


def test_readers_get_events_in_order_and_previews_only_when_asked_for() -> None:
    async def run() -> None:
        channel = Channel()
        plain = asyncio.create_task(collected(channel))
        seeing = asyncio.create_task(collected(channel, 2))
        await asyncio.sleep(0)
        assert channel.wants_preview(2, 4) and not channel.wants_preview(3, 4) and not channel.wants_preview(4, 4)
        channel.publish("session.progress", {"step": 1})
        channel.publish("session.preview", {"step": 2})
        channel.end("session.ended", {"status": "finished"})
        channel.end("session.ended", {"status": "expired"})
        names = [event for event, _ in await seeing]
        assert names == ["session.progress", "session.preview", "session.ended"]
        assert [event for event, _ in await plain] == ["session.progress", "session.ended"]
        assert [data for _, data in await collected(channel)] == [{"status": "finished"}]

    asyncio.run(run())


def test_progress_of_another_thread_is_kept_for_late_readers_and_told_to_present_ones() -> None:
    async def run() -> None:
        channel = Channel()
        await asyncio.to_thread(channel.tell_progress, {"step": 1})
        events = channel.read()
        assert parsed(await anext(events)) == ("session.progress", {"step": 1})
        await asyncio.to_thread(channel.tell_progress, {"step": 2})
        assert parsed(await anext(events)) == ("session.progress", {"step": 2})
        channel.end("session.ended", {"status": "finished"})
        await asyncio.to_thread(channel.tell_progress, {"step": 3})
        assert [data for _, data in await collected(channel)] == [{"status": "finished"}]
        await events.aclose()

    asyncio.run(run())


def test_a_late_reader_is_told_how_far_the_edge_is_but_not_what_it_handed_over() -> None:
    async def run() -> None:
        channel = Channel()
        channel.publish("session.progress", {"step": 2})
        events = channel.read()
        assert parsed(await anext(events)) == ("session.progress", {"step": 2})
        channel.publish("session.handed_over", {"step": 2})
        late = asyncio.create_task(collected(channel))
        await asyncio.sleep(0)
        channel.end("session.ended", {"status": "finished"})
        assert await late == [("session.ended", {"status": "finished"})]

    asyncio.run(run())


def test_a_slow_reader_loses_old_events_and_gets_the_last() -> None:
    async def run() -> None:
        channel = Channel()
        events = channel.read()
        channel.publish("session.progress", {"step": 0})
        assert parsed(await anext(events))[1] == {"step": 0}
        for step in range(1, 1000):
            channel.publish("session.progress", {"step": step})
        channel.end("session.ended", {"status": "finished"})
        rest = [parsed(data) async for data in events]
        assert len(rest) == MAX_WAITING_EVENTS and rest[-1][0] == "session.ended"

    asyncio.run(run())


def test_readers_are_bounded_and_leave_their_place() -> None:
    async def run() -> None:
        channel = Channel()
        channel.publish("session.progress", {"step": 0})
        readers = [channel.read() for _ in range(MAX_READERS)]
        for reader in readers:
            await anext(reader)
        with pytest.raises(EdgeFault, match="8 readers follow"):
            channel.check_room()
        await readers[0].aclose()
        channel.check_room()

    asyncio.run(run())


def test_a_silent_line_is_kept_alive_and_its_source_closed() -> None:
    closed = []

    async def source() -> AsyncIterator[bytes]:
        try:
            await asyncio.sleep(0.05)
            yield b"one"
            await asyncio.sleep(3600)
        finally:
            closed.append(True)

    async def run() -> None:
        events = kept_alive(source(), every_s=0.01)
        seen = [await anext(events)]
        while seen[-1] != b"one":
            seen.append(await anext(events))
        assert set(seen[:-1]) == {b": still here\n\n"}
        await events.aclose()
        assert closed == [True]

    asyncio.run(run())
