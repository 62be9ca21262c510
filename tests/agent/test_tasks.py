"""The daemon's background tasks end when it does, whatever they were waiting for."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from lark_agent.agent import tasks
from lark_agent.agent.tasks import Tasks

if TYPE_CHECKING:
    import pytest


def test_a_lost_cancellation_holds_up_no_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    """A task that goes on after its first cancellation is cancelled again; others once."""
    monkeypatch.setattr(tasks, "_AGAIN_SECONDS", 0.05)
    met: list[str] = []

    async def deaf() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            met.append("lost")  # as wait_for does if the answer comes with it
        try:
            await asyncio.Event().wait()
        finally:
            met.append("ended")

    async def hears() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            met.append("heard")

    async def stop() -> None:
        background = Tasks()
        background.keep("deaf", deaf)
        background.once("hears", hears())
        await asyncio.sleep(0)
        async with asyncio.timeout(10):
            await background.stop()
        assert sorted(met) == ["ended", "heard", "lost"]

    asyncio.run(stop())
