"""How many replicas the requests ask for: the rule as a table, and the leader that goes by it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from appsupervisor.catalog.v1 import app_catalog_pb2 as pb
from appsupervisor.runtime.v1 import runtime_environment_pb2 as rt
from services.control_plane.placement.autoscale import Load, decide
from services.control_plane.store.interface import CatalogStore
from services.control_plane.store.records import Role
from services.control_plane.store.sql_store import open_store
from tests.fakes.runtime_node import Disk
from tests.unit.control_plane.world import ME, World
from tests.virtual_time import VirtualClock, run_in_virtual_time

CLOCK = VirtualClock()
BOUNDS = pb.Autoscale(min_replicas=1, max_replicas=5, target_concurrency=10)
TO_ZERO = pb.Autoscale(min_replicas=0, max_replicas=5, target_concurrency=10)
ALWAYS_TWO = pb.Autoscale(min_replicas=2, max_replicas=5, target_concurrency=10)

# name: (bounds, what is in flight at each look, 2 s apart, replicas, how many there are to be)
TABLE: dict[str, tuple[pb.Autoscale, list[int], int, int | None]] = {
    "not looked at": (BOUNDS, [], 1, None),
    "nothing in flight": (BOUNDS, [0], 1, None),
    "as many as one takes": (BOUNDS, [10], 1, None),
    "one more than one takes": (BOUNDS, [11], 1, 2),
    "at once as many as it takes": (BOUNDS, [38], 1, 4),
    "no more than allowed": (BOUNDS, [1000], 1, 5),
    "as many as are allowed": (BOUNDS, [1000], 5, None),
    "a burst among quiet looks": (BOUNDS, [0, 0, 24], 1, None),
    "a burst that lasts": (BOUNDS, [0, 24, 24], 1, 2),
    "below the fewest": (ALWAYS_TWO, [0], 1, 2),
    "fewer, but not for a minute": (BOUNDS, [0] * 29, 3, None),
    "fewer for a minute": (BOUNDS, [0] * 31, 3, 1),
    "fewer for a minute, and the fewest stay": (ALWAYS_TWO, [0] * 31, 3, 2),
    "as few as the busiest look of the minute needs": (BOUNDS, [0] * 20 + [15] * 3 + [0] * 8, 4, 2),
    "busy more than a minute ago": (BOUNDS, [40] * 5 + [0] * 35, 4, 1),
    "the last one goes dormant by itself": (TO_ZERO, [0] * 40, 1, None),
    "down to that one": (TO_ZERO, [0] * 40, 2, 1),
}


@pytest.mark.parametrize(("bounds", "looks", "replicas", "expected"), TABLE.values(), ids=TABLE)
def test_replicas_follow_the_requests(
    bounds: pb.Autoscale, looks: list[int], replicas: int, expected: int | None
) -> None:
    load, now = Load(0.0), 0.0
    for number, in_flight in enumerate(looks):
        now = 2.0 * number
        load.seen(bounds, now, in_flight)
    decision = decide(bounds, load, now, replicas)
    assert (decision.replicas if decision is not None else None) == expected


def test_what_is_kept_of_the_looks_is_bounded() -> None:
    load = Load(0.0)
    for number in range(1000):
        load.seen(BOUNDS, 2.0 * number, 3)
    assert (len(load.samples), len(load.needed)) == (3, 31)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CatalogStore]:
    directory: Path = tmp_path_factory.mktemp("catalogs")
    store = open_store(f"sqlite:///{directory}/c.db", clock=CLOCK, elapsed=CLOCK)
    yield store
    store.close()


def test_an_app_gets_more_replicas_for_its_requests_and_fewer_once_it_is_quiet(store: CatalogStore) -> None:
    async def main() -> None:
        world = World(store, random.Random(7), "environments/default/nodes/s1")
        await world.start()
        uids = ("0d0e4f6a-3c0b-4b1e-9a51-7c2f7a1e5b31", "0d0e4f6a-3c0b-4b1e-9a51-7c2f7a1e5b32")
        for number, uid in enumerate(uids, start=2):
            await world.join(
                World(store, random.Random(number), f"environments/default/nodes/s{number}", Disk(uid))
            )
        spec = pb.App(entrypoint="good:app", autoscale=BOUNDS)
        spec.database.no_database.SetInParent()
        await world.commands.create(pb.CreateAppRequest(app=spec, app_id="busy"), ME)

        def status() -> pb.App:
            app = world.app("apps/busy")
            assert app is not None
            return app

        def busy(count: int) -> None:
            for site in world.sites():
                for name in site.node.instances():
                    site.node.set_figures(name, rt.InstanceFigures(in_flight_count=count))

        await world.until(lambda: status().ready_replicas == 1)
        busy(25)
        await world.until(lambda: status().ready_replicas == 3)
        assert (status().target_replicas, status().replicas) == (3, 1)
        current = [
            it for it in store.mirror.placements_of("apps/busy") if it.role in (Role.CURRENT, Role.INCOMING)
        ]
        assert len({it.node for it in current}) == 3
        busy(0)
        await world.until(lambda: status().target_replicas == 1 and not status().reconciling)
        await asyncio.sleep(5)
        assert sum(len(site.node.instances()) for site in world.sites()) == 1
        events = [it.message for it in reversed(store.events("apps/busy", 100)) if it.type == "Scaled"]
        assert events[0].startswith("From 1 to 3 replicas: ")
        assert "to 1 replicas: for 60 s " in events[-1]
        assert "25.0 requests in flight, 10 for each replica." in events[0]
        await world.close()

    run_in_virtual_time(main(), CLOCK)
