"""`lark doctor`: each check finds what it is for, says what to do, and is content otherwise."""

# ruff: noqa: E501  a table of faults is read across: one fault a line
from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec
import pytest

from lark_agent.cli import lark
from lark_agent.cli.doctor import network, report, system
from lark_agent.cli.doctor.findings import Check, Level
from lark_agent.config import (
    Addresses,
    AgentSettings,
    CollectorLink,
    Nat,
    Network,
    Paths,
    Pool,
    Profile,
    Uplink,
)
from lark_agent.errors import KernelError, PrerequisiteError
from lark_agent.model import Connectivity
from lark_agent.rpc.lark.v1.agent_pb2 import GetStatusResponse
from lark_agent.trust.identity import Identity
from tests.cli.machine import CHAINS, STATUS, Machine, capability

if TYPE_CHECKING:
    from pathlib import Path

    from tests.cli.fake import Service

Spoil = Callable[[Machine], object]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def settings(**tables: object) -> Spoil:
    """Configure the worker."""
    made = AgentSettings(worker="worker1", **tables)  # type: ignore[arg-type]  # msgspec checks

    def apply(machine: Machine) -> None:
        machine.answers["settings"] = made

    return apply


def file(name: str, text: str) -> Spoil:
    return lambda machine: machine.write(name, text)


def sysctl(key: str, value: str) -> Spoil:
    return file(f"/proc/sys/{key}", value)


def answer(door: str, value: object) -> Spoil:
    """Let a door give a value, or be a value."""
    return lambda machine: machine.answers.__setitem__(
        door, value if door in {"release", "problem", "is_root"} else lambda *_: value
    )


def broken(door: str, error: Exception) -> Spoil:
    return lambda machine: machine.fail(door, error)


def said(**changes: object) -> Spoil:
    """Change what the agent says of itself."""
    status = GetStatusResponse()
    status.CopyFrom(STATUS)
    for name, value in changes.items():
        if isinstance(value, dict):
            getattr(status, name).update(value)
        else:
            setattr(status, name, value)
    return answer("status", status)


AT = "collector.example.org:9620"
IDENTITY = "/var/lib/lark/identity.json"
REPORTS = settings(collector=CollectorLink(address=AT))


def enrolled(
    worker: str = "worker1", begins: float = -10, ends: float = 20, mode: int = 0o600
) -> Spoil:
    """Give the worker an identity; times in days from now."""

    def apply(machine: Machine) -> None:
        now = time.time()
        identity = Identity(
            worker=worker, key="", certificate="", authorities="",
            begins=int(now + begins * 86_400), ends=int(now + ends * 86_400),
        )  # fmt: skip
        REPORTS(machine)
        machine.write(IDENTITY, msgspec.json.encode(identity).decode())
        (machine.root / IDENTITY.lstrip("/")).chmod(mode)

    return apply


def both(*spoils: Spoil) -> Spoil:
    def apply(machine: Machine) -> None:
        for spoil in spoils:
            spoil(machine)

    return apply


def test_a_healthy_worker_has_only_good_findings(machine: Machine) -> None:
    """Every check has a finding, each is ok, and none has a remedy."""
    findings = report.examine(machine.probe())
    assert {name for name, _ in findings} == {check.name for check in report.CHECKS}
    assert [f for _, f in findings if f.level is not Level.OK or f.remedy] == []
    assert not report.failed(findings)


ROUTE = "\t00000000\t0001\t0\t0\t100\t{mask}\t0\t0\t0\n"
HEAD = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n"
DROPPING = CHAINS.replace("policy accept", "policy drop")
NOEXEC = "31 21 0:30 / /usr/libexec rw,nosuid - ext4 /dev/sdb rw\n"
LICENCES = settings(networks={"licences": Network(connectivity=Connectivity.VLAN, vlan=312)})
SWITCH = settings(networks={"switch": Network(connectivity=Connectivity.OVS, bridge="ovs0")})
ENTER = "/usr/libexec/lark/lark-enter"


