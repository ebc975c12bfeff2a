"""Rules of single values and maps that several resources share: text, labels, hosts, numbers, spans.

Each function returns the violations of one field; none of them echoes a value that may be secret.
"""

from __future__ import annotations

import ipaddress
import json
import re
import unicodedata
from collections.abc import Mapping

import idna
from google.protobuf.descriptor import EnumDescriptor
from google.protobuf.duration_pb2 import Duration

from services.rpc.errors import Violation

SECOND = 1_000_000_000
"""Nanoseconds in a second; spans are compared as whole nanoseconds."""

KIB = 1024

MAX_LABELS = 64
MAX_LABEL_VALUE = 63
MAX_DISPLAY_NAME = 128
MAX_HOST = 253
WILDCARD = "*."
"""Before a domain: each name that has one label more."""

_LABEL_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?")
_DNS_LABEL = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_DNS_NAME = re.compile(rf"{_DNS_LABEL}(?:\.{_DNS_LABEL})*")
# A last label that is a number makes clients read the whole as an IPv4 address (WHATWG URL, 4.3).
_NUMERIC_LABEL = re.compile(r"[0-9]+|0[xX][0-9a-fA-F]*")
_BIDI_CONTROLS = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_CONTROL_CATEGORIES = frozenset({"Cc", "Cs", "Zl", "Zp"})


def quoted_key(field: str, key: str) -> str:
    """Return the path of one entry of a map, `app.env["A B"]`; a long key is cut at 64 characters."""
    shown = key if len(key) <= 64 else key[:64] + "…"
    escaped = json.dumps(shown, ensure_ascii=not shown.isprintable())
    return f"{field}[{escaped}]"


def has_controls(text: str) -> bool:
    """Tell whether a text for people has characters that break or turn its line."""
    if text.isascii():
        return not text.isprintable()
    return any(c in _BIDI_CONTROLS or unicodedata.category(c) in _CONTROL_CATEGORIES for c in text)


def text_violations(field: str, value: str, longest: int) -> list[Violation]:
    """Check one line of text for people."""
    found = []
    if len(value) > longest:
        found.append(Violation(field, f"must be at most {longest} characters"))
    if has_controls(value):
        found.append(Violation(field, "must not have control characters"))
    return found


def label_violations(field: str, labels: Mapping[str, str]) -> list[Violation]:
    """Check labels by the rules of Kubernetes, at most 64 of them."""
    found = []
    if len(labels) > MAX_LABELS:
        found.append(Violation(field, f"must have at most {MAX_LABELS} entries"))
    for key, value in sorted(labels.items()):
        prefix, slash, name = key.rpartition("/")
        prefix_ok = not slash or (len(prefix) <= MAX_HOST and _DNS_NAME.fullmatch(prefix))
        if not prefix_ok or not _LABEL_NAME.fullmatch(name):
            found.append(
                Violation(
                    quoted_key(field, key),
                    "key must be an optional DNS prefix and '/', then 1 to 63 letters, digits, '-', '_', '.' "
                    "that begin and end with a letter or digit",
                )
            )
        found += label_value_violations(quoted_key(field, key), value, "value must")
    return found


def label_value_violations(field: str, value: str, subject: str = "must") -> list[Violation]:
    """Check one value of a label, or what goes by the same rule."""
    if not value or _LABEL_NAME.fullmatch(value):
        return []
    rule = (
        f"{subject} be empty, or at most {MAX_LABEL_VALUE} letters, digits, '-', '_' and '.', "
        "that begin and end with a letter or digit"
    )
    return [Violation(field, rule)]


def normalize_domain(domain: str) -> str:
    """Return a host name as it is compared: lower case, A-labels, no final dot; as it was if it is none.

    Of a wildcard, `*.` and a host name, that name.
    """
    name = domain.removeprefix(WILDCARD)
    labels = _a_labels(name)
    return domain[: -len(name)] + labels if name and labels else domain


