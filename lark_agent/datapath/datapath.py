"""The datapath as the rest of the agent sees it: slots, plans, counters, classes.

Life of a slot::

    attach(ifindex, slot)      the sandbox is built: interface → slot, programs hung; nothing passes
    reset(slot)                its counters are zeroed
    activate(slot, plan)       a job has it: packets that fit the plan pass and count
    read([slot])               any time; cumulative
    change(slot, plan)         other settings for the same job; counters go on
    deactivate(slot); settle() the job is over: nothing passes, nothing changes what was sent
    read([slot])               the final totals: later packets count as dropped (no-plan) only
    unbind(ifindex)            the sandbox is dismantled

Everything here is a system call or a few of them, microseconds each, except `settle` (a grace
period) and opening. All state is in the pins, so it makes no difference which process wrote a map;
only the class table and the ports of each slot are remembered as well. Methods raise KernelError if
the kernel refuses. One process writes at a time; the agent's lock sees to that.
"""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING, Self

from lark_agent import crash
from lark_agent.datapath import pins
from lark_agent.datapath.attach import Hooks, attach_programs
from lark_agent.datapath.classes import assign, build_table, pack_prefix
from lark_agent.datapath.events import EventRing
from lark_agent.datapath.layout import (
    ALL_CLASSES,
    FLOWS_OF_SLOT,
    MOST_SERVICES,
    NAME_SIZE,
    PROGRAMS,
    Counters,
    sum_copies,
    u32,
)
from lark_agent.datapath.peers import RemoteJobs
from lark_agent.datapath.plan import (
    ALL_SERVICES,
    knows_flows,
    plan_epoch,
    plan_quotas,
    plan_services,
    plan_state,
)
from lark_agent.datapath.ports import PortTable
from lark_agent.datapath.quotas import QuotaTable
from lark_agent.datapath.services import ServiceTable
from lark_agent.datapath.settle import wait_for_programs
from lark_agent.linux import bpf
from lark_agent.linux.bpf import Map
from lark_agent.model import DEFAULT_CLASS, MAX_CLASSES

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping
    from ipaddress import IPv4Address, IPv6Address
    from pathlib import Path

    from lark_agent.datapath.attach import TrafficControl
    from lark_agent.datapath.classes import ClassTable, Network
    from lark_agent.datapath.plan import SlotPlan
    from lark_agent.model import Port

_COUNTERS = ("usage", "dropped", "dropped2")
_CHUNK = 1 << 20  # bytes read from a per-CPU map in one system call


