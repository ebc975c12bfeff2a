"""Certificates as tests need them: made in a few ms, with EC keys, by an authority or by themselves."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

START = datetime(2026, 1, 1, tzinfo=UTC)
"""When they begin to be valid, where nothing else is asked for."""

PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


@dataclass(frozen=True)
class Issued:
    """One certificate with its key."""

    certificate: x509.Certificate
    key: PrivateKey

    @property
    def pem(self) -> str:
        return self.certificate.public_bytes(serialization.Encoding.PEM).decode()

    @property
    def key_pem(self) -> str:
        return pem_of(self.key)

    @property
    def fingerprint(self) -> str:
        return self.certificate.fingerprint(hashes.SHA256()).hex()


def pem_of(key: PrivateKey, password: bytes = b"") -> str:
    form = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, form).decode()


def issue(
    *domains: str,
    by: Issued | None = None,
    start: datetime = START,
    days: float = 90,
    key: PrivateKey | None = None,
    authority: bool = False,
) -> Issued:
    """Return a certificate for these names, by an authority or self-signed."""
    key = key or ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name(
        [x509.NameAttribute(NameOID.COMMON_NAME, domains[0].replace("*", "any") if domains else "nobody")]
    )
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(by.certificate.subject if by else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(start + timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=authority or by is None, path_length=None), critical=True)
    )
    if domains and not authority:
        names = x509.SubjectAlternativeName([x509.DNSName(domain) for domain in domains])
        builder = builder.add_extension(names, critical=False)
    return Issued(builder.sign(by.key if by else key, hashes.SHA256()), key)


@cache
def authority() -> Issued:
    """Return an authority that issues certificates."""
    return issue("Test authority", authority=True, days=3650)
