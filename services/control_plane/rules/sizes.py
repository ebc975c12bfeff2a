"""Counts and sizes of what a request carries, looked at before anything in it is walked.

A request of a mebibyte may hold 150,000 labels: checked one by one they cost seconds in everyone's way.
The rules of what passes here are `app_rules`' and `fleet_rules`'.
"""

from __future__ import annotations

from google.protobuf.message import Message

from services.rpc.errors import Violation, invalid_fields

ENTRIES = {"labels": 64, "env": 256, "secret_env": 256, "domains": 32, "annotations": 1024, "modules": 2_000}
"""Entries that maps and lists should have at most: the bounds of the rules, and for annotations plenty."""

CHARACTERS = {"display_name": 128, "entrypoint": 256, "chain_pem": 65_536, "private_key_pem": 16_384}

KIBIBYTES = {"config": 64}
"""Encoded size of messages."""

SLACK = 4
"""How much more is still walked, so that what is a little too large is told beside all else that is wrong."""


def check_sizes(message: Message, prefix: str) -> None:
    """Raise INVALID_FIELD with every field of an app, environment or node that is too large to be walked."""
    fields = message.DESCRIPTOR.fields_by_name
    found: list[Violation] = []
    for bounds, unit in ((ENTRIES, "entries"), (CHARACTERS, "characters")):
        for name, most in bounds.items():
            if name in fields and len(getattr(message, name)) > SLACK * most:
                found.append(Violation(f"{prefix}.{name}", f"must have at most {most:,} {unit}"))
    for name, most in KIBIBYTES.items():
        if name in fields and getattr(message, name).ByteSize() > SLACK * most * 1024:
            found.append(Violation(f"{prefix}.{name}", f"must be at most {most} KiB encoded"))
    if found:
        raise invalid_fields(found)
