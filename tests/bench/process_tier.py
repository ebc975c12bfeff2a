"""Figures of the PROCESS tier: start, memory per guest, requests through the proxy against bare uvicorn.

python tests/bench/process_tier.py [--guests 20] [--starts 60] [--seconds 4]
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

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "gen")]

from runtime_node.lanes.process.zygote import Zygote  # noqa: E402

APPS = Path(__file__).parent / "apps"
ZYGOTE = Zygote.launch([APPS])

from appsupervisor.runtime.v1.runtime_environment_pb2 import InstanceSpec  # noqa: E402
from runtime_node.context import AppContext  # noqa: E402
from runtime_node.http.front import HttpFront  # noqa: E402
from runtime_node.http.gate import Gate  # noqa: E402
from runtime_node.http.router import Router  # noqa: E402
from runtime_node.lanes.lane import Launch  # noqa: E402
from runtime_node.lanes.process import procfs  # noqa: E402
from runtime_node.lanes.process.lane import ProcessLane  # noqa: E402


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


def quantiles(values: list[float]) -> str:
    values = sorted(values)
    p50, p99 = statistics.median(values), values[min(len(values) - 1, int(len(values) * 0.99))]
    return f"p50 {p50 * 1e3:.1f} ms, p99 {p99 * 1e3:.1f} ms, max {values[-1] * 1e3:.1f} ms"


async def starts(lane: ProcessLane, entrypoint: str, count: int, data: Path) -> None:
    times, stops = [], []
    for number in range(count):
        began = time.perf_counter()
        app = await lane.start(launch(entrypoint, number, data))
        times.append(time.perf_counter() - began)
        began = time.perf_counter()
        await app.stop(5)
        stops.append(time.perf_counter() - began)
    print(f"start {entrypoint}: {quantiles(times)}; stop: {quantiles(stops)} ({count} rounds)")


async def memory(lane: ProcessLane, entrypoint: str, count: int, data: Path) -> None:
    began = time.perf_counter()
    apps = [await lane.start(launch(entrypoint, number, data)) for number in range(count)]
    took = time.perf_counter() - began
    sizes = [size for app in apps if (size := procfs.private_bytes(app.pid)) is not None]
    private = statistics.mean(size[0] for size in sizes) / 2**20
    proportional = statistics.mean(size[1] for size in sizes) / 2**20
    print(
        f"memory {entrypoint}: {count} guests in {took:.2f} s; each private (USS) {private:.1f} MiB, PSS "
        f"{proportional:.1f} MiB"
    )
    await asyncio.sleep(1)
    before = [procfs.cpu_seconds(app.pid) or 0.0 for app in apps]
    await asyncio.sleep(3)
    after = [procfs.cpu_seconds(app.pid) or 0.0 for app in apps]
    idle = (sum(after) - sum(before)) / 3 / count
    print(f"idle {entrypoint}: {idle * 100:.3f} % of a core each")
    await asyncio.gather(*(app.stop(5) for app in apps))


async def crashes(lane: ProcessLane, count: int, data: Path) -> None:
    times = []
    for number in range(count):
        ended = asyncio.Event()
        app = await lane.start(launch("process_apps:small", number, data, lambda error, e=ended: e.set()))
        began = time.perf_counter()
        os.kill(app.pid, signal.SIGSEGV)
        await ended.wait()
        again = await lane.start(launch("process_apps:small", number, data))
        times.append(time.perf_counter() - began)
        await again.stop(5)
    print(f"crash → told → ready again: {quantiles(times)} ({count} rounds)")


async def rate(url: str, seconds: int, clients: int) -> tuple[float, str]:
    process = await asyncio.create_subprocess_exec(
        "wrk", "-t1", f"-c{clients}", f"-d{seconds}s", "--latency", url, stdout=asyncio.subprocess.PIPE
    )
    output, _ = await process.communicate()
    text = output.decode()
    found = re.search(r"Requests/sec:\s+([\d.]+)", text)
    p99 = re.search(r"99%\s+(\S+)", text)
    errors = re.search(r"(Non-2xx.*|Socket errors.*)", text)
    assert found is not None
    return float(found[1]), (p99[1] if p99 else "?") + (f" {errors[1]}" if errors else "")


async def requests(lane: ProcessLane, entrypoint: str, path: str, seconds: int, data: Path) -> None:
    router = Router()
    front = HttpFront("127.0.0.1", 0, router)
    _, port = await front.start()
    app = await lane.start(launch(entrypoint, 0, data))
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
        mine, bares = sorted(ours)[1], sorted(theirs)[1]
        print(
            f"requests {entrypoint}: through the node {mine[0]:.0f}/s (p99 {mine[1]}), bare uvicorn "
            f"{bares[0]:.0f}/s (p99 {bares[1]}), ratio {mine[0] / bares[0]:.2f}"
        )
    finally:
        bare.terminate()
        bare.wait()
        await app.stop(5)
        await front.stop(1)


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--guests", type=int, default=20)
    parser.add_argument("--starts", type=int, default=60)
    parser.add_argument("--seconds", type=int, default=4)
    options = parser.parse_args()
    lane = ProcessLane(ZYGOTE, lambda context, stream, line: None)
    began = time.perf_counter()
    await ZYGOTE.ready()
    assert ZYGOTE.pid is not None
    size = procfs.private_bytes(ZYGOTE.pid)
    print(
        f"zygote: ready after {time.perf_counter() - began:.2f} s more, "
        f"PSS {(size or (0, 0))[1] / 2**20:.0f} MiB"
    )
    with tempfile.TemporaryDirectory() as directory:
        data = Path(directory)
        for entrypoint in ("process_apps:small", "process_apps:fastapi20"):
            await starts(lane, entrypoint, options.starts, data)
            await memory(lane, entrypoint, options.guests, data)
        await crashes(lane, 20, data)
        if shutil.which("wrk"):
            await requests(lane, "process_apps:small", "/", options.seconds, data)
            await requests(lane, "process_apps:fastapi20", "/r3/7?q=x", options.seconds, data)
    await lane.close()


if __name__ == "__main__":
    import uvloop

    uvloop.run(main())
