"""How long garbage collection stops a process of many apps: Python's own settings against the policy.

Run with `python tests/bench/gc_pauses.py [apps …]`. Each row is a process of its own: it starts that many
FastAPI instances of 20 routes, serves requests, stops and starts a tenth of them, and reports the pauses.
"""

from __future__ import annotations

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

ROOT = Path(__file__).resolve().parents[2]
REQUESTS = 2_000


async def measure(apps: int, with_policy: bool) -> dict[str, Any]:
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


def main() -> None:
    if len(sys.argv) == 3 and sys.argv[1] in {"python", "policy"}:
        print(json.dumps(asyncio.run(measure(int(sys.argv[2]), sys.argv[1] == "policy"))))
        return
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'gen'}"}
    for apps in [int(text) for text in sys.argv[1:]] or [100, 300, 1_000]:
        for kind in ("python", "policy"):
            done = subprocess.run(
                [sys.executable, __file__, kind, str(apps)],
                env=environment,
                capture_output=True,
                text=True,
                check=True,
            )
            row = json.loads(done.stdout)
            print("  ".join(f"{key}={value}" for key, value in row.items()), flush=True)


if __name__ == "__main__":
    main()
