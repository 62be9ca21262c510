"""`lark policy`: try the site's rules before a job does.

Nothing is asked and nothing changed: `check` reads a configuration as the agent would and lists
everything that is wrong with it, each with its line; `explain` decides about a job as the agent
would and tells who set what. The callout is a program of the site's workers and is not run here:
`--answer` stands in for it.
"""

from __future__ import annotations

import pwd
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
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

    Exit status 2 if there is anything.
    """
    from lark_agent.cli import as_json as forms  # noqa: PLC0415  --help stays fast
    from lark_agent.policy.lines import line_of, positions  # noqa: PLC0415  as above

    text = _text(file)
    _, found = _examined(text)
    where = positions(text)
    lines = [line_of(finding.key, where) for finding in found]
    if as_json:
        rows = [
            {"line": line, "key": f.key, "text": f.text}
            for f, line in zip(found, lines, strict=True)
        ]
        click.echo(forms.write({"file": str(file), "good": not found, "findings": rows}))
    elif not found:
        click.echo(f"{file}: good")
    for finding, line in zip(found, lines, strict=True):
        if not as_json:
            place = str(file) if line is None else f"{file}:{line}"
            click.echo(": ".join(part for part in (place, finding.key, finding.text) if part))
    if found:
        raise click.exceptions.Exit(2)


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
@_JSON
def explain(**given: Any) -> None:
    """Tell which network a job would get, and which rule set which value and why.

    Exit status 1 if the job would be refused.
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
        click.echo(forms.write(_form(plan, refusal, steps)))
    else:
        _draw(plan, refusal, steps)
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


def _decided(site: SitePolicy, given: dict[str, Any], steps: list[Step]) -> NetworkPlan:
    """Decide as the gate of the agent does; raises PolicyRefusal, InvalidRequest."""
    from lark_agent.policy.overrides import Overrides, UnreadableAnswer  # noqa: PLC0415  as above

    try:
        answer = given["answer"]
        overrides = Overrides.parse(answer.read_bytes()) if answer else Overrides()
    except UnreadableAnswer as error:
        raise click.UsageError(f"{given['answer']}: {error}") from error
    return site.plan(_asking(given), overrides, steps)


def _asking(given: dict[str, Any]) -> Asking:
    """Name the job as the agent would, but for what the options say."""
    from lark_agent.hooks.identity import Caller, identify  # noqa: PLC0415  --help stays fast
    from lark_agent.hooks.request import RunRequest  # noqa: PLC0415  as above
    from lark_agent.policy import ads  # noqa: PLC0415  as above
    from lark_agent.policy.site import Asking  # noqa: PLC0415  as above

    paths: tuple[Path | None, Path | None] = given["ad"], given["machine_ad"]
    job_ad, machine_ad = (path.read_bytes() if path else None for path in paths)
    caller = Caller(0, 0, given["owner"] or "", trusted_launcher=not given["unverified"])
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


def _form(plan: NetworkPlan | None, refusal: str, steps: list[Step]) -> dict[str, Any]:
    from lark_agent.policy.vocabulary import SETTINGS  # noqa: PLC0415  --help stays fast

    shown = None
    if plan is not None:
        shown = {name: _plain(getattr(plan, name)) for name in ("profile", *SETTINGS)}
    rows = [step._asdict() for step in steps]
    return {"plan": shown, "refused": refusal or None, "steps": rows}


def _draw(plan: NetworkPlan | None, refusal: str, steps: list[Step]) -> None:
    from lark_agent.cli import tables  # noqa: PLC0415  --help stays fast
    from lark_agent.cli.units import visible  # noqa: PLC0415  as above
    from lark_agent.policy.comparing import written  # noqa: PLC0415  as above
    from lark_agent.policy.vocabulary import SETTINGS  # noqa: PLC0415  as above

    width = tables.console().width
    columns = [tables.Column(title) for title in ("BY", "SETS", "TO", "WHY")]
    rows = [(step.by, step.setting or "-", step.value or "-", step.why) for step in steps]
    result: str | tables.Grid = f"refused: {visible(refusal)}"
    if plan is not None:
        ends = [(setting, written(plan, setting)) for setting in ("profile", *SETTINGS)]
        result = tables.Grid([tables.Column("THE JOB GETS"), tables.Column("")], ends, width)
    tables.draw([tables.Grid(columns, rows, width), "", result])
