"""A program's own port is none that the system gives to connections, so a restart finds it free."""

import socket
from pathlib import Path

import pytest

from services.rpc import ports
from services.rpc.ports import bind_free_port


def test_a_free_port_lies_below_those_that_the_system_gives_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "range").write_text("20000\t60999\n")
    monkeypatch.setattr(ports, "_RANGE", tmp_path / "range")
    with socket.socket() as one, socket.socket() as other:
        found = {bind_free_port(one, "127.0.0.1"), bind_free_port(other, "127.0.0.1")}
        assert len(found) == 2
        assert all(10_000 <= port < 20_000 for port in found)
        assert one.getsockname()[1] in found


@pytest.mark.parametrize("told", ["1024 65535", "", None])
def test_where_the_system_has_them_all_or_tells_nothing_there_is_one_still(
    told: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = tmp_path / "range"
    if told is not None:
        table.write_text(told)
    monkeypatch.setattr(ports, "_RANGE", table)
    with socket.socket() as listener:
        assert bind_free_port(listener, "127.0.0.1") > 0
