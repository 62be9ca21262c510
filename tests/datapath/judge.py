"""One job in slot 3, and what the programs say to a frame of it: a reason, or None if it passes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lark_agent.datapath.layout import u32
from lark_agent.model import MAX_CLASSES, Count, Direction, DropReason
from tests.datapath.network import GATEWAYS, PEERS, SLOT
from tests.datapath.testrun import PASSED, Frame, Outcome, outcome

if TYPE_CHECKING:
    from lark_agent.datapath import Datapath, SlotPlan


class Judge:
    """A datapath with the interface bound to slot 3, or another."""

    def __init__(self, datapath: Datapath, ifindex: int) -> None:
        self.datapath = datapath
        self._ifindex = ifindex
        datapath.set_classes({"denied": ["203.0.113.0/24"]}, PEERS, GATEWAYS)
        datapath.set_services({})
        self.bind(SLOT)

    def bind(self, slot: int) -> None:
        """Let the interface be a slot's from now on."""
        self._slot = slot
        self.datapath._maps["slots"].set(u32(self._ifindex), u32(slot))

    def begin(self, plan: SlotPlan) -> None:
        """Begin a new job."""
        self.datapath.deactivate(self._slot)
        self.datapath.reset(self._slot)
        self.datapath.activate(self._slot, plan)

    def run(self, program: str, frame: bytes) -> None:
        """Show a program a frame that is one of very many."""
        outcome(self.datapath._programs[program], Frame(frame), self._ifindex)

    def sent(self, frame: bytes, gso_size: int = 0) -> DropReason | None:
        return self._judged("from_job", Frame(frame, gso_size))

    def received(self, frame: bytes) -> DropReason | None:
        return self._judged("to_job", Frame(frame))

    def after(self, frame: Frame, program: str = "from_job") -> Outcome:
        """Return what becomes of a frame that passes."""
        result = outcome(self.datapath._programs[program], frame, self._ifindex)
        assert result.verdict == PASSED
        return result

    def upkeep(self, direction: Direction) -> Count:
        """Return what was counted in no class."""
        return self.datapath.read([SLOT])[SLOT].used_by(MAX_CLASSES, direction)

    def _judged(self, program: str, frame: Frame) -> DropReason | None:
        before = self.datapath.read([self._slot])[self._slot]
        verdict = outcome(self.datapath._programs[program], frame, self._ifindex).verdict
        after = self.datapath.read([self._slot])[self._slot]
        reasons = [r for r in DropReason if after.dropped_for(r) != before.dropped_for(r)]
        assert len(reasons) == (verdict != PASSED)
        return reasons[0] if reasons else None