@pytest.mark.parametrize(
    ("check", "spoil", "level", "found", "remedy"),
    [
        ("configuration", answer("problem", "agent.toml: pool.slots: 0"), "fail", "pool.slots", "edit"),
        ("kernel", answer("release", "4.15.0-200"), "fail", "4.15.0-200 is older", "upgrade"),
        ("kernel", answer("release", "plan9"), "unchecked", "plan9", "4.18"),
        ("eBPF", answer("features", [("tc programs", False, "EPERM")]), "fail", "tc programs: EPERM", "CONFIG_BPF"),
        ("eBPF", broken("features", PrerequisiteError("no libbpf")), "fail", "no libbpf", "datapath"),
        ("control groups", both(file("/proc/self/mountinfo", ""), settings(profiles={"here": Profile(connectivity=Connectivity.HOST)})), "fail", "which profile here needs", "another connectivity"),
        ("bpffs", lambda m: m.remove("/proc/self/mountinfo"), "fail", "not lie on a bpffs", "mount -t bpf"),
        ("bpffs", settings(paths=Paths(bpffs="/sys/bpf")), "fail", "/sys/bpf (paths.bpffs)", "mount -t bpf"),
        ("namespaces", sysctl("user/max_net_namespaces", "0"), "fail", "to root as well", "sysctl -w user.max_net_namespaces=1024"),
        ("namespaces", sysctl("user/max_net_namespaces", "32"), "fail", "fewer than the 64 slots", "=128"),
        ("namespaces", lambda m: m.remove("/proc/sys/user/max_net_namespaces"), "fail", "no user.max", "CONFIG_NET_NS"),
        ("nftables", broken("load_library", OSError("libnftables.so.1: cannot open")), "fail", "cannot open", "install libnftables1"),
        ("sandbox trial", broken("try_namespace", KernelError("making it", "No space left")), "fail", "No space left", "modprobe"),
        ("other firewalls", answer("nft", DROPPING), "warn", "chain FORWARD in table ip filter drops", "-i lark+ -j ACCEPT"),
        ("other firewalls", broken("nft", KernelError("listing", "EPERM")), "unchecked", "EPERM", "nft list ruleset"),
        ("other firewalls", file("/proc/net/ip_tables_names", "nat\nfilter\n"), "unchecked", "iptables-legacy", "-S FORWARD"),
        ("uplink", both(file("/proc/net/route", HEAD), file("/proc/net/ipv6_route", "")), "fail", "no default route", "[uplink] interface"),
        ("uplink", settings(uplink=Uplink(interface="ib0")), "fail", "no interface ib0", "ip -br link"),
        ("uplink", file("/sys/class/net/eth0/mtu", "1200"), "warn", "MTU of 1200", "1280"),
        ("uplink", both(settings(uplink=Uplink(interface="eth0")), file("/proc/net/route", HEAD), file("/proc/net/ipv6_route", "")), "warn", "no default route", "only what"),
        ("forwarding", sysctl("net/ipv4/ip_forward", "0"), "fail", "net.ipv4.ip_forward is off", "sysctl -w net.ipv4.ip_forward=1"),
        ("forwarding", sysctl("net/ipv6/conf/all/forwarding", "0"), "fail", "no IPv6", "sysctl -w net.ipv6.conf.all.forwarding=1"),
        ("router advertisements", sysctl("net/ipv6/conf/eth0/accept_ra", "1"), "fail", "will expire", "accept_ra=2"),
        ("ports", settings(nat=Nat(first_port=20000, last_port=61000)), "fail", "leave none", "ip_local_port_range"),
        ("ports", sysctl("net/ipv4/ip_local_port_range", "11000 12000"), "fail", "(11000-12000)", "[nat]"),
        ("ports", sysctl("net/ipv4/ip_local_reserved_ports", "80,10240-20000"), "warn", "does not cover 10240-32767", "restart"),
        ("addresses", file("/proc/net/route", HEAD + "vpn0\t00006264" + ROUTE.format(mask="0000C0FF")), "fail", "100.98.0.0/16 overlaps this worker's route to 100.64.0.0/10 by vpn0", "[addresses] ipv4"),
        ("addresses", settings(addresses=Addresses(ipv6="2001:db8:1::/64")), "fail", "2001:db8:1::/64 by eth0", "[addresses] ipv6"),
        ("addresses", settings(addresses=Addresses(routed6="2001:db8:1::7:0/112")), "fail", "2001:db8:1::/64 by eth0", "[addresses] routed6"),
        ("resolver", settings(addresses=Addresses(routed6="2001:db8:7::/112")), "warn", "IPv6 only", "[addresses] routed4"),
        ("forwarding", both(settings(addresses=Addresses(routed6="2001:db8:7::/112")), file("/proc/net/ipv6_route", ""), sysctl("net/ipv6/conf/all/forwarding", "0")), "fail", "jobs have no IPv6", "forwarding=1"),
        ("resolver", file("/etc/resolv.conf", "nameserver ::1\n"), "fail", "::1", "resolv.conf(5)"),
        ("networks", both(LICENCES, answer("look_at_network", [PrerequisiteError("no interface 'eth9'")])), "fail", "vlan licences: no interface 'eth9'", "repaired"),
        ("networks", both(SWITCH, answer("is_root", value=False)), "unchecked", "ovs switch: only root", "sudo lark doctor"),
        ("802.1Q", both(LICENCES, broken("try_vlan", KernelError("making it", "Operation not supported"))), "fail", "licences needs 802.1Q", "modprobe 8021q"),
        ("rates", broken("try_queues", KernelError("making ifb", "Operation not supported")), "warn", "a rate will be refused", "modprobe -a ifb sch_htb"),
        ("rates", both(settings(uplink=Uplink(rate="1 Gbit/s")), broken("try_queues", KernelError("making ifb", "Unknown device type"))), "fail", "[uplink] rate holds for every job", "modprobe -a ifb"),
        ("wrapper", answer("wrapper", None), "fail", "lark-run is not installed", "lark-agent install-wrapper"),
        ("wrapper", lambda m: m.remove(ENTER), "fail", f"{ENTER} does not exist", "side by side"),
        ("wrapper", lambda m: (m.root / ENTER[1:]).chmod(0o750), "fail", "may not be executed", f"chmod 0711 {ENTER}"),
        ("wrapper", lambda m: (m.root / ENTER[1:]).chmod(0o777), "fail", "changed by others", "chmod 0711"),
        ("wrapper", lambda m: (m.root / ENTER[1:]).chmod(0o755), "warn", "can trace it", "chmod 0711"),
        ("wrapper", broken("capability", OSError(61, "No data available")), "fail", "no file capability", f"setcap cap_sys_admin+ep {ENTER}"),
        ("wrapper", answer("capability", capability(bits=1 << 12)), "fail", "not cap_sys_admin+ep", "setcap"),
        ("wrapper", answer("capability", capability(flags=0)), "fail", "not cap_sys_admin+ep", "setcap"),
        ("wrapper", answer("capability", b"\x01"), "fail", "not cap_sys_admin+ep", "setcap"),
        ("wrapper", answer("capability", capability(revision=0x01000000)), "fail", "not cap_sys", "setcap"),
        ("wrapper", answer("capability", capability(bits=1 << 21 | 1 << 38)), "warn", "0x4000200000", "setcap"),
        ("wrapper", lambda m: m.write("/proc/self/mountinfo", NOEXEC), "fail", "mounted nosuid", "another file system"),
        ("tracing", sysctl("kernel/yama/ptrace_scope", "0"), "warn", "outside its sandbox", "ptrace_scope=1"),
        ("tracing", lambda m: m.remove("/proc/sys/kernel/yama/ptrace_scope"), "warn", "CONFIG_SECURITY_YAMA", "account of its own"),
        ("cron and at", lambda m: m.remove("/etc/cron.allow"), "warn", "every account may use crontab", "/etc/cron.allow"),
        ("cron and at", file("/etc/cron.allow", "operator\nslot1\n"), "warn", "use crontab: slot1", "take them out"),
        ("cron and at", both(file("/usr/bin/at", ""), file("/etc/at.deny", "games\n")), "warn", "every account may use at", "/etc/at.allow"),
        ("lingering", file("/var/lib/systemd/linger/alice", ""), "warn", "users linger: alice", "loginctl disable-linger"),
        ("lingering", file("/usr/libexec/polkitd", ""), "warn", "polkit lets every user linger", "set-self-linger"),
        ("admin group", answer("group_exists", value=False), "warn", "no group lark-admin", "groupadd -r lark-admin"),
        ("journal", answer("free_bytes", 1_000_000), "fail", "1.00 MB free", "free some"),
        ("journal", answer("free_bytes", 50_000_000), "warn", "only 50.0 MB", "free some"),
        ("journal", settings(paths=Paths(state="/etc/resolv.conf/x")), "fail", "through a file", "paths.state"),
        ("one agent", answer("agents", [5, 7]), "fail", "2 agents run here: processes 5, 7", "stop all but one"),
        ("one agent", answer("agents", []), "fail", "no lark-agent runs", "systemctl start"),
        ("run socket", broken("connect", FileNotFoundError(2, "No such file or directory")), "fail", "/run/lark/run.sock: No such file", "systemctl start"),
        ("run socket", settings(paths=Paths(run="/run/other")), "warn", "/run/other", "leave paths.run out"),
        ("agent", lambda m: m.no_agent(), "fail", "no answer", "journalctl -u lark-agent"),
        ("agent", said(ready=0), "warn", "no sandbox is ready", "journalctl"),
        ("agent", said(ready_by_kind={"bridge lab": 0}), "warn", "no sandbox of bridge lab is ready", "journalctl"),
        ("agent", said(attached=60, condemned=4), "warn", "all 64 slots are taken", "raise [pool] slots"),
        ("agent", said(refusals={"policy": 3}), "warn", "3 jobs were refused (policy)", "journalctl"),
        ("agent", said(errors={"sampler": 1}), "warn", "'sampler' failed 1 times", "journalctl"),
        ("damage", file("/var/lib/lark/journal.sqlite.damaged-20260101T000000Z", ""), "warn", "was damaged", "dmesg"),
        ("collector", said(collector_state="refused"), "warn", "refused; 2 records wait", "lark-collector running"),
        ("collector", said(collector_state="ALREADY_EXISTS: another machine"), "warn", "another machine", "another name"),
        ("collector", said(collector_state="PERMISSION_DENIED: revoked"), "warn", "revoked", "--replace"),
        ("collector", said(collector_state="UNAUTHENTICATED: over"), "warn", "over", "enrolled again"),
        ("certificate", REPORTS, "fail", "not enrolled", "token create --worker worker1`"),
        ("certificate", enrolled(worker="w2"), "fail", "is of worker w2, and this one is worker1", "worker1 --replace"),
        ("certificate", enrolled(mode=0o640), "fail", "others than root may read", "chmod 600"),
        ("certificate", enrolled(begins=-40, ends=-10), "fail", "ended 10.0 days ago", "worker1 --replace"),
        ("certificate", enrolled(begins=-25, ends=5), "warn", "ends in 5.0 days and could not be renewed since 5.0", "journalctl"),
        ("certificate", both(REPORTS, file(IDENTITY, "{")), "fail", "damaged", "token create"),
        ("certificate", settings(collector=CollectorLink(address=AT, insecure=True)), "warn", "in the clear", "insecure = true out"),
        ("collector", said(unacknowledged=20_000), "warn", "20000 records wait", "disk"),
    ],
)  # fmt: skip
def test_each_fault_is_found_with_its_remedy(
    machine: Machine, check: str, spoil: Spoil, level: str, found: str, remedy: str
) -> None:
    """One fault in a healthy worker gives a finding of that level, with words and a remedy."""
    spoil(machine)
    findings = [f for f in machine.look(check) if f.level is not Level.OK]
    assert [f for f in findings if f.level == level and found in f.found and remedy in f.remedy], (
        findings
    )
    assert all(f.remedy for f in findings)


