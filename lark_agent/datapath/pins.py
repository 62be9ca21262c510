"""The directory of pins: how maps and programs outlive the agent, and how a half-made set cannot.

::

    <bpffs>/v3/{slots,plan,usage,…,from_job,to_job}    the set in force, of layout version 3
    <bpffs>/loading/                                   a set being made; if found, a wreck

Maps and programs are pinned into `loading` and come into force by a rename, which is atomic: a
crash leaves the old set or the new one. An agent that starts keeps the maps it finds, and with them
every counter, but always loads its own programs and renames them over the old pins, so that a new
release's rules hold. Interfaces that have the old programs keep them until they are attached again.

A set of an older layout is carried over. The maps of counters and interfaces are the same map,
pinned in both directories: the old programs, which hang on the interfaces until they are attached
again, and the new ones count in the same place, so no packet falls between two sets of counters.
Plans are rewritten, flows begin anew (`layout.REPLACEABLE`, also within one layout); classes are
set anew by every agent (`Datapath.set_classes`). Until an interface is attached again, its old
programs go by the plan and the classes of before.

A set made for another number of slots is replaced if no plan in it is active, that is, if no job
is running. With a job running, or with a layout that this release does not know, nothing is touched
and the error says to drain: counters are never thrown away here.
"""

from __future__ import annotations

import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING, NamedTuple

from lark_agent import crash
from lark_agent.datapath import loaders
from lark_agent.datapath.layout import (
    FLOWS_OF_SLOT,
    KEPT,
    OLDER,
    PROGRAMS,
    REPLACEABLE,
    VERSION,
    map_specs,
    u32,
)
from lark_agent.datapath.plan import carried_plan, plan_state
from lark_agent.errors import PrerequisiteError
from lark_agent.linux import bpf
from lark_agent.linux.bpf import Map, MapKind

if TYPE_CHECKING:
    from pathlib import Path

    from lark_agent.linux.bpf import MapSpec

CURRENT = f"v{VERSION}"
_VERSIONS = {f"v{version}": version for version in (VERSION, *OLDER)}  # the newest first
LOADING = "loading"  # no dot in front: bpffs reserves names with dots


def open_pins(root: Path, slots: int, loader: str, python: str) -> tuple[Path, dict[str, Map]]:
    """Return the directory of the set in force, made if need be, and its open maps.

    Raises PrerequisiteError if `root` cannot hold pins, or holds a set that must not be touched;
    KernelError if the kernel refuses the maps or programs.
    """
    _check_root(root)
    current, loading = root / CURRENT, root / LOADING
    with ExitStack() as on_failure:
        found = next((root / name for name in _VERSIONS if (root / name).exists()), current)
        held = _open_usable(found, slots)
        keep = bool(held) and found == current
        if keep:
            _replace(current, slots, held)
        for opened in held.values():
            on_failure.callback(opened.close)
        _remove(loading)
        loading.mkdir(mode=0o700)
        on_failure.callback(_remove, loading)
        maps = held if keep else _create(loading, slots, held)
        for opened in maps.values():
            on_failure.callback(opened.close)
        crash.here("upgrade.maps")
        if loader == "bcc":
            loaders.with_bcc(python, current if keep else loading, loading)
        else:
            used = {name: m for name, m in maps.items() if not name.endswith("_names")}
            loaders.with_libbpf(used, loading)
        crash.here("upgrade.programs")
        if keep:
            for name in PROGRAMS:
                (loading / name).rename(current / name)
                crash.here("upgrade.one-renamed")
            loading.rmdir()
        else:
            _remove(current)
            crash.here("upgrade.older-gone")
            loading.rename(current)
            crash.here("upgrade.renamed")
        for name in _VERSIONS.keys() - {CURRENT}:
            _remove(root / name)
        for opened in held.values():
            if opened not in maps.values():
                opened.close()
        on_failure.pop_all()
    return current, maps


def remove_pins(root: Path) -> None:
    """Remove every pin and `root` itself; what is attached goes with its interface.

    Raises PrerequisiteError, and removes nothing, if a job is counted there or the layout is
    another release's. Nothing to remove is no error.
    """
    if not root.exists():
        return
    _check_root(root)
    for plan in (root / name / "plan" for name in _VERSIONS):
        if plan.exists():
            with Map.open(plan) as opened:
                if active := active_plans(opened):
                    raise PrerequisiteError(f"{len(active)} jobs are counted in {root}; it stays")
    for name in (*_VERSIONS, LOADING):
        _remove(root / name)
    root.rmdir()


