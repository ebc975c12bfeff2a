"""What a command may say: every rule of InstanceSpec and of names, all violations at once. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message

from appsupervisor.runtime.v1.runtime_environment_pb2 import (
    HealthCheck,
    InstanceSpec,
    Limits,
    LogEntry,
    RestartPolicy,
    StopInstanceRequest,
    TailLogsRequest,
)
from runtime_node.instances.effective import seconds
from services.rpc.errors import SupervisorError, Violation, invalid_fields

KIB, MIB, GIB = 1024, 1024**2, 1024**3
MINUTE, HOUR, DAY = 60.0, 3600.0, 86400.0

_ID = r"[a-z](?:[a-z0-9-]{0,61}[a-z0-9])?"
_INSTANCE_ID = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_APP_NAME = re.compile(rf"apps/({_ID})")
_INSTANCE_NAME = re.compile(rf"apps/({_ID})/instances/({_INSTANCE_ID})")
# One path segment that is neither hidden nor `..`, whatever the file system folds.
_UID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_ENV_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_LABEL = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_LOG_TOKEN = re.compile(r"([0-9a-f]{8})\.(\d{1,16})", re.ASCII)
_DOMAIN = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")

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


def check_heartbeat(interval: Duration) -> None:
    """Raise INVALID_FIELD unless a WatchInstances heartbeat interval is in range."""
    _raise([*_within("heartbeat_interval", interval, 0.1, MINUTE, "100 ms to 1 minute")])


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


def _spec(at: str, spec: InstanceSpec) -> Found:
    yield from _name(f"{at}.name", spec.name)
    yield from _uid(f"{at}.app_uid", spec.app_uid)
    yield from _positive(f"{at}.generation", spec.generation)
    yield from _positive(f"{at}.epoch", spec.epoch)
    if not spec.entrypoint:
        yield Violation(f"{at}.entrypoint", "must be set")
    elif len(spec.entrypoint) > 256:
        yield Violation(f"{at}.entrypoint", "must have at most 256 characters")
    if spec.config.ByteSize() > 64 * KIB:
        yield Violation(f"{at}.config", "must be at most 64 KiB")
    yield from _variables(f"{at}.env", spec.env)
    yield from _variables(f"{at}.secret_env", spec.secret_env)
    yield from _database(f"{at}.database.external.secret_key", spec)
    yield from _domains(f"{at}.domains", list(spec.domains))
    yield from _known(f"{at}.activation", spec.activation, InstanceSpec.Activation)
    yield from _optional_span(spec, at, "idle_timeout", 1.0, DAY, "1 s to 1 day")
    yield from _known(f"{at}.isolation", spec.isolation, InstanceSpec.IsolationTier)
    yield from _known(f"{at}.event_loop", spec.event_loop, InstanceSpec.EventLoop)
    if spec.event_loop == InstanceSpec.ASYNCIO and spec.isolation != InstanceSpec.PROCESS:
        yield Violation(f"{at}.event_loop", "must not be ASYNCIO unless isolation is PROCESS")
    yield from _limits(f"{at}.limits", spec.limits)
    yield from _health_check(f"{at}.health_check", spec.health_check)
    yield from _restart_policy(f"{at}.restart_policy", spec.restart_policy)


def _name(at: str, name: str) -> Found:
    if _INSTANCE_NAME.fullmatch(name) is None:
        yield Violation(at, NAME_RULE)


def _uid(at: str, uid: str) -> Found:
    if _UID.fullmatch(uid) is None:
        yield Violation(at, UID_RULE)


def _positive(at: str, number: int) -> Found:
    if number < 1:
        yield Violation(at, "must be 1 or more")


def _variables(at: str, variables: Mapping[str, str]) -> Found:
    if len(variables) > 256:
        yield Violation(at, "must have at most 256 entries")
    if sum(len(k.encode()) + len(v.encode()) for k, v in variables.items()) > 64 * KIB:
        yield Violation(at, "must be at most 64 KiB in all")
    if not all(_ENV_KEY.fullmatch(key) for key in variables):
        yield Violation(at, "must have keys that match [A-Za-z_][A-Za-z0-9_]*")
    if any("\0" in value for value in variables.values()):
        yield Violation(at, "must have values without NUL characters")


def _database(at: str, spec: InstanceSpec) -> Found:
    if spec.database.WhichOneof("kind") != "external":
        return
    key = spec.database.external.secret_key
    if not key:
        yield Violation(at, "must be set")
    elif key not in spec.secret_env:
        yield Violation(at, "must be a key of secret_env")


def _domains(at: str, domains: list[str]) -> Found:
    if len(domains) > 32:
        yield Violation(at, "must have at most 32 entries")
    for index, domain in enumerate(domains):
        if len(domain) > 253 or _DOMAIN.fullmatch(domain) is None:
            yield Violation(f"{at}[{index}]", "must be a lower-case host name without a wildcard")
        elif domain in domains[:index]:
            yield Violation(f"{at}[{index}]", "must not be repeated")


def _limits(at: str, limits: Limits) -> Found:
    yield from _default_or(
        f"{at}.max_concurrent_requests", limits.max_concurrent_requests, 1, 10_000, "1 to 10,000"
    )
    yield from _count(f"{at}.max_queued_requests", limits.max_queued_requests, 0, 100_000, "0 to 100,000")
    yield from _optional_span(limits, at, "request_timeout", 0.01, HOUR, "10 ms to 1 hour")
    yield from _optional_span(limits, at, "start_timeout", 0.1, 10 * MINUTE, "100 ms to 10 minutes")
    yield from _optional_span(limits, at, "stop_timeout", 0.0, 10 * MINUTE, "0 to 10 minutes")
    yield from _count(
        f"{at}.max_request_body_bytes", limits.max_request_body_bytes, 0, 10 * GIB, "0 to 10 GiB"
    )
    yield from _default_or(
        f"{at}.max_websocket_message_bytes", limits.max_websocket_message_bytes, 1024, 16 * MIB,
        "1 KiB to 16 MiB",
    )  # fmt: skip
    yield from _default_or(f"{at}.max_threads", limits.max_threads, 1, 256, "1 to 256")
    yield from _default_or(f"{at}.memory_bytes", limits.memory_bytes, 16 * MIB, 64 * GIB, "16 MiB to 64 GiB")
    yield from _default_or(f"{at}.cpu_millis", limits.cpu_millis, 10, 64_000, "10 to 64,000")
    yield from _optional_span(limits, at, "block_budget", 0.05, MINUTE, "50 ms to 1 minute")
    yield from _known(f"{at}.block_action", limits.block_action, Limits.BlockAction)


def _health_check(at: str, check: HealthCheck) -> Found:
    if check.path and not (
        check.path.startswith("/") and len(check.path) <= 1024 and check.path.isprintable()
    ):
        yield Violation(f"{at}.path", "must begin with / and have at most 1,024 printable characters")
    yield from _optional_span(check, at, "interval", 0.1, HOUR, "100 ms to 1 hour")
    yield from _optional_span(check, at, "timeout", 0.01, MINUTE, "10 ms to 1 minute")
    interval = seconds(check.interval) if check.HasField("interval") else 10.0
    if check.HasField("timeout") and seconds(check.timeout) > interval:
        yield Violation(f"{at}.timeout", "must be at most the interval")
    yield from _default_or(f"{at}.success_threshold", check.success_threshold, 1, 100, "1 to 100")
    yield from _default_or(f"{at}.failure_threshold", check.failure_threshold, 1, 100, "1 to 100")


def _restart_policy(at: str, policy: RestartPolicy) -> Found:
    yield from _known(f"{at}.mode", policy.mode, RestartPolicy.Mode)
    yield from _count(f"{at}.max_restarts", policy.max_restarts, 0, 1000, "0 to 1,000")
    yield from _optional_span(policy, at, "period", 1.0, DAY, "1 s to 1 day")
    yield from _optional_span(policy, at, "min_backoff", 0.01, 10 * MINUTE, "10 ms to 10 minutes")
    yield from _optional_span(policy, at, "max_backoff", 0.0, HOUR, "at most 1 hour")
    low = seconds(policy.min_backoff) if policy.HasField("min_backoff") else 1.0
    if policy.HasField("max_backoff") and seconds(policy.max_backoff) < low:
        yield Violation(f"{at}.max_backoff", "must not be below min_backoff")


def _default_or(at: str, number: int, low: int, high: int, text: str) -> Found:
    """Check a number whose zero means its default."""
    if number:
        yield from _count(at, number, low, high, text)


def _count(at: str, number: int, low: int, high: int, text: str) -> Found:
    if not low <= number <= high:
        yield Violation(at, f"must be {text}")


def _optional_span(message: Message, at: str, field: str, low: float, high: float, text: str) -> Found:
    if message.HasField(field):
        yield from _within(f"{at}.{field}", getattr(message, field), low, high, text)


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
        metadata={"known_epoch": str(known[0]), "known_generation": str(known[1])},
    )