def test_a_collector_that_was_away_is_no_fault_of_now(machine: Machine) -> None:
    """Attempts of before are in the status; doctor tells of the collector as it is."""
    said(errors={"collector away": 7})(machine)
    assert {finding.level for finding in machine.look("agent")} == {Level.OK}


@pytest.mark.parametrize(
    ("check", "spoil", "found"),
    [
        ("control groups", file("/proc/self/mountinfo", ""), "only connectivity host needs it"),
        ("forwarding", both(lambda m: m.no_agent(), sysctl("net/ipv4/ip_forward", "0")), "turns it on"),
        ("forwarding", both(file("/proc/net/ipv6_route", ""), sysctl("net/ipv6/conf/all/forwarding", "0")), "IPv4"),
        ("router advertisements", sysctl("net/ipv6/conf/all/forwarding", "0"), "keeps"),
        ("ports", both(lambda m: m.no_agent(), sysctl("net/ipv4/ip_local_reserved_ports", "")), "when it starts"),
        ("resolver", both(file("/etc/resolv.conf", "nameserver 127.0.0.53\n"), file("/run/systemd/resolve/resolv.conf", "nameserver 192.0.2.1\n")), "sandboxes ask 192.0.2.1"),
        ("resolver", file("/etc/resolv.conf", "nameserver 127.0.0.1\n"), "stub resolver 127.0.0.1"),
        ("wrapper", answer("capability", capability(revision=0x03000000) + b"\0" * 4), "nothing else"),
        ("tracing", sysctl("kernel/yama/ptrace_scope", "2"), "only what it has started"),
        ("cron and at", lambda m: m.remove("/usr/bin/crontab"), "neither crontab nor at"),
        ("cron and at", file("/usr/bin/at", ""), "only root may use at"),
        ("cron and at", file("/etc/cron.allow", ""), "lets only root use crontab"),
        ("lingering", lambda m: m.remove("/run/systemd/system/README"), "no polkit"),
        ("lingering", both(file("/usr/lib/polkit-1/polkitd", ""), file("/etc/polkit-1/rules.d/60-lark.rules", "set-self-linger")), "nobody lingers"),
        ("user namespaces", sysctl("user/max_user_namespaces", "0"), "user.max_user_namespaces = 0: jobs with no_new_privs"),
        ("user namespaces", settings(pool=Pool(own_namespaces=False)), "refuses all the same"),
        ("journal", settings(paths=Paths(state="/var/lib/new")), "/var/lib/new: 10.0 GB free"),
        ("agent", answer("release", "6.1.0"), "8 ready (bridge lab 2, nat 6)"),
        ("networks", LICENCES, "vlan licences: there, addresses dhcp"),
        ("networks", settings(), "none configured"),
        ("802.1Q", both(settings(), broken("try_vlan", KernelError("making it", "no"))), "no network needs 802.1Q"),
        ("collector", said(collector=""), "none configured"),
        ("certificate", settings(), "none is needed"),
        ("certificate", enrolled(), "of worker worker1; ends in 20.0 days"),
        ("certificate", enrolled(begins=-20.5, ends=9.5), "renews itself"),
        ("agent", said(attached=5, reserved=2), "5 of 64 slots in use (2 reserved for jobs"),
        ("addresses", settings(pool=Pool(slots=4)), "is free"),
        ("addresses", settings(addresses=Addresses(routed4="198.18.7.0/24")), "198.18.7.0/24 is free; the site's router has to"),
        ("addresses", both(settings(addresses=Addresses(routed4="198.18.7.0/24")), file("/proc/net/route", HEAD + "eth0\t000012C6\t010200C0\t0003\t0\t0\t0\t0000FEFF\t0\t0\t0\n")), "198.18.7.0/24 is free"),
    ],
)  # fmt: skip
def test_what_is_no_fault_is_not_blamed(
    machine: Machine, check: str, spoil: Spoil, found: str
) -> None:
    """Unusual but sound machines get ok, and the finding says what was seen."""
    spoil(machine)
    findings = machine.look(check)
    assert [f.level for f in findings] == [Level.OK] * len(findings)
    assert any(found in f.found for f in findings), findings


