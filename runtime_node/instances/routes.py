"""What answers an app's requests: its newest instance that is ready, else the node it has moved to, if any,
else its newest instance at all. An app that is about to leave may have its requests held apart meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from appsupervisor.runtime.v1.runtime_environment_pb2 import Instance as InstanceMessage
from runtime_node.http.gate import Gate
from runtime_node.http.limits import GateLimits
from runtime_node.http.router import Router
from runtime_node.instances.forwards import Forward, Forwards, Move
from runtime_node.instances.holds import Hold
from runtime_node.instances.record import Instance
from runtime_node.instances.states import StateValue

_READY = 2
_COMING = 1
# A start holds its requests, a failure answers them with its reason: only where nobody else can serve.
_RANK: dict[StateValue, int] = {
    InstanceMessage.RUNNING: _READY,
    InstanceMessage.IDLE: _READY,
    InstanceMessage.PENDING: _COMING,
    InstanceMessage.STARTING: _COMING,
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


def _is_ready(instance: Instance) -> bool:
    return _RANK[instance.state] == _READY


class Routes:
    """Keeps the router's table true to the instances, and to where apps have moved."""

    def __init__(self, router: Router, forwards: Forwards) -> None:
        self._router = router
        self._forwards = forwards
        self._holds: dict[str, Hold] = {}

    def update(self, app: str, instances: Sequence[Instance]) -> None:
        """Point the app's route at what is to answer, or remove it.

        While its requests are held apart that changes nothing, until somebody is there to be given them: an
        instance that is not leaving, or the node that the app has moved to.
        """
        chosen = serving(instances)
        hold = self._holds.get(app)
        if hold is not None:
            leaving = chosen is None or chosen in hold.leaving
            if leaving and self._forwards.get(app) is None:
                return
            del self._holds[app]
            hold.end()
        self._update(app, chosen)
        successor = self._router.gate_of(app)
        if hold is not None and successor is not None:
            hold.gate.forward(successor)

    def _update(self, app: str, chosen: Instance | None) -> None:
        current = self._router.gate_of(app)
        forward = self._forwards.get(app)
        if forward is not None and chosen is not None and forward.is_older_than(chosen) and _is_ready(chosen):
            self._router.set(app, list(chosen.spec().domains), chosen.gate)
            self._forwards.end(forward, "it is on this node again", chosen.gate)
        elif forward is not None:
            # While the app comes back here the node that has it answers still; if that is gone, it soon is.
            coming = chosen is not None and forward.is_older_than(chosen) and _RANK[chosen.state] == _COMING
            self._set_returning(forward, coming)
            if forward.gate is not current:
                self._router.set(app, forward.domains, forward.gate)
        elif chosen is None:
            if current is not None:
                self._router.remove(app, current)
        elif chosen.gate is not current:
            self._router.set(app, list(chosen.spec().domains), chosen.gate)

    def _set_returning(self, forward: Forward, returning: bool) -> None:
        before, forward.forwarder.returning = forward.forwarder.returning, returning
        if before and not returning:
            # What waited for the instance has nothing to wait for: it is tried again.
            forward.gate.open(forward.forwarder)

    def moved(
        self, move: Move, instances: Callable[[str], Sequence[Instance]], limits: GateLimits | None = None
    ) -> Gate:
        """Forward an app that has left, where no instance of its is ready here; return the gate that does.

        A gate that holds requests is released into it by `gate.forward`. `instances` returns an app's.
        """
        forward, gave_way = self._forwards.begin(move, limits)
        if gave_way is not None and self._router.remove(gave_way.app, gave_way.gate):
            self.update(gave_way.app, instances(gave_way.app))
        self.update(move.app, instances(move.app))
        return forward.gate

    def came_back(self, instance: Instance, instances: Sequence[Instance]) -> None:
        """Forward an app no more: it comes from there with its data, and serves nobody there any more."""
        forward = self._forwards.get(instance.app)
        if forward is not None:
            self._forwards.end(forward, "its data has come here", instance.gate)
            self.update(instance.app, instances)

    def hold(self, app: str, hold: Hold) -> None:
        """Have the app's requests wait apart from now on; what is being served goes on."""
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

    def sweep(self, instances: Callable[[str], Sequence[Instance]]) -> None:
        """End the forwards whose time is over; called every second."""
        for forward, why in self._forwards.over():
            self._end(forward, why, instances(forward.app))

    def _end(self, forward: Forward, why: str, instances: Sequence[Instance]) -> None:
        self._forwards.end(forward, why)
        if self._router.remove(forward.app, forward.gate):
            self.update(forward.app, instances)
