"""WatchCertificates: the certificates as they change; their private keys for who has the gateway token."""

from __future__ import annotations

import hmac
from collections.abc import AsyncGenerator, Mapping

from appsupervisor.catalog.v1 import certificates_pb2 as pb
from services.control_plane.catalog.pages import request_digest
from services.control_plane.catalog.watching import watched
from services.control_plane.certificates.certificates import shown
from services.control_plane.store.interface import CatalogStore
from services.control_plane.store.records import CertificateRecord
from services.rpc.errors import SupervisorError
from services.rpc.feed import Entry, Mark, Signal

Message = pb.WatchCertificatesResponse

TOKEN_KEY, TOKEN_SCHEME = "authorization", "Bearer "


def check_token(token: str, metadata: Mapping[str, str | bytes]) -> None:
    """Raise PRIVATE_KEYS_NOT_GIVEN unless a caller has sent the gateway token; an empty one is nobody's."""
    if not token:
        raise SupervisorError(
            "PRIVATE_KEYS_NOT_GIVEN",
            "This control plane tells private keys to nobody; start it with --gateway-token-file.",
        )
    sent = str(metadata.get(TOKEN_KEY, ""))
    if not hmac.compare_digest(sent.encode(), f"{TOKEN_SCHEME}{token}".encode()):
        raise SupervisorError(
            "PRIVATE_KEYS_NOT_GIVEN",
            "Private keys are told only to who sends the gateway token, as authorization: Bearer TOKEN.",
        )


async def watch_certificates(
    store: CatalogStore, request: pb.WatchCertificatesRequest
) -> AsyncGenerator[Message, None]:
    """Carry out WatchCertificates, for a caller who may have what it asks for."""

    def told(entry: Entry[CertificateRecord], _resumed: bool) -> Message | None:
        if entry.value is None:
            gone = pb.Certificate(name=entry.key)
            return Message(type=Message.REMOVE, certificate=gone, revision=entry.revision)
        return Message(
            type=Message.UPSERT,
            certificate=shown(entry.value, store.now()),
            private_key_pem=entry.value.private_key if request.private_keys else "",
            revision=entry.revision,
        )

    digest = request_digest("watch certificates", str(request.private_keys))
    feed = store.mirror.certificates
    async for message in watched(store, feed, request.resume_token, digest, entry=told, mark=_mark):
        yield message


def _mark(mark: Mark) -> Message:
    kind = Message.BOOKMARK if mark.signal is Signal.IDLE else Message.SYNCED
    return Message(type=kind, revision=mark.revision)
