"""Whom the collector's authority signs for, and whom not, over years that take no time."""

from __future__ import annotations

import json
import os
import stat
from typing import TYPE_CHECKING

import pytest
from cryptography import x509

from lark_agent.errors import ConfigurationError, InvalidRequest, PolicyRefusal, StoreError
from lark_agent.trust import certificates
from lark_agent.trust.authority import DAY, Authority, Issued
from lark_agent.trust.token import Token, parse

if TYPE_CHECKING:
    from pathlib import Path

    from cryptography.hazmat.primitives.asymmetric import ec

    from lark_agent.trust.certificates import Member

DAYS = 30
HOUR = 3600.0
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: files of other accounts")


class Pool:
    """An authority whose clock a test moves, and workers with keys."""

    def __init__(self, folder: Path) -> None:
        self.now = 1_800_000_000.0
        self.folder = folder / "authority"
        self.authority = Authority(self.folder, DAYS, lambda: self.now)
        self.authority.prepare()

    def token(self, worker: str = "", *, replace: bool = False) -> Token:
        return parse(self.authority.create_token(worker, HOUR, replace=replace))

    def enroll(
        self, given: Token, worker: str, key: ec.EllipticCurvePrivateKey | None = None
    ) -> Issued:
        request = certificates.request_for(worker, key or certificates.make_key())
        return self.authority.enroll(given.name, given.secret, worker, request)

    def new(self, worker: str = "w1") -> Issued:
        return self.enroll(self.token(worker), worker)


@pytest.fixture
def pool(tmp_path: Path) -> Pool:
    return Pool(tmp_path)


def member(issued: Issued) -> Member:
    return certificates.member_of(issued.certificate)[0]


def subject(pem: bytes) -> list[int]:
    """Return the serial numbers of certificates."""
    return [each.serial_number for each in x509.load_pem_x509_certificates(pem)]


def test_a_token_admits_the_worker_it_is_for(pool: Pool) -> None:
    """The certificate names the worker and its generation, and holds for as long as was said."""
    issued = pool.new("w1.example.org")
    assert str(member(issued)) == "spiffe://lark/worker/w1.example.org/1"
    assert issued.ends - issued.begins == DAYS * DAY
    assert pool.authority.refusal(member(issued)) == ""
    assert [each.worker for each in pool.authority.workers()] == ["w1.example.org"]


def test_a_token_without_a_worker_admits_any_once(pool: Pool) -> None:
    """It admits one, and nobody after."""
    given = pool.token()
    pool.enroll(given, "w7")
    with pytest.raises(PolicyRefusal, match=r"used already, by another machine, as w7.*revoke w7"):
        pool.enroll(given, "w8")
    assert [each.worker for each in pool.authority.workers()] == ["w7"]


def test_a_stolen_token_that_was_used_is_worthless(pool: Pool) -> None:
    """Another key, under the same name or another, gets nothing and changes nothing."""
    given = pool.token("w1", replace=True)
    first = pool.enroll(given, "w1")
    for worker in ("w1", "w2"):
        with pytest.raises(PolicyRefusal, match="used already"):
            pool.enroll(given, worker)
    assert pool.authority.refusal(member(first)) == ""


def test_an_answer_that_was_lost_is_given_again(pool: Pool) -> None:
    """The same key with the same token is the same worker: no new generation."""
    pool.new("w1")
    given, key = pool.token("w1", replace=True), certificates.make_key()
    first, second = (member(pool.enroll(given, "w1", key)) for _ in range(2))
    assert first == second
    assert second.generation == 2


def test_the_key_of_a_revoked_worker_cannot_use_its_token_again(pool: Pool) -> None:
    """Revocation is stronger than the right to ask for a lost answer."""
    given, key = pool.token("w1"), certificates.make_key()
    issued = pool.enroll(given, "w1", key)
    pool.authority.revoke("w1")
    with pytest.raises(PolicyRefusal, match="revoked"):
        pool.enroll(given, "w1", key)
    assert "revoked" in pool.authority.refusal(member(issued))


def test_the_key_of_a_replaced_worker_cannot_take_its_successors_place(pool: Pool) -> None:
    """Its old token gives it neither its own generation back nor the next one's."""
    given, key = pool.token("w1"), certificates.make_key()
    pool.enroll(given, "w1", key)
    successor = pool.enroll(pool.token("w1", replace=True), "w1")
    with pytest.raises(PolicyRefusal, match="another machine was enrolled as w1"):
        pool.enroll(given, "w1", key)
    assert pool.authority.refusal(member(successor)) == ""


