"""Rules of certificates beside what is in one, and whether one is valid at a time. Pure."""

from __future__ import annotations

from appsupervisor.catalog.v1.certificates_pb2 import Certificate
from appsupervisor.runtime.v1.runtime_environment_pb2 import Condition
from services.control_plane.rules.conditions import set_condition
from services.rpc.errors import Violation
from services.spec.scalars import MAX_DISPLAY_NAME, label_violations, text_violations

VALID, EXPIRES_SOON = "Valid", "ExpiresSoon"

SOON = 30 * 24 * 3600 * 1_000_000
"""µs before its end; of a certificate that lives for less than 90 days a third of that."""


def certificate_violations(given: Certificate, prefix: str = "certificate") -> list[Violation]:
    """Return what is wrong with what a caller set beside chain and key."""
    return [
        *text_violations(f"{prefix}.display_name", given.display_name, MAX_DISPLAY_NAME),
        *label_violations(f"{prefix}.labels", given.labels),
    ]


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
