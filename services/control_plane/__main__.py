"""`python -m services.control_plane`: reads the settings, runs the server, exits 0 after a drain."""

from __future__ import annotations

import sys

from services.rpc import logs
from services.rpc.process import open_standard_descriptors


def main() -> int:
    """Run the control plane; return the exit status."""
    # Before anything is imported that opens files of its own.
    open_standard_descriptors()
    import uvloop  # noqa: PLC0415

    from services.control_plane.server import serve  # noqa: PLC0415
    from services.control_plane.settings import Settings  # noqa: PLC0415
    from services.control_plane.store.errors import StoreError  # noqa: PLC0415
    from services.rpc.errors import SupervisorError  # noqa: PLC0415

    settings = Settings.from_command_line()
    output = logs.configure(settings.log_level)
    try:
        uvloop.run(serve(settings))
    except (OSError, StoreError, SupervisorError) as refused:
        print(f"control plane: {refused}", file=sys.stderr)  # noqa: T201 - the one sentence of a failed start
        return 1
    finally:
        output.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
