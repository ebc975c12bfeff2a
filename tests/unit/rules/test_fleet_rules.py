"""Rules of environments and nodes."""

from __future__ import annotations

from typing import Any

import pytest

from appsupervisor.fleet.v1.fleet_pb2 import Environment, Node
from services.control_plane.rules.fleet_rules import environment_violations, node_violations


def broken(**fields: Any) -> list[str]:
    node = Node(
        **{"address": "node-1:7401", "http_address": "10.0.0.1:8080", "incarnation": "5e1f", **fields}
    )
    return [found.field for found in node_violations(node)]


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1:1",
        "[::1]:65535",
        "node-1:7401",
        "node_1.internal:80",
        "a.b.c:80",
        "localhost:7401",
        "x:007401",
    ],
)
def test_an_address_that_can_be_called_is_accepted(address: str) -> None:
    assert broken(address=address, http_address=address) == []


@pytest.mark.parametrize(
    "address",
    [
        *(
            "",
            "host",
            ":80",
            "host:",
            "host:0",
            "host:65536",
            "host:99999999999999999999",
            "host:0655359",
            "host:8o",
            "host:٣",
        ),
        *(
            "::1:80",
            "[::1]",
            "[10.0.0.1]:80",
            "[x]:80",
            "http://host:80",
            "host:80/x",
            "a b:80",
            "0.0.0.0:80",
        ),
        *("[::]:80", "unix:/run/x", "host:+80", "host: 80", "h" * 300 + ":80", "-h:80"),
    ],
)
def test_an_address_that_cannot_be_called_is_refused(address: str) -> None:
    assert broken(address=address) == ["node.address"]
    assert broken(http_address=address) == ["node.http_address"]


@pytest.mark.parametrize("domain", ["", "localhost", "apps.example.com"])
def test_a_base_domain_may_be_localhost(domain: str) -> None:
    assert broken(base_domain=domain) == []


@pytest.mark.parametrize("domain", ["*.example.com", "10.0.0.1", "a b", "a:80"])
def test_a_base_domain_is_a_plain_domain(domain: str) -> None:
    assert broken(base_domain=domain) == ["node.base_domain"]


@pytest.mark.parametrize("incarnation", ["", "x" * 65, "a b", "é", "a\n"])
def test_an_incarnation_is_one_short_visible_word(incarnation: str) -> None:
    assert broken(incarnation=incarnation) == ["node.incarnation"]


def test_every_violation_of_a_node_is_told_at_once() -> None:
    node = Node(labels={"a b": ""}, max_instances=-1, version="1\n2", base_domain="*", zone="a b")
    assert sorted(found.field for found in node_violations(node)) == [
        "node.address",
        "node.base_domain",
        "node.http_address",
        "node.incarnation",
        'node.labels["a b"]',
        "node.max_instances",
        "node.version",
        "node.zone",
    ]


def test_an_environment_has_the_rules_of_an_app_for_names_for_people_and_labels() -> None:
    assert environment_violations(Environment(display_name="Blue", labels={"tier": "1"})) == []
    found = environment_violations(Environment(display_name="x" * 129, labels={"": "-"}))
    assert [violation.field for violation in found] == [
        "environment.display_name",
        'environment.labels[""]',
        'environment.labels[""]',
    ]
