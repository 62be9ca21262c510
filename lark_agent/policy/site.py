"""The site's rules: which network a job gets.

Rules are tried in order; the first whose ClassAd expression is true over the job's ad gives the
profile, else the default profile holds. Expressions come from the site's configuration alone and
are compiled when it is loaded, so that a mistake is found then and not by a job. An expression that
is undefined or an error for some job does not match it.

A job may ask for a profile by name (`lark-run --profile`). It gets `none`, which is less than
anything, and otherwise what the rules give it; if that is not what it asked for, it is refused,
because a job must not believe in a network it does not have. Rules can grant requests by looking at
the attribute RequestedProfile.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import classad2

from lark_agent.errors import ConfigurationError, PolicyRefusal
from lark_agent.model import Connectivity, NetworkPlan

if TYPE_CHECKING:
    from pathlib import Path

    from lark_agent.config import AgentSettings, Profile
    from lark_agent.model import Job
    from lark_agent.policy.ads import Ad


@dataclass(frozen=True, slots=True)
class SitePolicy:
    """Compiled rules."""

    profiles: dict[str, Profile]
    rules: tuple[tuple[classad2.ExprTree, str], ...]
    default_profile: str

    @classmethod
    def compile(cls, settings: AgentSettings, file: Path | None = None) -> SitePolicy:
        """Compile the rules of a configuration; `file` names it in errors.

        Raises ConfigurationError naming every expression that is not a ClassAd expression.
        """
        rules, wrong = [], []
        for number, rule in enumerate(settings.rules, 1):
            try:
                rules.append((classad2.ExprTree(rule.when), rule.profile))
            except (classad2.ClassAdException, TypeError) as error:
                wrong.append(
                    f"rules[{number}].when: {error} in '{rule.when}'; "
                    'write a ClassAd expression such as Owner == "alice"'
                )
        if wrong:
            where = f"{file}: " if file else ""
            raise ConfigurationError("\n".join(where + line for line in wrong))
        return cls(settings.all_profiles, tuple(rules), settings.default_profile)

    def plan(self, job: Job, ad: Ad, requested: str) -> NetworkPlan:
        """Decide for one job; raises PolicyRefusal.

        `ad` is the job's ad; `requested` the profile it asks for, "" if it does not.
        """
        facts = {**_facts(job), "RequestedProfile": requested}
        ours = {name.lower() for name in facts}
        # ClassAd names have no case: an "owner" of the ad must not stand beside our "Owner"
        theirs = {name: value for name, value in ad.items() if name.lower() not in ours}
        scope = classad2.ClassAd({**theirs, **facts})
        name = next(
            (profile for rule, profile in self.rules if rule.eval(scope) is True),
            self.default_profile,
        )
        if requested and requested != name:
            if requested not in self.profiles:
                known = ", ".join(sorted(self.profiles))
                raise PolicyRefusal(
                    f"this site has no network profile '{requested}'; it has {known}"
                )
            if self.profiles[requested].connectivity != Connectivity.NONE:
                raise PolicyRefusal(
                    f"the site's rules give this job network profile '{name}', not '{requested}'; "
                    "ask the site for a rule, or leave the request out"
                )
            name = requested
        profile = self.profiles[name]
        reach = None if profile.reach is None else frozenset(profile.reach)
        return NetworkPlan(name, profile.connectivity, reach)


def _facts(job: Job) -> Ad:
    """Return what every rule can rely on, whichever batch system started the job."""
    return {
        "Owner": job.owner,
        "JobId": job.job_id,
        "AcctGroup": job.accounting_group,
        "Scheduler": job.scheduler.value,
        "Uid": job.uid,
        "IdentityVerified": job.verified,
    }