def domain_violations(field: str, domain: str, *, wildcard: bool = False) -> list[Violation]:
    """Check one host name: of DNS, no address, not `localhost`; after `*.`, where `wildcard` allows it."""
    if wildcard and domain.startswith(WILDCARD):
        domain = domain.removeprefix(WILDCARD) or "*"
    normal = normalize_domain(domain)
    rule = ""
    if not domain:
        rule = "must not be empty"
    elif "*" in domain:
        rule = (
            "must have a wildcard only as *. before a host name"
            if wildcard
            else "must not have a wildcard; name each domain"
        )
    elif _is_address(domain) or _NUMERIC_LABEL.fullmatch(normal.rpartition(".")[2]):
        rule = "must be a name, not an IP address"
    elif ":" in domain or "/" in domain:
        rule = "must be a host name alone, without scheme, port or path"
    elif normal == "localhost":
        rule = "must not be localhost"
    elif _a_labels(domain) is None:
        rule = (
            "must be a DNS name of at most 253 characters, in parts of 63 letters, digits and inner hyphens"
        )
    return [Violation(field, rule)] if rule else []


def integer_violations(field: str, value: int, lowest: int, highest: int) -> list[Violation]:
    """Check a whole number against its range, both ends included."""
    if lowest <= value <= highest:
        return []
    return [Violation(field, f"must be from {lowest:,} to {highest:,}")]


def nanoseconds(duration: Duration) -> int:
    """Return a span as whole nanoseconds."""
    return int(duration.seconds) * SECOND + int(duration.nanos)


def set_nanoseconds(duration: Duration, value: int) -> None:
    """Set a span that is not negative from whole nanoseconds."""
    duration.seconds, duration.nanos = divmod(value, SECOND)


def duration_violations(field: str, value: Duration, lowest: int, highest: int) -> list[Violation]:
    """Check a span against its range in nanoseconds, both ends included, and its parts against each other."""
    if abs(value.nanos) >= SECOND or (value.seconds > 0 > value.nanos) or (value.seconds < 0 < value.nanos):
        return [
            Violation(field, "must be a valid Duration: nanos within ±999,999,999, of the sign of seconds")
        ]
    if lowest <= nanoseconds(value) <= highest:
        return []
    return [Violation(field, f"must be from {_span(lowest)} to {_span(highest)}")]


def enum_violations(field: str, value: int, enum: EnumDescriptor) -> list[Violation]:
    """Check that an enum has a value this version knows."""
    if value in enum.values_by_number:
        return []
    names = ", ".join(known.name for known in enum.values if known.number)
    return [Violation(field, f"has the unknown value {value}; use {names}")]


def text_bytes(texts: Mapping[str, str]) -> int:
    """Return the size of a map's keys and values together, in UTF-8."""
    return sum(len(key.encode()) + len(value.encode()) for key, value in texts.items())


def seconds(duration: Duration) -> float:
    """Return a span in seconds."""
    return duration.seconds + duration.nanos / 1e9


def _a_labels(domain: str) -> str | None:
    """Return a name in the form DNS carries, or None if there is none for it."""
    plain = domain.removesuffix(".")
    if len(plain) > MAX_HOST:
        return None
    if plain.isascii() and "xn--" not in plain.lower():
        labels = plain.lower()
    else:
        try:
            labels = idna.encode(plain, uts46=True, std3_rules=True).decode()
        except idna.IDNAError:
            return None
    return labels if len(labels) <= MAX_HOST and _DNS_NAME.fullmatch(labels) else None


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host.removeprefix("[").removesuffix("]"))
    except ValueError:
        return False
    return True


def _span(nanos: int) -> str:
    for size, unit in ((86_400 * SECOND, "day"), (3600 * SECOND, "hour"), (60 * SECOND, "minute")):
        if nanos >= size and nanos % size == 0:
            count = nanos // size
            return f"{count} {unit}{'s' if count > 1 else ''}"
    if nanos % SECOND == 0:
        return f"{nanos // SECOND} s"
    return f"{nanos // 1_000_000} ms"
