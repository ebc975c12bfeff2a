"""Which certificate answers which name, how Envoy is told, and which names are sent to HTTPS."""

from __future__ import annotations

from typing import Any

import pytest

from appsupervisor.catalog.v1 import certificates_pb2 as pb
from appsupervisor.fleet.v1.fleet_pb2 import Node
from services.gateway import tls
from services.gateway.listener import ListenerSpec, https_listener
from services.gateway.settings import Settings
from services.gateway.subscriber import Certificates, Subscriber, served
from services.gateway.table import RoutingTable
from services.gateway.tls import CertificateTable, Served
from services.gateway.xds import session
from services.gateway.xds.cache import LISTENER, ROUTES, SCOPE, SECRET, ResourceCache
from services.gateway.xds.messages import message
from tests.unit.gateway.test_session import FakeEnvoy
from tests.unit.gateway.test_table import N1, app, instance, scopes


def one(name: str, *domains: str, expires: int = 1, key: str = "key") -> Served:
    return Served(f"certificates/{name}", domains, expires, f"chain of {name}", key)


def answered(table: CertificateTable, host: str) -> str:
    """Return the certificate that answers a host, from the secret that tells it."""
    resource = table.get(host)
    if resource is None:
        return ""
    found = message(SECRET).FromString(resource.value)
    assert found.name == host
    assert found.tls_certificate.private_key.inline_string
    return str(found.tls_certificate.certificate_chain.inline_string.removeprefix("chain of "))


def test_an_exact_name_comes_before_a_wildcard_and_what_is_valid_longest_before_the_others() -> None:
    table = CertificateTable()
    table.put(one("wild", "*.example.com", expires=9))
    table.put(one("old", "shop.example.com", "example.com", expires=1))
    assert answered(table, "shop.example.com") == "old"
    assert answered(table, "SHOP.example.com.") == "old"
    assert answered(table, "blog.example.com") == "wild"
    for host in ("a.b.example.com", "example.org", "com", "-", "", "*.example.com"):
        assert answered(table, host) == "", host
    table.put(one("new", "shop.example.com", expires=2))
    assert answered(table, "shop.example.com") == "new"
    table.remove("certificates/new")
    table.remove("certificates/wild")
    assert [answered(table, f"{it}.example.com") for it in ("shop", "blog")] == ["old", ""]
    assert answered(table, "example.com") == "old"
    assert "key" not in repr(one("a"))


def test_only_names_whose_certificate_is_another_are_told() -> None:
    told: list[str] = []
    table = CertificateTable(told.append)
    table.put(one("a", "a.example.com", "b.example.com", expires=5))
    table.put(one("elder", "a.example.com", expires=1))
    table.put(one("a", "a.example.com", "b.example.com", expires=5))
    assert told == ["a.example.com", "b.example.com"]
    told.clear()
    table.put(one("a", "b.example.com", "*.example.org", expires=6))
    assert sorted(told) == ["*.example.org", "a.example.com", "b.example.com"]


@pytest.fixture
def certificates() -> CertificateTable:
    return CertificateTable()


@pytest.fixture
def envoy(certificates: CertificateTable) -> FakeEnvoy:
    cache = ResourceCache()
    cache.open()
    certificates._changed = lambda name: cache.changed(SECRET, name)
    envoy = FakeEnvoy(cache)
    envoy.cache = cache  # type: ignore[attr-defined]
    return envoy


def test_an_envoy_is_told_the_certificate_of_each_name_that_it_asks_for(
    envoy: Any, certificates: CertificateTable
) -> None:
    certificates.put(one("wild", "*.example.com"))
    envoy.ask(SECRET, "a.example.com", "nobody.example.org")
    # Before certificates are known, nothing is told to be missing: it would take away what it has.
    assert envoy.has_nothing_to_read()
    envoy.cache.serve_secrets(certificates)
    _, told, gone = envoy.accept()
    assert (list(told), gone) == (["a.example.com"], ["nobody.example.org"])
    envoy.ask(SECRET, leave=("nobody.example.org",))
    envoy.ask(SECRET, "b.example.com", "B.Example.com")
    assert list(envoy.accept()[1]) == ["b.example.com", "B.Example.com"]
    # One certificate changed is a message of the names in use that it answers.
    certificates.put(one("exact", "b.example.com"))
    assert list(envoy.accept()[1]) == ["b.example.com", "B.Example.com"]
    certificates.put(one("wild", "*.example.com", key="another"))
    assert list(envoy.accept()[1]) == ["a.example.com"]
    certificates.put(one("other", "*.example.org"))
    assert envoy.has_nothing_to_read()
    certificates.remove("certificates/wild")
    assert envoy.accept()[1:] == ({}, ["a.example.com"])


def test_an_envoy_that_comes_back_is_told_what_is_another_now(
    envoy: Any, certificates: CertificateTable
) -> None:
    for name in ("a", "b"):
        certificates.put(one(name, f"{name}.example.com"))
    envoy.cache.serve_secrets(certificates)
    envoy.ask(SECRET, "a.example.com", "b.example.com")
    envoy.accept()
    again = FakeEnvoy(envoy.cache, {SECRET: dict(envoy.has[SECRET])})
    certificates.put(one("b", "b.example.com", key="another"))
    again.ask(SECRET, "a.example.com", "b.example.com")
    assert list(again.accept()[1]) == ["b.example.com"]


