"""What `make up` does with the environment: every variable that a program reads has its place."""

import contextlib
import errno
import re
import subprocess
import sys

import pytest

from appsupervisor.fleet.v1 import fleet_pb2 as fleet
from compose.local import settings
from compose.local.addresses import _Ports, choose_addresses
from compose.local.banner import commands
from compose.local.errors import StartError
from compose.local.fleet import about_absent
from compose.local.output import Output
from services.control_plane.settings import Settings as ControlPlaneSettings
from services.gateway.settings import Settings as GatewaySettings


def test_each_variable_that_a_program_reads_is_read_passed_on_or_refused() -> None:
    of_control_plane = {name.upper() for name in ControlPlaneSettings.model_fields}
    help_text = subprocess.run(
        [sys.executable, "-m", "runtime_node", "--help"], capture_output=True, text=True, check=True
    ).stdout
    of_gateway = {name.upper() for name in GatewaySettings.model_fields}
    of_node = set(re.findall(rf"{settings.PREFIX}([A-Z_]+)", help_text))
    places = [*settings.OWN, *settings.DECIDED, *settings.PASSED_ON]
    assert len(places) == len(set(places))
    programs = of_control_plane | of_gateway | of_node
    assert programs <= set(places)
    own = {"CONTROL_PLANE_PORT", "NODE_PORT", "HTTP_PORT", "POSTGRES_PORT", "GATEWAY_PORT"}
    own |= {"NODES", "POSTGRES", "GATEWAY"}
    assert set(places) - own <= programs


def test_a_variable_that_could_not_do_what_it_says_is_refused_and_a_misspelt_one_told() -> None:
    environ = {"APPSUPERVISOR_LISTEN": "0.0.0.0:7400", "APPSUPERVISOR_LOG_LEVL": "debug", "PATH": "/bin"}
    (sentence,) = settings.refused(environ)
    assert "APPSUPERVISOR_LISTEN has no effect" in sentence
    assert settings.unknown(environ) == ["APPSUPERVISOR_LOG_LEVL"]


def test_a_port_that_several_nodes_would_share_is_refused() -> None:
    advertised = {"APPSUPERVISOR_ADVERTISE": "shop.example:7401"}
    (sentence,) = settings.refused(advertised, nodes=2)
    assert "--advertise" in sentence
    assert settings.refused(advertised, nodes=1) == []
    assert settings.refused({"APPSUPERVISOR_ADVERTISE": "shop.example"}, nodes=2) == []


def read(*arguments: str) -> settings.Settings:
    ports = [f"--{name}-port=0" for name in ("control-plane", "node", "http")]
    return settings.read_settings([*ports, *arguments])


def test_each_node_has_an_identity_a_folder_and_ports_of_its_own(monkeypatch, tmp_path) -> None:
    monkeypatch.delenv("APPSUPERVISOR_METRICS_LISTEN")
    chosen = choose_addresses(read("--nodes=3", f"--data-dir={tmp_path}"))
    assert [node.name for node in chosen.nodes] == [f"environments/default/nodes/node-{n}" for n in (1, 2, 3)]
    assert [node.data_dir for node in chosen.nodes] == [tmp_path / f"node-{number}" for number in (1, 2, 3)]
    places = [chosen.control_plane, chosen.metrics]
    for node in chosen.nodes:
        places += [node.grpc, node.http, node.metrics]
    assert len(set(places)) == 2 + 3 * 3


def test_further_nodes_have_the_next_ports_and_metrics_lie_a_hundred_above(monkeypatch) -> None:
    monkeypatch.delenv("APPSUPERVISOR_METRICS_LISTEN")
    monkeypatch.setattr(_Ports, "_hold", lambda _, port: port)
    chosen = choose_addresses(settings.read_settings(["--nodes=2"]))
    assert (chosen.control_plane, chosen.metrics) == ("127.0.0.1:7400", "127.0.0.1:7500")
    assert [(node.grpc, node.http_port, node.metrics) for node in chosen.nodes] == [
        ("127.0.0.1:7401", 8080, "127.0.0.1:7501"),
        ("127.0.0.1:7402", 8081, "127.0.0.1:7502"),
    ]


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ([], "curl http://wiki.localhost:8080/notes"),
        (["--nodes=2"], '--jmespath uri get wiki)"notes'),
        (["--nodes=2", "--gateway"], "curl http://wiki.localhost:8000/notes"),
    ],
)
def test_the_lines_to_try_ask_for_an_app_where_it_answers(monkeypatch, arguments, line) -> None:
    monkeypatch.setattr(_Ports, "_hold", lambda _, port: port)
    lines = commands(choose_addresses(settings.read_settings(arguments)))
    (asked,) = (it for it in lines if it.startswith("curl "))
    assert asked.endswith(line)


