"""The only node of an environment is cut off from who tells it of others: it serves on, and a node that joins
meanwhile is given no second copy of an app whose database anybody can write.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Callable, Iterator

import grpc
import pytest

from appsupervisor.fleet.v1 import fleet_pb2 as fleet_pb
from appsupervisor.fleet.v1.fleet_pb2_grpc import FleetStub
from appsupervisor.runtime.v1.runtime_environment_pb2 import Database, InstanceSpec
from tests.chaos.faults import FAULTS, LEASELESS, Fault, database_killed, killed, last, stopped
from tests.chaos.fleet import DATABASE, LONE, PLANES, Fleet
from tests.chaos.rows import Rows
from tests.e2e.stack import Process, eventually

ROUNDS = int(os.environ.get("CHAOS_ROUNDS", "1"))
LASTS = 8.0
"""Seconds: longer than a lease."""
ENVIRONMENT = "lone"
APP = "outside"

pytestmark = [pytest.mark.chaos, pytest.mark.slow, pytest.mark.timeout(400)]


class Alone:
    """The environment `lone`: the node that is alone in it, and the one that may join."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self.home, self.other = LONE

    def joins(self) -> Process:
        """Start the other node, and return its process."""
        process = self.fleet.nodes[self.other]
        process.start()
        return process

    def is_ready(self, node: str) -> bool:
        """Tell whether a node may be given apps."""
        return self.fleet.node(node, ENVIRONMENT).state == fleet_pb.Node.READY

    def serves_alone(self, node: str) -> bool:
        """Tell whether the catalog says that a node serves alone."""
        return self.fleet.node(node, ENVIRONMENT).serves_alone

    def is_told(self, node: str) -> bool:
        """Tell whether a node has heard that it serves alone: the catalog says so first."""
        return self.fleet.nodes[node].text().rpartition("lease.alone alone=")[2].startswith("True")

    def nodes_of_app(self) -> set[str]:
        """Return the nodes that have a copy of the app, as the catalog tells it."""
        return {it.node.rpartition("/")[2] for it in self.fleet.app(APP).instances}

    def is_left_to(self, home: str) -> None:
        """End the node that is not `home` and have it forgotten; wait until the other serves alone."""
        gone = next(it for it in LONE if it != home)
        self.home, self.other = home, gone
        self.fleet.nodes[gone].kill()
        request = fleet_pb.DeleteNodeRequest(
            name=f"environments/{ENVIRONMENT}/nodes/{gone}", request_id=secrets.token_hex(8)
        )

        def forgotten() -> bool:
            try:
                self.fleet.ask(lambda channel, limit: FleetStub(channel).DeleteNode(request, timeout=limit))
            except grpc.RpcError as refused:
                # Heard a moment ago, or its lease still runs.
                if refused.code() != grpc.StatusCode.FAILED_PRECONDITION:  # type: ignore[attr-defined]
                    raise
                return False
            return True

        eventually(forgotten, f"{gone} is forgotten")
        eventually(lambda: self.serves_alone(home) and self.is_told(home), f"{home} serves alone again")


@pytest.fixture(scope="module")
def alone(fleet: Fleet) -> Iterator[Alone]:
    """Give an environment of one node, with an app whose database is not fenced and not its node's."""
    alone = Alone(fleet)
    environment = fleet_pb.CreateEnvironmentRequest(environment_id=ENVIRONMENT)
    fleet.ask(lambda channel, limit: FleetStub(channel).CreateEnvironment(environment, timeout=limit))
    for node in LONE:
        fleet.added(node, ENVIRONMENT)
    try:
        fleet.nodes[alone.home].start()
        eventually(lambda: alone.is_ready(alone.home), "the only node is ready")
        fleet.create(
            APP,
            environment=f"environments/{ENVIRONMENT}",
            database=Database(external=Database.External(secret_key="DATABASE")),
            secret_env={"DATABASE": f"sqlite:///{fleet.data(alone.home).parent / 'outside.db'}"},
            isolation=InstanceSpec.SHARED,
        )
        eventually(lambda: alone.serves_alone(alone.home) and alone.is_told(alone.home), "it serves alone")
        yield alone
    finally:
        for node in LONE:
            fleet.nodes.pop(node).clean_up()


