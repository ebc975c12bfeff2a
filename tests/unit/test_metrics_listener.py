"""The metrics listener, which every program may have beside its others."""

import socket
from collections.abc import Iterable

import pytest
from prometheus_client.metrics_core import Metric

from services.rpc.metrics import MetricsListener


class NoMetrics:
    def collect(self) -> Iterable[Metric]:
        return ()


def test_an_address_that_is_taken_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match=rf"metrics on 127\.0\.0\.1:{port}: Address already in use"):
            MetricsListener("127.0.0.1", port, NoMetrics())


def test_where_nobody_asked_for_the_port_another_does() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        listener = MetricsListener("127.0.0.1", port, NoMetrics(), or_another=True)
        assert listener.port not in {0, port}
        listener.close()


def test_an_address_that_cannot_be_is_told_even_where_nobody_asked_for_it() -> None:
    with pytest.raises(OSError, match=r"metrics on 192\.0\.2\.1:0"):
        MetricsListener("192.0.2.1", 0, NoMetrics(), or_another=True)
