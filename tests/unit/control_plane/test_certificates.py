"""Each method of Certificates over a real store: what it does, and each error that its comment promises."""

import asyncio
from collections.abc import Iterator
from contextlib import aclosing
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest

from appsupervisor.catalog.v1 import certificates_pb2 as pb
from appsupervisor.runtime.v1.runtime_environment_pb2 import Condition
from services.control_plane.certificates.certificates import CertificateService
from services.control_plane.certificates.watch import check_token, watch_certificates
from services.control_plane.metrics import ControlPlaneMetrics
from services.control_plane.servicers.certificates import CertificatesServicer
from services.control_plane.store.interface import CatalogStore
from services.control_plane.store.sql_store import open_store
from services.rpc.errors import SupervisorError
from services.rpc.pipeline.call import Caller
from tests.issued import START, Issued, issue
from tests.unit.control_plane.conftest import GATEWAY_TOKEN, Refused, Server

S = grpc.StatusCode
ONE, TWO = issue("shop.example.com"), issue("shop.example.com", "*.example.org", days=120)
MASK = ["display_name", "labels"]


class Now:
    """A clock that tests set, µs."""

    def __init__(self) -> None:
        self.days = 1.0

    def __call__(self) -> int:
        return int((START + timedelta(days=self.days)).timestamp() * 1_000_000)


@pytest.fixture
def now() -> Now:
    return Now()


@pytest.fixture
def store(tmp_path: Path, now: Now) -> Iterator[CatalogStore]:
    store = open_store(f"sqlite:///{tmp_path}/catalog.db", clock=now, elapsed=now)
    yield store
    store.close()


def create(issued: Issued = ONE, name: str = "shop", **fields: Any) -> pb.CreateCertificateRequest:
    certificate = pb.Certificate(chain_pem=issued.pem, private_key_pem=issued.key_pem, **fields)
    return pb.CreateCertificateRequest(certificate=certificate, certificate_id=name)


def get(name: str = "certificates/shop") -> pb.GetCertificateRequest:
    return pb.GetCertificateRequest(name=name)


def test_certificates_are_kept_shown_without_their_keys_listed_and_forgotten(
    server: Server, refused: Refused, store: CatalogStore
) -> None:
    made = server("CreateCertificate", create(display_name="The shop's", labels={"team": "a"}))
    assert (made.name, list(made.domains)) == ("certificates/shop", ["shop.example.com"])
    assert made.fingerprint == ONE.fingerprint
    assert made.private_key_pem == ""
    assert made.chain_pem == ONE.pem
    assert server("GetCertificate", get()) == made
    kept = store.mirror.certificates.get(made.name)
    assert kept is not None
    assert kept.private_key == ONE.key_pem
    assert "PRIVATE" not in repr(kept)
    server("CreateCertificate", create(TWO, "wild"))
    listed = server("ListCertificates", pb.ListCertificatesRequest(page_size=1))
    assert [it.name for it in listed.certificates] == [made.name]
    rest = pb.ListCertificatesRequest(page_token=listed.next_page_token)
    assert [it.name for it in server("ListCertificates", rest).certificates] == ["certificates/wild"]
    assert refused("CreateCertificate", create()).info.reason == "CERTIFICATE_ALREADY_EXISTS"
    delete = pb.DeleteCertificateRequest(name=made.name, etag='"old"')
    assert refused("DeleteCertificate", delete).info.reason == "ETAG_MISMATCH"
    server("DeleteCertificate", pb.DeleteCertificateRequest(name=made.name, validate_only=True))
    for _ in range(2):
        again = pb.DeleteCertificateRequest(name=made.name, etag=made.etag, request_id="once")
        server("DeleteCertificate", again)
    for method, request in (("GetCertificate", get()), ("DeleteCertificate", delete)):
        error = refused(method, request)
        assert (error.code, error.info.reason) == (S.NOT_FOUND, "CERTIFICATE_NOT_FOUND")
        assert error.resource.resource_type == "appsupervisor.dev/Certificate"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("domains:*.example.org", ["wild"]),
        ("domains:shop.example.com", ["shop", "wild"]),
        ("example.org", ["wild"]),
        ('expire_time < "2026-04-15T00:00:00Z"', ["shop"]),
        ("labels.team = a", ["shop"]),
    ],
)
def test_lists_are_filtered(server: Server, text: str, found: list[str]) -> None:
    server("CreateCertificate", create(labels={"team": "a"}))
    server("CreateCertificate", create(TWO, "wild"))
    listed = server("ListCertificates", pb.ListCertificatesRequest(filter=text))
    assert [it.name.removeprefix("certificates/") for it in listed.certificates] == found


