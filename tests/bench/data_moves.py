"""Moves of an app with its SQLite database under a writing client: how long it is held, and what is lost.

Run as `python -m tests.bench.data_moves [--quick]`. The client keeps to the address that it knows.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from appsupervisor.catalog.v1 import app_catalog_pb2 as catalog
from appsupervisor.runtime.v1.runtime_environment_pb2 import InstanceSpec
from tests.bench.results import Row, at_most, row, table
from tests.e2e.stack import ROOT, Stack, eventually
from tests.e2e.test_data_moves import ENTRYPOINT, Writer, home_of, move, other, rows_at

MOVES = 3


def measure(quick: bool) -> list[Row]:
    """Return what moves of a database of 1 GB, or of 100 MB, have cost."""
    mebibytes = 100 if quick else 1000
    with tempfile.TemporaryDirectory() as folder:
        stack = Stack(Path(folder) / "stack", app_dirs=(ROOT / "tests/apps/travel",))
        try:
            stack.start()
            stack.add_node("node-2")
            for node in ("node-1", "node-2"):
                eventually(lambda node=node: stack.is_ready(node), f"{node} is ready")
            return _moved(stack, mebibytes)
        finally:
            stack.channel.close()
            for process in (*stack.nodes.values(), stack.control_plane):
                process.clean_up()


def _moved(stack: Stack, mebibytes: int) -> list[Row]:
    app = catalog.App()
    app.config.update({"padding_mib": mebibytes})
    app.limits.start_timeout.seconds = 300
    app.limits.block_budget.seconds = 10
    stack.create("shop", ENTRYPOINT, isolation=InstanceSpec.SHARED, config=app.config, limits=app.limits)
    held, rates, lost, failed, sent = [], [], 0, 0, 0
    for _ in range(MOVES):
        home = home_of(stack, "shop")
        with Writer(stack, "shop", home, begin=sent + 1) as writer:
            writer.goes_on()
            told = stack.result(move(stack, "shop", other(home)), 600).data_move
            writer.goes_on()
        eventually(lambda home=home: home_of(stack, "shop") == other(home), "it serves at its new node")
        lost += len(set(writer.acknowledged) - rows_at(stack, "shop", other(home)))
        failed += len(writer.failures)
        if writer.failures:
            print(f"failed: {sorted(writer.failures)}")
        sent = max(writer.acknowledged)
        held.append(told.hold_duration.ToMicroseconds() / 1e3)
        rates.append(told.copied_bytes / max(1, told.copy_duration.ToMicroseconds()))
    what = f"MoveApp of a SQLite app of {mebibytes:,} MiB under writes"
    return [
        row(f"{what}: requests held until they are forwarded", held, "ms", target=at_most(250, "fleet")),
        row(f"… failed requests of {sent:,}", failed, "requests", target=at_most(0, "fleet")),
        row("… acknowledged rows that are missing", lost, "rows", target=at_most(0, "fleet")),
        row("… copied while it served", rates, "MB/s"),
    ]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a database of 100 MB")
    print(table(measure(parser.parse_args().quick)))
