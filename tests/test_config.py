"""Configuration: what cannot be used is refused, with the file, the key and a remedy."""

from __future__ import annotations

import json
import tomllib
from ipaddress import IPv4Network, ip_network
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lark_agent.config import (
    AGENT_FILE,
    AgentSettings,
    CollectorSettings,
    Profile,
    Rule,
    examine,
    is_endpoint,
    load,
    parse,
)
from lark_agent.errors import ConfigurationError
from lark_agent.model import BUILT_IN_CLASSES, Connectivity

if TYPE_CHECKING:
    from pathlib import Path


def refusal(text: str, kind: type[AgentSettings | CollectorSettings] = AgentSettings) -> list[str]:
    """Return the lines of the error, each without the name of the file."""
    with pytest.raises(ConfigurationError) as caught:
        parse(kind, text, "site.toml")
    lines = str(caught.value).splitlines()
    assert all(line.startswith("site.toml: ") for line in lines)
    return [line.removeprefix("site.toml: ") for line in lines]


def test_no_file_is_the_embedded_default(tmp_path: Path) -> None:
    """The agent works without any file, and the defaults have no findings of their own."""
    assert load(AgentSettings, None, tmp_path / "absent.toml") == AgentSettings()
    assert parse(AgentSettings, "", "empty") == AgentSettings()
    assert parse(CollectorSettings, "", "empty") == CollectorSettings()


def test_a_named_file_must_exist(tmp_path: Path) -> None:
    """Who names a file does not mean the default."""
    with pytest.raises(ConfigurationError, match=r"cannot read .*absent\.toml"):
        load(AgentSettings, tmp_path / "absent.toml", AGENT_FILE)


def test_the_default_file_is_read_if_it_exists(tmp_path: Path) -> None:
    """`/etc/lark/agent.toml` needs no option."""
    (tmp_path / "agent.toml").write_text('worker = "w1"\n')
    assert load(AgentSettings, None, tmp_path / "agent.toml").worker == "w1"


@pytest.mark.parametrize("content", [b"\xff\xfe", b"worker = ", b"[pool]\n[pool]\n"])
def test_what_is_not_toml_is_refused(tmp_path: Path, content: bytes) -> None:
    """The message names the file, for bytes that are not text as well."""
    file = tmp_path / "agent.toml"
    file.write_bytes(content)
    with pytest.raises(ConfigurationError, match=str(file)):
        load(AgentSettings, file, AGENT_FILE)


