"""Any history of commands: the store equals a plain model, and so does what is opened afterwards."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from services.control_plane.store.interface import Transaction
from services.control_plane.store.sql.opening import load
from services.control_plane.store.sql.pruning import Bounds
from services.control_plane.store.sql_store import SqlCatalogStore
from services.rpc.errors import SupervisorError
from tests.contract.store.samples import (
    DEFAULT,
    WAIT,
    app,
    bare,
    certificate,
    check_change_log,
    contents,
    database_server,
    environment,
    event,
    node,
    operation,
    placement,
    request,
    retained,
    snapshot,
)

CERTIFICATES = ["certificates/a", "certificates/b"]
SERVERS = ["databaseServers/a", "databaseServers/b"]
ENVIRONMENTS = [DEFAULT, "environments/e"]
APPS = ["apps/a", "apps/b", "apps/c"]
DOMAINS = ["x.example", "y.example", "z.example"]
NODES = [f"{name}/nodes/{number}" for name in ENVIRONMENTS for number in (1, 2)]
OPERATIONS = [f"operations/{number}" for number in range(4)]
REQUESTS = ["r1", "r2", "r3"]
SECOND = 1_000_000


class AbandonedError(Exception):
    """A command's own failure, after it has written."""


@dataclass
class Model:
    """The catalog in plain dicts."""

    environments: dict[str, Any] = field(default_factory=dict)
    database_servers: dict[str, Any] = field(default_factory=dict)
    certificates: dict[str, Any] = field(default_factory=dict)
    nodes: dict[str, Any] = field(default_factory=dict)
    apps: dict[str, Any] = field(default_factory=dict)
    placements: dict[str, Any] = field(default_factory=dict)
    retained: dict[str, Any] = field(default_factory=dict)
    operations: dict[str, Any] = field(default_factory=dict)
    requests: dict[str, Any] = field(default_factory=dict)
    events: dict[str, list[str]] = field(default_factory=dict)
    removed: set[str] = field(default_factory=set)
    """Apps that were removed at some time: their events go with the log of it."""

    def bare(self) -> dict[str, dict[str, Any]]:
        return {
            "database_server": self.database_servers,
            "environment": self.environments,
            "certificate": self.certificates,
            "node": self.nodes,
            "app": self.apps,
            "placement": self.placements,
            "retained_data": self.retained,
            "operation": self.operations,
            "batch": {},
        }


Step = Callable[[Transaction, Model], None]
"""Does the same to both, and checks that both read the same."""


def put_app(name: str, uid: int, generation: int, home: str, domains: list[str]) -> Step:
    def step(tx: Transaction, model: Model) -> None:
        if home not in model.environments:
            return
        record = app(
            name,
            uid=f"{name}-{uid}",
            environment=home,
            generation=generation,
            domains=tuple(domains),
        )
        taken = {it for key, other in model.apps.items() if key != name for it in other.spec.domains}
        if taken & set(domains):
            with pytest.raises(SupervisorError, match="belongs to another app"):
                tx.put_app(record)
        else:
            tx.put_app(record)
            if name in model.apps and model.apps[name].uid != record.uid:
                forget_placements(model, name)
            model.apps[name] = record

    return step


def delete_app(name: str) -> Step:
    def step(tx: Transaction, model: Model) -> None:
        tx.delete_app(name)
        forget_placements(model, name)
        if model.apps.pop(name, None):
            model.removed |= {name}

    return step


def forget_placements(model: Model, of: str) -> None:
    model.placements = {key: it for key, it in model.placements.items() if it.app != of}


def put_placement(of: str, epoch: int, where: str) -> Step:
    def step(tx: Transaction, model: Model) -> None:
        if of in model.apps:
            record = placement(of, epoch=epoch, node=where)
            tx.put_placement(record)
            model.placements[record.name] = record
        _check_placements(tx, model)

    return step


def delete_placement(of: str, epoch: int) -> Step:
    def step(tx: Transaction, model: Model) -> None:
        record = placement(of, epoch=epoch)
        if model.placements.pop(record.name, None):
            tx.delete_placement(record)
        _check_placements(tx, model)

    return step


def put_retained(uid: str, where: str, generation: int) -> Step:
    def step(tx: Transaction, model: Model) -> None:
        record = replace(retained(uid, node=where), generation=generation)
        tx.put_retained(record)
        model.retained[record.name] = record
        _check_retained(tx, model, where)

    return step


def delete_retained(uid: str, where: str) -> Step:
    def step(tx: Transaction, model: Model) -> None:
        name = retained(uid, node=where).name
        tx.delete_retained(name)
        model.retained.pop(name, None)
        _check_retained(tx, model, where)

    return step


