"""The eBPF programs that count and admit every packet of a job, and the doors to their maps.

`load` opens the `Datapath`, `unload` removes its pins, `lark_agent.datapath.features` says what a
machine lacks for it. What is counted and why: docs/datapath.md.
"""

from lark_agent.datapath.attach import Hooks
from lark_agent.datapath.classes import ClassTable
from lark_agent.datapath.datapath import Datapath, load, unload
from lark_agent.datapath.events import Event, FirstDrop, QuotaExceeded
from lark_agent.datapath.layout import Counters
from lark_agent.datapath.peers import RemoteJob
from lark_agent.datapath.pins import Pinned, look
from lark_agent.datapath.plan import QuotaUse, SlotPlan
from lark_agent.datapath.quotas import UNLIMITED, QuotaAction, QuotaState

__all__ = [
    "UNLIMITED",
    "ClassTable",
    "Counters",
    "Datapath",
    "Event",
    "FirstDrop",
    "Hooks",
    "Pinned",
    "QuotaAction",
    "QuotaExceeded",
    "QuotaState",
    "QuotaUse",
    "RemoteJob",
    "SlotPlan",
    "load",
    "look",
    "unload",
]
