"""Messages with one field spoiled, for every field that their descriptors have.

The cases come from the descriptors and not from a list, so a field that is added to a message is
tried by the tests that use them without a word more. A message that is not set is made, and a
repeated one gets an element, so that fields below them are reached too; of a oneof only what is
set is followed. A repeated message is also sent twice, and three thousand times. Of a map of texts
every key and every value is spoiled, beside what it has.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar, cast

from google.protobuf.descriptor import FieldDescriptor

if TYPE_CHECKING:
    from collections.abc import Iterator

    from google.protobuf.message import Message

    Path = tuple[FieldDescriptor, ...]

Spoiled = TypeVar("Spoiled", bound="Message")

TEXTS = (
    "", "x" * 255, "x" * 257, "x" * 100_000, "a\nb\x1b[2J", "\0", "\u202e",
    "\u0662\u0660\u0662\u0666-01", "2026-99-99",
    "fe80::1%\x1b[2J", "fe80::1%" + "x" * 300, "10.0.0.1 ", "-1", "NaN", "../../x",
)  # fmt: skip
VALUES: dict[int, tuple[Any, ...]] = {
    FieldDescriptor.CPPTYPE_STRING: TEXTS,
    FieldDescriptor.CPPTYPE_BOOL: (False, True),
    FieldDescriptor.CPPTYPE_ENUM: (0, 1, -1, 2**31 - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, 1, 65536, 2**31, 2**32 - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, 1, 2**61, 2**63 - 1, 2**63, 2**64 - 1),
    FieldDescriptor.CPPTYPE_INT32: (0, -1, -(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_INT64: (0, -1, -(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_FLOAT: (0.0, -1.0, float("nan"), float("inf")),
    FieldDescriptor.CPPTYPE_DOUBLE: (0.0, -1.0, float("nan"), float("inf"), 1e308),
}
BYTES = (b"", b"\0" * 100_000, b"\xff\xfe", b"-----BEGIN CERTIFICATE REQUEST-----\n")
MANY = (2, 3000)


def spoiled(valid: Spoiled) -> Iterator[tuple[str, Spoiled]]:
    """Yield copies of a message with one field spoiled each, and what was done to it."""
    for path in _paths(valid):
        name, last = ".".join(field.name for field in path), path[-1]
        for value in _values(last):
            copy = type(valid)()
            copy.CopyFrom(valid)
            _set(copy, path, value)
            yield f"{name} = {str(value)[:40]!r} ({len(str(value))})", copy


def texts(message: Message) -> Iterator[str]:
    """Yield every string in a message."""
    for field, value in message.ListFields():
        for each in value if _repeated(field) else [value]:
            if field.message_type:
                yield from texts(each)
            elif isinstance(each, str):
                yield each


def _values(field: FieldDescriptor) -> tuple[Any, ...]:
    if _is_map(field):
        return (*({text: "1"} for text in TEXTS), {str(n): "1" for n in range(3000)})
    if field.message_type:
        return MANY
    return BYTES if field.type == FieldDescriptor.TYPE_BYTES else VALUES[field.cpp_type]


def _paths(valid: Message, above: Path = ()) -> Iterator[Path]:
    for field in cast("list[FieldDescriptor]", valid.DESCRIPTOR.fields):
        if field.containing_oneof and not valid.HasField(field.name):
            continue
        path = (*above, field)
        if not field.message_type or _is_map(field):
            yield path
            continue
        if _repeated(field):
            yield path
        yield from _paths(_below(valid, field), path)


def _below(message: Any, field: FieldDescriptor) -> Any:
    """Return the message in a field: its first element, or a new one, if it is repeated."""
    child = getattr(message, field.name)
    if not _repeated(field):
        return child
    return child[0] if child else getattr(type(message)(), field.name).add()


def _set(message: Any, path: Path, value: Any) -> None:
    for field in path[:-1]:
        child = getattr(message, field.name)
        message = (child[0] if child else child.add()) if _repeated(field) else child
    last = path[-1]
    if _is_map(last):
        getattr(message, last.name).update(value)
    elif last.message_type:
        child = getattr(message, last.name)
        one = child[0] if child else child.add()
        child.extend([one] * (value - len(child)))
    elif _repeated(last):
        getattr(message, last.name).append(value)
    else:
        setattr(message, last.name, value)


def _is_map(field: FieldDescriptor) -> bool:
    below = field.message_type
    return below is not None and bool(below.GetOptions().map_entry)


def _repeated(field: FieldDescriptor) -> bool:
    return bool(field.is_repeated)
