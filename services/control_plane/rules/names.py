"""Resource names and ids: their grammar, and the sentences that tell it.

Parsing checks the form alone: a reserved word in a name that is looked up is simply not found.
"""

from __future__ import annotations

import re

from services.rpc.errors import Violation, invalid_field

APP_ID = re.compile(r"[a-z](?:[a-z0-9-]{0,61}[a-z0-9])?")
RESERVED_WORDS = frozenset(
    {
        "admin",
        "api",
        "apps",
        "health",
        "internal",
        "localhost",
        "main",
        "metrics",
        "static",
        "system",
        "www",
    }
)
WILDCARD = "-"
MAX_REQUEST_ID = 128
DEFAULT_ENVIRONMENT = "environments/default"

ID_RULE = "must have 1 to 63 lower-case letters, digits and inner hyphens, the first of which is a letter"

# Ids that the system gives (instances, operations, events) may begin with a digit.
_MAX_NAME = 256
_SYSTEM_ID = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")


def validate_id(field: str, value: str, reserved: bool = True) -> list[Violation]:
    """Return what is wrong with an id that a caller chose; `reserved` also refuses the reserved words."""
    if not value:
        return [Violation(field, "is required")]
    if not APP_ID.fullmatch(value):
        return [Violation(field, ID_RULE)]
    if reserved and value in RESERVED_WORDS:
        return [Violation(field, f"must not be a reserved word ({', '.join(sorted(RESERVED_WORDS))})")]
    return []


def request_id_violations(field: str, value: str) -> list[Violation]:
    """Return what is wrong with a `request_id`; an empty one is not set."""
    if len(value) <= MAX_REQUEST_ID and value.isprintable():
        return []
    return [Violation(field, f"must be 1 to {MAX_REQUEST_ID} printable characters, for instance a UUID")]


def app_name(app_id: str) -> str:
    """Return `apps/{app}`."""
    return f"apps/{app_id}"


def environment_name(environment_id: str) -> str:
    """Return `environments/{environment}`."""
    return f"environments/{environment_id}"


def database_server_name(server_id: str) -> str:
    """Return `databaseServers/{database_server}`."""
    return f"databaseServers/{server_id}"


def certificate_name(certificate_id: str) -> str:
    """Return `certificates/{certificate}`."""
    return f"certificates/{certificate_id}"


def node_name(environment_id: str, node_id: str) -> str:
    """Return `environments/{environment}/nodes/{node}`."""
    return f"environments/{environment_id}/nodes/{node_id}"


def retained_data_name(node: str, uid: str) -> str:
    """Return `{node}/retainedData/{retained_data}`."""
    return f"{node}/retainedData/{uid}"


def is_system_id(text: str) -> bool:
    """Tell whether a text has the form of an id that the system gives."""
    return _SYSTEM_ID.fullmatch(text) is not None


def operation_name(operation_id: str) -> str:
    """Return `operations/{operation}`."""
    return f"operations/{operation_id}"


def parse_app_name(name: str, field: str = "name", *, wildcard: bool = False) -> str:
    """Return the id in `apps/{app}`, or `-` where `wildcard` allows it; raises INVALID_FIELD."""
    return _parse("apps/{app}", name, field, [APP_ID], wildcard)[0]


def parse_environment_name(name: str, field: str = "name", *, wildcard: bool = False) -> str:
    """Return the id in `environments/{environment}`, or `-` if `wildcard` allows it; raises INVALID_FIELD."""
    return _parse("environments/{environment}", name, field, [APP_ID], wildcard)[0]


def parse_database_server_name(name: str, field: str = "name") -> str:
    """Return the id in `databaseServers/{database_server}`; raises INVALID_FIELD."""
    return _parse("databaseServers/{database_server}", name, field, [APP_ID])[0]


def parse_certificate_name(name: str, field: str = "name") -> str:
    """Return the id in `certificates/{certificate}`; raises INVALID_FIELD."""
    return _parse("certificates/{certificate}", name, field, [APP_ID])[0]


def parse_node_name(name: str, field: str = "name", *, wildcard: bool = False) -> tuple[str, str]:
    """Return (environment, node) of `environments/{environment}/nodes/{node}`; raises INVALID_FIELD.

    Each may be `-` where `wildcard` allows it.
    """
    ids = _parse("environments/{environment}/nodes/{node}", name, field, [APP_ID, APP_ID], wildcard)
    return ids[0], ids[1]


def parse_retained_data_name(name: str, field: str = "name") -> str:
    """Return the name if it is `environments/{environment}/nodes/{node}/retainedData/{retained_data}`.

    Raises INVALID_FIELD.
    """
    pattern = "environments/{environment}/nodes/{node}/retainedData/{retained_data}"
    _parse(pattern, name, field, [APP_ID, APP_ID, _SYSTEM_ID])
    return name


def parse_operation_name(name: str, field: str = "name") -> str:
    """Return the id in `operations/{operation}`; raises INVALID_FIELD."""
    return _parse("operations/{operation}", name, field, [_SYSTEM_ID])[0]


def is_environment_name(name: str) -> bool:
    """Tell whether `name` has the form of an environment's name."""
    return name.startswith("environments/") and bool(APP_ID.fullmatch(name.removeprefix("environments/")))


def _parse(
    pattern: str, name: str, field: str, ids: list[re.Pattern[str]], wildcard: bool = False
) -> tuple[str, ...]:
    if not name:
        raise invalid_field(field, f"is required, in the form {pattern}")
    collections = pattern.split("/")[::2]
    # A name of a mebibyte is not taken apart.
    parts = name.split("/") if len(name) <= _MAX_NAME else []
    well_formed = (
        len(parts) == 2 * len(collections)
        and parts[::2] == collections
        and all(
            id_form.fullmatch(part) or (wildcard and part == WILDCARD)
            for id_form, part in zip(ids, parts[1::2], strict=True)
        )
    )
    if not well_formed:
        raise invalid_field(field, f"must have the form {pattern}; each id {ID_RULE}")
    return tuple(parts[1::2])
