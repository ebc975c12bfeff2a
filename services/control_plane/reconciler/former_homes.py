"""Which nodes forward an app's requests to where it was last: they are told when it moves on.

Kept in memory by whoever leads; who leads anew is told by the nodes, as they are heard.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from appsupervisor.runtime.v1.runtime_environment_pb2 import Forwarding, StopInstanceRequest

FORWARD_SECONDS = 600.0
"""The longest that a node forwards for an app."""
MAX_APPS = 10_000
_PER_APP = 8


@dataclass(frozen=True, slots=True)
class _Told:
    request: StopInstanceRequest
    until: float


class FormerHomes:
    """Remembers the stops that told a node where an app had moved; the one told longest ago goes first."""

    def __init__(self, clock: Callable[[], float], *, max_apps: int = MAX_APPS) -> None:
        self._clock = clock
        self._max_apps = max_apps
        self._told: dict[str, dict[str, _Told]] = {}

    def told(self, app: str, node: str, request: StopInstanceRequest) -> None:
        """Note that a node was told where an app is now, by a stop with `new_home`."""
        nodes = self._told.pop(app, {})
        nodes.pop(node, None)
        nodes[node] = _Told(request, self._clock() + FORWARD_SECONDS)
        if len(nodes) > _PER_APP:
            del nodes[next(iter(nodes))]
        self._told[app] = nodes
        if len(self._told) > self._max_apps:
            del self._told[next(iter(self._told))]

    def learn(self, node: str, forwarding: Forwarding) -> list[str]:
        """Note what a node says that it forwards, told by another leader; return the apps that are news."""
        news = []
        for moved in forwarding.moved_apps:
            known = self._told.get(moved.app, {}).get(node)
            if known is not None and known.request.epoch >= moved.epoch:
                continue
            stop = StopInstanceRequest(
                name=f"{moved.app}/instances/moved", epoch=moved.epoch, app_uid=moved.app_uid,
                new_home=moved.new_home,
            )  # fmt: skip
            self.told(moved.app, node, stop)
            news.append(moved.app)
        return news

    def knows(self, app: str) -> bool:
        """Tell whether some node may forward for an app."""
        return app in self._told

    def to_tell(
        self, app: str, uid: str, told_under: Callable[[str], int], home: StopInstanceRequest.NewHome
    ) -> Iterator[tuple[str, StopInstanceRequest]]:
        """Yield the nodes that forward elsewhere than to `home`, each with the call that tells it so.

        `told_under` returns the epoch for a node.
        """
        now = self._clock()
        nodes = self._told.get(app, {})
        for node, known in list(nodes.items()):
            if known.until <= now or node == home.node or known.request.app_uid != uid:
                del nodes[node]
            elif known.request.new_home != home:
                request = StopInstanceRequest()
                request.CopyFrom(known.request)
                request.epoch = max(told_under(node), known.request.epoch)
                request.new_home.CopyFrom(home)
                yield node, request
        if not nodes:
            self._told.pop(app, None)
