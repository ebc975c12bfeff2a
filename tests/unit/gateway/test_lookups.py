"""Nodes' host names are looked up while they are in use, and what was found stays where nothing is found."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from services.gateway import lookups
from services.gateway.lookups import AT_A_TIME, LOOKUP_SECONDS, REFRESH_SECONDS, HostLookups
from tests.virtual_time import run_in_virtual_time


class Names:
    """What is found by name; names of a test's own."""

    def __init__(self) -> None:
        self.used: set[str] = set()
        self.found: dict[str, tuple[str, ...] | OSError] = {}
        self.asked: Counter[str] = Counter()
        self.under_way = self.most_under_way = 0
        self.changed: list[str] = []
        self.lookups = HostLookups(lambda: self.used, self.changed.append, self._resolve)

    async def _resolve(self, host: str) -> tuple[str, ...]:
        self.asked[host] += 1
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        try:
            await asyncio.sleep(60 if host.startswith("slow") else 0.01)
        finally:
            self.under_way -= 1
        found = self.found[host]
        if isinstance(found, OSError):
            raise found
        return found


def played(play: Callable[[Names], Coroutine[Any, Any, None]]) -> Names:
    """Play while names are looked up, in virtual time."""
    names = Names()

    async def beside() -> None:
        running = asyncio.create_task(names.lookups.run())
        await play(names)
        running.cancel()

    run_in_virtual_time(beside())
    return names


def test_names_in_use_are_looked_up_again_and_others_are_forgotten() -> None:
    async def play(names: Names) -> None:
        names.used = {"a"}
        names.found = {"a": ("10.0.0.1",), "b": ("10.0.0.2",)}
        assert names.lookups.addresses("a") is None
        await asyncio.sleep(1)
        assert (names.lookups.addresses("a"), names.changed) == (("10.0.0.1",), ["a"])
        names.found["a"] = ("10.0.0.9",)
        await asyncio.sleep(3 * REFRESH_SECONDS)
        assert (names.lookups.addresses("a"), names.changed) == (("10.0.0.9",), ["a", "a"])
        assert names.asked["a"] == 4
        names.used = {"b"}
        await asyncio.sleep(REFRESH_SECONDS)
        assert names.lookups.addresses("a") is None

    played(play)


def test_a_new_name_is_looked_up_at_once() -> None:
    async def play(names: Names) -> None:
        names.found = {"a": ("10.0.0.1",)}
        await asyncio.sleep(1)
        names.used = {"a"}
        assert names.lookups.addresses("a") is None
        await asyncio.sleep(0.02)
        assert names.lookups.addresses("a") == ("10.0.0.1",)

    played(play)


def test_what_is_not_found_any_more_stays_and_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    async def play(names: Names) -> None:
        names.used = {"a", "never"}
        names.found = {"a": ("10.0.0.1",), "never": OSError("no such host")}
        await asyncio.sleep(1)
        names.found["a"] = OSError("no such host")
        await asyncio.sleep(3 * REFRESH_SECONDS)

    names = played(play)
    assert (names.lookups.addresses("a"), names.lookups.addresses("never")) == (("10.0.0.1",), ())
    assert sorted(record.host for record in caplog.records) == ["a", "never"]  # type: ignore[attr-defined]
    assert names.changed.count("a") == 1


def test_slow_lookups_are_given_up_and_few_at_a_time() -> None:
    async def play(names: Names) -> None:
        names.used = {f"slow-{number}" for number in range(2 * AT_A_TIME)}
        await asyncio.sleep(REFRESH_SECONDS + 2 * LOOKUP_SECONDS + 1)

    names = played(play)
    assert names.most_under_way == AT_A_TIME
    assert {names.lookups.addresses(host) for host in names.used} == {()}


async def test_the_systems_resolver_finds_addresses_of_ipv4_first() -> None:
    assert await lookups.resolve("localhost") == ("127.0.0.1",)
    assert await lookups.resolve("::1") == ("::1",)
