"""A real Slurm cluster in the laboratory: munge, slurmctld, slurmd, and optionally its database.

All daemons are the distribution's, run as root on the lab's worker in the foreground without
systemd, and keep everything they write below the lab's own tmpfs: the key of munge, spool,
state, logs. The node "worker1", with `second` also "worker2" (in a lab with two workers), has
made-up CPUs, so that many jobs fit on a small machine.
slurmctld, slurmd and slurmstepd share the worker's network with whoever runs on no sandbox; jobs
do not. With `accounting` there are a MariaDB (on a socket only) and slurmdbd too, so that sacct
answers.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from tests.agent.worker import until
from tests.lab.filesystem import STATE, USERS, WRAPPERS
from tests.lab.topology import WORKER, WORKER2

if TYPE_CHECKING:
    from subprocess import CompletedProcess

    from tests.lab.process import Process
    from tests.lab.world import Lab

HERE = STATE / "slurm"
ETC = Path("/etc/slurm")
PLUGIN = WRAPPERS / "spank_lark.so"
PROGRAMS = ("munged", "slurmctld", "slurmd", "srun")
ACCOUNTING_PROGRAMS = ("slurmdbd", "mariadbd", "mariadb-install-db", "mariadb")
BANDWIDTH = 1000
"""Mbit/s that the node offers as gres/bandwidth."""
CONF = f"""\
ClusterName=campus
SlurmctldHost=worker1({WORKER.ipv4})
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
StateSaveLocation={HERE}/state
SlurmdSpoolDir={HERE}/spool/%n
SlurmctldPidFile={HERE}/slurmctld.pid
SlurmdPidFile={HERE}/slurmd.%n.pid
SlurmctldLogFile={HERE}/slurmctld.log
SlurmdLogFile={HERE}/slurmd.%n.log
SlurmctldDebug=verbose
SlurmdDebug=verbose
SchedulerParameters=sched_interval=1,sched_min_interval=0,bf_interval=1,batch_sched_delay=0
InactiveLimit=0
KillWait=2
MinJobAge=600
Waittime=0
SlurmdParameters=config_overrides
GresTypes=bandwidth
LaunchParameters=use_interactive_step
InteractiveStepOptions="--interactive --preserve-env sh"
NodeName=DEFAULT CPUs=8 Gres=bandwidth:{BANDWIDTH} State=UNKNOWN
NodeName=worker1 NodeAddr={WORKER.ipv4}
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
PartitionName=closed Nodes=ALL MaxTime=INFINITE State=UP
"""
ACCOUNTING = f"""\
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost={WORKER.ipv4}
"""
DATABASE = f"""\
AuthType=auth/munge
DbdHost=localhost
SlurmUser=root
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=root
StorageLoc=slurm_acct
PidFile={HERE}/slurmdbd.pid
LogFile={HERE}/slurmdbd.log
"""


def missing(*, accounting: bool = False) -> str:
    """Name a program that a cluster needs and this machine does not have; empty if none."""
    wanted = PROGRAMS + (ACCOUNTING_PROGRAMS if accounting else ())
    path = "/usr/sbin:/usr/bin:/sbin:/bin"
    return next((name for name in wanted if not shutil.which(name, path=path)), "")


def munge(lab: Lab) -> Process:
    """Start munged with a key of the lab's own, and wait until it answers."""
    key = lab.path(HERE / "munge.key")
    key.write_bytes(bytes(range(64)) * 2)
    key.chmod(0o600)
    lab.path("/run/munge").mkdir(mode=0o755)
    files = [f"--{what}-file={HERE}/munge.{what}" for what in ("key", "pid", "log", "seed")]
    munged = lab.start(["munged", "--foreground", "--force", *files])
    until(lambda: lab.run(["munge", "-n"], check=False).returncode == 0, "munged that answers")
    return munged


