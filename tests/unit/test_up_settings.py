"""What `make up` does with the environment: every variable that a program reads has its place."""

import re
import subprocess
import sys

from compose.local import settings
from compose.local.output import Output
from services.control_plane.settings import Settings as ControlPlaneSettings


def test_each_variable_that_a_program_reads_is_read_passed_on_or_refused() -> None:
    of_control_plane = {name.upper() for name in ControlPlaneSettings.model_fields}
    help_text = subprocess.run(
        [sys.executable, "-m", "runtime_node", "--help"], capture_output=True, text=True, check=True
    ).stdout
    of_node = set(re.findall(rf"{settings.PREFIX}([A-Z_]+)", help_text))
    places = [*settings.OWN, *settings.DECIDED, *settings.PASSED_ON]
    assert len(places) == len(set(places))
    assert of_control_plane | of_node <= set(places)
    own = {"CONTROL_PLANE_PORT", "NODE_PORT", "HTTP_PORT"}
    assert set(places) - own <= of_control_plane | of_node


def test_a_variable_that_could_not_do_what_it_says_is_refused_and_a_misspelt_one_told() -> None:
    environ = {"APPSUPERVISOR_LISTEN": "0.0.0.0:7400", "APPSUPERVISOR_LOG_LEVL": "debug", "PATH": "/bin"}
    (sentence,) = settings.refused(environ)
    assert "APPSUPERVISOR_LISTEN has no effect" in sentence
    assert settings.unknown(environ) == ["APPSUPERVISOR_LOG_LEVL"]


def test_two_programs_have_two_addresses_for_their_metrics(monkeypatch) -> None:
    monkeypatch.setenv("APPSUPERVISOR_METRICS_LISTEN", "127.0.0.1:9100")
    read = settings.read_settings([])
    assert (read.metrics, read.metrics_of_node) == ("127.0.0.1:9100", "127.0.0.1:9101")
    free = settings.read_settings(["--metrics-listen=127.0.0.1:0"])
    assert (free.metrics, free.metrics_of_node) == ("127.0.0.1:0", "127.0.0.1:0")
    assert settings.read_settings(["--metrics-listen="]).metrics_of_node == ""


def test_a_line_of_a_process_moves_no_cursor() -> None:
    import io  # noqa: PLC0415

    stream = io.StringIO()
    output = Output(lambda: None, stream)
    output.log("node-1", "a\rb\x1b[2Jc")
    output.close(5)
    assert stream.getvalue() == "node-1        | a\\rb\\x1b[2Jc\n"
