"""Addressing an app: domain, name, header, path; and frameworks under a root path."""

import json
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from fastapi import FastAPI, Request
from fastapi.responses import RedirectResponse
from flask import Flask, redirect, request, url_for
from starlette.routing import Mount

from runtime_node.loader.wsgi import WSGIAdapter


def named(name):
    async def app(scope, receive, send):
        text = f"{name} {scope['root_path']} {scope['path']} {scope['raw_path'].decode()}"
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": text.encode()})

    return app


@pytest.fixture
def threads():
    with ThreadPoolExecutor(4) as executor:
        yield executor


@pytest.fixture
def two(site):
    site.app("a", named("a"), domains=["shop.example", "bücher.example"])
    site.app("b", named("b"), domains=["a.localhost.example"])
    return site


@pytest.mark.parametrize(
    ("host", "headers", "path", "answer"),
    [
        ("a.localhost", (), "/x", b"a  /x /x"),
        ("A.LocalHost", (), "/x", b"a  /x /x"),
        ("a.localhost.", (), "/x", b"a  /x /x"),
        ("a.localhost:8080", (), "/x", b"a  /x /x"),
        ("a.localhost.:8080", (), "/x", b"a  /x /x"),
        ("shop.example", (), "/x", b"a  /x /x"),
        ("SHOP.example:443", (), "/x", b"a  /x /x"),
        ("xn--bcher-kva.example", (), "/x", b"a  /x /x"),
        ("a.localhost.example", (), "/x", b"b  /x /x"),
        ("127.0.0.1:80", ("X-App: b",), "/x", b"b  /x /x"),
        ("[::1]:80", ("X-App: b",), "/x", b"b  /x /x"),
        ("10.1.2.3", ("X-App: b",), "/apps/a/x", b"b  /apps/a/x /apps/a/x"),
        ("a.localhost", ("X-App: b",), "/apps/b/x", b"a  /apps/b/x /apps/b/x"),
        ("shop.example", ("X-App: b",), "/", b"a  / /"),
        ("localhost", (), "/apps/b/x/y", b"b /apps/b /apps/b/x/y /apps/b/x/y"),
        ("localhost", (), "/apps/b/", b"b /apps/b /apps/b/ /apps/b/"),
        ("localhost", (), "/apps/a/../b/x", b"a /apps/a /apps/a/../b/x /apps/a/../b/x"),
        ("localhost", (), "/apps/a/%2e%2e/b", b"a /apps/a /apps/a/../b /apps/a/%2e%2e/b"),
        ("localhost", (), "/apps/a/..%2Fb", b"a /apps/a /apps/a/../b /apps/a/..%2Fb"),
        ("localhost", (), "http://b.localhost:80/y", b"b  /y /y"),
        ("a.localhost", (), "HTTP://B.localhost", b"b  / /"),
    ],
)
async def test_the_most_specific_way_wins(two, host, headers, path, answer):
    got = await two.get(path, *headers, host=host)
    assert (got.status, got.body) == (200, answer)


@pytest.mark.parametrize(
    ("host", "headers", "path", "lookup", "value"),
    [
        ("c.localhost", (), "/apps/a/", "host", "c.localhost"),
        ("x.a.localhost", (), "/", "host", "x.a.localhost"),
        ("localhost", ("X-App: c",), "/apps/a/", "X-App header", "c"),
        ("localhost", (), "/apps/c/", "path", "c"),
        ("localhost", (), "/apps/a%2Fx", "path", None),
        ("localhost", (), "/apps/%61/", "path", None),
        ("localhost", (), "/apps/A/", "path", None),
    ],
)
async def test_an_unknown_app_is_told_by_what_was_looked_up(two, host, headers, path, lookup, value):
    got = await two.get(path, *headers, host=host)
    document = json.loads(got.body)
    assert (got.status, document["lookup"], document.get("value")) == (404, lookup, value)


@pytest.mark.parametrize("path", ["/", "/apps", "/apps/", "/apps//x", "/other", "/APPS/a/"])
async def test_a_request_that_names_no_app_is_told_how_to(two, path):
    got = await two.get(path, host="localhost")
    assert (got.status, got.reason) == (404, "NO_APP_NAMED")
    assert "<app>.localhost" in json.loads(got.body)["detail"]


async def test_the_host_of_an_absolute_target_is_what_the_app_sees(site):
    site.app("a")
    got = await site.get("http://a.localhost:81/x?y", host="b.localhost")
    assert b"header host=a.localhost:81\n" in got.body
    assert b"b.localhost" not in got.body


