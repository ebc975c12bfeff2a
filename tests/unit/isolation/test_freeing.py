"""A stopped app's memory is free without a full collection, and what holds it is named."""

from __future__ import annotations

import functools
import gc
import logging
import sys
import threading
import weakref
from collections.abc import Iterator
from itertools import pairwise
from types import ModuleType
from typing import Any

import pytest

from runtime_node.isolation import caches, gc_policy
from runtime_node.isolation.dismantle import dismantle
from runtime_node.isolation.gc_policy import GCPolicy
from runtime_node.isolation.leaks import Canary, find_holders


class Thing:
    def __init__(self, **parts: Any) -> None:
        self.__dict__.update(parts)


class Slotted:
    __slots__ = ("__weakref__", "part")


@pytest.fixture
def _no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def web() -> Thing:
    """An object with the kinds of cycles that a web framework makes."""
    app = Thing()
    router = Thing(owner=app, routes=[], by_name={})

    def handler() -> Thing:
        return app

    for number in range(5):
        route = Thing(call=handler, router=router, bound=functools.partial(handler))
        router.routes.append(route)
        router.by_name[number] = route
    slotted = Slotted()
    slotted.part = router
    app.router, app.slotted, app.seen = router, slotted, {app}
    return app


@pytest.mark.usefixtures("_no_collector")
def test_a_web_of_cycles_is_freed_at_once() -> None:
    roots = [web()]
    dead = [weakref.ref(roots[0]), weakref.ref(roots[0].router), weakref.ref(roots[0].slotted)]
    assert dismantle(roots) > 10
    assert [reference() for reference in dead] == [None] * 3
    assert roots == []


@pytest.mark.usefixtures("_no_collector")
def test_what_others_hold_stays_whole_with_all_it_leads_to() -> None:
    app = web()
    shared = app.router.routes[2]
    shared.config = {"a": [1]}
    app.unshared = Thing(loop=None)
    app.unshared.loop = app.unshared
    roots = [app]
    del app
    dismantle(roots)
    assert shared.config == {"a": [1]}
    assert shared.router.routes[2] is shared
    assert shared.call().router is shared.router


@pytest.mark.usefixtures("_no_collector")
def test_a_finalizer_finds_its_object_whole() -> None:
    seen = []

    class Closing:
        def __init__(self) -> None:
            self.parts = {"a": [1, 2]}

        def __del__(self) -> None:
            seen.append(self.parts["a"])

    app = Thing(closing=Closing())
    app.own = app
    roots = [app]
    del app
    dismantle(roots)
    assert seen == [[1, 2]]


