"""Apps as the mirror keeps them: nothing is lost, nothing secret shown, and few are kept whole."""

from __future__ import annotations

from dataclasses import replace

from appsupervisor.catalog.v1.app_catalog_pb2 import App, ListAppsResponse
from appsupervisor.runtime.v1.runtime_environment_pb2 import Condition, Instance
from services.control_plane.store.app_entries import AppEntries
from services.control_plane.store.records import AppRecord, Version
from services.control_plane.store.sql.rows import placement_record, placement_values
from services.rpc.feed import ChangeFeed
from tests.contract.store.samples import app, placement

SECRET = "hunter2"


def full(name: str) -> AppRecord:
    record = app(name, domains=("shop.example",))
    record.spec.secret_env["TOKEN"] = SECRET
    record.spec.labels["tier"] = "gold"
    record.status.conditions.append(Condition(type="Ready", status=Condition.MET))
    record.status.state = Instance.RUNNING
    return replace(record, failed=Version(3, 4), history="0a1b2c3d", revision=7)


def test_a_packed_app_is_unpacked_as_it_was() -> None:
    record = full("apps/a")
    again = AppRecord.unpacked(record.packed)
    assert again == record
    assert again.spec.secret_env["TOKEN"] == SECRET
    assert replace(again, generation=9).packed == record.packed._replace(generation=9)


def test_what_the_api_shows_is_spec_and_status_without_secrets() -> None:
    record = AppRecord.unpacked(full("apps/a").packed)
    shown = App()
    shown.CopyFrom(record.spec)
    shown.secret_env.clear()
    shown.MergeFrom(record.status)
    shown.uid, shown.generation, shown.etag = record.uid, record.generation, record.public.etag
    shown.create_time.FromMicroseconds(record.create_time)
    shown.update_time.FromMicroseconds(record.update_time)
    assert record.public == shown
    assert record.public.etag
    assert SECRET.encode() not in record.wire


def test_list_items_of_any_size_make_a_page() -> None:
    records = [full(f"apps/a{number}") for number in range(3)]
    records[1].spec.env["LONG"] = "x" * 300  # a length of two bytes
    records[2].spec.env["LONG"] = "x" * 20_000  # and of three
    page = ListAppsResponse.FromString(b"".join(record.list_item for record in records))
    assert list(page.apps) == [record.public for record in records]


def test_the_apps_asked_for_last_are_kept_whole_and_all_are_found() -> None:
    feed: ChangeFeed[AppRecord] = ChangeFeed(entry=AppEntries(whole=2))
    records = {f"apps/a{number}": full(f"apps/a{number}") for number in range(5)}
    feed.publish(1, records.items())
    assert {name: feed.get(name) for name in records} == records
    assert feed.get("apps/a4") is feed.get("apps/a4")
    held = feed.get("apps/a4")
    assert feed.get("apps/a0") == records["apps/a0"]
    assert feed.get("apps/a1") == records["apps/a1"]
    assert feed.get("apps/a4") is not held
    feed.publish(2, [("apps/a4", None)])
    assert (feed.get("apps/a4"), len(feed), [entry.key for entry in feed.since(1)]) == (None, 4, ["apps/a4"])


def test_a_placement_that_is_loaded_has_the_strings_of_its_app() -> None:
    record = full("apps/a")
    of_it = placement(record.name)
    row = tuple(value.encode().decode() if isinstance(value, str) else value
                for value in placement_values(of_it).values())  # fmt: skip
    assert placement_record(row) == of_it
    shared = placement_record(row, {record.name: record.packed})
    assert shared == of_it
    assert shared.app is record.name
    assert shared.app_uid is record.uid
    of_another = record.packed._replace(uid="another app's, of the same name")
    assert placement_record(row, {record.name: of_another}) == of_it
