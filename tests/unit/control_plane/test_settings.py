"""Flags and environment variables of a control plane."""

import pytest

from services.control_plane.settings import Settings


def test_a_flag_wins_over_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("APPSUPERVISOR_LISTEN", "[::1]:0")
    monkeypatch.setenv("APPSUPERVISOR_NODE_TIMEOUT", "7")
    settings = Settings.from_command_line(["--node-timeout", "8"])
    assert (settings.listen, settings.node_timeout) == ("[::1]:0", 8.0)


def test_a_log_level_is_taken_as_a_node_that_shares_the_variable_takes_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("APPSUPERVISOR_LOG_LEVEL", "DEBUG")
    assert Settings.from_command_line([]).log_level == "debug"


def test_metrics_are_served_unless_they_are_turned_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("APPSUPERVISOR_METRICS_LISTEN")
    usual = Settings.from_command_line([])
    assert (usual.metrics_listen, usual.metrics_port_may_vary) == ("127.0.0.1:7500", True)
    asked = Settings.from_command_line(["--metrics-listen", "127.0.0.1:7500"])
    assert (asked.metrics_listen, asked.metrics_port_may_vary) == ("127.0.0.1:7500", False)
    for off in ("off", ""):
        assert Settings.from_command_line([f"--metrics-listen={off}"]).metrics_listen == ""
    monkeypatch.setenv("APPSUPERVISOR_METRICS_LISTEN", "127.0.0.1:7600")
    assert not Settings.from_command_line([]).metrics_port_may_vary


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("--listen", "7400"),
        ("--listen", ""),
        ("--listen", "127.0.0.1:99999"),
        ("--listen", "::1:7400"),
        ("--listen", "[::1:7400"),
        ("--metrics-listen", "[127.0.0.1]:7400"),
        ("--metrics-listen", "127.0.0.1:99999"),
        ("--node-timeout", "soon"),
        ("--node-timeout", "0"),
        ("--drain-timeout", "nan"),
        ("--log-level", "LOUD"),
        ("--log-format", "xml"),
    ],
)
def test_a_mistake_ends_with_a_sentence_that_names_it(
    flag: str, value: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    variable = f"APPSUPERVISOR_{flag[2:].upper().replace('-', '_')}"
    monkeypatch.setenv(variable, value)
    for arguments in ([], [flag, value]):
        with pytest.raises(SystemExit) as ended:
            Settings.from_command_line(arguments)
        assert ended.value.code == 2
        told = capsys.readouterr().err.splitlines()[-1]
        assert "error:" in told
        assert "Value error" not in told
        assert flag in told
        assert variable in told