def test_the_names_that_an_envoy_keeps_have_a_bound(
    envoy: Any, certificates: CertificateTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "MOST_SECRETS", 3)
    certificates.put(one("wild", "*.example.com"))
    envoy.cache.serve_secrets(certificates)
    for number in range(5):
        envoy.ask(SECRET, f"{number}.example.com")
        envoy.accept()
    assert list(envoy.has[SECRET]) == [f"{number}.example.com" for number in (2, 3, 4)]
    # It leaves what it was told is gone, and may ask again.
    envoy.ask(SECRET, leave=("0.example.com", "1.example.com"))
    envoy.ask(SECRET, "0.example.com")
    _, told, gone = envoy.accept()
    assert (list(told), gone) == (["0.example.com"], ["2.example.com"])


def test_plain_requests_are_sent_to_https_for_names_that_have_a_certificate() -> None:
    cache, certificates = ResourceCache(), CertificateTable()
    table = RoutingTable(cache, is_covered=certificates.covers, https_port=443)
    certificates._changed = table.recertified
    table.put_node(Node(name=N1, http_address="10.0.0.1:8080"))
    domains = ["shop.example.com", "a.example.org", "example.org"]
    certificates.put(one("before", "shop.example.com"))
    table.put_app(app(instances=[instance(N1, 1)], domains=domains))
    plain, secure = f"{N1}/35s", f"{N1}/35s/https"
    expected = {**dict.fromkeys(("shop.localhost", *domains), plain), "shop.example.com": secure}
    assert scopes(cache) == expected
    certificates.put(one("wild", "*.example.org"))
    expected["a.example.org"] = secure
    assert scopes(cache) == expected
    rules = message(ROUTES).FromString(cache.of(ROUTES)[secure].value).virtual_hosts[0].routes
    assert (rules[0].redirect.https_redirect, rules[0].redirect.port_redirect) == (True, 443)
    assert len(rules) == 1 + len(
        message(ROUTES).FromString(cache.of(ROUTES)[plain].value).virtual_hosts[0].routes
    )
    # What is on no node yet, too, and nothing is left of either once it is gone.
    table.put_app(app(domains=domains))
    assert scopes(cache)["a.example.org"] == "nobody/NO_NODE_AVAILABLE/https"
    for name in ("before", "wild"):
        certificates.remove(f"certificates/{name}")
    assert set(scopes(cache).values()) == {"nobody/NO_NODE_AVAILABLE"}
    table.remove_app("apps/shop")
    assert sorted(cache.of(ROUTES)) == [plain]
    assert sorted(cache.of(SCOPE)) == [f"k:{plain}"]


def test_without_a_port_for_https_nothing_is_sent_there() -> None:
    cache = ResourceCache()
    table = RoutingTable(cache, is_covered=lambda _: True)
    table.put_app(app())
    table.recertified("*.localhost")
    assert set(scopes(cache).values()) == {"nobody/NO_NODE_AVAILABLE"}


def test_the_https_listener_asks_for_certificates_by_name_and_is_else_as_the_other() -> None:
    found = https_listener(ListenerSpec("127.0.0.1", 8443))
    (chain,) = found.filter_chains
    context = message(f"{tls._TLS}.v3.DownstreamTlsContext").FromString(
        chain.transport_socket.typed_config.value
    )
    assert list(context.common_tls_context.alpn_protocols) == ["h2", "http/1.1"]
    assert context.common_tls_context.custom_tls_certificate_selector.typed_config.type_url.endswith(
        "on_demand_secret.v3.Config"
    )
    assert chain.transport_socket_connect_timeout.seconds > 0
    assert found.DESCRIPTOR.full_name == LISTENER


def test_settings_of_https(tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "token").write_text("x" * 40 + "\n")
    (tmp_path / "short").write_text("x")
    flags = ["--https-listen", "127.0.0.1:0", "--gateway-token-file", str(tmp_path / "token")]
    settings = Settings.from_command_line(flags)
    assert (settings.gateway_token, settings.redirect_port(8443)) == ("x" * 40, 8443)
    assert Settings.from_command_line([*flags, "--https-redirect", "443"]).redirect_port(8443) == 443
    assert Settings.from_command_line([*flags, "--https-redirect", "off"]).redirect_port(8443) == 0
    assert Settings.from_command_line([]).redirect_port(0) == 0
    for wrong, said in (
        (flags[:2], "--gateway-token-file (APPSUPERVISOR_GATEWAY_TOKEN_FILE): is needed with --https-listen"),
        ([*flags, "--https-redirect", "0"], "must be on, off, or a port"),
        (["--gateway-token-file", str(tmp_path / "none")], "cannot be read as a token"),
        (["--gateway-token-file", str(tmp_path / "short")], "must hold one word of 32"),
    ):
        with pytest.raises(SystemExit):
            Settings.from_command_line(wrong)
        assert said in capsys.readouterr().err


def test_what_is_told_is_served_and_keys_that_never_come_hold_up_nothing() -> None:
    told = pb.WatchCertificatesResponse(
        certificate=pb.Certificate(name="certificates/a", domains=["a.example.com"], chain_pem="chain of a"),
        private_key_pem="key",
    )
    told.certificate.expire_time.FromMicroseconds(1)
    assert served(told) == one("a", "a.example.com")
    ready: list[bool] = []
    certificates = Certificates(CertificateTable(), "token", lambda: None)
    table = RoutingTable(ResourceCache())
    subscriber = Subscriber(["127.0.0.1:1"], table, lambda: ready.append(True), certificates)
    for name in ("WatchApps", "WatchNodes"):
        subscriber._is_synced(name)
    subscriber._keys_refused("STORE_UNAVAILABLE")
    assert not ready
    subscriber._keys_refused("PRIVATE_KEYS_NOT_GIVEN")
    subscriber._keys_refused("PRIVATE_KEYS_NOT_GIVEN")
    assert ready == [True]
    assert "token" not in repr(certificates).replace("token=", "")
