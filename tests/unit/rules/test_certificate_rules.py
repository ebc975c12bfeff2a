"""What is wrong with a certificate is told by field and rule; what is right is read out of it."""

import ssl
from datetime import UTC, datetime, timedelta

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from appsupervisor.catalog.v1.certificates_pb2 import Certificate
from appsupervisor.runtime.v1.runtime_environment_pb2 import Condition
from services.control_plane.rules.certificate_chains import read_chain
from services.control_plane.rules.certificates import set_conditions
from tests.issued import START, Issued, authority, issue, pem_of

NOW = int((START + timedelta(days=1)).timestamp()) * 1_000_000
DAY = 24 * 3600 * 1_000_000


def given(issued: Issued, chain: str = "", key: str = "") -> Certificate:
    return Certificate(chain_pem=chain or issued.pem, private_key_pem=key or issued.key_pem)


def test_what_a_chain_says_is_read() -> None:
    issued = issue("*.Example.com", "shop.example.com", by=authority())
    certificate = given(issued, issued.pem + authority().pem)
    assert read_chain(certificate, NOW) == []
    assert list(certificate.domains) == ["*.example.com", "shop.example.com"]
    assert certificate.issuer == "CN=Test authority"
    assert certificate.fingerprint == issued.fingerprint
    assert certificate.start_time.ToDatetime(UTC) == START
    assert certificate.expire_time.ToDatetime(UTC) == START + timedelta(days=90)


ONE = issue("a.example.com", by=authority())
OTHER = issue("b.example.com")


@pytest.mark.parametrize(
    ("certificate", "field", "rule"),
    [
        (Certificate(private_key_pem=ONE.key_pem), "chain_pem", "is required"),
        (Certificate(chain_pem=ONE.pem), "private_key_pem", "is required"),
        (given(ONE, "no certificate"), "chain_pem", "must be certificates in PEM"),
        (given(ONE, ONE.pem.replace("M", "N", 3)), "chain_pem", "must be certificates in PEM"),
        (given(ONE, ONE.pem + ONE.key_pem), "chain_pem", "no private key"),
        (given(ONE, ONE.pem * 11), "chain_pem", "at most 10"),
        (given(ONE, "x" * 70_000), "chain_pem", "at most 64 KiB"),
        (given(ONE, key="no key"), "private_key_pem", "must be a private key in PEM"),
        (given(ONE, key=pem_of(ONE.key, b"secret")), "private_key_pem", "must not be encrypted"),
        (given(ONE, key=OTHER.key_pem), "private_key_pem", "must be the key of the first"),
        (given(ONE, authority().pem + ONE.pem), "private_key_pem", "must be the key of the first"),
        (given(ONE, ONE.pem + OTHER.pem), "chain_pem", "certificate 2 has not issued certificate 1"),
        (given(issue("a.example.com", days=0.5)), "chain_pem", "must not have expired"),
        (given(issue()), "chain_pem", "subject alternative name"),
        (given(issue("*.*.example.com")), "chain_pem", "must name host names"),
        (given(issue("10.0.0.1")), "chain_pem", "must name host names"),
        (given(issue("a.b", key=rsa.generate_private_key(65537, 1024))), "private_key_pem", "must be RSA"),
        (given(issue("a.b", key=ec.generate_private_key(ec.SECP256K1()))), "private_key_pem", "P-256"),
    ],
)
def test_what_is_wrong_is_told_by_field_and_rule(certificate: Certificate, field: str, rule: str) -> None:
    found = read_chain(certificate, NOW)
    assert any(it.field == f"certificate.{field}" and rule in it.rule for it in found), found
    assert not any("PRIVATE KEY-----\n" in it.rule for it in found)
    assert not certificate.fingerprint


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("flip", [0x01, 0x80])
def test_a_chain_of_which_any_byte_is_another_is_read_or_refused(flip: int) -> None:
    raw = ssl.PEM_cert_to_DER_cert(ONE.pem)
    found = []
    for at in range(len(raw)):
        broken = raw[:at] + bytes([raw[at] ^ flip]) + raw[at + 1 :]
        found += read_chain(given(ONE, ssl.DER_cert_to_PEM_cert(broken)), NOW)
    assert any("in PEM" in it.rule for it in found)
    assert any("extensions" in it.rule for it in found)


def test_whether_it_is_valid_follows_from_the_time_alone() -> None:
    certificate = given(issue("a.example.com"))
    assert read_chain(certificate, NOW) == []
    start = certificate.start_time.ToMicroseconds()

    def at(day: float) -> list[tuple[str, int, str]]:
        set_conditions(certificate, start + int(day * DAY))
        return [(it.type, it.status, it.reason) for it in certificate.conditions]

    met, unmet = Condition.MET, Condition.UNMET
    assert at(-1) == [("Valid", unmet, "NotYetValid"), ("ExpiresSoon", unmet, "TimeLeft")]
    assert at(0) == at(59) == [("Valid", met, "InTime"), ("ExpiresSoon", unmet, "TimeLeft")]
    assert at(60) == at(89.9) == [("Valid", met, "InTime"), ("ExpiresSoon", met, "EndsSoon")]
    assert at(90) == [("Valid", unmet, "Expired"), ("ExpiresSoon", met, "Expired")]
    since = certificate.conditions[0].last_transition_time.ToDatetime(UTC)
    assert since == START + timedelta(days=90)


def test_a_certificate_of_a_few_days_expires_soon_in_its_last_third() -> None:
    certificate = given(issue("a.example.com", start=datetime(2026, 5, 1, tzinfo=UTC), days=6))
    assert read_chain(certificate, NOW) == []
    start = certificate.start_time.ToMicroseconds()
    for days, soon in ((3.9, Condition.UNMET), (4, Condition.MET)):
        set_conditions(certificate, start + int(days * DAY))
        assert certificate.conditions[1].status == soon