class Pinned(NamedTuple):
    """What the pins of any layout that this release knows say of jobs."""

    plans: frozenset[int]
    """Slots that let packets pass."""
    bindings: frozenset[tuple[int, int]]
    """Interface index, slot."""


def look(root: Path) -> Pinned | None:
    """Return what is pinned, changing nothing; None if no set is. Raises KernelError."""
    found = next((root / name for name in _VERSIONS if (root / name).exists()), None)
    if found is None or not all((found / name).exists() for name in ("plan", "slots")):
        return None
    with Map.open(found / "plan") as plan, Map.open(found / "slots") as slots:
        return Pinned(frozenset(active_plans(plan)), frozenset(bound(slots).items()))


def bound(slots: Map) -> dict[int, int]:
    """Return interface index → slot."""
    values = {key: slots.get(key) for key in slots.keys()}  # noqa: SIM118  not a dict
    return {_number(key): _number(value) for key, value in values.items() if value is not None}


def active_plans(plan: Map) -> dict[int, int]:
    """Return slot → class mask of every slot with an active plan."""
    size = plan.entry_size
    values = plan.read_range(0, plan.spec.max_entries)
    states = (
        plan_state(values[slot * size : (slot + 1) * size]) for slot in range(plan.spec.max_entries)
    )
    return {slot: classes for slot, (active, classes) in enumerate(states) if active}


def _check_root(root: Path) -> None:
    existing = next(place for place in (root, *root.parents) if place.exists())
    if not bpf.is_bpffs(existing):
        raise PrerequisiteError(
            f"{root} is not in a bpffs; mount one with: mount -t bpf bpf /sys/fs/bpf"
        )
    root.mkdir(parents=True, exist_ok=True, mode=0o700)
    found = {entry.name for entry in root.iterdir() if "." not in entry.name}  # dots: the kernel's
    if strange := sorted(found - {*_VERSIONS, LOADING}):
        raise PrerequisiteError(
            f"{root} holds {', '.join(strange)}, which is not of layout {CURRENT}: drain this "
            f"worker with the release that made it, then remove {root} and start again"
        )


def _open_usable(found: Path, slots: int) -> dict[str, Map]:
    """Open the maps of a set if they are as its layout says; else {}: there is none to keep."""
    wanted = map_specs(slots, _VERSIONS[found.name])
    maps: dict[str, Map] = {}
    with ExitStack() as close:
        for name in wanted:
            if (found / name).exists():
                maps[name] = close.enter_context(Map.open(found / name))
        differing = [name for name in wanted if name not in maps or maps[name].spec != wanted[name]]
        if set(differing) <= set(REPLACEABLE):
            close.pop_all()
            for name in set(differing) & maps.keys():
                maps.pop(name).close()
            return maps
        if "plan" in maps and (active := active_plans(maps["plan"])):
            raise PrerequisiteError(
                f"{found} was made for {maps['plan'].spec.max_entries} slots, not {slots}, and "
                f"{len(active)} jobs are counted in it; set pool.slots back, or wait until they "
                "have ended and start again"
            )
    return {}


def _replace(directory: Path, slots: int, maps: dict[str, Map]) -> None:
    """Make the maps that a set in force lacks; old programs keep theirs until they are replaced."""
    for name in REPLACEABLE:
        if name not in maps:
            (directory / name).unlink(missing_ok=True)
            maps[name] = _made(name, map_specs(slots)[name])
            bpf.pin(maps[name].fd, directory / name)


def _made(name: str, spec: MapSpec) -> Map:
    if spec.kind is not MapKind.ARRAY_OF_MAPS:
        return Map.create(name, spec)
    with Map.create("shown", FLOWS_OF_SLOT) as shown:
        return Map.create(name, spec, shown)


def _create(directory: Path, slots: int, older: dict[str, Map]) -> dict[str, Map]:
    """Make a set of maps; what an older set (or {}) has is carried into it."""
    maps: dict[str, Map] = {}
    with ExitStack() as on_failure:
        for name, spec in map_specs(slots).items():
            if name in older and name in KEPT:
                maps[name] = older[name]
            else:
                maps[name] = on_failure.enter_context(_made(name, spec))
            bpf.pin(maps[name].fd, directory / name)
            crash.here("upgrade.one-map")
        if older:
            for slot in active_plans(older["plan"]):
                value = older["plan"].get(u32(slot)) or b""
                maps["plan"].set(u32(slot), carried_plan(value))
        on_failure.pop_all()
    return maps


def _remove(directory: Path) -> None:
    """Remove a flat directory of pins, if it is there."""
    if directory.exists():
        for entry in directory.iterdir():
            entry.unlink()
        directory.rmdir()


def _number(value: bytes) -> int:
    return int.from_bytes(value, sys.byteorder)
