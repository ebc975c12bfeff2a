"""Which instance of an app answers its requests: the newest that is ready, else the newest at all.

An app that is about to leave may have its requests held meanwhile.
"""

from __future__ import annotations

from collections.abc import Sequence

from appsupervisor.runtime.v1.runtime_environment_pb2 import Instance as InstanceMessage
from runtime_node.http.router import Router
from runtime_node.instances.holds import Hold
from runtime_node.instances.record import Instance
from runtime_node.instances.states import StateValue

# A start holds its requests, a failure answers them with its reason: only where nobody else can serve.
_RANK: dict[StateValue, int] = {
    InstanceMessage.RUNNING: 2,
    InstanceMessage.IDLE: 2,
    InstanceMessage.PENDING: 1,
    InstanceMessage.STARTING: 1,
    InstanceMessage.FAILED: 0,
    InstanceMessage.STOPPED: 0,
}


def serving(instances: Sequence[Instance]) -> Instance | None:
    """Return the instance that is its app's route, of those in the order they were accepted.

    A later app of the same name comes before all of an earlier one, whose epochs tell nothing here.
    """
    candidates = [instance for instance in instances if instance.state in _RANK]
    if not candidates:
        return None
    newest_uid = instances[-1].uid
    return max(candidates, key=lambda i: (_RANK[i.state], i.uid == newest_uid, i.version))


class Routes:
    """Keeps the router's table true to the instances."""

    def __init__(self, router: Router) -> None:
        self._router = router
        self._holds: dict[str, Hold] = {}

    def update(self, app: str, instances: Sequence[Instance]) -> None:
        """Point the app's route at the instance that is to serve, or remove it.

        While its requests are held that changes nothing, until an instance comes that is not leaving.
        """
        chosen = serving(instances)
        hold = self._holds.get(app)
        if hold is not None:
            if chosen is None or chosen in hold.leaving:
                return
            del self._holds[app]
            hold.end()
        current = self._router.gate_of(app)
        if chosen is None:
            if current is not None:
                self._router.remove(app, current)
        elif chosen.gate is not current:
            self._router.set(app, list(chosen.spec().domains), chosen.gate)
        if hold is not None and chosen is not None:
            hold.gate.forward(chosen.gate)

    def hold(self, app: str, hold: Hold) -> None:
        """Have the app's requests wait from now on."""
        self._holds[app] = hold
        self._router.set(app, hold.domains, hold.gate)

    def held(self, app: str) -> Hold | None:
        """Return what holds an app's requests."""
        return self._holds.get(app)

    def release(self, app: str) -> Hold | None:
        """Hold the app's requests no longer; return what did. Whoever asks deals with those that wait."""
        hold = self._holds.pop(app, None)
        if hold is not None:
            hold.end()
            self._router.remove(app, hold.gate)
        return hold