def _check_retained(tx: Transaction, model: Model, where: str) -> None:
    expected = sorted(name for name, known in model.retained.items() if known.node == where)
    assert [known.name for known in tx.retained_on(where)] == expected


def _check_placements(tx: Transaction, model: Model) -> None:
    for it in APPS:
        expected = sorted(name for name, known in model.placements.items() if known.app == it)
        assert [known.name for known in tx.placements_of(it)] == expected


def put_environment(name: str) -> Step:
    def step(tx: Transaction, model: Model) -> None:
        tx.put_environment(environment(name))
        model.environments[name] = environment(name)

    return step


def delete_environment(name: str) -> Step:
    def step(tx: Transaction, model: Model) -> None:
        assert tx.count_apps(name) == sum(it.spec.environment == name for it in model.apps.values())
        nodes = [it.name for it in tx.nodes(name)]
        assert nodes == sorted(it for it in model.nodes if it.startswith(f"{name}/"))
        if not tx.count_apps(name) and name != DEFAULT:
            for it in nodes:
                tx.delete_node(it)
                del model.nodes[it]
            tx.delete_environment(name)
            model.environments.pop(name, None)

    return step


def put_database_server(name: str) -> Step:
    def step(tx: Transaction, model: Model) -> None:
        tx.put_database_server(database_server(name))
        model.database_servers[name] = database_server(name)

    return step


def delete_database_server(name: str) -> Step:
    def step(tx: Transaction, model: Model) -> None:
        assert (tx.database_server(name) is not None) == (name in model.database_servers)
        tx.delete_database_server(name)
        model.database_servers.pop(name, None)

    return step


def put_certificate(name: str) -> Step:
    def step(tx: Transaction, model: Model) -> None:
        tx.put_certificate(certificate(name))
        model.certificates[name] = certificate(name)

    return step


def delete_certificate(name: str) -> Step:
    def step(tx: Transaction, model: Model) -> None:
        assert (tx.certificate(name) is not None) == (name in model.certificates)
        tx.delete_certificate(name)
        model.certificates.pop(name, None)

    return step


def put_node(name: str, address: str) -> Step:
    def step(tx: Transaction, model: Model) -> None:
        if name.rpartition("/nodes/")[0] in model.environments:
            tx.put_node(node(name, address))
            model.nodes[name] = node(name, address)

    return step


def put_operation(name: str, of: str, done: bool) -> Step:
    def step(tx: Transaction, model: Model) -> None:
        record = operation(name, of, done=done)
        tx.put_operation(record)
        model.operations[name] = record
        for it in APPS:
            expected = sorted(o.name for o in model.operations.values() if o.app == it and not o.done)
            assert [o.name for o in tx.open_operations(it)] == expected

    return step


def delete_operation(name: str) -> Step:
    def step(tx: Transaction, model: Model) -> None:
        tx.delete_operation(name)
        model.operations.pop(name, None)

    return step


def put_request(name: str, seconds: int) -> Step:
    def step(tx: Transaction, model: Model) -> None:
        known = model.requests.get(name)
        assert tx.request(name) == (known if known and known.expire_time > tx.now else None)
        record = request(name, tx.now + seconds * SECOND, digest=f"at {tx.revision}")
        tx.put_request(record)
        model.requests[name] = record

    return step


def add_event(of: str, message: str) -> Step:
    def step(tx: Transaction, model: Model) -> None:
        tx.add_event(of, event(message))
        model.events.setdefault(of, []).insert(0, message)

    return step


def look() -> Step:
    def step(tx: Transaction, model: Model) -> None:
        for name in APPS:
            found = tx.app(name)
            assert (None if found is None else bare(found)) == model.apps.get(name)

    return step


names, homes = st.sampled_from(APPS), st.sampled_from(ENVIRONMENTS)
domain_lists = st.lists(st.sampled_from(DOMAINS), max_size=2)
steps = st.one_of(
    st.builds(put_app, names, st.integers(1, 2), st.integers(1, 3), homes, domain_lists),
    st.builds(delete_app, names),
    st.builds(put_placement, names, st.integers(1, 2), st.sampled_from(NODES)),
    st.builds(delete_placement, names, st.integers(1, 2)),
    st.builds(put_retained, st.sampled_from(["u1", "u2"]), st.sampled_from(NODES), st.integers(1, 2)),
    st.builds(delete_retained, st.sampled_from(["u1", "u2"]), st.sampled_from(NODES)),
    st.builds(put_environment, homes),
    st.builds(delete_environment, homes),
    st.builds(put_database_server, st.sampled_from(SERVERS)),
    st.builds(delete_database_server, st.sampled_from(SERVERS)),
    st.builds(put_certificate, st.sampled_from(CERTIFICATES)),
    st.builds(delete_certificate, st.sampled_from(CERTIFICATES)),
    st.builds(put_node, st.sampled_from(NODES), st.sampled_from(["h:1", "h:2"])),
    st.builds(put_operation, st.sampled_from(OPERATIONS), names, st.booleans()),
    st.builds(delete_operation, st.sampled_from(OPERATIONS)),
    st.builds(put_request, st.sampled_from(REQUESTS), st.integers(1, 3)),
    st.builds(add_event, names, st.sampled_from(["one", "two"])),
    st.builds(look),
)
commands = st.tuples(st.lists(steps, min_size=1, max_size=5), st.booleans())
"""The steps of a command, and whether it fails after them."""


