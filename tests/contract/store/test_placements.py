"""Placements in every store: kept, found by app and by node, logged as changes, gone with their app."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from services.control_plane.store.interface import CatalogStore, Transaction
from services.control_plane.store.records import Role
from tests.contract.store.samples import WAIT, app, placement, placements, put

NODE = "environments/default/nodes/n"


def test_every_field_of_a_placement_survives(catalog: Any) -> None:
    record = replace(
        placement("apps/a", epoch=7, role=Role.INCOMING),
        replica=2,
        generation=5,
        spec=b"\x00spec",
        why="It is the only one.",
        has_data=True,
        since=12,
    )
    assert (record.name, record.instance) == ("apps/a/placements/g5-e7-r2", "apps/a/instances/g5-e7-r2")
    revision = catalog.open().write(put(app("apps/a"), record)).result(WAIT)
    mirror = catalog.reopen().mirror
    assert placements(mirror) == {record.name: (revision, replace(record, revision=revision))}
    assert mirror.placements_of("apps/a") == (replace(record, revision=revision),)


def test_a_command_sees_the_placements_that_it_and_those_before_it_have_put(store: CatalogStore) -> None:
    old, new = placement("apps/a"), placement("apps/a", epoch=2, role=Role.INCOMING)

    def swap(tx: Transaction) -> list[str]:
        assert [it.name for it in tx.placements_of("apps/a")] == [old.name]
        tx.put_placement(new)
        tx.delete_placement(old)
        return [it.name for it in tx.placements_of("apps/a")]

    first = store.write(put(app("apps/a"), old))
    assert store.write(swap).result(WAIT) == [new.name]
    first.result(WAIT)
    assert [it.name for it in store.mirror.placements_of("apps/a")] == [new.name]
    assert store.mirror.placements_of("apps/b") == ()


def test_an_app_takes_its_placements_along_when_it_goes_or_another_takes_its_name(catalog: Any) -> None:
    store = catalog.open()
    store.write(put(app("apps/a"), placement("apps/a"), app("apps/b"), placement("apps/b"))).result(WAIT)
    store.write(lambda tx: tx.delete_app("apps/a")).result(WAIT)
    store.write(put(app("apps/b", uid="another"))).result(WAIT)
    for mirror in (store.mirror, catalog.reopen().mirror):
        assert placements(mirror) == {}
        assert mirror.placements_of("apps/b") == ()


@pytest.mark.parametrize(
    ("base", "found"),
    [
        ("example.com", [("a.example.com", "apps/a"), ("example.com", "apps/a")]),
        ("a.example.com", [("a.example.com", "apps/a")]),
        ("ample.com", []),
    ],
)
def test_domains_under_a_base_domain_are_found_with_their_apps(
    store: CatalogStore, base: str, found: list[tuple[str, str]]
) -> None:
    def command(tx: Transaction) -> list[tuple[str, str]]:
        tx.put_app(app("apps/c", domains=("given.up.example.com",)))
        tx.put_app(app("apps/c"))
        return tx.domains_under(base)

    store.write(put(app("apps/a", domains=("a.example.com", "example.com")))).result(WAIT)
    assert store.write(command).result(WAIT) == found
