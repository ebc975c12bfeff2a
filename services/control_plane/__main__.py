"""`python -m services.control_plane`: reads the settings, runs the server, exits 0 after a drain."""

from __future__ import annotations

import gc
import logging
import os
import sys

from services.rpc import logs
from services.rpc.process import collector_paused, open_standard_descriptors


def main() -> int:
    """Run the control plane; return the exit status."""
    # Before anything is imported that opens files of its own.
    open_standard_descriptors()
    # To look for plugins, pydantic reads what every installed package says of itself; ours need none.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    with collector_paused():
        import uvloop  # noqa: PLC0415

        from services.control_plane.server import serve  # noqa: PLC0415
        from services.control_plane.settings import Settings  # noqa: PLC0415
        from services.control_plane.store.errors import StoreError  # noqa: PLC0415
        from services.rpc.errors import SupervisorError  # noqa: PLC0415
    gc.freeze()

    settings = Settings.from_command_line()
    output = logs.configure(settings.log_level, settings.log_format)
    log = logging.getLogger("appsupervisor.control_plane")
    try:
        uvloop.run(serve(settings))
    except (OSError, StoreError, SupervisorError) as refused:
        log.error("%s", refused, extra={"action": "control_plane.refused"})
        return 1
    except Exception:
        # Told before the output is closed: what the interpreter prints after that reaches nobody.
        log.exception("the control plane failed", extra={"action": "control_plane.failed"})
        return 1
    finally:
        output.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
