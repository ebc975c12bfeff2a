"""Tells what an object is: an ASGI app, a WSGI app, a factory of one, or none of these, and why.

Decides by signatures alone and never calls the object. What fits two readings is refused with a
sentence that says how to name the one that is meant.
"""

from __future__ import annotations

import functools
import inspect
import re
from dataclasses import dataclass
from enum import Enum
from types import FunctionType, ModuleType
from typing import Any

_START_RESPONSE = re.compile(r"^_*start_?resp", re.IGNORECASE)
CONTEXT_NAMES = {"context", "ctx", "app_context"}
"""Parameters with these names are given the context also where they have a default."""
_REQUEST = {"request", "req"}
_HANDLER = "it takes a request, as a handler does; name the app that it is registered in"
_TOO_MANY = (
    "name an ASGI app (scope, receive, send), a WSGI app (environ, start_response) or a factory (context)"
)


class Shape(Enum):
    """What can be done with an object."""

    ASGI3 = "ASGI 3 app"
    ASGI2 = "ASGI 2 app"
    WSGI = "WSGI app"
    FACTORY = "factory"
    UNKNOWN = "neither"


@dataclass(frozen=True, slots=True)
class Finding:
    """The shape of an object; for a factory how it takes the context; otherwise what was found."""

    shape: Shape
    found: str
    passes: str | None = None
    """Factory: `None` takes nothing, `"positional"` the context, or the keyword to give it by."""

    @property
    def is_app(self) -> bool:
        """Whether the object answers requests itself."""
        return self.shape in {Shape.ASGI3, Shape.ASGI2, Shape.WSGI}

    @property
    def takes_context(self) -> bool:
        """Whether it is a factory that is given the context."""
        return self.shape is Shape.FACTORY and self.passes is not None


def examine(target: Any) -> Finding:
    """Return what `target` is. Never raises and never calls it."""
    found = _describe(target)
    if inspect.iscoroutine(target) or inspect.isawaitable(target):
        return _no(found, "name the function instead of what it returned")
    if isinstance(target, ModuleType):
        return _no(found, f"name an attribute of it{_candidates(target)}")
    if isinstance(target, type):
        return _examine_class(target, found)
    if not callable(target):
        return _no(found, "an app is a callable")
    if inspect.isasyncgenfunction(target) or inspect.isgeneratorfunction(target):
        return _no(found, "a generator function is neither an app nor a factory")
    return _examine_callable(target, found)


def _examine_class(target: type, found: str) -> Finding:
    parameters = _parameters(target)
    if parameters is None:
        return _no(found, "its parameters cannot be told; name an instance or a function that makes one")
    names = _required(parameters)
    if names == ["scope", "receive", "send"]:
        if hasattr(target, "__await__"):
            return Finding(Shape.ASGI3, found)
        return _no(found, "its instances are not awaitable, so it is no ASGI 3 app")
    if names == ["scope"]:
        call = _parameters(target.__call__)
        if call is not None and len(_required(call)) == 3 and _is_async(target.__call__):
            return Finding(Shape.ASGI2, found)
        return _no(found, "it takes a scope, but its instances do not take (receive, send)")
    if len(names) == 2 and _START_RESPONSE.match(names[1]):
        if hasattr(target, "__iter__"):
            return Finding(Shape.WSGI, found)
        return _no(found, "its instances cannot be iterated, so it is no WSGI app")
    return _as_factory(parameters, found)


def _examine_callable(target: Any, found: str) -> Finding:
    parameters = _parameters(target)
    if parameters is None:
        return _no(found, "its parameters cannot be told; wrap it in a function that names them")
    names = _required(parameters)
    is_async = _is_async(target)
    if len(names) == 3:
        if is_async or names == ["scope", "receive", "send"]:
            return Finding(Shape.ASGI3, found)
        return _no(found, f"it takes three arguments but is not async; {_TOO_MANY}")
    if len(names) == 2:
        if is_async:
            return _no(found, f"it is async and takes two arguments; {_TOO_MANY}")
        if _START_RESPONSE.match(names[1]):
            return Finding(Shape.WSGI, found)
        return _no(found, f"it takes two arguments that are not (environ, start_response); {_TOO_MANY}")
    if names == ["scope"]:
        if is_async:
            return _no(
                found, "an async function of a scope alone is no ASGI app; it must take receive and send"
            )
        return Finding(Shape.ASGI2, found)
    if not names and any(p.kind is p.VAR_POSITIONAL for p in parameters) and not _named(parameters):
        return _no(found, f"it takes *args, so anything would fit; {_TOO_MANY}")
    return _as_factory(parameters, found)


