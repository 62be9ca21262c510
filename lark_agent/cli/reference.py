"""docs/configuration.md, printed from the typed settings so that it cannot drift.

``python -m lark_agent.cli.reference > docs/configuration.md`` walks the structs of
`lark_agent.config`: field names are the keys, annotations the types, defaults the defaults. The
words come from the attribute docstrings, which Python throws away, so the modules' source is
parsed for them. A test compares the file in docs/ with this output, and another parses the
printed default files and compares them with the embedded defaults.
"""

from __future__ import annotations

import ast
import inspect
import json
import types
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, get_args, get_origin

import msgspec

from lark_agent import config
from lark_agent.config import (
    AgentSettings,
    CollectorSettings,
    Network,
    Price,
    Profile,
    Queue,
    Quota,
    Rule,
    Section,
    Service,
    Values,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

INTRODUCTION = """\
# Configuration

Printed by `python -m lark_agent.cli.reference`; edit the docstrings in `lark_agent/config/`
instead of this file.

Two files in [TOML](https://toml.io): `/etc/lark/agent.toml` on each worker and
`/etc/lark/collector.toml` on the collector. Both may be absent, and every key has a default. An
unknown key, a wrong type or a value out of range stops the service with exit status 2 and a line
for each finding; `lark-agent check` and `lark-collector check` look without starting.
"""

EXAMPLE = """\
[collector]
address = "collector.example.org:9620"

[classes]
campus = ["198.51.100.0/24", "2001:db8:2::/48"]
lhcone = ["203.0.113.0/24"]

[profiles.campus-only]
reach = ["campus"]

[[rules]]
when = 'Owner == "alice"'
profile = "campus-only"

[[rules]]
when = 'WantNetwork is false'
profile = "none"
"""
"""A site's file, for the document; a test loads it."""


@dataclass(frozen=True, slots=True)
class Key:
    """One key of a table."""

    name: str
    kind: Any
    default: Any
    text: str

    @property
    def table(self) -> type[Section] | None:
        """The struct behind the key if it is a table of its own."""
        return self.kind if isinstance(self.kind, type) and issubclass(self.kind, Section) else None


def docstrings() -> dict[str, dict[str, str]]:
    """Read class name → attribute → docstring from the source of the configuration."""
    found: dict[str, dict[str, str]] = {}
    modules = (config.worker, config.policy, config.resources, config.agent, config.collector)
    for node in (node for module in modules for node in ast.parse(inspect.getsource(module)).body):
        if isinstance(node, ast.ClassDef):
            texts = found[node.name] = {}
            for field, after in zip(node.body, node.body[1:], strict=False):
                if (
                    isinstance(field, ast.AnnAssign)
                    and isinstance(field.target, ast.Name)
                    and isinstance(after, ast.Expr)
                    and isinstance(after.value, ast.Constant)
                ):
                    words = inspect.cleandoc(str(after.value.value)).split()
                    texts[field.target.id] = " ".join(words)
    return found


def keys(struct: type[Section]) -> list[Key]:
    """List the keys of a table; a key that is a table is described by its class."""
    texts = docstrings()[struct.__name__]
    return [
        Key(
            field.name,
            field.type,
            field.default if not field.required else msgspec.NODEFAULT,
            texts.get(field.name, ""),
        )
        if field.default_factory is msgspec.NODEFAULT
        else Key(field.name, field.type, field.default_factory(), texts.get(field.name, ""))
        for field in msgspec.structs.fields(struct)
    ]


def words(kind: Any) -> str:
    """Name a type as a reader of TOML knows it."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin is types.UnionType:
        return " or ".join(words(each) for each in inner if each is not types.NoneType)
    if origin is tuple:
        return f"list of {plural(inner[0])}"
    if origin is dict:
        return f"table of {plural(inner[1])}"
    if issubclass(kind, StrEnum):
        return " or ".join(f'`"{member}"`' for member in kind)
    if issubclass(kind, Section):
        return "table"
    return {str: "string", int: "integer", float: "number", bool: "boolean"}[kind]


def plural(kind: Any) -> str:
    """Name several of a type."""
    if get_origin(kind) is types.UnionType:
        return " or ".join(plural(each) for each in get_args(kind))
    name = words(kind)
    return name.replace("list", "lists", 1) if name.startswith("list") else f"{name}s"


def toml(value: Any) -> str:
    """Write a default as TOML does; JSON's strings, numbers and lists are TOML's as well."""
    return json.dumps(list(value) if isinstance(value, tuple) else value)


def reference(struct: type[Section], title: str) -> Iterator[str]:
    """Describe the top table of a file and each table below it."""
    yield f"## {title}\n"
    yield from rows([key for key in keys(struct) if key.table is None])
    for key in keys(struct):
        if key.table is not None:
            yield f"### [{key.name}]\n\n{inspect.getdoc(key.table)}\n"
            yield from rows(keys(key.table))


def named(title: str, struct: type[Section]) -> Iterator[str]:
    """Describe a table that stands under a name of the site's."""
    yield f"### {title}\n\n{inspect.getdoc(struct)}\n"
    yield from rows(keys(struct))


def rows(listed: list[Key]) -> Iterator[str]:
    """Write a Markdown table of keys."""
    yield "| key | type | default | meaning |\n|---|---|---|---|"
    for key in listed:
        if key.table is not None:
            default = "absent"
        elif key.default is msgspec.NODEFAULT:
            default = "required"
        elif key.default is None:
            default = "absent"
        else:
            default = f"`{toml(key.default)}`"
        yield f"| `{key.name}` | {words(key.kind)} | {default} | {key.text} |"
    yield ""


def default_file(struct: type[Section]) -> str:
    """Write a whole file with every key at its default, each under its explanation."""
    plain = [key for key in keys(struct) if key.table is None and key.kind in {str, int, float}]
    lists = [key for key in keys(struct) if key.kind == tuple[str, ...]]
    lines = [line for key in (*plain, *lists) for line in assignment(key)]
    for key in keys(struct):
        if key.table is not None:
            lines += ["", f"# {inspect.getdoc(key.table)}", f"[{key.name}]"]
            lines += [line for each in keys(key.table) for line in assignment(each)]
        elif key not in plain and key not in lists:
            # tables that the site names: empty by default, so there is nothing to write
            lines += ["", f"# {key.name}: {key.text}"]
    return "\n".join(lines) + "\n"


def assignment(key: Key) -> list[str]:
    """Write one key below its explanation."""
    return [f"# {key.text}", f"{key.name} = {toml(key.default)}"]


def document() -> str:
    """Write the whole of docs/configuration.md."""
    parts = [
        INTRODUCTION,
        *reference(AgentSettings, "agent.toml"),
        *named("[profiles.NAME]", Profile),
        *named("[[rules]]", Rule),
        *named("[rules.set]", Values),
        *named("[networks.NAME]", Network),
        *named("[services.NAME]", Service),
        *named("[queues.NAME]", Queue),
        *named("[quotas.NAME]", Quota),
        *named("[prices.CLASS]", Price),
        f"### Example\n\n```toml\n{EXAMPLE}```\n",
        f"### All defaults\n\n```toml\n{default_file(AgentSettings)}```\n",
        *reference(CollectorSettings, "collector.toml"),
        f"### All defaults\n\n```toml\n{default_file(CollectorSettings)}```",
    ]
    return "\n".join(parts)


if __name__ == "__main__":
    print(document())  # noqa: T201  the output of the command
