"""`sys.stdin`, `sys.stdout` and `sys.stderr` per instance: what an app puts there takes its own output alone.

Reading or setting the attribute of `sys` goes by the running instance. `print`, tracebacks and C code look
into the module's dictionary, where a stream lies that hands everything on to whichever is the instance's.
"""

from __future__ import annotations

import io
import sys
from types import ModuleType
from typing import Any

from runtime_node.isolation.current import acting_instance
from runtime_node.isolation.noting import NotingModule
from runtime_node.isolation.per_instance import PerInstance

_NAMES = ("stdin", "stdout", "stderr")
_own: dict[str, PerInstance[Any]] = {name: PerInstance(name) for name in _NAMES}


class _Nowhere(io.TextIOBase):
    """Takes what is written in a process that was started without the stream."""

    def write(self, text: str, /) -> int:
        return len(text)


_NOWHERE = _Nowhere()


class _Dispatch:
    """Lies in the dictionary of `sys`: stands for the stream of whoever runs."""

    def __init__(self, name: str, for_all: Any) -> None:
        self.__dict__.update(_name=name, for_all=for_all)

    def __getattr__(self, attribute: str) -> Any:
        stream = _current(self)
        return getattr(_NOWHERE if stream is None else stream, attribute)

    def __setattr__(self, attribute: str, value: Any) -> None:
        setattr(_current(self), attribute, value)

    def __iter__(self) -> Any:
        return iter(_current(self))


def _current(dispatch: _Dispatch) -> Any:
    stream = _own[dispatch._name].here()
    return dispatch.for_all if stream is None else stream


def _stream(name: str) -> property:
    def get(module: ModuleType) -> Any:
        found = module.__dict__[name]
        # What lies there is not given away: a stream that is built around it would hand on to itself.
        return _current(found) if type(found) is _Dispatch else found

    def put(module: ModuleType, stream: Any) -> None:
        found = module.__dict__.get(name)
        if type(found) is not _Dispatch:
            module.__dict__[name] = _Dispatch(name, stream)
            return
        instance = acting_instance()
        if not instance:
            found.__dict__["for_all"] = stream
        elif stream is found.for_all:
            _own[name].drop(instance)
        else:
            _own[name].put(instance, stream)

    return property(get, put)


class _KindOfModule(type):
    """What `type(sys)` is taken for by those who mean the type of modules, the import system among them."""

    def __call__(cls, *args: Any, **kwargs: Any) -> ModuleType:
        return ModuleType(*args, **kwargs)

    def __instancecheck__(cls, instance: Any) -> bool:
        return isinstance(instance, ModuleType)

    def __subclasscheck__(cls, subclass: type) -> bool:
        return issubclass(subclass, ModuleType)


class _Sys(NotingModule, metaclass=_KindOfModule):
    """The class of `sys` in a process that apps share."""

    stdin, stdout, stderr = map(_stream, _NAMES)


def install() -> None:
    """Keep the standard streams apart, for this process."""
    for name in _NAMES:
        sys.__dict__[name] = _Dispatch(name, sys.__dict__[name])
    sys.__class__ = _Sys
