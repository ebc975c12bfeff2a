"""What a command to a node may say: names, numbers and, by `services.spec`, what is to run. Pure.

All violations are told at once.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from google.protobuf.duration_pb2 import Duration

from appsupervisor.runtime.v1.runtime_environment_pb2 import (
    ClaimDataDirectoryRequest,
    InstanceSpec,
    LogEntry,
    RenewLeaseRequest,
    StopInstanceRequest,
    TailLogsRequest,
)
from services.rpc.errors import SupervisorError, Violation, invalid_fields
from services.spec.rules import runtime_violations
from services.spec.scalars import normalize_domain, seconds

MINUTE = 60.0

MAX_BATCH = 100
"""Requests of one batch; their answers stay below the 4 MiB that a client takes."""

_ID = r"[a-z](?:[a-z0-9-]{0,61}[a-z0-9])?"
_INSTANCE_ID = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_APP_NAME = re.compile(rf"apps/({_ID})")
_INSTANCE_NAME = re.compile(rf"apps/({_ID})/instances/({_INSTANCE_ID})")
# One path segment that is neither hidden nor `..`, whatever the file system folds.
_UID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_DIRECTORY_NAME = re.compile(rf"apps/({_ID})/dataDirectories/({_UID.pattern})")
_LOG_TOKEN = re.compile(r"([0-9a-f]{8})\.(\d{1,16})", re.ASCII)

NAME_RULE = (
    "must be apps/{app}/instances/{instance}, each id 1 to 63 lower-case letters, digits and inner hyphens, "
    "the app's beginning with a letter"
)
UID_RULE = "must be 1 to 64 letters, digits, hyphens or underscores, beginning with a letter or digit"

Found = Iterator[Violation]


def app_id(name: str) -> str:
    """Return the app's id of a valid instance name."""
    return name.split("/", 2)[1]


def check_spec(spec: InstanceSpec) -> None:
    """Raise INVALID_FIELD with every field of the spec that breaks its rule."""
    _raise([*_spec("spec", spec)])


def check_own_fields(spec: InstanceSpec) -> None:
    """Raise as `check_spec`, for the fields of which each instance has its own."""
    _raise([*_own_fields("spec", spec)])


def check_name(name: str) -> None:
    """Raise INVALID_FIELD unless `name` is an instance's resource name."""
    _raise([*_name("name", name)])


def check_parent(parent: str) -> str | None:
    """Return the app's id that `apps/{app}` names, or None for `apps/-`. Raises INVALID_FIELD."""
    if parent == "apps/-":
        return None
    match = _APP_NAME.fullmatch(parent)
    if match is None:
        raise invalid_fields([Violation("parent", "must be apps/{app}, or apps/- for all apps")])
    return match[1]


def check_stop(request: StopInstanceRequest) -> None:
    """Raise INVALID_FIELD with every field of the request that breaks its rule."""
    found = [*_name("name", request.name), *_positive("epoch", request.epoch)]
    if request.app_uid or request.purge_data:
        found += _uid("app_uid", request.app_uid)
    _raise(found)


def check_restart(name: str, epoch: int, request_id: str) -> None:
    """Raise INVALID_FIELD with every field of a RestartInstance that breaks its rule."""
    found = [*_name("name", name), *_positive("epoch", epoch)]
    if len(request_id) > 128:
        found.append(Violation("request_id", "must have at most 128 characters"))
    _raise(found)


def check_batch(size: int) -> None:
    """Raise INVALID_FIELD unless a batch has as many requests as one may have."""
    _raise([*_count("requests", size, 1, MAX_BATCH, f"1 to {MAX_BATCH} requests")])


def check_renewal(request: RenewLeaseRequest, now: float) -> None:
    """Raise INVALID_FIELD with every field that breaks its rule; `now` is the node's own time."""
    found = [
        *_positive("term", request.term),
        *_within("lease_duration", request.lease_duration, 0.1, MINUTE, "100 ms to 1 minute"),
    ]
    if not request.incarnation:
        found.append(Violation("incarnation", "is required"))
    # The clock tells more digits than the message does.
    elif not 0 <= seconds(request.monotonic_time) <= now + 1e-6:
        found.append(Violation("monotonic_time", "must be that of a heartbeat, not in the node's future"))
    for index, fence in enumerate(request.fences):
        found += [*_uid(f"fences[{index}].app_uid", fence.app_uid)]
        found += [*_positive(f"fences[{index}].epoch", fence.epoch)]
    _raise(found)


def check_heartbeat(interval: Duration) -> None:
    """Raise INVALID_FIELD unless a WatchInstances heartbeat interval is in range."""
    _raise([*_within("heartbeat_interval", interval, 0.1, MINUTE, "100 ms to 1 minute")])


def check_claim(request: ClaimDataDirectoryRequest) -> tuple[str, str, str, str]:
    """Return app id and uid of the app that has a data directory, and of the one that gets it.

    Raises INVALID_FIELD with every field that breaks its rule.
    """
    found: list[Violation] = []
    source, target = _DIRECTORY_NAME.fullmatch(request.name), _APP_NAME.fullmatch(request.app)
    if source is None:
        found.append(Violation("name", "must be apps/{app}/dataDirectories/{uid}"))
    if target is None:
        found.append(Violation("app", "must be apps/{app}"))
    found += _uid("app_uid", request.app_uid)
    if source is not None and source[2] == request.app_uid:
        found.append(Violation("app_uid", "must be another app's than the one that has the directory"))
    if found or source is None or target is None:
        raise invalid_fields(found)
    return source[1], source[2], target[1], request.app_uid


