"""Retained data in every store: kept, found by node, seen by later commands, logged as changes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from services.control_plane.store.interface import CatalogStore, Transaction
from services.control_plane.store.records import OperationRecord
from tests.contract.store.samples import WAIT, bare, contents, operation, put, retained


def test_every_field_of_retained_data_survives(catalog: Any) -> None:
    record = replace(retained(), generation=7)
    record.data.database.sqlite.SetInParent()
    record.data.delete_time.FromMicroseconds(5)
    revision = catalog.open().write(put(record)).result(WAIT)
    mirror = catalog.reopen().mirror
    assert contents(mirror.retained) == {record.name: (revision, replace(record, revision=revision))}


def test_a_command_sees_what_is_retained_on_a_node_and_not_on_one_whose_name_begins_alike(
    store: CatalogStore,
) -> None:
    here, gone, new = retained("uid-1"), retained("uid-2"), retained("uid-3")
    beside = retained("uid-4", node="environments/default/nodes/n2")

    def command(tx: Transaction) -> list[str]:
        tx.delete_retained(gone.name)
        tx.put_retained(new)
        return [record.data.uid for record in tx.retained_on(here.node)]

    store.write(put(here, gone, beside)).result(WAIT)
    assert store.write(command).result(WAIT) == ["uid-1", "uid-3"]
    assert store.write(lambda tx: tx.retained(gone.name)).result(WAIT) is None
    assert sorted(contents(store.mirror.retained)) == sorted([here.name, new.name, beside.name])


def test_changes_of_retained_data_are_followed_in_their_order(store: CatalogStore) -> None:
    before = store.write(put(retained())).result(WAIT)
    store.write(lambda tx: tx.delete_retained(retained().name)).result(WAIT)
    told = [(entry.key, entry.value) for entry in store.mirror.retained.since(before)]
    assert told == [(retained().name, None)]


def test_a_purge_ends_with_the_data_that_it_removed(catalog: Any) -> None:
    ended = replace(
        operation("operations/1", retained().name, done=True, expire_time=2**62),
        verb="purge", response=retained().data,
    )  # fmt: skip
    catalog.open().write(put(ended)).result(WAIT)
    found: OperationRecord | None = catalog.reopen().mirror.operations.get("operations/1")
    assert bare(found) == bare(ended)
