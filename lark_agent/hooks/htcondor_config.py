"""Files for HTCondor's config.d, written from our own settings.

**A worker's** file puts every job into its sandbox: the wrapper, the hook that refuses visibly, the
program that publishes what the agent knows, and what the matchmaker needs to respect it. Bandwidth
becomes a resource where jobs may ask for it (`[requests] bandwidth`) and it is known how much there
is (`[uplink] rate`): as much as the agent itself can promise, or the two would disagree.

**A submit node's** file makes the schedd keep a finished job until its account has been written
into its ad, for at most `WAIT_SECONDS`, and lets nobody else write it.

`HOOK_JOB_EXIT` is in neither: since 25.4 it breaks jobs with file transfer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lark_agent.hooks import htcondor_libexec
from lark_agent.hooks.htcondor_ads import ACCOUNT, capacity_of, vlans
from lark_agent.quantities import rates

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from lark_agent.config import AgentSettings

WAIT_SECONDS = 120
"""How long a finished job stays in the queue for its account."""
RESTART_SECONDS = 10
"""Until a program of ours that ended is started again."""
BESIDE = """\
# The starter runs programs that come with a job as the job's user, but without the wrapper, on the
# worker's own network; and these universes do not use it. Jobs with one do not match, or, where
# the matchmaker cannot see it, lark-beside and lark-prepare hold them.
START = ($(START)) && TARGET.PreCmd =?= undefined && TARGET.PostCmd =?= undefined \\
    && TARGET.ToolDaemonCmd =?= undefined && TARGET.TransferPlugins =?= undefined \\
    && TARGET.WantDocker =!= true && TARGET.JobUniverse =!= 13
# Nor would the test that an image of apptainer can bring along.
SINGULARITY_RUN_TEST_BEFORE_JOB = false
# Nor would Docker, which jobs of the container universe get for some images where it is installed.
DOCKER =
# Since 25 the starter itself can be told.
STARTER_DISABLE_USER_SUPPLIED_TRANSFER_PLUGINS = true"""


def worker_file(
    settings: AgentSettings, program: str, arguments: Sequence[str] = (),
    libexec: Path | None = None,
) -> str:  # fmt: skip
    """Write the file of an execution point.

    `program` is lark-agent, as HTCondor starts it; `libexec` the starter's, if one was made.
    """
    parts = [
        *wrapping(settings.htcondor.programs),
        htcondor_libexec.lines(libexec),
        *transferring(settings),
        _reporting(program, arguments),
        *_matching(settings),
    ]
    return "\n".join(
        [
            "# Written by `lark-agent htcondor-config` from the agent's settings; write it anew",
            "# when they change (profiles, networks, [uplink], [queues], [requests]), then run",
            "# condor_reconfig.",
            *parts,
            "",
        ]
    )


def wrapping(programs: str) -> Iterator[str]:
    """Yield what decides whether and where jobs start."""
    yield f"""
# Every job starts in its sandbox. Without an agent it does not start at all.
USER_JOB_WRAPPER = {programs}/lark-run

# Decides before the job starts: a refusal of the site's policy holds the job with the policy's
# words, a worker that is not fit sends it elsewhere. For all jobs, whatever HookKeyword they name.
STARTER_JOB_HOOK_KEYWORD = LARK
LARK_HOOK_PREPARE_JOB = {programs}/lark-prepare
LARK_HOOK_PREPARE_JOB_BEFORE_TRANSFER = {programs}/lark-beside

{BESIDE}"""


def transferring(settings: AgentSettings) -> Iterator[str]:
    """Yield what accounts for file transfer, where that is wanted."""
    if settings.htcondor.account_transfer:
        yield f"""
# The starter, and with it file transfer, is in a sandbox of its own, so that the job's record says
# what it moved; without an agent it runs as ever. There the worker's own address cannot be bound,
# shared port is what the daemons share, and its sockets must be files: those of the abstract name
# space belong to one network.
STARTER = {settings.htcondor.programs}/lark-starter
STARTER.BIND_ALL_INTERFACES = True
USE_SHARED_PORT = True
DAEMON_SOCKET_DIR = $(LOCK)/daemon_sock"""


def _reporting(program: str, arguments: Sequence[str]) -> str:
    return f"""