def test_a_full_file_is_read_into_typed_values() -> None:
    """Networks, profiles and rules arrive as written."""
    settings = parse(
        AgentSettings,
        """
        default_profile = "quiet"
        [pool]
        wait_seconds = 3
        [classes]
        campus = ["198.51.100.0/24", "2001:db8:2::/48"]
        [profiles.quiet]
        connectivity = "none"
        [profiles.near]
        reach = ["campus", "other"]
        [[rules]]
        when = 'Owner == "alice"'
        profile = "near"
        """,
        "site.toml",
    )
    assert settings.pool.wait_seconds == 3.0
    assert settings.profiles["quiet"] == Profile(connectivity=Connectivity.NONE)
    assert settings.rules == (Rule(when='Owner == "alice"', profile="near"),)
    assert set(settings.all_profiles) == {"nat", "none", "quiet", "near"}


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("bogus = 1", "bogus: unknown key; this table has worker, "),
        ("[pool]\nslot = 1", "pool.slot: unknown key; this table has slots, "),
        ("[profiles.p]\nspeed = 1", "profiles.p.speed: unknown key"),
        ('[[rules]]\nwhen = "x"\nprofile = "nat"\nelse = "none"', "rules[1].else: unknown key"),
    ],
)
def test_unknown_keys_are_refused(text: str, where: str) -> None:
    """A misspelt key is not silently a default; the message lists the right ones."""
    (line,) = refusal(text)
    assert line.startswith(where)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("worker = 3", "worker: Expected `str`, got `int`"),
        ('[pool]\nslots = "64"', "pool.slots: Expected `int`, got `str`"),
        ("[pool]\nslots = 64.5", "pool.slots: Expected `int`, got `float`"),
        ("[pool]\nslots = true", "pool.slots: Expected `int`, got `bool`"),
        ("pool = 3", "pool: Expected a table, got `int`"),
        ('classes = ["a"]', "classes: Expected a table, got a list"),
        ('[classes]\ncampus = "10.0.0.0/8"', "classes.campus: Expected a list, got `str`"),
        ('[classes]\ncampus = ["10.0.0.0/8", 3]', "classes.campus[2]: Expected `str`, got `int`"),
        ('[profiles.p]\nconnectivity = "warp"', "profiles.p.connectivity: Invalid enum value"),
        ('[[rules]]\nprofile = "nat"', "rules[1].when: is missing"),
        ("rules = {}", "rules: Expected a list, got a table"),
    ],
)
def test_wrong_types_are_refused(text: str, line: str) -> None:
    """The message names the key, what was expected and what stands there."""
    (found,) = refusal(text)
    assert found.startswith(line)


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("[pool]\nslots = 0\nready = 0", "pool.slots"),
        ("[pool]\nslots = 4097", "pool.slots"),
        ("[pool]\nready = 65", "pool.ready"),
        ("[pool]\nready = -1", "pool.ready"),
        ("[pool]\nwait_seconds = 241", "pool.wait_seconds"),
        ("[pool]\nwait_seconds = nan", "pool.wait_seconds"),
        ("[pool]\ndrain_seconds = -0.1", "pool.drain_seconds"),
        ("[nat]\nfirst_port = 80", "nat.first_port"),
        ("[nat]\nfirst_port = 20000\nlast_port = 19999", "nat.first_port"),
        ("[nat]\nlast_port = 65536", "nat.first_port"),
        ("[nat]\nrest_seconds = -1", "nat.rest_seconds"),
        ("[nat]\nrest_seconds = nan", "nat.rest_seconds"),
        ("[nat]\nfirst_port = 10000\nlast_port = 10100", "nat"),
        ("[accounting]\ninterval_seconds = 0.5", "accounting.interval_seconds"),
        ("[accounting]\nhistory_days = inf", "accounting.history_days"),
        ("[accounting]\nhistory_days = -1", "accounting.history_days"),
        ('[accounting]\njournal_size = "4 apples"', "accounting.journal_size"),
        ('[accounting]\njournal_size = "1 kB"', "accounting.journal_size"),
        ('[addresses]\nipv4 = "10.0.0.1/8"', "addresses.ipv4"),
        ('[addresses]\nipv4 = "10.0.0.0/24"', "addresses.ipv4"),
        ('[addresses]\nipv4 = "0.0.0.0/0"', "addresses.ipv4"),
        ('[addresses]\nipv4 = "127.0.0.0/8"', "addresses.ipv4"),
        ('[addresses]\nipv4 = "224.0.0.0/8"', "addresses.ipv4"),
        ('[addresses]\nipv4 = "fd00::/64"', "addresses.ipv4"),
        ('[addresses]\nipv6 = "10.0.0.0/8"', "addresses.ipv6"),
        ('[addresses]\nipv6 = "fe80::/64"', "addresses.ipv6"),
        ('[addresses]\nipv6 = "nonsense"', "addresses.ipv6"),
        ('[addresses]\nrouted4 = "2001:db8:7::/112"', "addresses.routed4"),
        ('[addresses]\nrouted4 = "198.18.7.1/24"', "addresses.routed4"),
        ('[addresses]\nrouted4 = "198.18.7.0/26"', "addresses.routed4"),
        ('[addresses]\nrouted4 = "100.98.7.0/24"', "addresses.routed4"),
        ('[addresses]\nrouted6 = "198.18.7.0/24"', "addresses.routed6"),
        ('[addresses]\nrouted6 = "fe80::/112"', "addresses.routed6"),
        ('[addresses]\nrouted6 = "2001:db8:7::/123"', "addresses.routed6"),
        ('[addresses]\nrouted6 = "fd6c:6172:6b00::7:0/112"', "addresses.routed6"),
        ('[profiles.x]\nconnectivity = "routed"', "profiles.x.connectivity"),
        ('[collector]\naddress = "collector"', "collector.address"),
        ('[collector]\naddress = "collector:99999"', "collector.address"),
        ('[datapath]\nloader = "tcx"', "datapath.loader"),
        ('[paths]\nstate = "lib/lark"', "paths.state"),
        ('worker = "no spaces"', "worker"),
        ('worker = "-dash"', "worker"),
        ('default_profile = "fast"', "default_profile"),
        ('[profiles."two words"]', "profiles.two words"),
        ('[profiles.p]\nreach = ["campus"]', "profiles.p.reach"),
        ('[[rules]]\nwhen = "true"\nprofile = "fast"', "rules[1].profile"),
        ("[classes]\nother = []", "classes.other"),
        ('[classes]\n"a b" = []', "classes.a b"),
        ('[classes]\na = ["10.0.0.1/8"]', "classes.a"),
        ('[classes]\na = ["ten"]', "classes.a"),
    ],
)
def test_values_that_cannot_be_used_are_refused(text: str, key: str) -> None:
    """The finding stands under the key that is to be changed."""
    assert any(line.startswith(f"{key}: ") for line in refusal(text))


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ('listen = "9620"', "listen"),
        ('listen = "host:70000"', "listen"),
        ('socket = "query.sock"', "socket"),
        ('store = "/var/lib/x.sqlite"', "store"),
    ],
)
def test_the_collector_is_as_strict(text: str, key: str) -> None:
    """The same rules for the other file."""
    (line,) = refusal(text, CollectorSettings)
    assert line.startswith(f"{key}: ")


