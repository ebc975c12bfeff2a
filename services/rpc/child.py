"""Turns into the command it is given, after tying its life to that of its parent.

A file of its own, run without imports from here: between fork and exec a threaded parent may run no Python.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main() -> None:
    """Run `child.py PARENT_PID COMMAND...`."""
    parent, command = int(sys.argv[1]), sys.argv[2:]
    if sys.platform == "linux":
        # SIGTERM, not SIGKILL: a node whose launcher was killed still drains its apps.
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:
            sys.exit("the launcher ended before its child began")
    os.execv(command[0], command)  # noqa: S606 - the launcher's own command, without a shell


if __name__ == "__main__":
    main()
