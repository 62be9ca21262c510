"""What a bundle tells of a worker, and what it must not."""

from __future__ import annotations

import io
import json
import os
import tarfile
from typing import TYPE_CHECKING

import pytest

from tests.agent.worker import QUICK, final, kill
from tests.lab.filesystem import STATE
from tests.lab.topology import CAMPUS

if TYPE_CHECKING:
    from tests.lab.world import Lab

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: it makes namespaces"),
]
SECRET = "hunter2-0xdecaf"
"""Planted wherever somebody might keep one."""
CONFIG = f"""
{QUICK}
# the old password was {SECRET}
[machine]
Token = "{SECRET}"
[callout]
command = ["/usr/bin/true", "--password={SECRET}"]
[quota_hook]
command = ["/usr/bin/true", "{SECRET}"]
[collector]
address = "{CAMPUS.ipv4}:9620"
identity = "/var/lib/lark/identity.json"
"""
TARGET = f"{STATE}/bundle.tar.gz"


def collect(lab: Lab, *options: str) -> dict[str, str]:
    """Make a bundle; returns its parts."""
    lab.run(["mkdir", "-p", "/etc/lark"])
    lab.path("/etc/lark/agent.toml").write_text(CONFIG)
    lab.run(["lark-agent", "debug-bundle", "--output", TARGET, *options])
    made = lab.path(TARGET)
    assert made.stat().st_mode & 0o777 == 0o600
    with tarfile.open(fileobj=io.BytesIO(made.read_bytes())) as archive:
        parts = {
            entry.name.partition("/")[2]: file.read().decode()
            for entry in archive.getmembers()
            if (file := archive.extractfile(entry)) is not None
        }
    made.unlink()
    return parts


def test_a_bundle_tells_of_the_worker_and_no_secret(lab: Lab) -> None:
    """With an agent that runs, and a job; secrets of settings, files, ads and environments stay."""
    lab.run(["mkdir", "-p", "/var/lib/lark"])
    lab.path("/var/lib/lark/identity.json").write_text(json.dumps({"key": SECRET}))
    agent = lab.agent(CONFIG)
    job = lab.start_job(["true", SECRET], ad={"Secret": SECRET}, env={"TOKEN": SECRET})
    assert job.result().status == 0
    final(lab, job.job_id)
    parts = collect(lab)
    assert [name for name, text in parts.items() if SECRET in text] == []
    assert [name for name, text in parts.items() if job.job_id in text] == []
    assert [name for name, text in parts.items() if "could not be made" in text] in (
        [],
        ["log.txt"],
    )
    settings = json.loads(parts["settings.json"])
    assert settings["pool"]["slots"] == 4
    assert settings["machine"] == ["Token"]
    assert settings["callout"]["command"] == ["/usr/bin/true", "(arguments left out)"]
    assert json.loads(parts["versions.json"])["lark-agent"]
    assert json.loads(parts["status.json"])["worker"]
    assert json.loads(parts["doctor.json"])["findings"]
    assert json.loads(parts["journal.json"])["attachments"] == 1
    assert json.loads(parts["repairs.json"]) == []
    assert "table inet lark" in parts["kernel/nftables.txt"]
    assert any(link["ifname"].startswith("lark") for link in json.loads(parts["kernel/links.json"]))
    assert "lark0" in parts["sandboxes.txt"]
    with_records = json.loads(collect(lab, "--with-records")["journal.json"])
    assert [record["job_id"] for record in with_records["records"]] == [job.job_id]
    kill(agent)
    alone = collect(lab)
    assert alone.keys() == parts.keys()
    assert "could not be made" in alone["status.json"]
    assert json.loads(alone["journal.json"])["attachments"] == 1


def test_a_bundle_overwrites_nothing(lab: Lab) -> None:
    """A file that is there stays, and the error says what to do; no link is followed."""
    lab.path(TARGET).write_text("mine")
    done = lab.run(["lark-agent", "debug-bundle", "--output", TARGET], check=False)
    assert done.returncode == 3
    assert "name another" in done.stderr
    assert lab.path(TARGET).read_text() == "mine"