def test_the_remedy_is_of_the_right_family() -> None:
    """Who errs in ipv6 is shown an IPv6 network, and IPv4 likewise."""
    (line,) = refusal('[addresses]\nipv6 = "nonsense"')
    assert "such as fd6c:6172:6b00::/64" in line
    (line,) = refusal('[addresses]\nipv4 = "nonsense"')
    assert "such as 100.98.0.0/16" in line


def test_the_same_network_cannot_be_in_two_classes() -> None:
    """The later class is refused, by a message that names the earlier."""
    (line,) = refusal('[classes]\na = ["10.0.0.0/8"]\nb = ["192.0.2.0/24", "10.0.0.0/8"]')
    assert line.startswith("classes.b: 10.0.0.0/8 is also in class 'a'")


def test_the_spelling_of_a_network_does_not_hide_an_overlap() -> None:
    """Networks are compared as networks."""
    (line,) = refusal('[classes]\na = ["2001:db8::/32"]\nb = ["2001:0db8:0::/32"]')
    assert line.startswith("classes.b: ")


def test_nested_networks_are_two_classes() -> None:
    """The longest prefix wins, so a part of another class's network is no overlap."""
    text = '[classes]\na = ["10.0.0.0/8"]\nb = ["10.1.0.0/16"]'
    assert set(parse(AgentSettings, text, "f").classes) == {"a", "b"}


def test_at_most_thirteen_classes_fit_beside_the_built_in() -> None:
    """The kernel's counters are sixteen wide."""

    def classes(number: int) -> str:
        return "[classes]\n" + "\n".join(f'c{n} = ["10.{n}.0.0/16"]' for n in range(number))

    assert len(parse(AgentSettings, classes(13), "f").classes) == 13
    (line,) = refusal(classes(14))
    assert line.startswith("classes: 14 classes; at most 13 fit beside other and jobs and worker")
    for name in BUILT_IN_CLASSES:
        (line,) = refusal(f'[classes]\n{name} = ["10.0.0.0/8"]')
        assert line.startswith(f"classes.{name}: not a usable name")


def test_all_wrong_types_are_reported_at_once() -> None:
    """Nobody edits a file once for each of its mistakes."""
    lines = refusal('bogus = 1\nworker = 3\n[pool]\nslots = "x"\n[nat]\nlast_port = 1.5\nz = 2\n')
    assert [line.partition(":")[0] for line in lines] == [
        "bogus", "worker", "pool.slots", "nat.last_port", "nat.z",
    ]  # fmt: skip