def directory_ids(name: str) -> tuple[str, str] | None:
    """Return app id and uid that the name of a data directory on the disk is made of; None for another."""
    app, _, uid = name.partition(".")
    return (app, uid) if re.fullmatch(_ID, app) and _UID.fullmatch(uid) else None


def check_page_size(page_size: int) -> None:
    """Raise INVALID_FIELD for a negative page size."""
    if page_size < 0:
        raise invalid_fields([Violation("page_size", "must not be negative")])


def check_tail(request: TailLogsRequest) -> tuple[str, tuple[str, int] | None]:
    """Return the app's id and, of a resume token, the log's id and the cursor.

    Raises INVALID_FIELD with every field that breaks its rule, INVALID_RESUME_TOKEN.
    """
    _raise([*_tail(request)])
    app = request.name.removeprefix("apps/")
    if not request.resume_token:
        return app, None
    match = _LOG_TOKEN.fullmatch(request.resume_token)
    if match is None:
        raise SupervisorError("INVALID_RESUME_TOKEN", "The resume token is not one of a log of an app.")
    return app, (match[1], int(match[2]))


def _tail(request: TailLogsRequest) -> Found:
    if _APP_NAME.fullmatch(request.name) is None:
        yield Violation("name", "must be apps/{app}")
    if request.app_uid:
        yield from _uid("app_uid", request.app_uid)
    if request.instance:
        yield from _name("instance", request.instance)
        if not request.instance.startswith(f"{request.name}/"):
            yield Violation("instance", "must be one of the app's")
    if request.HasField("start_time") and not (
        -62_135_596_800 <= request.start_time.seconds <= 253_402_300_799
        and 0 <= request.start_time.nanos < 1_000_000_000
    ):
        yield Violation("start_time", "must be a time of the years 1 to 9999")
    if request.HasField("tail_line_count"):
        yield from _count("tail_line_count", request.tail_line_count, 0, 100_000, "0 to 100,000")
        if request.resume_token:
            yield Violation("tail_line_count", "must not be set with resume_token")
    yield from _known("min_level", request.min_level, LogEntry.Level)


def _raise(found: list[Violation]) -> None:
    if found:
        raise invalid_fields(found)


def _own_fields(at: str, spec: InstanceSpec) -> Found:
    yield from _name(f"{at}.name", spec.name)
    yield from _uid(f"{at}.app_uid", spec.app_uid)
    yield from _positive(f"{at}.generation", spec.generation)
    yield from _positive(f"{at}.epoch", spec.epoch)
    yield from _provided_database(at, spec)


def _spec(at: str, spec: InstanceSpec) -> Found:
    yield from _own_fields(at, spec)
    broken = runtime_violations(at, spec)
    yield from broken
    told = {violation.field for violation in broken}
    for index, domain in enumerate(spec.domains):
        field = f"{at}.domains[{index}]"
        # The catalog has brought it into this form; here it is compared as it is.
        if field not in told and normalize_domain(domain) != domain:
            yield Violation(field, "must be in the form that DNS carries: lower case, without a final dot")


def _provided_database(at: str, spec: InstanceSpec) -> Found:
    provided = spec.database.WhichOneof("kind") == "postgres"
    if provided and not spec.database_url:
        yield Violation(f"{at}.database_url", "is required with database.postgres")
    if spec.database_url and not provided:
        yield Violation(f"{at}.database_url", "must not be set without database.postgres")
    yield from _count(f"{at}.database_pool_size", spec.database_pool_size, 0, 1_000, "0 to 1,000")


def _name(at: str, name: str) -> Found:
    if _INSTANCE_NAME.fullmatch(name) is None:
        yield Violation(at, NAME_RULE)


def _uid(at: str, uid: str) -> Found:
    if _UID.fullmatch(uid) is None:
        yield Violation(at, UID_RULE)


def _positive(at: str, number: int) -> Found:
    if number < 1:
        yield Violation(at, "must be 1 or more")


def _count(at: str, number: int, low: int, high: int, text: str) -> Found:
    if not low <= number <= high:
        yield Violation(at, f"must be {text}")


def _within(at: str, span: Duration, low: float, high: float, text: str) -> Found:
    valid = abs(span.nanos) < 1_000_000_000 and span.seconds * span.nanos >= 0
    if not (valid and low <= seconds(span) <= high):
        yield Violation(at, f"must be {text}")


def _known(at: str, value: int, enum: object) -> Found:
    if value not in enum.values():  # type: ignore[attr-defined]
        yield Violation(at, "must be one of its documented values")


def stale(name: str, given: tuple[int, int], known: tuple[int, int]) -> SupervisorError:
    """Return the error for a command of an older placement or spec than the node knows."""
    return SupervisorError(
        "STALE_EPOCH",
        f"The command is for epoch {given[0]}, generation {given[1]} of the app of {name}; "
        f"this node knows epoch {known[0]}, generation {known[1]}.",
        resource=name,
        metadata={
            "epoch": str(given[0]),
            "generation": str(given[1]),
            "known_epoch": str(known[0]),
            "known_generation": str(known[1]),
        },
    )
