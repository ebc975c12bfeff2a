"""Etags and conditions."""

from __future__ import annotations

import pytest

from appsupervisor.catalog.v1.app_catalog_pb2 import App
from appsupervisor.runtime.v1.runtime_environment_pb2 import Condition
from services.control_plane.rules.conditions import get_condition, set_condition
from services.control_plane.rules.etags import app_etag, etag_matches

UID = "0b5dfe3c-2f70-4a52-9f6f-6a6a7b8c9d0e"


def test_an_etag_changes_with_the_generation_and_the_app() -> None:
    assert len({app_etag(UID, 1), app_etag(UID, 2), app_etag("another0", 1)}) == 3


def test_every_form_of_an_etag_matches() -> None:
    current = app_etag(UID, 3)
    for given_ in (current, f"W/{current}", current.strip('"'), ""):
        assert etag_matches(given_, current)


@pytest.mark.parametrize("given_", ["*", '""', "W/", app_etag(UID, 4), "garbage"])
def test_another_etag_does_not_match(given_: str) -> None:
    assert not etag_matches(given_, app_etag(UID, 3))


def test_the_transition_time_of_a_condition_follows_its_status_alone() -> None:
    conditions = App().conditions
    assert set_condition(conditions, "Ready", Condition.UNMET, "Starting", "One.", 1_000_001)
    assert set_condition(conditions, "Ready", Condition.UNMET, "APP_CRASHED", "Two.", 2_000_000)
    ready = get_condition(conditions, "Ready")
    assert ready is not None
    assert (ready.reason, ready.message) == ("APP_CRASHED", "Two.")
    assert ready.last_transition_time.ToMicroseconds() == 1_000_001
    assert set_condition(conditions, "Ready", Condition.MET, "Serving", "Three.", 3_000_000)
    assert ready.last_transition_time.ToMicroseconds() == 3_000_000


def test_setting_a_condition_as_it_is_changes_nothing() -> None:
    conditions = App().conditions
    set_condition(conditions, "Ready", Condition.MET, "Serving", "", 1)
    before = conditions[0].SerializeToString()
    assert not set_condition(conditions, "Ready", Condition.MET, "Serving", "", 2)
    assert conditions[0].SerializeToString() == before


def test_conditions_of_other_types_are_left_alone() -> None:
    conditions = App().conditions
    set_condition(conditions, "Ready", Condition.MET, "Serving", "", 1)
    set_condition(conditions, "Scheduled", Condition.MET, "Placed", "", 2)
    assert [condition.type for condition in conditions] == ["Ready", "Scheduled"]
    assert get_condition(conditions, "Updated") is None
