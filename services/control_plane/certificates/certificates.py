"""Certificates: the commands and questions about them. What is in one is `rules.certificates`' to read."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Sequence
from dataclasses import replace

from appsupervisor.catalog.v1 import certificates_pb2 as pb
from services.control_plane.catalog.idempotency import execute
from services.control_plane.catalog.pages import page_by_name, request_digest
from services.control_plane.catalog.positions import caught_up
from services.control_plane.rules.certificates import certificate_violations, set_conditions
from services.control_plane.rules.etags import app_etag, check_etag
from services.control_plane.rules.filters import compile_certificate_filter
from services.control_plane.rules.names import certificate_name, parse_certificate_name, validate_id
from services.control_plane.rules.sizes import check_sizes
from services.control_plane.store.interface import CatalogStore, Transaction
from services.control_plane.store.records import CertificateRecord, timestamp
from services.rpc.errors import SupervisorError, Violation, invalid_fields
from services.rpc.pipeline.call import Caller

SET_BY_USERS = ("display_name", "labels", "chain_pem", "private_key_pem")


class CertificateService:
    """Answers what is asked and told about certificates."""

    def __init__(self, store: CatalogStore) -> None:
        self._store = store
        self._mirror = store.mirror

    async def create(self, request: pb.CreateCertificateRequest, caller: Caller) -> pb.Certificate:
        """Carry out CreateCertificate."""
        given = request.certificate
        check_sizes(given, "certificate")
        name = certificate_name(request.certificate_id)
        violations = validate_id("certificate_id", request.certificate_id, reserved=False)
        if given.name not in ("", name):
            violations.append(
                Violation("certificate.name", f"must be empty or {name!r}, after certificate_id")
            )
        certificate = _chosen(given)
        # A key of 4,096 bits may take 0.4 s to be checked: neither calls nor other commands wait for that.
        violations += await asyncio.to_thread(_read, certificate, self._store.now())
        if violations:
            raise invalid_fields(violations)
        key, certificate.private_key_pem = certificate.private_key_pem, ""
        uid = str(uuid.uuid4())

        def run(tx: Transaction) -> pb.Certificate:
            if tx.certificate(name) is not None:
                raise SupervisorError("CERTIFICATE_ALREADY_EXISTS", f"{name} exists already.", resource=name)
            made = pb.Certificate()
            made.CopyFrom(certificate)
            made.name, made.uid = name, uid
            made.create_time.CopyFrom(timestamp(tx.now))
            made.update_time.CopyFrom(timestamp(tx.now))
            made.etag = app_etag(uid, tx.revision, tx.history)
            record = CertificateRecord(made, key)
            tx.put_certificate(record)
            return shown(record, tx.now)

        return await execute(
            self._store, caller, request, pb.Certificate, run,
            request_id=request.request_id, validate_only=request.validate_only,
        )  # fmt: skip

    def get(self, request: pb.GetCertificateRequest) -> pb.Certificate:
        """Carry out GetCertificate."""
        name = certificate_name(parse_certificate_name(request.name))
        record = self._mirror.certificates.get(name)
        if record is None:
            raise certificate_not_found(name)
        return shown(record, self._store.now())

    def list(self, request: pb.ListCertificatesRequest) -> pb.ListCertificatesResponse:
        """Carry out ListCertificates."""
        wanted, now = compile_certificate_filter(request.filter), self._store.now()
        page, token = page_by_name(
            lambda after: (
                shown(it, now) for it in self._mirror.certificates.values(after) if wanted(it.certificate)
            ),
            lambda certificate: certificate.name,
            pb.Certificate.ByteSize,
            size=request.page_size,
            token=request.page_token,
            digest=request_digest("certificates", request.filter),
        )
        return pb.ListCertificatesResponse(certificates=page, next_page_token=token)

    async def update(self, request: pb.UpdateCertificateRequest, caller: Caller) -> pb.Certificate:
        """Carry out UpdateCertificate."""
        given = request.certificate
        check_sizes(given, "certificate")
        name = certificate_name(parse_certificate_name(given.name, "certificate.name"))
        paths = _paths(request)
        # What another replica has stored before this call is the half that is not told.
        await caught_up(self._store)
        known = self._mirror.certificates.get(name)
        # A key may take 0.4 s to be checked: no other command waits for that.
        renewed = await asyncio.to_thread(_renewed, known, given, paths, self._store.now())

        def run(tx: Transaction) -> pb.Certificate:
            record = _existing(tx, name, given.etag)
            wanted = _changed(record, given, paths)
            if _pair(wanted) != (record.certificate.chain_pem, record.private_key):
                if renewed is None or _pair(wanted) != _pair(renewed):
                    # Only one half was told, and the other one has been replaced since it was looked at.
                    raise SupervisorError(
                        "ETAG_MISMATCH",
                        f"{name} has changed meanwhile; read it again.",
                        resource=name,
                        metadata={"etag": record.certificate.etag},
                    )
                _take_read(wanted, renewed)
            if violations := certificate_violations(wanted):
                raise invalid_fields(violations)
            key, wanted.private_key_pem = wanted.private_key_pem, ""
            if (wanted, key) == (record.certificate, record.private_key):
                return shown(record, tx.now)
            wanted.update_time.CopyFrom(timestamp(tx.now))
            wanted.etag = app_etag(wanted.uid, tx.revision, tx.history)
            changed = replace(record, certificate=wanted, private_key=key)
            tx.put_certificate(changed)
            return shown(changed, tx.now)

        return await execute(
            self._store, caller, request, pb.Certificate, run,
            request_id=request.request_id, validate_only=request.validate_only,
        )  # fmt: skip

    async def delete(self, request: pb.DeleteCertificateRequest, caller: Caller) -> None:
        """Carry out DeleteCertificate."""
        name = certificate_name(parse_certificate_name(request.name))

        def run(tx: Transaction) -> pb.Certificate:
            record = _existing(tx, name, request.etag)
            tx.delete_certificate(name)
            return record.certificate

        await execute(
            self._store, caller, request, pb.Certificate, run,
            request_id=request.request_id, validate_only=request.validate_only,
        )  # fmt: skip


def shown(record: CertificateRecord, now: int) -> pb.Certificate:
    """Return a certificate as the API shows it at a time (µs)."""
    certificate = pb.Certificate()
    certificate.CopyFrom(record.certificate)
    set_conditions(certificate, now)
    return certificate


def _read(certificate: pb.Certificate, now: int) -> list[Violation]:
    # With its library: most control planes are brought none.
    from services.control_plane.rules.certificate_chains import read_chain  # noqa: PLC0415

    return certificate_violations(certificate) + read_chain(certificate, now)


def _changed(record: CertificateRecord, given: pb.Certificate, paths: Sequence[str]) -> pb.Certificate:
    """Return a certificate with its key as an update wants it, with what was read of the one before."""
    wanted = pb.Certificate()
    wanted.CopyFrom(record.certificate)
    wanted.private_key_pem = record.private_key
    for path in paths:
        wanted.ClearField(path)  # type: ignore[arg-type]
        if path == "labels":
            wanted.labels.update(given.labels)
        else:
            setattr(wanted, path, getattr(given, path))
    return wanted


def _pair(certificate: pb.Certificate) -> tuple[str, str]:
    return certificate.chain_pem, certificate.private_key_pem


def _renewed(
    known: CertificateRecord | None, given: pb.Certificate, paths: Sequence[str], now: int
) -> pb.Certificate | None:
    """Return what an update makes of a certificate, read; None if it has the chain and key it had.

    Raises INVALID_FIELD with all that is wrong with it.
    """
    if known is None:
        return None
    wanted = _changed(known, given, paths)
    if _pair(wanted) == (known.certificate.chain_pem, known.private_key):
        return None
    if violations := _read(wanted, now):
        raise invalid_fields(violations)
    return wanted


def _take_read(wanted: pb.Certificate, read: pb.Certificate) -> None:
    """Take over, in place, what was read of the same chain and key."""
    del wanted.domains[:]
    wanted.domains.extend(read.domains)
    wanted.issuer, wanted.fingerprint = read.issuer, read.fingerprint
    wanted.start_time.CopyFrom(read.start_time)
    wanted.expire_time.CopyFrom(read.expire_time)


def _chosen(given: pb.Certificate) -> pb.Certificate:
    """Return what a caller may set of a certificate."""
    return pb.Certificate(
        display_name=given.display_name,
        labels=given.labels,
        chain_pem=given.chain_pem,
        private_key_pem=given.private_key_pem,
    )


def _paths(request: pb.UpdateCertificateRequest) -> list[str]:
    """Return the fields that an update takes. Raises INVALID_FIELD with each that none can take."""
    paths = list(request.update_mask.paths)
    if paths == ["*"]:
        # What was read back has no key in it: it is kept.
        return [
            path for path in SET_BY_USERS if path != "private_key_pem" or request.certificate.private_key_pem
        ]
    if not paths:
        return [field.name for field, _ in request.certificate.ListFields() if field.name in SET_BY_USERS]
    known = ", ".join(SET_BY_USERS)
    violations = [
        Violation("update_mask", f"{path[:64]!r} cannot be set; {known} can")
        for path in paths
        if path not in SET_BY_USERS
    ]
    if violations:
        raise invalid_fields(violations)
    return paths


def _existing(tx: Transaction, name: str, etag: str) -> CertificateRecord:
    record = tx.certificate(name)
    if record is None:
        raise certificate_not_found(name)
    check_etag(etag, record.certificate.etag, name)
    return record


def certificate_not_found(name: str) -> SupervisorError:
    """Return the error for a certificate that isn't in the catalog."""
    return SupervisorError("CERTIFICATE_NOT_FOUND", f"{name} does not exist.", resource=name)
