"""What code there is on disk for an entrypoint: a digest of its files, and when the newest was changed.

Its files are those of its own top-level module or package, and of those beside it that they name. Each file
is read once for each state of it; a look that finds nothing new costs a stat a file. Imports nothing.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
import time
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from importlib.machinery import PathFinder
from pathlib import Path

CODE_SUFFIXES = frozenset(
    {".html", ".j2", ".jinja", ".jinja2", ".json", ".py", ".pyc", ".pyd", ".pyx", ".so", ".sql", ".toml"}
    | {".yaml", ".yml"}
)
"""What is taken for code: modules, and what apps load once as they do those."""

MOST_FILES = 2_000
MOST_ENTRIES = 10_000
"""Names in directories that one look goes through, of whatever kind."""
MOST_BYTES = 32 << 20
MOST_KNOWN = 64
"""Entrypoints' packages whose files are remembered; of others each look reads all."""

_MAYBE = CODE_SUFFIXES | {""}
_LEFT_OUT = frozenset({"__pycache__", "node_modules", "site-packages"})
_WORD = re.compile(rb"[A-Za-z_\x80-\xff][\w\x80-\xff]*")
# A file may be written again within one tick of its file system's clock, the coarsest of which has 2 s.
_FRESH_NS = 2_000_000_000


@dataclass(frozen=True, slots=True)
class CodeState:
    """The code of an entrypoint as it was at one look."""

    digest: str
    """SHA-256 over the names and contents of its files, hexadecimal."""
    modified: int
    """When the newest of its files was changed, nanoseconds since the Unix epoch."""
    installed: bool = False
    """It is an installed package, which a process loads once."""
    distribution: str = ""
    """Name and version of what an installed package came with."""
    partial: bool = False
    """There is more of it than a look reads."""


@dataclass(frozen=True, slots=True)
class _File:
    stamp: tuple[int, ...]
    read_at: int
    digest: str
    names: frozenset[str]
    """Modules and directories beside the package that the file may mean: their names stand in it."""

    def is_of(self, stamp: tuple[int, ...]) -> bool:
        return self.stamp == stamp and self.read_at - max(stamp[:2]) > _FRESH_NS


@dataclass(slots=True)
class _Known:
    beside: frozenset[str] = frozenset()
    files: Mapping[str, _File] | None = None
    state: CodeState | None = None


class CodeFiles:
    """Looks at code on disk; blocks on it, and belongs to one thread at a time."""

    def __init__(self, clock: Callable[[], int] = time.time_ns) -> None:
        """`clock` gives nanoseconds since the Unix epoch."""
        self._clock = clock
        self._known: OrderedDict[tuple[Path | None, str], _Known] = OrderedDict()

    def look(self, directory: Path | None, top: str) -> CodeState | None:
        """Return the state of the code that top-level module `top` of a directory means, or, with None, of
        the installed one; None if there is none. What cannot be read is left out.
        """
        places = _places(directory, top)
        known = self._known.pop((directory, top), None) or _Known()
        beside = frozenset(places)
        files = known.files if known.files is not None and known.beside == beside else {}
        walk = _Walk(places, files, self._clock())
        walk.go(top)
        state = None
        if walk.files:
            digest = walk.digest()
            if known.state is not None and known.state.digest == digest:
                distribution = known.state.distribution
            else:
                distribution = "" if directory is not None else _distribution(top, places[top][0])
            state = CodeState(
                digest=digest,
                modified=max(file.stamp[0] for file in walk.files.values()),
                installed=directory is None,
                distribution=distribution,
                partial=walk.partial,
            )
        self._known[directory, top] = _Known(beside, walk.files, state)
        while len(self._known) > MOST_KNOWN:
            self._known.popitem(last=False)
        return state