def _as_factory(parameters: list[inspect.Parameter], found: str) -> Finding:
    names = _required(parameters)
    keywords = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.default is p.empty]
    if names and names[0] in _REQUEST:
        return _no(found, _HANDLER)
    if len(names) + len(keywords) > 1:
        given = ", ".join([*names, *keywords])
        return _no(found, f"a factory takes the context alone, this takes ({given}); {_TOO_MANY}")
    if keywords:
        if keywords[0] in CONTEXT_NAMES:
            return Finding(Shape.FACTORY, found, passes=keywords[0])
        return _no(
            found, f"nothing is known to give it as {keywords[0]!r}; a factory takes the context alone"
        )
    if names:
        return Finding(Shape.FACTORY, found, passes="positional")
    optional = next((p.name for p in _named(parameters) if p.name in CONTEXT_NAMES), None)
    if optional is None:
        return Finding(Shape.FACTORY, found)
    first = _named(parameters)[0]
    if first.name == optional and first.kind is first.POSITIONAL_ONLY:
        return Finding(Shape.FACTORY, found, passes="positional")
    return Finding(Shape.FACTORY, found, passes=optional)


def _no(found: str, why: str) -> Finding:
    return Finding(Shape.UNKNOWN, f"{found}: {why}")


def _parameters(target: Any) -> list[inspect.Parameter] | None:
    try:
        return list(inspect.signature(target).parameters.values())
    except (TypeError, ValueError):
        return None


def _named(parameters: list[inspect.Parameter]) -> list[inspect.Parameter]:
    return [p for p in parameters if p.kind not in {p.VAR_POSITIONAL, p.VAR_KEYWORD}]


def _required(parameters: list[inspect.Parameter]) -> list[str]:
    kinds = {inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD}
    return [p.name for p in parameters if p.kind in kinds and p.default is p.empty]


def _is_async(target: Any) -> bool:
    while isinstance(target, functools.partial):
        target = target.func
    if inspect.iscoroutinefunction(target):
        return True
    if not isinstance(target, FunctionType) and inspect.iscoroutinefunction(
        getattr(target, "__call__", None)  # noqa: B004 - its kind is asked, not whether it exists
    ):
        return True
    wrapped = getattr(target, "__wrapped__", None)
    return callable(wrapped) and _is_async(wrapped)


def _describe(target: Any) -> str:
    if isinstance(target, ModuleType):
        return f"the module {target.__name__!r}"
    if isinstance(target, type):
        return f"the class {target.__qualname__}{_signature(target)}"
    if inspect.isroutine(target) or isinstance(target, functools.partial):
        name = getattr(target, "__qualname__", None) or type(target).__qualname__
        kind = "async function" if _is_async(target) else "function"
        return f"the {kind} {name}{_signature(target)}"
    made_by = type(target)
    return f"an object of type {made_by.__module__}.{made_by.__qualname__}"


def _signature(target: Any) -> str:
    parameters = _parameters(target)
    if parameters is None:
        return "(?)"
    # Names only: a default's repr could hold a value that is nobody's business.
    marks: dict[Any, str] = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
    return "(" + ", ".join(f"{marks.get(p.kind, '')}{p.name}" for p in parameters[:8]) + ")"


def _candidates(module: ModuleType) -> str:
    names = [n for n in ("app", "application", "asgi", "create_app", "make_app") if hasattr(module, n)]
    return f", such as {', '.join(names)}" if names else ""
