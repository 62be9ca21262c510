"""The agent with what its systemd unit leaves it: enough for itself and for all that it starts.

`setpriv` gives it the unit's bounding set and no_new_privs, which children inherit as they would
from systemd. (Address families are a seccomp filter of systemd's, and are not tried here.)
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from lark_agent.agent import units
from lark_agent.model import Connectivity
from tests.agent.test_networks import NETWORKS, SITE4, SPEAK, lab, pytestmark
from tests.agent.test_site_servers import DHCP, SWITCHED, switch
from tests.agent.worker import QUICK, final, in_kernel, python, until
from tests.lab.filesystem import STATE
from tests.lab.world import PROGRAMS

if TYPE_CHECKING:
    from tests.lab.process import Process
    from tests.lab.world import Lab

__all__ = ["lab", "pytestmark", "switch"]
UNIT = Path(units.__path__[0]) / "lark-agent.service"
CALLOUT = "/run/callout"
FILE = STATE / "agent.toml"


def settings(key: str) -> list[str]:
    """Return all words that the unit gives a key."""
    lines = UNIT.read_text(encoding="utf-8").splitlines()
    return [
        word
        for line in lines
        if line.startswith(f"{key}=")
        for word in line[len(key) + 1 :].split()
    ]


def confined(lab: Lab, config: str) -> Process:
    """Start an agent with the rights that the unit leaves it."""
    assert settings("NoNewPrivileges") == ["yes"]
    names = [word.removeprefix("CAP_").lower() for word in settings("CapabilityBoundingSet")]
    bounding = ",".join(["-all", *(f"+{name}" for name in dict.fromkeys(names))])
    lab.path(FILE).write_text(config)
    become = ["setpriv", "--no-new-privs", f"--bounding-set={bounding}"]
    return lab.service([*become, str(PROGRAMS / "lark-agent"), "run", "--config", str(FILE)])


def test_children_have_the_rights_they_need(lab: Lab) -> None:
    """DHCP clients get leases; a callout decides as nobody, and is killed when it hangs."""
    server = lab.start(DHCP.split())
    until(lambda: "started" in server.stderr, "dnsmasq to start")
    script = """case "$(cat)" in
*'Owner = "bob"'*) exec sleep 1000;;
*'Served = true'*) echo 'Profile = "served"';;
esac"""
    lab.path(CALLOUT).write_text(f"#!/bin/sh\n{script}\n")
    lab.path(CALLOUT).chmod(0o755)
    callout = f'[callout]\ncommand = ["{CALLOUT}"]\ntimeout_seconds = 1\n'
    agent = confined(lab, f"{QUICK}{NETWORKS}{callout}")
    served = lab.start_job(python(SPEAK, SITE4), ad={"Served": True})
    assert served.result().status == 0, agent.stderr
    record = final(lab, served.job_id)
    assert (record.connectivity, record.network) == (Connectivity.BRIDGE, "served")
    refused = lab.job(["true"], user="bob")
    assert "did not end within 1 s" in refused.stderr
    until(lambda: "nobody" not in lab.run(["ps", "-eo", "user"]).stdout, "no process of nobody's")
    usual = lab.start_job(["curl", "-sSf", "http://198.51.100.10/bytes/9"])
    assert usual.result().status == 0
    final(lab, usual.job_id)
    assert agent.terminate() == 0, agent.stderr
    assert in_kernel(lab) == set()
    assert "udhcpc" not in lab.run(["ps", "-e"]).stdout


def test_ports_of_open_vswitch_can_be_made(switch: Lab) -> None:
    """`ovs-vsctl` needs nothing that the unit does not leave it."""
    agent = confined(switch, SWITCHED)
    job = switch.start_job(python(SPEAK, SITE4))
    assert job.result().status == 0, agent.stderr
    assert final(switch, job.job_id).connectivity is Connectivity.OVS
    assert agent.terminate() == 0