def test_a_port_for_metrics_that_nobody_asked_for_makes_way(monkeypatch) -> None:
    monkeypatch.delenv("APPSUPERVISOR_METRICS_LISTEN")

    def hold(_: _Ports, port: int) -> int:
        if port == 7500:
            raise OSError(errno.EADDRINUSE, "Address already in use")
        return port or 45000

    monkeypatch.setattr(_Ports, "_hold", hold)
    chosen = choose_addresses(settings.read_settings([]))
    assert (chosen.metrics, chosen.nodes[0].metrics) == ("127.0.0.1:45000", "127.0.0.1:7501")
    assert choose_addresses(settings.read_settings(["--metrics-listen=off"])).metrics == ""


def test_metrics_that_are_asked_for_are_at_ports_in_a_row(monkeypatch) -> None:
    monkeypatch.setenv("APPSUPERVISOR_METRICS_LISTEN", "127.0.0.1:9100")
    chosen = choose_addresses(read("--nodes=2"))
    metrics = [chosen.metrics, *(node.metrics for node in chosen.nodes)]
    assert metrics == ["127.0.0.1:9100", "127.0.0.1:9101", "127.0.0.1:9102"]
    free = choose_addresses(read("--metrics-listen=127.0.0.1:0"))
    assert [free.metrics, free.nodes[0].metrics] == ["127.0.0.1:0"] * 2


def test_no_port_is_given_twice_and_the_way_out_names_the_first_one_s() -> None:
    with contextlib.ExitStack() as stack:
        ports = _Ports(stack)
        port = ports.take(0, "node-port")
        told = (
            rf"port {port} .*\(http-port\) is not free.* make up APPSUPERVISOR_HTTP_PORT={port - 1 + 1000}$"
        )
        with pytest.raises(StartError, match=told):
            ports.take(port - 1, "http-port", 1)


def test_a_flag_of_the_programs_reaches_them_as_its_variable() -> None:
    given = ["--log-format=json", "--echo-app-logs", "--no-hosts-only", "--label=a=b", "--label=c=d"]
    assert settings.read_settings(given).handed_on == {
        "APPSUPERVISOR_LOG_FORMAT": "json",
        "APPSUPERVISOR_ECHO_APP_LOGS": "true",
        "APPSUPERVISOR_HOSTS_ONLY": "false",
        "APPSUPERVISOR_LABEL": "a=b,c=d",
    }
    assert settings.read_settings([]).handed_on == {}


@pytest.mark.parametrize("number", ["0", "51", "two", "-1"])
def test_a_number_of_nodes_that_cannot_be_is_refused(number: str, capsys) -> None:
    with pytest.raises(SystemExit):
        settings.read_settings([f"--nodes={number}"])
    assert "--nodes" in capsys.readouterr().err


def test_of_nodes_that_are_not_started_it_is_told_what_becomes_of_their_apps(tmp_path) -> None:
    for number in (1, 2, 3, 10):
        (tmp_path / f"node-{number}").mkdir()
    counts = {"node-1": 4, "node-10": 1, "node-3": 2, "node-2": 0, "node-4": 5, "node-x": 6, "node-03": 7}
    known = [
        fleet.Node(name=f"environments/default/nodes/{node}", app_count=count)
        for node, count in counts.items()
    ]
    told = about_absent(known, 1, tmp_path)
    assert [sentence.split(" ", 1)[0] for sentence in told] == ["node-3", "node-10"]
    assert "2 apps are placed on it" in told[0]
    assert "(make up NODES=3), what has its data in" in told[0]
    assert f"{tmp_path}/node-3 does not answer; appsupervisor nodes delete node-3 places the rest" in told[0]
    assert "1 app is placed on it" in told[1]


def test_a_line_of_a_process_moves_no_cursor() -> None:
    import io  # noqa: PLC0415

    stream = io.StringIO()
    output = Output(lambda: None, stream)
    output.log("node-1", "a\rb\x1b[2Jc")
    output.close(5)
    assert stream.getvalue() == "node-1        | a\\rb\\x1b[2Jc\n"


def test_a_gateway_has_ports_of_its_own_where_one_is_asked_for(tmp_path) -> None:
    plain = choose_addresses(read(f"--data-dir={tmp_path}"))
    assert (plain.gateway, plain.xds) == ("", "")
    chosen = choose_addresses(read("--gateway", "--gateway-port=0", f"--data-dir={tmp_path}"))
    assert len({chosen.control_plane, chosen.gateway, chosen.xds, *(node.http for node in chosen.nodes)}) == 4
