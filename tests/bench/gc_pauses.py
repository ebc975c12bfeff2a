"""How long garbage collection stops a process of many apps: Python's own settings against the policy.

Run as `python -m tests.bench.gc_pauses [--quick]`. Each kind is a process of its own: it starts that many
FastAPI instances of 20 routes, serves requests, stops and starts a tenth of them, and reports the pauses.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import logging
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tests.bench.results import Row, row, table

ROOT = Path(__file__).resolve().parents[2]
REQUESTS = 2_000


async def run(apps: int, with_policy: bool) -> dict[str, Any]:
    import httpx
    import psutil

    from runtime_node.context import AppContext
    from runtime_node.isolation import GCPolicy, attach, install
    from runtime_node.loader import Loader

    pauses: list[float] = []
    since = 0.0

    def note(phase: str, info: dict[str, int]) -> None:
        nonlocal since
        if phase == "start":
            since = time.perf_counter()
        else:
            pauses.append(time.perf_counter() - since)

    install()
    attach(asyncio.get_running_loop())
    loader = Loader([ROOT / "tests" / "apps" / "web"])
    policy = GCPolicy(lambda: False)
    if with_policy:
        policy.install()
    gc.callbacks.append(note)
    memory = psutil.Process()

    async def start(number: int) -> tuple[Any, Any]:
        code = loader.load("twenty_routes:create_app")
        context = AppContext(
            "a", f"apps/a/instances/{number}", 1, {}, {}, {}, None, ROOT, logging.getLogger("bench")
        )
        asgi = await code.build(context, threads=4)
        if with_policy:
            policy.started()
        return code, asgi

    first = [await start(-1)]
    before = memory.memory_info().rss
    began = time.perf_counter()
    running = [*first, *[await start(number) for number in range(apps - 1)]]
    took = time.perf_counter() - began
    grew = memory.memory_info().rss - before
    starting = max(pauses, default=0.0)
    if with_policy:
        policy.freeze()
    pauses.clear()
    for number in range(REQUESTS):
        transport = httpx.ASGITransport(running[number % apps][1])
        async with httpx.AsyncClient(transport=transport, base_url="http://t") as client:
            assert (await client.get("/cups")).status_code == 200
    serving = max(pauses, default=0.0)
    pauses.clear()
    freed = 0
    stops = []
    for number in range(apps // 10):
        code, _ = running.pop()
        del _
        since_stop = time.perf_counter()
        await asyncio.to_thread(code.release)
        stops.append(time.perf_counter() - since_stop)
        freed += code.freed
        policy.stopped(freed=code.freed, suspects=code.suspects)
        running.append(await start(10_000 + number))
        if with_policy:
            policy.tick()
    return {
        "apps": apps,
        "gc": "policy" if with_policy else "python",
        "KB per app": round(grew / max(1, apps - 1) / 1024),
        "ms per start": round(took / apps * 1e3, 1),
        "worst pause starting ms": round(starting * 1e3, 1),
        "worst pause serving ms": round(serving * 1e3, 1),
        "worst pause stop/start ms": round(max(pauses, default=0.0) * 1e3, 1),
        "freed at stop": f"{freed}/{apps // 10}",
        "stop p50 ms": round(sorted(stops)[len(stops) // 2] * 1e3, 1),
    }


def run_abandonable(kind: str, apps: int) -> dict[str, Any]:
    """Measure in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench.gc_pauses", "--kind", kind, str(apps)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'gen'}"},
        capture_output=True,
        text=True,
        check=True,
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def measure(quick: bool) -> list[Row]:
    """Return the worst pauses with the node's policy beside those of Python's own settings."""
    rows = []
    for apps in (100,) if quick else (100, 500):
        theirs, ours = run_abandonable("python", apps), run_abandonable("policy", apps)
        for phase in ("starting", "serving", "stop/start"):
            key = f"worst pause {phase} ms"
            what = f"worst collection, {apps} FastAPI apps, {phase}, against Python's own settings"
            rows.append(row(what, ours[key], "ms", base=theirs[key]))
    return rows


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="100 apps only")
    parser.add_argument("--kind", nargs=2, metavar=("KIND", "APPS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.kind:
        print(json.dumps(asyncio.run(run(int(options.kind[1]), options.kind[0] == "policy"))))
    else:
        print(table(measure(options.quick)))
