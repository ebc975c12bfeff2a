"""Reads a certificate's chain and key, or says what is wrong with them. Pure.

No rule repeats what it is about: there may be a private key in it. Loaded once a certificate is brought: the
library takes 11 MB. It has exceptions of many kinds for bytes that are no certificate: each says that.
"""

from __future__ import annotations

from datetime import UTC, datetime
from itertools import pairwise

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from appsupervisor.catalog.v1.certificates_pb2 import Certificate
from services.rpc.errors import Violation
from services.spec.scalars import domain_violations, normalize_domain

MAX_CHAIN, MAX_KEY = 64 * 1024, 16 * 1024
MAX_CERTIFICATES = 10
MAX_DOMAINS = 100

_MIN_RSA, _MAX_RSA = 2048, 4096
_CURVES = (ec.SECP256R1, ec.SECP384R1, ec.SECP521R1)


def read_chain(certificate: Certificate, now: int, prefix: str = "certificate") -> list[Violation]:
    """Fill in what the chain says of the certificate, in place, or return what is wrong with chain or key.

    `now` is in microseconds since the Unix epoch.
    """
    field = f"{prefix}.chain_pem"
    chain, found = _parsed_chain(field, certificate.chain_pem)
    key, of_key = _parsed_key(f"{prefix}.private_key_pem", certificate.private_key_pem)
    if not chain:
        return found + of_key
    leaf = chain[0]
    if key is not None and key.public_key() != leaf.public_key():
        of_key = [
            Violation(f"{prefix}.private_key_pem", "must be the key of the first certificate of chain_pem")
        ]
    domains, of_names = _domains(field, leaf)
    if _microseconds(leaf.not_valid_after_utc) <= now:
        found.append(Violation(field, "must not have expired"))
    found += _order_violations(field, chain)
    if found := found + of_key + of_names:
        return found
    del certificate.domains[:]
    certificate.domains.extend(domains)
    certificate.issuer = leaf.issuer.rfc4514_string()
    certificate.start_time.FromMicroseconds(_microseconds(leaf.not_valid_before_utc))
    certificate.expire_time.FromMicroseconds(_microseconds(leaf.not_valid_after_utc))
    certificate.fingerprint = leaf.fingerprint(hashes.SHA256()).hex()
    return []


def _parsed_chain(field: str, pem: str) -> tuple[list[x509.Certificate], list[Violation]]:
    if not pem:
        return [], [Violation(field, "is required, in PEM")]
    if len(pem) > MAX_CHAIN:
        return [], [Violation(field, f"must be at most {MAX_CHAIN // 1024} KiB")]
    if "PRIVATE KEY-----" in pem:
        # It is shown to whoever may read.
        return [], [Violation(field, "must have no private key in it: that is private_key_pem's")]
    try:
        chain = x509.load_pem_x509_certificates(pem.encode())
        for certificate in chain:
            _read_all(certificate)
    except Exception:  # noqa: BLE001 - of many kinds
        return [], [Violation(field, "must be certificates in PEM, -----BEGIN CERTIFICATE-----")]
    if len(chain) > MAX_CERTIFICATES:
        return [], [Violation(field, f"must have at most {MAX_CERTIFICATES} certificates")]
    return chain, []


def _read_all(certificate: x509.Certificate) -> None:
    """Read what is asked of a certificate later: it is parsed no sooner than that."""
    certificate.public_key()
    certificate.issuer.rfc4514_string()
    _microseconds(certificate.not_valid_before_utc)
    _microseconds(certificate.not_valid_after_utc)


def _parsed_key(
    field: str, pem: str
) -> tuple[rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | None, list[Violation]]:
    if not pem:
        return None, [Violation(field, "is required, in PEM")]
    if len(pem) > MAX_KEY:
        return None, [Violation(field, f"must be at most {MAX_KEY // 1024} KiB")]
    try:
        key = serialization.load_pem_private_key(pem.encode(), None)
    except TypeError:
        return None, [Violation(field, "must not be encrypted")]
    except Exception:  # noqa: BLE001 - of many kinds
        return None, [Violation(field, "must be a private key in PEM, -----BEGIN PRIVATE KEY-----")]
    if isinstance(key, rsa.RSAPrivateKey) and _MIN_RSA <= key.key_size <= _MAX_RSA:
        return key, []
    if isinstance(key, ec.EllipticCurvePrivateKey) and isinstance(key.curve, _CURVES):
        return key, []
    return None, [Violation(field, "must be RSA from 2,048 to 4,096 bits, or ECDSA on P-256, P-384 or P-521")]


def _domains(field: str, leaf: x509.Certificate) -> tuple[list[str], list[Violation]]:
    try:
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        names = None
    except Exception:  # noqa: BLE001 - of many kinds
        return [], [Violation(field, "must have extensions that can be read")]
    given = names.get_values_for_type(x509.DNSName) if names is not None else []
    if not given:
        rule = "must name a DNS name as a subject alternative name; the common name alone does not count"
        return [], [Violation(field, rule)]
    if len(given) > MAX_DOMAINS:
        return [], [Violation(field, f"must name at most {MAX_DOMAINS} DNS names")]
    for name in given:
        bare = name.removeprefix("*.")
        if bare != "localhost" and domain_violations("", bare):
            rule = "must name host names alone, or *. and one, as subject alternative names"
            return [], [Violation(field, rule)]
    return sorted({_normal(name) for name in given}), []


def _normal(name: str) -> str:
    bare = name.removeprefix("*.")
    return ("*." if bare != name else "") + normalize_domain(bare)


def _order_violations(field: str, chain: list[x509.Certificate]) -> list[Violation]:
    for number, (one, issuer) in enumerate(pairwise(chain), 1):
        try:
            one.verify_directly_issued_by(issuer)
        except Exception:  # noqa: BLE001 - of many kinds
            rule = (
                f"must have each certificate before the one that issued it; certificate {number + 1} has not "
                f"issued certificate {number}"
            )
            return [Violation(field, rule)]
    return []


def _microseconds(time: datetime) -> int:
    since = time - datetime(1970, 1, 1, tzinfo=UTC)
    return (since.days * 86_400 + since.seconds) * 1_000_000
