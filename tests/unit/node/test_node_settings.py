"""Flags and environment variables of a node."""

from pathlib import Path

import pytest

from runtime_node.settings import Address, read_settings


def test_the_defaults_are_the_documented_ones() -> None:
    settings = read_settings([], {})
    assert settings.listen == Address("127.0.0.1", 7401)
    assert settings.http_listen == Address("127.0.0.1", 8080)
    assert settings.node_name == "environments/default/nodes/node-1"
    assert (settings.control_plane, settings.base_domain) == ("", "localhost")
    assert settings.memory_budget_bytes is None


def test_every_flag_has_an_environment_variable_and_wins_over_it(tmp_path: Path) -> None:
    variables = {
        "APPSUPERVISOR_HTTP_LISTEN": "[::1]:0",
        "APPSUPERVISOR_LABEL": "zone=a,example.com/disk=ssd",
        "APPSUPERVISOR_APP_DIR": str(tmp_path),
        "APPSUPERVISOR_NODE": "from-variable",
        "APPSUPERVISOR_ZONE": "rack-7",
        "APPSUPERVISOR_MEMORY_BUDGET_BYTES": "1000",
    }
    settings = read_settings(["--node", "from-flag", "--label", "zone=b"], variables)
    assert str(settings.http_listen) == "[::1]:0"
    assert settings.labels == {"zone": "b"}
    assert settings.app_dirs == (tmp_path,)
    assert settings.node == "from-flag"
    assert settings.memory_budget_bytes == 1000
    assert settings.zone == "rack-7"
    assert read_settings([], variables).labels == {"zone": "a", "example.com/disk": "ssd"}


@pytest.mark.parametrize(
    ("given", "modules"),
    [([], None), (["usual"], None), (["none"], ()), (["json, email.parser"], ("json", "email.parser"))],
)
def test_what_processes_find_loaded(given: list[str], modules: tuple[str, ...] | None) -> None:
    assert read_settings([f"--preload={text}" for text in given], {}).preload == modules


def test_metrics_are_served_unless_they_are_turned_off() -> None:
    usual = read_settings([], {})
    assert (str(usual.metrics_listen), usual.metrics_port_may_vary) == ("127.0.0.1:7501", True)
    asked = read_settings(["--metrics-listen", "127.0.0.1:7501"], {})
    assert (asked.metrics_listen, asked.metrics_port_may_vary) == (usual.metrics_listen, False)
    for off in ("off", ""):
        assert read_settings(["--metrics-listen", off], {}).metrics_listen is None
    varied = read_settings([], {"APPSUPERVISOR_METRICS_LISTEN": "[::1]:0"})
    assert (str(varied.metrics_listen), varied.metrics_port_may_vary) == ("[::1]:0", False)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--listen", "7401"],
        ["--listen", "127.0.0.1:99999"],
        ["--node", "Node_1"],
        ["--app-dir", "/no/such/directory"],
        ["--label", "novalue"],
        ["--zone", "rack 7"],
        ["--max-instances", "0"],
        ["--log-level", "LOUD"],
        ["--log-format", "xml"],
        ["--metrics-listen", "7501"],
        ["--base-domain", "not a domain"],
        ["--trusted-proxy", "proxy"],
        ["--advertise", "node.example:"],
        ["--advertise", "[node.example]"],
        ["--advertise", "fd77::1:x"],
        ["--advertise-http", "[node.example]:80:1"],
        ["--advertise-http", "node.example:0"],
        ["--preload", "numpy,"],
        ["--preload", "../numpy"],
        ["--preload", "json,nowhere.at.all"],
        ["--nod", "x"],
    ],
)
def test_a_mistake_ends_with_a_sentence(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        read_settings(arguments, {})
    assert ended.value.code == 2
    assert "error:" in capsys.readouterr().err


def test_a_mistake_in_a_variable_is_told_too(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        read_settings([], {"APPSUPERVISOR_LABEL": "novalue"})
    assert "APPSUPERVISOR_LABEL" in capsys.readouterr().err


def test_the_help_documents_each_flag_with_its_variable(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        read_settings(["--help"], {})
    text = " ".join(capsys.readouterr().out.split())
    for flag in ("listen", "http-listen", "control-plane", "environment", "node", "data-dir", "app-dir"):
        assert f"--{flag}" in text
        assert f"APPSUPERVISOR_{flag.upper().replace('-', '_')}" in text
