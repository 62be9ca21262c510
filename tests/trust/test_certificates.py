"""What certificates say, and what of a request they do not."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from hypothesis import example, given
from hypothesis import strategies as st

from lark_agent.errors import InvalidRequest
from lark_agent.trust import certificates
from lark_agent.trust.certificates import Member

NOW = datetime(2027, 1, 15, tzinfo=UTC)
LIFE = timedelta(days=30)
SIGNER = certificates.make_authority(NOW)


def worker(request: bytes, member: Member) -> x509.Certificate:
    return x509.load_pem_x509_certificate(
        certificates.for_worker(SIGNER, request, member, NOW, LIFE)
    )


def test_only_the_key_of_a_request_is_taken() -> None:
    """Names, roles and extensions that a worker writes into its request are not signed."""
    key = certificates.make_key()
    request = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "lark-collector")]))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=True)
        .add_extension(
            x509.SubjectAlternativeName(
                [
                    x509.DNSName("lark-collector"),
                    x509.UniformResourceIdentifier("spiffe://lark/worker/other/1"),
                ]
            ),
            critical=False,
        )
        .sign(key, hashes.SHA256())
        .public_bytes(serialization.Encoding.PEM)
    )
    made = worker(request, Member("w1", 3))
    names = made.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [each.value for each in names] == ["spiffe://lark/worker/w1/3"]
    assert not made.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    roles = made.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(roles) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    assert made.public_key() == key.public_key()


def test_the_collectors_certificate_is_no_workers() -> None:
    """It has another role and names no worker."""
    made = certificates.for_collector(SIGNER, NOW, LIFE)
    roles = made.certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(roles) == [ExtendedKeyUsageOID.SERVER_AUTH]
    with pytest.raises(ValueError, match="names no worker"):
        certificates.member_of(certificates.certificate_pem(made.certificate))


def test_a_request_must_be_signed_with_its_own_key() -> None:
    """Somebody else's public key gets no certificate."""
    good = certificates.request_for("w1", certificates.make_key())
    der = bytearray(x509.load_pem_x509_csr(good).public_bytes(serialization.Encoding.DER))
    der[-1] ^= 1
    bent = x509.load_der_x509_csr(bytes(der)).public_bytes(serialization.Encoding.PEM)
    with pytest.raises(InvalidRequest, match="own P-256 key"):
        certificates.requested_key(bent)


def test_other_kinds_of_keys_are_refused() -> None:
    """RSA, and other curves: they cost the collector more and are of no use."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "w1")])
    builder = x509.CertificateSigningRequestBuilder().subject_name(name)
    for key in (rsa.generate_private_key(65537, 2048), ec.generate_private_key(ec.SECP521R1())):
        request = builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
        with pytest.raises(InvalidRequest, match="own P-256 key"):
            certificates.requested_key(request)


@given(st.binary(max_size=2000))
@example(b"-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n")
def test_any_bytes_are_a_request_or_refused(request: bytes) -> None:
    """No other error leaves, whatever a stranger sends."""
    with pytest.raises(InvalidRequest):
        certificates.requested_key(request)


@given(st.binary(max_size=2000))
def test_any_bytes_are_a_member_or_refused(certificate: bytes) -> None:
    """The same for certificates."""
    with pytest.raises(ValueError):  # noqa: PT011  of the library, in many words
        certificates.member_of(certificate)


NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,60}", fullmatch=True)


@given(NAMES, st.integers(1, 999_999_999))
@example("w" * 200, 1)
def test_a_member_is_read_as_it_was_written(name: str, generation: int) -> None:
    """Names longer than a subject may be are whole where they count."""
    request = certificates.request_for(name[:64], SIGNER.key)
    made = certificates.for_worker(SIGNER, request, Member(name, generation), NOW, LIFE)
    assert certificates.member_of(made) == (Member(name, generation), NOW + LIFE)
