"""Whatever is commanded and whatever happens to nodes, an app's replicas become as many as are wanted.

The histories of `test_convergence` on three nodes, of an app whose number of replicas changes, too.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable

import pytest

from appsupervisor.catalog.v1 import app_catalog_pb2 as pb
from appsupervisor.fleet.v1 import fleet_pb2 as fleet
from appsupervisor.runtime.v1 import runtime_environment_pb2 as rt
from services.control_plane.placement.scale import is_at
from services.control_plane.placement.snapshot import has_ended, is_ready
from services.control_plane.store.interface import CatalogStore
from services.control_plane.store.records import Role
from services.rpc.errors import SupervisorError
from tests.fakes.runtime_node import Disk
from tests.unit.control_plane.test_convergence import (
    ENTRYPOINTS,
    NEW_SEEDS,
    STEPS,
    History,
    _few_sweeps,
    forget,
    run_seeded,
    store,
)
from tests.unit.control_plane.world import World

__all__ = ("_few_sweeps", "store")

SEEDS = (0, 4, 5, 12, 23, 3722311400)


class ReplicaHistory(History):
    """One app of several replicas on three nodes."""

    others: tuple[World, ...] = ()

    async def run(self) -> None:
        world, chance = self.world, self.chance
        await world.start()
        for other in self.others:
            await world.join(other)
        await self.create()
        acts: list[tuple[int, Callable[[], Awaitable[None]]]] = [
            (6, self.update), (2, self.toggle), (5, self.command), (1, self.delete), (2, self.create),
            (3, self.crash), (2, self.node_dies), (1, world.restart_controller), (3, self.line_turns),
            (1, self.line_is_cut), (6, self.scale), (3, self.rollout), (6, self.move), (2, self.cordon),
            (1, self.drain), (1, self.cancel),
        ]  # fmt: skip
        for _ in range(STEPS):
            await chance.choices([act for _, act in acts], [weight for weight, _ in acts])[0]()
            await asyncio.sleep(chance.choice((0, 0, 0.01, 0.1, 0.5, 3, 10)))
            self.check_truth()
        await self.calm()

    async def create(self) -> None:
        spec = pb.App(entrypoint=self.chance.choice(ENTRYPOINTS), replicas=self.chance.randint(1, 3))
        spec.activation = self.chance.choice((rt.InstanceSpec.EAGER, rt.InstanceSpec.ON_REQUEST))
        spec.restart_policy.max_restarts = 0
        spec.database.no_database.SetInParent()
        request = pb.CreateAppRequest(app=spec, app_id=self.name.removeprefix("apps/"))
        await self.attempt(self.world.commands.create, request)
        if app := self.world.app(self.name):
            self.uids.add(app.uid)

    async def scale(self) -> None:
        app = pb.App(name=self.name, replicas=self.chance.randint(1, 3))
        await self.attempt(self.world.commands.update, pb.UpdateAppRequest(app=app))

    async def rollout(self) -> None:
        app = pb.App(name=self.name)
        app.rollout.paused = self.chance.random() < 0.5
        app.rollout.batch_percent = self.chance.choice((0, 70, 100))
        app.rollout.min_ready_duration.FromMilliseconds(self.chance.choice((0, 0, 700)))
        request = pb.UpdateAppRequest(app=app)
        request.update_mask.paths.append("rollout")
        await self.attempt(self.world.commands.update, request)

    async def move(self) -> None:
        names = [site.name for site in self.world.sites()]
        here = [it.node for it in self.world.store.mirror.placements_of(self.name)]
        request = pb.MoveAppRequest(name=self.name, node=self.chance.choice(["", *names]))
        request.source_node = self.chance.choice(here or names)
        try:
            await self.attempt(self.world.commands.move, request)
        except SupervisorError as refusal:  # it has left that node meanwhile, or is leaving it
            if refusal.reason != "INVALID_FIELD" or "source_node" not in refusal.message:
                raise

    async def node_dies(self) -> None:
        await self.chance.choice(self.world.sites()).restart_node()

    def check_truth(self) -> None:
        placements = self.world.store.mirror.placements_of(self.name)
        for role in (Role.CURRENT, Role.INCOMING):
            numbers = Counter(it.replica for it in placements if it.role is role)
            assert all(count == 1 for count in numbers.values()), "two of one replica"
        assert len({it.version for it in placements}) == len(placements)
        record = self.world.store.mirror.apps.get(self.name)
        if record is not None and record.status.newest_epoch:
            of_replica: dict[int, int] = {}
            for it in placements:
                other = of_replica.setdefault(it.epoch, it.replica)
                assert other == it.replica, "an epoch of two replicas: fencing one would cut the other"
            assert max(of_replica, default=0) <= record.status.newest_epoch

    async def calm(self) -> None:
        world = self.world
        for site in world.sites():
            site.lost_requests = site.lost_answers = site.delay = 0.0
            site.cut = False
            await self.attempt(self.nodes.uncordon, fleet.UncordonNodeRequest(name=site.name))
        app = pb.App(name=self.name)
        request = pb.UpdateAppRequest(app=app)
        request.update_mask.paths.append("rollout")
        await self.attempt(world.commands.update, request)
        await asyncio.sleep(400)  # longer than any pause, for three after each other
        calls, stored = self.calls(), self.stored()
        await asyncio.sleep(70)
        assert (self.calls(), self.stored()) == (calls, stored), "never at rest"
        assert world.store.mirror.open_operations(self.name) == []
        self.check_rest()

    def check_rest(self) -> None:
        world = self.world
        app, record = world.app(self.name), world.store.mirror.apps.get(self.name)
        placements = world.store.mirror.placements_of(self.name)
        here = {(site.name, name): it for site in world.sites() for name, it in site.node.instances().items()}
        if app is None or record is None:
            assert (here, placements) == ({}, ())
            return
        assert not app.reconciling
        if app.desired_state == pb.App.STOPPED:
            assert not here
            assert app.state == rt.Instance.STOPPED
            return
        running = {(it.node, it.instance): it for it in placements}
        assert here.keys() <= running.keys(), "something runs that nobody placed"
        assert sorted(it.name for it in app.instances) == sorted(name for _, name in here)
        left = set()
        if record.failed == record.target:
            # What has failed on the way back, too, stands beside what it was to replace.
            current = {it.replica for it in placements if it.role is Role.CURRENT}
            left = {
                key for key, it in here.items()
                if has_ended(it) and running[key].role is Role.INCOMING and running[key].replica in current
            }  # fmt: skip
            here = {key: it for key, it in here.items() if key not in left}
        assert len({node for node, _ in here}) == len(here) == app.replicas, "as many as wanted, spread"
        ready = [it for it in here.values() if is_ready(it)]
        if record.status.newest_epoch:
            assert app.ready_replicas == len(ready)
        if len(ready) == app.replicas and not left:
            assert len({it.generation for it in ready}) == 1, "of several versions"
        if len(ready) < app.replicas or record.failed == record.target:
            return  # what is wanted fails: it is told, and what served before may stand beside it
        assert app.observed_generation == app.generation
        assert len(placements) == app.replicas
        assert all(is_at(it, record.target) for it in placements)


def check(store: CatalogStore, seed: int) -> None:
    async def main() -> None:
        chance = random.Random(seed)
        name = f"environments/default/nodes/r{seed}"
        world = World(store, chance, name)
        history = ReplicaHistory(world, f"apps/r{seed}", World(store, chance, f"{name}b", Disk()))
        assert history.other is not None
        history.others = (
            history.other,
            World(store, chance, f"{name}c", Disk(uid="0d0e4f6a-3c0b-4b1e-9a51-7c2f7a1e5b33")),
        )
        try:
            await history.run()
        finally:
            await world.close()
            for site in world.sites():
                await forget(site)

    run_seeded(main(), seed, f"{seed} r")


@pytest.mark.parametrize("seed", SEEDS)
def test_any_history_of_replicas_comes_right(store: CatalogStore, seed: int) -> None:
    check(store, seed)


@pytest.mark.chaos
@pytest.mark.skipif(not NEW_SEEDS, reason="new seeds belong to make chaos, which sets CHAOS_ROUNDS")
@pytest.mark.parametrize("seed", NEW_SEEDS or [0])
def test_any_new_history_of_replicas_comes_right(store: CatalogStore, seed: int) -> None:
    print(f"seed {seed}")
    check(store, seed)
