"""Every benchmark in one run, each in a process of its own and bounded in time, and one table at the end.

Run as `python -m tests.bench [--quick] [--only NAME …] [--list]`.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.bench.results import Row, table

ROOT = Path(__file__).resolve().parents[2]
BUSY = 1.0
"""Load average above which figures are not to be trusted."""


@dataclass(frozen=True, slots=True)
class Bench:
    """A benchmark: its module's name, what it tells, and the seconds it may take, quick and in full."""

    name: str
    about: str
    quick: float
    full: float


BENCHES = (
    Bench("catalog", "reads beside an empty coroutine, durable creates on SQLite and PostgreSQL", 120, 420),
    Bench("store_writes", "durable writes of the store, opening it", 30, 120),
    Bench("catalog_size", "memory and start of a full catalog", 30, 150),
    Bench("many_apps", "a control plane with 200,000 stopped apps beside one with 5,000", 90, 300),
    Bench("end_to_end", "CreateApp to first 200, memory and start of one more app, beside uvicorn", 60, 240),
    Bench("node_http", "requests through the node against bare uvicorn, with 1 to 10,000 apps", 45, 150),
    Bench("gateway", "the gateway's Envoy beside plain nginx, one change among 10,000 apps", 60, 120),
    Bench("process_tier", "start, memory, crash and requests of the PROCESS tier", 45, 120),
    Bench("watchers", "from a change to 1 and to 500 watchers, memory of an idle one", 40, 150),
    Bench("restart", "the control plane with a full catalog: restart, cost of a change", 40, 120),
    Bench("fleet", "a control plane with simulated nodes: placing, rest, one change, its restart", 120, 1500),
    Bench("node_loss", "kill -9 of a node of apps on PostgreSQL, until each serves elsewhere", 90, 240),
    Bench("drain", "a node of 1,000 apps is drained under requests to all of them", 120, 400),
    Bench("leaders", "faults of the leader of two control planes: commands, apps and operations", 150, 240),
    Bench("swaps", "swaps of an app under a steady load", 30, 90),
    Bench("data_moves", "moves of an app with its SQLite database under a writing client", 60, 240),
    Bench("dormancy", "first requests to dormant apps, bursts, a node full of them", 45, 180),
    Bench("cycles", "what many starts and stops leave behind", 60, 360),
    Bench("noisy_neighbours", "what hogs of every kind cost their neighbours", 90, 180),
    Bench("crashes", "what neighbours feel of a PROCESS guest's end", 40, 120),
    Bench("gc_pauses", "how long garbage collection stops a node of many apps", 30, 150),
)


def facts() -> None:
    """Print what the figures depend on."""
    load = os.getloadavg()
    model = ""
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line for line in lines if line.startswith("model name")).partition(":")[2].strip()
    print(f"machine: {os.cpu_count()} cores {model}, {platform.system()} {platform.release()}")
    print(f"python: {platform.python_implementation()} {platform.python_version()}")
    print(f"load average before: {load[0]:.2f} {load[1]:.2f} {load[2]:.2f}", flush=True)
    if load[0] > BUSY:
        print(f"WARNING: the load average is above {BUSY:g}; what else runs is in the figures", flush=True)


def run(bench: Bench, quick: bool, folder: Path) -> tuple[list[Row], str]:
    """Run one benchmark in a process of its own; return its rows and, if it failed, why."""
    limit = bench.quick if quick else bench.full
    out, log = folder / f"{bench.name}.json", folder / f"{bench.name}.log"
    own = folder / bench.name
    own.mkdir()
    command = [sys.executable, "-m", "tests.bench", "--measure", bench.name, "--out", str(out)]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, *(["--quick"] if quick else [])],
            cwd=ROOT, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
            start_new_session=True,
            env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'gen'}", "TMPDIR": str(own)},
        )  # fmt: skip
        failure = ""
        try:
            if process.wait(limit) != 0:
                failure = f"ended with code {process.returncode}"
        except subprocess.TimeoutExpired:
            failure = f"killed: not done within {limit:g} s"
        finally:
            end(process)
    if failure:
        tail = log.read_text(errors="replace").strip().splitlines()[-12:]
        return [], "\n    ".join([failure, *tail])
    return [Row(**values) for values in json.loads(out.read_text())], ""


def end(process: subprocess.Popen[bytes]) -> None:
    """End a benchmark and what it started in its session; what has a session of its own follows it."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def measure(name: str, quick: bool, out: Path) -> None:
    """Run one benchmark in this process and write its rows."""
    rows: list[Row] = importlib.import_module(f"tests.bench.{name}").measure(quick)
    out.write_text(json.dumps([asdict(one) for one in rows]))


def main() -> int:
    names = [bench.name for bench in BENCHES]
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer rounds; under 4 minutes in all")
    parser.add_argument("--only", nargs="+", choices=names, metavar="NAME", help="only these")
    parser.add_argument("--list", action="store_true", help="name the benchmarks and end")
    parser.add_argument("--measure", choices=names, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        measure(options.measure, options.quick, options.out)
        return 0
    chosen = [bench for bench in BENCHES if not options.only or bench.name in options.only]
    if options.list:
        for bench in chosen:
            print(f"{bench.name:<18}{bench.about}")
        return 0
    facts()
    rows: list[Row] = []
    failures: dict[str, str] = {}
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="bench-") as directory:
        for bench in chosen:
            print(f"{bench.name}: {bench.about} …", end=" ", flush=True)
            start = time.monotonic()
            found, failure = run(bench, options.quick, Path(directory))
            print(f"{time.monotonic() - start:.0f} s{', FAILED' if failure else ''}", flush=True)
            rows += found
            if failure:
                failures[bench.name] = failure
            else:  # what it could not measure, and why
                for line in (
                    (Path(directory) / f"{bench.name}.log").read_text(errors="replace").splitlines()[-5:]
                ):
                    print(f"    {line}")
    load = os.getloadavg()[0]
    print(f"\nin all {time.monotonic() - began:.0f} s, load average at the end {load:.2f}\n")
    print(table(rows))
    judged = [one for one in rows if one.met is not None]
    print(f"\n{sum(one.met is True for one in judged)} of {len(judged)} targets met")
    for name, failure in failures.items():
        print(f"\n{name}: not measured: {failure}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
