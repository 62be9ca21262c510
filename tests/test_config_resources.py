"""Tables that plans refer to by name: what cannot be used is refused under its key."""

from __future__ import annotations

from ipaddress import IPv4Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lark_agent.config import AgentSettings, examine, pool_of, ports_of
from lark_agent.model import Port
from lark_agent.quantities import NotAQuantity, rate_text, rates, rates_text, size

NETWORK = "[networks.lab]\n"
QUOTA = "[quotas.q]\n"
UPLINK = '[uplink]\nrate = "1 Gbit/s"\n'


def findings(text: str) -> list[tuple[str, str]]:
    """Return key and text of everything that is wrong."""
    return [(found.key, found.text) for found in examine(AgentSettings, text)[1]]


@pytest.mark.parametrize(
    "text",
    [
        NETWORK + 'connectivity = "bridge"\nbridge = "br0"',
        NETWORK + 'connectivity = "ovs"\nbridge = "ovs0"\nvlan = 5',
        NETWORK + 'connectivity = "macvlan"\nparent = "eth1"\naddresses = "dhcp+slaac"',
        NETWORK + 'connectivity = "vlan"\nvlan = 4094\naddresses = "static"\n'
        'pool4 = "192.0.2.10-192.0.2.60/24"\ngateway4 = "192.0.2.1"\n'
        'pool6 = "2001:db8::10-2001:db8::60/64"\ngateway6 = "2001:db8::1"\n'
        'dns = ["192.0.2.53", "2001:db8::53"]\nready = 2',
        '[services]\nsquid = { port = "tcp/3128" }\nflex = { port = "UDP/9", loopback = true }',
        UPLINK + '[queues.a]\nrate = "2 Gbit/s"\nguarantee = "600 Mbit/s"\npriority = 0\n'
        '[queues.b]\nguarantee = "400 Mbit/s sent"',
        QUOTA + 'bytes = "64 MiB"\naction = "throttle"\nthrottle = "1 Mbit/s"\nclasses = ["other"]',
        QUOTA + 'bytes = "2 TB"\nper = "group"\nhook = true\n[quota_hook]\ncommand = ["/bin/mail"]',
        "[prices]\nother = { sent = 0.09 }",
        "[prices]\njobs = { sent = 0.01 }\nworker = { received = 0.01 }",
        QUOTA + 'bytes = "1 GB"\nclasses = ["jobs", "worker"]',
    ],
)
def test_what_sites_write_is_accepted(text: str) -> None:
    """Every kind of network, both kinds of service, queues, quotas and prices."""
    assert findings(text) == []


@pytest.mark.parametrize(
    ("text", "key", "said"),
    [
        (NETWORK + 'connectivity = "nat"', "networks.lab.connectivity", "'nat' is none of bridge"),
        (NETWORK + 'connectivity = "bridge"', "networks.lab.bridge", "is missing: name the bridge"),
        (NETWORK + 'connectivity = "ovs"', "networks.lab.bridge", "is missing: name the bridge"),
        (NETWORK + 'connectivity = "vlan"', "networks.lab.vlan", "is missing: give the 802.1Q id"),
        (
            NETWORK + 'connectivity = "vlan"\nvlan = 4095',
            "networks.lab.vlan",
            "4095 is not between 1 and 4094",
        ),
        (
            NETWORK + 'connectivity = "macvlan"\naddresses = "static"',
            "networks.lab.addresses",
            "static needs pool4 or pool6",
        ),
        (
            NETWORK + 'connectivity = "macvlan"\npool4 = "192.0.2.60-192.0.2.10/24"',
            "networks.lab.pool4",
            "with FIRST before LAST",
        ),
        (
            NETWORK + 'connectivity = "macvlan"\npool6 = "192.0.2.1-192.0.2.9/24"',
            "networks.lab.pool6",
            "is not FIRST-LAST/PREFIX",
        ),
        (
            NETWORK + 'connectivity = "macvlan"\ngateway4 = "::1"',
            "networks.lab.gateway4",
            "'::1'",
        ),
        (NETWORK + 'connectivity = "macvlan"\ndns = ["dns"]', "networks.lab.dns", "'dns'"),
        (NETWORK + 'connectivity = "macvlan"\nready = -1', "networks.lab.ready", "-1 is not"),
        ('[networks.all]\nconnectivity = "macvlan"', "networks.all", "not a usable name"),
        ('[services]\nweb = { port = "80" }', "services.web.port", "'80' is no port"),
        ('[services]\ndns = { port = "tcp/5353" }', "services.dns", "is built in"),
        (
            '[services]\nweb = { port = "tcp/80-81" }',
            "services.web.port",
            "list a service for each",
        ),
        (
            '[services]\na = { port = "tcp/80" }\nb = { port = "TCP/80" }',
            "services.b.port",
            "tcp/80 is also the service 'a'",
        ),
        (
            "[services]\n" + "".join(f's{n} = {{ port = "tcp/{n + 1}" }}\n' for n in range(31)),
            "services",
            "31 services; at most 30 fit",
        ),
        ('[queues.none]\nrate = "1 Mbit/s"', "queues.none", "not a usable name"),
        ('[queues.q]\nrate = "quick"', "queues.q.rate", "'quick' is not a rate"),
        ("[queues.q]\npriority = 8", "queues.q.priority", "8 is not between 0 and 7"),
        (
            UPLINK + '[queues.q]\nrate = "5 Mbit/s"\nguarantee = "6 Mbit/s"',
            "queues.q.guarantee",
            "6 Mbit/s is more than the queue's rate, 5 Mbit/s",
        ),
        (
            UPLINK
            + '[queues.a]\nguarantee = "600 Mbit/s"\n[queues.b]\nguarantee = "401 Mbit/s sent"',
            "queues",
            "the guarantees of all queues make 1.001 Gbit/s sent, and [uplink] rate is 1 Gbit/s",
        ),
        ('[queues.a]\nguarantee = "1 Mbit/s sent"', "queues", "and [uplink] rate is not given"),
        ('[uplink]\nrate = "1 GB"', "uplink.rate", "'1 GB' is not a rate"),
        (UPLINK + "priority_dscp = [46, 0]", "uplink.priority_dscp", "2 code points; give eight"),
        (
            UPLINK + "priority_dscp = [64, 0, 0, 0, 0, 0, 0, 0]",
            "uplink.priority_dscp",
            "64 is no code point",
        ),
        (
            "[uplink]\npriority_dscp = [46, 0, 0, 0, 0, 0, 0, 0]",
            "uplink.priority_dscp",
            "needs [uplink] rate",
        ),
        (QUOTA + 'bytes = "0"', "quotas.q.bytes", "is 0"),
        (QUOTA + 'bytes = "2 Tbit"', "quotas.q.bytes", "write one such as 500 MB, 2 TB or 64 MiB"),
        (QUOTA + 'bytes = "1 MB"\nclasses = ["mars"]', "quotas.q.classes", "no class 'mars'"),
        (QUOTA + 'bytes = "1 MB"\naction = "throttle"', "quotas.q.throttle", "which needs it"),
        (QUOTA + 'bytes = "1 MB"\nthrottle = "1 Mbit/s"', "quotas.q.throttle", "action throttle"),
        (QUOTA + 'bytes = "1 MB"\nperiod = "day"', "quotas.q.period", "a job's own quota has none"),
        (
            QUOTA + 'bytes = "1 MB"\nper = "job"\nunreachable = "cut"',
            "quotas.q.unreachable",
            "no collector is asked about a job's own quota",
        ),
        (QUOTA + 'bytes = "1 MB"\nhook = true', "quotas.q.hook", "give [quota_hook] command"),
        ('[quota_hook]\ncommand = ["mail"]', "quota_hook.command", "'mail' is not an absolute"),
        ("[quota_hook]\nper_hour = 0", "quota_hook.per_hour", "0 is not between 1 and 3600"),
        ("[quota_hook]\ntimeout_seconds = 61", "quota_hook.timeout_seconds", "61.0 is not between"),
        ("[prices]\nmars = { sent = 1.0 }", "prices.mars", "no class 'mars' is defined"),
        ("[prices]\nother = { sent = -1.0 }", "prices.other.sent", "-1.0 is not between"),
        ('[requests]\nnetworks = ["lab"]', "requests.networks", "no network 'lab' is defined"),
        ('[requests]\ninbound = "ports"', "requests.inbound", "use established or all"),
        ('[requests]\ninbound = "none"', "requests.inbound", "use established or all"),
        ('[requests]\nbandwidth = "lots"', "requests.bandwidth", "'lots' is not a rate"),
    ],
)
def test_what_cannot_be_used_is_refused_under_its_key(text: str, key: str, said: str) -> None:
    """One finding, and words for the one who has to change the file."""
    ((found, why),) = findings(text)
    assert found == key
    assert said in why


