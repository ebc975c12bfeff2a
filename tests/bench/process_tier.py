"""Figures of the PROCESS tier: start, memory per guest, requests through the proxy against bare uvicorn.

Run as `python -m tests.bench.process_tier [--quick]`. The zygote is forked before anything else is imported.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from runtime_node.tiers.process.zygote import Zygote

APPS = Path(__file__).parent / "apps"
ZYGOTE = Zygote.launch([APPS])

from appsupervisor.runtime.v1.runtime_environment_pb2 import InstanceSpec  # noqa: E402
from runtime_node.context import AppContext  # noqa: E402
from runtime_node.http.front import HttpFront  # noqa: E402
from runtime_node.http.gate import Gate  # noqa: E402
from runtime_node.http.router import Router  # noqa: E402
from runtime_node.tiers.process import procfs  # noqa: E402
from runtime_node.tiers.process.runner import ProcessRunner  # noqa: E402
from runtime_node.tiers.runner import Launch  # noqa: E402
from tests.bench.results import Row, at_most, quantile_row, row, table  # noqa: E402


def launch(entrypoint: str, number: int, data: Path, on_exit: object = None) -> Launch:
    name = f"apps/bench{number}/instances/one"
    directory = data / str(number)
    directory.mkdir(exist_ok=True)
    context = AppContext(
        f"bench{number}", name, 1, {}, {}, {}, None, directory, logging.getLogger("bench.guest")
    )  # fmt: skip
    return Launch(
        InstanceSpec(name=name, entrypoint=entrypoint), context, on_exit or (lambda error: None), print
    )


async def starts(runner: ProcessRunner, entrypoint: str, count: int, data: Path) -> list[Row]:
    times, stops = [], []
    for number in range(count):
        began = time.perf_counter()
        app = await runner.start(launch(entrypoint, number, data))
        times.append(time.perf_counter() - began)
        began = time.perf_counter()
        await app.stop(5)
        stops.append(time.perf_counter() - began)
    what = f"PROCESS tier, {name_of(entrypoint)}"
    return [
        quantile_row(f"{what}: start → ready, p50", times, 0.5, "ms", scale=1e3),
        quantile_row(f"{what}: start → ready, p99", times, 0.99, "ms", scale=1e3, target=at_most(80, "node")),
        quantile_row(f"{what}: stop, p50", stops, 0.5, "ms", scale=1e3),
    ]


def name_of(entrypoint: str) -> str:
    return entrypoint.partition(":")[2]


async def memory(runner: ProcessRunner, entrypoint: str, count: int, data: Path) -> list[Row]:
    apps = [await runner.start(launch(entrypoint, number, data)) for number in range(count)]
    sizes = [size for app in apps if (size := procfs.private_bytes(app.pid)) is not None]
    private, proportional = ([size[part] / 2**20 for size in sizes] for part in (0, 1))
    await asyncio.sleep(0.5)
    before = [procfs.cpu_seconds(app.pid) or 0.0 for app in apps]
    await asyncio.sleep(2)
    after = [procfs.cpu_seconds(app.pid) or 0.0 for app in apps]
    idle = (sum(after) - sum(before)) / 2 / count
    await asyncio.gather(*(app.stop(5) for app in apps))
    what = f"PROCESS tier, {name_of(entrypoint)}, {count} guests"
    return [
        row(f"{what}: private memory (USS)", private, "MB", target=at_most(8, "node")),
        row(f"{what}: with its share of the zygote's (PSS)", proportional, "MB"),
        row(f"{what}: idle", idle * 100, "% of a core"),
    ]


async def crashes(runner: ProcessRunner, count: int, data: Path) -> list[Row]:
    times = []
    for number in range(count):
        ended = asyncio.Event()
        app = await runner.start(launch("process_apps:small", number, data, lambda error, e=ended: e.set()))
        began = time.perf_counter()
        os.kill(app.pid, signal.SIGSEGV)
        await ended.wait()
        again = await runner.start(launch("process_apps:small", number, data))
        times.append(time.perf_counter() - began)
        await again.stop(5)
    what = "PROCESS tier: crash → told → ready again, p99"
    return [quantile_row(what, times, 0.99, "ms", scale=1e3, target=at_most(150, "node"))]


async def rate(url: str, seconds: int, clients: int) -> float:
    process = await asyncio.create_subprocess_exec(
        "wrk", "-t1", f"-c{clients}", f"-d{seconds}s", "--latency", url, stdout=asyncio.subprocess.PIPE
    )
    output, _ = await process.communicate()
    text = output.decode()
    found = re.search(r"Requests/sec:\s+([\d.]+)", text)
    assert found is not None, text
    assert "Non-2xx" not in text, text
    assert "Socket errors" not in text, text
    return float(found[1])


async def requests(runner: ProcessRunner, entrypoint: str, path: str, seconds: int, data: Path) -> list[Row]:
    router = Router()
    front = HttpFront("127.0.0.1", 0, router)
    _, port = await front.start()
    app = await runner.start(launch(entrypoint, 0, data))
    gate = Gate("apps/bench0/instances/one")
    router.set("bench0", ["127.0.0.1"], gate)
    gate.open(app.asgi)
    factory = ["--factory"] if "fastapi20" in entrypoint else []
    bare_entrypoint = entrypoint.replace("fastapi20", "bare_fastapi20")
    bare_port = port + 1
    bare = subprocess.Popen(  # noqa: ASYNC220  (nothing else runs yet)
        [
            sys.executable, "-m", "uvicorn", bare_entrypoint, *factory, "--port", str(bare_port),
            "--no-access-log", "--log-level", "error", "--app-dir", str(APPS), "--lifespan", "off",
        ],
    )  # fmt: skip
    try:
        for _ in range(200):
            with contextlib.suppress(OSError):
                _, writer = await asyncio.open_connection("127.0.0.1", bare_port)
                writer.close()
                break
            await asyncio.sleep(0.05)
        ours, theirs = [], []
        for _ in range(3):
            theirs.append(await rate(f"http://127.0.0.1:{bare_port}{path}", seconds, 32))
            ours.append(await rate(f"http://127.0.0.1:{port}{path}", seconds, 32))
        # Pairs of one round saw the same neighbours on the machine.
        ratio = statistics.median(mine / base for mine, base in zip(ours, theirs, strict=True))
        what = f"PROCESS tier, {name_of(entrypoint)}: requests through the node, against bare uvicorn"
        return [row(what, ours, "/s", base=statistics.median(theirs), ratio=ratio)]
    finally:
        bare.terminate()
        bare.wait()
        await app.stop(5)
        await front.stop(1)


async def run(quick: bool) -> list[Row]:
    guests, count, seconds = (10, 30, 1) if quick else (20, 100, 3)
    runner = ProcessRunner(ZYGOTE, lambda context, stream, line: None)
    await ZYGOTE.ready()
    assert ZYGOTE.pid is not None
    size = procfs.private_bytes(ZYGOTE.pid)
    rows = [row("the zygote, once: memory (PSS)", (size or (0, 0))[1] / 2**20, "MB")]
    with tempfile.TemporaryDirectory() as directory:
        data = Path(directory)
        for entrypoint in ("process_apps:small", "process_apps:fastapi20"):
            rows += await starts(runner, entrypoint, count, data)
            rows += await memory(runner, entrypoint, guests, data)
        rows += await crashes(runner, 20, data)
        if shutil.which("wrk"):
            rows += await requests(runner, "process_apps:small", "/", seconds, data)
            rows += await requests(runner, "process_apps:fastapi20", "/r3/7?q=x", seconds, data)
    await runner.close()
    return rows


def measure(quick: bool) -> list[Row]:
    """Return the figures of the PROCESS tier."""
    import uvloop

    return uvloop.run(run(quick))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    print(table(measure(parser.parse_args().quick)))
