"""`lark-agent status`: what an admin sees of a running agent."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING

from tests.agent.worker import QUICK, until
from tests.lab.filesystem import STATE

if TYPE_CHECKING:
    from tests.lab.world import Lab

DEAD = '[collector]\naddress = "127.0.0.1:1"\n'
FILE = f"{STATE}/status.toml"
STATUS = ["lark-agent", "status", "--config", FILE]


def test_errors_link_and_slots_are_told(lab: Lab) -> None:
    """A collector that nobody is shows as the link's state and as a counted error."""
    config = f"{QUICK}{DEAD}insecure = true\n"
    lab.path(FILE).write_text(config)
    agent = lab.agent(config)

    def away() -> dict[str, object] | None:
        told: dict[str, object] = json.loads(lab.run([*STATUS, "--json"]).stdout)
        errors = told["errors"]
        return told if isinstance(errors, dict) and errors.get("collector away") else None

    told = until(away, "a counted error")
    assert (told["slots"], told["attached"], told["collector"]) == (4, 0, "127.0.0.1:1")
    assert told["collector_state"] != "connected"
    assert told["certificate_ends_ns"] is None
    table = lab.run(STATUS).stdout
    assert "errors: collector away" in table
    assert "none: the collector is reached without TLS" in table
    agent.signal(15)
    agent.wait()
    gone = lab.run(STATUS, check=False)
    assert (gone.returncode, gone.stdout) == (6, "")


def test_the_end_of_the_certificate_is_roots_to_see(lab: Lab) -> None:
    """Root reads it from the worker's identity; others learn that they cannot."""
    ends = int(time.time()) + 1000
    place = lab.path("/var/lib/lark/status.identity")
    identity = '[collector]\naddress = "127.0.0.1:1"\nidentity = "/var/lib/lark/status.identity"\n'
    lab.path(FILE).write_text(f"{QUICK}{identity}")
    lab.path(FILE).chmod(0o644)
    lab.agent(f"{QUICK}{DEAD}insecure = true\n")
    place.write_text(json.dumps(
        {"worker": "worker1", "key": "", "certificate": "", "authorities": "",
         "begins": ends - 2000, "ends": ends}
    ))  # fmt: skip
    place.chmod(0o600)
    told = json.loads(lab.run([*STATUS, "--json"]).stdout)
    assert told["certificate_ends_ns"] == ends * 10**9
    table = lab.run(STATUS, user="alice").stdout
    assert "certificate ends" in table
    assert "cannot be read" in table