# Publishes the machine's network attributes, and in a slot's ad what its job has moved; runs as
# HTCondor's own account, which `observers` in agent.toml lists. A job's ad is the submit node's to
# write: what the starter would carry there, the job can forge.
STARTD_CRON_JOBLIST = $(STARTD_CRON_JOBLIST) LARK
STARTD_CRON_LARK_EXECUTABLE = {program}
STARTD_CRON_LARK_ARGS = {" ".join(("htcondor-startd", *arguments))}
STARTD_CRON_LARK_MODE = WaitForExit
STARTD_CRON_LARK_PERIOD = {RESTART_SECONDS}s

# No job comes here while the agent is away.
START = ($(START)) && (MY.LarkReady =?= true)"""


def _matching(settings: AgentSettings) -> Iterator[str]:
    profiles = ",".join(sorted(settings.all_profiles))
    yield f"""
# condor_submit takes RequestedProfile and RequestedVLAN for requests of resources "edProfile" and
# "edVLAN", and adds regexp(RequestedProfile, TARGET.edProfile) to Requirements. So machines say
# what there is to ask for; whether a job gets it is the policy's to decide.
edProfile = "{profiles}"
STARTD_ATTRS = $(STARTD_ATTRS) edProfile"""
    if settings.networks:
        yield f"""edVLAN = "{",".join(networks_of(settings))}"
STARTD_ATTRS = $(STARTD_ATTRS) edVLAN
"""
        yield """\
# Jobs that ask for a network of the site come only where it is, by name or 802.1Q id.
START = ($(START)) && (TARGET.RequestedVLAN =?= undefined || \\
    stringListMember(string(TARGET.RequestedVLAN), MY.VLAN))"""
    capacity = capacity_of(settings.bookable)
    most = capacity_of(rates(settings.requests.bandwidth or 0))
    if capacity and most:
        yield f"""
# Bandwidth is a resource, in Mbit/s: request_bandwidth = 100. What [uplink] rate has beyond the
# guarantees of [queues]; a job is promised at most [requests] bandwidth, both ways.
MACHINE_RESOURCE_Bandwidth = {capacity}
START = ($(START)) && (TARGET.RequestBandwidth ?: 0) <= {most}"""


def networks_of(settings: AgentSettings) -> list[str]:
    """Return by what jobs may ask for networks: names, and 802.1Q ids."""
    return vlans({name: network.vlan for name, network in settings.networks.items()})


def submit_file(program: str, arguments: Sequence[str] = ()) -> str:
    """Write the file of an access point; `program` is lark-collector, as HTCondor starts it."""
    names = " ".join(ACCOUNT)
    deleted = "\n".join(f"   DELETE {name}" for name in ACCOUNT)
    return f"""\
# Written by `lark-collector htcondor-config`; after a change of it, restart the schedd.

# What jobs have moved is in their ads, and only the schedd's own account can have written it:
# neither the user (submit file, condor_qedit) nor the job (condor_chirp, .update.ad).
PROTECTED_JOB_ATTRS = $(PROTECTED_JOB_ATTRS) {names}

# A job that has ended stays in the queue until that is there, {WAIT_SECONDS} s at most.
JOB_TRANSFORM_NAMES = $(JOB_TRANSFORM_NAMES) LARK
JOB_TRANSFORM_LARK @=end
{deleted}
   COPY LeaveJobInQueue LarkLeaveJobInQueue
   SET LeaveJobInQueue (LarkLeaveJobInQueue ?: false) || {WAITING}
@end

# Asks the collector about jobs that run or have ended, as HTCondor's own account, which
# `observers` in collector.toml lists.
SCHEDD_CRON_JOBLIST = $(SCHEDD_CRON_JOBLIST) LARK
SCHEDD_CRON_LARK_EXECUTABLE = {program}
SCHEDD_CRON_LARK_ARGS = {" ".join(("htcondor-schedd", *arguments))}
SCHEDD_CRON_LARK_MODE = WaitForExit
SCHEDD_CRON_LARK_PERIOD = {RESTART_SECONDS}s
"""


UNTOLD = (
    "(JobStatus == 4 || JobStatus == 3) && (NumJobStarts ?: 0) > 0 && NetworkRecord =?= undefined"
)
"""Jobs that have run and ended (completed, removed), and have no account."""
RUNNING = "JobStatus == 2 && NetworkRecord =?= undefined"
WAITING = f"({UNTOLD} && time() - EnteredCurrentStatus < {WAIT_SECONDS})"
