"""`python -m services.control_plane`: reads the settings, runs the server, exits 0 after a drain."""

import sys

import uvloop

from services.control_plane.server import serve
from services.control_plane.settings import Settings
from services.control_plane.store.errors import StoreError
from services.rpc import logs
from services.rpc.errors import SupervisorError


def main() -> None:
    """Run the control plane."""
    settings = Settings.from_command_line()
    logs.configure(settings.log_level)
    try:
        uvloop.run(serve(settings))
    except (OSError, StoreError, SupervisorError) as refused:
        sys.exit(f"control plane: {refused}")


if __name__ == "__main__":
    main()
