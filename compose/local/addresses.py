"""Where each program of the local stack listens: ports that were asked for are checked, the rest are free."""

import contextlib
import errno
import socket
from dataclasses import dataclass
from pathlib import Path

from compose.local.errors import StartError
from compose.local.settings import HOST, METRICS_DISTANCE, NODE_ID, Settings, variable_of
from services.rpc.ports import bind_free_port


@dataclass(frozen=True, slots=True)
class NodeAddresses:
    """One node: its id, where it listens, and its folder. `metrics` is empty for none."""

    id: str
    grpc: str
    http_port: int
    metrics: str
    data_dir: Path

    @property
    def name(self) -> str:
        """Resource name."""
        return f"environments/default/nodes/{self.id}"

    @property
    def http(self) -> str:
        """`host:port` at which it serves its apps."""
        return f"{HOST}:{self.http_port}"


@dataclass(frozen=True, slots=True)
class Addresses:
    """Every program of the stack. `metrics` of the control plane is empty for none."""

    control_plane: str
    metrics: str
    nodes: tuple[NodeAddresses, ...]
    postgres: str = ""
    """Of the stack's own PostgreSQL; empty for none."""
    gateway: str = ""
    """At which a gateway serves all apps; empty for none."""
    xds: str = ""
    """At which the gateway tells its Envoy."""
    gateway_metrics: str = ""


def choose_addresses(settings: Settings) -> Addresses:
    """Return where each program listens, with 0 replaced by a free port. Raises StartError for one in use."""
    with contextlib.ExitStack() as stack:
        ports = _Ports(stack)
        control_plane = ports.take(settings.control_plane_port, "control-plane-port")
        # All that are named come before those that may be any.
        grpc = [ports.take(settings.node_port, "node-port", number) for number in range(settings.nodes)]
        http = [ports.take(settings.http_port, "http-port", number) for number in range(settings.nodes)]
        postgres = ports.take(settings.postgres_port, "postgres-port") if settings.postgres else None
        gateway = ports.take(settings.gateway_port, "gateway-port") if settings.gateway else None
        xds = ports.take(0, "gateway-port") if settings.gateway else None
        asked = (settings.control_plane_port, *(_nth(settings.node_port, n) for n in range(settings.nodes)))
        metrics = [ports.metrics(settings.metrics, number, port) for number, port in enumerate(asked)]
        of_gateway = ports.metrics(settings.metrics, len(asked), 0) if settings.gateway else ""
    data = settings.data_dir.resolve()
    nodes = (
        NodeAddresses(
            id=NODE_ID.format(number + 1),
            grpc=f"{HOST}:{grpc[number]}",
            http_port=http[number],
            metrics=metrics[number + 1],
            data_dir=data / NODE_ID.format(number + 1),
        )
        for number in range(settings.nodes)
    )
    return Addresses(
        f"{HOST}:{control_plane}",
        metrics[0],
        tuple(nodes),
        "" if postgres is None else f"{HOST}:{postgres}",
        "" if gateway is None else f"{HOST}:{gateway}",
        "" if xds is None else f"{HOST}:{xds}",
        of_gateway,
    )


def _nth(first: int, number: int) -> int:
    return first + number if first else 0


class _Ports:
    """Ports of this machine, held until all are chosen: none is given twice."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        self._stack = stack

    def take(self, first: int, flag: str, number: int = 0) -> int:
        """Return the port that lies so far behind the first, or a free one for 0.

        Raises StartError if it cannot be had.
        """
        port = _nth(first, number)
        try:
            return self._hold(port)
        except OSError as taken:
            raise StartError(
                f"port {port} of {HOST} ({flag}) is not free: {taken.strerror}. "
                f"Choose another: make up {variable_of(flag)}={first + 1000}"
            ) from taken
        except OverflowError as wrong:
            raise StartError(f"{flag} is from 0 to 65535, not {port}") from wrong

    def metrics(self, asked: str | None, number: int, own_port: int) -> str:
        """Return the `host:port` of the metrics of the program with that number; empty for none.

        One that nobody asked for lies at a distance from the program's own port, or where there is room.
        """
        if asked is not None:
            host, _, port = asked.rpartition(":")
            return f"{host}:{_nth(int(port), number)}" if asked else ""
        try:
            return f"{HOST}:{self._hold(own_port + METRICS_DISTANCE if own_port else 0)}"
        except OverflowError:
            return f"{HOST}:{self._hold(0)}"
        except OSError as taken:
            if taken.errno != errno.EADDRINUSE:
                raise
            return f"{HOST}:{self._hold(0)}"

    def _hold(self, port: int) -> int:
        listener = self._stack.enter_context(socket.socket())
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if port:
            listener.bind((HOST, port))
        else:
            port = bind_free_port(listener, HOST)
        # Bound alone, a port of this kind could be bound once more.
        listener.listen(1)
        return port
