"""Where an address of the command line leads, and what is none."""

import socket

import grpc
import pytest

from appsupervisor.errors.v1.error_reason_pb2 import ErrorReason
from services.cli import errors
from services.cli.errors import CliError, Exit, from_rpc
from services.cli.targets import target_of


@pytest.mark.parametrize(
    ("address", "target"),
    [
        ("127.0.0.1:7400", "127.0.0.1:7400"),
        ("plane.example", "plane.example:7400"),
        ("[::1]:7401", "[::1]:7401"),
        ("dns:///plane.example:7400", "dns:///plane.example:7400"),
        ("127.0.0.1:1, 127.0.0.2", "ipv4:127.0.0.1:1,127.0.0.2:7400"),
        ("a.example:1,nowhere.example,b.example:2", "ipv4:10.0.0.1:1,10.0.0.2:2"),
        ("both.example:1,b.example:2", "ipv4:10.0.0.3:1,10.0.0.2:2"),
        ("a.example:1,six.example:2", "ipv6:[::ffff:10.0.0.1]:1,[fd00::6]:2"),
    ],
)
def test_an_address_leads_to_one_target(monkeypatch: pytest.MonkeyPatch, address: str, target: str) -> None:
    known = {"a.example": "10.0.0.1", "b.example": "10.0.0.2", "six.example": "fd00::6"}

    def resolve(host: str, port: int, **_: object) -> list[tuple[object, ...]]:
        if host == "nowhere.example":
            raise socket.gaierror
        hosts = ["fd00::3", "10.0.0.3"] if host == "both.example" else [known.get(host, host)]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (it, port)) for it in hosts]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    assert target_of(address) == target


@pytest.mark.parametrize(
    "address", ["http://127.0.0.1:7400", "127.0.0.1:", "127.0.0.1:99999", ":7400", "::1:7400", " , "]
)
def test_what_is_no_address_is_refused_with_what_one_is(address: str) -> None:
    with pytest.raises(CliError, match="must be host:port of a control plane") as refused:
        target_of(address)
    assert refused.value.code is Exit.USAGE


def test_where_none_of_several_hosts_is_known_no_server_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody(*_: object, **__: object) -> list[object]:
        raise socket.gaierror

    monkeypatch.setattr(socket, "getaddrinfo", nobody)
    with pytest.raises(CliError, match=r"a\.example:7400,b\.example:7400") as refused:
        target_of("a.example,b.example")
    assert refused.value.code is Exit.UNREACHABLE


def test_a_server_that_is_no_control_plane_is_called_that() -> None:
    class Failure(grpc.RpcError):
        def code(self) -> grpc.StatusCode:
            return grpc.StatusCode.UNIMPLEMENTED

    told = from_rpc(Failure(), "127.0.0.1:8080")
    assert (told.code, "127.0.0.1:8080 is no control plane" in told.sentence) == (Exit.UNREACHABLE, True)
    assert "7400" in told.remedy


def test_every_remedy_is_of_a_reason_that_there_is() -> None:
    assert set(errors._REMEDIES) <= set(ErrorReason.keys())
