"""Of the worker itself a job reaches the listed services that its plan allows, and nothing else."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address
from typing import TYPE_CHECKING

import pytest

from lark_agent.datapath.layout import TO_LOOPBACK
from lark_agent.datapath.ports import PortTable
from lark_agent.datapath.services import number_services
from lark_agent.errors import ConfigurationError, PrerequisiteError
from lark_agent.model import Direction, DropReason, Inbound, Peers, Port
from tests.datapath.cases import PEER6, back
from tests.datapath.frames import ICMP, ICMPV6, SCTP, TCP, UDP, icmp, ip4, ip6, ipv4, ipv6, syn, udp
from tests.datapath.network import (
    FAR4,
    GATEWAY4,
    GATEWAY6,
    GATEWAYS,
    JOB4,
    JOB6,
    PEERS,
    PLAN,
    SLOT,
)
from tests.datapath.testrun import Frame

if TYPE_CHECKING:
    from tests.datapath.judge import Judge

pytestmark = pytest.mark.root
PROXY, LICENSE = Port("tcp", 3128), Port("udp", 6200)
DENIED, REFUSED = DropReason.SERVICE_DENIED, DropReason.INBOUND_DENIED


def out4(payload: bytes, protocol: int, fragment: int = 0) -> bytes:
    return ip4(ipv4(payload, protocol, destination=GATEWAY4, fragment=fragment))


def out6(payload: bytes, protocol: int) -> bytes:
    return ip6(ipv6(payload, protocol, destination=GATEWAY6))


def in4(payload: bytes, protocol: int, fragment: int = 0) -> bytes:
    return back(ip4(ipv4(payload, protocol, source=GATEWAY4, destination=JOB4, fragment=fragment)))


def in6(payload: bytes, protocol: int) -> bytes:
    return back(ip6(ipv6(payload, protocol, source=GATEWAY6, destination=JOB6)))


def test_dns_and_nothing_else_without_a_list(judge: Judge) -> None:
    """DNS passes by UDP and TCP, both families and directions; other ports do not."""
    judge.begin(replace(PLAN, classes=0))
    for out, coming in ((out4, in4), (out6, in6)):
        for protocol, make in ((UDP, lambda a, b: udp(bytes(9), a, b)), (TCP, syn)):
            assert judge.sent(out(make(40000, 53), protocol)) is None
            assert judge.received(coming(make(53, 40000), protocol)) is None
            for port in (22, 52, 54, 5300, 3128):
                assert judge.sent(out(make(53, port), protocol)) is DENIED
                assert judge.received(coming(make(port, 53), protocol)) is REFUSED
    used = judge.datapath.read([SLOT])[SLOT].usage(judge.datapath.classes.names).classes
    assert [c.traffic_class for c in used] == ["worker"]


def test_listed_services_by_plan(judge: Judge) -> None:
    """A plan allows some services or all; the protocol counts as much as the number."""
    judge.datapath.set_services({"proxy": PROXY, "license": LICENSE})
    table = judge.datapath.services
    for allowed in ({"proxy"}, {"license", "dns"}, set[str](), {"proxy", "license"}):
        judge.begin(replace(PLAN, services=table.mask(allowed)))
        assert (judge.sent(out4(syn(9, 3128), TCP)) is None) == ("proxy" in allowed)
        assert (judge.sent(out4(udp(b"", 9, 6200), UDP)) is None) == ("license" in allowed)
        assert (judge.sent(out6(udp(b"", 9, 53), UDP)) is None) == ("dns" in allowed)
        assert judge.sent(out4(udp(b"", 9, 3128), UDP)) is DENIED
        assert judge.sent(out4(syn(9, 6200), TCP)) is DENIED
        assert judge.sent(out4(bytes(20), SCTP)) is DENIED
    judge.begin(PLAN)
    assert judge.sent(out4(syn(9, 3128), TCP)) is None
    assert judge.sent(ip4(ipv4(syn(9, 22), TCP, destination=FAR4))) is None


def test_fragments_hide_no_port(judge: Judge) -> None:
    """Later fragments to the worker are refused, and first ones too short to show a port."""
    judge.begin(PLAN)
    dns = udp(bytes(64), 9, 53)
    assert judge.sent(out4(dns, UDP, fragment=0x2000)) is None
    assert judge.sent(out4(dns, UDP, fragment=3)) is DENIED
    hidden = out4(b"", UDP, fragment=0x2000) + dns  # after the packet's end: Ethernet padding
    assert judge.sent(hidden) is DropReason.MALFORMED
    whole = out4(b"", UDP) + dns
    assert judge.sent(whole) is DENIED


def test_ping_and_errors(judge: Judge) -> None:
    """Ping is a service like others; errors of the worker come in, a job's do not go to it."""
    for listed in (False, True):
        judge.datapath.set_services({"ping": Port("icmp", 0)} if listed else {})
        judge.begin(PLAN)
        expected = None if listed else DENIED
        assert judge.sent(out4(icmp(8), ICMP)) is expected
        assert judge.sent(out6(icmp(128), ICMPV6)) is expected
        assert judge.received(in4(icmp(0), ICMP)) is (None if listed else REFUSED)
        assert judge.received(in6(icmp(129), ICMPV6)) is (None if listed else REFUSED)
        assert judge.received(in4(icmp(8), ICMP)) is REFUSED
        for error4, error6 in ((3, 1), (11, 3)):
            assert judge.received(in4(icmp(error4), ICMP)) is None
            assert judge.received(in6(icmp(error6), ICMPV6)) is None
            assert judge.sent(out4(icmp(error4), ICMP)) is DENIED
            assert judge.sent(out6(icmp(error6), ICMPV6)) is DENIED
        assert judge.received(in4(icmp(5), ICMP)) is REFUSED


