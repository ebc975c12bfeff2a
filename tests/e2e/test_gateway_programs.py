"""The gateway's own program: without an Envoy, as it is shipped, and how it ends."""

from __future__ import annotations

import json
import subprocess
import threading
from pathlib import Path

import grpc
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub
from grpc_reflection.v1alpha.reflection_pb2 import ServerReflectionRequest
from grpc_reflection.v1alpha.reflection_pb2_grpc import ServerReflectionStub

from services.gateway.bootstrap import bootstrap
from tests.e2e.edge import MIXED, STATELESS, Answer, Edge, stack
from tests.e2e.stack import DEADLINE, Stack, eventually
from tests.e2e.traffic import delete
from tests.envoy import needed_envoy
from tests.integration.test_shipped_configurations import flags_of, shipped_commands

__all__ = ("stack",)

pytestmark = pytest.mark.slow


def test_another_envoy_goes_on_without_the_gateway_and_is_then_told_what_has_changed(
    stack: Stack, tmp_path: Path
) -> None:
    edge = Edge(stack, "--no-envoy")
    settings = tmp_path / "envoy.json"
    settings.write_text(json.dumps(bootstrap("envoy-9", edge.xds)))
    program = [needed_envoy(), "--config-path", str(settings), "--disable-hot-restart", "--concurrency", "1"]
    log = (tmp_path / "envoy.log").open("wb")
    envoy = subprocess.Popen([*program, "--log-level", "warning"], stdout=log, stderr=log)
    try:
        edge.process.start()
        edge.serves("home.localhost")
        told = edge.figure("appsupervisor_gateway_xds_messages_total")
        assert told > 0
        edge.process.kill()
        stack.create("meanwhile", MIXED, database=STATELESS)
        assert edge.serves("home.localhost").told["app"] == "home"
        assert edge.ask(host="meanwhile.localhost").status == 404
        edge.process.start()
        edge.serves("meanwhile.localhost")
        # One message about the new app, and none about what it had.
        kinds = [
            line
            for line in edge.ask("/metrics", port=edge.metrics).text.splitlines()
            if "xds_messages_total{" in line
        ]
        assert edge.figure("appsupervisor_gateway_xds_messages_total") == 1, kinds
        with grpc.insecure_channel(edge.xds) as channel:
            health = HealthStub(channel)
            for name in ("envoys/envoy-9", "envoy.service.discovery.v3.AggregatedDiscoveryService"):
                answer = health.Check(HealthCheckRequest(service=name), timeout=DEADLINE)
                assert answer.status == HealthCheckResponse.SERVING
            reflection = ServerReflectionStub(channel)
            asked = ServerReflectionRequest(list_services="")
            (listed,) = reflection.ServerReflectionInfo(iter([asked]), timeout=DEADLINE)
            names = {service.name for service in listed.list_services_response.service}
            assert "envoy.service.discovery.v3.AggregatedDiscoveryService" in names
    finally:
        edge.process.clean_up()
        envoy.terminate()
        envoy.wait(DEADLINE)
        log.close()
        print(
            f"---- gateway\n{edge.process.text()[-5_000:]}\n{(tmp_path / 'envoy.log').read_text()[-5_000:]}"
        )
    delete(stack, "meanwhile")


@pytest.mark.parametrize("name", ["compose gateway", "kubernetes appsupervisor-gateway"])
def test_a_shipped_command_serves_with_loopback_for_its_addresses(stack: Stack, name: str) -> None:
    flags = flags_of(dict(shipped_commands())[name])
    for address in ("--control-plane", "--listen", "--metrics-listen"):
        del flags[address]
    edge = Edge(stack, *(word for flag in flags.items() for word in flag))
    try:
        edge.process.start()
        edge.serves("home.localhost")
        assert edge.process.terminate() == 0
    finally:
        edge.process.clean_up()
        print(f"---- gateway\n{edge.process.text()[-5_000:]}")


def test_a_gateway_that_is_told_to_end_lets_requests_end_and_has_logged_them(stack: Stack) -> None:
    edge = Edge(stack)
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    try:
        edge.process.start()
        edge.serves("home.localhost")
        asked = [edge.ask(x_app="home", traceparent=trace), edge.ask(host=f"home.example.com:{edge.port}")]
        answers: list[Answer] = []
        slow = threading.Thread(target=lambda: answers.append(edge.ask("/slow/5", host="home.localhost")))
        slow.start()
        active = "envoy_http_downstream_rq_active"
        eventually(lambda: edge.figure(active) > 0, "the request is under way")
        assert edge.process.terminate() == 0
        slow.join(DEADLINE)
        assert [answer.status for answer in answers] == [200]
        lines = [json.loads(line) for line in edge.process.text().splitlines() if line.startswith("{")]
        logged = {line["request_id"]: line for line in lines}
        by_name, by_domain = (logged[answer.headers["x-request-id"]] for answer in asked)
        assert (by_name["route"], by_name["status"], by_name["traceparent"]) == ("home.localhost", 200, trace)
        assert (by_domain["route"], by_domain["attempts"]) == ("home.example.com", 1)
        assert dict(asked[0].told["headers"])["x-request-id"] in logged
    finally:
        edge.process.clean_up()
        print(f"---- gateway\n{edge.process.text()[-5_000:]}")