class _Walk:
    """One look at the files of one package, and of what they lead to."""

    def __init__(self, places: Mapping[str, list[str]], known: Mapping[str, _File], now: int) -> None:
        self._places = places
        self._known = known
        self._now = now
        self._entries = 0
        self._bytes = 0
        self.files: dict[str, _File] = {}
        """By name below the directory."""
        self.partial = False

    def go(self, top: str) -> None:
        """Look at what `top` is, and at what its files name, until there is no more or a bound is met."""
        waiting, seen = deque([top]), {top}
        while waiting:
            for place in self._places.get(waiting.popleft(), ()):
                base = len(os.path.dirname(place)) + 1
                for path, status in self._below(place):
                    if len(self.files) == MOST_FILES or self._bytes + status.st_size > MOST_BYTES:
                        self.partial = True
                        continue
                    self._bytes += status.st_size
                    file = self._look_at(path[base:], path, status)
                    if file is not None and not file.names <= seen:
                        waiting.extend(sorted(file.names - seen))
                        seen |= file.names

    def digest(self) -> str:
        """Return the digest of all files that were found."""
        lines = (f"{file.digest} {name}\n" for name, file in sorted(self.files.items()))
        return hashlib.sha256("".join(lines).encode(errors="surrogateescape")).hexdigest()

    def _below(self, place: str) -> Iterator[tuple[str, os.stat_result]]:
        """Yield the files of code at and below a path, in a fixed order. Links are followed, each once."""
        waiting, been = [place], set[tuple[int, int]]()
        while waiting:
            path = waiting.pop()
            self._entries += 1
            if self._entries > MOST_ENTRIES:
                self.partial = True
                return
            try:
                status = os.stat(path)
                if stat.S_ISREG(status.st_mode):
                    if path.rfind(".") > path.rfind(os.sep):
                        yield path, status
                elif stat.S_ISDIR(status.st_mode) and (status.st_dev, status.st_ino) not in been:
                    been.add((status.st_dev, status.st_ino))
                    names = sorted(filter(_counts, os.listdir(path)), reverse=True)
                    waiting += [os.path.join(path, name) for name in names]
            except OSError:
                continue

    def _look_at(self, name: str, path: str, status: os.stat_result) -> _File | None:
        stamp = (status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino)
        file = self._known.get(name)
        if file is None or not file.is_of(stamp):
            try:
                file = _read(path, stamp, self._places, self._now)
            except OSError:
                return None
        self.files[name] = file
        return file


def _read(path: str, stamp: tuple[int, ...], beside: Mapping[str, object], now: int) -> _File:
    with open(path, "rb") as opened:
        content = opened.read(MOST_BYTES)
    # Any mention counts: Django's settings, for one, name modules in strings.
    names = (
        frozenset(word for word in map(os.fsdecode, set(_WORD.findall(content))) if word in beside)
        if path.endswith(".py") and len(beside) > 1
        else frozenset[str]()
    )
    return _File(stamp, now, hashlib.sha256(content).hexdigest(), names)


def _distribution(top: str, place: str) -> str:
    """Return the name and version of what brought an installed package, by the lists of files beside it."""
    # Not `packages_distributions`, which reads and takes apart all there is, for more than half a second.
    begins = tuple(f"\n{top}{end}".encode() for end in ("/", ".py,", "."))
    for info in sorted(Path(place).parent.glob("*.dist-info")):
        try:
            listed = b"\n" + (info / "RECORD").read_bytes()
        except OSError:
            continue
        if any(begin in listed for begin in begins):
            found = metadata.Distribution.at(info)
            return f"{found.name} {found.version}"
    return ""


def _places(directory: Path | None, top: str) -> Mapping[str, list[str]]:
    """Return the paths of what may belong to a package, by the name that code would call each by."""
    if directory is None:
        found = PathFinder.find_spec(top)
        if found is None:
            return {}
        packages = list(found.submodule_search_locations or ())
        return {top: packages or [found.origin or ""]}
    places: defaultdict[str, list[str]] = defaultdict(list)
    try:
        names = sorted(os.listdir(directory))
    except OSError:
        return {}
    for name in filter(_counts, names):
        places[name.partition(".")[0]].append(os.path.join(directory, name))
    return places


def _counts(name: str) -> bool:
    """Tell whether a name in a directory can be of code: what has no suffix may be a directory."""
    return name[0] != "." and name not in _LEFT_OUT and os.path.splitext(name)[1] in _MAYBE
