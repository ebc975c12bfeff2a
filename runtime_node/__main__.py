"""`python -m runtime_node`: reads the settings, starts the zygote, then everything else."""

from __future__ import annotations

import logging
import resource
import sys

from runtime_node.memory import bound_arenas
from services.rpc import logs
from services.rpc.process import open_standard_descriptors

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
    """Run a node until it is told to end; return the exit status of one that could not start."""
    # Before anything is imported that opens files of its own.
    open_standard_descriptors()
    bound_arenas()
    from runtime_node.settings import read_settings  # noqa: PLC0415
    from runtime_node.tiers.process.zygote import Zygote  # noqa: PLC0415

    settings = read_settings()
    output = logs.configure(settings.log_level, settings.log_format)
    allow_open_files()
    # The zygote loads its modules while the node loads its own, which take about as long.
    zygote = Zygote.launch(settings.app_dirs, settings.preload)
    import asyncio  # noqa: PLC0415

    import uvloop  # noqa: PLC0415

    from runtime_node.data_directory import DataDirectoryError  # noqa: PLC0415
    from runtime_node.process_end import end_process  # noqa: PLC0415
    from runtime_node.server import run_node  # noqa: PLC0415

    status = 0
    runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)
    try:
        # Not closed: that waits for threads that apps and the disk may hold up for ever.
        runner.run(run_node(settings, zygote))
    except (DataDirectoryError, OSError) as refused:
        logging.getLogger("runtime_node").error("%s", refused, extra={"action": "node.refused"})
        status = 1
    except BaseException:
        logging.getLogger("runtime_node").exception("the node failed", extra={"action": "node.failed"})
        status = 1
    end_process(status, output)


if __name__ == "__main__":
    sys.exit(main())
