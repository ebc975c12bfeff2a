"""Rules of what runs of an app, as the protos' comments state them; all violations at once. Pure.

Takes an `App` and an `InstanceSpec` alike, with or without their defaults filled in.
"""

from __future__ import annotations

import keyword
import math
import re
from collections.abc import Mapping, Sequence
from typing import TypeAlias

from google.protobuf.message import Message
from google.protobuf.struct_pb2 import Struct, Value

from appsupervisor.catalog.v1.app_catalog_pb2 import App
from appsupervisor.runtime.v1.runtime_environment_pb2 import (
    Database,
    HealthCheck,
    InstanceSpec,
    Limits,
    RestartPolicy,
)
from services.rpc.errors import Violation
from services.spec.defaults import (
    DEFAULT_HEALTH_CHECK,
    DEFAULT_LIMITS,
    DEFAULT_RESTART_POLICY,
    fill_health_check,
    fill_restart_policy,
)
from services.spec.scalars import (
    KIB,
    SECOND,
    domain_violations,
    duration_violations,
    enum_violations,
    integer_violations,
    nanoseconds,
    normalize_domain,
    quoted_key,
    text_bytes,
)

RuntimeSpec: TypeAlias = App | InstanceSpec

MAX_CONFIG_DEPTH = 20
"""Nesting of `config`; protobuf readers stop at 100 messages, of which each level takes up to three."""

_MAX_ENTRYPOINT = 256
_MAX_CONFIG = 64 * KIB
_MAX_ENV = 64 * KIB
_MAX_ENV_ENTRIES = 256
_MAX_DOMAINS = 32
_MAX_PATH = 1024
_ENV_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
# What may stand in a request target; everything else has to be percent-encoded.
_PATH = re.compile(r"/[!-\"$-~]*")
_EXTENSION = re.compile(r"[a-z][a-z0-9_-]{0,62}")
_MAX_EXTENSIONS = 32
_TEMPLATE = re.compile(r"[a-z_][a-z0-9_-]{0,62}")
_OF_APPS = "as_"
"""How the names of apps' databases begin."""
_SERVER = re.compile("databaseServers/[a-z](?:[a-z0-9-]{0,61}[a-z0-9])?")
_MS = SECOND // 1000
_MINUTE = 60 * SECOND
_HOUR = 60 * _MINUTE
_DAY = 24 * _HOUR


def runtime_violations(prefix: str, spec: RuntimeSpec) -> list[Violation]:
    """Return everything that is wrong with what runs of an app, in the order of its fields."""
    found = [
        *_entrypoint_violations(f"{prefix}.entrypoint", spec.entrypoint),
        *_config_violations(f"{prefix}.config", spec.config),
        *_env_violations(f"{prefix}.env", spec.env),
        *_env_violations(f"{prefix}.secret_env", spec.secret_env),
        *_database_violations(f"{prefix}.database", spec.database, spec.secret_env),
        *_domains_violations(f"{prefix}.domains", spec.domains),
    ]
    found += [
        Violation(quoted_key(f"{prefix}.secret_env", key), "must not also stand in env")
        for key in sorted(spec.secret_env)
        if key in spec.env
    ]
    found += enum_violations(f"{prefix}.activation", spec.activation, InstanceSpec.Activation.DESCRIPTOR)
    found += _span_violations(prefix, spec, "idle_timeout", SECOND, _DAY)
    found += enum_violations(f"{prefix}.isolation", spec.isolation, InstanceSpec.IsolationTier.DESCRIPTOR)
    found += _event_loop_violations(f"{prefix}.event_loop", spec)
    found += enum_violations(
        f"{prefix}.availability", spec.availability, InstanceSpec.Availability.DESCRIPTOR
    )
    # Nothing is wrong with what is not set, as most is, nor with the defaults.
    if spec.limits.ByteSize() and spec.limits != DEFAULT_LIMITS:
        found += _limits_violations(f"{prefix}.limits", spec.limits)
    if spec.health_check.ByteSize() and spec.health_check != DEFAULT_HEALTH_CHECK:
        found += _health_check_violations(f"{prefix}.health_check", spec.health_check)
    if spec.restart_policy.ByteSize() and spec.restart_policy != DEFAULT_RESTART_POLICY:
        found += _restart_policy_violations(f"{prefix}.restart_policy", spec.restart_policy)
    return found


def _entrypoint_violations(field: str, entrypoint: str) -> list[Violation]:
    if not entrypoint:
        return [Violation(field, "is required, as package.module:attribute")]
    if len(entrypoint) > _MAX_ENTRYPOINT:
        return [Violation(field, f"must be at most {_MAX_ENTRYPOINT} characters")]
    module, colon, attribute = entrypoint.partition(":")
    words = [*module.split("."), *attribute.split(".")]
    if colon and all(word.isidentifier() and not keyword.iskeyword(word) for word in words):
        return []
    return [Violation(field, "must have the form package.module:attribute, of Python names")]


