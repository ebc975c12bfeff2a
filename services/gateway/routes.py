"""Where an app's requests go: to the nodes of its newest ready instances, or to nobody, and why. Pure.

Across nodes it is the rule by which a node chooses among an app's instances
(runtime_node/instances/routes.py).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from appsupervisor.catalog.v1.app_catalog_pb2 import App
from appsupervisor.errors.v1.error_reason_pb2 import ErrorReason
from appsupervisor.runtime.v1.runtime_environment_pb2 import Instance
from services.gateway.canary import Share, announced, split

SLACK = 5
"""Seconds by which a node's own time limit comes before the gateway's: its answer says more."""
TIMEOUTS = (15, 35, 65, 125, 305, 905, 3605)
"""Time limits of the gateway, in seconds. Few, so that apps share routes: each gets the next one."""
DEFAULT_REQUEST_TIMEOUT = 30
DEFAULT_TIMEOUT = 35
DEFAULT_CONCURRENT, DEFAULT_QUEUED = 64, 128
MAX_REQUESTS = 4096
"""At a time, of all apps that share a node: a node keeps 10,000 connections open."""
LARGE_SHARE = MAX_REQUESTS // 4
"""An app whose limits let it have more of these has a bound of its own, and leaves the others theirs."""

_READY, _COMING, _HERE = 2, 1, 0
_RANK: dict[int, int] = {
    Instance.RUNNING: _READY,
    Instance.IDLE: _READY,
    Instance.PENDING: _COMING,
    Instance.STARTING: _COMING,
    Instance.FAILED: _HERE,
    Instance.STOPPED: _HERE,
}
_LEAVING = -1
"""Its node answers that it is: that says more than the gateway could."""


@dataclass(frozen=True, slots=True)
class Destination:
    """Where requests go; apps that are treated alike have equal ones."""

    nodes: tuple[str, ...] = ()
    """Names of nodes, sorted; empty if nobody answers."""
    timeout: int = DEFAULT_TIMEOUT
    """Seconds."""
    reason: str = ""
    """An `ErrorReason`: why nobody answers."""
    own: str = ""
    """The app, `apps/{app}`, if it shares neither bound nor the verdict on its replicas with others."""
    bound: int = 0
    """Requests that an app with its own may have at a time, over all replicas."""
    share: Share | None = None
    """What goes elsewhere, while a new version of the app is on trial."""
    shared: Destination | None = None
    """Where that goes."""
    instead: tuple[str, ...] = ()
    """Names of nodes that are asked once a try of `nodes` reached nobody, or all of these are left out."""
    to_https: int = 0
    """The port at which clients reach HTTPS, where plain requests are sent there; 0 where they are not."""


def destination_of(app: App) -> Destination | None:
    """Return where an app's requests go; None if it is to look as if there were no such app.

    That is so for one that is stopped or being deleted and has no instance left: its node says the same.
    """
    nodes, share = split(app, _nodes(app))
    if nodes:
        # Where it is to be tried is told before it is ready, so that its nodes' names are found by then.
        tried = share.nodes if share is not None else announced(app, nodes)
        return replace(_to(app, nodes), share=share, shared=_on_trial(app, tried, nodes) if tried else None)
    if app.desired_state == App.STOPPED or app.state in (Instance.STOPPED, Instance.DELETING):
        return None
    return Destination(reason=_reason(app))


def _to(app: App, nodes: tuple[str, ...]) -> Destination:
    """Return where requests go that any of the nodes may have."""
    bound = bound_of(app) * len(nodes)
    # Also where only one of its replicas is left: what waits to be tried again would find its cluster gone.
    if _has_several(app) or len(nodes) > 1 or bound > LARGE_SHARE:
        return Destination(nodes, timeout_of(app), own=app.name, bound=bound)
    return Destination(nodes, timeout_of(app))


def _on_trial(app: App, nodes: tuple[str, ...], stable: tuple[str, ...]) -> Destination:
    """Return where the share of a version on trial goes; what reaches nobody there has the version before."""
    bound = bound_of(app) * len(nodes)
    return Destination(nodes, timeout_of(app), own=f"{app.name}/canary", bound=bound, instead=stable)


def timeout_of(app: App) -> int:
    """Return the gateway's time limit for a request to the app, in seconds."""
    told = app.limits.request_timeout
    own = (
        told.seconds + (told.nanos > 0) if app.limits.HasField("request_timeout") else DEFAULT_REQUEST_TIMEOUT
    )
    return next((limit for limit in TIMEOUTS if limit >= own + SLACK), TIMEOUTS[-1])


def bound_of(app: App) -> int:
    """Return how many requests one replica of the app takes at a time, served and waiting."""
    limits = app.limits
    queued = limits.max_queued_requests if limits.HasField("max_queued_requests") else DEFAULT_QUEUED
    return (limits.max_concurrent_requests or DEFAULT_CONCURRENT) + queued


def _has_several(app: App) -> bool:
    return max(app.replicas, app.target_replicas) > 1


def _nodes(app: App) -> tuple[str, ...]:
    placed = [instance for instance in app.instances if instance.node]
    if not placed:
        return ()
    best = max(map(_rank, placed))
    chosen = [instance for instance in placed if _rank(instance) == best]
    if best == _READY and _has_several(app):
        # Those that are being replaced among them, until they stop: which those are is not told.
        # A node probes its replica as the app's health check says: who fails it is left out if others do not.
        well = [instance for instance in chosen if instance.health != Instance.UNHEALTHY]
        return tuple(sorted({instance.node for instance in well or chosen}))
    # While an app moves both copies answer: the newer one is to. What is on trial is beside what serves.
    tried = [it for it in chosen if best == _READY and it.node in app.canary.nodes]
    parts = (tried, [it for it in chosen if it not in tried])
    newest = (max(part, key=lambda it: (it.epoch, it.generation)) for part in parts if part)
    return tuple(sorted({it.node for it in newest}))


def _rank(instance: Instance) -> int:
    if instance.state == Instance.RUNNING and instance.health == Instance.UNKNOWN:
        return _COMING  # its node is not heard: a newer copy elsewhere holds requests until it has started
    return _RANK.get(instance.state, _LEAVING)


def _reason(app: App) -> str:
    told = next((condition.reason for condition in app.conditions if condition.type == "Ready"), "")
    return told if app.state == Instance.FAILED and told in ErrorReason.keys() else "NO_NODE_AVAILABLE"  # noqa: SIM118
