"""One syntax tree at a time, where Python mixes up those of several threads."""

from __future__ import annotations
import __future__

import ast
import builtins
import sys
import threading
from functools import reduce
from operator import or_
from typing import Any

_FUTURE = reduce(or_, (getattr(__future__, name).compiler_flag for name in __future__.all_feature_names))


def install() -> None:
    """Let `compile` build one syntax tree at a time, for this process; from Python 3.12 on it need not.

    Python 3.11 counts the depth of all threads' trees in one place (gh-106905): of two built at once, both
    may raise SystemError. The node reads apps' sources, and what apps import builds trees, too: anyio is one.
    """
    if sys.version_info >= (3, 12):
        return
    original: Any = builtins.compile
    # One that a finalizer builds within another of the same thread must not wait for itself.
    turn = threading.RLock()

    def compile_in_turn(
        source: Any,
        filename: Any,
        mode: str,
        flags: int = 0,
        dont_inherit: bool = False,
        optimize: int = -1,
        **more: Any,
    ) -> Any:
        if not dont_inherit:
            flags |= sys._getframe(1).f_code.co_flags & _FUTURE
        if not flags & ast.PyCF_ONLY_AST:
            return original(source, filename, mode, flags, True, optimize, **more)
        with turn:
            return original(source, filename, mode, flags, True, optimize, **more)

    builtins.compile = compile_in_turn