def test_the_worker_as_a_client_of_the_job(judge: Judge) -> None:
    """Where the plan opens a port the worker may call, and that call is answered; no other is."""
    call, answer = in4(syn(50000, 8000), TCP), out4(syn(8000, 50000), TCP)
    judge.begin(PLAN)
    assert judge.received(call) is REFUSED
    opened = replace(PLAN, inbound=Inbound.PORTS, ports=frozenset({(TCP, 8000)}))
    judge.begin(opened)
    assert judge.sent(answer) is DENIED, "before the call"
    assert judge.received(call) is None
    assert judge.sent(answer) is None
    assert judge.sent(out4(syn(8000, 50001), TCP)) is DENIED
    assert judge.received(in4(syn(50000, 8001), TCP)) is REFUSED
    assert judge.received(in4(udp(b"", 50000, 8000), UDP)) is REFUSED
    judge.begin(opened)
    assert judge.sent(answer) is DENIED, "a call to an earlier job"
    judge.begin(PLAN)
    judge.datapath.change(SLOT, replace(PLAN, inbound=Inbound.ALL))
    assert judge.received(in4(syn(50000, 8001), TCP)) is None
    judge.datapath.change(SLOT, opened)
    assert judge.received(in4(syn(50000, 8001), TCP)) is REFUSED
    assert judge.received(call) is None


def test_a_call_that_has_no_ports_is_no_leave_for_errors(judge: Judge) -> None:
    """A worker that asks a job the time by ICMP is answered, and gets no errors from it."""
    judge.begin(replace(PLAN, inbound=Inbound.ALL))
    assert judge.received(in4(icmp(13), ICMP)) is None
    for kind in (3, 4, 11, 12):
        assert judge.sent(out4(icmp(kind), ICMP)) is DENIED


