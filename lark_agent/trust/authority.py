"""The collector's authority: who signs, which tokens are open, which workers are enrolled.

A directory that only the collector's account reads::

    authority/
      signer-1764000000.pem     key and certificate of an authority, by the second of its making
      tokens/1f0a….json         not used yet, or used by one key and not old yet
      workers/w1.example.json   generation, key, times; revoked or not

Files and not tables, so that commands work beside a collector that runs or does not, and so that
bringing an old store back brings no revoked worker back. A lock orders who writes; a file is
replaced as a whole. What is written belongs to the directory's owner, also where root writes it.

A new signer is trusted by the next renewal of each worker, and signs for workers at once; the
collector shows it only when every certificate of before has ended or been renewed, which is one
life later, and the old one is trusted for another life. So no worker meets a signer that it does
not know, and none has to be told.
"""

from __future__ import annotations

import fcntl
import hmac
import os
import time
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

import msgspec

from lark_agent.errors import ConfigurationError, PolicyRefusal, StoreError
from lark_agent.linux.files import give, write_secret
from lark_agent.trust import certificates, token
from lark_agent.trust.certificates import Member, Signer, moment

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

DAY = 86400
_Kept = TypeVar("_Kept", bound=msgspec.Struct)


class OpenToken(msgspec.Struct, frozen=True, kw_only=True):
    """A token that may still be used."""

    name: str
    digest: str
    worker: str
    """Empty: any."""
    replace: bool
    """The worker may be enrolled already."""
    ends: int
    key: str = ""
    """Fingerprint of the key that used it; the same key may ask again, if the answer was lost."""
    generation: int = 0
    """That this key was given; only that one is given again."""


class Enrolled(msgspec.Struct, frozen=True, kw_only=True):
    """A worker that has or had a certificate."""

    worker: str
    generation: int
    enrolled: int
    """Seconds since the epoch, as all times here."""
    renewed: int
    ends: int
    """Of its latest certificate."""
    revoked: int = 0


