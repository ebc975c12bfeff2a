"""HTTPS at the gateway, by the real Envoy: certificates come, change and go while requests are served."""

from __future__ import annotations

import hashlib
import http.client
import json
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from appsupervisor.catalog.v1 import certificates_pb2 as pb
from tests.e2e.edge import MIXED, STATELESS, Edge
from tests.e2e.stack import DEADLINE, ROOT, Stack, eventually, free_port
from tests.envoy import needed_envoy
from tests.issued import Issued, issue

pytestmark = pytest.mark.slow

REPLACEMENTS = 5
CLIENTS = 4


class SecureEdge(Edge):
    """A gateway that serves HTTPS, too."""

    def __init__(self, stack: Stack, token: Path) -> None:
        self.https_port = free_port()
        super().__init__(
            stack,
            *("--https-listen", f"127.0.0.1:{self.https_port}", "--gateway-token-file", str(token)),
        )

    def connected(self, name: str, alpn: str = "http/1.1") -> ssl.SSLSocket:
        """Open a connection to a name; raises OSError if it is refused."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.set_alpn_protocols([alpn])
        plain = socket.create_connection(("127.0.0.1", self.https_port), DEADLINE)
        return context.wrap_socket(plain, server_hostname=name or None)

    def fingerprint(self, name: str) -> str:
        """Return the fingerprint of the certificate that answers a name; empty if none does."""
        try:
            with closing(self.connected(name)) as connection:
                return hashlib.sha256(connection.getpeercert(binary_form=True) or b"").hexdigest()
        except OSError:
            return ""

    def asked(self, name: str, path: str = "/", **headers: str) -> tuple[int, dict[str, Any]]:
        """Return status and document of one request on a connection of its own."""
        connection = http.client.HTTPConnection(name)
        connection.sock = self.connected(name)
        with closing(connection):
            told = {key.replace("_", "-"): value for key, value in headers.items()}
            connection.request("GET", path, headers={"Host": name, **told})
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())


class Requests:
    """Requests over HTTPS without end: each on a new connection, or all on one."""

    def __init__(self, edge: SecureEdge, name: str, *, kept: bool) -> None:
        self._edge, self._name, self._kept = edge, name, kept
        self._stop = threading.Event()
        self.answered = 0
        self.failed: list[str] = []
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Requests:
        self._thread.start()
        self.goes_on()
        return self

    def goes_on(self) -> None:
        before = self.answered
        eventually(lambda: self.answered > before + 5 or self.failed, "requests are answered")

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(DEADLINE)

    def _run(self) -> None:
        connection: http.client.HTTPConnection | None = None
        while not self._stop.is_set():
            try:
                if connection is None:
                    connection = http.client.HTTPConnection(self._name)
                    connection.sock = self._edge.connected(self._name)
                connection.request("GET", "/", headers={"Host": self._name})
                answer = connection.getresponse()
                body = answer.read()
                if answer.status != 200:
                    self.failed.append(f"{answer.status} {body!r}")
                self.answered += 1
                if not self._kept:
                    connection.close()
                    connection = None
            except (OSError, http.client.HTTPException) as broken:
                self.failed.append(repr(broken))
                connection = None
        if connection is not None:
            connection.close()


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    needed_envoy()
    folder: Path = tmp_path_factory.mktemp("tls")
    token = folder / "token"
    token.write_text("s3cret-" * 6)
    stack = Stack(
        folder / "stack",
        app_dirs=(ROOT / "tests/apps/gateway",),
        control_plane_flags=("--gateway-token-file", str(token)),
    )
    try:
        stack.start("--trusted-proxy=127.0.0.1")
        stack.create("home", MIXED, database=STATELESS, domains=["home.example.com"])
        yield stack
    finally:
        stack.clean_up()


@pytest.fixture(scope="module")
def edge(stack: Stack) -> Iterator[SecureEdge]:
    edge = SecureEdge(stack, stack.folder.parent / "token")
    try:
        edge.process.start()
        edge.serves("home.localhost")
        yield edge
    finally:
        edge.process.clean_up()
        print(f"---- gateway\n{edge.process.text()[-20_000:]}")


def made(*domains: str, days: float = 30) -> Issued:
    return issue(*domains, start=datetime.now(UTC) - timedelta(hours=1), days=days)


def upload(stack: Stack, name: str, issued: Issued) -> None:
    certificate = pb.Certificate(chain_pem=issued.pem, private_key_pem=issued.key_pem)
    request = pb.CreateCertificateRequest(certificate_id=name, certificate=certificate)
    assert stack.certificates.CreateCertificate(request, timeout=DEADLINE).fingerprint == issued.fingerprint


def replaced(stack: Stack, name: str, issued: Issued) -> None:
    certificate = pb.Certificate(
        name=f"certificates/{name}", chain_pem=issued.pem, private_key_pem=issued.key_pem
    )
    request = pb.UpdateCertificateRequest(certificate=certificate)
    stack.certificates.UpdateCertificate(request, timeout=DEADLINE)


def test_certificates_come_change_and_go_while_requests_are_served(stack: Stack, edge: SecureEdge) -> None:
    # Nobody has a certificate: the name is refused, and plain requests are served as ever.
    assert edge.fingerprint("home.example.com") == ""
    assert edge.ask(host="home.example.com").status == 200
    first = made("home.example.com")
    upload(stack, "home", first)
    eventually(lambda: edge.fingerprint("home.example.com") == first.fingerprint, "it answers")
    assert edge.fingerprint("HOME.example.com") == first.fingerprint
    assert [edge.fingerprint(name) for name in ("other.example.com", "", "localhost")] == ["", "", ""]

    status, told = edge.asked(
        "home.example.com", "/a?b=c", x_forwarded_proto="http", x_forwarded_for="9.9.9.9"
    )
    headers = dict(told["headers"])
    assert (status, told["app"], told["path"], told["scheme"]) == (200, "home", "/a", "https")
    assert (told["client"], headers["host"]) == ("127.0.0.1", "home.example.com")
    assert (headers["x-forwarded-for"], headers["x-forwarded-proto"]) == ("127.0.0.1", "https")
    with closing(edge.connected("home.example.com", "h2")) as connection:
        assert (connection.selected_alpn_protocol(), connection.version()) == ("h2", "TLSv1.3")

    # Its name goes to HTTPS by now, and other names of the same app don't.
    eventually(lambda: edge.ask(host="home.example.com").status == 308, "plain requests are sent to HTTPS")
    sent = edge.ask("/a?b=c", "POST", host=f"home.example.com:{edge.port}")
    assert sent.headers["location"] == f"https://home.example.com:{edge.https_port}/a?b=c"
    assert edge.ask(host="home.localhost").status == 200

    with (
        Requests(edge, "home.example.com", kept=True) as kept,
        Requests(edge, "home.example.com", kept=False) as new,
    ):
        for _ in range(REPLACEMENTS):
            renewed = made("home.example.com")
            replaced(stack, "home", renewed)
            eventually(
                lambda it=renewed: edge.fingerprint("home.example.com") == it.fingerprint, "the new one"
            )
            for requests in (kept, new):
                requests.goes_on()
    assert (kept.failed, new.failed) == ([], [])

    # One of its own beside it wins while it is valid longer, and the elder is back once that is gone.
    longer = made("home.example.com", days=300)
    upload(stack, "longer", longer)
    eventually(lambda: edge.fingerprint("home.example.com") == longer.fingerprint, "the longer one")
    for name, left in (("longer", renewed.fingerprint), ("home", "")):
        stack.certificates.DeleteCertificate(
            pb.DeleteCertificateRequest(name=f"certificates/{name}"), timeout=DEADLINE
        )
        eventually(lambda left=left: edge.fingerprint("home.example.com") == left, f"{name} is gone")
    eventually(lambda: edge.ask(host="home.example.com").status == 200, "plain requests are served again")


def test_a_wildcard_domain_is_served_with_a_wildcard_certificate(stack: Stack, edge: SecureEdge) -> None:
    stack.create("wild", MIXED, database=STATELESS, domains=["*.example.org"])
    stack.create("exact", MIXED, database=STATELESS, domains=["exact.example.org"])
    wild = made("*.example.org", "*.localhost")
    upload(stack, "wild", wild)
    for name, app in (
        ("any.example.org", "wild"),
        ("ANY.example.org", "wild"),
        ("exact.example.org", "exact"),
        ("Exact.example.org", "exact"),
        ("exact.localhost", "exact"),
    ):
        eventually(lambda name=name: edge.fingerprint(name) == wild.fingerprint, f"{name} has a certificate")
        eventually(lambda name=name: edge.asked(name)[0] == 200, f"{name} is served")
        assert edge.asked(name)[1]["app"] == app, name
        # Its node finds it by the same names.
        assert edge.ask(host=name, port=stack.http_port()).told["app"] == app
        eventually(lambda name=name: edge.ask(host=name).status == 308, f"{name} is sent to HTTPS")
    assert [edge.fingerprint(name) for name in ("a.b.example.org", "example.org")] == ["", ""]
    assert edge.ask(host="a.b.example.org").told["reason"] == "NO_APP_NAMED"
    # Found by path or header under an address, it stays there: no certificate is for that.
    for found in (edge.ask("/apps/exact/"), edge.ask(x_app="exact")):
        assert (found.status, found.told["app"]) == (200, "exact")
    assert edge.ask("/apps/exact/", host="127.0.0.1").status == 200
    assert edge.figure("appsupervisor_gateway_xds_refusals_total") == 0