def test_without_root_nothing_is_skipped_in_silence(machine: Machine) -> None:
    """Each check that needs root has a finding that says so and how to get it."""
    machine.answers["is_root"] = False
    findings = report.examine(machine.probe())
    needing = [check.name for check in report.CHECKS if check.needs_root]
    assert needing
    for name in needing:
        (finding,) = [f for n, f in findings if n == name]
        assert (finding.level, finding.remedy) == (Level.UNCHECKED, "sudo lark doctor")
    assert {name for name, _ in findings} == {check.name for check in report.CHECKS}


@pytest.mark.parametrize(
    ("error", "remedy"),
    [
        (PermissionError(13, "Permission denied"), "sudo lark doctor"),
        (OSError(5, "Input/output error"), "look at"),
        (ValueError("not a number"), "look at"),
    ],
)
def test_a_check_that_breaks_does_not_end_the_others(
    machine: Machine, error: Exception, remedy: str
) -> None:
    """The finding carries the error, and the next check is made."""

    def breaks(_: object) -> object:
        raise error

    rest = report.CHECKS[1]
    findings = report.examine(machine.probe(), [Check("broken", breaks), rest])  # type: ignore[arg-type]  # it never returns
    assert findings[0][1].level is Level.UNCHECKED
    assert remedy in findings[0][1].remedy
    assert findings[1][0] == rest.name


