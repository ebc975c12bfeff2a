"""Orders, page tokens, resume tokens, page sizes."""

from __future__ import annotations

import base64
import heapq
import json
from functools import cmp_to_key

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from appsupervisor.catalog.v1.app_catalog_pb2 import App
from services.control_plane.rules import paging
from services.control_plane.rules.ordering import Order, compile_order
from services.rpc.errors import SupervisorError

FIELDS = ["name", "display_name", "environment", "state", "health", "create_time", "update_time"]


def make_app(name: str, title: str, state: int, seconds: int, nanos: int) -> App:
    app = App(name=f"apps/{name}", display_name=title, environment=f"environments/{title or 'a'}")
    app.state = state  # type: ignore[assignment]
    app.health = state % 5  # type: ignore[assignment]
    app.create_time.seconds, app.create_time.nanos = seconds, nanos
    app.update_time.seconds = -seconds
    return app


APPS = st.lists(
    st.builds(
        make_app,
        st.text("abc", min_size=1, max_size=4),
        st.text("abä\U0001f600", max_size=3),
        st.integers(0, 8),
        st.integers(0, 3),
        st.integers(0, 2),
    ),
    max_size=30,
    unique_by=lambda app: app.name,
)
ORDERS = st.lists(
    st.tuples(st.sampled_from(FIELDS), st.sampled_from(["", " desc"])), max_size=4, unique_by=lambda f: f[0]
).map(lambda fields: ", ".join(field + suffix for field, suffix in fields))


def compare(order: str, left: App, right: App) -> int:
    """Compare as the contract says it, field by field."""
    for item in [*filter(None, order.split(", ")), "name"]:
        field, _, suffix = item.partition(" ")
        pair = [getattr(app, field) for app in (left, right)]
        if field.endswith("_time"):
            pair = [(time.seconds, time.nanos) for time in pair]
        if pair[0] != pair[1]:
            return (-1 if pair[0] < pair[1] else 1) * (-1 if suffix else 1)
    return 0


def take(apps: list[App], order: Order, size: int, token: str, digest: str = "d") -> tuple[list[App], str]:
    """Return one page and the token of the next, the way ListApps does."""
    keyed = [(order.key(app), app) for app in apps]
    if token:
        after = paging.decode_page_token(token, digest)
        keyed = [pair for pair in keyed if order.follows(pair[0], after)]
    page = heapq.nsmallest(size + 1, keyed, key=lambda pair: order.sort_key(pair[0]))
    more = paging.encode_page_token(page[size - 1][0], digest) if len(page) > size else ""
    return [app for _, app in page[:size]], more


@given(APPS, ORDERS)
def test_an_order_sorts_as_its_text_says_and_ties_by_name(apps: list[App], text: str) -> None:
    order = compile_order(text)
    expected = sorted(apps, key=cmp_to_key(lambda left, right: compare(text, left, right)))
    assert sorted(apps, key=lambda app: order.sort_key(order.key(app))) == expected


@given(APPS, ORDERS, st.integers(1, 7))
def test_pages_give_each_app_once_and_in_order(apps: list[App], text: str, size: int) -> None:
    order = compile_order(text)
    seen, token = take(apps, order, size, "")
    while token:
        page, token = take(apps, order, size, token)
        assert page
        seen += page
    assert seen == sorted(apps, key=lambda app: order.sort_key(order.key(app)))


@given(APPS, APPS, ORDERS, st.integers(1, 4), st.data())
def test_pages_give_what_stays_once_whatever_comes_and_goes(
    apps: list[App], others: list[App], text: str, size: int, data: st.DataObject
) -> None:
    order = compile_order(text)
    names = {app.name for app in apps}
    coming = [app for app in others if app.name not in names]
    going = data.draw(st.lists(st.sampled_from(apps), unique_by=lambda app: app.name)) if apps else []
    leaving = {app.name for app in going}
    staying = [app for app in apps if app.name not in leaving]
    present = list(apps)
    seen, token = take(present, order, size, "")
    while token:
        if coming:
            present.append(coming.pop())
        if going:
            present.remove(going.pop())
        page, token = take(present, order, size, token)
        seen += page
    told = [app.name for app in seen]
    assert len(told) == len(set(told))
    assert {app.name for app in staying} <= set(told)


def test_no_order_is_by_name_and_known_as_the_default() -> None:
    assert compile_order("").is_default
    assert compile_order("  name ").is_default
    assert compile_order("name, state desc").is_default
    assert not compile_order("name desc").is_default
    assert not compile_order("state").is_default


