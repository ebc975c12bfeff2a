"""Swaps of an app under a steady load: each updates its config, which starts a new generation beside the old.

Run as `python -m tests.bench.swaps [--quick]`.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from appsupervisor.catalog.v1 import app_catalog_pb2 as catalog
from tests.bench.end_to_end import running
from tests.bench.load import Load
from tests.bench.results import Row, at_most, quantile_row, row, table
from tests.e2e.stack import Stack

RATE = 1_000
APPS = {"small": "bench_apps:small", "fastapi20": "bench_apps:fastapi20"}


def swap(stack: Stack, app_id: str, number: int) -> float:
    """Change the app's config and wait until the new generation serves; return the seconds it took."""
    app = catalog.App(name=f"apps/{app_id}")
    app.config["turn"] = number
    request = catalog.UpdateAppRequest(app=app)
    request.update_mask.paths.append("config")
    start = time.perf_counter()
    stack.result(stack.apps.UpdateApp(request, timeout=30))
    return time.perf_counter() - start


def measure(quick: bool) -> list[Row]:
    """Return errors and latency during the swaps, and what a swap takes."""
    swaps, calm = (20, 2.0) if quick else (100, 5.0)
    rows = []
    with tempfile.TemporaryDirectory() as folder, running(Path(folder) / "stack") as stack:
        for name, entrypoint in APPS.items():
            stack.create(name, entrypoint)
            # An app of the size of fastapi20 uses most of a core at the full rate, on some machines.
            rate = RATE if name == "small" else RATE // 2
            with Load(stack.http_port(), f"{name}.localhost", rate=rate) as load:
                time.sleep(0.5)
                load.enter("calm")
                time.sleep(calm)
                load.enter("swaps")
                took = [swap(stack, name, number) for number in range(swaps)]
                load.enter("after")
                time.sleep(0.5)
                phases = load.end()
            assert stack.get(name).generation == swaps + 1
            errors = sum(phase.errors.total() for phase in phases.values())
            if errors:
                print(name, {phase: dict(seen.errors) for phase, seen in phases.items() if seen.errors})
            sent = sum(len(phase.latencies) for phase in phases.values())
            rows.append(
                row(f"{swaps} swaps of {name} under {rate:,} requests/s: errors of {sent:,} requests", errors,
                    "errors", target=at_most(0, "node"))
            )  # fmt: skip
            base = quantile_row("", phases["calm"].latencies, 0.99, "ms", scale=1e3).value
            rows.append(
                quantile_row("… p99 meanwhile, against p99 before", phases["swaps"].latencies, 0.99, "ms",
                             scale=1e3, base=base)
            )  # fmt: skip
            rows.append(quantile_row("… UpdateApp → swapped and drained, p50", took, 0.5, "ms", scale=1e3))
    return rows


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer swaps")
    print(table(measure(parser.parse_args().quick)))