@pytest.mark.parametrize(
    ("reserved", "covers"),
    [
        ("", False),
        ("10240-32767", True),
        ("1-65535", True),
        ("10240-20000,20001-32767", True),
        ("20001-32767,10240-20000,80", True),
        ("10240-20000,20002-32767", False),
        ("10241-32767", False),
        ("10240-32766,32767", True),
    ],
)
def test_reserved_ports_are_a_set(reserved: str, covers: bool) -> None:
    """Lists in any order and pieces cover a range if no port of it is left out."""
    assert network.covered(10240, 32767, reserved) is covers


def test_findings_as_json(machine: Machine) -> None:
    """Programs get check, level, found and remedy, and whether anything failed."""
    machine.answers["release"] = "4.4.0"
    answer = json.loads(report.as_json(report.examine(machine.probe())))
    assert answer["failed"] is True
    kernel = next(f for f in answer["findings"] if f["check"] == "kernel")
    assert kernel["level"] == "fail"
    assert set(kernel) == {"check", "level", "found", "remedy"}


@pytest.mark.parametrize(("release", "status"), [("6.1.0", 0), ("4.4.0", 1)])
def test_the_exit_status_tells_whether_anything_fails(
    machine: Machine,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    release: str,
    status: int,
) -> None:
    """0 if nothing fails, 1 if something does; each finding is printed, and how many of each."""
    machine.answers["release"] = release
    machine.answers["group_exists"] = lambda _: False
    monkeypatch.setattr(system, "probe", lambda *_: machine.probe())
    assert lark.status(["doctor"]) == status
    text = capsys.readouterr().out
    assert "-> groupadd -r lark-admin" in text
    assert ("1 fail" in text.splitlines()[-1]) is bool(status)
    assert all(check.name in text for check in report.CHECKS)