async def test_an_apps_root_without_a_slash_is_redirected(two):
    got = await two.get("/apps/a?x=1", host="localhost")
    assert (got.status, got.headers["location"]) == (307, "/apps/a/?x=1")


async def test_a_route_is_taken_only_by_the_gate_that_has_it(two):
    old = two.router.gate_of("a")
    new = two.app("a", named("new"), domains=["new.example"])
    assert two.router.remove("a", old) is False
    assert (await two.get("/", host="new.example")).body == b"new  / /"
    assert (await two.get("/", host="shop.example")).status == 404
    assert two.router.remove("a", new) is True
    assert (await two.get("/", host="new.example")).status == 404
    assert (await two.get("/", host="a.localhost")).status == 404


def fastapi_app():
    app = FastAPI()

    @app.get("/")
    def index(request: Request):
        return {
            "url": str(request.url),
            "items": str(request.url_for("items")),
            "base": str(request.base_url),
        }

    @app.get("/items/")
    def items(q: str = ""):
        return {"items": q}

    @app.get("/go")
    def go(request: Request):
        return RedirectResponse(request.url_for("items"))

    sub = FastAPI()

    @sub.get("/deep")
    def deep(request: Request):
        return {"root": request.scope["root_path"]}

    app.router.routes.append(Mount("/sub", sub))
    return app


@pytest.mark.parametrize("way", ["path", "host"])
async def test_fastapi_works_with_its_docs_redirects_and_mounts(site, way):
    site.app("a", fastapi_app())
    prefix = "/apps/a" if way == "path" else ""
    headers = {} if way == "path" else {"Host": "a.localhost"}
    base = f"http://a.localhost{prefix}" if way == "host" else f"{site.url}{prefix}"
    async with httpx.AsyncClient(base_url=site.url, headers=headers, verify=False) as client:
        index = (await client.get(prefix + "/")).json()
        assert index == {"url": base + "/", "items": base + "/items/", "base": base + "/"}
        slash = await client.get(prefix + "/items?q=1")
        assert (slash.status_code, slash.headers["location"]) == (307, base + "/items/?q=1")
        assert (await client.get(prefix + "/go")).headers["location"] == base + "/items/"
        assert (await client.get(prefix + "/items/", params={"q": "ü/&"})).json() == {"items": "ü/&"}
        docs = await client.get(prefix + "/docs")
        assert f"'{prefix}/openapi.json'" in docs.text
        schema = (await client.get(prefix + "/openapi.json")).json()
        assert "/items/" in schema["paths"]
        assert schema.get("servers", [{"url": prefix}]) == [{"url": prefix}]
        assert (await client.get(prefix + "/sub/deep")).json() == {"root": prefix + "/sub"}


@pytest.mark.parametrize("way", ["path", "host"])
async def test_flask_works_with_its_redirects_and_urls(site, way, threads):
    app = Flask("guest")

    @app.get("/")
    def index():
        return {"script": request.script_root, "path": request.path, "url": url_for("items", _external=True)}

    @app.get("/items/")
    def items():
        return "items"

    @app.get("/go")
    def go():
        return redirect(url_for("items"))

    @app.post("/upload")
    def upload():
        return str(len(request.get_data()))

    site.app("a", WSGIAdapter(app, threads))
    prefix = "/apps/a" if way == "path" else ""
    headers = {} if way == "path" else {"Host": "a.localhost"}
    base = f"http://a.localhost{prefix}" if way == "host" else f"{site.url}{prefix}"
    async with httpx.AsyncClient(base_url=site.url, headers=headers, verify=False) as client:
        index = (await client.get(prefix + "/")).json()
        assert index == {"script": prefix, "path": "/", "url": base + "/items/"}
        assert (await client.get(prefix + "/go")).headers["location"] == prefix + "/items/"
        slash = await client.get(prefix + "/items")
        assert (
            slash.headers["location"]
            .removeprefix(f"http://{headers.get('Host')}")
            .endswith(prefix + "/items/")
        )
        assert (await client.post(prefix + "/upload", content=b"x" * 300_000)).text == "300000"


async def test_paths_are_decoded_once_and_kept_raw(site):
    site.app("a")
    got = await site.get("/%C3%BC/%252F%3F?q=%C3%BC&r=a%2Fb", host="a.localhost")
    assert "path=/ü/%2F?\n".encode() in got.body
    assert b"raw_path=/%C3%BC/%252F%3F\n" in got.body
    assert b"query=q=%C3%BC&r=a%2Fb\n" in got.body
