"""What the gateway is told at its start, and the bootstrap that is shipped for another Envoy."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from services.gateway.bootstrap import bootstrap
from services.gateway.listener import ListenerSpec, listener, script
from services.gateway.settings import Settings

ROOT = Path(__file__).resolve().parents[3]


def test_the_shipped_bootstrap_is_the_one_that_the_gateway_prints() -> None:
    shipped = json.loads((ROOT / "compose/envoy.json").read_text())
    assert shipped == bootstrap("envoy-1", "127.0.0.1:18000")


def test_settings_are_flags_and_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("APPSUPERVISOR_METRICS_LISTEN", raising=False)
    monkeypatch.setenv("APPSUPERVISOR_BASE_DOMAIN", "Apps.Example.com, localhost")
    settings = Settings.from_command_line(["--no-envoy", "--access-log", "off", "--listen", "[::1]:0"])
    assert (settings.envoy, settings.access_log, settings.listen) == (False, "", "[::1]:0")
    assert settings.base_domain == "apps.example.com,localhost"
    assert settings.metrics_port_may_vary


@pytest.mark.parametrize(
    ("flag", "value", "said"),
    [
        ("--listen", "8000", "--listen (APPSUPERVISOR_LISTEN): '8000' is not HOST:PORT"),
        ("--xds-listen", "::1:7", "has no IPv6 address in brackets"),
        ("--control-plane", "a:1,b", "--control-plane (APPSUPERVISOR_CONTROL_PLANE): 'b' is not HOST:PORT"),
        ("--base-domain", "", "--base-domain (APPSUPERVISOR_BASE_DOMAIN): must name a domain"),
        ("--base-domain", 'x".com', "--base-domain"),
        ("--path-host", "*.example.com", "--path-host"),
    ],
)
def test_a_mistake_is_named_with_its_flag(
    capsys: pytest.CaptureFixture[str], flag: str, value: str, said: str
) -> None:
    with pytest.raises(SystemExit):
        Settings.from_command_line([flag, value])
    assert said in capsys.readouterr().err


def test_the_script_knows_the_domains() -> None:
    text = script(("example.com", "localhost"), ("edge.example.com",))
    assert 'local BASES = {".example.com", ".localhost"}' in text
    assert '["edge.example.com"] = true' in text
    assert "--[[" not in text


def test_another_process_tells_the_listener_byte_for_byte_the_same() -> None:
    spec = ListenerSpec("127.0.0.1", 8000, access_log="/dev/stdout")
    program = "import sys; from services.gateway.listener import *; "
    program += f"sys.stdout.write(listener({spec!r}).SerializeToString(deterministic=True).hex())"
    path = f"{ROOT}:{ROOT / 'gen'}"
    other = subprocess.run(
        [sys.executable, "-c", program], env={"PYTHONPATH": path}, capture_output=True, text=True, check=True
    )
    assert other.stdout == listener(spec).SerializeToString(deterministic=True).hex()
