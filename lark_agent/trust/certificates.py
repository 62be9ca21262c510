"""Keys, requests and certificates, as X.509 has them (RFC 5280): P-256, SHA-256, short lives.

Certificates begin an hour ago, because clocks of a pool are not one clock; which is also how long
a clock may be behind and a new worker still get in.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from lark_agent.errors import InvalidRequest
from lark_agent.trust.identity import COLLECTOR

BEHIND = timedelta(hours=1)
AUTHORITY_DAYS = 3650
_MEMBER = re.compile(r"spiffe://lark/worker/([A-Za-z0-9][A-Za-z0-9_.-]{0,254})/([1-9][0-9]{0,8})")


@dataclass(frozen=True, slots=True)
class Member:
    """A worker, as a certificate names it."""

    worker: str
    generation: int

    def __str__(self) -> str:
        return f"spiffe://lark/worker/{self.worker}/{self.generation}"


@dataclass(frozen=True, slots=True)
class Signer:
    """A private key, and the certificate of it."""

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    @classmethod
    def from_pem(cls, text: bytes) -> Signer:
        """Read key and certificate; raises ValueError."""
        key = serialization.load_pem_private_key(text, None)
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise TypeError("the private key is not one of an elliptic curve")
        return cls(key, x509.load_pem_x509_certificate(text))

    def pem(self) -> bytes:
        """Return both."""
        return key_pem(self.key) + certificate_pem(self.certificate)


def make_key() -> ec.EllipticCurvePrivateKey:
    """Return a new key."""
    return ec.generate_private_key(ec.SECP256R1())


def key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Return a key as files hold it (PKCS #8, not encrypted: the file's mode protects it)."""
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def certificate_pem(certificate: x509.Certificate) -> bytes:
    """Return a certificate as files hold it."""
    return certificate.public_bytes(serialization.Encoding.PEM)


def make_authority(now: datetime) -> Signer:
    """Return a new authority, signed by itself."""
    key = make_key()
    name = _name(f"LARK pool {now:%Y-%m-%d}")
    usage = _usage(signs_certificates=True)
    made = (
        _builder(name, name, key.public_key(), now, timedelta(days=AUTHORITY_DAYS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .sign(key, hashes.SHA256())
    )
    return Signer(key, made)


def for_collector(authority: Signer, now: datetime, life: timedelta) -> Signer:
    """Return a new key and certificate for the collector."""
    key = make_key()
    names = x509.SubjectAlternativeName([x509.DNSName(COLLECTOR)])
    role = ExtendedKeyUsageOID.SERVER_AUTH
    return Signer(key, _issued(authority, key.public_key(), COLLECTOR, names, role, now, life))


def request_for(worker: str, key: ec.EllipticCurvePrivateKey) -> bytes:
    """Return a signing request (PEM): it proves that who asks has the key."""
    made = x509.CertificateSigningRequestBuilder().subject_name(_name(worker))
    return made.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def for_worker(
    authority: Signer, request: bytes, member: Member, now: datetime, life: timedelta
) -> bytes:
    """Return the certificate (PEM) that a request asks for; raises InvalidRequest.

    Only the request's key is taken; its name and extensions are the worker's words.
    """
    names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(str(member))])
    role = ExtendedKeyUsageOID.CLIENT_AUTH
    key = requested_key(request)
    made = _issued(authority, key, member.worker[:64], names, role, now, life)
    return certificate_pem(made)


def requested_key(request: bytes) -> ec.EllipticCurvePublicKey:
    """Return the key of a signing request that is signed with it; raises InvalidRequest."""
    try:
        asked = x509.load_pem_x509_csr(request)
        key, signed = asked.public_key(), asked.is_signature_valid
    except (ValueError, TypeError, InvalidSignature) as error:
        raise InvalidRequest(f"this is no certificate signing request: {error}") from error
    if (
        not signed
        or not isinstance(key, ec.EllipticCurvePublicKey)
        or not isinstance(key.curve, ec.SECP256R1)
    ):
        raise InvalidRequest("a signing request must be signed with its own P-256 key")
    return key


def fingerprint(key: ec.EllipticCurvePublicKey) -> str:
    """Return the SHA-256 of a public key, in hexadecimal."""
    digest = hashes.Hash(hashes.SHA256())
    digest.update(
        key.public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    )
    return digest.finalize().hex()


def member_of(certificate: bytes) -> tuple[Member, datetime]:
    """Return whose a worker's certificate (PEM) is, and its end; raises ValueError."""
    read = x509.load_pem_x509_certificate(certificate)
    try:
        names = read.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound as error:
        raise ValueError("the certificate names no worker") from error
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    found = [match for uri in uris if (match := _MEMBER.fullmatch(uri))]
    if len(found) != 1:
        raise ValueError("the certificate names no worker")
    return Member(found[0][1], int(found[0][2])), read.not_valid_after_utc


def moment(seconds: float) -> datetime:
    """Return a time since the epoch as certificates want it."""
    return datetime.fromtimestamp(seconds, UTC)


def _issued(
    authority: Signer,
    key: ec.EllipticCurvePublicKey,
    name: str,
    names: x509.SubjectAlternativeName,
    role: x509.ObjectIdentifier,
    now: datetime,
    life: timedelta,
) -> x509.Certificate:
    return (
        _builder(authority.certificate.subject, _name(name), key, now, life)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([role]), critical=True)
        .add_extension(names, critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(
                authority.certificate.public_key()  # type: ignore[arg-type]  # ours are of a curve
            ),
            critical=False,
        )
        .sign(authority.key, hashes.SHA256())
    )


def _builder(
    issuer: x509.Name,
    subject: x509.Name,
    key: ec.EllipticCurvePublicKey,
    now: datetime,
    life: timedelta,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .issuer_name(issuer)
        .subject_name(subject)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BEHIND)
        .not_valid_after(now + life)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates, key_cert_sign=signs_certificates,
        crl_sign=signs_certificates, content_commitment=False, key_encipherment=False,
        data_encipherment=False, key_agreement=False, encipher_only=False, decipher_only=False,
    )  # fmt: skip
