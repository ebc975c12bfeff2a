"""`python -m runtime_node`: reads the settings, starts the zygote, then everything else."""

from __future__ import annotations

import logging
import sys

from runtime_node.lanes.process.zygote import Zygote
from runtime_node.memory import bound_arenas
from runtime_node.settings import read_settings
from services.rpc import logs


def main() -> int:
    """Run a node until it is told to end; return the exit status."""
    bound_arenas()
    settings = read_settings()
    logs.configure(settings.log_level)
    # The zygote loads its modules while the node loads its own, which take about as long.
    zygote = Zygote.launch(settings.app_dirs)
    import uvloop  # noqa: PLC0415

    from runtime_node.server import DataDirectoryTaken, run_node  # noqa: PLC0415

    try:
        uvloop.run(run_node(settings, zygote))
    except (DataDirectoryTaken, OSError) as refused:
        logging.getLogger("runtime_node").error("%s", refused, extra={"action": "node.refused"})
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
