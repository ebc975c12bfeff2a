"""Keeps down what C libraries hold of memory: the allocator's arenas, buffers that were never written to.

Both are small change for one process, and most of what one more app with a thread costs.
"""

from __future__ import annotations

import ctypes
import mmap
from itertools import groupby

_PAGE = mmap.PAGESIZE
_ZEROS = bytes(_PAGE)
_M_ARENA_MAX = -8
ARENAS = 2
"""Nearly all that is allocated is so under the interpreter's lock, where one arena serves as well as many."""


def bound_arenas() -> None:
    """Have the threads of this process share two of glibc's arenas, where it would give the first eight per
    core one each, which grow apart. For the first moments of a process; does nothing with another libc."""
    if hasattr(_library, "gnu_get_libc_version"):
        _library.mallopt(_M_ARENA_MAX, ARENAS)


def give_back_zeros(thing: object) -> int:
    """Return how many bytes of an object's own memory were given back; 0 where the system can't take them.

    An event loop of uvloop has 250 KB for what it reads from sockets, and most apps read nothing with it.
    For a large object that was just made and that nobody else uses yet. Pages of private memory that hold
    zeros read as zeros after it, whatever they are for, and so nothing is changed by it.
    """
    advise = getattr(_library, "madvise", None)
    if advise is None or not hasattr(mmap, "MADV_DONTNEED"):
        return 0
    begin = id(thing)
    first = -(-begin // _PAGE) * _PAGE
    last = (begin + type(thing).__basicsize__) // _PAGE * _PAGE
    given = 0
    # Only whole pages inside of the object: what the allocator keeps before and behind it is left alone.
    for empty, run in groupby(range(first, last, _PAGE), _is_empty):
        pages = list(run)
        if empty and advise(pages[0], len(pages) * _PAGE, mmap.MADV_DONTNEED) == 0:
            given += len(pages) * _PAGE
    return given


def _is_empty(page: int) -> bool:
    return ctypes.string_at(page, _PAGE) == _ZEROS


_library = ctypes.CDLL(None)
if hasattr(_library, "madvise"):
    _library.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    _library.madvise.restype = ctypes.c_int