class Issued(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker is given."""

    certificate: bytes
    authorities: bytes
    begins: int
    ends: int


class Authority:
    """The directory; methods raise StoreError if it cannot be read or written."""

    def __init__(self, directory: Path, days: float, now: Callable[[], float] = time.time) -> None:
        self._directory = directory
        self._life = timedelta(days=days)
        self._now = now

    def prepare(self) -> None:
        """Make directory and first signer if they are not there."""
        with _errors("make", self._directory):
            for folder in (".", "tokens", "workers"):
                _make(self._directory / folder)
        with self._locked():
            if not self._signers():
                self._add_signer()

    def rotate(self) -> None:
        """Add a signer, and forget those that nobody needs any more."""
        with self._locked():
            self._add_signer()

    def authorities(self) -> bytes:
        """Return the certificates (PEM) of all signers that are trusted, the newest first."""
        signers = self._trusted()
        return b"".join(certificates.certificate_pem(s.certificate) for _, s in signers)

    def for_collector(self) -> Signer:
        """Return a new key and certificate that every enrolled worker trusts."""
        known = self._now() - self._life.total_seconds()
        signers = self._trusted()
        signer = next((each for made, each in signers if made <= known), signers[-1][1])
        return certificates.for_collector(signer, moment(self._now()), self._life)

    def create_token(self, worker: str, seconds: float, *, replace: bool) -> str:
        """Return a token for one worker (empty: any), good for some time."""
        self.prepare()
        made = token.make(self.authorities().decode())
        kept = OpenToken(
            name=made.name, digest=token.digest(made.secret), worker=worker, replace=replace,
            ends=int(self._now() + seconds),
        )  # fmt: skip
        with self._locked():
            self._write(f"tokens/{made.name}.json", msgspec.json.encode(kept))
        return str(made)

    def tokens(self) -> list[OpenToken]:
        """Return the tokens that nobody used and that are not over."""
        found = self._read_all("tokens", OpenToken)
        return [each for each in found if not each.key and each.ends > self._now()]

    def delete_token(self, name: str) -> None:
        """Make a token worthless; raises ConfigurationError if there is none of that name."""
        if name not in {each.name for each in self.tokens()}:
            raise ConfigurationError(f"no open token has the name '{name}'; see `token list`")
        with _errors("remove", self._directory / "tokens"):
            (self._directory / f"tokens/{name}.json").unlink(missing_ok=True)

    def enroll(self, name: str, secret: str, worker: str, request: bytes) -> Issued:
        """Sign a new worker's request; raises PolicyRefusal or InvalidRequest."""
        key = certificates.fingerprint(certificates.requested_key(request))
        with self._locked():
            ticket = self._ticket(name, secret, worker)
            before = self._enrolled(worker)
            if ticket.key == key and ticket.worker == worker:
                member = Member(worker, ticket.generation)
                if refusal := _refusal(member, before):
                    raise PolicyRefusal(refusal)
                return self._issue(member, request, enrolled=int(self._now()))
            if ticket.key:
                raise PolicyRefusal(
                    f"the token was used already, by another machine, as {ticket.worker}; if that "
                    f"was not yours, run `lark-collector agent revoke {ticket.worker}`"
                )
            if before is not None and not ticket.replace:
                raise PolicyRefusal(
                    f"a worker {worker} is enrolled already; if this machine takes its place, make "
                    f"a token with `lark-collector token create --worker {worker} --replace`"
                )
            # used before anything is given for it
            member = Member(worker, before.generation + 1 if before else 1)
            used = msgspec.structs.replace(
                ticket, key=key, worker=worker, generation=member.generation
            )
            self._write(f"tokens/{name}.json", msgspec.json.encode(used))
            return self._issue(member, request, enrolled=int(self._now()))

    def renew(self, member: Member, request: bytes) -> Issued:
        """Sign the next request of an enrolled worker; raises PolicyRefusal or InvalidRequest."""
        with self._locked():
            before = self._enrolled(member.worker)
            refusal = _refusal(member, before)
            if refusal or before is None:
                raise PolicyRefusal(refusal)
            return self._issue(member, request, enrolled=before.enrolled)

    def refusal(self, member: Member) -> str:
        """Return why a worker with a valid certificate may not report; empty if it may."""
        return _refusal(member, self._enrolled(member.worker))

    def workers(self) -> list[Enrolled]:
        """Return all workers that were ever enrolled, by name."""
        return sorted(self._read_all("workers", Enrolled), key=lambda each: each.worker)

    def revoke(self, worker: str) -> None:
        """Admit a worker no longer; raises ConfigurationError if it is not enrolled."""
        with self._locked():
            before = self._enrolled(worker)
            if before is None:
                raise ConfigurationError(f"no worker {worker} is enrolled; see `agent list`")
            after = msgspec.structs.replace(before, revoked=int(self._now()))
            self._write(f"workers/{worker}.json", msgspec.json.encode(after))

    def stamp(self) -> tuple[int, ...]:
        """Return what changes whenever signers or workers do."""
        with _errors("look at", self._directory):
            folders = (self._directory, self._directory / "workers")
            return tuple(folder.stat().st_mtime_ns for folder in folders)

    def _ticket(self, name: str, secret: str, worker: str) -> OpenToken:
        self._forget_tokens()
        known = {each.name: each for each in self._read_all("tokens", OpenToken)}
        ticket = known.get(name)
        if ticket is None or not hmac.compare_digest(ticket.digest, token.digest(secret)):
            raise PolicyRefusal(
                "the token is not valid: it is over, was deleted, or is of another collector; make "
                "another with `lark-collector token create`"
            )
        if not ticket.key and ticket.worker not in {"", worker}:
            raise PolicyRefusal(f"the token is for worker {ticket.worker}, not for {worker}")
        return ticket

    def _issue(self, member: Member, request: bytes, enrolled: int) -> Issued:
        now = int(self._now())
        ends = now + int(self._life.total_seconds())
        _, signer = self._trusted()[0]
        made = certificates.for_worker(signer, request, member, moment(now), self._life)
        known = Enrolled(
            worker=member.worker, generation=member.generation, enrolled=enrolled, renewed=now,
            ends=ends,
        )  # fmt: skip
        self._write(f"workers/{member.worker}.json", msgspec.json.encode(known))
        return Issued(certificate=made, authorities=self.authorities(), begins=now, ends=ends)

    def _enrolled(self, worker: str) -> Enrolled | None:
        path = self._directory / f"workers/{worker}.json"
        with _errors("read", path):
            return _decoded(path, Enrolled) if path.exists() else None

    def _signers(self) -> list[tuple[float, Signer]]:
        """Return when each was made and what it is, the newest first."""
        found = []
        with _errors("read", self._directory):
            for path in self._directory.glob("signer-*.pem"):
                made = int(path.stem.removeprefix("signer-"))
                found.append((float(made), Signer.from_pem(path.read_bytes())))
        return sorted(found, key=lambda each: each[0], reverse=True)

    def _trusted(self) -> list[tuple[float, Signer]]:
        """Leave out the signers whose last certificate has ended."""
        signers = self._signers()
        if not signers:
            raise StoreError(f"{self._directory} has no signer; start lark-collector once")
        long_ago = self._now() - 2 * self._life.total_seconds()
        newer = [made for made, _ in signers]
        return [each for n, each in enumerate(signers) if n == 0 or newer[n - 1] > long_ago]

    def _add_signer(self) -> None:
        trusted = {made for made, _ in self._trusted()} if self._signers() else set()
        for made, _ in self._signers():
            if made not in trusted:
                (self._directory / f"signer-{made:.0f}.pem").unlink()
        fresh = certificates.make_authority(moment(self._now()))
        number = max(int(self._now()), int(max(trusted, default=0)) + 1)
        self._write(f"signer-{number}.pem", fresh.pem())

    def _forget_tokens(self) -> None:
        for each in self._read_all("tokens", OpenToken):
            if each.ends <= self._now():
                (self._directory / f"tokens/{each.name}.json").unlink(missing_ok=True)

    def _read_all(self, folder: str, kind: type[_Kept]) -> list[_Kept]:
        with _errors("read", self._directory / folder):
            return [_decoded(path, kind) for path in (self._directory / folder).glob("*.json")]

    def _write(self, name: str, text: bytes) -> None:
        path = self._directory / name
        with _errors("write", path):
            write_secret(path, text)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        path = self._directory / "lock"
        with _errors("lock", path):
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            give(handle, self._directory)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)


def _make(folder: Path) -> None:
    """Make a directory unless it is there; root's belongs to whose directory it is in."""
    if not folder.exists():
        folder.mkdir(mode=0o700, parents=True)
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            give(handle, folder.parent)
        finally:
            os.close(handle)


def _refusal(member: Member, known: Enrolled | None) -> str:
    if known is None:
        return f"worker {member.worker} is not enrolled here (any more): enrol it again"
    if known.generation != member.generation:
        return (
            f"another machine was enrolled as {member.worker} since: one of the two needs another "
            "name (worker = … in agent.toml)"
        )
    if known.revoked:
        return f"worker {member.worker} was revoked: enrol it again if that was a mistake"
    return ""


def _decoded(path: Path, kind: type[_Kept]) -> _Kept:
    return msgspec.json.decode(path.read_bytes(), type=kind)


@contextmanager
def _errors(tried: str, path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"cannot {tried} {path}: {error.strerror}; run as root or as the collector's account, "
            "and look at its disk"
        ) from error
    except (ValueError, TypeError, msgspec.MsgspecError) as error:
        raise StoreError(f"cannot {tried} {path}: {error}; restore it from a backup") from error
