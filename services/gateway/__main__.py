"""`python -m services.gateway`: reads the settings, runs the gateway, exits 0 after a drain."""

from __future__ import annotations

import asyncio
import logging
import sys

from services.rpc import logs
from services.rpc.process import open_standard_descriptors


def main() -> int:
    """Run the gateway; return the exit status."""
    # Before anything is imported that opens files of its own.
    open_standard_descriptors()
    from services.gateway.server import serve  # noqa: PLC0415
    from services.gateway.settings import Settings  # noqa: PLC0415
    from services.rpc.errors import SupervisorError  # noqa: PLC0415

    settings = Settings.from_command_line()
    output = logs.configure(settings.log_level, settings.log_format)
    log = logging.getLogger("appsupervisor.gateway")
    try:
        # The standard loop: what it starts and watches is a process of its own, and calls are few.
        asyncio.run(serve(settings))
    except (OSError, SupervisorError) as refused:
        log.error("%s", refused, extra={"action": "gateway.refused"})
        return 1
    except Exception:
        # Told before the output is closed: what the interpreter prints after that reaches nobody.
        log.exception("the gateway failed", extra={"action": "gateway.failed"})
        return 1
    finally:
        output.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
