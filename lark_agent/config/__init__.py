"""Configuration: TOML into frozen typed settings; the embedded default works without any file.

The structs of the modules here are the whole truth: their fields are the keys, their defaults the
embedded default, and the attribute docstrings the reference text (`lark_agent.cli.reference` prints
docs/configuration.md from them). Tables about the worker are in `worker`, about what jobs may do in
`policy`, about what plans refer to by name in `resources`; `agent` and `collector` are the files,
`decoding` reads them.

What depends on the machine (does the uplink exist, is an address range in use) is checked by the
rooms that touch it.
"""

from lark_agent.config.agent import AGENT_FILE, AgentSettings
from lark_agent.config.collector import COLLECTOR_FILE, CollectorSettings
from lark_agent.config.decoding import Finding, examine, load, parse, refuse
from lark_agent.config.policy import (
    Callout,
    OnFailure,
    Profile,
    Requests,
    Rule,
    Unsupported,
    Values,
    Wish,
)
from lark_agent.config.resources import (
    AddressMode,
    Network,
    Price,
    Queue,
    Quota,
    QuotaAction,
    QuotaDirection,
    QuotaHook,
    QuotaPeriod,
    QuotaScope,
    Service,
    Unreachable,
    pool_of,
    ports_of,
)
from lark_agent.config.section import ADMITTED_BY, EVERYWHERE, NOTHING, Section, is_endpoint
from lark_agent.config.worker import (
    Accounting,
    Addresses,
    CollectorLink,
    Datapath,
    HTCondor,
    Nat,
    Paths,
    Pool,
    Uplink,
)

__all__ = [
    "ADMITTED_BY",
    "AGENT_FILE",
    "COLLECTOR_FILE",
    "EVERYWHERE",
    "NOTHING",
    "Accounting",
    "AddressMode",
    "Addresses",
    "AgentSettings",
    "Callout",
    "CollectorLink",
    "CollectorSettings",
    "Datapath",
    "Finding",
    "HTCondor",
    "Nat",
    "Network",
    "OnFailure",
    "Paths",
    "Pool",
    "Price",
    "Profile",
    "Queue",
    "Quota",
    "QuotaAction",
    "QuotaDirection",
    "QuotaHook",
    "QuotaPeriod",
    "QuotaScope",
    "Requests",
    "Rule",
    "Section",
    "Service",
    "Unreachable",
    "Unsupported",
    "Uplink",
    "Values",
    "Wish",
    "examine",
    "is_endpoint",
    "load",
    "parse",
    "pool_of",
    "ports_of",
    "refuse",
]
