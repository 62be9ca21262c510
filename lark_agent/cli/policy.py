"""`lark policy`: try the site's rules before a job does.

Nothing is asked and nothing changed: `check` reads a configuration as the agent would and lists
everything that is wrong with it, each with its line; `explain` decides about a job as the agent
would and tells who set what. The callout is a program of the site's workers and is not run here:
`--answer` stands in for it. Files are often checked elsewhere than on the worker that is to use
them, so a program or user that this machine lacks is a note of `check`, and no mistake.
"""

from __future__ import annotations

import pwd
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lark_agent.config import AgentSettings, Finding
    from lark_agent.model import Job, NetworkPlan
    from lark_agent.policy.ads import Ad
    from lark_agent.policy.site import Asking, SitePolicy, Step

_FILE = click.Path(path_type=Path, exists=True, dir_okay=False, readable=True)
_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")


@click.group(
    epilog="\b\nExample:\n  lark policy check /etc/lark/agent.toml\n"
    "  lark policy explain --ad job.ad --machine-ad machine.ad",
)
def policy() -> None:
    """Check the site's policy, and explain what it makes of a job."""


@policy.command(epilog="\b\nExample:\n  lark policy check /etc/lark/agent.toml")
@click.argument("file", type=_FILE)
@_JSON
def check(file: Path, *, as_json: bool) -> None:
    """List everything that is wrong with an agent's configuration, each with its line.

    Exit status 2 if there is anything. What only this machine lacks is a note, and status 0.
    """
    from lark_agent.cli import as_json as forms  # noqa: PLC0415  --help stays fast
    from lark_agent.policy.lines import line_of, positions  # noqa: PLC0415  as above

    text = _text(file)
    settings, found = _examined(text)
    notes = list(_notes(settings)) if settings is not None else []
    where = positions(text)
    rows, remarks = (
        [{"line": line_of(f.key, where), "key": f.key, "text": f.text} for f in each]
        for each in (found, notes)
    )
    if as_json:
        answer = {"file": str(file), "good": not found, "findings": rows, "notes": remarks}
        click.echo(forms.write(answer))
    else:
        for row in rows:
            click.echo(_told(file, row))
        for row in remarks:
            click.echo(f"{_told(file, row)} (a note: it may be there on the workers)", err=True)
        if not found:
            click.echo(f"{file}: good")
    if found:
        raise click.exceptions.Exit(2)


def _told(file: Path, row: dict[str, Any]) -> str:
    place = str(file) if row["line"] is None else f"{file}:{row['line']}"
    return ": ".join(part for part in (place, row["key"], row["text"]) if part)


@policy.command(
    epilog="\b\nExample:\n  condor_q -long 123.0 > job.ad; lark policy explain --ad job.ad\n"
    "  lark policy explain --owner alice --group students --json"
)
@click.option("--ad", type=_FILE, help="The job's ad, as condor_q -long prints it.")
@click.option("--machine-ad", type=_FILE, help="The machine's ad: condor_status -long.")
@click.option("--config", type=_FILE, help="Default: /etc/lark/agent.toml, if it exists.")
@click.option("--owner", help="Instead of the ad's.")
@click.option("--group", help="Accounting group, instead of the ad's.")
@click.option("--profile", default="", help="As with lark-run --profile.")
@click.option("--answer", type=_FILE, help="What the callout answers; without it, nothing.")
@click.option("--unverified", is_flag=True, help="As if not started by the batch system.")
@click.option("--all", "every", is_flag=True, help="Show settings that nobody set, too.")
@_JSON
def explain(**given: Any) -> None:
    """Tell which network a job would get, and which rule set which value and why.

    Settings that nobody set are left out, but for --all and --json. Exit status 1 if the job would
    be refused.
    """
    from lark_agent.cli import as_json as forms  # noqa: PLC0415  --help stays fast
    from lark_agent.config import AGENT_FILE, AgentSettings, load  # noqa: PLC0415  as above
    from lark_agent.errors import PolicyRefusal  # noqa: PLC0415  as above
    from lark_agent.policy.site import SitePolicy  # noqa: PLC0415  as above

    site = SitePolicy.compile(load(AgentSettings, given["config"], AGENT_FILE), given["config"])
    steps: list[Step] = []
    plan, refusal = None, ""
    try:
        plan = _decided(site, given, steps)
    except PolicyRefusal as error:
        refusal = str(error)
    if given["as_json"]:
        click.echo(forms.write(_form(site, plan, refusal, steps)))
    else:
        _draw(site, plan, refusal, steps, every=given["every"])
        if site.callout.command and given["answer"] is None:
            click.echo("\nthe callout was not asked; give its answer with --answer", err=True)
    if plan is None:
        raise click.exceptions.Exit(1)


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise click.UsageError(f"cannot read {file}: {error}") from error


def _examined(text: str) -> tuple[AgentSettings | None, list[Finding]]:
    """Find what the settings and the compiler of the policy find, of a file as it stands."""
    from lark_agent.config import AgentSettings, examine  # noqa: PLC0415  --help stays fast
    from lark_agent.policy.checking import findings  # noqa: PLC0415  as above

    settings, found = examine(AgentSettings, text)
    if settings is not None:
        found += findings(settings)
    return settings, found


def _notes(settings: AgentSettings) -> Iterator[Finding]:
    """Yield what the site's programs need and this machine does not have."""
    from lark_agent.config import Finding  # noqa: PLC0415  --help stays fast

    for table, program in (("callout", settings.callout), ("quota_hook", settings.quota_hook)):
        if not program.command:
            continue
        if shutil.which(program.command[0]) is None:
            text = f"this machine has no program {program.command[0]} that can be run"
            yield Finding(f"{table}.command", text)
        try:
            pwd.getpwnam(program.user)
        except KeyError:
            yield Finding(f"{table}.user", f"this machine has no user {program.user}")


