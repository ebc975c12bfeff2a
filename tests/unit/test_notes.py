"""The demo app, called as its host calls it: a factory, its lifespan, and HTTP."""

import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from notes import create_app


def build(folder: Path, app: str = "shop", **config: Any) -> FastAPI:
    url = f"sqlite:///{folder / app}.db"
    return create_app(
        SimpleNamespace(app=app, instance=f"apps/{app}/instances/i1", config=config, database_url=url)
    )


@asynccontextmanager
async def serving(app: FastAPI, root_path: str = "") -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app, root_path=root_path, raise_app_exceptions=False)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://shop.test", follow_redirects=True) as client,
    ):
        yield client


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    async with serving(build(tmp_path)) as client:
        yield client


async def test_a_note_that_was_added_is_listed_and_can_be_removed(client: httpx.AsyncClient) -> None:
    created = await client.post("/notes", json={"text": "  milk "})
    assert created.status_code == 201
    assert created.json()["text"] == "milk"
    assert [note["text"] for note in (await client.get("/notes")).json()] == ["milk"]
    assert (await client.delete(f"/notes/{created.json()['id']}")).status_code == 204
    assert (await client.get("/notes")).json() == []
    assert (await client.delete(f"/notes/{created.json()['id']}")).status_code == 404


async def test_pages_of_notes_follow_each_other_without_gap(client: httpx.AsyncClient) -> None:
    for number in range(5):
        await client.post("/notes", json={"text": str(number)})
    first = (await client.get("/notes", params={"limit": 3})).json()
    rest = (await client.get("/notes", params={"limit": 3, "before": first[-1]["id"]})).json()
    assert [note["text"] for note in first + rest] == ["4", "3", "2", "1", "0"]


@pytest.mark.parametrize("text", ["", "   ", "x" * 501])
async def test_a_note_without_text_or_too_long_is_refused(client: httpx.AsyncClient, text: str) -> None:
    assert (await client.post("/notes", json={"text": text})).status_code == 422
    assert (await client.post("/add", data={"text": text})).status_code == 422
    assert (await client.get("/notes")).json() == []


async def test_the_page_adds_and_removes_by_plain_forms(client: httpx.AsyncClient) -> None:
    page = await client.post("/add", data={"text": "bread & butter"})
    assert page.status_code == 200
    assert "bread &amp; butter" in page.text
    note = (await client.get("/notes")).json()[0]
    assert "bread" not in (await client.post(f"/remove/{note['id']}")).text


async def test_the_page_shows_markup_as_text(client: httpx.AsyncClient) -> None:
    await client.post("/notes", json={"text": "<script>alert(1)</script>"})
    page = (await client.get("/")).text
    assert "<script>" not in page
    assert "&lt;script&gt;" in page


async def test_the_page_loads_nothing_from_elsewhere(client: httpx.AsyncClient) -> None:
    page = (await client.get("/")).text
    assert "http://" not in page
    assert "https://" not in page
    assert "src=" not in page


async def test_the_page_works_below_a_path(tmp_path: Path) -> None:
    async with serving(build(tmp_path), root_path="/apps/shop") as client:
        assert 'action="/apps/shop/add"' in (await client.get("/apps/shop/")).text
        answer = await client.post("/apps/shop/add", data={"text": "x"}, follow_redirects=False)
        assert answer.headers["location"] == "/apps/shop/"


async def test_two_instances_show_their_own_names_and_data(tmp_path: Path) -> None:
    async with (
        serving(build(tmp_path, "shop", title="Shop", accent="#ff0000")) as shop,
        serving(build(tmp_path, "blog", accent="red; } body { display: none")) as blog,
    ):
        await shop.post("/notes", json={"text": "only in the shop"})
        assert "only in the shop" in (await shop.get("/")).text
        assert "only in the shop" not in (await blog.get("/")).text
        assert "<h1>Shop</h1>" in (await shop.get("/")).text
        assert "--accent: #ff0000" in (await shop.get("/")).text
        assert "<b>blog</b>" in (await blog.get("/")).text
        assert "display: none" not in (await blog.get("/")).text


async def test_notes_outlive_a_restart(tmp_path: Path) -> None:
    async with serving(build(tmp_path)) as client:
        await client.post("/notes", json={"text": "kept"})
    async with serving(build(tmp_path)) as client:
        assert [note["text"] for note in (await client.get("/notes")).json()] == ["kept"]


async def test_a_writer_does_not_fail_a_reader(client: httpx.AsyncClient, tmp_path: Path) -> None:
    other = sqlite3.connect(tmp_path / "shop.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    try:
        assert (await client.get("/notes")).status_code == 200
    finally:
        other.close()


async def test_health_is_bad_when_the_database_is(client: httpx.AsyncClient, tmp_path: Path) -> None:
    assert (await client.get("/healthz")).json() == {"status": "ok"}
    for file in tmp_path.glob("shop.db*"):
        file.write_bytes(b"no database" * 1000)
    assert (await client.get("/healthz")).status_code == 500


def test_without_a_database_the_factory_says_so() -> None:
    context = SimpleNamespace(app="shop", instance="apps/shop/instances/i", config={}, database_url=None)
    with pytest.raises(ValueError, match="give the app one"):
        create_app(context)
