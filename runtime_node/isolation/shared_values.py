"""The table of what is watched: values of the process that apps change by accident, for all of them."""

from __future__ import annotations

import asyncio
import builtins
import calendar
import codecs
import copyreg
import csv
import datetime
import decimal
import gc
import gettext
import http.client
import importlib
import json
import logging
import mimetypes
import os
import random
import socket
import sqlite3
import ssl
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
import uuid
import warnings
from collections.abc import Callable
from types import ModuleType
from typing import Any

from runtime_node.isolation import noting
from runtime_node.isolation.watched import Attributes, Members, Required, Setting, Table, Watched

_TYPES = " ".join(
    f"mimetypes.{name}" for name in ("_db", "common_types", "encodings_map", "suffix_map", "types_map")
)
_OF_MODULES: dict[ModuleType, str] = {
    asyncio: "Future Task create_task gather get_event_loop new_event_loop run sleep to_thread wait wait_for",
    builtins: "__build_class__ __import__ _ eval exec input isinstance open print",
    codecs: "lookup open",
    datetime: "date datetime",
    gettext: "_current_domain",
    http.client: "HTTPConnection HTTPResponse HTTPSConnection",
    importlib: "import_module reload",
    json: "JSONDecoder JSONEncoder _default_decoder _default_encoder dump dumps load loads",
    json.encoder: "JSONEncoder c_make_encoder encode_basestring encode_basestring_ascii",
    logging: "Formatter Handler Logger StreamHandler basicConfig getLogger lastResort raiseExceptions root",
    mimetypes: "_db common_types encodings_map suffix_map types_map",
    os: "environ getcwd getenv listdir system urandom",
    random: "_inst choice randint random randrange sample shuffle uniform",
    socket: "SOCK_STREAM create_connection getaddrinfo gethostbyname socket",
    sqlite3: "connect",
    ssl: "CERT_REQUIRED SSLContext SSLSocket _create_default_https_context create_default_context",
    subprocess: "Popen run",
    sys: "__displayhook__ __excepthook__ __stderr__ __stdout__ argv breakpointhook displayhook"
    " dont_write_bytecode excepthook meta_path modules path path_hooks pycache_prefix tracebacklimit"
    " unraisablehook",
    tempfile: "NamedTemporaryFile TemporaryDirectory tempdir template",
    threading: "Condition Event Lock RLock Thread Timer excepthook local",
    time: "monotonic perf_counter sleep time tzname",
    urllib.request: "Request _opener build_opener getproxies urlopen",
    uuid: "uuid1 uuid4",
    warnings: "catch_warnings formatwarning showwarning warn",
}
_OF_CLASSES: dict[type, str] = {
    json.JSONEncoder: "default encode item_separator iterencode key_separator",
    json.JSONDecoder: "decode",
    http.client.HTTPConnection: "connect debuglevel putrequest request",
    logging.Formatter: "converter default_msec_format default_time_format format formatTime",
    logging.LogRecord: "__init__ getMessage",
    logging.Logger: "callHandlers handle makeRecord",
    socket.socket: "connect send recv",
    subprocess.Popen: "__init__",
    threading.Thread: "run start",
    urllib.request.OpenerDirector: "open",
}
_CALLS: tuple[tuple[ModuleType, str, str], ...] = (
    (socket, "setdefaulttimeout", ""),
    (os, "umask", ""),
    (gc, "set_threshold", ""),
    (gc, "set_debug", ""),
    (threading, "stack_size", ""),
    (time, "tzset", "time.tzname"),
    (csv, "field_size_limit", ""),
    (calendar, "setfirstweekday", ""),
    (gettext, "textdomain", "gettext._current_domain"),
    (urllib.request, "install_opener", "urllib.request._opener"),
    (mimetypes, "init", _TYPES),
    (random, "seed", ""),
    (random, "setstate", "random.seed"),
    (warnings, "resetwarnings", "warnings.filters"),
)
# Those that apps replace by faster or newer ones, which is what all others then import.
_MODULES = (
    "asyncio collections datetime decimal email hashlib html http.client importlib inspect json logging os"
    " pathlib pickle random re select selectors shutil signal socket sqlite3 ssl string subprocess"
    " tempfile threading time types typing urllib.parse urllib.request uuid warnings weakref"
    " xml.etree.ElementTree zlib zoneinfo"
)
_DECIMAL = ("prec", "rounding", "Emin", "Emax", "capitals", "clamp")
_UMASK_WITHIN = 256
"""Bytes of a process's status in which its umask is: only its name stands before it."""


class _ByName:
    """Loaded modules as attributes."""


