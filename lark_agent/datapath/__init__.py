"""The eBPF programs that count and admit every packet of a job, and the doors to their maps.

`load` opens the `Datapath`, `unload` removes its pins, `lark_agent.datapath.features` says what a
machine lacks for it. What is counted and why: docs/datapath.md.
"""

from lark_agent.datapath.classes import ClassTable
from lark_agent.datapath.datapath import Datapath, load, unload
from lark_agent.datapath.layout import Counters, SlotPlan

__all__ = ["ClassTable", "Counters", "Datapath", "SlotPlan", "load", "unload"]
