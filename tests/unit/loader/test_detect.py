"""What an object is told to be: by its signature, without a call, and never by a guess."""

from __future__ import annotations

import functools
import re
import types
from typing import Any

import fastapi
import flask
import litestar
import pytest
import starlette.applications
import starlette.endpoints

from runtime_node.loader.detect import Shape, examine


async def asgi3(scope, receive, send): ...
async def odd_names(s, r, w): ...
def asgi2(scope): ...
def wsgi(environ, start_response): ...
def wsgi_other_names(env, start_resp): ...
def factory(context): ...
async def async_factory(context): ...
def no_arguments(): ...
def flask_style(test_config=None): ...
def optional_context(settings=None, context=None): ...
def keyword_context(*, context): ...
def handler(request): ...
async def two(receive, send): ...
def two_unknown(first, second): ...
def three_sync(a, b, c): ...
def anything(*args, **kwargs): ...
def keyword_only(*, settings): ...
def generator(context):
    yield


async def async_generator(context):
    yield


def passing_on(function):
    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        return function(*args, **kwargs)

    return wrapper


class Asgi2Class:
    def __init__(self, scope): ...
    async def __call__(self, receive, send): ...


class NotAsgi2:
    def __init__(self, scope): ...


class WsgiClass:
    def __init__(self, environ, start_response): ...
    def __iter__(self):
        return iter(())


class NotWsgi:
    def __init__(self, environ, start_response): ...


class ClassFactory:
    def __init__(self, context): ...


class CallableAsgi:
    async def __call__(self, scope, receive, send): ...


class CallableWsgi:
    def __call__(self, environ, start_response): ...


class CallableFactory:
    def __call__(self, context): ...


def described(value: object) -> str:
    """Name a test's value without its address, so that a test has one name in every run."""
    return getattr(value, "__qualname__", None) or re.sub(r" (object )?at 0x\w+", "", str(value))


@pytest.mark.parametrize(
    ("target", "shape"),
    [
        (asgi3, Shape.ASGI3),
        (odd_names, Shape.ASGI3),
        (passing_on(asgi3), Shape.ASGI3),
        (functools.partial(asgi3), Shape.ASGI3),
        (CallableAsgi(), Shape.ASGI3),
        (fastapi.FastAPI(), Shape.ASGI3),
        (starlette.applications.Starlette(), Shape.ASGI3),
        (starlette.endpoints.HTTPEndpoint, Shape.ASGI3),
        (litestar.Litestar(), Shape.ASGI3),
        (asgi2, Shape.ASGI2),
        (Asgi2Class, Shape.ASGI2),
        (wsgi, Shape.WSGI),
        (wsgi_other_names, Shape.WSGI),
        (passing_on(wsgi), Shape.WSGI),
        (CallableWsgi(), Shape.WSGI),
        (WsgiClass, Shape.WSGI),
        (flask.Flask("x"), Shape.WSGI),
        (flask.Flask("x").wsgi_app, Shape.WSGI),
        (factory, Shape.FACTORY),
        (async_factory, Shape.FACTORY),
        (no_arguments, Shape.FACTORY),
        (flask_style, Shape.FACTORY),
        (passing_on(factory), Shape.FACTORY),
        (functools.partial(two_unknown, 1), Shape.FACTORY),
        (ClassFactory, Shape.FACTORY),
        (CallableFactory(), Shape.FACTORY),
        (fastapi.FastAPI, Shape.FACTORY),
    ],
    ids=described,
)
def test_an_app_or_factory_is_told_for_what_it_is(target: Any, shape: Shape) -> None:
    assert examine(target).shape is shape


@pytest.mark.parametrize(
    ("target", "says"),
    [
        (None, "callable"),
        (3, "callable"),
        ("shop:app", "callable"),
        (types.ModuleType("shop"), "module"),
        (flask.Blueprint("b", "x"), "Blueprint"),
        (handler, "handler"),
        (two, "two arguments"),
        (two_unknown, "two arguments"),
        (three_sync, "three arguments"),
        (anything, "*args"),
        (keyword_only, "settings"),
        (generator, "generator"),
        (async_generator, "generator"),
        (NotAsgi2, "(receive, send)"),
        (NotWsgi, "iterated"),
        (dict, "cannot be told"),
    ],
    ids=lambda value: getattr(value, "__qualname__", None) or str(value)[:20],
)
def test_what_is_neither_is_refused_with_what_was_found(target: Any, says: str) -> None:
    finding = examine(target)
    assert finding.shape is Shape.UNKNOWN
    assert says in finding.found


def test_a_coroutine_is_refused_with_the_hint_to_name_its_function() -> None:
    coroutine = async_factory(None)
    assert "name the function" in examine(coroutine).found
    coroutine.close()


@pytest.mark.parametrize(
    ("target", "passes"),
    [
        (factory, "positional"),
        (ClassFactory, "positional"),
        (no_arguments, None),
        (flask_style, None),
        (optional_context, "context"),
        (keyword_context, "context"),
    ],
)
def test_a_factory_gets_the_context_the_way_it_takes_it(target: Any, passes: str | None) -> None:
    assert examine(target).passes == passes


def test_a_defaults_value_never_shows_in_what_was_found() -> None:
    def odd(first, second, password="hunter2"): ...

    assert "hunter2" not in examine(odd).found
