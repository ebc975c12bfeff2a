"""Whatever is commanded and whatever happens to a node, what runs becomes what is wanted."""

import asyncio
import itertools
from collections.abc import Iterator
from functools import partial
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from appsupervisor.catalog.v1 import app_catalog_pb2 as pb
from appsupervisor.fleet.v1.fleet_pb2 import Node
from appsupervisor.runtime.v1 import runtime_environment_pb2 as rt
from services.control_plane.catalog.commands import AppCommands
from services.control_plane.catalog.idempotency import Caller
from services.control_plane.reconciler import writes
from services.control_plane.reconciler.observation import View, is_ready, observe, under_new_epoch
from services.control_plane.reconciler.plan import plan
from services.control_plane.rules.conditions import get_condition
from services.control_plane.store.interface import CatalogStore
from services.control_plane.store.records import AppRecord
from services.control_plane.store.sql_store import open_store
from services.rpc.errors import SupervisorError
from tests.unit.control_plane.model_node import BAD, ModelNode, app

NODE = Node(name="environments/default/nodes/n", http_address="127.0.0.1:80", base_domain="localhost")
ME = Caller("test", 30.0)
ENTRYPOINTS = st.sampled_from(["good:app", "better:app", BAD])
NUMBERS = itertools.count()


class Convergence(RuleBasedStateMachine):
    """One app, its node, and a control plane that sees the node late and calls it over a bad line."""

    store: ClassVar[CatalogStore]

    @initialize(
        entrypoint=ENTRYPOINTS, desired=st.sampled_from([pb.App.RUNNING, pb.App.STOPPED]), lazy=st.booleans()
    )
    def create(self, entrypoint: str, desired: Any, lazy: bool) -> None:
        self.node = ModelNode()
        self.seen: dict[str, rt.Instance] = {}
        self.reachable, self.line = True, "good"
        self.commands = AppCommands(self.store)
        self.id = f"a{next(NUMBERS)}"
        self.name = f"apps/{self.id}"
        self.dropped: set[str] = set()
        self.wanted_gone = False
        spec = app(
            entrypoint,
            desired_state=desired,
            activation=rt.InstanceSpec.ON_REQUEST if lazy else rt.InstanceSpec.EAGER,
        )
        asyncio.run(self.commands.create(pb.CreateAppRequest(app=spec, app_id=self.id), ME))

    @property
    def record(self) -> AppRecord | None:
        return self.store.mirror.apps.get(self.name)

    # What users do

    def _try(self, command: Any, request: Any) -> None:
        try:
            asyncio.run(command(request, ME))
        except SupervisorError as refusal:
            if refusal.reason not in ("APP_DELETING", "APP_STOPPED", "APP_NOT_FOUND"):
                raise

    @rule(entrypoint=ENTRYPOINTS)
    def update(self, entrypoint: str) -> None:
        request = pb.UpdateAppRequest(app=pb.App(name=self.name, entrypoint=entrypoint))
        request.update_mask.paths.append("entrypoint")
        self._try(self.commands.update, request)

    @rule(desired=st.sampled_from([pb.App.RUNNING, pb.App.STOPPED]), label=st.sampled_from("ab"))
    def update_both(self, desired: Any, label: str) -> None:
        request = pb.UpdateAppRequest(app=pb.App(name=self.name, desired_state=desired, labels={"l": label}))
        self._try(self.commands.update, request)

    @rule(verb=st.sampled_from(["start", "stop", "restart"]))
    def command(self, verb: str) -> None:
        kind = {"start": pb.StartAppRequest, "stop": pb.StopAppRequest, "restart": pb.RestartAppRequest}
        self._try(getattr(self.commands, verb), kind[verb](name=self.name))

    @precondition(lambda self: not self.wanted_gone)
    @rule(
        policy=st.sampled_from([pb.DeleteAppRequest.DROP, pb.DeleteAppRequest.RETAIN]), sure=st.integers(0, 9)
    )
    def delete(self, policy: Any, sure: int) -> None:
        if sure == 0 and self.record is not None:
            self.wanted_gone = True
            if policy == pb.DeleteAppRequest.DROP:
                self.dropped.add(self.record.uid)
            self.has_data = bool(self.record.node)
            self._try(self.commands.delete, pb.DeleteAppRequest(name=self.name, data_policy=policy))

    # What happens

    @rule(index=st.integers(0, 3))
    def step(self, index: int) -> None:
        if names := sorted(self.node.instances):
            self.node.step(names[index % len(names)])

    @rule(index=st.integers(0, 3), again=st.booleans())
    def crash(self, index: int, again: bool) -> None:
        if names := sorted(self.node.instances):
            name = names[index % len(names)]
            (self.node.retry if again else self.node.crash)(name)

    @rule()
    def restart_node(self) -> None:
        self.node.restart()
        self.seen = {}

    @rule(line=st.sampled_from(["good", "good", "lost request", "lost response"]))
    def line_turns(self, line: str) -> None:
        self.line = line

    @rule(reachable=st.booleans())
    def reachability(self, reachable: bool) -> None:
        self.reachable = reachable

    @rule()
    def see(self) -> None:
        self.seen = self.node.snapshot()

    # What the control plane does

    @rule()
    def look(self) -> None:
        """One pass, as the reconciler makes it."""
        record = self.record
        if record is None:
            return
        if not record.node and not record.deleting and record.spec.desired_state != pb.App.STOPPED:
            self._write(lambda tx: writes.placed(tx, self.name, record.uid, NODE.name, "only one"))
        record = self.record
        assert record is not None
        view = self._view(record)
        if observe(record, view, 1) != record:
            self._write(partial(writes.observed, name=self.name, uid=record.uid, view=view))
            record = self.record
            assert record is not None
        self._check_truth(record, view)
        todo = plan(record, view)
        try:
            for stop in todo.stop:
                assert not stop.purge_data or stop.app_uid in self.dropped
                self._call(self.node.stop, stop)
            if todo.start is not None:
                assert record.spec.desired_state != pb.App.STOPPED
                assert not record.deleting
                self._call(self.node.start, todo.start.spec)
        except SupervisorError as refusal:
            if refusal.reason in ("STALE_EPOCH", "INSTANCE_EXISTS") and todo.start is not None:
                known = int(refusal.metadata.get("known_epoch", todo.start.spec.epoch))
                self._write(
                    lambda tx: writes.changed(
                        tx, self.name, record.uid, lambda app: under_new_epoch(app, known)
                    )
                )
            elif refusal.reason != "NODE_UNREACHABLE":
                raise
            return
        if todo.remove:
            self._write(partial(writes.removed, name=self.name, uid=record.uid, policy=record.deleting))

    def _view(self, record: AppRecord) -> View:
        if not record.node:
            return View(None, True, {}, "There is none.")
        if not self.reachable:
            return View(NODE, False, {i.name: i for i in record.status.instances})
        return View(NODE, True, dict(self.seen))

    def _write(self, command: Any) -> None:
        self.store.write(command).result(timeout=10)

    def _call(self, call: Any, request: Any) -> None:
        if self.line != "lost request":
            call(request)
        if self.line != "good":
            raise SupervisorError("NODE_UNREACHABLE", "The line is bad.")

    def _check_truth(self, record: AppRecord, view: View) -> None:
        status = record.status
        ready = get_condition(status.conditions, "Ready")
        assert ready is not None
        assert ready.reason
        serving = any(is_ready(instance) for instance in view.instances.values())
        if record.node and not view.reachable:
            assert status.health == rt.Instance.Health.UNKNOWN
            assert ready.status == rt.Condition.UNKNOWN or status.state == rt.Instance.STOPPED
        elif record.deleting:
            assert status.state == rt.Instance.DELETING
        elif record.spec.desired_state == pb.App.STOPPED:
            assert status.state == (rt.Instance.STOPPING if view.instances else rt.Instance.STOPPED)
        else:
            assert (ready.status == rt.Condition.MET) == serving
            assert (status.state in (rt.Instance.RUNNING, rt.Instance.IDLE)) == serving
        if status.observed_generation == record.generation and not status.reconciling:
            assert status.state in (
                rt.Instance.RUNNING,
                rt.Instance.IDLE,
                rt.Instance.STOPPED,
                rt.Instance.FAILED,
            )
        updated = get_condition(status.conditions, "Updated")
        if updated is not None and updated.status == rt.Condition.UNMET:
            assert updated.reason in ("APP_STARTUP_FAILED", "APP_CRASHED")

    @invariant()
    def data_goes_only_where_it_was_asked_for(self) -> None:
        assert set(self.node.purged) <= self.dropped

    # The end: the world is calm, and everything has to come right.

    def teardown(self) -> None:
        if not hasattr(self, "node"):
            return
        self.line, self.reachable = "good", True
        for _ in range(40):
            for name in sorted(self.node.instances):
                self.node.step(name)
            self.see()
            self.look()
        calls, revision = self.node.calls, self.store.mirror.apps.revision
        self.see()
        self.look()
        record = self.record
        assert not self.store.mirror.open_operations(self.name)
        if record is None:
            assert self.wanted_gone
            assert not self.node.instances
            assert set(self.node.purged) == (self.dropped if self.has_data else set())
            return
        assert (self.node.calls, self.store.mirror.apps.revision) == (calls, revision), "never at rest"
        assert not record.status.reconciling
        running = [i for i in self.node.instances.values() if is_ready(i)]
        if record.spec.desired_state == pb.App.STOPPED:
            assert not self.node.instances
            assert record.status.state == rt.Instance.STOPPED
        elif record.spec.entrypoint != BAD or record.spec.activation == rt.InstanceSpec.ON_REQUEST:
            states = {i.state for i in self.node.instances.values()}
            if states == {rt.Instance.FAILED}:  # it crashed, and its node has not been told to try again
                assert record.status.state == rt.Instance.FAILED
                return
            (one,) = running
            if (one.generation, one.epoch) != (record.target.generation, record.target.epoch):
                assert record.failed == record.target  # it crashed while it took over
                return
            assert record.status.observed_generation == record.generation
        elif running:
            (one,) = running
            assert self.node.entrypoints[one.name] != BAD or one.state == rt.Instance.IDLE
            assert record.failed == record.target
            assert record.status.observed_generation < record.generation
        else:
            assert record.status.state == rt.Instance.FAILED
        assert len(self.node.instances) == 1 or record.spec.desired_state == pb.App.STOPPED


@pytest.fixture(scope="module", autouse=True)
def _store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    Convergence.store = open_store(f"sqlite:///{tmp_path_factory.mktemp('catalog')}/c.db")
    yield
    Convergence.store.close()


TestConvergence = Convergence.TestCase
TestConvergence.settings = settings(
    max_examples=60,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)


def test_a_version_that_is_ready_only_after_an_update_goes_on_serving_when_the_update_fails() -> None:
    state = Convergence()
    state.create(entrypoint="good:app", desired=pb.App.RUNNING, lazy=False)
    state.look()
    state.step(index=0)
    state.update(entrypoint=BAD)
    state.teardown()
    assert state.record is not None
    assert state.record.status.state == rt.Instance.RUNNING
    state.restart_node()
    state.teardown()
    assert state.record.status.state == rt.Instance.FAILED
