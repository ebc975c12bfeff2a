"""Rules of certificates, as their proto's comments state them, and what is read out of one. Pure.

No rule repeats what it is about: there may be a private key in it.
"""

from __future__ import annotations

from datetime import UTC, datetime
from itertools import pairwise

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from appsupervisor.catalog.v1.certificates_pb2 import Certificate
from appsupervisor.runtime.v1.runtime_environment_pb2 import Condition
from services.control_plane.rules.conditions import set_condition
from services.rpc.errors import Violation
from services.spec.scalars import (
    MAX_DISPLAY_NAME,
    domain_violations,
    label_violations,
    normalize_domain,
    text_violations,
)

VALID, EXPIRES_SOON = "Valid", "ExpiresSoon"

MAX_CHAIN, MAX_KEY = 64 * 1024, 16 * 1024
MAX_CERTIFICATES = 10
MAX_DOMAINS = 100
SOON = 30 * 24 * 3600 * 1_000_000
"""µs before its end; of a certificate that lives for less than 90 days a third of that."""

_MIN_RSA, _MAX_RSA = 2048, 4096
_CURVES = (ec.SECP256R1, ec.SECP384R1, ec.SECP521R1)


def certificate_violations(given: Certificate, prefix: str = "certificate") -> list[Violation]:
    """Return what is wrong with what a caller set beside chain and key."""
    return [
        *text_violations(f"{prefix}.display_name", given.display_name, MAX_DISPLAY_NAME),
        *label_violations(f"{prefix}.labels", given.labels),
    ]


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


def set_conditions(certificate: Certificate, now: int) -> None:
    """Say in place whether the certificate is valid at a time (µs), and whether it soon ends to be."""
    start, end = (
        certificate.start_time.ToMicroseconds(),
        certificate.expire_time.ToMicroseconds(),
    )
    soon = max(start, end - min(SOON, (end - start) // 3))
    until = f"{certificate.expire_time.ToJsonString()}"
    valid, since, reason, message = Condition.MET, start, "InTime", f"It is valid until {until}."
    if now < start:
        valid, since, reason = Condition.UNMET, certificate.update_time.ToMicroseconds(), "NotYetValid"
        message = f"It is valid from {certificate.start_time.ToJsonString()} on: clients refuse it."
    elif now >= end:
        valid, since, reason = Condition.UNMET, end, "Expired"
        message = f"It was valid until {until}: clients refuse it. Replace it."
    del certificate.conditions[:]
    set_condition(certificate.conditions, VALID, valid, reason, message, since)
    ends = now >= soon
    set_condition(
        certificate.conditions,
        EXPIRES_SOON,
        Condition.MET if ends else Condition.UNMET,
        reason if now >= end else "EndsSoon" if ends else "TimeLeft",
        f"It is valid until {until}: replace it before." if ends and now < end else message,
        soon if ends else certificate.update_time.ToMicroseconds(),
    )


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
            certificate.public_key()
    except (ValueError, UnsupportedAlgorithm):
        return [], [Violation(field, "must be certificates in PEM, -----BEGIN CERTIFICATE-----")]
    if len(chain) > MAX_CERTIFICATES:
        return [], [Violation(field, f"must have at most {MAX_CERTIFICATES} certificates")]
    return chain, []


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
    except (ValueError, UnsupportedAlgorithm):
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
    except ValueError:
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
        except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
            rule = (
                f"must have each certificate before the one that issued it; certificate {number + 1} has not "
                f"issued certificate {number}"
            )
            return [Violation(field, rule)]
    return []


def _microseconds(time: datetime) -> int:
    since = time - datetime(1970, 1, 1, tzinfo=UTC)
    return (since.days * 86_400 + since.seconds) * 1_000_000