def test_all_wrong_values_are_reported_at_once() -> None:
    """Ranges, forms and names from every table in one error."""
    lines = refusal(
        'default_profile = "x"\nworker = "a b"\n[pool]\nready = 99\nwait_seconds = 999\n'
        '[addresses]\nipv4 = "a"\nipv6 = "b"\n[datapath]\nloader = "c"\n'
    )
    assert {line.partition(":")[0] for line in lines} == {
        "default_profile", "worker", "pool.ready", "pool.wait_seconds",
        "addresses.ipv4", "addresses.ipv6", "datapath.loader",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "good"),
    [
        ("collector.example.org:9620", True),
        ("192.0.2.1:1", True),
        ("[2001:db8::1]:9620", True),
        ("2001:db8::1:9620", False),
        ("host", False),
        (":9620", False),
        ("host:65536", False),
        ("http://host:80", False),
        ("host :80", False),
        ("[host]:80", False),
    ],
)
def test_endpoints(text: str, good: bool) -> None:
    """A host or bracketed IPv6 address, a colon, a port."""
    assert is_endpoint(text) is good


@given(st.integers(1, 4096), st.integers(1024, 65535), st.integers(1024, 65535))
def test_accepted_ports_always_give_every_slot_a_block(slots: int, first: int, last: int) -> None:
    """Whatever passes the check leaves at least 16 ports a slot, within the ports that exist."""
    text = f"[pool]\nslots = {slots}\nready = 0\n[nat]\nfirst_port = {first}\nlast_port = {last}\n"
    try:
        settings = parse(AgentSettings, text, "f")
    except ConfigurationError:
        assert (last - first + 1) // slots < 16
    else:
        assert first + slots * 16 - 1 <= settings.nat.last_port <= 65535


@given(st.integers(0, 2**32 - 1), st.integers(0, 32), st.integers(1, 4096))
def test_accepted_ranges_hold_every_slot(base: int, prefix: int, slots: int) -> None:
    """An accepted IPv4 range has an address for the gateway and each slot."""
    network = ip_network((base & ~(2 ** (32 - prefix) - 1), prefix))
    text = (
        f"[pool]\nslots = {slots}\nready = 0\n[nat]\nfirst_port = 1024\nlast_port = 65535\n"
        f'[addresses]\nipv4 = "{network}"\n'
    )
    try:
        settings = parse(AgentSettings, text, "f")
    except ConfigurationError:
        return
    assert IPv4Network(settings.addresses.ipv4).num_addresses > slots + 2


@given(st.integers(16, 32), st.integers(1, 4096))
def test_accepted_prefixes_hold_every_slot(prefix: int, slots: int) -> None:
    """A delegated IPv4 prefix is accepted exactly if network, gateway, slots and last fit."""
    text = f"[pool]\nslots = {slots}\nready = 0\n[nat]\nfirst_port = 1024\nlast_port = 65535\n"
    text += f'[addresses]\nrouted4 = "198.18.0.0/{prefix}"\n'
    text += '[profiles.x]\nconnectivity = "routed"\n'
    fits = 2 ** (32 - prefix) >= slots + 3
    ports = (65535 - 1024 + 1) // slots >= 16
    found = {finding.key for finding in examine(AgentSettings, text)[1]}
    assert found == ({"addresses.routed4"} if not fits else set()) | (
        {"nat"} if not ports else set()
    )


leaves = st.none() | st.booleans() | st.integers(-10, 10) | st.floats() | st.text(max_size=5)
names = st.sampled_from(
    [
        "pool",
        "slots",
        "classes",
        "profiles",
        "rules",
        "when",
        "profile",
        "reach",
        "nat",
        "x",
        "worker",
        "uplink",
        "rate",
        "networks",
        "services",
        "port",
        "queues",
        "quotas",
        "bytes",
    ]
)
tables = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=4),
    max_leaves=12,
)


@settings(suppress_health_check=[HealthCheck.too_slow])  # the machine may be busy
@given(st.dictionaries(names, tables, max_size=5))
def test_no_file_whatsoever_breaks_the_reader(data: dict[str, object]) -> None:
    """Any TOML is either settings or a ConfigurationError with lines that name the file."""
    text = "\n".join(f"{key} = {_inline(value)}" for key, value in data.items())
    tomllib.loads(text)
    try:
        parse(AgentSettings, text, "f")
    except ConfigurationError as error:
        lines = str(error).split("\nf: ")
        assert lines[0].startswith("f: ")


def _inline(value: object) -> str:
    """Write a value as inline TOML; None as an empty table."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {_inline(v)}" for key, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_inline, value)) + "]"
    if value is None:
        return "{}"
    if isinstance(value, float):
        return repr(value)
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
