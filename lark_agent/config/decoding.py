"""From the text of a file to settings, or to everything that is wrong with it.

Decoding refuses unknown keys and wrong types (msgspec), then each settings object checks what one
type cannot say: ranges, overlaps, names that must exist. All findings of either step are reported
together, each with the key and a remedy.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar, get_args, get_origin

import msgspec

from lark_agent.config.section import Section
from lark_agent.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

Settings = TypeVar("Settings", bound=Section)


def load(kind: type[Settings], path: Path | None, default: Path) -> Settings:
    """Read settings from `path`, or from `default` if that exists, or use the embedded default.

    Raises ConfigurationError with every finding if the file cannot be used.
    """
    if path is None and not default.exists():
        return kind()
    file = path or default
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"cannot read {file}: {error}") from error
    return parse(kind, text, str(file))


@dataclass(frozen=True, slots=True)
class Finding:
    """What is wrong with one key of a configuration, and what to do about it."""

    key: str
    """As in pool.slots or rules[2].when; empty: the whole file."""
    text: str


def parse(kind: type[Settings], text: str, file: str) -> Settings:
    """Decode and check one configuration text; `file` names it in errors."""
    settings, findings = examine(kind, text)
    refuse(file, findings)
    assert settings is not None, "settings that cannot be decoded have findings"
    return settings


def examine(kind: type[Settings], text: str) -> tuple[Settings | None, list[Finding]]:
    """Decode one configuration text and list everything that is wrong with it.

    The settings are None if they cannot be decoded at all; they must not be used if there are
    findings.
    """
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        return None, [Finding("", f"not valid TOML: {error}")]
    if mismatches := [Finding(key, why) for key, why in _mismatches(kind, table, "")]:
        return None, mismatches
    settings = msgspec.convert(table, kind)
    return settings, [Finding(key, why) for key, why in _all_findings(settings, "")]


def refuse(file: str, findings: Iterable[Finding]) -> None:
    """Raise ConfigurationError if there are findings: one line each; `file` may be empty."""
    parts = [(file, found.key, found.text) for found in findings]
    if parts:
        raise ConfigurationError("\n".join(": ".join(filter(None, part)) for part in parts))


def _all_findings(section: Section, prefix: str) -> Iterator[tuple[str, str]]:
    for key, text in section.findings():
        yield prefix + key, text
    for name in section.__struct_fields__:
        value = getattr(section, name)
        if isinstance(value, Section):
            yield from _all_findings(value, f"{prefix}{name}.")
        elif isinstance(value, dict):
            for key, entry in value.items():
                if isinstance(entry, Section):
                    yield from _all_findings(entry, f"{prefix}{name}.{key}.")


def _mismatches(kind: Any, value: object, where: str) -> Iterator[tuple[str, str]]:
    """Yield what does not have the type of its key.

    msgspec stops at the first mismatch and does not name the key of a free-form table, so tables
    and lists are taken apart here and it judges the leaves.
    """
    origin = get_origin(kind)
    if origin is dict and isinstance(value, dict):
        for key, entry in value.items():
            yield from _mismatches(get_args(kind)[1], entry, f"{where}.{key}")
    elif origin is tuple and isinstance(value, list):
        for number, entry in enumerate(value, 1):
            yield from _mismatches(get_args(kind)[0], entry, f"{where}[{number}]")
    elif origin is None and issubclass(kind, Section) and isinstance(value, dict):
        fields = {field.name: field for field in msgspec.structs.fields(kind)}
        for key, entry in value.items():
            name = f"{where}.{key}".lstrip(".")
            if key in fields:
                yield from _mismatches(fields[key].type, entry, name)
            else:
                yield name, f"unknown key; this table has {', '.join(fields)}"
        for key in (k for k, field in fields.items() if field.required and k not in value):
            yield f"{where}.{key}".lstrip("."), "is missing; add it"
    else:
        try:
            msgspec.convert(value, kind)
        except msgspec.ValidationError as error:
            text = str(error).partition(" - at ")[0]
            text = text.replace("`object`", "a table").replace("`array`", "a list")
            yield where, f"{text}; see docs/configuration.md for the type of this key"
