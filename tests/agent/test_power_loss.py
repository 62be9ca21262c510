"""The worker's power fails, or its disk loses a page: what was durable counts, and work goes on."""

from __future__ import annotations

import json
import os
import time
from typing import TYPE_CHECKING, Any

import pytest

from lark_agent.agent.rounds import SECONDS
from lark_agent.model import ExitReason
from tests.agent.crashing import FILE, start
from tests.agent.worker import (
    ONCE,
    QUICK,
    Talker,
    final,
    in_kernel,
    kill,
    links,
    python,
    records,
    sandboxes,
    times,
    until,
)
from tests.lab.filesystem import STATE
from tests.lab.process import LabError

if TYPE_CHECKING:
    from tests.lab.world import Lab

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: it makes namespaces"),
]
BOOT_ID = "/proc/sys/kernel/random/boot_id"
JOURNAL = "/var/lib/lark/journal.sqlite"
QUOTAS = "/var/lib/lark/quotas.sqlite"
# what a disk does to the page where a table begins
LOSE = """
import sqlite3, sys
db = sqlite3.connect(sys.argv[1])
db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
(page,) = db.execute("SELECT rootpage FROM sqlite_master WHERE name = ?", sys.argv[2:]).fetchone()
(size,) = db.execute("PRAGMA page_size").fetchone()
db.close()
with open(sys.argv[1], "r+b") as file:
    file.seek((page - 1) * size)
    file.write(b"\\xa5" * size)
"""


def reboot(lab: Lab) -> None:
    """Take from a worker what does not outlive its power: kernel objects, /run, and the boot."""
    for link in links(lab):
        lab.run(["ip", "link", "delete", link])
    for name in sandboxes(lab):
        lab.run(["umount", f"/run/netns/{name}"])
        lab.run(["rm", f"/run/netns/{name}"])
    lab.run(["nft", "delete", "table", "inet", "lark"], check=False)
    lab.run(["rm", "-r", "/sys/fs/bpf/lark", "/run/lark"])
    assert {left for left in in_kernel(lab) if not left.startswith("table")} == set()
    another = STATE / "boot_id"
    lab.path(another).write_text("00000000-0000-4000-8000-000000000000\n")
    lab.run(["mount", "--bind", str(another), BOOT_ID])


def gc(lab: Lab) -> list[dict[str, Any]]:
    """Return what there is to repair."""
    told = lab.run(["lark-agent", "gc", "--dry-run", "--json", "--config", str(FILE)]).stdout
    found: list[dict[str, Any]] = json.loads(told)["repairs"]
    return found


def test_power_fails(lab: Lab) -> None:
    """An open attachment is closed as `truncated`; what it lacks is younger than one interval."""
    lab.path(FILE).write_text(QUICK)
    agent = start(lab)
    talker = Talker(lab)
    job = talker.job.job_id
    talker.talk()
    until(lambda: records(lab)[job].usage.sent == ONCE, "a sample")
    talker.talk()
    kill(agent)
    gone_ns = time.time_ns()
    durable = records(lab)[job]
    reboot(lab)
    (repair,) = gc(lab)
    assert (repair["repair"], repair["attachment"]) == ("truncate", durable.attachment_id)
    assert repair["why"] == "the machine was started anew"
    with pytest.raises(LabError, match="ended with -9"):  # power fails again, just then
        start(lab, "recovery.truncated")
    start(lab)
    record = records(lab)[job]
    assert (record.final, record.exit_reason) == (True, ExitReason.TRUNCATED)
    assert record.usage == durable.usage
    assert record.usage.sent in {ONCE, times(ONCE, 2)}
    assert record.ended_ns == record.sampled_ns == durable.sampled_ns
    interval_ns = 10**9
    patience_ns = 10 * 10**9  # for a machine that does other things
    assert gone_ns - record.ended_ns < interval_ns + patience_ns
    assert gc(lab) == []
    assert lab.job(["true"]).status == 0


