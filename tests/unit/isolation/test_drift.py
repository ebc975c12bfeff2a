"""What an app changes by accident for all is as before after the next look, and told with the app's name."""

from __future__ import annotations

import asyncio
import builtins
import calendar
import codecs
import csv
import decimal
import gc
import gettext
import http.client
import json
import logging
import mimetypes
import os
import random
import socket
import sqlite3
import ssl
import sys
import tempfile
import threading
import time
import urllib.request
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from runtime_node.isolation import install, running_as
from runtime_node.isolation.current import LOADING_FOR
from runtime_node.isolation.drift import Drift
from runtime_node.isolation.environ import open_overlay
from runtime_node.isolation.noting import take_notes
from runtime_node.isolation.undo_log import undo
from runtime_node.loader import Loader


@pytest.fixture
def drift(me: str, other: str) -> Iterator[Drift]:
    install()
    Loader()  # which sets up how modules are found
    umask = os.umask(0o022)
    drift = Drift()
    yield drift
    drift.look()
    os.umask(umask)


def put(owner: Any, name: str, value: Any = None) -> Callable[[], None]:
    return lambda: setattr(owner, name, value)


def nothing(*args: Any, **kwargs: Any) -> None: ...


class Importer:
    """A finder of modules that finds none."""

    @staticmethod
    def find_spec(name: str, path: Any = None, target: Any = None) -> None: ...


NOTED: dict[str, Callable[[], Any]] = {
    "ssl._create_default_https_context": put(ssl, "_create_default_https_context", nothing),
    "ssl.SSLContext": put(ssl, "SSLContext", nothing),
    "socket.setdefaulttimeout": lambda: socket.setdefaulttimeout(5),
    "socket.getaddrinfo": put(socket, "getaddrinfo", nothing),
    "socket.socket": put(socket, "socket", nothing),
    "random.seed": lambda: random.seed(1),
    "urllib.request._opener": lambda: urllib.request.install_opener(urllib.request.build_opener()),
    "tempfile.tempdir": put(tempfile, "tempdir", "/nowhere"),
    "os.umask": lambda: os.umask(0),
    "os.getenv": put(os, "getenv", nothing),
    "sys.excepthook": put(sys, "excepthook", nothing),
    "sys.displayhook": put(sys, "displayhook", nothing),
    "sys.unraisablehook": put(sys, "unraisablehook", nothing),
    "sys.argv": put(sys, "argv", ["mine"]),
    "sys.dont_write_bytecode": put(sys, "dont_write_bytecode", 7),
    "sys.tracebacklimit": put(sys, "tracebacklimit", 0),
    "sys.path": put(sys, "path", ["/nowhere"]),
    "sys.meta_path": put(sys, "meta_path", []),
    "threading.excepthook": put(threading, "excepthook", nothing),
    "threading.stack_size": lambda: threading.stack_size(1 << 20),
    "threading.Thread": put(threading, "Thread", nothing),
    "time.sleep": put(time, "sleep", nothing),
    "time.time": put(time, "time", nothing),
    "json.dumps": put(json, "dumps", nothing),
    "json._default_encoder": put(json, "_default_encoder", nothing),
    "warnings.showwarning": put(warnings, "showwarning", nothing),
    "warnings.filters": lambda: warnings.resetwarnings(),  # noqa: PLW0108 - looked up at the call
    "gc.set_threshold": lambda: gc.set_threshold(1),
    "gc.set_debug": lambda: gc.set_debug(gc.DEBUG_SAVEALL),
    "logging.raiseExceptions": put(logging, "raiseExceptions", 7),
    "logging.lastResort": put(logging, "lastResort", None),
    "calendar.setfirstweekday": lambda: calendar.setfirstweekday(6),
    "csv.field_size_limit": lambda: csv.field_size_limit(1),
    "gettext._current_domain": lambda: gettext.textdomain("mine"),
    "asyncio.sleep": put(asyncio, "sleep", nothing),
    "builtins._": put(builtins, "_", nothing),
    "builtins.print": put(builtins, "print", nothing),
    "mimetypes.types_map": lambda: mimetypes.init(),  # noqa: PLW0108
}
SILENT: dict[str, Callable[[], Any]] = {
    "json.encoder.JSONEncoder.default": put(json.JSONEncoder, "default", nothing),
    "http.client.HTTPConnection.debuglevel": put(http.client.HTTPConnection, "debuglevel", 1),
    "logging.Formatter.converter": put(logging.Formatter, "converter", time.gmtime),
    "decimal.DefaultContext": put(decimal.DefaultContext, "prec", 3),
    "sys.meta_path": lambda: sys.meta_path.insert(0, Importer),  # type: ignore[arg-type]
    "sys.modules.sqlite3": lambda: sys.modules.update(sqlite3=json),
    "sys.path_hooks": lambda: sys.path_hooks.pop(),  # noqa: PLW0108 - looked up at the call
    "sys.path": lambda: sys.path.append("/nowhere"),
    "gc.callbacks": lambda: gc.callbacks.append(nothing),
    "mimetypes.types_map": lambda: mimetypes.types_map.update({".html": "application/mine"}),
    "sqlite3.adapters": lambda: sqlite3.adapters.popitem(),  # noqa: PLW0108
    "warnings.filters": lambda: warnings.filters.pop(),  # type: ignore[attr-defined]  # noqa: PLW0108
    "logging.addLevelName": lambda: logging.addLevelName(logging.INFO, "MINE"),
}


