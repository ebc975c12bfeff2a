"""What one look at an app sees of the fleet: its nodes, with its instances on them as last told.

Immutable, so that a decision can be made from it again, in a transaction and on another thread.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum, auto

from appsupervisor.fleet.v1.fleet_pb2 import Node
from appsupervisor.runtime.v1.runtime_environment_pb2 import Instance
from services.control_plane.placement.choice import Candidate
from services.control_plane.store.records import PlacementRecord

READY = frozenset({Instance.RUNNING, Instance.IDLE})
ENDED = frozenset({Instance.FAILED, Instance.STOPPED})
"""States of an instance that its node leaves as it is."""


class Sight(Enum):
    """How well a node is known just now; one that is neither heard nor given up is not in a snapshot."""

    HEARD = auto()
    """Its stream is open: what it tells is all that is there."""
    SILENT = auto()
    """It was not heard for its time limit; what is known is what it told last."""
    LOST = auto()
    """Silent, and its lease has run out: it answers nobody for an app that is CONSISTENT, and others may."""


@dataclass(frozen=True, slots=True)
class NodeView:
    """One node, and all instances on it that have the app's name, by resource name."""

    node: Node
    sight: Sight
    instances: Mapping[str, Instance] = field(default_factory=dict)
    hindrance: tuple[str, str] | None = None
    """Why the app's last command was not carried out, for now: a reason and a sentence."""
    forwards: bool = False
    """It forwards requests for what has moved away from it; a node of an earlier version does not."""

    @property
    def heard(self) -> bool:
        """Whether the node is heard."""
        return self.sight is Sight.HEARD


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The nodes that an app has placements on, and those that could take one."""

    nodes: Mapping[str, NodeView] = field(default_factory=dict)
    candidates: tuple[Candidate, ...] = ()
    """Looked for only when the app has no placement, or one on a lost node."""
    gone: frozenset[str] = frozenset()
    """Nodes of the app's placements that have been deleted."""
    environment_cordoned: bool = False
    alone: frozenset[str] = frozenset()
    """Nodes of the app's placements that may serve it without a lease, until they are told otherwise."""
    leased: frozenset[str] = frozenset()
    """Those that are not heard and may serve the app, which is CONSISTENT, until their leases run out."""

    def heard(self, node: str) -> NodeView | None:
        """Return what a node tells; None if it isn't heard."""
        view = self.nodes.get(node)
        return view if view is not None and view.heard else None

    def is_lost(self, node: str) -> bool:
        """Tell whether a node is lost: what it has may be given up."""
        view = self.nodes.get(node)
        return view is not None and view.sight is Sight.LOST

    def believing(self, lost: Callable[[str], bool]) -> Snapshot:
        """Return it with those nodes merely silent that, as is known by now, are not lost."""
        nodes = {
            name: replace(view, sight=Sight.SILENT) if view.sight is Sight.LOST and not lost(name) else view
            for name, view in self.nodes.items()
        }
        return self if nodes == self.nodes else replace(self, nodes=nodes)

    def instance(self, placement: PlacementRecord) -> Instance | None:
        """Return a placement's instance as last told; None if it isn't there."""
        view = self.nodes.get(placement.node)
        found = view.instances.get(placement.instance) if view is not None else None
        return found if found is not None and is_own(found, placement.app_uid) else None


def is_own(instance: Instance, uid: str) -> bool:
    """Tell an instance of this very app from one of an app that had its name."""
    return instance.app_uid in ("", uid)


def is_ready(instance: Instance | None) -> bool:
    """Tell whether an instance serves, or would with the first request."""
    return instance is not None and instance.state in READY


def has_ended(instance: Instance | None) -> bool:
    """Tell whether an instance is there, and will not serve: it failed for good, or ended by itself."""
    return instance is not None and instance.state in ENDED
