"""One function says what is wrong between kernel and journal; held over generated worlds.

`made` is what each repair does, in four lines, so that the claims can be about the world after it.
"""

from __future__ import annotations

from dataclasses import replace

from hypothesis import example, given, settings
from hypothesis import strategies as st

from lark_agent.agent.reconcile import (
    Books,
    Dismantle,
    Finish,
    Kernel,
    Known,
    Repair,
    Silence,
    Truncate,
    Why,
    repairs,
)

SLOTS = st.integers(0, 5)
SOME = st.frozensets(SLOTS)
NAMES = [f"a{number}" for number in range(6)]
HERE, BEFORE = "boot-2", "boot-1"
World = tuple[Kernel, Books]


@st.composite
def worlds(draw: st.DrawFn) -> World:
    """Anything at all, also what no crash can leave."""
    names = draw(st.lists(st.sampled_from(NAMES), unique=True))
    known = st.builds(
        Known, st.just(""), SLOTS,
        st.sampled_from([frozenset({HERE}), frozenset({BEFORE}), frozenset({HERE, BEFORE})]),
        st.booleans(), st.booleans(), st.booleans(),
    )  # fmt: skip
    books = Books(
        frozenset(replace(draw(known), attachment_id=name) for name in names),
        draw(st.none() | st.frozensets(st.sampled_from(NAMES))), draw(SOME),
    )  # fmt: skip
    if books.attended is None:
        books = replace(books, busy=frozenset())
    pinned = draw(st.booleans())
    bindings = st.frozensets(st.tuples(st.integers(1, 9), SLOTS))
    kernel = Kernel(
        HERE, draw(st.frozensets(st.sampled_from(NAMES))), draw(SOME), draw(SOME), pinned,
        draw(SOME) if pinned else frozenset(), draw(bindings) if pinned else frozenset(),
    )  # fmt: skip
    return kernel, books


def made(world: World, repair: Repair) -> World:
    """Return the world after one repair."""
    kernel, books = world
    if isinstance(repair, (Truncate, Finish)):
        left = {known for known in books.open if known.attachment_id != repair.attachment_id}
        books = replace(books, open=frozenset(left))
    if isinstance(repair, Truncate):
        return kernel, books
    if isinstance(repair, (Finish, Silence)):
        kernel = replace(kernel, plans=kernel.plans - {repair.slot})
    if isinstance(repair, (Finish, Dismantle)):
        kernel = replace(
            kernel,
            namespaces=kernel.namespaces - {repair.slot}, links=kernel.links - {repair.slot},
            bindings=frozenset(pair for pair in kernel.bindings if pair[1] != repair.slot),
        )  # fmt: skip
    return kernel, books


def living(world: World) -> set[Known]:
    """Return the attachments that must not be touched, said otherwise than the code says it."""
    kernel, books = world
    if books.attended is not None:
        return {known for known in books.open if known.attachment_id in books.attended}
    return {
        known
        for known in books.open
        if known.boots == {HERE}
        and (known.attachment_id in kernel.running or known.waits)
        and (not known.counted or (kernel.pinned and known.slot in kernel.plans))
    }


@given(worlds(), st.randoms(use_true_random=False))
@settings(max_examples=150, deadline=None)
def test_made_repairs_leave_nothing_to_repair(world: World, order: object) -> None:
    """In whatever order they are made; a second pass over the same world says the same."""
    wanted = list(repairs(*world))
    assert wanted == list(repairs(*world))
    order.shuffle(wanted)  # type: ignore[attr-defined]  # a random.Random
    for repair in wanted:
        world = made(world, repair)
    assert repairs(*world) == ()


ENDED = Known("a1", 0, frozenset({HERE}), counted=False)
AWAITED = Known("a0", 0, frozenset({HERE}), counted=False, waits=True)