def test_the_real_machine_can_be_examined(
    service: Service, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """On whatever machine runs this: no traceback, every check answered, the agent asked."""
    service.script.status.CopyFrom(STATUS)
    config = tmp_path / "agent.toml"
    config.write_text('worker = "here"\n[pool]\nslots = 9\n')
    assert lark.status(["--agent", service.path, "doctor", "--config", str(config), "--json"]) in {
        0,
        1,
    }
    findings = json.loads(capsys.readouterr().out)["findings"]
    assert {f["check"] for f in findings} == {check.name for check in report.CHECKS}
    assert findings[0]["found"] == "worker 'here', 9 slots"
    (agent,) = [f for f in findings if f["check"] == "agent"]
    assert "3 of 64 slots in use" in agent["found"]


def test_a_broken_configuration_does_not_end_the_examination(tmp_path: Path) -> None:
    """Each line of the configuration's error is a finding, and the rest is checked by defaults."""
    config = tmp_path / "agent.toml"
    config.write_text("[pool]\nslots = 'many'\nbogus = 1\n")
    probe = system.probe(config, None)
    findings = report.examine(probe, report.CHECKS[:2])
    assert [f.level for _, f in findings] == [Level.FAIL, Level.FAIL, Level.OK]
    assert probe.settings == msgspec.convert({}, AgentSettings)