def test_an_app_that_is_too_large_is_left_to_the_collector(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtime_node.isolation.dismantle.MOST_OBJECTS", 5)
    roots = [web()]
    reference = weakref.ref(roots[0])
    assert dismantle(roots) == 0
    gc.collect()
    assert reference() is None


KEPT: list[Any] = []


def test_a_module_that_holds_an_app_is_named() -> None:
    app = Thing()
    KEPT.append(Thing(inner={"app": app}))
    canary = Canary("the app object", app)
    del app
    try:
        assert canary.is_alive
        assert canary.describe() == [f"the app object is still in memory: {__name__}.KEPT holds it"]
    finally:
        KEPT.clear()
    assert canary.describe() == []


def test_a_frozen_holder_is_named_as_well() -> None:
    app = Thing()
    KEPT.append(app)
    gc.freeze()
    try:
        assert f"{__name__}.KEPT" in find_holders(app)
        assert gc.get_freeze_count() > 0
    finally:
        KEPT.clear()
        gc.unfreeze()


def test_a_logging_handler_and_a_thread_that_hold_an_app_are_named() -> None:
    app = Thing()
    handler = logging.NullHandler()
    handler.app = app  # type: ignore[attr-defined]
    assert "the logging NullHandler" in find_holders(app)
    del handler
    thread = threading.Thread(name="keeper")
    thread.app = app  # type: ignore[attr-defined]
    assert "the thread 'keeper'" in find_holders(app)


def test_only_the_caches_with_an_entry_of_the_app_are_emptied(monkeypatch: pytest.MonkeyPatch) -> None:
    @functools.lru_cache
    def holding(key: Any) -> int:
        return 1

    @functools.lru_cache
    def other(key: Any) -> int:
        return 1

    class Wrapped:
        def __init__(self, call: Any) -> None:
            self.call = call

    def handler() -> None: ...

    handler.__module__ = "shop__x.web"
    holding(Wrapped(handler))
    other(len)
    monkeypatch.setattr(caches, "_caches", [holding, other])
    assert caches.evict(frozenset({"shop__x"})) == 1
    assert holding.cache_info().currsize == 0
    assert other.cache_info().currsize == 1


def test_caches_are_found_beside_a_class_that_does_not_tell_its_module(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Mute(type):
        def __getattribute__(cls, name: str) -> Any:
            raise ValueError(name)

    module = ModuleType("odd_module")
    vars(module).update(odd=Mute("Odd", (), {}), cached=functools.lru_cache(lambda: 1))
    monkeypatch.setitem(sys.modules, "odd_module", module)
    monkeypatch.setattr(caches, "_caches", [])
    caches.evict(frozenset({"shop__x"}))
    assert vars(module)["cached"] in caches._caches


def test_what_a_freed_app_never_closed_is_collected_too_but_not_at_every_stop() -> None:
    policy = GCPolicy(lambda: True)
    policy.install()
    try:
        for round_number in (1, 2):
            engine = web()
            policy.freeze()
            reference = weakref.ref(engine)
            del engine
            policy.stopped(freed=True)
            policy.tick()
            assert (reference() is None) == (round_number == 1), "a look may follow another one only later"
        assert policy.figures.full_collections == 1
    finally:
        policy.uninstall()


def test_a_frozen_app_that_left_cycles_is_collected_while_nobody_waits() -> None:
    idle = False
    told: list[tuple[str, list[str]]] = []
    policy = GCPolicy(lambda: idle, lambda instance, sentences: told.append((instance, sentences)))
    policy.install()
    try:
        app = web()
        policy.freeze()
        assert policy.figures.freezes > 0
        reference = weakref.ref(app)
        del app
        gc.collect()
        assert reference() is not None, "what is frozen is not collected"
        held = Thing()
        KEPT.append(held)
        policy.stopped(freed=False, instance="gone", suspects=[Canary("the app object", reference())])
        policy.stopped(freed=False, instance="held", suspects=[Canary("the app object", held)])
        del held
        policy.tick()
        assert reference() is not None, "it waited for an idle moment"
        idle = True
        policy.tick()
        assert reference() is None
        assert policy.figures.full_collections == 1
        assert policy.figures.longest_pause > 0
        assert [instance for instance, _ in told] == ["held"]
        assert "KEPT holds it" in told[0][1][0]
    finally:
        KEPT.clear()
        policy.uninstall()
    assert gc.get_threshold() == (700, 10, 10)


@pytest.mark.parametrize(("idle", "seconds"), [(True, 10), (False, 100)])
def test_what_stopped_apps_never_closed_is_looked_for_sooner_while_nobody_asks_for_anything(
    monkeypatch: pytest.MonkeyPatch, idle: bool, seconds: int
) -> None:
    now = 1000.0
    looks: list[float] = []

    def collect(generation: int = 2) -> int:
        nonlocal now
        if generation == 2:
            now += 0.5
            looks.append(now)
        return 0

    monkeypatch.setattr(gc_policy.time, "monotonic", lambda: now)
    monkeypatch.setattr(gc_policy.gc, "collect", collect)
    for call in ("freeze", "unfreeze"):
        monkeypatch.setattr(gc_policy.gc, call, lambda: None)
    policy = GCPolicy(lambda: idle)
    for _ in range(300):
        for _ in range(10):
            policy.stopped(freed=True)
        now += 1.0
        policy.tick()
    gaps = [late - early for early, late in pairwise(looks)]
    assert gaps
    assert seconds <= min(gaps) < seconds + 3


def test_looking_for_caches_brings_no_lazy_member_of_a_class_to_life(monkeypatch):
    class Lazy:
        def __getattr__(self, name):
            raise ModuleNotFoundError(f"{name}: as six's moves do where a module is missing")

    module = ModuleType("lazy_members")
    module.Moves = type("Moves", (), {"gone": Lazy(), "__module__": "lazy_members"})
    monkeypatch.setitem(sys.modules, "lazy_members", module)
    assert caches.evict(frozenset({"nothing_of_ours"})) == 0
