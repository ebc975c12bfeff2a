"""Where an app runs moves from its row to its placements."""

from typing import Any

import sqlalchemy as sa
from alembic import op

from appsupervisor.catalog.v1.app_catalog_pb2 import App

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_CURRENT, _INCOMING, _OUTGOING = 2, 1, 3
_STOPPED = 2
_KEPT = (
    "entrypoint", "config", "env", "secret_env", "database", "domains", "activation", "idle_timeout",
    "isolation", "limits", "health_check", "restart_policy",
)  # fmt: skip


def upgrade() -> None:
    """Make the placements that the rows tell of, and drop what told of them."""
    connection = op.get_bind()
    apps = sa.Table("apps", sa.MetaData(), autoload_with=connection)
    placements = sa.Table("placements", sa.MetaData(), autoload_with=connection)
    changes = sa.Table("changes", sa.MetaData(), autoload_with=connection)
    oldest = connection.execute(sa.text("SELECT oldest_revision FROM meta")).scalar() or 0
    rows = [row for app in connection.execute(sa.select(apps)).mappings() for row in _placements(app)]
    for start in range(0, len(rows), 1000):
        connection.execute(placements.insert(), rows[start : start + 1000])
    told = [row for row in rows if row["revision"] > oldest]
    for start in range(0, len(told), 1000):
        connection.execute(
            changes.insert(),
            [
                {
                    "revision": row["revision"], "kind": "placement", "key": row["name"],
                    "deleted": False, "time": row["since"],
                }
                for row in told[start : start + 1000]
            ],
        )  # fmt: skip
    for column in ("node", "served_generation", "served_epoch", "served_spec"):
        op.drop_column("apps", column)


def _placements(app: sa.RowMapping) -> list[dict[str, Any]]:
    if not app["node"]:
        return []
    spec = App.FromString(app["spec"])
    target = app["target_generation"], app["target_epoch"]
    served = app["served_generation"], app["served_epoch"]
    found = []
    if served[0] is not None and (app["served_spec"] is not None or served[0] == target[0]):
        before = App.FromString(app["served_spec"]) if app["served_spec"] is not None else spec
        status = App.FromString(app["status"])
        # Of a dormant app it isn't known whether it ever ran, unless it is told.
        ran = any(instance.HasField("ready_time") for instance in status.instances)
        keeps = before.database.WhichOneof("kind") in (None, "sqlite")
        found.append((served, _CURRENT, before, keeps and (ran or before.activation != 2)))
    stays = found and (served == target or spec.desired_state == _STOPPED)
    given_up = found and (app["failed_generation"], app["failed_epoch"]) == target
    if not stays and not given_up:
        found.append((target, _INCOMING, spec, bool(found) and found[0][3]))
    return [
        {
            "name": f"{app['name']}/placements/g{version[0]}-e{version[1]}",
            "app": app["name"],
            "app_uid": app["uid"],
            "replica": 0,
            "generation": version[0],
            "epoch": version[1],
            "node": app["node"],
            "role": _OUTGOING if app["deleting"] else role,
            "spec": _pinned(known),
            "why": "It was there before.",
            "has_data": has_data,
            "since": app["update_time"],
            "revision": app["revision"],
        }
        for version, role, known, has_data in found
    ]


def _pinned(spec: App) -> bytes:
    kept = App()
    kept.CopyFrom(spec)
    for field, _ in spec.ListFields():
        if field.name not in _KEPT:
            kept.ClearField(field.name)  # type: ignore[arg-type]
    return kept.SerializeToString(deterministic=True)


def downgrade() -> None:
    """Refuse: an older program refuses a newer catalog; a backup is the way back."""
    raise NotImplementedError("The catalog's schema only goes forward; restore a backup instead.")