def machine(new_catalog: Callable[[], Any], stack: ExitStack) -> type[RuleBasedStateMachine]:
    class History(RuleBasedStateMachine):
        store: SqlCatalogStore

        @initialize()
        def begin(self) -> None:
            self.catalog = new_catalog()
            self.now = 1_000 * SECOND
            self.model = Model()
            self.open()
            self.model.environments = {
                key: value for key, (_, value) in contents(self.store.mirror.environments).items()
            }

        def open(self) -> None:
            self.store = self.catalog.reopen(clock=lambda: self.now, bounds=Bounds(changes=20, events=4))

        @rule(batch=st.lists(commands, min_size=1, max_size=4))
        def write(self, batch: list[tuple[list[Step], bool]]) -> None:
            """Commands that may share a commit; the writer runs them in order, one at a time."""
            futures = []
            for command_steps, fails in batch:

                def command(
                    tx: Transaction, command_steps: list[Step] = command_steps, fails: bool = fails
                ) -> int:
                    mine = copy.copy(self.model)
                    for name in vars(mine):
                        setattr(mine, name, copy.copy(getattr(mine, name)))
                    mine.events = {key: list(value) for key, value in mine.events.items()}
                    for step in command_steps:
                        step(tx, mine)
                    if fails:
                        raise AbandonedError
                    self.model = mine
                    return tx.revision

                futures.append((self.store.write(command), fails))
            last = 0
            for future, fails in futures:
                if fails:
                    with pytest.raises(AbandonedError):
                        future.result(WAIT)
                else:
                    assert future.result(WAIT) >= last
                    last = future.result()

        @rule(seconds=st.integers(-2, 3))
        def clock_moves(self, seconds: int) -> None:
            self.now += seconds * SECOND

        @rule()
        def reopen(self) -> None:
            known = snapshot(self.store.mirror), self.store.catalog_id
            self.open()
            assert (snapshot(self.store.mirror), self.store.catalog_id) == known

        @rule()
        def prune(self) -> None:
            self.store.prune()
            for name, before in self.model.events.items():
                after = self.events(name)
                assert after == before[: len(after)]
                assert len(after) >= min(4, len(before)) or name in self.model.removed
                self.model.events[name] = after

        def events(self, of: str) -> list[str]:
            return [it.message for it in self.store.events(of, 1_000)]

        @invariant()
        def mirror_is_the_model(self) -> None:
            if not hasattr(self, "store"):
                return
            for kind, entries in snapshot(self.store.mirror).items():
                found = {key: bare(record) for key, (_, record) in entries.items()}
                expected = {key: bare(it) for key, it in self.model.bare()[kind].items()}
                assert found == expected, kind
            for name in APPS:
                assert self.events(name) == self.model.events.get(name, [])

        @invariant()
        def database_is_the_mirror(self) -> None:
            if not hasattr(self, "store"):
                return
            state, _ = load(self.store._database)
            with self.store._database.reader.connect() as connection:
                assert snapshot(state.mirror) == snapshot(self.store.mirror)
                assert state.domains == self.store._state.domains
                assert state.domains == {
                    domain: it.name for it in self.model.apps.values() for domain in it.spec.domains
                }
                if not state.oldest_revision:
                    check_change_log(connection, state.mirror)

        def teardown(self) -> None:
            if hasattr(self, "catalog"):
                self.catalog.close()

    return History


@pytest.mark.timeout(300)
@pytest.mark.hypothesis  # it draws as those do: `make chaos` runs it with a new seed
def test_any_history_gives_what_a_plain_model_gives(
    new_catalog: Callable[[], Any], request: pytest.FixtureRequest
) -> None:
    examples = 3 if "postgresql" in request.node.name else 8
    with ExitStack() as stack:
        run_state_machine_as_test(  # type: ignore[no-untyped-call]
            machine(new_catalog, stack),
            settings=settings(
                max_examples=int(os.environ.get("HISTORIES", examples)),
                stateful_step_count=25,
                deadline=None,
                suppress_health_check=list(HealthCheck),
            ),
        )
