"""A RuntimeEnvironment in memory: a real gRPC servicer whose apps do what a test scripts.

Passes the contract suite of the real node. No app's code runs and nothing is served over HTTP.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from dataclasses import dataclass, field
from typing import Any

import grpc

from appsupervisor.fleet.v1 import fleet_pb2
from appsupervisor.fleet.v1.fleet_pb2_grpc import FleetStub
from appsupervisor.runtime.v1 import runtime_environment_pb2 as pb
from appsupervisor.runtime.v1.data_transfers_pb2_grpc import add_DataTransfersServicer_to_server
from appsupervisor.runtime.v1.runtime_environment_pb2_grpc import (
    add_RuntimeEnvironmentServicer_to_server,
)
from runtime_node import rules
from runtime_node.instances.feed import duration, lease_message
from runtime_node.instances.record import timestamp
from runtime_node.lease import Lease
from services.rpc.errors import SupervisorError
from services.rpc.server import RpcServer, Service
from services.spec.scalars import seconds
from tests.fakes.data_transfers import FakeTransfers, FakeTransfersServicer
from tests.fakes.directories import claim, list_directories
from tests.fakes.instance_feed import InstanceFeed
from tests.fakes.instances import Behaviour, Disk, Hosted, copy_of, without_claim
from tests.fakes.lives import InstanceLives
from tests.fakes.logs import FakeLogs
from tests.fakes.runtime_servicer import FakeServicer

SERVICE = "appsupervisor.runtime.v1.RuntimeEnvironment"


@dataclass
class FakeNode:
    """One life of a fake node. `behaviours` is by entrypoint; another entrypoint is ready at once."""

    node: str = "environments/default/nodes/fake-1"
    behaviours: dict[str, Behaviour] = field(default_factory=dict)
    max_instances: int = 10_000
    memory_bytes: int = 0
    """What it has for its apps, as it tells."""
    base_domain: str = "localhost"
    http_address: str = "127.0.0.1:1"
    incarnation: str = field(default_factory=lambda: secrets.token_hex(8))
    disk: Disk = field(default_factory=Disk)

    def __post_init__(self) -> None:
        self.calls: list[tuple[str, Any]] = []
        """Every request that came in, by method name; WatchInstances too."""
        self.streams = 0
        """WatchInstances streams open now."""
        self.last_stream_end = 0.0
        """By its clock."""
        self.address = ""
        self.killed = False
        self.transfers = FakeTransfers(self)
        self.draining = False
        self.refuse: SupervisorError | None = None
        """While set, every unary call is answered with it, and each of a batch."""
        self.used_memory_bytes = 0
        """What its heartbeats tell."""
        self.forwards = False
        """Whether it says that it forwards, as a node of before does not."""
        self.forwarding: dict[str, tuple[int, str]] = {}
        """By app uid: the epoch under which it was told where the app is now, and the node."""
        self._moved: dict[str, pb.Forwarding.MovedApp] = {}
        self.knows_batches = self.knows_lease_streams = True
        """False of a node of an older version."""
        self.lists = asyncio.Event()
        """While not set, ListInstances is not answered."""
        self.lists.set()
        self.lives = InstanceLives(self)
        self.hosted = self.lives.hosted
        """What is here, by name."""
        self.purged = self.lives.purged
        """Uids whose data was removed."""
        self.code = self.lives.code
        """By entrypoint: what is in its files, if that is not the entrypoint itself."""
        self._fences: dict[str, tuple[int, int]] = {}
        self.lease = Lease(self.incarnation, self.time)
        self.renewals = 0
        """Leases taken; what apps may do without one is not played here."""
        self.answered_renewals = self.lease_streams = 0
        """Calls of RenewLease and of HoldLease."""
        self.feed = InstanceFeed(self)
        self._server: RpcServer | None = None
        self._started = time.time()
        self.voice = asyncio.Event()
        """While not set, streams say nothing."""
        self.voice.set()
        self.logs = FakeLogs(self._newest_uid, lambda name: name in self.hosted)
        """What apps have logged; `logs.add` lets one log a line."""

    # --- what a test does with it ---

    async def start(self, listen: str = "127.0.0.1:0") -> str:
        """Serve; return the address."""
        service = Service(SERVICE, add_RuntimeEnvironmentServicer_to_server, FakeServicer(self))
        transfers = Service(
            "appsupervisor.runtime.v1.DataTransfers",
            add_DataTransfersServicer_to_server,
            FakeTransfersServicer(self.transfers),
        )
        self._server = RpcServer([service, transfers], is_node=True)
        self.address = f"127.0.0.1:{await self._server.start(listen)}"
        return self.address

    async def kill(self) -> None:
        """End as a killed process does: no drain, no word to anybody."""
        self.killed = True
        for hosted in self.hosted.values():
            if hosted.task is not None:
                hosted.task.cancel()
        if self._server is not None:
            await self._server.stop(0)

    async def drain(self) -> None:
        """Shut down as SIGTERM makes a node do, and stop serving."""
        self.draining = True
        self.lives.forget_unpurged()
        await self.lives.stop_all()
        self.feed.look()
        if self._server is not None:
            await self._server.stop(0.5)

    def mute(self) -> None:
        """Let streams say nothing any more, heartbeats included, until `unmute`."""
        self.voice.clear()

    def unmute(self) -> None:
        """Let streams go on, with the newest state."""
        self.voice.set()
        self.feed.look()

    def hold(self, entrypoint: str) -> asyncio.Event:
        """Have starts and stops of an app's code from now on wait for the event that is returned."""
        go = asyncio.Event()
        self.behaviours[entrypoint] = Behaviour(held=go)
        return go

    async def end_all(self, uid: str) -> None:
        """Stop all instances of an app, and wait until they are gone."""
        await self.lives.stop_all(uid)

    def host(self, spec: pb.InstanceSpec, status: pb.Instance) -> None:
        """Have an instance run as if it had been started before."""
        self._fences[spec.app_uid] = (spec.epoch, spec.generation)
        self.hosted[spec.name] = Hosted(spec, status)
        self.feed.publish(status)

    def crash(self, name: str, reason: str = "APP_CRASHED", message: str = "It ended by itself.") -> None:
        """Let a running instance end with an error and stay failed."""
        self.lives.fail(self.hosted[name], reason, message)

    def set_health(self, name: str, health: pb.Instance.Health.ValueType, why: str = "") -> None:
        """Let an instance's probe come out so; `why` it fails."""
        hosted = self.hosted[name]
        hosted.status.health = health
        if why:
            hosted.status.conditions.add(
                type="ProbeFailing", status=pb.Condition.MET, reason="HealthCheckFailed", message=why
            )
        self.feed.publish(hosted.status)

    def set_figures(self, name: str, figures: pb.InstanceFigures) -> None:
        """Give an instance figures; the next heartbeats carry them."""
        self.hosted[name].status.figures.CopyFrom(figures)

    def instances(self) -> dict[str, pb.Instance]:
        """Return copies of what is here, by name."""
        return {name: copy_of(hosted.status) for name, hosted in self.hosted.items()}

    async def register(self, control_plane: str, *, timeout: float = 5.0) -> fleet_pb2.RegisterNodeResponse:
        """Call Fleet.RegisterNode once, as a node does at its start."""
        async with grpc.aio.insecure_channel(control_plane) as channel:
            call: Any = FleetStub(channel).RegisterNode(self.registration(), timeout=timeout)
            response: fleet_pb2.RegisterNodeResponse = await call
            return response

    def registration(self) -> fleet_pb2.RegisterNodeRequest:
        """Return what it says of itself when it registers."""
        environment, _, node = self.node.partition("/nodes/")
        return fleet_pb2.RegisterNodeRequest(
            parent=environment,
            node_id=node,
            node=fleet_pb2.Node(
                name=self.node,
                address=self.address,
                http_address=self.http_address,
                base_domain=self.base_domain,
                incarnation=self.incarnation,
                max_instances=self.max_instances,
                memory_bytes=self.memory_bytes,
                uid=self.disk.uid,
            ),
        )

    # --- commands ---

    def status(self) -> pb.RuntimeStatus:
        """Return who this node is and what it carries."""
        return pb.RuntimeStatus(
            node=self.node,
            incarnation=self.incarnation,
            version="fake",
            python_version="3",
            http_address=self.http_address,
            base_domain=self.base_domain,
            monotonic_time=duration(self.time()),
            instance_count=len(self.hosted),
            max_instances=self.max_instances,
            start_time=timestamp(self._started),
            memory_bytes=1,
            draining=self.draining,
            node_uid=self.disk.uid,
            lease=lease_message(self.lease),
            forwarding=self._forwarding() if self.forwards else None,
        )

    def _forwarding(self) -> pb.Forwarding:
        return pb.Forwarding(app_count=len(self.forwarding), moved_apps=self._moved.values())

    def renew_lease(self, request: pb.RenewLeaseRequest) -> pb.Lease:
        """RenewLease."""
        rules.check_renewal(request, self.time())

        def give_up() -> None:
            for fence in request.fences:
                version = (fence.epoch, 0)
                self._fences[fence.app_uid] = max(version, self._fences.get(fence.app_uid, (0, 0)))

        span = seconds(request.lease_duration)
        time = seconds(request.monotonic_time)
        self.lease.renew(request.term, request.incarnation, time, span, give_up, alone=request.alone)
        self.renewals += 1
        return lease_message(self.lease)

    def start_instance(
        self, spec: pb.InstanceSpec, *, start_now: bool = False, term: int = 0, incarnation: str = ""
    ) -> pb.Instance:
        """StartInstance."""
        self.lease.heed(term, incarnation)
        rules.check_spec(spec)
        known = self.hosted.get(spec.name)
        if known is not None and without_claim(known.spec) == without_claim(spec):
            return known.status
        version, fence = (spec.epoch, spec.generation), self._fences.get(spec.app_uid, (0, 0))
        if version < fence:
            raise rules.stale(spec.name, version, fence)
        if known is not None:
            raise SupervisorError("INSTANCE_EXISTS", "It is here with another spec.", resource=spec.name)
        if self.draining:
            raise SupervisorError("NODE_DRAINING", "The node is shutting down.", resource=self.node)
        if len(self.hosted) >= self.max_instances:
            raise SupervisorError("NODE_FULL", "The node is full.", resource=self.node)
        self._fences[spec.app_uid] = version
        self.transfers.accepted(spec.app_uid)
        return self.lives.begin(spec, start_now=start_now).status

    def stop_instance(self, request: pb.StopInstanceRequest) -> pb.Instance | None:
        """StopInstance."""
        self.lease.heed(request.term)
        rules.check_stop(request)
        hosted = self.hosted.get(request.name)
        if hosted is not None and request.app_uid not in {"", hosted.spec.app_uid}:
            hosted = None
        if hosted is not None and request.epoch < hosted.spec.epoch:
            raise rules.stale(request.name, (request.epoch, 0), (hosted.spec.epoch, hosted.spec.generation))
        uid = hosted.spec.app_uid if hosted is not None else request.app_uid
        if uid:
            self._fences[uid] = max(self._fences.get(uid, (0, 0)), (request.epoch, 0))
        came_under = self.transfers.came_under.get(uid, 0)
        if request.purge_data and request.epoch < came_under:
            raise rules.stale(request.name, (request.epoch, 0), (came_under, 0))
        if request.HasField("new_home"):
            told = request.epoch, request.new_home.node
            self.forwarding[uid] = max(told, self.forwarding.get(uid, told), key=lambda it: it[0])
            if self.forwarding[uid] == told:
                self._moved[uid] = pb.Forwarding.MovedApp(
                    app=request.name.rpartition("/instances/")[0], app_uid=uid, epoch=request.epoch,
                    new_home=request.new_home,
                )  # fmt: skip
        if request.purge_data:
            self.lives.purge(uid)
        if hosted is None:
            self.lives.look_at_purge(uid, request.name)
            return None
        if self.lives.end_unpurged(hosted):
            return self.hosted[request.name].status if request.name in self.hosted else None
        self.lives.stop(hosted)
        return hosted.status

    def restart_instance(self, request: pb.RestartInstanceRequest) -> pb.Instance:
        """RestartInstance."""
        self.lease.heed(request.term)
        rules.check_restart(request.name, request.epoch, request.request_id)
        hosted = self._find(request.name)
        if request.epoch < hosted.spec.epoch:
            raise rules.stale(request.name, (request.epoch, 0), (hosted.spec.epoch, hosted.spec.generation))
        if hosted.status.state == pb.Instance.STOPPING:
            raise SupervisorError("INSTANCE_STOPPING", "It is being stopped.", resource=request.name)
        if request.request_id and request.request_id == hosted.last_request_id:
            return hosted.status
        hosted.last_request_id = request.request_id
        self.lives.restart(hosted)
        return hosted.status

    def get_instance(self, name: str) -> pb.Instance:
        """GetInstance."""
        rules.check_name(name)
        return self.lives.told(self._find(name))

    def list_instances(self, request: pb.ListInstancesRequest) -> pb.ListInstancesResponse:
        """ListInstances; a page token is the last name of the page before."""
        app = rules.check_parent(request.parent)
        rules.check_page_size(request.page_size)
        prefix = "apps/" if app is None else f"{request.parent}/instances/"
        names = sorted(name for name in self.hosted if name.startswith(prefix))
        if request.page_token:
            if not request.page_token.startswith(prefix):
                raise SupervisorError("INVALID_PAGE_TOKEN", "It is none of this node's.")
            names = [name for name in names if name > request.page_token]
        size = min(request.page_size or 50, 1000)
        page = names[:size]
        more = page[-1] if len(names) > size else ""
        return pb.ListInstancesResponse(
            instances=[self.lives.told(self.hosted[name]) for name in page], next_page_token=more
        )

    def list_data_directories(self, request: pb.ListDataDirectoriesRequest) -> pb.ListDataDirectoriesResponse:
        """ListDataDirectories."""
        return list_directories(self, request)

    def claim_data_directory(self, request: pb.ClaimDataDirectoryRequest) -> pb.DataDirectory:
        """ClaimDataDirectory."""
        return claim(self, request)

    # --- inside ---

    def time(self) -> float:
        """Return the loop's time: a test may let it pass as it likes."""
        return asyncio.get_running_loop().time()

    def _newest_uid(self, app: str) -> str:
        found = [h.spec for name, h in self.hosted.items() if name.startswith(f"apps/{app}/")]
        return found[-1].app_uid if found else ""

    def _find(self, name: str) -> Hosted:
        hosted = self.hosted.get(name)
        if hosted is None:
            raise SupervisorError("INSTANCE_NOT_FOUND", f"{name} is not on this node.", resource=name)
        return hosted
