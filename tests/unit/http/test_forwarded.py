import pytest

from runtime_node.http.forwarded import TrustedProxies

PROXIES = TrustedProxies(["10.0.0.0/8", "fd00::/8"])


def applied(peer, *headers):
    scope = {"client": (peer, 1234), "scheme": "http", "headers": list(headers)}
    PROXIES.apply(scope)
    return scope["client"][0], scope["scheme"]


@pytest.mark.parametrize(
    ("peer", "chain", "client"),
    [
        ("10.0.0.1", [b"198.51.100.7"], "198.51.100.7"),
        ("10.0.0.1", [b"6.6.6.6, 198.51.100.7, 10.0.0.2"], "198.51.100.7"),
        ("10.0.0.1", [b"6.6.6.6", b"198.51.100.7"], "198.51.100.7"),
        ("10.0.0.1", [b"10.0.0.9, 10.0.0.2"], "10.0.0.9"),
        ("10.0.0.1", [b"6.6.6.6, nonsense"], "10.0.0.1"),
        ("fd00::1", [b"2001:db8::1"], "2001:db8::1"),
        ("198.51.100.1", [b"6.6.6.6"], "198.51.100.1"),
        ("10.0.0.1", [], "10.0.0.1"),
    ],
)
def test_the_last_address_that_is_no_proxy_is_the_client(peer, chain, client):
    assert applied(peer, *((b"x-forwarded-for", value) for value in chain))[0] == client


def test_only_known_schemes_are_taken():
    assert applied("10.0.0.1", (b"x-forwarded-proto", b"HTTPS"))[1] == "https"
    assert applied("10.0.0.1", (b"x-forwarded-proto", b"gopher"))[1] == "http"
    assert applied("198.51.100.1", (b"x-forwarded-proto", b"https"))[1] == "http"


def test_a_malformed_network_is_refused_at_the_start():
    with pytest.raises(ValueError, match="does not appear"):
        TrustedProxies(["not-a-network"])
