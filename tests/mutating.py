"""What was once real, damaged: hypothesis cuts, repeats, replaces, turns bits and mixes.

Bytes made of nothing seldom get past the first check of a parser. These begin with what the parser
does take, so that damage reaches its inner rules too. Without an edit a sample is given as it is,
and so a test also shows that its samples are real ones.
"""

from __future__ import annotations

from hypothesis import strategies as st

EDITS = ("cut", "insert", "repeat", "replace", "turn", "mix")
INTERESTING = (
    b"\0",
    b"\xff",
    b"\n",
    b'"',
    b"=",
    b" ",
    "\u2028".encode(),
    b"-1",
    b"9" * 30,
    b"\x1b[2J",
)


@st.composite
def damaged(draw: st.DrawFn, samples: tuple[bytes, ...], most: int = 5) -> bytes:
    """Draw one of the samples with up to `most` edits."""
    data = draw(st.sampled_from(samples))
    for edit in draw(st.lists(st.sampled_from(EDITS), max_size=most)):
        begin = draw(st.integers(0, len(data)))
        end = min(len(data), begin + draw(st.integers(0, 24)))
        piece = data[begin:end]
        data = data[:begin] + draw(_edited(edit, piece, samples)) + data[end:]
    return data


def damaged_text(samples: tuple[str, ...], most: int = 5) -> st.SearchStrategy[str]:
    """Draw one of the texts, damaged; what is no UTF-8 any more is replaced."""
    encoded = tuple(sample.encode() for sample in samples)
    return damaged(encoded, most).map(lambda data: data.decode(errors="replace"))


def _edited(edit: str, piece: bytes, samples: tuple[bytes, ...]) -> st.SearchStrategy[bytes]:
    if edit == "cut":
        return st.just(b"")
    if edit == "insert":
        return st.sampled_from(INTERESTING).map(lambda new: new + piece)
    if edit == "repeat":
        return st.integers(2, 40).map(lambda times: piece * times)
    if edit == "replace":
        return st.binary(min_size=len(piece), max_size=len(piece))
    if edit == "turn":
        return st.integers(1, 255).map(lambda mask: bytes(byte ^ mask for byte in piece))
    return st.sampled_from(samples).flatmap(
        lambda other: st.integers(0, len(other)).map(lambda at: other[at : at + 40])
    )
