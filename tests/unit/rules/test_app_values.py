"""Rules of single values of an app's spec: names, labels, environment, databases, domains, paths."""

from __future__ import annotations

import pytest

from appsupervisor.catalog.v1.app_catalog_pb2 import App
from appsupervisor.runtime.v1.runtime_environment_pb2 import (
    Database,
)
from services.control_plane.rules.app_defaults import normalize_app
from services.control_plane.rules.app_rules import app_violations
from tests.unit.rules.specs import broken, valid


@pytest.mark.parametrize("text", ["a:b", "pkg.mod:app", "_p.m1:a.b", "pkg:Größe"])
def test_an_entrypoint_of_python_names_is_accepted(text: str) -> None:
    assert broken(entrypoint=text) == []


@pytest.mark.parametrize(
    "text",
    [
        *("", "pkg", ":app", "pkg:", "pkg:a:b", "pkg/mod:a", "pkg.:a", ".pkg:a", "pkg:a()", "pkg :a", "1p:a"),
        *("pkg.class:a", "pkg:import", "p\n:a", "a:" + "b" * 255),
    ],
)
def test_a_malformed_entrypoint_is_refused(text: str) -> None:
    assert broken(entrypoint=text) == ["entrypoint"]


@pytest.mark.parametrize("text", ["Bestellungen ☕", "x" * 128, "👩‍💻 dev", "", "שלום"])
def test_any_line_is_a_display_name(text: str) -> None:
    assert broken(display_name=text) == []


@pytest.mark.parametrize("text", ["x" * 129, "a\nb", "\x1b[31mred", "a\u202eb", "a\u2028b", "\x85"])
def test_a_display_name_that_breaks_its_line_is_refused(text: str) -> None:
    assert broken(display_name=text) == ["display_name"]


@pytest.mark.parametrize("key", ["tier", "a.b_c-D1", "example.com/tier", "x" * 63, "a" * 63 + ".com/x"])
def test_labels_of_kubernetes_are_accepted(key: str) -> None:
    assert broken(labels={key: "Gold_1.x-Y", f"{key[:50]}2": ""}) == []


@pytest.mark.parametrize(
    "key", ["", "-a", "a-", "a b", "/a", "a/", "A.com/x", "a/b/c", "x" * 64, "é", "a\n", "a" * 64 + ".com/x"]
)
def test_label_keys_that_kubernetes_refuses_are_refused(key: str) -> None:
    assert len(broken(labels={key: "x"})) == 1


@pytest.mark.parametrize("value", ["-a", "a b", "x" * 64, "é", "a\n", "."])
def test_label_values_that_kubernetes_refuses_are_refused(value: str) -> None:
    assert broken(labels={"tier": value}) == ['labels["tier"]']


def test_labels_and_annotations_are_counted() -> None:
    assert broken(labels={f"k{index}": "" for index in range(64)}) == []
    assert broken(labels={f"k{index}": "" for index in range(65)}) == ["labels"]
    assert broken(annotations={"note": "x" * (65536 - 4)}) == []
    assert broken(annotations={"note": "é" * 32767}) == ["annotations"]
    assert broken(annotations={"": "x", "any key / at all": "line\nline"}) == ['annotations[""]']


@pytest.mark.parametrize("field", ["env", "secret_env"])
def test_the_environment_of_an_app_is_bounded(field: str) -> None:
    assert broken(**{field: {f"K{index}": "v" for index in range(256)}}) == []
    assert broken(**{field: {f"K{index}": "v" for index in range(257)}}) == [field]
    assert broken(**{field: {"KEY": "x" * (65536 - 3)}}) == []
    assert broken(**{field: {"KEY": "x" * (65536 - 2)}}) == [field]


@pytest.mark.parametrize("key", ["", "1A", "A B", "A-B", "A=B", "É", "A\n"])
def test_a_malformed_environment_key_is_refused(key: str) -> None:
    assert len(broken(env={key: "x"})) == 1


def test_violations_name_the_entry_and_keep_secrets_to_themselves() -> None:
    found = app_violations(valid(env={"A B": "x"}, secret_env={"A": "hunter2\0", "B-": "hunter2"}))
    assert [violation.field for violation in found] == [
        'app.env["A B"]',
        'app.secret_env["A"]',
        'app.secret_env["B-"]',
    ]
    assert "hunter2" not in repr(found)