class Cluster:
    """One cluster in a lab, up when it is made; the lab's end is its end."""

    def __init__(
        self, lab: Lab, *, accounting: bool = False, plugstack: str = "", second: bool = False
    ) -> None:
        self.lab = lab
        more = f"NodeName=worker2 NodeAddr={WORKER2.ipv4}\n" if second else ""
        self._write(accounting, plugstack, more)
        munge(lab)
        if accounting:
            self._start_database()
        self.ctld = lab.start(["slurmctld", "-D", "-i"])
        until(lambda: self._ok("scontrol", "ping"), "slurmctld that answers")
        for node in ("worker1", *(("worker2",) if second else ())):
            lab.start(["slurmd", "-D", "-N", node], host=WORKER.name if node == "worker1" else node)
        until(self._idle, "nodes that are idle")

    def run(
        self,
        *command: str,
        user: str = "alice",
        check: bool = True,
        timeout: float = 60,
        env: dict[str, str] | None = None,
        cwd: str = "",
        stdin: str = "",
    ) -> CompletedProcess[str]:
        """Run a command of a user on the worker."""
        return self.lab.run(
            command, user=user, check=check, timeout=timeout, env=env, stdin=stdin,
            cwd=cwd or home(user),
        )  # fmt: skip

    def log(self, daemon: str) -> str:
        """Return what a daemon has logged so far, for the words of a failed test."""
        file = self.lab.path(HERE / f"{daemon}.log")
        return file.read_text(errors="replace")[-6000:] if file.exists() else "(no log)"

    def _write(self, accounting: bool, plugstack: str, more: str) -> None:
        lab = self.lab
        for name in ("state", "spool", "db"):
            lab.path(HERE / name).mkdir(parents=True)
        # an overlay's directory of ours: what the machine's packages left there is not looked at
        lab.path(ETC).mkdir(exist_ok=True)
        lab.path(ETC / "slurm.conf").write_text(CONF + (ACCOUNTING if accounting else "") + more)
        lab.path(ETC / "gres.conf").write_text(
            f"Name=bandwidth Count={BANDWIDTH} Flags=CountOnly\n"
        )
        # left to itself slurmd looks which version there is, and ends where it sees both
        lab.path(ETC / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
        lab.path(ETC / "plugstack.conf").write_text(plugstack)
        dbd = lab.path(ETC / "slurmdbd.conf")
        dbd.write_text(DATABASE)
        dbd.chmod(0o600)

    def _start_database(self) -> None:
        lab, where = self.lab, HERE / "db"
        lab.run(
            [
                "mariadb-install-db", "--no-defaults", "--user=root", f"--datadir={where}",
                "--auth-root-authentication-method=normal", "--skip-test-db",
            ],
            timeout=120,
        )  # fmt: skip
        lab.path("/run/mysqld").mkdir()
        lab.start(
            [
                "mariadbd", "--no-defaults", "--user=root", f"--datadir={where}",
                "--skip-networking", "--socket=/run/mysqld/mysqld.sock",
                "--innodb-buffer-pool-size=32M", "--innodb-flush-log-at-trx-commit=0",
                "--innodb-lock-wait-timeout=900",
            ]
        )  # fmt: skip
        ask = ["mariadb", "--no-defaults", "--socket=/run/mysqld/mysqld.sock", "-e", "SELECT 1"]
        until(lambda: self._ok(*ask), "a database that answers")
        dbd = lab.start(["slurmdbd", "-D"])
        until(
            lambda: dbd.poll() is not None or self._ok("sacctmgr", "-n", "show", "cluster"),
            "slurmdbd that answers",
        )
        assert dbd.poll() is None, dbd.stderr
        for thing in ("cluster campus", "account physics", "account students",
                      "user alice account=physics", "user bob account=students"):  # fmt: skip
            lab.run(["sacctmgr", "-i", "add", *thing.split()])

    def _ok(self, *command: str) -> bool:
        return self.lab.run(command, check=False).returncode == 0

    def _idle(self) -> bool:
        states = self.lab.run(["sinfo", "-h", "-o", "%t"], check=False).stdout.split()
        return set(states) == {"idle"}


def home(user: str) -> str:
    """Return a user's directory in the lab."""
    return USERS[user].home
