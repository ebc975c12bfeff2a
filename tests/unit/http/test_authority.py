import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime_node.http.authority import AuthorityParser, normal_domain


@pytest.mark.parametrize(
    ("authority", "host"),
    [
        (b"", ""),
        (b"Shop.Example", "shop.example"),
        (b"shop.example.", "shop.example"),
        (b"shop.example:8080", "shop.example"),
        (b"shop.example:", "shop.example"),
        (b"shop_1:80", "shop_1"),
        (b"127.0.0.1:80", "127.0.0.1"),
        (b"[::1]", "[::1]"),
        (b"[0:0:0:0:0:0:0:1]:80", "[::1]"),
        (b"[::FFFE:1:2]", "[::fffe:1:2]"),
    ],
)
def test_authorities_have_one_normal_form(authority, host):
    parser = AuthorityParser()
    assert parser.parse(authority) == host
    assert parser.parse(authority) == host


@pytest.mark.parametrize(
    "authority",
    [
        b".",
        b"..",
        b"a..b",
        b".a",
        b"-a",
        b"a b",
        b"a,b",
        b"a/b",
        b"a:b",
        b"a:1:2",
        b"a:65536",
        b"u@a",
        b"a%2e",
        b"[::1",
        b"::1",
        b"[1]",
        b"[fe80::1%25eth0]",
        b"\xc3\xbc.example",
        b"a\0",
        b"a" * 300,
        b"[::1]x",
    ],
)
def test_malformed_authorities_are_told_apart(authority):
    assert AuthorityParser().parse(authority) is None


@given(st.binary(max_size=300))
def test_any_bytes_give_a_harmless_name_or_none(authority):
    host = AuthorityParser().parse(authority)
    assert host is None or all(c.isascii() and (c.isalnum() or c in "._-[]:") for c in host)


def test_what_is_remembered_is_bounded():
    parser = AuthorityParser()
    for number in range(20_000):
        parser.parse(b"host-%d" % number)
    assert len(parser._known) <= 8192


def test_international_domains_are_compared_as_punycode():
    assert normal_domain("Bücher.Example") == "xn--bcher-kva.example"
    assert normal_domain("straße.example") == "xn--strae-oqa.example"
    assert normal_domain("XN--BCHER-KVA.example.") == "xn--bcher-kva.example"


@pytest.mark.parametrize("domain", ["", "a b", "a/b", "a:80", "http://a", "*.a", "ü" * 100])
def test_what_is_no_host_name_is_no_domain(domain):
    with pytest.raises(ValueError):  # noqa: PT011 - its message is the library's for IDN
        normal_domain(domain)
