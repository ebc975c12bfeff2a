"""Which instance the running code belongs to, wherever it runs: tasks, threads, callbacks."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import FrameType

CURRENT_INSTANCE: ContextVar[str] = ContextVar("appsupervisor_current_instance", default="")
"""Resource name of the instance (`AppContext.instance`); empty for the node's own code."""

LOADING_FOR: ContextVar[str] = ContextVar("appsupervisor_loading_for", default="")
"""The instance for which code is being imported, whose side effects belong to the code's location."""

TREE_KEY = "__module_tree__"
"""The name under which the builtins of an app's private modules tell their tree."""

_MOST_FRAMES = 200


@contextmanager
def running_as(instance: str) -> Iterator[None]:
    """Let what this block does count as the instance's."""
    token = CURRENT_INSTANCE.set(instance)
    try:
        yield
    finally:
        CURRENT_INSTANCE.reset(token)


def acting_instance() -> str:
    """Return the instance that a side effect of the calling code belongs to, or "".

    What a shared package does while it is imported belongs to the process, even if an app was the first to
    import it: undoing that at the app's stop would break the package for everyone else.
    """
    instance = CURRENT_INSTANCE.get()
    if not instance:
        return ""
    frame: FrameType | None = sys._getframe(2)
    for _ in range(_MOST_FRAMES):
        if frame is None or TREE_KEY in frame.f_builtins:
            break
        # The name first: this is asked for each field of an app of FastAPI, ten frames deep.
        if frame.f_code.co_name == "<module>" and is_import(frame):
            return ""
        frame = frame.f_back
    return instance


def is_import(frame: FrameType) -> bool:
    """Tell whether a frame is that of a module being imported, which all will share.

    What is run like a module but is none that others could import, as the `env.py` of Alembic's migrations,
    is its app's.
    """
    if frame.f_code.co_name != "<module>":
        return False
    name = frame.f_globals.get("__name__")
    module = sys.modules.get(name) if isinstance(name, str) and name != "__main__" else None
    return getattr(module, "__dict__", None) is frame.f_globals
