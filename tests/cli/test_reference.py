"""The configuration reference cannot drift from the settings."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import pytest

from lark_agent.cli import reference
from lark_agent.config import AgentSettings, CollectorSettings, Profile, Rule, Values, parse

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lark_agent.config import Section

DOCUMENT = Path(__file__).parents[2] / "docs" / "configuration.md"


def keys(struct: type[Section]) -> Iterator[reference.Key]:
    for key in reference.keys(struct):
        yield key
        if key.table is not None:
            yield from keys(key.table)


def test_the_document_is_what_the_settings_say() -> None:
    """Whoever changes a setting prints the document again."""
    again = "python -m lark_agent.cli.reference > docs/configuration.md"
    assert DOCUMENT.read_text() == reference.document() + "\n", f"out of date; run {again}"


@pytest.mark.parametrize("struct", [AgentSettings, CollectorSettings])
def test_the_printed_file_is_the_embedded_default(
    struct: type[AgentSettings | CollectorSettings],
) -> None:
    """Who copies the printed file gets what they had without one."""
    assert parse(struct, reference.default_file(struct), "printed") == struct()


@pytest.mark.parametrize("struct", [AgentSettings, CollectorSettings])
def test_the_printed_file_has_every_key(
    struct: type[AgentSettings | CollectorSettings],
) -> None:
    """Each key is assigned, or named in a comment where its default is an empty table."""
    text = reference.default_file(struct)
    for key in keys(struct):
        if key.table is None:
            assert f"\n{key.name} = " in f"\n{text}" or f"\n# {key.name}: " in text, key.name


@pytest.mark.parametrize("struct", [AgentSettings, CollectorSettings, Profile, Rule, Values])
def test_every_key_is_explained(struct: type[Section]) -> None:
    """A key without a docstring would have an empty cell; a bar would break the table."""
    for key in keys(struct):
        assert (key.table is not None) or key.text, f"{struct.__name__}.{key.name}"
        assert "|" not in key.text


def test_the_example_can_be_used() -> None:
    """The site's file in the document loads, and means what it says."""
    settings = parse(AgentSettings, reference.EXAMPLE, "example")
    assert settings.profiles["campus-only"].reach == ("campus",)
    assert [rule.profile for rule in settings.rules] == ["campus-only", "none"]


def test_types_are_named_as_toml_knows_them() -> None:
    """Nobody has to read Python to write TOML."""
    named = {key.name: reference.words(key.kind) for key in keys(AgentSettings)}
    assert named["trusted_launchers"] == "list of strings"
    assert named["slots"] == "integer"
    assert named["wait_seconds"] == "number"
    assert named["classes"] == "table of lists of strings"
    assert named["rules"] == "list of tables"
    profile = {key.name: reference.words(key.kind) for key in keys(Profile)}
    assert profile["reach"] == "list of strings"
    assert profile["peers"] == '`"none"` or `"owner"` or `"group"` or `"all"`'
    assert profile["priority"] == "integer"
    assert named["machine"] == "table of strings or integers or numbers or booleans"


def test_required_keys_are_told() -> None:
    """A rule without a condition is no rule."""
    required = {key.name for key in keys(Rule) if key.default is msgspec.NODEFAULT}
    assert required == {"when"}
