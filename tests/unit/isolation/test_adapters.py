"""Fields of FastAPI apps share equal type adapters, and nothing but equal ones."""

from __future__ import annotations

import enum
import gc
import weakref
from collections.abc import Callable
from typing import Annotated, Any, Literal

import httpx
import pytest
from fastapi import Body, Cookie, FastAPI, Header, Query
from fastapi._compat import v2
from pydantic import AfterValidator, BaseModel, Field

from runtime_node.isolation.adapters import share_type_adapters
from runtime_node.isolation.dismantle import dismantle


class Item(BaseModel):
    name: str
    tags: list[str] = []


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


def upper(value: str) -> str:
    return value.upper()


@pytest.fixture(autouse=True)
def _shared() -> None:
    share_type_adapters()


def adapter(annotation: Any, field: Any = None) -> Any:
    """Return the adapter that FastAPI makes for a parameter, as its own code makes the field."""
    info = field if field is not None else Query()
    info.annotation = annotation
    return v2.ModelField(field_info=info, name="x")._type_adapter


def test_the_installed_fastapi_makes_its_adapters_in_a_known_way() -> None:
    assert v2.ModelField.__post_init__.__module__ == "runtime_node.isolation.adapters"


@pytest.mark.parametrize(
    "make",
    [
        lambda: adapter(int, Query(default=10)),
        lambda: adapter(list[Item], Body()),
        lambda: adapter(int | None, Query(default=None, ge=1, le=9)),
        lambda: adapter(dict[str, list[Item]], Body()),
        lambda: adapter(Literal["a", 1], Query()),
        lambda: adapter(Colour, Query(default=Colour.RED)),
        lambda: adapter(str, Header(alias="x-a", pattern="^a+$")),
        lambda: adapter(list[str], Query(default_factory=list)),
    ],
)
def test_equal_fields_share_one(make: Callable[[], Any]) -> None:
    assert make() is make()


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (lambda: adapter(int, Query(default=1)), lambda: adapter(int, Query(default=True))),
        (lambda: adapter(float, Query(default=1)), lambda: adapter(float, Query(default=1.0))),
        (lambda: adapter(float, Query(default=0.0)), lambda: adapter(float, Query(default=-0.0))),
        (lambda: adapter(int, Query(ge=1)), lambda: adapter(int, Query(ge=2))),
        (lambda: adapter(int, Query(ge=1)), lambda: adapter(int, Query(gt=1))),
        (lambda: adapter(int, Query(strict=True)), lambda: adapter(int, Query())),
        (lambda: adapter(str, Cookie(alias="a")), lambda: adapter(str, Cookie(alias="b"))),
        (lambda: adapter(Literal[1], Query()), lambda: adapter(Literal[True], Query())),
        (lambda: adapter(Colour, Query(default=Colour.RED)), lambda: adapter(Colour, Query())),
        (lambda: adapter(str, Query(pattern="a")), lambda: adapter(str, Query(pattern="b"))),
    ],
)  # fmt: skip
def test_fields_that_differ_in_anything_do_not(one: Callable[[], Any], other: Callable[[], Any]) -> None:
    first, second = one(), other()
    assert first is not second


@pytest.mark.parametrize(
    "make",
    [
        lambda: adapter(list[Annotated[int, Field(ge=1)]], Query()),
        lambda: adapter(int, Query(examples=[1, 2])),
        lambda: adapter(list[int], Query(default=[])),
        lambda: adapter(int, Query(default_factory=lambda number=3: number)),
    ],
)
def test_what_is_not_known_to_be_equal_is_built_anew(make: Callable[[], Any]) -> None:
    first, second = make(), make()
    assert first is not second


def app(title: str) -> FastAPI:
    made = FastAPI(title=title)

    def validated(value: str) -> str:
        return f"{title} {value}"

    @made.get("/items")
    async def items(limit: int = 10) -> list[Item]:
        return [Item(name=title)] * limit

    async def own(word: str) -> str:
        return word

    own.__annotations__["word"] = Annotated[str, AfterValidator(validated), AfterValidator(upper)]
    made.get("/own")(own)
    return made


def client(made: FastAPI) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(made), base_url="http://x")


async def test_an_app_that_is_taken_apart_leaves_the_others_whole() -> None:
    roots = [app("one")]
    two = app("two")
    async with client(roots[0]) as one:
        assert (await one.get("/items?limit=2")).json() == [{"name": "one", "tags": []}] * 2
    del one
    assert dismantle(roots) > 100
    async with client(two) as other:
        assert (await other.get("/items?limit=2")).json() == [{"name": "two", "tags": []}] * 2
        assert (await other.get("/items?limit=x")).status_code == 422
        assert (await other.get("/own?word=w")).json() == "TWO W"


def test_adapters_go_with_the_last_field_that_holds_them() -> None:
    held = [adapter(list[Colour], Query()), adapter(list[Colour], Query())]
    left = weakref.ref(held[0])
    held.pop()
    assert left() is not None
    held.clear()
    gc.collect()
    assert left() is None
