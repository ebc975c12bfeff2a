"""`python -m runtime_node`: reads the settings, starts the zygote, then everything else."""

from __future__ import annotations

import logging
import resource
import sys

from runtime_node.memory import bound_arenas
from runtime_node.settings import read_settings
from runtime_node.tiers.process.zygote import Zygote
from services.rpc import logs

MAX_OPEN_FILES = 65_536


def allow_open_files() -> None:
    """Raise the soft bound of open files, which is 1,024 on most systems, as far as the hard one lets it.

    Clients' connections alone may take ten times as many, and then nobody reaches the node's API either.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, MAX_OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def main() -> int:
    """Run a node until it is told to end; return the exit status."""
    bound_arenas()
    settings = read_settings()
    logs.configure(settings.log_level)
    allow_open_files()
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