def _config_violations(field: str, config: Struct) -> list[Violation]:
    if config.ByteSize() > _MAX_CONFIG:
        return [Violation(field, "must be at most 64 KiB encoded")]
    found: list[Violation] = []
    level: list[tuple[str, Value]] = [(quoted_key(field, key), config.fields[key]) for key in config.fields]
    for _ in range(MAX_CONFIG_DEPTH):
        level = [inner for path, value in level for inner in _config_inner(path, value, found)]
        if not level:
            return found
    found.append(Violation(field, f"must not be nested deeper than {MAX_CONFIG_DEPTH} levels"))
    return found


def _config_inner(path: str, value: Value, found: list[Violation]) -> list[tuple[str, Value]]:
    """Check one value of a config, add to `found`, and return the values in it."""
    kind = value.WhichOneof("kind")
    if kind is None:
        found.append(Violation(path, "must have a value"))
    elif kind == "number_value" and not math.isfinite(value.number_value):
        found.append(Violation(path, "must be a finite number"))
    elif kind == "struct_value":
        inner = value.struct_value.fields
        return [(quoted_key(path, key), inner[key]) for key in inner]
    elif kind == "list_value":
        return [(f"{path}[{index}]", item) for index, item in enumerate(value.list_value.values)]
    return []


def _env_violations(field: str, env: Mapping[str, str]) -> list[Violation]:
    found = []
    if len(env) > _MAX_ENV_ENTRIES:
        found.append(Violation(field, f"must have at most {_MAX_ENV_ENTRIES} entries"))
    if text_bytes(env) > _MAX_ENV:
        found.append(Violation(field, "must be at most 64 KiB in all, keys and values together"))
    for key, value in sorted(env.items()):
        if not _ENV_KEY.fullmatch(key):
            found.append(Violation(quoted_key(field, key), "key must match [A-Za-z_][A-Za-z0-9_]*"))
        if "\0" in value:
            found.append(Violation(quoted_key(field, key), "value must not have NUL characters"))
    return found


def _database_violations(field: str, database: Database, secrets: Mapping[str, str]) -> list[Violation]:
    if database.WhichOneof("kind") == "postgres":
        return _postgres_violations(f"{field}.postgres", database.postgres)
    if database.WhichOneof("kind") != "external":
        return []
    key = database.external.secret_key
    if not key:
        return [Violation(f"{field}.external.secret_key", "is required")]
    if key not in secrets:
        return [Violation(f"{field}.external.secret_key", "must be a key of secret_env")]
    return []


def _postgres_violations(field: str, postgres: Database.Postgres) -> list[Violation]:
    found = []
    if not postgres.server:
        rule = "must be set, as databaseServers/{database_server}: the app's environment has no default"
        found.append(Violation(f"{field}.server", rule))
    elif not _SERVER.fullmatch(postgres.server):
        found.append(Violation(f"{field}.server", "must have the form databaseServers/{database_server}"))
    found += extension_violations(f"{field}.extensions", postgres.extensions, _MAX_EXTENSIONS)
    if postgres.template and postgres.mode != Database.Postgres.DATABASE:
        rule = "must not be set unless mode is DATABASE: a schema is no copy of a database"
        found.append(Violation(f"{field}.template", rule))
    elif postgres.template:
        found += template_violations(f"{field}.template", postgres.template)
    return found + enum_violations(f"{field}.mode", postgres.mode, Database.Postgres.Mode.DESCRIPTOR)


def extension_violations(field: str, names: Sequence[str], most: int) -> list[Violation]:
    """Return what is wrong with names of PostgreSQL's extensions."""
    found = []
    if len(names) > most:
        found.append(Violation(field, f"must have at most {most} entries"))
    for index, name in enumerate(names):
        if not _EXTENSION.fullmatch(name):
            rule = "must begin with a letter and have at most 63 of a-z, 0-9, _ and -"
            found.append(Violation(f"{field}[{index}]", rule))
        elif name in names[:index]:
            found.append(Violation(f"{field}[{index}]", "stands more than once"))
    return found


def template_violations(field: str, name: str) -> list[Violation]:
    """Return what is wrong with the name of a prepared database."""
    if not _TEMPLATE.fullmatch(name):
        return [Violation(field, "must begin with a letter or _ and have at most 63 of a-z, 0-9, _ and -")]
    if name.startswith(_OF_APPS):
        return [Violation(field, f"must not begin with {_OF_APPS}: the databases of apps do")]
    return []


