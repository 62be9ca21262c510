"""What an admin carries from the collector to a worker: one line, good for one worker, once.

It says which authority the worker is to trust, so enrolment is authenticated both ways: who does
not have the authority's key cannot play the collector, who does not have the secret no worker.
The collector keeps a digest of the secret only.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import secrets
from dataclasses import dataclass

import msgspec

from lark_agent.errors import ConfigurationError

_PREFIX = "lark1:"
_LONGEST = 16_384


@dataclass(frozen=True, slots=True)
class Token:
    """An admission for one enrolment."""

    name: str
    """Not secret: the collector's name for it."""
    secret: str
    authorities: str
    """Certificates (PEM) that the collector is signed by."""

    def __str__(self) -> str:
        body = msgspec.json.encode([self.name, self.secret, self.authorities])
        return _PREFIX + base64.urlsafe_b64encode(body).decode()


def make(authorities: str) -> Token:
    """Return a new token that nobody can guess."""
    return Token(secrets.token_hex(6), secrets.token_hex(32), authorities)


def parse(text: str) -> Token:
    """Read a token; raises ConfigurationError, which does not repeat any of it."""
    text = text.strip()
    wrong = ConfigurationError(
        "this is no token: give the whole line that `lark-collector token create` printed"
    )
    if not text.startswith(_PREFIX) or len(text) > _LONGEST:
        raise wrong
    try:
        body = base64.b64decode(text.removeprefix(_PREFIX), altchars=b"-_", validate=True)
        return Token(*msgspec.json.decode(body, type=tuple[str, str, str]))
    except (ValueError, binascii.Error, msgspec.MsgspecError):
        raise wrong from None


def digest(secret: str) -> str:
    """Return what the collector keeps of a secret; it has 256 random bits, so no salt."""
    return hashlib.sha256(secret.encode()).hexdigest()
