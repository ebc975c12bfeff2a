"""Tells at a glance that a pass over an app would find all as it is stored. Pure.

By what is packed of it, in a tenth of a pass's time: of a control plane that starts with 100,000 apps, and of
nodes that come back, nearly all are so.
"""

from __future__ import annotations

from collections.abc import Mapping

from appsupervisor.catalog.v1.app_catalog_pb2 import App
from appsupervisor.runtime.v1.runtime_environment_pb2 import Condition, Instance
from services.control_plane.placement.snapshot import READY
from services.control_plane.rules.conditions import get_condition
from services.control_plane.store.packed_app import PackedApp
from services.control_plane.store.records import PlacementRecord, Role


def is_at_rest(
    app: PackedApp, placements: tuple[PlacementRecord, ...], node: str, shown: Mapping[str, Instance]
) -> bool:
    """Tell whether an app is as it is wanted, and stored as `node`, which is heard, shows its instances.

    Of the usual app alone, which has one placement and no database on a server: of any other it says no.
    """
    if len(placements) != 1 or len(shown) > 1 or app.reconciling or app.deleting or app.database_server:
        return False
    if app.autoscaled or app.on_trial or app.failed_generation is not None:
        return False
    (home,) = placements
    stands = home.role is Role.CURRENT and home.node == node and home.app_uid == app.uid
    if not stands or (home.generation, home.epoch) != (app.target_generation, app.target_epoch):
        return False
    instance = shown.get(home.instance)
    if instance is None:
        return not shown and app.state == Instance.STOPPED and _is_told(app, None)
    return app.state in READY and app.state == instance.state and _is_told(app, instance)


def _is_told(app: PackedApp, instance: Instance | None) -> bool:
    status = App.FromString(app.status)
    if status.observed_generation != app.generation or status.newest_epoch or status.retained_data:
        return False
    if status.HasField("data_move") or status.HasField("database_move") or status.HasField("canary"):
        return False
    if status.availability_reason == App.ONLY_NODE:
        return False
    ready = get_condition(status.conditions, "Ready")
    if ready is None or ready.status != (Condition.MET if instance is not None else Condition.UNMET):
        return False  # it has been told as one whose node is silent, say
    told = status.instances
    return len(told) == 1 and told[0] == instance if instance is not None else not told
