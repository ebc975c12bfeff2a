"""`make up`: starts the stack in order, shows what to try, and stops it in reverse order."""

import asyncio
import contextlib
import fcntl
import os
import shlex
import signal
import socket
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import grpc

from appsupervisor.catalog.v1.app_catalog_pb2_grpc import AppCatalogStub
from compose.local import demo, requirements
from compose.local.output import Output
from compose.local.reload import reload_on_change
from compose.local.settings import HOST, Settings, read_settings, refused, unknown, variable_of
from compose.local.supervised import Supervised
from services.rpc.process import ending_signals

APPS = Path(__file__).resolve().parents[1] / "apps"
START_TIMEOUT = 60.0
NODE_STOP_TIMEOUT = 20.0
CONTROL_PLANE_STOP_TIMEOUT = 10.0
RECONNECT = (("grpc.initial_reconnect_backoff_ms", 100), ("grpc.max_reconnect_backoff_ms", 500))
PORT_FLAGS = ("control-plane-port", "node-port", "http-port")


class StartError(Exception):
    """The stack cannot run here; the message says why and what to do."""


def main() -> None:
    """Run the stack until Ctrl-C or SIGTERM; exit with 0 after a clean stop, with 1 if it could not start."""
    settings = read_settings()
    if problems := refused(os.environ):
        sys.exit(f"make up: {'; '.join(problems)}")
    try:
        for folder in settings.app_dirs:
            check_requirements(folder, install=settings.install)
        with exclusive(settings.data_dir):
            asyncio.run(Stack(with_ports(settings)).run())
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


def with_ports(settings: Settings) -> Settings:
    """Return the settings with every port checked and 0 replaced. Raises StartError for one in use."""
    chosen: dict[str, int] = {}
    with contextlib.ExitStack() as held:
        for flag in PORT_FLAGS:
            field = flag.replace("-", "_")
            listener = held.enter_context(socket.socket())
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            port = getattr(settings, field)
            try:
                listener.bind((HOST, port))
            except OSError as taken:
                raise StartError(
                    f"port {port} of {HOST} ({flag}) is not free: {taken.strerror}. "
                    f"Choose another: make up {variable_of(flag)}={port + 1000}"
                ) from taken
            except OverflowError as wrong:
                raise StartError(f"{flag} is from 0 to 65535, not {port}") from wrong
            chosen[field] = listener.getsockname()[1]
    return replace(
        settings,
        control_plane_port=chosen["control_plane_port"],
        node_port=chosen["node_port"],
        http_port=chosen["http_port"],
    )