@pytest.mark.parametrize("table", ["samples", "attachments"])
def test_a_lost_page_of_the_journal(lab: Lab, table: str) -> None:
    """The file is set aside and reported; a job whose row is readable goes on, exact."""
    lab.path(FILE).write_text(QUICK)
    agent = start(lab)
    talker = Talker(lab)
    talker.talk()
    until(lambda: records(lab)[talker.job.job_id].usage.sent == ONCE, "a sample")
    kill(agent)
    lab.run(python(LOSE, JOURNAL, table))
    talker.talk()
    agent = start(lab)
    until(lambda: "the journal was damaged" in agent.stderr, "a word in the log")
    aside = list(lab.path(JOURNAL).parent.glob("journal.sqlite.damaged-*"))
    assert len(aside) == 1
    told = lab.run(["lark", "doctor", "--config", str(FILE)], check=False).stdout
    assert aside[0].name in told
    assert "'journal damaged' failed 1 times" in told
    talker.talk()
    talker.end()
    if table == "samples":
        assert final(lab, talker.job.job_id).usage.sent == times(ONCE, 3)
    assert lab.job(["true"]).status == 0
    until(lambda: all(one.final for one in records(lab).values()), "final records")
    assert agent.terminate() == 0
    assert in_kernel(lab) == set()


def test_a_lost_page_of_the_quotas(lab: Lab) -> None:
    """The file is set aside and reported; a running job is cut where it would have been."""
    fits = 2 * ONCE.packets + 50
    lab.path(FILE).write_text(f"""default_profile = "limited"
{QUICK}
[profiles.limited]
quotas = ["q"]
[quotas.q]
bytes = "{fits * ONCE.bytes // ONCE.packets}"
action = "cut-all"
""")
    agent = start(lab)
    talker = Talker(lab)
    talker.talk()
    kill(agent)
    lab.run(python(LOSE, QUOTAS, "leases"))
    talker.talk()
    agent = start(lab)
    until(lambda: "the file of quotas was damaged" in agent.stderr, "a word in the log")
    (aside,) = lab.path(QUOTAS).parent.glob("quotas.sqlite.damaged-*")
    told = lab.run(["lark", "doctor", "--config", str(FILE)], check=False).stdout
    assert aside.name in told
    assert "'quotas damaged' failed 1 times" in told
    other = Talker(lab, user="bob")
    other.talk()
    talker.talk()
    until(lambda: records(lab)[talker.job.job_id].changes, "a word in the record")
    talker.end()
    other.end()
    record = final(lab, talker.job.job_id)
    assert record.usage.sent.packets == fits
    assert [change.by for change in record.changes] == ["quota q"]
    assert final(lab, other.job.job_id).usage.sent == ONCE
    assert agent.terminate() == 0
    assert in_kernel(lab) == set()


def test_gc_tells_what_is_nobodys(lab: Lab) -> None:
    """Beside an agent: its job and its pool are not listed, a stray link is. Without: leftovers."""
    assert SECONDS >= 10, "the agent would repair it before it is asked about"
    lab.path(FILE).write_text(QUICK)
    agent = start(lab)
    talker = Talker(lab)
    until(lambda: len(sandboxes(lab)) >= 2, "a ready sandbox")
    assert gc(lab) == []
    lab.run(["ip", "link", "add", "lark900", "type", "veth", "peer", "name", "stray"])
    (stray,) = gc(lab)
    assert (stray["repair"], stray["slot"], stray["why"]) == ("dismantle", 900, "link")
    table = lab.run(["lark-agent", "gc", "--dry-run", "--config", str(FILE)]).stdout
    assert "remove what nobody has" in table
    refused = lab.run(["lark-agent", "gc", "--config", str(FILE)], check=False)
    assert refused.returncode == 2
    kill(agent)
    slot = records(lab)[talker.job.job_id].slot
    left = gc(lab)
    assert {repair["repair"] for repair in left} == {"dismantle"}
    assert {repair["slot"] for repair in left} > {900}
    assert slot not in {repair["slot"] for repair in left}
    talker.end()
    ended = [repair for repair in gc(lab) if repair["repair"] == "finish"]
    assert [repair["slot"] for repair in ended] == [slot]
    start(lab)
    until(lambda: "lark900" not in links(lab), "the stray link to go")
    assert final(lab, talker.job.job_id).exit_reason == ExitReason.AGENT_ABSENT
    until(lambda: gc(lab) == [], "nothing to repair")
