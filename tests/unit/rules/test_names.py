"""Resource names and ids."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.control_plane.rules import names
from services.rpc.errors import SupervisorError

IDS = st.from_regex(r"[a-z]([a-z0-9-]{0,20}[a-z0-9])?", fullmatch=True)


@pytest.mark.parametrize("value", ["a", "a1", "shop", "a-b", "a--b", "x" * 63])
def test_an_id_by_the_rules_is_accepted(value: str) -> None:
    assert names.validate_id("app_id", value) == []


@pytest.mark.parametrize(
    "value", ["", "1a", "-a", "a-", "A", "a_b", "a.b", "a/b", "x" * 64, "a\n", "ä", "a b", "..", "apps/a"]
)
def test_an_id_against_the_rules_is_told_with_its_field(value: str) -> None:
    assert [found.field for found in names.validate_id("app_id", value)] == ["app_id"]


@pytest.mark.parametrize("word", sorted(names.RESERVED_WORDS))
def test_reserved_words_are_refused_only_where_they_are_reserved(word: str) -> None:
    assert "reserved" in names.validate_id("app_id", word)[0].rule
    assert names.validate_id("node_id", word, reserved=False) == []


def test_a_reserved_word_can_be_looked_up() -> None:
    assert names.parse_app_name("apps/admin") == "admin"


@given(IDS, IDS)
def test_every_name_that_is_made_is_parsed_back(first: str, second: str) -> None:
    assert names.parse_app_name(names.app_name(first)) == first
    assert names.parse_environment_name(names.environment_name(first)) == first
    assert names.parse_operation_name(names.operation_name(first)) == first
    assert names.parse_node_name(names.node_name(first, second)) == (first, second)
    assert names.is_environment_name(names.environment_name(first))


PARSERS: list[tuple[Callable[..., Any], str]] = [
    (names.parse_app_name, r"apps/[a-z][a-z0-9-]*"),
    (names.parse_environment_name, r"environments/[a-z][a-z0-9-]*"),
    (names.parse_node_name, r"environments/[a-z][a-z0-9-]*/nodes/[a-z][a-z0-9-]*"),
    (names.parse_operation_name, r"operations/[a-z0-9][a-z0-9-]*"),
]


@given(st.text(st.sampled_from("apps/environments/nodes/-.A1\n"), max_size=40) | st.text(max_size=40))
def test_any_text_is_either_parsed_or_refused_as_a_field(text: str) -> None:
    for parse, form in PARSERS:
        if re.fullmatch(form, text) and not text.endswith("-") and "-/" not in text:
            assert parse(text, "parent")
            continue
        with pytest.raises(SupervisorError) as caught:
            parse(text, "parent")
        assert caught.value.reason == "INVALID_FIELD"
        assert caught.value.violations[0].field == "parent"


def test_a_wildcard_is_taken_only_where_it_is_asked_for() -> None:
    assert names.parse_environment_name("environments/-", "parent", wildcard=True) == "-"
    assert names.parse_app_name("apps/-", "parent", wildcard=True) == "-"
    with pytest.raises(SupervisorError):
        names.parse_environment_name("environments/-", "parent")


def test_the_ids_the_system_gives_may_begin_with_a_digit() -> None:
    assert names.parse_operation_name("operations/0190-ab") == "0190-ab"


@pytest.mark.parametrize("value", ["", "5f0c3a52-7e1d-4a3b-9d8e-000000000000", "x" * 128, "dé jà"])
def test_a_printable_request_id_is_accepted(value: str) -> None:
    assert names.request_id_violations("request_id", value) == []


@pytest.mark.parametrize("value", ["x" * 129, "a\nb", "\0"])
def test_a_long_or_unprintable_request_id_is_refused(value: str) -> None:
    assert [found.field for found in names.request_id_violations("request_id", value)] == ["request_id"]
