"""What neighbours feel while a PROCESS guest crashes, runs out of memory or holds its interpreter's lock.

Run as `python -m tests.bench.crashes [--quick]`. The neighbour is a SHARED app of the same node under a
steady load; the guest comes back by its restart policy.
"""

from __future__ import annotations

import argparse
import http.client
import tempfile
import time
from pathlib import Path

from google.protobuf.duration_pb2 import Duration

from appsupervisor.runtime.v1 import runtime_environment_pb2 as runtime
from tests.bench.end_to_end import first_answer, running
from tests.bench.load import Load
from tests.bench.results import Row, at_most, quantile, quantile_row, row, table

RATE = 500
BACKOFF = 0.01
"""Seconds before a restart, which are not the node's to save."""


def ask(port: int, path: str, timeout: float) -> None:
    """Ask the guest to do its worst; whatever comes of it is right."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    try:
        connection.request("GET", path, headers={"Host": "guest.localhost"})
        connection.getresponse().read()
    except (OSError, http.client.HTTPException):
        pass
    finally:
        connection.close()


def measure(quick: bool) -> list[Row]:
    """Return the neighbour's errors and p99 in each phase, and the guest's way back."""
    times, seconds = (20, 3) if quick else (60, 10)
    backoff = Duration(nanos=int(BACKOFF * 1e9))
    policy = runtime.RestartPolicy(max_restarts=1000, min_backoff=backoff, max_backoff=backoff)
    limits = runtime.Limits(memory_bytes=128 << 20, block_action=runtime.Limits.REPORT)
    limits.block_budget.seconds = limits.request_timeout.seconds = 60
    back: dict[str, list[float]] = {"segfault": [], "memory": []}
    with tempfile.TemporaryDirectory() as folder, running(Path(folder) / "stack") as stack:
        stack.create("neighbour", "bench_apps:small")
        stack.create(
            "guest", "bench_apps:hostile",
            isolation=runtime.InstanceSpec.PROCESS, restart_policy=policy, limits=limits,
        )  # fmt: skip
        port = stack.http_port()
        with Load(port, "neighbour.localhost", rate=RATE) as load:
            time.sleep(0.5)
            load.enter("calm")
            time.sleep(seconds)
            for kind, came_back in back.items():
                load.enter(kind)
                for _ in range(times if kind == "segfault" else max(2, times // 4)):
                    ask(port, f"/{kind}", 30)
                    ended = time.perf_counter()
                    first_answer(port, "guest.localhost")
                    came_back.append(time.perf_counter() - ended)
            for kind in ("hold", "burn"):
                load.enter(kind)
                ask(port, f"/{kind}/{seconds * 1000}", seconds + 30)
            phases = load.end()
    calm = quantile(phases["calm"].latencies, 0.99) * 1e3
    names = {
        "segfault": f"segfaults ({len(back['segfault'])})",
        "memory": f"runs out of memory ({len(back['memory'])})",
        "hold": f"holds the GIL {seconds} s, asleep in C",
        "burn": f"holds the GIL {seconds} s, at work in C",
    }
    rows = []
    for kind, name in names.items():
        phase = phases[kind]
        if phase.errors:
            print(name, dict(phase.errors))
        failures = phase.errors.total()
        what = f"neighbour while a PROCESS guest {name}"
        rows.append(
            row(
                f"{what}: failures of {len(phase.latencies):,}", failures, "errors", target=at_most(0, "node")
            )
        )
        p99 = quantile(phase.latencies, 0.99) * 1e3
        rows.append(row("… p99, against p99 in calm", p99, "ms", base=calm))
        rows.append(row("… p99 beyond that in calm", p99 - calm, "ms", target=at_most(2, "node")))
        if kind in back:
            after = [max(0.0, seconds - BACKOFF) for seconds in back[kind]]
            rows.append(
                quantile_row("… guest answers again after its backoff, worst", after, 1.0, "ms", scale=1e3,
                             target=at_most(150, "node"))
            )  # fmt: skip
    return rows


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer and shorter rounds")
    print(table(measure(parser.parse_args().quick)))
