"""What a worker has of its enrolment: one file that only root reads, replaced as a whole.

JSON rather than PEM, so that the agent knows when it has to renew without a library for
certificates in its memory.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from lark_agent.errors import PrerequisiteError
from lark_agent.linux.files import write_secret

if TYPE_CHECKING:
    from pathlib import Path

COLLECTOR = "lark-collector"
"""The DNS name in the collector's certificate."""


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """Key, certificate and whom to trust."""

    worker: str
    key: str
    """PEM, as the next two."""
    certificate: str
    authorities: str
    begins: int
    """Seconds since the epoch, as the next."""
    ends: int

    def renew_at(self) -> float:
        """Return when to renew: a third of its life is left for the collector to come back."""
        return self.ends - (self.ends - self.begins) / 3


def load(path: Path) -> Identity:
    """Read a worker's identity; raises PrerequisiteError."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Identity)
    except FileNotFoundError:
        raise PrerequisiteError(
            f"this worker is not enrolled ({path} is not there): run `lark-collector token create` "
            "on the collector, and `lark-agent enroll` here; or say insecure = true on both sides"
        ) from None
    except OSError as error:
        raise PrerequisiteError(f"cannot read {path}: {error.strerror}; read it as root") from error
    except (msgspec.MsgspecError, UnicodeError) as error:
        raise PrerequisiteError(
            f"{path} is damaged ({error}): enrol again, with a token made with --replace"
        ) from error


def save(path: Path, identity: Identity) -> None:
    """Replace the file, durably; raises PrerequisiteError."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_secret(path, msgspec.json.encode(identity))
    except OSError as error:
        raise PrerequisiteError(
            f"cannot write {path}: {error.strerror}; run as root, and look at its disk"
        ) from error
