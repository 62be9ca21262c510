"""The pins outlive processes, and no start throws a counter away."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from pyroute2 import IPRoute

from lark_agent.datapath import Datapath, load, unload
from lark_agent.datapath.features import features
from lark_agent.datapath.layout import map_specs
from lark_agent.datapath.settle import wait_by_map
from lark_agent.errors import KernelError, PrerequisiteError
from lark_agent.linux import libbpf
from lark_agent.linux.bpf import BpfError, Map, MapKind, MapSpec, pin
from lark_agent.model import Count, DropReason
from tests.datapath.cases import back
from tests.datapath.frames import ip4, ipv4, udp
from tests.datapath.judge import Judge
from tests.datapath.network import BPFFS, FAR4, JOB4, PLAN, SLOT, Network

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.root

SET = {*map_specs(1), "from_job", "to_job"}


def entries(directory: Path) -> set[str]:
    # a new bpffs has the kernel's own iterators, with dots in their names
    return {path.name for path in directory.iterdir() if "." not in path.name}


def ping(network: Network, count: int) -> None:
    network.sandbox.run("ping", "-c", str(count), "-i", "0.01", FAR4)


def test_counting_goes_on_without_the_agent(network: Network) -> None:
    """With every descriptor closed packets pass and count; the next process finds them."""
    ping(network, 2)
    network.datapath.close()
    ping(network, 3)
    code = (
        "from pathlib import Path; from lark_agent.datapath import load\n"
        f"d = load(Path('{BPFFS}'), 8); print(sorted(d.active_slots()), d.bindings(),\n"
        f"d.read([{SLOT}])[{SLOT}].usage(d.classes.names).sent, d.classes.names[0])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    expected = f"[{SLOT}] {{{network.ifindex}: {SLOT}}} {Count(5, 5 * 84)} other"
    assert done.stdout.strip() == expected
    network.datapath = load(BPFFS, 8)
    assert network.sent == Count(5, 5 * 84)


def test_a_restart_brings_new_programs_and_keeps_counters(network: Network) -> None:
    """Loading again replaces the pinned programs; attached again, they go on in the same maps."""
    ping(network, 2)
    before = network.datapath
    with load(BPFFS, 8) as again:
        assert entries(BPFFS / "v3") == SET
        assert entries(BPFFS) == {"v3"}
        network.use(again)
        ping(network, 1)
        assert network.sent == Count(1, 84)
    assert before.read([SLOT])[SLOT].used[:2] == (1, 84)


def test_loaders_take_over_from_each_other(network: Network, kernel_headers: None) -> None:
    """A worker goes from libbpf to bcc with a job running, and not a byte is lost."""
    ping(network, 2)
    with load(BPFFS, 8, "bcc") as compiled:
        with IPRoute() as netlink:
            compiled.attach(netlink, network.ifindex, SLOT)
        ping(network, 2)
        assert compiled.read([SLOT])[SLOT].used[:2] == (4, 4 * 84)


@pytest.mark.parametrize("loader", ["libbpf", "bcc"])
def test_flows_of_an_earlier_form_begin_anew(
    datapath: Datapath, bench: int, kernel_headers: None, loader: str
) -> None:
    """Where a release kept all jobs' flows in one map, a running job goes on with its own."""
    link = replace(PLAN, link=True)
    Judge(datapath, bench).begin(link)
    place = BPFFS / "v3" / "flows"
    place.unlink()
    with Map.create("flows", MapSpec(MapKind.LRU_HASH, 36, 8, 1 << 15)) as earlier:
        pin(earlier.fd, place)
    with load(BPFFS, 8, loader) as again:
        assert again.active_slots() == {SLOT}
        judge = Judge(again, bench)
        answer = back(ip4(ipv4(udp(b"", 80, 4000), source=FAR4, destination=JOB4)))
        assert judge.received(answer) is DropReason.INBOUND_DENIED
        assert judge.sent(ip4(ipv4(udp(b"", 4000, 80)))) is None
        assert judge.received(answer) is None
    assert entries(BPFFS) == {"v3"}
    assert entries(BPFFS / "v3") == SET


def test_another_size_waits_for_the_jobs(datapath: Datapath) -> None:
    """With a job running another number of slots is refused; without one the set is replaced."""
    datapath.activate(SLOT, PLAN)
    with pytest.raises(PrerequisiteError, match="made for 8 slots, not 16, and 1 job"):
        load(BPFFS, 16)
    assert datapath.active_slots() == {SLOT}
    datapath.deactivate(SLOT)
    with load(BPFFS, 16) as larger:
        assert larger.slots == 16
    assert entries(BPFFS) == {"v3"}