@given(worlds())
@example((Kernel(HERE), Books(frozenset({ENDED, AWAITED}))))
@settings(max_examples=150, deadline=None)
def test_nothing_is_done_twice_or_forgotten(world: World) -> None:
    """Each repair is needed: without it, the rest leave something to repair."""
    wanted = repairs(*world)
    assert len(set(wanted)) == len(wanted)
    for missing in wanted:
        after = world
        for repair in wanted:
            if repair != missing:
                after = made(after, repair)
        left = repairs(*after)
        # of two who shared a slot the one that is left may have the other's repair
        assert {type(missing), Finish} & set(map(type, left))
        assert _about(missing) in map(_about, left)


def _about(repair: Repair) -> str | int:
    return repair.attachment_id if isinstance(repair, (Truncate, Finish)) else repair.slot


@given(worlds())
@settings(max_examples=150, deadline=None)
def test_a_living_attachment_is_never_touched(world: World) -> None:
    """Neither its record nor its slot, unless another that lives has the slot as well."""
    kernel, books = world
    wanted = repairs(kernel, books)
    alive = living(world)
    slots = [known.slot for known in alive]
    records = {r.attachment_id for r in wanted if isinstance(r, (Truncate, Finish))}
    silenced = {r.slot for r in wanted if isinstance(r, (Silence, Dismantle, Finish))}
    for known in alive:
        if slots.count(known.slot) == 1 and not _rivals(known, books):
            assert known.attachment_id not in records
        assert known.slot not in silenced or _rivals(known, books)
    assert not silenced & (books.busy - {known.slot for known in books.open})


def _rivals(known: Known, books: Books) -> set[Known]:
    return {other for other in books.open if other.slot == known.slot and other != known}


@given(worlds())
@settings(max_examples=150, deadline=None)
def test_no_record_is_lost(world: World) -> None:
    """Each open attachment lives on or gets one final record; no slot has two that live on."""
    kernel, books = world
    wanted = repairs(kernel, books)
    finals = [r.attachment_id for r in wanted if isinstance(r, (Truncate, Finish))]
    assert len(set(finals)) == len(finals)
    assert set(finals) <= {known.attachment_id for known in books.open}
    slots = [known.slot for known in books.open if known.attachment_id not in finals]
    assert len(set(slots)) == len(slots)
    dismantled = {r.slot for r in wanted if isinstance(r, (Silence, Dismantle))}
    assert not dismantled & set(slots), "a sandbox is taken from an attachment that lives on"


def test_what_a_kill_leaves_is_told_apart() -> None:
    """The cases in the order of the module's docstring, each by its own repair."""
    here = frozenset({HERE})
    runs, ended, waits = Known("runs", 0, here), Known("ended", 1, here), Known("waits", 2, here)
    waits = replace(waits, waits=True)
    old, bare = Known("old", 3, frozenset({BEFORE})), Known("bare", 4, here)
    grouped = Known("grouped", 5, here, bound=False)
    kernel = Kernel(
        HERE, frozenset({"runs", "bare", "grouped"}), frozenset({0, 1, 2, 4, 7}),
        frozenset({0, 1, 2, 8}), plans=frozenset({0, 2, 9}), bindings=frozenset({(31, 1)}),
    )  # fmt: skip
    books = Books(frozenset({runs, ended, waits, old, bare, grouped}))
    assert repairs(kernel, books) == (
        Truncate("bare", Why.NO_COUNTERS),
        Truncate("old", Why.REBOOT),
        Finish("ended", 1),
        Silence(9),
        Dismantle(4, ("namespace",)),
        Dismantle(7, ("namespace",)),
        Dismantle(8, ("link",)),
    )
    kept = Books(books.open, frozenset({"runs", "ended", "waits"}), frozenset({7, 8, 9}))
    assert repairs(kernel, kept) == (
        Truncate("bare", Why.UNATTENDED),
        Truncate("grouped", Why.UNATTENDED),
        Truncate("old", Why.UNATTENDED),
        Dismantle(4, ("namespace",)),
    )