@pytest.mark.parametrize("late", [0.0, 1.0, 10 * DAY])
def test_a_token_that_is_over_admits_nobody(pool: Pool, late: float) -> None:
    """From the second on that it was said to end; nothing of it is left."""
    given = pool.token("w1")
    pool.now += HOUR + late
    with pytest.raises(PolicyRefusal, match="not valid: it is over"):
        pool.enroll(given, "w1")
    assert not list((pool.folder / "tokens").iterdir())


def test_a_token_lives_until_its_end(pool: Pool) -> None:
    """A second before it is good."""
    given = pool.token("w1")
    pool.now += HOUR - 1
    assert member(pool.enroll(given, "w1")).worker == "w1"


def test_a_wrong_secret_admits_nobody(pool: Pool) -> None:
    """The token's name, which is not secret, is not enough; the token stays good for its owner."""
    given = pool.token("w1")
    for name, secret in ((given.name, "0" * 64), (given.name, ""), ("../w1", given.secret)):
        with pytest.raises(PolicyRefusal, match="not valid"):
            pool.authority.enroll(
                name, secret, "w1", certificates.request_for("w1", certificates.make_key())
            )
    assert member(pool.enroll(given, "w1")).generation == 1


def test_a_token_for_one_worker_admits_no_other(pool: Pool) -> None:
    """… and is not used up by the attempt."""
    given = pool.token("w1")
    with pytest.raises(PolicyRefusal, match="for worker w1, not for w2"):
        pool.enroll(given, "w2")
    pool.enroll(given, "w1")


def test_a_deleted_token_admits_nobody(pool: Pool) -> None:
    """Nor can one be deleted that is not there."""
    given = pool.token("w1")
    assert [each.name for each in pool.authority.tokens()] == [given.name]
    pool.authority.delete_token(given.name)
    with pytest.raises(PolicyRefusal, match="not valid"):
        pool.enroll(given, "w1")
    with pytest.raises(ConfigurationError, match="token list"):
        pool.authority.delete_token("../lock")


def test_a_second_machine_cannot_take_a_name(pool: Pool) -> None:
    """Unless the admin says so; then the first is refused, also when it wants to renew."""
    first = pool.new()
    with pytest.raises(PolicyRefusal, match=r"enrolled already.*--worker w1 --replace"):
        pool.enroll(pool.token("w1"), "w1")
    second = pool.enroll(pool.token("w1", replace=True), "w1")
    assert member(second).generation == 2
    assert "another machine was enrolled as w1" in pool.authority.refusal(member(first))
    with pytest.raises(PolicyRefusal, match="another machine"):
        pool.authority.renew(member(first), certificates.request_for("w1", certificates.make_key()))
    assert pool.authority.refusal(member(second)) == ""


def test_a_revoked_worker_is_refused_until_it_is_enrolled_anew(pool: Pool) -> None:
    """It can neither report nor renew; an ordinary token does not bring it back."""
    first = pool.new()
    pool.authority.revoke("w1")
    assert "was revoked" in pool.authority.refusal(member(first))
    request = certificates.request_for("w1", certificates.make_key())
    with pytest.raises(PolicyRefusal, match="was revoked"):
        pool.authority.renew(member(first), request)
    with pytest.raises(PolicyRefusal, match="--replace"):
        pool.enroll(pool.token("w1"), "w1")
    again = pool.enroll(pool.token("w1", replace=True), "w1")
    assert pool.authority.refusal(member(again)) == ""
    assert pool.authority.refusal(member(first)) != ""
    with pytest.raises(ConfigurationError, match="agent list"):
        pool.authority.revoke("w9")


def test_changes_are_seen_by_who_watches(pool: Pool) -> None:
    """A revocation, an enrolment and a new signer each change the stamp."""
    stamps = [pool.authority.stamp()]
    for change in (pool.new, lambda: pool.authority.revoke("w1"), pool.authority.rotate):
        change()
        stamps.append(pool.authority.stamp())
    assert len(set(stamps)) == len(stamps)


@pytest.mark.parametrize("request_", [b"", b"no request", b"-----BEGIN CERTIFICATE REQUEST-----"])
def test_what_is_no_request_uses_no_token_up(pool: Pool, request_: bytes) -> None:
    """It is refused before the token is looked at."""
    given = pool.token("w1")
    with pytest.raises(InvalidRequest, match="no certificate signing request"):
        pool.authority.enroll(given.name, given.secret, "w1", request_)
    pool.enroll(given, "w1")