@contextlib.contextmanager
def _planes(
    fleet: Fleet, what: Callable[[Process], contextlib.AbstractContextManager[None]]
) -> Iterator[None]:
    with contextlib.ExitStack() as planes:
        for plane in fleet.planes.values():
            planes.enter_context(what(plane))
        yield


CUTS = (*sorted(LEASELESS - {"node cut from all but clients"}),)
"""The node is not told anything, and control planes that live know of who joins."""

STRIKES: dict[str, Fault] = {
    **{cut: FAULTS[cut] for cut in CUTS},
    "leader cut from nodes": lambda fleet, node: fleet.network.cut(fleet.leader(), *LONE),
    "control planes killed": lambda fleet, node: _planes(fleet, killed),
    "control planes stand still": lambda fleet, node: _planes(fleet, stopped),
    "PostgreSQL killed": lambda fleet, node: database_killed(fleet),
    "control planes cut from PostgreSQL": lambda fleet, node: fleet.network.cut(DATABASE, *PLANES),
}


@pytest.mark.parametrize("fault", STRIKES if ROUNDS > 1 else ["node does not hear control planes"])
def test_a_lone_node_serves_on_and_nobody_writes_beside_it(alone: Alone, fault: str) -> None:
    fleet, home, other = alone.fleet, alone.home, alone.other
    with Rows(fleet, APP, nodes=LONE) as rows:
        rows.go_on()
        with STRIKES[fault](fleet, home):
            last(LASTS)
            rows.go_on()
            alone.joins()
            if fault in CUTS:
                eventually(lambda: alone.is_ready(other), "another one has joined")
            last(LASTS)
            if fault in CUTS:
                assert alone.nodes_of_app() == {home}, "a second copy was begun"
            rows.go_on()
            assert len(rows.answers) == 1, f"answers of epochs {sorted(rows.answers)}"
        # It hears that it is no longer alone, and keeps what it has.
        eventually(lambda: alone.is_ready(other), "another one has joined")
        eventually(lambda: not alone.serves_alone(home), "it knows that it is not alone")
        rows.go_on()
        assert fleet.settles(APP) == home
        # From now on it stops with its lease.
        with fleet.network.cut(home, *PLANES):
            assert fleet.settles(APP, but=home) == other
            rows.go_on()
        eventually(lambda: alone.is_ready(home), "it has a lease again")
        rows.go_on()
    print(fault, rows.summary())
    rows.judge(fleet.settles(APP), one_writer=True, leased=True)
    alone.is_left_to(other)


@pytest.mark.skipif(ROUNDS == 1, reason="takes long: make chaos CHAOS_ROUNDS=2")
@pytest.mark.parametrize("number", range(ROUNDS))
def test_a_lone_node_cut_off_as_another_one_joins_never_writes_beside_it(alone: Alone, number: int) -> None:
    fleet, home, other = alone.fleet, alone.home, alone.other
    with Rows(fleet, APP, nodes=LONE) as rows:
        rows.go_on()
        said = fleet.nodes[other].text().count("node.registered")
        joined = alone.joins()
        eventually(lambda: joined.text().count("node.registered") > said, "it joins")
        # Told already, about to be told, or the answer is lost: by one way or the other, or both.
        with FAULTS[CUTS[number % len(CUTS)]](fleet, home):
            last(2 * LASTS)
            rows.go_on()
        eventually(lambda: alone.is_ready(home) and alone.is_ready(other), "both are ready")
        rows.go_on()
    print(number, rows.summary())
    at = fleet.settles(APP)
    rows.judge(at, one_writer=True, leased=True)
    alone.is_left_to(at)