def test_tunnels_are_no_service(judge: Judge) -> None:
    """What a tunnel wraps goes where its own header says, by the same rules, and to no worker."""
    judge.datapath.set_services({"proxy": PROXY, "ping": Port("icmp", 0)})
    judge.begin(PLAN)
    inner4 = ipv4(syn(9, 3128), TCP, destination=GATEWAY4)
    inner6 = ipv6(syn(9, 3128), TCP, destination=GATEWAY6)
    plain_gre, teredo = bytes([0, 0, 8, 0]), 3544
    tunnels = ((4, inner4), (41, inner6), (47, plain_gre + inner4), (50, bytes(40)),
               (UDP, udp(inner6, 9, teredo)))  # fmt: skip
    denied4, denied6 = "203.0.113.7", PEER6
    for protocol, payload in tunnels:
        assert judge.sent(out4(payload, protocol)) is DENIED
        assert judge.sent(out6(payload, protocol)) is DENIED
        away = ip4(ipv4(payload, protocol, destination=denied4))
        judge.datapath.change(SLOT, replace(PLAN, classes=1))
        assert judge.sent(away) is DropReason.CLASS_DENIED
        peer = ip6(ipv6(payload, protocol, destination=denied6))
        assert judge.sent(peer) is DropReason.PEER_DENIED
        assert judge.sent(ip4(ipv4(payload, protocol))) is None
    used = judge.datapath.read([SLOT])[SLOT].used_by(0, Direction.SENT)
    assert used.packets == len(tunnels)


def test_inbound_none_lets_nothing_in(judge: Judge) -> None:
    """Not even answers pass, of nobody; what the job sends goes out."""
    judge.begin(replace(PLAN, inbound=Inbound.NONE))
    assert judge.sent(ip4(ipv4())) is None
    assert judge.received(back(ip4(ipv4(source=FAR4, destination=JOB4)))) is REFUSED
    assert judge.received(in4(udp(bytes(9), 53, 9), UDP)) is REFUSED
    assert judge.datapath.read([SLOT])[SLOT].used_by(0, Direction.RECEIVED).packets == 0


def test_numbers_of_services_stay() -> None:
    """A name keeps its number while wanted or in use; `dns` is 0; too many are refused."""
    first = number_services((), (), ["proxy", "license"])
    assert first[:3] == ("dns", "proxy", "license")
    assert number_services(first, {1}, ["license", "new"])[:4] == ("dns", "proxy", "license", "new")
    assert number_services(first, (), ["new", "license"])[:3] == ("dns", "new", "license")
    full = number_services((), (), [f"s{n}" for n in range(31)])
    with pytest.raises(PrerequisiteError, match="no number is free for service 'new'"):
        number_services(full, range(32), ["new"])


CHIRP = 40123
WITH_CHIRP = replace(PLAN, launcher=frozenset({CHIRP}), gateway=IPv4Address(GATEWAY4))


def test_a_port_of_the_launcher_is_the_jobs(judge: Judge) -> None:
    """One port by one address: TCP there and back; marked, so that the firewall sends it on."""
    judge.begin(replace(WITH_CHIRP, classes=0, services=0))
    asked = out4(syn(9, CHIRP), TCP)
    assert judge.after(Frame(asked)).mark == TO_LOOPBACK
    assert judge.received(in4(syn(CHIRP, 9), TCP)) is None
    for port in (CHIRP - 1, CHIRP + 1, 53):
        assert judge.sent(out4(syn(CHIRP, port), TCP)) is DENIED
        assert judge.received(in4(syn(port, CHIRP), TCP)) is REFUSED
    assert judge.sent(out4(udp(b"", 9, CHIRP), UDP)) is DENIED
    assert judge.received(in4(udp(b"", CHIRP, 9), UDP)) is REFUSED
    assert judge.sent(out4(syn(9, CHIRP), TCP, fragment=3)) is DENIED
    used = judge.datapath.read([SLOT])[SLOT].usage(judge.datapath.classes.names).classes
    assert [c.traffic_class for c in used] == ["worker"]


def test_only_a_port_of_the_launcher_is_marked(judge: Judge) -> None:
    """What goes to the site's services, or to the world, has no mark."""
    judge.datapath.set_services({"proxy": PROXY})
    judge.begin(WITH_CHIRP)
    for frame in (out4(syn(9, 3128), TCP), ip4(ipv4(syn(9, CHIRP), TCP, destination=FAR4))):
        assert judge.after(Frame(frame)).mark == 0


