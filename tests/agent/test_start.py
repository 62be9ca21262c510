"""Starts that must fail: a documented status, words that name thing and remedy, no traces."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from tests.agent.worker import in_kernel, refused_start
from tests.lab.world import Lab

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: it makes namespaces"),
]


@pytest.fixture(scope="module")
def world() -> Iterator[Lab]:
    with Lab() as made:
        yield made


WRONG = {
    "unknown key": ("[pool]\nslotz = 4\n", "pool.slotz: unknown key; this table has slots"),
    "unknown table": ("[pol]\n", "pol: unknown key"),
    "wrong type": ('[pool]\nslots = "four"\n', "pool.slots: Expected `int`"),
    "wrong type in a list": ("[classes]\ncampus = [7]\n", "classes.campus[1]: Expected `str`"),
    "out of range": ("[pool]\nslots = 0\n", "pool.slots: 0 is not between 1 and 4096"),
    "overlapping classes": (
        '[classes]\na = ["192.0.2.0/24"]\nb = ["192.0.2.0/24"]\n',
        "classes.b: 192.0.2.0/24 is also in class 'a'",
    ),
    "no network": (
        '[classes]\na = ["192.0.2.7/24"]\n',
        "classes.a: 192.0.2.7/24 has host bits set",
    ),
    "unknown profile": ('default_profile = "fast"\n', "default_profile: no profile 'fast'; known:"),
    "no expression": (
        '[[rules]]\nwhen = "Owner =="\nprofile = "none"\n',
        "rules[1].when:",
    ),
    "no TOML": ("[pool\n", "not valid TOML"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_file(world: Lab, case: str) -> None:
    """Status 2; file and key of the finding are named; nothing was begun."""
    config, words = WRONG[case]
    status, said = refused_start(world, config)
    assert status == 2, said
    assert words in said
    assert "/run/lab/lark-agent." in said
    assert "Traceback" not in said
    assert in_kernel(world) == set()


def test_a_missing_file(world: Lab) -> None:
    """A file that was asked for and is not there is not the embedded default."""
    command = [*world._daemon("lark-agent", ""), "--config", "/etc/lark/none.toml"]
    done = world.run(command, check=False)
    assert done.returncode == 2
    assert "cannot read /etc/lark/none.toml" in done.stderr


LACKING = {
    "no such uplink": (
        '[uplink]\ninterface = "eth7"\n',
        "no interface 'eth7'",
        "`ip -br link` shows",
    ),
    "range in use, IPv4": (
        '[addresses]\nipv4 = "192.0.0.0/16"\n',
        "192.0.0.0/16 overlaps this worker's route to 192.0.2.0/24",
        "choose another under [addresses]",
    ),
    "range in use, IPv6": (
        '[addresses]\nipv6 = "2001:db8:1::/64"\n',
        "2001:db8:1::/64 overlaps this worker's route to",
        "choose another under [addresses]",
    ),
    "no port left for the worker": (
        "[nat]\nfirst_port = 20000\nlast_port = 62000\n",
        "leave none of the worker's ephemeral ports 32768-60999",
        "move [nat] first_port/last_port",
    ),
}


@pytest.mark.parametrize("case", LACKING)
def test_a_machine_that_does_not_fit(world: Lab, case: str) -> None:
    """Status 3; key and remedy are named; neither pins nor rules nor links stay."""
    config, words, remedy = LACKING[case]
    status, said = refused_start(world, config)
    assert status == 3, said
    assert words in said
    assert remedy in said
    assert "Traceback" not in said
    assert in_kernel(world) == set()


def test_not_root(world: Lab) -> None:
    """Started by a user the agent ends with status 3 and asks for root."""
    status, said = refused_start(world, "", user="alice")
    assert status == 3, said
    assert "run lark-agent as root" in said
    assert "Traceback" not in said


def test_no_default_route(lab: Lab) -> None:
    """Without a default route the uplink must be named, and naming it is enough."""
    lab.run(["ip", "route", "delete", "default"])
    lab.run(["ip", "-6", "route", "delete", "default"])
    status, said = refused_start(lab, "")
    assert status == 3, said
    assert "set uplink.interface" in said
    assert in_kernel(lab) == set()
    lab.agent('[uplink]\ninterface = "uplink0"\n')
    assert lab.job(["true"]).status == 0


def test_no_bpffs(lab: Lab) -> None:
    """Where bpffs is not mounted the message gives the command that mounts it."""
    lab.run(["umount", "/sys/fs/bpf"])
    status, said = refused_start(lab, "")
    assert status == 3, said
    assert "mount -t bpf bpf /sys/fs/bpf" in said
    assert in_kernel(lab) == set()


def test_a_journal_of_a_later_release(lab: Lab) -> None:
    """It is not touched: status 5, and the remedy is the version that wrote it."""
    journal = "/var/lib/lark/journal.sqlite"
    write = f"import sqlite3; sqlite3.connect('{journal}').execute('PRAGMA user_version = 99')"
    lab.run(["mkdir", "/var/lib/lark"])
    lab.run(["/usr/bin/python3", "-c", write])
    status, said = refused_start(lab, "")
    assert status == 5, said
    assert "schema 99" in said
    assert in_kernel(lab) == set()


def test_a_journal_that_is_none(lab: Lab) -> None:
    """A file that is no database is kept under another name and named; the worker serves."""
    lab.run(["mkdir", "/var/lib/lark"])
    lab.path("/var/lib/lark/journal.sqlite").write_bytes(b"not a database, but precious" * 100)
    agent = lab.agent()
    assert lab.job(["true"]).status == 0
    (aside,) = lab.path("/var/lib/lark").glob("journal.sqlite.damaged-*")
    assert aside.name in agent.stderr
    assert aside.read_bytes().startswith(b"not a database")