def test_a_new_signer_is_known_to_all_before_it_is_shown(pool: Pool) -> None:
    """Workers that renew in time always trust what the collector shows, over three rotations.

    The worker renews when two thirds of its certificate's life are over, the admin changes the
    signer at days of his own, and at no hour does one of both not know the other's signer.
    """
    given = pool.new()
    rotations = [day * DAY for day in (41, 47, 120)]
    start, shown = pool.now, set()
    for hour in range(0, 200 * 24, 6):
        pool.now = start + hour * HOUR
        if rotations and pool.now - start >= rotations[0]:
            rotations.pop(0)
            pool.authority.rotate()
        if pool.now >= given.ends - (given.ends - given.begins) / 3:
            request = certificates.request_for("w1", certificates.make_key())
            given = pool.authority.renew(member(given), request)
        mine = x509.load_pem_x509_certificate(given.certificate)
        known = x509.load_pem_x509_certificates(given.authorities)
        trusted = x509.load_pem_x509_certificates(pool.authority.authorities())
        collectors = pool.authority.for_collector().certificate
        assert any(_signed(collectors, each) for each in known), hour
        assert any(_signed(mine, each) for each in trusted), hour
        shown |= {each.serial_number for each in known if _signed(collectors, each)}
    assert not rotations
    assert len(shown) >= 3  # the new ones were not only kept but used


def test_an_old_signer_goes_when_nobody_needs_it(pool: Pool) -> None:
    """Two lives after it was followed it is trusted no more; the next rotation removes its key."""
    old = set(subject(pool.authority.authorities()))
    pool.now += DAY
    pool.authority.rotate()
    pool.now += 2 * DAYS * DAY - 1
    assert old < set(subject(pool.authority.authorities()))
    pool.now += 2
    assert not old & set(subject(pool.authority.authorities()))
    pool.authority.rotate()
    assert len(list(pool.folder.glob("signer-*.pem"))) == 2


def test_rotations_in_one_second_lose_none(pool: Pool) -> None:
    """Each has a file of its own."""
    for _ in range(3):
        pool.authority.rotate()
    assert len(set(subject(pool.authority.authorities()))) == 4


def test_files_are_the_owners_alone(pool: Pool) -> None:
    """No key, token or worker can be read or changed by another account; no secret is kept."""
    given = pool.token("w1")
    pool.new("w2")
    for path in pool.folder.rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path
        if path.is_file():
            assert given.secret.encode() not in path.read_bytes()
    assert stat.S_IMODE(pool.folder.stat().st_mode) == 0o700


@needs_root
def test_what_root_writes_belongs_to_the_collectors_account(tmp_path: Path) -> None:
    """An admin's command beside a collector of its own account locks it out of nothing."""
    os.chown(tmp_path, 1234, 1235)
    tmp_path.chmod(0o700)
    pool = Pool(tmp_path)
    pool.new()
    pool.authority.rotate()
    owners = {(s.st_uid, s.st_gid) for s in map(os.stat, pool.folder.rglob("*"))}
    assert owners == {(1234, 1235)}


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b'{"worker": 1}', b"\xff\xfe"])
def test_a_damaged_worker_is_an_error_and_no_admission(pool: Pool, text: bytes) -> None:
    """Who cannot be looked up is not admitted: the error says which file."""
    issued = pool.new()
    (pool.folder / "workers/w1.json").write_bytes(text)
    with pytest.raises(StoreError, match=r"workers/w1\.json.*backup"):
        pool.authority.refusal(member(issued))


def test_a_damaged_signer_is_an_error(pool: Pool) -> None:
    """… that names what to do."""
    (path,) = pool.folder.glob("signer-*.pem")
    path.write_text("-----BEGIN PRIVATE KEY-----\n")
    with pytest.raises(StoreError, match="backup"):
        pool.authority.for_collector()


def test_without_a_signer_nothing_is_signed(pool: Pool) -> None:
    """A directory that was emptied under the collector is an error, not a new authority."""
    (path,) = pool.folder.glob("signer-*.pem")
    path.unlink()
    with pytest.raises(StoreError, match="no signer"):
        pool.authority.authorities()


def test_revocation_outlives_the_store_and_a_restart(pool: Pool) -> None:
    """It is in a file of its own, which the next collector reads."""
    issued = pool.new()
    pool.authority.revoke("w1")
    next_one = Authority(pool.folder, DAYS, lambda: pool.now)
    next_one.prepare()
    assert "revoked" in next_one.refusal(member(issued))
    assert json.loads((pool.folder / "workers/w1.json").read_bytes())["revoked"] == int(pool.now)


def _signed(certificate: x509.Certificate, signer: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(signer)
    except Exception:  # noqa: BLE001  of three kinds, by what differs first
        return False
    return True
