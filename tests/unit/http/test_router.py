import threading

import pytest

from runtime_node.http import Gate, Router


def test_base_domain_can_be_chosen():
    router = Router("Apps.Example")
    gate = Gate("a")
    router.set("a", [], gate)
    assert router.lookup(b"a.apps.example:1", None, b"/") == (gate, "")
    assert not isinstance(router.lookup(b"apps.example", b"a", b"/"), type(None))
    assert router.lookup(b"apps.example", b"a", b"/") == (gate, "")


def test_a_malformed_domain_changes_nothing():
    router = Router()
    first, second = Gate("1"), Gate("2")
    router.set("a", ["a.example"], first)
    with pytest.raises(ValueError, match="not a host name"):
        router.set("a", ["b.example", "not valid"], second)
    assert router.gate_of("a") is first
    assert router.lookup(b"a.example", None, b"/") == (first, "")


def test_all_names_of_an_app_switch_and_domains_come_and_go():
    router = Router()
    first, second = Gate("1"), Gate("2")
    router.set("a", ["one.example", "two.example"], first)
    router.set("a", ["two.example", "three.example"], second)
    assert router.lookup(b"two.example", None, b"/") == (second, "")
    assert router.lookup(b"three.example", None, b"/") == (second, "")
    assert router.lookup(b"a.localhost", None, b"/") == (second, "")
    assert getattr(router.lookup(b"one.example", None, b"/"), "status", None) == 404


def test_a_wildcard_is_for_what_is_right_below_it_and_nothing_else_has():
    router = Router("apps.example.com", path_hosts=["edge.example.com"])
    wild, exact = Gate("wild"), Gate("exact")
    router.set("wild", ["*.example.com"], wild)
    router.set("exact", ["shop.example.com"], exact)

    def answers(host: bytes) -> object:
        found = router.lookup(host, None, b"/")
        return found[0] if isinstance(found, tuple) else found.reason

    assert answers(b"Blog.example.com:80") is wild
    assert answers(b"shop.example.com") is exact
    assert answers(b"exact.apps.example.com") is exact
    assert answers(b"none.apps.example.com") == "APP_NOT_FOUND"
    for host in (b"example.com", b"a.b.example.com", b"apps.example.com", b"edge.example.com"):
        assert answers(host) == "NO_APP_NAMED"
    router.remove("exact", exact)
    assert answers(b"shop.example.com") is wild
    router.remove("wild", wild)
    assert answers(b"shop.example.com") == "NO_APP_NAMED"


def test_a_domain_taken_over_stays_with_its_new_app():
    router = Router()
    first, second = Gate("1"), Gate("2")
    router.set("a", ["x.example"], first)
    router.set("b", ["x.example"], second)
    router.set("a", [], first)
    router.remove("a", first)
    assert router.lookup(b"x.example", None, b"/") == (second, "")


def test_a_reader_never_finds_a_switching_app_missing():
    router = Router()
    gates = [Gate(str(number)) for number in range(2)]
    router.set("a", ["x.example"], gates[0])
    stop = threading.Event()

    def switch() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            router.set("a", ["x.example", f"y{number % 3}.example"], gates[number % 2])

    writer = threading.Thread(target=switch)
    writer.start()
    try:
        for _ in range(20_000):
            for host in (b"x.example", b"a.localhost"):
                found = router.lookup(host, None, b"/")
                assert isinstance(found, tuple)
                assert found[0] in gates
    finally:
        stop.set()
        writer.join()
