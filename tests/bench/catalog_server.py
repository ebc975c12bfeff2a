"""The control plane with a full catalog, and beside it an empty handler to compare with.

Run as `python -m tests.bench.catalog_server --apps N --database-url URL`; prints its port on one line.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from typing import Any

import grpc
import uvloop
from google.protobuf.empty_pb2 import Empty

from appsupervisor.catalog.v1.app_catalog_pb2 import App
from appsupervisor.runtime.v1.runtime_environment_pb2 import Instance
from services.control_plane import server as composition
from services.control_plane.catalog.commands import AppCommands
from services.control_plane.catalog.queries import AppQueries
from services.control_plane.catalog.timelines import AppTimelines
from services.control_plane.controller.controller import Controller
from services.control_plane.nodes.figures import FigureReader
from services.control_plane.nodes.pool import NodePool
from services.control_plane.nodes.tails import AppTails
from services.control_plane.operations.service import OperationService
from services.control_plane.rules.app_defaults import normalize_app
from services.control_plane.store.interface import Transaction
from services.control_plane.store.records import AppRecord, Version
from services.control_plane.store.sql_store import open_store
from services.rpc.process import settle_collector
from services.rpc.server import RpcServer

BATCH = 500


async def nothing(request: Empty, context: Any) -> Empty:
    return Empty()


def add_empty(server: Any) -> None:
    """Add an empty coroutine to a server of gRPC itself: nothing of ours is around it."""
    handler = grpc.unary_unary_rpc_method_handler(
        nothing,
        request_deserializer=Empty.FromString,
        response_serializer=Empty.SerializeToString,
    )
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("bench.Empty", {"Nothing": handler}),)
    )


def fill(store: Any, count: int) -> None:
    """Store stopped apps, so that nothing is to be done about them."""

    def create(number: int) -> Any:
        spec = normalize_app(
            App(
                name=f"apps/app-{number:06d}",
                entrypoint="notes:create_app",
                desired_state=App.STOPPED,
            )
        )
        spec.labels["tier"] = "gold" if number % 10 == 0 else "free"

        def command(tx: Transaction) -> None:
            status = App(state=Instance.STOPPED, observed_generation=1)
            uid = f"{number:08x}-0000-4000-8000-000000000000"
            tx.put_app(AppRecord(spec.name, uid, spec, status, 1, Version(1, 1), tx.now, tx.now))

        return command

    for start in range(0, count, BATCH):
        futures = [store.write(create(n)) for n in range(start, min(count, start + BATCH))]
        for future in futures:
            future.result(60)


async def serve(apps: int, url: str, leads: bool) -> None:
    store = open_store(url)
    fill(store, apps)
    operations = OperationService(store)
    controller = Controller(store)
    figures = FigureReader(NodePool(store.mirror))
    server = RpcServer(
        [
            *composition.services(
                store,
                AppCommands(store, figures),
                operations,
                AppQueries(store, figures),
                AppTimelines(store),
                AppTails(store.mirror, NodePool(store.mirror)),
            ),
        ]
    )
    add_empty(server._server)  # before the server's own, which finds an answer for every name
    await operations.start()
    if leads:
        await controller.start()
    port = await server.start("127.0.0.1:0")
    settle_collector()  # as the control plane does, once it is up
    print(port, flush=True)
    stopping = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopping.set)
    await stopping.wait()
    await controller.close()
    await server.stop(0)
    await operations.close()
    store.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--apps", type=int, default=10)
    parser.add_argument("--database-url", required=True)
    parser.add_argument("--follows", action="store_true", help="another replica reconciles")
    options = parser.parse_args()
    sys.setswitchinterval(composition.TURN_SECONDS)
    uvloop.run(serve(options.apps, options.database_url, not options.follows))
    sys.exit(0)