class Datapath:
    """Open maps and programs. Closing leaves them in force: they are pinned and attached."""

    def __init__(self, maps: Mapping[str, Map], programs: Mapping[str, int]) -> None:
        """Take over open maps and program descriptors by name; see `load`."""
        self._maps = maps
        self._programs = programs
        self.slots: int = maps["plan"].spec.max_entries
        self.classes: ClassTable = build_table(self._stored_names(), {})
        """As last set. Names survive the process; their networks come with `set_classes`."""
        self.quotas = QuotaTable(maps["quota"], maps["quota_used"])
        self.events = EventRing(maps["events"])
        self.services = ServiceTable(maps["services"], maps["service_names"])
        self.remote_jobs = RemoteJobs(maps["remote_jobs"])
        self.ports = PortTable(maps["open_ports"])
        for slot in range(self.slots):  # running jobs may have come with a set of before
            if knows_flows(maps["plan"].get(u32(slot)) or b""):
                self._remember_flows(slot)

    def close(self) -> None:
        """Close the descriptors."""
        self.events.close()
        for opened in self._maps.values():
            opened.close()
        for fd in self._programs.values():
            os.close(fd)
        self._programs = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Interfaces

    def attach(
        self, netlink: TrafficControl, ifindex: int, slot: int, hooks: Hooks = Hooks.HOST
    ) -> None:
        """Make an interface a slot's; do it before the link is up.

        `netlink` is a pyroute2 IPRoute in the interface's namespace, `hooks` which end of the link
        it is. Interface indices must be unique on the worker: one in a sandbox is given its index
        when it is made. May be repeated; an interface that has programs of an earlier agent gets
        this one's.
        """
        self._maps["slots"].set(u32(ifindex), u32(self._checked(slot)))
        attach_programs(netlink, ifindex, self._programs, hooks)

    def unbind(self, ifindex: int) -> bool:
        """Forget an interface: if it still exists, nothing passes it. False if it was not known."""
        return self._maps["slots"].delete(u32(ifindex))

    def bindings(self) -> dict[int, int]:
        """Return interface index → slot, to compare with the interfaces that exist."""
        return pins.bound(self._maps["slots"])

    # Plans

    def prepare(self, slot: int, plan: SlotPlan) -> None:
        """Let pass what finds addresses on a layer-2 link, before there is a job; not counted."""
        self._remember_flows(slot)
        self._maps["plan"].set(u32(self._checked(slot)), plan.packed(setup=True))

    def activate(self, slot: int, plan: SlotPlan) -> None:
        """Let a job's packets pass. The flag is written last, so no packet sees half a plan."""
        key = u32(self._checked(slot))
        epoch = int.from_bytes(os.urandom(4), sys.byteorder)
        self._maps["plan"].set(key, plan.packed())
        self.ports.assign(slot, plan)
        if knows_flows(plan.packed()):
            self._remember_flows(slot)
        self._maps["plan"].set(key, plan.packed(epoch=epoch))
        crash.here("claim.prepared")
        self._maps["plan"].set(key, plan.packed(active=True, epoch=epoch))
        crash.here("claim.active")

    def change(self, slot: int, plan: SlotPlan) -> None:
        """Give a living job other settings, from its next packet on; its counters go on.

        A packet in the very moment may see some settings of before and some of now. Raises
        ValueError if the slot has no job.
        """
        key = u32(self._checked(slot))
        before = self._maps["plan"].get(key) or bytes(self._maps["plan"].entry_size)
        if not plan_state(before)[0]:
            raise ValueError(f"slot {slot} has no job whose plan could change")
        epoch = plan_epoch(before)
        self.ports.assign(slot, plan)
        if knows_flows(plan.packed()):
            self._remember_flows(slot)
        self._maps["plan"].set(key, plan.packed(active=True, epoch=epoch))

    def _remember_flows(self, slot: int) -> None:
        """Give a slot a map for its flows, once: it takes memory that most slots do not need."""
        key = u32(slot)
        if self._maps["flows"].get(key) is None:
            with Map.create("flows_of_slot", FLOWS_OF_SLOT) as own:
                self._maps["flows"].set(key, u32(own.fd))

    def deactivate(self, slot: int) -> None:
        """Let nothing pass; programs that are running may still count until `settle` returns."""
        self._maps["plan"].set(u32(self._checked(slot)), bytes(self._maps["plan"].entry_size))

    def active_slots(self) -> frozenset[int]:
        """Return the slots with a plan."""
        return frozenset(pins.active_plans(self._maps["plan"]))

    def quotas_of(self, slot: int) -> tuple[int, ...]:
        """Return the indices of the quotas that a slot's job is charged to, in its plan's order."""
        value = self._maps["plan"].get(u32(self._checked(slot)))
        return plan_quotas(value) if value else ()

    def settle(self) -> None:
        """Wait until every packet that saw a plan of before this call is counted (about 10 ms)."""
        wait_for_programs()

    # Counters

    def reset(self, slot: int) -> None:
        """Zero the counters of a slot without a plan; raises ValueError if it has one."""
        key = u32(self._checked(slot))
        plan = self._maps["plan"].get(key)
        if plan is None or plan_state(plan)[0]:
            raise ValueError(f"slot {slot} has an active plan: its counters belong to a job")
        for name in _COUNTERS:
            self._maps[name].set(key, bytes(self._maps[name].entry_size))

    def read(self, slots: Iterable[int]) -> dict[int, Counters]:
        """Return the counters of these slots, read in one pass over the maps.

        Each counter is exact; packets and bytes of one that moves meanwhile may differ by a packet.
        """
        wanted = sorted({self._checked(slot) for slot in slots})
        parts = [self._sums(self._maps[name], wanted) for name in _COUNTERS]
        return {slot: Counters.unpack(*(part[slot] for part in parts)) for slot in wanted}

    def _sums(self, counters: Map, wanted: list[int]) -> dict[int, bytes]:
        """Sum over CPUs, reading runs of the array from the first wanted slot to the last."""
        most = max(1, _CHUNK // counters.entry_size)
        sums: dict[int, bytes] = {}
        position = 0
        while position < len(wanted):
            first = wanted[position]
            run = [slot for slot in wanted[position : position + most] if slot < first + most]
            values = counters.read_range(first, run[-1] - first + 1)
            for slot in run:
                start = (slot - first) * counters.entry_size
                entry = values[start : start + counters.entry_size]
                sums[slot] = sum_copies(entry, counters.copies)
            position += len(run)
        return sums

    # Classes

    def set_classes(
        self,
        classes: Mapping[str, Iterable[str]],
        peers: Iterable[Network] = (),
        worker: Iterable[IPv4Address | IPv6Address | Network] = (),
        remote: Iterable[Network] = (),
    ) -> ClassTable:
        """Put the site's classes (name → networks) in force, while jobs run.

        `peers` are the sandboxes' own ranges, `worker` all addresses of the worker (the gateways
        and those of its interfaces), `remote` the networks where a job is who `remote_jobs` says.
        Counted bytes stay under the class they were counted for. New networks come before old
        ones go, so that an address is never without a class that it has before and after. Raises
        ConfigurationError, or PrerequisiteError for lack of a free number, having changed nothing.
        """
        names = assign(self._stored_names(), self._classes_in_use(), classes)
        table = build_table(names, classes, peers, worker, remote)
        for number, name in enumerate(names):
            self._maps["class_names"].set(u32(number), name.encode().ljust(NAME_SIZE, b"\0"))
        crash.here("reload.class-names")
        for version, trie in ((4, self._maps["classes4"]), (6, self._maps["classes6"])):
            wanted = {
                pack_prefix(network): destination.packed()
                for network, destination in table.prefixes.items()
                if network.version == version
            }
            for key, destination in wanted.items():
                trie.set(key, destination)
            crash.here("reload.class-networks")
            for key in set(trie.keys()) - wanted.keys():
                trie.delete(key)
        self.classes = table
        return table

    def set_services(self, services: Mapping[str, Port]) -> None:
        """Put the services of the worker (name → port) in force, while jobs run.

        Raises PrerequisiteError if there are too many, having changed nothing.
        """
        masks = [
            plan_services(self._maps["plan"].get(u32(slot)) or b"") for slot in self.active_slots()
        ]
        restricted = [mask for mask in masks if mask != ALL_SERVICES]
        in_use = {n for n in range(MOST_SERVICES) if any(mask >> n & 1 for mask in restricted)}
        self.services.set(services, in_use)

    def _stored_names(self) -> tuple[str, ...]:
        entries = (self._maps["class_names"].get(u32(n)) or b"" for n in range(MAX_CLASSES))
        names = [entry.rstrip(b"\0").decode() for entry in entries]
        return (DEFAULT_CLASS, *names[1:])

    def _classes_in_use(self) -> Collection[int]:
        """Return the numbers that must keep their meaning."""
        used = {n for c in self.read(range(self.slots)).values() for n in c.classes_in_use}
        for mask in pins.active_plans(self._maps["plan"]).values():
            if mask != ALL_CLASSES:
                used |= {n for n in range(MAX_CLASSES) if mask >> n & 1}
        return used

    def _checked(self, slot: int) -> int:
        if not 0 <= slot < self.slots:
            raise ValueError(f"slot {slot} is not one of {self.slots}")
        return slot


def load(
    bpffs: Path, slots: int, loader: str = "libbpf", python: str = "/usr/bin/python3"
) -> Datapath:
    """Load the programs, keep or make the maps pinned under `bpffs`.

    `loader` is libbpf or bcc, `python` the interpreter that has bcc. Raises PrerequisiteError if
    the machine lacks something or the pins there must be drained first, KernelError if the kernel
    refuses a map or program.
    """
    current, maps = pins.open_pins(bpffs, slots, loader, python)
    with ExitStack() as on_failure:
        for opened in maps.values():
            on_failure.callback(opened.close)
        programs: dict[str, int] = {}
        for name in PROGRAMS:
            programs[name] = bpf.open_pin(current / name)
            on_failure.callback(os.close, programs[name])
        datapath = Datapath(maps, programs)
        on_failure.pop_all()
    return datapath


def unload(bpffs: Path) -> None:
    """Remove the pins, when no sandbox needs them any more; undoes `load`.

    Raises PrerequisiteError if a plan is active: those counters belong to a job.
    """
    pins.remove_pins(bpffs)
