"""What a request may say about whose it is: hosts, proxies' headers, cookies."""

import logging

import pytest

from runtime_node.http import Gate, Router


def named(name, headers=()):
    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": list(headers)})
        await send({"type": "http.response.body", "body": name})

    return app


@pytest.mark.parametrize(
    "host", ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "node-1"]
)
@pytest.mark.parametrize(("path", "headers"), [("/apps/b/", ()), ("/apps/b", ()), ("/", ("X-App: b",))])
async def test_a_name_that_anybody_can_point_here_finds_no_app_by_path_or_header(site, host, path, headers):
    site.app("b")
    answer = await site.get(path, *headers, host=host)
    assert (answer.status, answer.reason) == (421, "HOST_NOT_LISTED")
    assert "location" not in answer.headers


@pytest.mark.parametrize("host", ["localhost:1", "127.0.0.1", "[::1]:80", "other.localhost.", "192.0.2.7"])
async def test_loopback_names_and_addresses_find_apps_by_path_and_header(site, host):
    site.app("b", named(b"b"))
    if not host.startswith("other"):
        assert (await site.get("/apps/b/", host=host)).body == b"b"
        assert (await site.get("/", "X-App: b", host=host)).body == b"b"


def find(router, host, path=b"/", x_app=None):
    found = router.lookup(host, x_app, path)
    return found[0].name if isinstance(found, tuple) else found.reason


def test_listed_hosts_and_the_base_domain_find_apps_by_path_too():
    router = Router("apps.example.com", path_hosts=["Node-1.internal"])
    router.set("b", [], Gate("b"))
    for host in (b"node-1.internal:80", b"apps.example.com", b"localhost", b"x.localhost"):
        assert find(router, host, b"/apps/b/") == find(router, host, x_app=b"b") == "b"
    assert find(router, b"node-2.internal", b"/apps/b/") == "HOST_NOT_LISTED"
    with pytest.raises(ValueError, match="host name"):
        Router(path_hosts=["a b"])


def test_a_node_can_find_apps_by_host_alone():
    router = Router("apps.example.com", hosts_only=True)
    router.set("b", ["b.example"], Gate("b"))
    assert find(router, b"b.apps.example.com") == find(router, b"b.example") == "b"
    for host in (b"localhost", b"127.0.0.1", b"apps.example.com", b""):
        assert find(router, host, b"/apps/b/") == find(router, host, x_app=b"b") == "NO_APP_NAMED"


def test_an_apps_own_address_comes_before_any_domain_of_another():
    router = Router("apps.example.com")
    router.set(
        "squatter",
        ["shop.apps.example.com", "deep.shop.apps.example.com", "apps.example.com"],
        Gate("squatter"),
    )
    # Also while there is no such app here: it may be on another node, or come later.
    assert find(router, b"shop.apps.example.com") == "APP_NOT_FOUND"
    router.set("shop", [], Gate("shop"))
    assert find(router, b"shop.apps.example.com") == "shop"
    # These are no app's address.
    assert find(router, b"deep.shop.apps.example.com") == find(router, b"apps.example.com") == "squatter"


FORWARDED = (
    "Forwarded: for=6.6.6.6", "X-Forwarded-For: 6.6.6.6, 198.51.100.7, 127.0.0.9", "X-Forwarded-Proto: https",
    "X-Forwarded-Host: evil.example", "X-Forwarded-Prefix: /evil", "x-forwarded-user: root",
    "X-Real-IP: 6.6.6.6",
)  # fmt: skip


async def test_what_an_unlisted_peer_says_of_others_never_reaches_an_app(make_site):
    seen = []

    async def app(scope, receive, send):
        told = [(name, value) for name, value in scope["headers"] if b"forward" in name or b"real" in name]
        seen.append((scope["client"][0], scope["scheme"], told))
        await named(b"")(scope, receive, send)

    forged = ("X_Forwarded_For: 6.6.6.6", "X-Forwarded_User: root")
    for options in ({}, {"trusted_proxies": ["192.0.2.0/24"]}):
        site = await make_site(**options)
        site.app("a", app)
        await site.get("/", *FORWARDED, *forged)
    assert (
        seen
        == [("127.0.0.1", "http", [(b"x-forwarded-proto", b"http"), (b"x-forwarded-for", b"127.0.0.1")])] * 2
    )
    site = await make_site(trusted_proxies=["127.0.0.0/8"])
    site.app("a", app)
    await site.get("/", *FORWARDED, *forged)
    sent = [
        (name.lower().encode(), value.encode()) for name, _, value in (h.partition(": ") for h in FORWARDED)
    ]
    assert seen[2] == ("198.51.100.7", "https", sent)
    await site.get("/")
    assert seen[3] == seen[0]


async def test_a_cookie_for_every_app_becomes_the_apps_own_and_its_log_says_so_once(site, caplog):
    cookie = (b"Set-Cookie", b"session=1; Domain=localhost; Path=/")
    site.app("a", named(b"", [cookie]))
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert (await site.get("/")).headers["set-cookie"] == "session=1; Path=/"
    [record] = [record for record in caplog.records if "Set-Cookie" in record.getMessage()]
    assert record.name == "apps/a/instances/1"


async def test_while_the_node_leaves_an_app_that_is_gone_is_not_unknown(site):
    gate = site.app("a", named(b"a"))
    client = await site.connect()
    site.front.begin_draining()
    answer = await site.get("/", host="gone.localhost")
    assert (answer.status, answer.reason, answer.headers["retry-after"]) == (503, "NODE_DRAINING", "1")
    assert (await site.get("/apps/gone/", host="localhost")).reason == "NODE_DRAINING"
    # What is here still answers; each connection ends with its response.
    client.send(b"GET / HTTP/1.1\r\nHost: a.localhost\r\n\r\n")
    assert (await client.answer()).headers["connection"] == "close"
    assert await client.rest() == b""
    gate.close("INSTANCE_STOPPING", 1.0)
    assert (await site.get("/")).reason == "INSTANCE_STOPPING"


async def test_the_public_is_told_the_reason_and_nothing_that_the_app_said(site):
    gate = site.app("a")
    gate.close("APP_FACTORY_FAILED")
    answer = await site.get("/")
    assert (answer.status, answer.reason) == (503, "APP_FACTORY_FAILED")
    assert b"could not be built" in answer.body
    with pytest.raises(TypeError):
        gate.close("APP_FACTORY_FAILED", detail="cannot connect to internal-host-7 user=svc")