class Stack:
    """The processes of the local stack and the order of their lives."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    async def run(self) -> None:
        """Start, show, wait for a signal, stop. Raises StartError after everything is stopped again."""
        loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        self._output = Output(lambda: loop.call_soon_threadsafe(self._stop.set))
        for name in unknown(os.environ):
            self._output.log("up", f"{name} is set, but no program reads it")
        self._control_plane, self._node = self._processes()
        for number in ending_signals():
            loop.add_signal_handler(number, self._on_signal, number)
        working = asyncio.create_task(self._start_and_wait())
        stopping = asyncio.create_task(self._stop.wait())
        try:
            await asyncio.wait([working, stopping], return_when=asyncio.FIRST_COMPLETED)
            if working.done():
                await working
        finally:
            # The control plane first: what it sees until then is a healthy node, so nothing of this end is
            # written into the apps' timelines, and the node serves to the last.
            for task in (working, stopping):
                task.cancel()
            await self._control_plane.stop(CONTROL_PLANE_STOP_TIMEOUT)
            await self._node.stop(NODE_STOP_TIMEOUT)
            self._output.say("Stopped. The data stays; make up continues where this ended.")
            self._output.close(timeout=2.0)

    def _on_signal(self, number: signal.Signals) -> None:
        if self._stop.is_set():
            self._output.log("up", "asked again: killing what is left")
            self._node.kill()
            self._control_plane.kill()
            return
        self._output.log("up", f"{signal.Signals(number).name}: stopping; apps finish their requests first")
        self._stop.set()

    def _processes(self) -> tuple[Supervised, Supervised]:
        own = self._settings
        data = own.data_dir.resolve()
        control_plane = Supervised(
            "control-plane",
            [
                "services.control_plane",
                f"--listen={own.control_plane}",
                f"--database-url=sqlite:///{data / 'control-plane.db'}",
                f"--metrics-listen={own.metrics}",
            ],
            self._output,
        )
        node = Supervised(
            "node-1",
            [
                "runtime_node",
                f"--listen={own.node}",
                f"--http-listen={own.http}",
                f"--control-plane={own.control_plane}",
                "--environment=default",
                "--node=node-1",
                f"--data-dir={data / 'node-1'}",
                f"--metrics-listen={own.metrics_of_node}",
                *(f"--app-dir={folder}" for folder in (*own.app_dirs, APPS)),
            ],
            self._output,
        )
        return control_plane, node

    async def _start_and_wait(self) -> None:
        # Both at once: the node calls until the control plane answers, and their imports take longest.
        self._control_plane.start()
        self._node.start()
        async with (
            grpc.aio.insecure_channel(self._settings.control_plane, RECONNECT) as channel,
            grpc.aio.insecure_channel(self._settings.node, RECONNECT) as node_channel,
        ):
            await self._become_ready(self._control_plane, channel)
            await self._become_ready(self._node, node_channel)
            apps = AppCatalogStub(channel)
            try:
                await demo.create_missing(apps)
                port = self._settings.http_port
                states = await asyncio.gather(
                    *(demo.settle(apps, one, HOST, port, START_TIMEOUT) for one in demo.DEMOS)
                )
            except grpc.aio.AioRpcError as error:
                raise StartError(
                    f"the control plane answered {error.code().name}: {error.details()}"
                ) from error
            self._output.say(banner(self._settings, states))
            if self._settings.reload:
                folders = (*self._settings.app_dirs, APPS)
                await reload_on_change(apps, folders, lambda text: self._output.log("up", text))
            await asyncio.Event().wait()

    async def _become_ready(self, process: Supervised, channel: grpc.aio.Channel) -> None:
        """Wait until the process can be called. Raises StartError if it ends or takes too long."""
        connected = asyncio.create_task(channel.channel_ready())
        ended = asyncio.create_task(process.failed.wait())
        try:
            await asyncio.wait([connected, ended], timeout=START_TIMEOUT, return_when=asyncio.FIRST_COMPLETED)
            if process.failed.is_set():
                raise StartError(f"{process.name} could not start; its log above tells why")
            if not connected.done():
                raise StartError(f"{process.name} was not ready within {START_TIMEOUT:.0f} s")
            process.ready = True
        finally:
            connected.cancel()
            ended.cancel()


def banner(settings: Settings, states: list[str]) -> str:
    """Return what the user may do now; every command works as it is printed."""
    call = f"grpcurl -plaintext -d '%s' {settings.control_plane} appsupervisor.catalog.v1.AppCatalog/%s"
    wiki = '{"app_id": "wiki", "app": {"entrypoint": "notes:create_app"}, "request_id": "try"}'
    lines = ["", "  AppSupervisor is up. The apps:"]
    for one, state in zip(demo.DEMOS, states, strict=True):
        lines.append(f"    http://{one.id}.localhost:{settings.http_port}/   {state}")
    lines += [
        f"  Control plane {settings.control_plane}, node {settings.node}, data in {settings.data_dir}",
        *(
            [
                f"  Metrics http://{settings.metrics}/metrics, of the node http://{settings.metrics_of_node}/metrics"
            ]
            if settings.metrics
            else []
        ),
        "  Try in another terminal:",
        f"    grpcurl -plaintext {settings.control_plane} list",
        "    " + call % ('{"filter": "state = RUNNING"}', "ListApps"),
        "    " + call % (wiki, "CreateApp"),
        f"    curl http://wiki.localhost:{settings.http_port}/notes",
        "    " + call % ('{"name": "apps/wiki"}', "StopApp"),
        "    " + call % ('{"parent": "apps/wiki"}', "ListAppEvents"),
        "  Ctrl-C stops everything.",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
