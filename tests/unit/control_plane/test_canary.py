"""A new version is tried on a share of the requests: where it runs, what it is judged, what comes of that."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any

import pytest
from google.longrunning.operations_pb2 import CancelOperationRequest

from appsupervisor.catalog.v1 import app_catalog_pb2 as pb
from appsupervisor.runtime.v1 import runtime_environment_pb2 as rt
from services.control_plane.operations.service import OperationService
from services.control_plane.placement.assignment import assign
from services.control_plane.placement.canary import Trial, judge
from services.control_plane.reconciler.observation import observe
from services.control_plane.reconciler.plan import plan
from services.control_plane.store.interface import CatalogStore
from services.control_plane.store.records import AppRecord, Version
from tests.fakes.runtime_node import Disk
from tests.unit.control_plane.looks import V21
from tests.unit.control_plane.test_convergence import CLOCK, NEW_SEEDS, _few_sweeps, forget, run_seeded, store
from tests.unit.control_plane.test_convergence_of_replicas import ReplicaHistory
from tests.unit.control_plane.test_replicas import ALL_RUN, SECOND, app, decided, look
from tests.unit.control_plane.world import ME, World
from tests.virtual_time import run_in_virtual_time

__all__ = ("_few_sweeps", "store")

ANALYZING, PROMOTED, REVERTED = pb.Canary.ANALYZING, pb.Canary.PROMOTED, pb.Canary.REVERTED


def policy(**fields: Any) -> pb.CanaryPolicy:
    made = pb.CanaryPolicy(weight_percent=10, min_request_count=20, max_error_ratio=0.05)
    made.duration.FromSeconds(60)
    made.timeout.FromSeconds(100)
    made.MergeFrom(pb.CanaryPolicy(**fields))
    return made


TRIED = pb.Rollout(canary=policy())
SEEDS = (1, 3356767313)
"""The last: a trial was replaced by what failed, and two versions before it were left for ever."""
ONLY_SEEDS = (4024,)
"""Five trials, of which each ends otherwise."""
ON_TRIAL = "g2-e4@k CUR runs; g1-e2-r1@l CUR runs; g1-e3-r2@m CUR runs"


def status(state: Any, generation: int = 2, epoch: int = 1, stable: int = 1, **fields: Any) -> pb.App:
    canary = pb.Canary(
        state=state, generation=generation, epoch=epoch, stable_generation=stable, reason="CANARY_FAILED",
        **fields,
    )  # fmt: skip
    return pb.App(canary=canary)


def tried(state: Any = None, replicas: int = 3, target: Version = V21, **fields: Any) -> AppRecord:
    newest = fields.pop("newest", 4)
    told = fields.pop("told", {})
    if state is not None:
        fields["status"] = status(state, **told)
    return app(replicas, target, newest=newest, **{"rollout": TRIED, **fields})


TABLE: dict[str, tuple[AppRecord, str, str]] = {
    # name: (app, what is, what is to be)
    "it begins with one": (
        tried(newest=3), ALL_RUN, "g1-e1@k CUR; g2-e4@k IN; g1-e2-r1@l CUR; g1-e3-r2@m CUR"
    ),
    "on trial, no other follows": (
        tried(ANALYZING), ON_TRIAL, "g2-e4@k CUR; g1-e2-r1@l CUR; g1-e3-r2@m CUR"
    ),
    "as many as the share asks for": (
        tried(replicas=4, newest=4, rollout=pb.Rollout(canary=policy(weight_percent=50), batch_percent=100)),
        f"{ALL_RUN}; g1-e4-r3@n CUR runs",
        "g1-e1@k CUR; g2-e5@k IN; g1-e2-r1@l CUR; g2-e6-r1@l IN; g1-e3-r2@m CUR; g1-e4-r3@n CUR",
    ),
    "promoted, the others follow": (
        tried(PROMOTED), ON_TRIAL, "g2-e4@k CUR; g1-e2-r1@l CUR; g2-e5-r1@l IN; g1-e3-r2@m CUR"
    ),
    "one more is of the version before": (
        tried(ANALYZING, 4), ON_TRIAL, "g2-e4@k CUR; g1-e2-r1@l CUR; g1-e3-r2@m CUR; g1-e5-r3@n IN"
    ),
    "a restart of a version is not tried": (
        tried(target=Version(1, 4), newest=3), ALL_RUN,
        "g1-e1@k CUR; g1-e4@k IN; g1-e2-r1@l CUR; g1-e3-r2@m CUR",
    ),
    "where nothing serves nothing is tried": (
        tried(newest=3), ALL_RUN.replace("runs", "fails"),
        "g1-e1@k CUR; g2-e4@k IN; g1-e2-r1@l CUR; g2-e5-r1@l IN; g1-e3-r2@m CUR; g2-e6-r2@m IN",
    ),
    "a newer one takes the place of what is on trial": (
        tried(ANALYZING, target=Version(3, 1)),
        "g1-e1@k CUR runs; g2-e4-r1@l CUR runs; g1-e3-r2@m CUR runs",
        "g1-e1@k CUR; g2-e4-r1@l CUR; g3-e5-r1@l IN; g1-e3-r2@m CUR",
    ),
    "one more that fails as before holds up no trial": (
        tried(replicas=4), f"{ALL_RUN}; g1-e4-r3@n IN fails",
        "g1-e1@k CUR; g2-e5@k IN; g1-e2-r1@l CUR; g1-e3-r2@m CUR; g1-e4-r3@n IN",
    ),
    "another try after it was given up": (
        tried(REVERTED, target=Version(2, 5), newest=5), ALL_RUN,
        "g1-e1@k CUR; g2-e6@k IN; g1-e2-r1@l CUR; g1-e3-r2@m CUR",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("record", "found", "expected"), TABLE.values(), ids=TABLE)
def test_a_version_on_trial_has_its_share_of_the_replicas(
    record: AppRecord, found: str, expected: str
) -> None:
    assert decided(record, found) == (expected, None)


def test_what_was_judged_bad_goes_back_to_what_has_proven_itself() -> None:
    expected = "g2-e4@k CUR; g1-e5@k IN; g1-e2-r1@l CUR; g1-e3-r2@m CUR"
    assert decided(tried(REVERTED), ON_TRIAL) == (expected, V21)
    # The one that was on trial before it is not proven either.
    found = "g2-e4@k CUR runs; g1-e2-r1@l CUR runs; g1-e3-r2@m CUR runs; g3-e5@k IN fails"
    record = tried(ANALYZING, target=Version(3, 1), newest=5, told={"generation": 3})
    expected = "g2-e4@k CUR; g3-e5@k OUT; g1-e6@k IN; g1-e2-r1@l CUR; g1-e3-r2@m CUR"
    assert decided(record, found) == (expected, record.target)


def observed(record: AppRecord, found: str) -> tuple[Any, list[str], int, str]:
    placements, seen = look(found)
    told = observe(record, assign(record, placements, seen, 5), seen, 5).status.canary
    nodes = [name.rpartition("/")[2] for name in told.nodes]
    return told.state, nodes, told.stable_generation, told.reason


SIGHTS: dict[str, tuple[AppRecord, str, tuple[Any, list[str], int, str]]] = {
    "told before it is ready": (tried(newest=3), ALL_RUN, (ANALYZING, ["k"], 1, "")),
    "while it goes on": (tried(ANALYZING), ON_TRIAL, (ANALYZING, ["k"], 1, "CANARY_FAILED")),
    "while it is replaced again": (tried(REVERTED), ON_TRIAL, (REVERTED, ["k"], 1, "CANARY_FAILED")),
    "gone": (tried(REVERTED, failed=V21), ALL_RUN, (REVERTED, [], 1, "CANARY_FAILED")),
    "promoted": (tried(PROMOTED), ON_TRIAL, (PROMOTED, [], 1, "CANARY_FAILED")),
    "removed from the policy, it is promoted": (
        tried(ANALYZING, rollout=pb.Rollout()), ON_TRIAL, (PROMOTED, [], 1, "")
    ),
    "it fails by itself": (
        tried(ANALYZING), f"{ALL_RUN}; g2-e4@k IN fails", (REVERTED, [], 1, "APP_FACTORY_FAILED")
    ),
    "another one is tried": (
        tried(ANALYZING, target=Version(3, 1)), ON_TRIAL, (ANALYZING, ["k"], 1, "")
    ),
    "another one is wanted without a trial": (
        tried(ANALYZING, target=Version(3, 1), rollout=pb.Rollout()), ON_TRIAL,
        (REVERTED, ["k"], 1, "OPERATION_SUPERSEDED"),
    ),
    "none was ever": (app(), ALL_RUN, (0, [], 0, "")),
}  # fmt: skip


@pytest.mark.parametrize(("record", "found", "expected"), SIGHTS.values(), ids=SIGHTS)
def test_the_status_tells_how_far_the_trial_is(record: AppRecord, found: str, expected: Any) -> None:
    assert observed(record, found) == expected


def test_where_it_is_tried_is_told_before_it_starts() -> None:
    found = f"{ALL_RUN}; g2-e4@k IN"
    placements, seen = look(found)
    record = tried(ANALYZING, told={"nodes": [placements[0].node]})
    assigned = assign(record, placements, seen, 0)
    early = plan(record, assigned, seen, SECOND // 4)
    assert (early.starts, early.after) == ((), pytest.approx(0.75))
    assert [it.placement.instance_id for it in plan(record, assigned, seen, SECOND).starts] == ["g2-e4"]


def figures(requests: int, errors: int, latency: float = 0.0) -> rt.InstanceFigures:
    made = rt.InstanceFigures(request_count=requests, error_count=errors)
    made.latency_p99.FromMicroseconds(int(latency * 1e6))
    return made


Look = tuple[tuple[int, int, float], tuple[int, int]]
FAST = policy()
FAST.max_latency_p99.FromMilliseconds(200)

# name: (policy, looks at the new one (requests, errors, p99) and the old one, seconds, verdict)
VERDICTS: dict[str, tuple[pb.CanaryPolicy, list[Look], float, Any]] = {
    "well, but not for long enough": (policy(), [((100, 0, 0.1), (900, 0))], 59, None),
    "well for long enough": (policy(), [((100, 0, 0.1), (900, 0))], 60, PROMOTED),
    "well enough": (policy(), [((100, 5, 0.1), (900, 0))], 60, PROMOTED),
    "too few requests yet": (policy(), [((19, 0, 0.1), (900, 0))], 60, None),
    "too few requests at last": (policy(), [((19, 0, 0.1), (900, 0))], 100, "CANARY_NOT_PROVEN"),
    "one request failed of few": (policy(), [((1, 1, 0.1), (9, 0))], 1, None),
    "more have failed than may of all": (policy(), [((2, 2, 0.1), (9, 0))], 1, "CANARY_FAILED"),
    "more have failed than may": (policy(), [((100, 6, 0.1), (900, 0))], 1, "CANARY_FAILED"),
    "as many fail before": (policy(), [((0, 0, 0.1), (0, 0)), ((100, 12, 0.1), (900, 90))], 1, None),
    "what failed before it began is of no account": (
        policy(), [((0, 0, 0.1), (500, 400)), ((100, 12, 0.1), (1400, 400))], 1, "CANARY_FAILED"
    ),
    "started again, it is counted on": (
        policy(), [((60, 3, 0.1), (0, 0)), ((40, 3, 0.1), (0, 0))], 1, "CANARY_FAILED"
    ),
    "slow at one look": (FAST, [((50, 0, 9.0), (0, 0))], 1, None),
    "slow": (FAST, [((50 * n, 0, 0.25), (0, 0)) for n in range(1, 4)], 1, "CANARY_FAILED"),
    "slow once": (FAST, [((50 * n, 0, 0.1 + 9 * (n == 1)), (0, 0)) for n in range(1, 4)], 60, PROMOTED),
    "what nobody asked for is not slow": (FAST, [((50, 0, 9.0), (0, 0))] * 5, 60, PROMOTED),
}  # fmt: skip


@pytest.mark.parametrize(("rules", "looks", "elapsed", "expected"), VERDICTS.values(), ids=VERDICTS)
def test_a_version_is_judged_by_its_requests(
    rules: pb.CanaryPolicy, looks: list[Look], elapsed: float, expected: Any
) -> None:
    trial = Trial(V21)
    for new, old in looks:
        trial.look({"new": figures(*new)}, {"old": figures(*old)})
    verdict = judge(rules, trial, elapsed)
    assert (verdict and (verdict.reason or verdict.state)) == expected


class Tried:
    """An app of so many replicas on three nodes, and a new version of it on trial."""

    def __init__(self, store: CatalogStore, name: str, replicas: int) -> None:
        self.store = store
        self.replicas = replicas
        self.name = f"apps/{name}"
        self.world = World(store, random.Random(7), f"environments/default/nodes/{name}1")

    async def begin(self) -> str:
        """Return the name of the operation of an update that is on trial."""
        world, short = self.world, self.name.removeprefix("apps/")
        await world.start()
        for number in (2, 3):
            disk = Disk(f"0d0e4f6a-3c0b-4b1e-9a51-7c2f7a1e5b3{number}")
            await world.join(
                World(self.store, random.Random(number), f"environments/default/nodes/{short}{number}", disk)
            )
        spec = pb.App(entrypoint="good:app", replicas=self.replicas)
        spec.database.no_database.SetInParent()
        spec.rollout.canary.CopyFrom(policy())
        await world.commands.create(pb.CreateAppRequest(app=spec, app_id=short), ME)
        await world.until(lambda: self.app().ready_replicas == self.replicas and not self.app().reconciling)
        changed = pb.App(name=self.name, env={"a": "b"})
        operation = await world.commands.update(pb.UpdateAppRequest(app=changed), ME)
        await world.until(lambda: self.app().canary.HasField("begin_time"))
        assert self.app().canary.state == ANALYZING
        assert len(self.app().canary.nodes) == 1
        return str(operation.name)

    def app(self) -> pb.App:
        app = self.world.app(self.name)
        assert app is not None
        return app

    def asked(self, new: rt.InstanceFigures, old: rt.InstanceFigures) -> None:
        for site in self.world.sites():
            for name, instance in site.node.instances().items():
                told = new if instance.generation == self.app().canary.generation else old
                site.node.set_figures(name, told)

    def operation(self, name: str) -> tuple[bool, str, str]:
        record = self.store.mirror.operations.get(name)
        assert record is not None
        message = record.error.message if record.error is not None else ""
        return record.done, record.metadata.step, message

    async def ends(self, state: Any, generation: int) -> None:
        await self.world.until(lambda: not self.app().reconciling)
        assert self.app().canary.state == state
        assert list(self.app().canary.nodes) == []
        assert {it.generation for it in self.app().instances} == {generation}
        assert self.app().ready_replicas == self.replicas
        nodes = [it.node for it in self.app().instances]
        assert len(set(nodes)) == self.replicas, "each is on a node of its own"

    def events(self) -> list[str]:
        kinds = ("Canary", "UpdateFailed")
        return [it.type for it in reversed(self.store.events(self.name, 100)) if it.type.startswith(kinds)]


async def bad(tried: Tried, operation: str) -> None:
    tried.asked(figures(10, 10), figures(90, 0))
    await tried.ends(REVERTED, 1)
    done, step, message = tried.operation(operation)
    assert (done, step) == (True, "failed")
    assert "10 of 10 requests failed; 5 % more are allowed. The version before goes on serving." in message
    assert tried.events() == ["CanaryBegun", "CanaryReverted", "UpdateFailed"]


async def good(tried: Tried, operation: str) -> None:
    tried.asked(figures(100, 0), figures(900, 0))
    await asyncio.sleep(55)
    assert tried.operation(operation)[:2] == (False, "canary")
    assert len({it.generation for it in tried.app().instances}) == 2, "it waits until it has proven itself"
    await tried.ends(PROMOTED, 2)
    assert tried.operation(operation)[:2] == (True, "done")
    assert tried.events() == ["CanaryBegun", "CanaryPromoted"]


async def nobody_asks(tried: Tried, operation: str) -> None:
    await asyncio.sleep(90)
    assert tried.app().canary.state == ANALYZING
    await tried.ends(REVERTED, 1)
    assert "0 requests" in tried.operation(operation)[2]


async def cancelled(tried: Tried, operation: str) -> None:
    await OperationService(tried.store).cancel(CancelOperationRequest(name=operation), ME)
    await tried.ends(REVERTED, 1)
    assert tried.app().canary.reason == "OPERATION_CANCELLED"


async def promoted_by_hand(tried: Tried, operation: str) -> None:
    request = pb.UpdateAppRequest(app=pb.App(name=tried.name))
    request.update_mask.paths.append("rollout.canary")
    await tried.world.commands.update(request, ME)
    await tried.ends(PROMOTED, 2)
    assert tried.operation(operation)[:2] == (True, "done")


async def another_leader(tried: Tried, operation: str) -> None:
    async def fail_alike(before: int, after: int) -> None:
        for new in (before, after):
            tried.asked(figures(new, new // 3), figures(9 * after, 3 * after))
            await asyncio.sleep(5)

    tried.asked(figures(0, 0), figures(0, 0))
    await asyncio.sleep(5)
    await fail_alike(0, 90)
    await tried.world.restart_controller()
    # What had failed before is no verdict: what the other had failed then is not known.
    await asyncio.sleep(5)
    await fail_alike(90, 180)
    assert tried.app().canary.state == ANALYZING
    await tried.ends(PROMOTED, 2)


async def what_serves_is_moved(tried: Tried, operation: str) -> None:
    (trial,) = tried.app().canary.nodes
    before = {it.node for it in tried.app().instances}
    await tried.world.commands.move(pb.MoveAppRequest(name=tried.name), ME)
    await tried.world.until(
        lambda: len(nodes := {it.node for it in tried.app().instances}) == 2 and nodes != before
    )
    assert list(tried.app().canary.nodes) == [trial]
    assert tried.app().canary.state == ANALYZING
    tried.asked(figures(100, 0), figures(900, 0))
    await tried.ends(PROMOTED, 2)
    assert [it.node for it in tried.app().instances] == [trial]


async def it_is_stopped(tried: Tried, operation: str) -> None:
    await tried.world.commands.stop(pb.StopAppRequest(name=tried.name), ME)
    await tried.world.until(lambda: tried.app().state == rt.Instance.STOPPED)
    await tried.world.commands.start(pb.StartAppRequest(name=tried.name), ME)
    await tried.world.until(lambda: not tried.app().reconciling)
    assert {it.generation for it in tried.app().instances} == {2}, "where nothing serves nothing is tried"
    assert tried.app().ready_replicas == tried.replicas


BOTH = (bad, good, nobody_asks, cancelled, promoted_by_hand, another_leader, it_is_stopped)


@pytest.mark.parametrize(
    ("story", "replicas"), [*((it, count) for it in BOTH for count in (3, 1)), (what_serves_is_moved, 1)]
)
def test_a_version_on_trial_is_promoted_or_goes_back(
    store: CatalogStore, story: Callable[[Tried, str], Any], replicas: int
) -> None:
    async def main() -> None:
        tried = Tried(store, f"{story.__name__.replace('_', '-')}{replicas}", replicas)
        try:
            operation = await tried.begin()
            await story(tried, operation)
        finally:
            await tried.world.close()
            for site in tried.world.sites():
                await forget(site)

    run_in_virtual_time(main(), CLOCK)


class CanaryHistory(ReplicaHistory):
    """New versions are tried first, with whatever requests there are."""

    replicas = (2, 3)
    """The fewest and the most."""

    async def create(self) -> None:
        spec = pb.App(entrypoint="good:app", replicas=self.replicas[1])
        spec.restart_policy.max_restarts = 0
        spec.database.no_database.SetInParent()
        request = pb.CreateAppRequest(app=spec, app_id=self.name.removeprefix("apps/"))
        await self.attempt(self.world.commands.create, request)
        if app := self.world.app(self.name):
            self.uids.add(app.uid)

    async def rollout(self) -> None:
        app = pb.App(name=self.name)
        app.rollout.paused = self.chance.random() < 0.2
        app.rollout.batch_percent = self.chance.choice((0, 70))
        if self.chance.random() < 0.8:
            app.rollout.canary.min_request_count = 10
            app.rollout.canary.weight_percent = self.chance.choice((1, 50))
            app.rollout.canary.duration.FromSeconds(self.chance.choice((1, 5)))
            app.rollout.canary.timeout.FromSeconds(self.chance.choice((5, 60)))
        request = pb.UpdateAppRequest(app=app)
        request.update_mask.paths.append("rollout")
        await self.attempt(self.world.commands.update, request)

    async def scale(self) -> None:
        app = pb.App(name=self.name, replicas=self.chance.randint(*self.replicas))
        await self.attempt(self.world.commands.update, pb.UpdateAppRequest(app=app))
        self.ask()

    def ask(self) -> None:
        for site in self.world.sites():
            for name in site.node.instances():
                site.node.set_figures(name, figures(self.chance.choice((1, 50)), self.chance.choice((0, 9))))


class OnlyHistory(CanaryHistory):
    """Nearly always the app has one replica, beside which a new version is tried."""

    replicas = (1, 1)

    async def create(self) -> None:
        await super().create()
        await self.rollout()

    async def rollout(self) -> None:
        await super().rollout()
        self.ask()

    async def update(self) -> None:
        self.ask()
        await super().update()

    async def scale(self) -> None:
        self.replicas = (1, self.chance.choice((1, 1, 1, 2)))
        await super().scale()


def check(store: CatalogStore, seed: int, kind: type[CanaryHistory]) -> None:
    async def main() -> None:
        chance = random.Random(seed)
        letter = kind.__name__[0].lower()
        name = f"environments/default/nodes/{letter}{seed}"
        world = World(store, chance, name)
        other = World(store, chance, f"{name}b", Disk())
        history = kind(world, f"apps/{letter}{seed}", other)
        third = World(store, chance, f"{name}c", Disk(uid="0d0e4f6a-3c0b-4b1e-9a51-7c2f7a1e5b33"))
        history.others = (other, third)
        try:
            await history.run()
        finally:
            await world.close()
            for site in world.sites():
                await forget(site)

    run_seeded(main(), seed, f"{seed} {kind.__name__}")


@pytest.mark.parametrize("seed", SEEDS)
def test_any_history_of_trials_comes_right(store: CatalogStore, seed: int) -> None:
    check(store, seed, CanaryHistory)


@pytest.mark.parametrize("seed", ONLY_SEEDS)
def test_any_history_of_trials_beside_an_only_replica_comes_right(store: CatalogStore, seed: int) -> None:
    check(store, seed, OnlyHistory)


@pytest.mark.chaos
@pytest.mark.skipif(not NEW_SEEDS, reason="new seeds belong to make chaos, which sets CHAOS_ROUNDS")
@pytest.mark.parametrize("kind", [CanaryHistory, OnlyHistory])
@pytest.mark.parametrize("seed", NEW_SEEDS or [0])
def test_any_new_history_of_trials_comes_right(
    store: CatalogStore, seed: int, kind: type[CanaryHistory]
) -> None:
    print(f"seed {seed}")
    check(store, seed, kind)