def test_the_launcher_has_one_address(judge: Judge) -> None:
    """The same port of another address of the worker may be anybody's: it is refused."""
    other = IPv4Address("192.0.2.9")
    judge.datapath.set_classes({}, PEERS, (*GATEWAYS, other))
    judge.begin(WITH_CHIRP)
    assert judge.sent(ip4(ipv4(syn(9, CHIRP), TCP, destination=str(other)))) is DENIED
    answer = ipv4(syn(CHIRP, 9), TCP, source=str(other), destination=JOB4)
    assert judge.received(back(ip4(answer))) is REFUSED
    assert judge.sent(out6(syn(9, CHIRP), TCP)) is DENIED


def test_a_port_of_the_launcher_is_no_other_jobs(judge: Judge) -> None:
    """Neither a job beside it, nor a later one in the same slot, nor one that opens the number."""
    other = replace(WITH_CHIRP, addr4=IPv4Address("100.98.0.6"))
    judge.datapath.activate(SLOT + 1, other)
    for plan in (PLAN, replace(PLAN, inbound=Inbound.PORTS, ports=frozenset({(TCP, CHIRP)}))):
        judge.begin(plan)
        assert judge.sent(out4(syn(9, CHIRP), TCP)) is DENIED
    judge.begin(WITH_CHIRP)
    assert judge.sent(out4(syn(9, CHIRP), TCP)) is None
    assert judge.received(in4(syn(9, CHIRP), TCP)) is REFUSED, "it opens nothing"
    judge.begin(PLAN)
    assert judge.sent(out4(syn(9, CHIRP), TCP)) is DENIED


def test_a_port_of_the_launcher_goes_with_it(judge: Judge) -> None:
    """Taken back while the job runs; another agent finds what there is, and can too."""
    judge.begin(replace(WITH_CHIRP, inbound=Inbound.PORTS, ports=frozenset({(TCP, 8000)})))
    found = PortTable(judge.datapath._maps["open_ports"])
    assert found.of_launcher(SLOT) == {CHIRP}
    assert found.of_launcher(SLOT + 1) == set()
    found.let_launcher(SLOT, frozenset(), IPv4Address(GATEWAY4))
    assert judge.sent(out4(syn(9, CHIRP), TCP)) is DENIED
    assert judge.received(in4(syn(50000, 8000), TCP)) is None


def test_an_address_for_the_worker_alone(judge: Judge) -> None:
    """A job without IPv4 may have the worker's services by it, and nothing else whatever it be."""
    plan = replace(WITH_CHIRP, addr4=None, local4=IPv4Address(JOB4), peers=Peers.ALL)
    judge.datapath.activate(SLOT + 1, replace(plan, addr4=IPv4Address("100.98.0.6"), local4=None))
    judge.begin(plan)
    assert judge.sent(out4(syn(9, CHIRP), TCP)) is None
    assert judge.received(in4(syn(CHIRP, 9), TCP)) is None
    assert judge.sent(out4(udp(b"", 9, 53), UDP)) is None
    for away in (FAR4, "100.98.0.6", "203.0.113.7"):
        assert judge.sent(ip4(ipv4(destination=away))) is DropReason.CLASS_DENIED
        coming = back(ip4(ipv4(source=away, destination=JOB4)))
        assert judge.received(coming) is DropReason.CLASS_DENIED
    assert judge.sent(ip4(ipv4(source="100.98.0.7", destination=GATEWAY4))) is (
        DropReason.SPOOFED_ADDRESS
    )
    judge.begin(replace(plan, local4=None))
    assert judge.sent(out4(syn(9, CHIRP), TCP)) is DropReason.SPOOFED_ADDRESS


def test_services_change_under_a_job(judge: Judge) -> None:
    """A removed service is closed at once, and its number is not given to another while in use."""
    judge.datapath.set_services({"proxy": PROXY})
    judge.begin(replace(PLAN, services=judge.datapath.services.mask({"proxy"})))
    judge.datapath.set_services({"license": LICENSE})
    assert judge.sent(out4(syn(9, 3128), TCP)) is DENIED
    assert judge.sent(out4(udp(b"", 9, 6200), UDP)) is DENIED
    with pytest.raises(ConfigurationError, match="no service 'proxy'; known: dns, license"):
        judge.datapath.services.mask({"proxy"})