def watch() -> list[Watched]:
    """Return what is watched, as it is now, and have the authors of changes noted from now on.

    Once per process, when all that the node itself sets is set.
    """
    _warm_up()
    # As they are before their calls are noted: what puts a value back is no app.
    set_timeout, set_threshold, set_debug = socket.setdefaulttimeout, gc.set_threshold, gc.set_debug
    stack_size, limit, umask = threading.stack_size, csv.field_size_limit, os.umask
    week: Any = calendar
    set_week = week.setfirstweekday
    for module, name, value in _CALLS:
        noting.watch_calls(module, name, value)
    _take_back_additions()
    attributes: list[Watched] = []
    for module, names in _OF_MODULES.items():
        noting.watch_attributes(module, frozenset(names.split()))
        attributes.append(Attributes(module, names))
    for owner, names in _OF_CLASSES.items():
        attributes.append(Attributes(owner, names, called=f"{owner.__module__}.{owner.__name__}"))
    modules = _ByName()
    modules.__dict__ = sys.modules
    return [
        *attributes,
        Attributes(modules, _MODULES, called="sys.modules", fixed=True),
        Members("sys.meta_path", lambda: sys.meta_path),
        Members("sys.path_hooks", lambda: sys.path_hooks),
        Members("sys.path", lambda: sys.path),
        Members("gc.callbacks", lambda: gc.callbacks),
        Required("warnings.filters", _filters, _filters_changed),
        Table("mimetypes.types_map", mimetypes.types_map),
        Table("sqlite3.adapters", getattr(sqlite3, "adapters", {})),
        Table("sqlite3.converters", getattr(sqlite3, "converters", {})),
        Table("copyreg.dispatch_table", copyreg.dispatch_table),
        Table("logging.addLevelName", logging._levelToName),
        Setting("socket.setdefaulttimeout", socket.getdefaulttimeout, set_timeout),
        Setting("gc.set_threshold", gc.get_threshold, lambda value: set_threshold(*value)),
        Setting("gc.set_debug", gc.get_debug, set_debug),
        Setting("threading.stack_size", stack_size, stack_size),
        # A larger one lets more pass and takes nothing from anybody.
        Setting("csv.field_size_limit", limit, limit, harmless=lambda before, now: now > before),
        Setting("calendar.setfirstweekday", week.firstweekday, set_week),
        Setting("decimal.DefaultContext", _decimal_settings, _set_decimal_settings),
        Setting("os.umask", _umask, umask),
        Setting("sys.setdlopenflags", sys.getdlopenflags, sys.setdlopenflags),
    ]


SEEDS: dict[str, Callable[[], object]] = {"random.seed": random.seed}
"""Generators of random numbers, and how they are seeded anew after an app has seeded one for all."""


def _warm_up() -> None:
    """Have the standard library remember what it finds out at the first use."""
    mimetypes.init()
    tempfile.gettempdir()


def _take_back_additions() -> None:
    """Have what instances register for all taken away with them."""
    noting.take_back_calls(codecs, "register", codecs.unregister)
    tables: tuple[tuple[str, Any], ...] = (
        ("register_adapter", getattr(sqlite3, "adapters", {})),
        ("register_converter", getattr(sqlite3, "converters", {})),
    )
    for name, table in tables:
        noting.take_back_calls(sqlite3, name, _drop_from(table))
    noting.take_back_calls(mimetypes, "add_type", lambda kind, ext, strict=True: _drop_type(ext, strict))
    noting.take_back_calls(copyreg, "pickle", lambda kind, *rest: copyreg.dispatch_table.pop(kind, None))


def _drop_from(table: dict[Any, Any]) -> Any:
    def drop(kind: Any, function: Any) -> None:
        for key, value in list(table.items()):
            if value is function:
                del table[key]

    return drop


def _drop_type(extension: str, strict: bool) -> None:
    (mimetypes.types_map if strict else mimetypes.common_types).pop(extension, None)


def _decimal_settings() -> tuple[Any, ...]:
    return tuple(getattr(decimal.DefaultContext, name) for name in _DECIMAL)


def _set_decimal_settings(values: tuple[Any, ...]) -> None:
    for name, value in zip(_DECIMAL, values, strict=True):
        setattr(decimal.DefaultContext, name, value)


def _filters() -> list[Any]:
    return warnings.filters  # type: ignore[return-value]


def _filters_changed() -> None:
    # Python 3.14 has it under the second name.
    for name in ("_filters_mutated", "_filters_mutated_lock_held"):
        if hasattr(warnings, name):
            getattr(warnings, name)()


def _umask() -> int:
    """Return the process's umask. Asking the system for it would set it, in the middle of others' work."""
    try:
        # Unbuffered, and no more than the first two lines: it is asked at each start of an app.
        with open("/proc/self/status", "rb", buffering=0) as status:
            words = status.read(_UMASK_WITHIN).split()
        return int(words[words.index(b"Umask:") + 1], 8)
    except (OSError, ValueError, IndexError):
        return 0o022