@pytest.mark.parametrize(
    "text",
    [
        "bogus",
        "name asc",
        "name DESC",
        "name desc desc",
        ",",
        "name,",
        "name name",
        "name,name",
        "uid",
        "x" * 300,
    ],
)
def test_a_malformed_order_is_refused(text: str) -> None:
    with pytest.raises(SupervisorError) as caught:
        compile_order(text)
    assert caught.value.reason == "INVALID_ORDER_BY"
    assert caught.value.violations[0].field == "order_by"


@given(st.text(min_size=1, max_size=60).filter(str.strip))
def test_any_other_order_text_is_refused(text: str) -> None:
    assume(not any(field in text for field in FIELDS))
    with pytest.raises(SupervisorError) as caught:
        compile_order(text)
    assert caught.value.reason == "INVALID_ORDER_BY"


POSITIONS = st.lists(st.text(max_size=20) | st.integers(), min_size=1, max_size=4).map(tuple)


@given(POSITIONS, st.text(max_size=20))
def test_a_page_token_carries_its_position_and_is_safe_in_a_url(
    position: tuple[str | int, ...], digest: str
) -> None:
    token = paging.encode_page_token(position, digest)
    assert paging.decode_page_token(token, digest) == position
    assert token.replace("-", "").replace("_", "").isalnum()
    assert token.isascii()


def test_a_page_token_is_refused_when_the_request_changed() -> None:
    token = paging.encode_page_token(("apps/a",), "filter-1")
    with pytest.raises(SupervisorError) as caught:
        paging.decode_page_token(token, "filter-2")
    assert caught.value.reason == "INVALID_PAGE_TOKEN"
    assert "other fields" in caught.value.message


def forged(payload: object) -> str:
    body = json.dumps(payload).encode()
    return base64.urlsafe_b64encode(paging._checksum(body) + body).rstrip(b"=").decode()


@given(
    st.text(max_size=100)
    | st.binary(max_size=60).map(lambda raw: base64.urlsafe_b64encode(raw).decode())
    | st.recursive(st.none() | st.integers() | st.text(), st.lists).map(forged)
)
def test_garbage_is_no_token(text: str) -> None:
    with pytest.raises(SupervisorError) as caught:
        paging.decode_page_token(text, "d")
    assert caught.value.reason == "INVALID_PAGE_TOKEN"
    with pytest.raises(SupervisorError) as caught:
        paging.decode_resume_token(text, "c")
    assert caught.value.reason == "INVALID_RESUME_TOKEN"


@given(st.data())
def test_a_token_with_one_character_changed_is_no_token(data: st.DataObject) -> None:
    token = paging.encode_page_token(("apps/shop", 7), "d")
    at = data.draw(st.integers(0, len(token) - 2))  # the last one may hold bits that are not used
    other = data.draw(st.sampled_from("ABCabc019-_").filter(lambda c: c != token[at]))
    with pytest.raises(SupervisorError):
        paging.decode_page_token(token[:at] + other + token[at + 1 :], "d")


@pytest.mark.parametrize("position", [("apps/a",), (1, 2), ("a", "b"), (1, "a", "b")])
def test_a_position_of_another_order_is_refused(position: tuple[str | int, ...]) -> None:
    order = compile_order("state")
    with pytest.raises(SupervisorError) as caught:
        order.follows((1, "apps/a"), position)
    assert caught.value.reason == "INVALID_PAGE_TOKEN"


@pytest.mark.parametrize(
    ("asked", "given_"), [(0, 50), (1, 1), (1000, 1000), (1001, 1000), (2**31 - 1, 1000)]
)
def test_a_page_size_is_taken_into_its_bounds(asked: int, given_: int) -> None:
    assert paging.page_size(asked) == given_


def test_a_negative_page_size_is_refused() -> None:
    with pytest.raises(SupervisorError) as caught:
        paging.page_size(-1)
    assert caught.value.violations[0].field == "page_size"


@given(st.integers(0, 2**63), st.text(max_size=20))
def test_a_resume_token_carries_its_revision(revision: int, digest: str) -> None:
    token = paging.encode_resume_token("catalog", "h", revision, digest)
    assert paging.decode_resume_token(token, "catalog", digest) == ("h", revision)


@pytest.mark.parametrize(("catalog", "digest"), [("other", ""), ("catalog", "filter")])
def test_a_resume_token_of_another_watch_is_refused(catalog: str, digest: str) -> None:
    token = paging.encode_resume_token("catalog", "h", 7)
    with pytest.raises(SupervisorError) as caught:
        paging.decode_resume_token(token, catalog, digest)
    assert caught.value.reason == "INVALID_RESUME_TOKEN"


def test_the_two_kinds_of_token_do_not_pass_for_each_other() -> None:
    with pytest.raises(SupervisorError):
        paging.decode_page_token(paging.encode_resume_token("d", "h", 7), "d")
    with pytest.raises(SupervisorError):
        paging.decode_resume_token(paging.encode_page_token(("", 7), "catalog"), "catalog")