def test_a_crash_while_loading_leaves_no_half(datapath: Datapath) -> None:
    """What a crashed start left behind is removed by the next, and the set in force holds."""
    datapath.activate(SLOT, PLAN)
    wreck = BPFFS / "loading"
    wreck.mkdir()
    with Map.create("usage", MapSpec(MapKind.ARRAY, 4, 4, 1)) as left:
        pin(left.fd, wreck / "usage")
    with load(BPFFS, 8) as again:
        assert again.active_slots() == {SLOT}
    assert entries(BPFFS) == {"v3"}


def test_a_failed_load_leaves_nothing(fresh_host: Path) -> None:
    """A loader that fails leaves no pins, and says what is missing."""
    with pytest.raises(PrerequisiteError, match="cannot run bcc"):
        load(BPFFS, 8, "bcc", "/nowhere/python3")
    assert entries(BPFFS) == set()


def test_another_layout_is_not_touched(datapath: Datapath) -> None:
    """Pins of a layout this release does not know make it refuse, and stay."""
    (BPFFS / "v3").rename(BPFFS / "v7")
    with pytest.raises(PrerequisiteError, match="holds v7, which is not of layout v3: drain"):
        load(BPFFS, 8)
    assert entries(BPFFS) == {"v7"}
    assert entries(BPFFS / "v7") == SET


def test_a_directory_outside_bpffs_is_refused(fresh_host: Path) -> None:
    """Pins need a bpffs; the error says how to mount one, and nothing is made."""
    with pytest.raises(PrerequisiteError, match="mount -t bpf bpf /sys/fs/bpf"):
        load(fresh_host / "lark", 8)
    assert not (fresh_host / "lark").exists()


def test_an_object_the_kernel_refuses_tells_why(fresh_host: Path) -> None:
    """What libbpf says about a broken object is in the error."""
    broken = fresh_host / "broken.o"
    broken.write_bytes(b"not an object")
    with pytest.raises(KernelError, match=r"(?s)load .*broken\.o: .*libbpf: "):
        libbpf.load_programs(broken, {}, ["from_job"])


def test_bad_slots_are_refused(datapath: Datapath) -> None:
    """Slots that do not exist, and counters of a living job, are not touched."""
    with pytest.raises(ValueError, match="slot 8 is not one of 8"):
        datapath.activate(8, PLAN)
    with pytest.raises(ValueError, match="slot -1 is not one of 8"):
        datapath.read([-1])
    datapath.activate(SLOT, PLAN)
    with pytest.raises(ValueError, match="has an active plan"):
        datapath.reset(SLOT)


def test_bindings_come_and_go(datapath: Datapath) -> None:
    """An unbound interface is forgotten; forgetting it again is no error."""
    slots = datapath._maps["slots"]
    for ifindex in range(100, 116):
        slots.set(ifindex.to_bytes(4, "little"), (ifindex - 100).to_bytes(4, "little"))
    assert datapath.bindings() == {n: n - 100 for n in range(100, 116)}
    with pytest.raises(BpfError, match="MAP_UPDATE_ELEM"):
        slots.set(b"\1\0\0\0", b"\1\0\0\0")
    assert datapath.unbind(100)
    assert not datapath.unbind(100)
    assert 100 not in datapath.bindings()


def test_unload_leaves_nothing_but_waits_for_jobs(datapath: Datapath) -> None:
    """Unloading removes every pin, twice is no error, and a running job's counters stay."""
    datapath.activate(SLOT, PLAN)
    with pytest.raises(PrerequisiteError, match="1 jobs are counted"):
        unload(BPFFS)
    assert entries(BPFFS / "v3") == SET
    datapath.deactivate(SLOT)
    unload(BPFFS)
    unload(BPFFS)
    assert entries(BPFFS.parent) == set()


def test_both_grace_periods_work(datapath: Datapath) -> None:
    """The wait at a job's end works by membarrier and, where that is refused, by a map of maps."""
    datapath.settle()
    wait_by_map()


def test_features_of_a_good_host(fresh_host: Path) -> None:
    """On a host with everything each probe succeeds, and leaves no interface or pin."""
    found = features(BPFFS, "libbpf", "/usr/bin/python3")
    assert [feature for feature in found if not feature.ok] == []
    assert entries(BPFFS.parent) == set()


def test_features_say_what_is_missing(fresh_host: Path) -> None:
    """Without a bpffs and without bcc's Python the probes say what to do."""
    found = {f.name: f for f in features(fresh_host / "lark", "bcc", "/nowhere/python3")}
    assert not found["bpffs"].ok
    assert "mount -t bpf" in found["bpffs"].detail
    assert not found["loader"].ok
    assert "datapath.python" in found["loader"].detail