def state() -> list[Any]:
    """Return what the table names, as far as it can be compared."""
    of_modules = [
        (ssl, "_create_default_https_context SSLContext"), (socket, "getaddrinfo socket"),
        (urllib.request, "_opener"), (tempfile, "tempdir"), (os, "getenv"), (time, "sleep time"),
        (sys, "excepthook displayhook unraisablehook argv dont_write_bytecode tracebacklimit path meta_path"),
        (threading, "excepthook Thread"), (json, "dumps _default_encoder"), (warnings, "showwarning"),
        (logging, "raiseExceptions lastResort"), (gettext, "_current_domain"), (asyncio, "sleep"),
        (builtins, "_ print"), (mimetypes, "types_map"), (json.JSONEncoder, "default"),
        (http.client.HTTPConnection, "debuglevel"), (logging.Formatter, "converter"),
    ]  # fmt: skip
    return [
        *(vars(owner).get(name) for owner, names in of_modules for name in names.split()),
        sys.modules["sqlite3"], list(sys.meta_path), list(sys.path_hooks), list(sys.path), list(gc.callbacks),
        list(warnings.filters), dict(mimetypes.types_map), dict(sqlite3.adapters),
        logging.getLevelName(logging.INFO), decimal.DefaultContext.prec, socket.getdefaulttimeout(),
        gc.get_threshold(), gc.get_debug(), threading.stack_size(), csv.field_size_limit(),
        calendar.firstweekday(),
    ]  # fmt: skip


@pytest.mark.parametrize("value", NOTED)
def test_what_an_app_sets_for_all_is_put_back_and_told_of_it_whoever_else_runs(
    drift: Drift, me: str, other: str, value: str
) -> None:
    before = state()
    with running_as(me):
        NOTED[value]()
    restored = drift.look((other,))
    assert (list(restored.by_instance), restored.unknown) == ([me], [])
    assert value in restored.by_instance[me]
    assert state() == before
    if value != "random.seed":
        assert os.umask(0o022) == 0o022
    assert not drift.look((other,))


def test_a_seed_that_an_app_has_set_tells_nobody_what_comes(drift: Drift, me: str) -> None:
    random.seed(1)
    foreseen = random.random()
    drift.look()
    with running_as(me):
        random.seed(1)
    drift.look()
    assert random.random() != foreseen


@pytest.mark.parametrize("value", SILENT)
def test_what_is_changed_unseen_is_put_back_and_told_of_whoever_alone_has_just_started(
    drift: Drift, me: str, value: str
) -> None:
    before = state()
    with running_as(me):
        SILENT[value]()
    restored = drift.look((me,))
    assert (restored.by_instance, restored.unknown) == ({me: [value]}, [])
    assert state() == before


def test_where_nobody_can_be_told_nobody_is_blamed(me: str, other: str) -> None:
    install()
    drift = Drift(lambda: (me, other))
    with running_as(me):
        decimal.DefaultContext.prec = 3
    restored = drift.look()
    assert restored.by_instance == {}
    assert (restored.unknown, restored.suspects) == (["decimal.DefaultContext"], [me, other])
    assert decimal.DefaultContext.prec == 28


