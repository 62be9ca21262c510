"""What the callout is told and what it may answer."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lark_agent.errors import PolicyRefusal
from lark_agent.policy import ads
from lark_agent.policy.overrides import Overrides, UnreadableAnswer, question
from lark_agent.policy.site import Asking
from tests.policy.test_site import ALICE, site

DOCUMENT = Path(__file__).parents[2] / "docs" / "policy.md"
VALUES = st.one_of(
    st.text(st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"])),
    st.integers(-(10**18) + 1, 10**18 - 1),
    st.booleans(),
)
ADS = st.dictionaries(st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,20}", fullmatch=True), VALUES)


@given(ADS, ADS)
def test_the_program_reads_what_rules_see(job: ads.Ad, machine: ads.Ad) -> None:
    """Both ads come back from what is written, and no value can pass for the separator."""
    first, second = question(job, machine).decode().split("------\n")
    assert ads.parse(first.encode(), "job ad") == job
    assert ads.parse(second.encode(), "machine ad") == machine


def test_a_text_of_several_lines_stays_one_line() -> None:
    """A job cannot add lines of its own to what the program reads."""
    told = question({"Title": 'a"\nOwner = "root"\n------'}, {}).decode()
    assert told.splitlines() == ['Title = "a\\"\\nOwner = \\"root\\"\\n------"', "------"]


def test_the_program_sees_the_agents_facts() -> None:
    """What an ad says about its owner is not what the program reads."""
    job, _ = site("").ads(Asking(ALICE, {"owner": "root", "Cmd": "x"}))
    lines = question(job, {}).decode().splitlines()
    assert 'Owner = "alice"' in lines
    assert not any("root" in line for line in lines)


def test_no_answer_is_no_objection() -> None:
    """Silence and empty lines leave everything as it was."""
    assert Overrides.parse(b"\n \n") == Overrides()


def test_an_answer_gives_names_in_any_case() -> None:
    """As ClassAds do."""
    answer = b'Profile = "analysis"\nREACH = "campus, other"\npeers = "owner"\n'
    assert Overrides.parse(answer) == Overrides(
        "analysis", {"reach": "campus, other", "peers": "owner"}
    )


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"no\n", "not of the form Name = value"),
        (b"\xff = 1\n", "not of the form Name = value"),
        (b"Color = 3\n", "it gives Color; it may give profile, connectivity, network"),
        (b'AddressType = "local"\n', "neither static nor dhcp"),
        (b'IPProtocol = "IPX"\n', "not IPv4, IPv6 or both"),
        (b'BridgeInterface = "br9"\n', r"decided by \[networks.NAME\] bridge"),
        (b'VLAN = 3\nNetwork = "lab"\n', "gives network twice"),
        (b"Reach = campus\n", "does not give a literal value"),
        (b"Profile = 3\n", "is not a text in double quotes"),
        (b'Reach = "a"\nreach = "b"\n', "gives reach twice"),
        (b" " * 65537, "over 65536 bytes"),
    ],
)
def test_nonsense_is_no_answer(answer: bytes, said: str) -> None:
    """What cannot be understood is a failure of the program, and says what it is."""
    with pytest.raises(UnreadableAnswer, match=said):
        Overrides.parse(answer)


MACHINE: ads.Ad = {"Machine": "w1", "VLAN": 7, "NetworkType": "nat,none", "Cpus": 8}
NETWORKS = """
[networks.lab]
connectivity = "bridge"
bridge = "br-lab"
vlan = 7
addresses = "dhcp+slaac"
[networks.licences]
connectivity = "ovs"
bridge = "br-ovs"
vlan = 312
addresses = "static"
pool4 = "192.0.2.10-192.0.2.60/24"
"""


@pytest.mark.parametrize(
    ("answer", "kind", "network"),
    [
        ("VLAN = 312", "ovs", "licences"),
        ('VLAN = 312\nAddressType = "static"\nNetworkType = "OVS"', "ovs", "licences"),
        ('VLAN = "lab"\nAddressType = "DHCP"', "bridge", "lab"),
        ('NetworkType = "bridge"\nAddressType = "dhcp"', "bridge", "lab"),
        ('NetworkType = "NAT"\nVLAN = 0\nAddressType = "static"', "nat", ""),
        ('NetworkType = "null"', "none", ""),
        ('Machine = "w1"\nVLAN = 7\nNetworkType = "nat,none"\nCpus = 8', "nat", ""),
    ],
)
def test_an_answer_may_be_larks_machine_ad(answer: str, kind: str, network: str) -> None:
    """A new machine ad: what changed in it decides, what is as it was told says nothing."""
    overrides = Overrides.parse(answer.encode(), MACHINE)
    plan = site(NETWORKS).plan(Asking(ALICE, {}), overrides)
    assert (plan.connectivity.value, plan.network) == (kind, network)


def test_an_answers_protocol_is_the_jobs() -> None:
    """IPProtocol is read as in job ads."""
    assert Overrides.parse(b'IPProtocol = "IPv6"').values == {"ip": "ipv6"}
    assert Overrides.parse(b'IPProtocol = "IPv4, IPv6"').values == {"ip": "both"}


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ('VLAN = 312\nNetworkType = "bridge"', "connectivity bridge, and network 'licences'"),
        ('VLAN = 312\nAddressType = "dhcp"', "AddressType dhcp, and a network with static"),
        (
            'NetworkType = "NAT"\nAddressType = "dhcp"',
            "AddressType dhcp, and a network with static",
        ),
        ("VLAN = 99", "0 networks under .networks. have VLAN id 99"),
    ],
)
def test_an_answer_that_nothing_fits_refuses_the_job(answer: str, said: str) -> None:
    """A job never gets another network than the one that the program described."""
    overrides = Overrides.parse(answer.encode(), MACHINE)
    with pytest.raises(PolicyRefusal, match=said):
        site(NETWORKS).plan(Asking(ALICE, {}), overrides)


@pytest.mark.parametrize(
    ("wanted", "network"), [("licences", "licences"), ("", ""), ("unheard-of", "")]
)
def test_the_documents_program(tmp_path: Path, wanted: str, network: str) -> None:
    """LARK's example: a program that echoes the machine's ad and knows the ids of names."""
    (program,) = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    (tmp_path / "callout").write_text(program)
    policy, asking = site(NETWORKS), Asking(ALICE, {"RequestedVLAN": wanted}, MACHINE)
    job, machine = policy.ads(asking)
    command, told = [sys.executable, str(tmp_path / "callout")], question(job, machine)
    answer = subprocess.run(command, input=told, stdout=subprocess.PIPE, check=True).stdout
    overrides = Overrides.parse(answer, machine)
    if wanted == "unheard-of":
        with pytest.raises(PolicyRefusal, match="RequestedVLAN = unheard-of"):
            policy.plan(asking, overrides)
    else:
        assert policy.plan(asking, overrides).network == network