def test_bad_input_is_told_all_at_once(refused: Refused) -> None:
    error = refused("CreateCertificate", create(name="No", display_name="x" * 200))
    assert error.fields == {"certificate_id", "certificate.display_name"}
    bad = pb.Certificate(chain_pem="?", private_key_pem="?")
    request = pb.CreateCertificateRequest(certificate=bad, certificate_id="x")
    assert refused("CreateCertificate", request).fields == {
        "certificate.chain_pem",
        "certificate.private_key_pem",
    }


def test_a_repeat_returns_the_first_result_and_a_validated_one_is_not_kept(
    server: Server, refused: Refused
) -> None:
    request = create()
    request.validate_only = True
    assert server("CreateCertificate", request).fingerprint == ONE.fingerprint
    assert refused("GetCertificate", get()).info.reason == "CERTIFICATE_NOT_FOUND"
    request = create()
    request.request_id = "once"
    first = server("CreateCertificate", request)
    assert server("CreateCertificate", request) == first
    request.certificate.private_key_pem = TWO.key_pem
    request.certificate.chain_pem = TWO.pem
    assert refused("CreateCertificate", request).info.reason == "REQUEST_ID_REUSED"


def update(paths: list[str] | None = None, etag: str = "", **fields: Any) -> pb.UpdateCertificateRequest:
    request = pb.UpdateCertificateRequest(
        certificate=pb.Certificate(name="certificates/shop", etag=etag, **fields)
    )
    request.update_mask.paths.extend(paths or [])
    return request


def test_a_certificate_is_replaced_with_its_key_and_by_halves_only_if_they_fit(
    server: Server, refused: Refused, store: CatalogStore
) -> None:
    made = server("CreateCertificate", create(labels={"team": "a"}))
    error = refused("UpdateCertificate", update(chain_pem=TWO.pem))
    assert error.fields == {"certificate.private_key_pem"}
    both = server("UpdateCertificate", update(chain_pem=TWO.pem, private_key_pem=TWO.key_pem))
    assert (both.fingerprint, both.uid) == (TWO.fingerprint, made.uid)
    assert list(both.domains) == ["*.example.org", "shop.example.com"]
    assert dict(both.labels) == {"team": "a"}
    assert both.etag != made.etag
    # Of the same key: renewed with its chain alone.
    renewed = issue("shop.example.com", key=TWO.key)
    again = server("UpdateCertificate", update(["chain_pem"], chain_pem=renewed.pem))
    assert again.fingerprint == renewed.fingerprint
    kept = store.mirror.certificates.get(made.name)
    assert kept is not None
    assert kept.private_key == TWO.key_pem
    # What was read and is sent back changes nothing, nor does its key get lost.
    whole = update(["*"])
    whole.certificate.CopyFrom(again)
    assert server("UpdateCertificate", whole) == again
    emptied = server("UpdateCertificate", update(["labels"], etag=again.etag))
    assert not emptied.labels
    assert refused("UpdateCertificate", update(MASK, etag=made.etag)).info.reason == "ETAG_MISMATCH"
    assert refused("UpdateCertificate", update(["domains"])).fields == {"update_mask"}
    assert refused("UpdateCertificate", update(["chain_pem"])).fields == {"certificate.chain_pem"}