def test_what_comes_from_an_apps_code_is_told_of_the_instance_that_runs_it(
    drift: Drift, me: str, other: str, tmp_path: Path
) -> None:
    (tmp_path / "shop.py").write_text(
        "import json\nclass Encoder:\n    def default(self, value): return str(value)\n"
        "def create_app(context): ...\n"
        "def change(): json.JSONEncoder.default = Encoder.default\n"
    )
    loader = Loader([tmp_path])
    drift.look()
    code = loader.load("shop:create_app")
    assert code._lease is not None
    open_overlay(me, parent=code._lease.tree.scope)
    code._target.__globals__["change"]()
    restored = drift.look((other,))
    assert restored.by_instance == {me: ["json.encoder.JSONEncoder.default"]}
    code.release()
    loader.close()


def test_what_a_module_does_while_it_is_imported_is_told_of_the_instance_it_is_imported_for(
    drift: Drift, me: str
) -> None:
    token = LOADING_FOR.set(me)
    try:
        with running_as("code/shop"):
            socket.setdefaulttimeout(5)
    finally:
        LOADING_FOR.reset(token)
    assert drift.look().by_instance == {me: ["socket.setdefaulttimeout"]}


def test_what_the_node_and_the_packages_of_all_set_stays(
    drift: Drift, me: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["the node's"])
    (tmp_path / "patching_package.py").write_text(
        "import json, sys\nclass Finder:\n    def find_spec(self, *rest): return None\n"
        "finder = Finder()\nsys.meta_path.append(finder)\n"
        "json.JSONEncoder.default = lambda self, value: str(value)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    drift._watched = Drift()._watched
    default = json.JSONEncoder.default
    try:
        with running_as(me):
            package: ModuleType = __import__("patching_package")
        assert not drift.look((me,))
        assert json.dumps(object()).startswith('"<object')
        assert package.finder in sys.meta_path
    finally:
        json.JSONEncoder.default = default  # type: ignore[method-assign]
        sys.meta_path.remove(package.finder)
        del sys.modules["patching_package"]


def test_a_module_that_an_app_replaces_is_put_back_though_it_has_just_imported_the_other(
    drift: Drift, me: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As apps do to have a newer SQLite."""
    (tmp_path / "newer_sqlite.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    drift._watched = Drift()._watched
    with running_as(me):
        sys.modules["sqlite3"] = __import__("newer_sqlite")
    sys.modules.pop("newer_sqlite")
    restored = drift.look((me,))
    assert restored.by_instance == {me: ["sys.modules.sqlite3"]}, restored
    assert sys.modules["sqlite3"] is sqlite3


def test_what_an_app_sets_to_what_it_is_is_no_change_of_its_own(drift: Drift, me: str) -> None:
    take_notes()
    with running_as(me), warnings.catch_warnings():
        warnings.simplefilter("ignore")
    assert take_notes() == {}
    with running_as(me):
        sys.tracebacklimit = None
    assert drift.look().by_instance == {me: ["sys.tracebacklimit"]}
    assert not hasattr(sys, "tracebacklimit")


def test_what_an_app_adds_serves_it_until_it_stops(drift: Drift, me: str) -> None:
    class Money: ...

    def search(name: str) -> Any:
        return codecs.lookup("utf-8") if name == "mine" else None

    with running_as(me):
        sqlite3.register_adapter(Money, lambda money: "5")
        mimetypes.add_type("application/mine", ".mine")
        codecs.register(search)
    assert not drift.look((me,))
    database = sqlite3.connect(":memory:")
    assert database.execute("SELECT ?", (Money(),)).fetchone() == ("5",)
    database.close()
    assert mimetypes.guess_type("a.mine") == ("application/mine", None)
    assert codecs.lookup("mine")
    undo(me)
    assert mimetypes.guess_type("a.mine") == (None, None)
    assert not any(kind is Money for kind, _ in sqlite3.adapters)
    with pytest.raises(LookupError):
        codecs.lookup("mine")
    assert not drift.look((me,))


def test_a_change_that_takes_nothing_from_others_stays(drift: Drift, me: str) -> None:
    before = csv.field_size_limit()
    with running_as(me):
        csv.field_size_limit(before * 2)
    assert not drift.look((me,))
    assert csv.field_size_limit(before) == before * 2