def _domains_violations(field: str, domains: Sequence[str]) -> list[Violation]:
    found = []
    if len(domains) > _MAX_DOMAINS:
        found.append(Violation(field, f"must have at most {_MAX_DOMAINS} entries"))
    seen: set[str] = set()
    for index, domain in enumerate(domains):
        path = f"{field}[{index}]"
        normal = normalize_domain(domain)
        broken = domain_violations(path, domain, wildcard=True)
        if not broken and normal in seen:
            broken = [Violation(path, "stands more than once")]
        seen.add(normal)
        found += broken
    return found


def _event_loop_violations(field: str, spec: RuntimeSpec) -> list[Violation]:
    if spec.event_loop == InstanceSpec.ASYNCIO and spec.isolation != InstanceSpec.PROCESS:
        return [Violation(field, "must not be ASYNCIO unless isolation is PROCESS")]
    return enum_violations(field, spec.event_loop, InstanceSpec.EventLoop.DESCRIPTOR)


def _limits_violations(field: str, limits: Limits) -> list[Violation]:
    found = []
    # Zero is what a field without presence has when it is not set.
    for name, value, lowest, highest in (
        ("max_concurrent_requests", limits.max_concurrent_requests or 1, 1, 10_000),
        ("max_queued_requests", limits.max_queued_requests, 0, 100_000),
        ("max_request_body_bytes", limits.max_request_body_bytes, 0, 10 * KIB**3),
        ("max_websocket_message_bytes", limits.max_websocket_message_bytes or KIB, KIB, 16 * KIB**2),
        ("max_threads", limits.max_threads or 1, 1, 256),
        ("memory_bytes", limits.memory_bytes or 16 * KIB**2, 16 * KIB**2, 64 * KIB**3),
        ("cpu_millis", limits.cpu_millis or 10, 10, 64_000),
    ):
        found += integer_violations(f"{field}.{name}", value, lowest, highest)
    for name, lowest, highest in (
        ("request_timeout", 10 * _MS, _HOUR),
        ("start_timeout", 100 * _MS, 10 * _MINUTE),
        ("stop_timeout", 0, 10 * _MINUTE),
        ("block_budget", 50 * _MS, _MINUTE),
    ):
        found += _span_violations(field, limits, name, lowest, highest)
    return [
        *found,
        *enum_violations(f"{field}.block_action", limits.block_action, Limits.BlockAction.DESCRIPTOR),
    ]


def _health_check_violations(field: str, check: HealthCheck) -> list[Violation]:
    found = []
    if len(check.path) > _MAX_PATH:
        found.append(Violation(f"{field}.path", f"must be at most {_MAX_PATH:,} characters"))
    if check.path and not _PATH.fullmatch(check.path):
        found.append(
            Violation(f"{field}.path", "must begin with / and have only visible ASCII characters but no #")
        )
    spans = _span_violations(field, check, "interval", 100 * _MS, _HOUR)
    spans += _span_violations(field, check, "timeout", 10 * _MS, _MINUTE)
    full = HealthCheck()
    full.CopyFrom(check)
    fill_health_check(full)
    if not spans and nanoseconds(full.timeout) > nanoseconds(full.interval):
        spans.append(Violation(f"{field}.timeout", "must be at most interval"))
    found += spans
    found += integer_violations(f"{field}.success_threshold", check.success_threshold or 1, 1, 100)
    found += integer_violations(f"{field}.failure_threshold", check.failure_threshold or 1, 1, 100)
    return found


def _restart_policy_violations(field: str, policy: RestartPolicy) -> list[Violation]:
    found = enum_violations(f"{field}.mode", policy.mode, RestartPolicy.Mode.DESCRIPTOR)
    found += integer_violations(f"{field}.max_restarts", policy.max_restarts, 0, 1000)
    found += _span_violations(field, policy, "period", SECOND, _DAY)
    spans = _span_violations(field, policy, "min_backoff", 10 * _MS, 10 * _MINUTE)
    spans += _span_violations(field, policy, "max_backoff", 10 * _MS, _HOUR)
    full = RestartPolicy()
    full.CopyFrom(policy)
    fill_restart_policy(full)
    if not spans and nanoseconds(full.max_backoff) < nanoseconds(full.min_backoff):
        spans.append(Violation(f"{field}.max_backoff", "must be at least min_backoff"))
    return found + spans


def _span_violations(field: str, message: Message, name: str, lowest: int, highest: int) -> list[Violation]:
    """Check a span of a message if it is set."""
    if not message.HasField(name):
        return []
    return duration_violations(f"{field}.{name}", getattr(message, name), lowest, highest)
