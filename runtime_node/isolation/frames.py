"""Where every thread of the process stands, without the danger of stopping it for good.

CPython fills in the answer under a lock that also every start of a thread takes. A collection that begins
meanwhile runs Python code, which lets others run; one of these that starts a thread then waits for the lock
with the interpreter in its hands, for ever. gh-106883 tells of it; seen with 3.11.7, 3.12.1 and 3.13.0.
"""

from __future__ import annotations

import gc
import sys
import threading
from types import FrameType

_original = sys._current_frames
# The one that apps are refused.
_disable = gc.disable
_turn = threading.Lock()


def current_frames() -> dict[int, FrameType]:
    """Return each thread's innermost frame by the thread's ident, as `sys._current_frames` does."""
    with _turn:  # one that ends here must not allow collections to one that has just begun
        allowed = gc.isenabled()
        _disable()
        try:
            return _original()
        finally:
            if allowed:
                gc.enable()


def install() -> None:
    """Have apps of this process ask in this way, too."""
    sys._current_frames = current_frames
