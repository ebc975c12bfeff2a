"""How values that all apps of a process share are looked at and put back."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from runtime_node.isolation.current import TREE_KEY

_MISSING = object()
_PLAIN = (str, bytes, int, float, bool, tuple)


@dataclass(frozen=True, slots=True)
class Change:
    """One value that is not as it was, and how to deal with it."""

    name: str
    origin: str
    """The code location that the new value comes from, where it can be told, else empty."""
    put_back: Callable[[], None]
    accept: Callable[[], None]
    """Take the new value for the process's own."""
    packages_may: bool = False
    """Whether packages that all share change it when they are imported."""
    noted: bool = False
    """Whether `noting` tells who has changed it: nobody, then it was no app."""


class Watched(Protocol):
    """Values of one kind, and how they are when no app has touched them."""

    def changes(self) -> Iterator[Change]:
        """Yield what is not as it was. Cheap while nothing has changed."""
        ...


class Attributes:
    """Attributes of a module or a class. Where they are `fixed`, no package that all share replaces one."""

    def __init__(self, owner: Any, names: str, called: str = "", *, fixed: bool = False) -> None:
        self._owner = owner
        self._names = names.split()
        self._called = called or owner.__name__
        # The attributes of a module are watched as they are set, too.
        self._noted = not called
        self._fixed = fixed
        self._all_of = operator.itemgetter(*self._names)
        self._before = list(self._read())

    def _read(self) -> Sequence[Any]:
        attributes = vars(self._owner)
        if len(self._names) > 1:
            try:
                values: tuple[Any, ...] = self._all_of(attributes)
            except KeyError:
                pass  # one that is missing
            else:
                return values
        return [attributes.get(name, _MISSING) for name in self._names]

    def changes(self) -> Iterator[Change]:
        """Yield each attribute that is another one, or gone, or new."""
        now = self._read()
        if not any(map(operator.is_not, now, self._before)):
            return
        for index, (before, value) in enumerate(zip(self._before, now, strict=True)):
            # Of what can be changed in place an equal one is another one.
            if value is not before and not (type(value) in _PLAIN and value == before):
                yield self._change(index, before, value)

    def _change(self, index: int, before: Any, value: Any) -> Change:
        name = self._names[index]

        def put_back() -> None:
            if before is _MISSING:
                delattr(self._owner, name)
            else:
                setattr(self._owner, name, before)

        def accept() -> None:
            self._before[index] = value

        packages_may = not self._noted and (before is _MISSING or not self._fixed)
        called = f"{self._called}.{name}"
        return Change(called, origin_of(value), put_back, accept, packages_may, self._noted)


class Setting:
    """A value behind a pair of functions. `harmless(before, now)` tells a change that hurts nobody."""

    def __init__(
        self,
        name: str,
        get: Callable[[], Any],
        put: Callable[[Any], Any],
        harmless: Callable[[Any, Any], bool] = lambda before, now: False,
    ) -> None:
        self._name = name
        self._get = get
        self._put = put
        self._harmless = harmless
        self._before = get()

    def changes(self) -> Iterator[Change]:
        """Yield the value if it is another one, unless that hurts nobody."""
        now = self._get()
        if now == self._before:
            return
        if self._harmless(self._before, now):
            self._accept(now)
            return
        yield Change(self._name, "", lambda: self._put(self._before), lambda: self._accept(now))

    def _accept(self, now: Any) -> None:
        self._before = now


class Members:
    """A list of hooks that are tried in turn."""

    def __init__(self, name: str, get: Callable[[], list[Any]]) -> None:
        self._name = name
        self._get = get
        self._before = list(get())

    def changes(self) -> Iterator[Change]:
        """Yield the list if a member is new, gone or in another place."""
        members = self._get()
        now = list(members)
        if now == self._before:
            return
        new = [member for member in now if member not in self._before]
        origin = next((found for member in new if (found := origin_of(member))), "")

        def put_back() -> None:
            members[:] = self._before

        def accept() -> None:
            # What a package has added; that one of the others is gone is nobody's right.
            gone = [member for member in self._before if member not in now]
            self._before = [*now, *gone]
            if gone:
                members[:] = self._before

        yield Change(self._name, origin, put_back, accept, packages_may=bool(new))


class Required:
    """Members of a list that stay there, among whatever others. `members` returns the list as it is now."""

    def __init__(self, name: str, members: Callable[[], list[Any]], changed: Callable[[], None]) -> None:
        self._name = name
        self._members = members
        self._changed = changed
        self._before = list(members())

    def changes(self) -> Iterator[Change]:
        """Yield the list if one of them is gone."""
        now = self._members()
        gone = [member for member in self._before if member not in now]
        if not gone:
            return

        def put_back() -> None:
            self._members().extend(gone)
            self._changed()

        def accept() -> None:
            self._before = [member for member in self._before if member not in gone]

        yield Change(self._name, "", put_back, accept)


class Table:
    """A dictionary in which apps may add what is theirs, and must leave what is there."""

    def __init__(self, name: str, table: dict[Any, Any]) -> None:
        self._name = name
        self._table = table
        self._before = dict(table)

    def changes(self) -> Iterator[Change]:
        """Yield the table if something that was in it is gone or another."""
        if self._table == self._before:
            return
        now = dict(self._table)
        changed = {key: value for key, value in self._before.items() if now.get(key, _MISSING) is not value}
        self._before = {**now, **changed}
        if changed:
            origin = next((found for key in changed if (found := origin_of(now.get(key)))), "")
            yield Change(
                self._name,
                origin,
                lambda: self._table.update(changed),
                lambda: self._before.update({key: now[key] for key in changed if key in now}),
                packages_may=True,
            )


def origin_of(value: Any) -> str:
    """Return the code location that a function, a class or an object's class was defined in, or ""."""
    function = getattr(value, "__func__", value)
    names = getattr(function, "__globals__", None)
    if names is None:
        kind = value if isinstance(value, type) else type(value)
        init = next((part for part in vars(kind).values() if hasattr(part, "__globals__")), None)
        names = getattr(init, "__globals__", None)
    own = names.get("__builtins__") if isinstance(names, dict) else None
    tree = own.get(TREE_KEY) if isinstance(own, dict) else None
    return str(getattr(tree, "scope", ""))