def test_a_half_is_not_put_to_another_half_that_came_meanwhile(
    server: Server, store: CatalogStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    server("CreateCertificate", create())
    elder = store.mirror.certificates.get("certificates/shop")
    server("UpdateCertificate", update(chain_pem=TWO.pem, private_key_pem=TWO.key_pem))
    service = CertificateService(store)
    monkeypatch.setattr(service, "_mirror", SimpleNamespace(certificates={"certificates/shop": elder}))
    renewed = issue("shop.example.com", key=ONE.key)
    with pytest.raises(SupervisorError, match="has changed meanwhile"):
        server.loop.run_until_complete(
            service.update(update(["chain_pem"], chain_pem=renewed.pem), Caller("t", 20))
        )


def test_its_end_is_told_as_it_comes_nearer(server: Server, refused: Refused, now: Now) -> None:
    server("CreateCertificate", create())

    def told() -> list[tuple[str, int, str]]:
        return [(it.type, it.status, it.reason) for it in server("GetCertificate", get()).conditions]

    assert told() == [("Valid", Condition.MET, "InTime"), ("ExpiresSoon", Condition.UNMET, "TimeLeft")]
    now.days = 61
    assert told() == [("Valid", Condition.MET, "InTime"), ("ExpiresSoon", Condition.MET, "EndsSoon")]
    now.days = 91
    assert told() == [("Valid", Condition.UNMET, "Expired"), ("ExpiresSoon", Condition.MET, "Expired")]
    # It may still be labelled, but not be brought again.
    server("UpdateCertificate", update(display_name="old"))
    assert refused("CreateCertificate", create(name="again")).fields == {"certificate.chain_pem"}


def test_its_end_is_a_metric(server: Server, store: CatalogStore) -> None:
    made = server("CreateCertificate", create())
    metrics = ControlPlaneMetrics(store, lambda: (0, 0), watchers=lambda: 0, tails=lambda: 0)
    (found,) = (it for it in metrics.collect() if it.name.endswith("certificate_expire_time_seconds"))
    (sample,) = found.samples
    assert (sample.labels, sample.value) == ({"certificate": made.name}, made.expire_time.ToSeconds())


def test_a_watch_tells_each_change_and_keys_to_who_has_the_token(server: Server, store: CatalogStore) -> None:
    server("CreateCertificate", create())

    async def told(private_keys: bool, token: str = "", count: int = 2) -> list[Any]:
        found: list[Any] = []
        request = pb.WatchCertificatesRequest(private_keys=private_keys, resume_token=token)
        async with aclosing(watch_certificates(store, request)) as messages:
            async for message in messages:
                found.append(message)
                if len(found) == count:
                    break
        return found

    one, synced = server.loop.run_until_complete(told(False))
    assert (one.certificate.fingerprint, one.private_key_pem) == (ONE.fingerprint, "")
    assert synced.type == pb.WatchCertificatesResponse.SYNCED
    one, synced = server.loop.run_until_complete(told(True))
    assert (one.private_key_pem, one.certificate.private_key_pem) == (ONE.key_pem, "")
    server("UpdateCertificate", update(chain_pem=TWO.pem, private_key_pem=TWO.key_pem))
    server("CreateCertificate", create(ONE, "gone"))
    server("DeleteCertificate", pb.DeleteCertificateRequest(name="certificates/gone"))
    changed = server.loop.run_until_complete(told(True, synced.resume_token))
    assert {(it.type, it.certificate.name, it.private_key_pem) for it in changed} == {
        (pb.WatchCertificatesResponse.UPSERT, "certificates/shop", TWO.key_pem),
        (pb.WatchCertificatesResponse.REMOVE, "certificates/gone", ""),
    }


@pytest.mark.parametrize(
    ("token", "sent"),
    [("", ""), ("", "Bearer "), (GATEWAY_TOKEN, ""), (GATEWAY_TOKEN, "Bearer other"), (GATEWAY_TOKEN, "é")],
)
def test_without_the_token_no_key_is_told(token: str, sent: str) -> None:
    with pytest.raises(SupervisorError) as refusal:
        check_token(token, {"authorization": sent})
    assert refusal.value.reason == "PRIVATE_KEYS_NOT_GIVEN"
    assert GATEWAY_TOKEN not in str(refusal.value)


def test_the_servicer_asks_for_the_token_before_it_tells_anything(store: CatalogStore) -> None:
    class Asked:
        metadata: dict[str, str] = {}  # noqa: RUF012 - a stand-in

    servicer = CertificatesServicer(store, CertificateService(store), GATEWAY_TOKEN)

    async def first(call: Any) -> Any:
        request = pb.WatchCertificatesRequest(private_keys=True)
        async with aclosing(servicer.WatchCertificates(request, call)) as messages:  # type: ignore[type-var]
            return await anext(messages)

    with pytest.raises(SupervisorError, match="gateway token"):
        asyncio.run(first(Asked()))
    Asked.metadata = {"authorization": f"Bearer {GATEWAY_TOKEN}"}
    assert asyncio.run(first(Asked())).type == pb.WatchCertificatesResponse.SYNCED