def _decided(site: SitePolicy, given: dict[str, Any], steps: list[Step]) -> NetworkPlan:
    """Decide as the gate of the agent does; raises PolicyRefusal, InvalidRequest."""
    from lark_agent.policy.overrides import Overrides, UnreadableAnswer  # noqa: PLC0415  as above

    asking, answer = _asking(given), given["answer"]
    try:
        machine = site.ads(asking)[1]
        overrides = Overrides.parse(answer.read_bytes(), machine) if answer else Overrides()
    except UnreadableAnswer as error:
        raise click.UsageError(f"{answer}: {error}") from error
    return site.plan(asking, overrides, steps)


def _asking(given: dict[str, Any]) -> Asking:
    """Name the job as the agent would, but for what the options say."""
    from lark_agent.hooks.identity import Caller, Launcher, identify  # noqa: PLC0415  --help stays fast
    from lark_agent.hooks.request import RunRequest  # noqa: PLC0415  as above
    from lark_agent.policy import ads  # noqa: PLC0415  as above
    from lark_agent.policy.site import Asking  # noqa: PLC0415  as above
    from lark_agent.schedulers import htcondor  # noqa: PLC0415  as above

    paths: tuple[Path | None, Path | None] = given["ad"], given["machine_ad"]
    job_ad, machine_ad = (path.read_bytes() if path else None for path in paths)
    # an ad is HTCondor's, so that is whose starter would have launched the job
    starter = Launcher(0, 0, htcondor.SYSTEM.launchers[0])
    caller = Caller(0, 0, given["owner"] or "", None if given["unverified"] else starter)
    job, ad = identify(RunRequest(job_ad=job_ad), caller)
    job = _as_told(job, ad, given)
    return Asking(job, ad, ads.parse(machine_ad or b"", "machine ad"), given["profile"])


def _as_told(job: Job, ad: Ad, given: dict[str, Any]) -> Job:
    """Put the options over what the ad says, and the owner's number to the name."""
    from lark_agent.policy import ads  # noqa: PLC0415  --help stays fast

    # a job at a prompt, or of Slurm, has no ad: its owner must be told
    owner = given["owner"] or job.owner or ads.text_of(ad, "Owner")
    if not owner:
        raise click.UsageError("whose job? give --owner, or an ad with an Owner")
    group = job.accounting_group if given["group"] is None else given["group"]
    try:
        uid = pwd.getpwnam(owner).pw_uid
    except KeyError:
        uid = 0
    verified = not given["unverified"]
    return replace(job, owner=owner, uid=uid, accounting_group=group, verified=verified)


def _plain(value: object) -> object:
    """Return a setting of a plan as JSON has it; sets in the order of the alphabet."""
    from lark_agent.model import Rates  # noqa: PLC0415  --help stays fast

    if isinstance(value, frozenset):
        return sorted(value)
    if isinstance(value, Rates):
        return {"sent": value.sent, "received": value.received}
    return [str(each) for each in value] if isinstance(value, tuple) else value


def _set_by(site: SitePolicy, plan: NetworkPlan, steps: list[Step]) -> dict[str, str]:
    """Return setting → who said it last: a step, the job's profile, or "default"."""
    from lark_agent.policy.vocabulary import SETTINGS, given  # noqa: PLC0415  --help stays fast

    said: dict[str, str] = {}
    for step in steps:
        if (step.by, step.setting) == ("callout", "profile"):
            said.clear()  # it replaces everything that the rules decided
        if step.setting:
            said[step.setting] = step.by
    profile = site.words.profiles[plan.profile]
    defaults = dict(given(type(profile)()))
    for setting, value in given(profile):
        if setting not in said and value != defaults.get(setting):
            said[setting] = f"profile {plan.profile}"
    return {setting: said.get(setting, "default") for setting in ("profile", *SETTINGS)}


def _form(
    site: SitePolicy, plan: NetworkPlan | None, refusal: str, steps: list[Step]
) -> dict[str, Any]:
    shown = said = None
    if plan is not None:
        said = _set_by(site, plan, steps)
        shown = {name: _plain(getattr(plan, name)) for name in said}
    rows = [step._asdict() for step in steps]
    return {"plan": shown, "set_by": said, "refused": refusal or None, "steps": rows}


def _draw(
    site: SitePolicy, plan: NetworkPlan | None, refusal: str, steps: list[Step], *, every: bool
) -> None:
    from lark_agent.cli import tables  # noqa: PLC0415  --help stays fast
    from lark_agent.cli.units import visible  # noqa: PLC0415  as above
    from lark_agent.policy.comparing import written  # noqa: PLC0415  as above

    width = tables.console().width
    columns = [tables.Column(title) for title in ("BY", "SETS", "TO", "WHY")]
    rows = [(step.by, step.setting or "-", step.value or "-", step.why) for step in steps]
    result: str | tables.Grid = f"refused: {visible(refusal)}"
    if plan is not None:
        ends = [
            (setting, written(plan, setting), by)
            for setting, by in _set_by(site, plan, steps).items()
            if every or by != "default" or setting == "connectivity"
        ]
        titles = [tables.Column(title) for title in ("THE JOB GETS", "", "SAID BY")]
        result = tables.Grid(titles, ends, width)
    tables.draw([tables.Grid(columns, rows, width), "", result])
