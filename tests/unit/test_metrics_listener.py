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