@pytest.mark.parametrize(
    ("text", "sent", "received"),
    [
        ("100 Mbit/s", 10**8, 10**8),
        ("1.5Gbps", 15 * 10**8, 15 * 10**8),
        ("10 mbit sent, 1 GBIT/S received", 10**7, 10**9),
        ("8 kbit/s received", 0, 8000),
        ("500 bit/s", 500, 500),
        (2.5, 2_500_000, 2_500_000),
        (0, 0, 0),
    ],
)
def test_rates_are_read_as_people_write_them(text: object, sent: int, received: int) -> None:
    """In powers of 1000; a bare number is Mbit/s, a direction left out has none."""
    found = rates(text)
    assert (found.sent, found.received) == (sent, received)


@pytest.mark.parametrize(
    "text",
    ["", "100", "100 MB/s", "1 Mbit/s both", "1 Mbit/s, 2 Mbit/s", "11 Tbit/s", -1, True, None,
     float("nan"), float("inf"), "1 Mbit/s sent, 2 Mbit/s sent"],
)  # fmt: skip
def test_what_is_no_rate_is_refused(text: object) -> None:
    """Bytes for bits, two rates for one direction, and more than any link has."""
    with pytest.raises(NotAQuantity):
        rates(text)


@given(st.integers(1, 10**9))
def test_a_rate_that_is_written_reads_back(rate: int) -> None:
    """What `lark` shows can be pasted into a file."""
    assert rates(rate_text(rate)).sent == rate
    assert rates(rates_text(rates(f"{rate} bit/s sent"))) == rates(f"{rate} bit/s sent")


@pytest.mark.parametrize(
    ("text", "found"),
    [("500 MB", 5 * 10**8), ("2TB", 2 * 10**12), ("64 MiB", 2**26), ("7", 7), ("1.5 kB", 1500)],
)
def test_sizes_are_read_as_people_write_them(text: str, found: int) -> None:
    """Powers of 1000, or of 1024 where the unit says so."""
    assert size(text) == found


def test_ports_and_pools_are_read() -> None:
    """Ranges include both ends."""
    assert ports_of("UDP/5-6") == (Port("udp", 5), Port("udp", 6))
    for text in ("tcp", "tcp/0", "tcp/65536", "tcp/9-8", "tcp/1-65", "icmp/1"):
        with pytest.raises(ValueError, match="is no port"):
            ports_of(text)
    first, last, prefix = pool_of("192.0.2.9 - 192.0.2.9/32", IPv4Address)
    assert (str(first), str(last), prefix) == ("192.0.2.9", "192.0.2.9", 32)