def test_a_long_or_odd_key_is_shown_cut_and_escaped() -> None:
    fields = broken(env={"\n" * 500: "x", 'a"b': "x"})
    assert 'env["a\\"b"]' in fields
    assert all(len(field) < 200 and field.isprintable() for field in fields)


def test_a_key_is_either_secret_or_not() -> None:
    assert broken(env={"A": "1"}, secret_env={"A": "2"}) == ['secret_env["A"]']


def test_an_external_database_names_a_secret() -> None:
    database = {"external": {"secret_key": "URL"}}
    assert broken(database=database, secret_env={"URL": "x"}) == []
    assert broken(database=database, env={"URL": "x"}) == ["database.external.secret_key"]
    assert broken(database={"external": {}}) == ["database.external.secret_key"]


def test_a_database_of_its_own_names_a_server() -> None:
    assert broken(database={"postgres": {"server": "databaseServers/main", "mode": 2}}) == []
    for server in ("", "main", "databaseServers/", "databaseServers/A", "databaseServers/a/b"):
        assert broken(database={"postgres": {"server": server}}) == ["database.postgres.server"]
    assert broken(database={"postgres": {"server": "databaseServers/a", "mode": 9}}) == [
        "database.postgres.mode"
    ]
    spec = App(database={"postgres": {"server": "databaseServers/a"}})
    assert normalize_app(spec).database.postgres.mode == Database.Postgres.SCHEMA


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("shop.example.com", "shop.example.com"),
        ("Shop.Example.COM.", "shop.example.com"),
        ("München.example", "xn--mnchen-3ya.example"),
        ("xn--mnchen-3ya.example", "xn--mnchen-3ya.example"),
        ("shop", "shop"),
        ("shop.localhost", "shop.localhost"),
        ("1and1.com", "1and1.com"),
        ("a" * 63 + ".de", "a" * 63 + ".de"),
        ("*.Example.com.", "*.example.com"),
        ("*.München.example", "*.xn--mnchen-3ya.example"),
    ],
)
def test_a_domain_is_kept_in_the_form_dns_has_it(text: str, normal: str) -> None:
    app = normalize_app(valid(domains=[text]))
    assert list(app.domains) == [normal]
    assert app_violations(app) == []
    assert app_violations(valid(domains=[text])) == []


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            "*",
            "*.",
            "*.*.a.de",
            "a.*.de",
            "*a.de",
            "*.1.2.3.4",
            "*.localhost",
            "1.2.3.4",
            "[::1]",
            "::1",
            "1.2",
            "a.0x7f",
            "localhost",
            "LOCALHOST.",
        ),
        *(
            "a..b",
            ".a",
            "-a.de",
            "a-.de",
            "a_b.de",
            "a b",
            "a:80",
            "http://a.de",
            "a/b",
            "xn--a.de",
            "a\n.de",
        ),
        *("a" * 64 + ".de", ".".join(["a" * 60] * 5), "é" * 300, "\u202ea.de", "a.de.."),
    ],
)
def test_what_is_no_plain_domain_is_refused(text: str) -> None:
    assert broken(domains=[text]) == ["domains[0]"]


def test_domains_are_counted_and_stand_once() -> None:
    assert broken(domains=[f"a{index}.de" for index in range(32)]) == []
    assert broken(domains=[f"a{index}.de" for index in range(33)]) == ["domains"]
    assert broken(domains=["a.de", "b.de", "A.de"]) == ["domains[2]"]


@pytest.mark.parametrize("path", ["/", "/health?full=1&x=%20", "/" + "x" * 1023])
def test_a_request_target_is_a_probe_path(path: str) -> None:
    assert broken(health_check={"path": path}) == []


@pytest.mark.parametrize("path", ["health", "/a b", "/a\r\nX: y", "/é", "/a#b", "/" + "x" * 1024])
def test_what_is_no_request_target_is_no_probe_path(path: str) -> None:
    assert broken(health_check={"path": path}) == ["health_check.path"]


@pytest.mark.parametrize("name", ["default", "environments/", "environments/A", "apps/x", "environments/a/b"])
def test_an_environment_is_named_by_its_resource_name(name: str) -> None:
    assert broken(environment=name) == ["environment"]
