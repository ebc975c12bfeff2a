"""Any app at all, drawn: normalizing and checking it never fail, and settle at once."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from appsupervisor.catalog.v1.app_catalog_pb2 import App
from services.control_plane.rules.app_defaults import normalize_app
from services.control_plane.rules.app_rules import app_violations
from tests.unit.rules.test_app_rules import broken, valid

INT32 = st.integers(-(2**31), 2**31 - 1) | st.integers(0, 20)
SPANS = st.fixed_dictionaries({}, optional={"seconds": st.integers(-(2**63), 2**63 - 1), "nanos": INT32})
STRINGS = st.text(max_size=12)
MAPS = st.dictionaries(STRINGS, STRINGS, max_size=3)


def group(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({}, optional=fields)


ANY_APP = group(
    name=STRINGS,
    display_name=STRINGS,
    labels=MAPS,
    annotations=MAPS,
    entrypoint=STRINGS,
    env=MAPS,
    secret_env=MAPS,
    domains=st.lists(STRINGS, max_size=3),
    environment=STRINGS,
    replicas=INT32,
    activation=INT32,
    idle_timeout=SPANS,
    isolation=INT32,
    desired_state=INT32,
    uid=STRINGS,
    etag=STRINGS,
    config=st.dictionaries(
        STRINGS, st.none() | st.floats() | STRINGS | st.lists(st.booleans(), max_size=2), max_size=2
    ),
    database=st.sampled_from([{}, {"no_database": {}}, {"external": {}}, {"external": {"secret_key": "K"}}]),
    limits=group(
        max_threads=INT32,
        max_queued_requests=INT32,
        cpu_millis=INT32,
        request_timeout=SPANS,
        stop_timeout=SPANS,
        block_action=INT32,
    ),
    health_check=group(path=STRINGS, interval=SPANS, timeout=SPANS, success_threshold=INT32),
    restart_policy=group(mode=INT32, max_restarts=INT32, min_backoff=SPANS, max_backoff=SPANS, period=SPANS),
).map(lambda fields: App(**fields))


@given(ANY_APP)
def test_normalizing_and_checking_never_fail_and_settle_at_once(app: App) -> None:
    before = app.SerializeToString(deterministic=True)
    full = normalize_app(app)
    assert {found.field for found in app_violations(full)} <= {found.field for found in app_violations(app)}
    assert normalize_app(full).SerializeToString(deterministic=True) == full.SerializeToString(
        deterministic=True
    )
    assert app.SerializeToString(deterministic=True) == before


@given(st.text(max_size=30))
def test_a_domain_in_normal_form_stays_as_it_is(text: str) -> None:
    once = list(normalize_app(valid(domains=[text])).domains)
    if app_violations(valid(domains=[text])) == []:
        assert list(normalize_app(valid(domains=once)).domains) == once
        assert broken(domains=once) == []
