"""The Certificates service over the core."""

from __future__ import annotations

from collections.abc import AsyncIterator

from google.protobuf.empty_pb2 import Empty

from appsupervisor.catalog.v1 import certificates_pb2 as pb
from services.control_plane.certificates.certificates import CertificateService
from services.control_plane.certificates.watch import check_token, watch_certificates
from services.control_plane.store.interface import CatalogStore
from services.rpc.pipeline.call import Call


class CertificatesServicer:
    """Serves Certificates."""

    def __init__(
        self, store: CatalogStore, certificates: CertificateService, gateway_token: str = ""
    ) -> None:
        """`gateway_token` lets its bearer have private keys; with an empty one nobody has them."""
        self._store = store
        self._certificates = certificates
        self._gateway_token = gateway_token

    async def CreateCertificate(self, request: pb.CreateCertificateRequest, call: Call) -> pb.Certificate:
        """Serve Certificates.CreateCertificate."""
        return await self._certificates.create(request, call.caller())

    async def GetCertificate(self, request: pb.GetCertificateRequest, call: Call) -> pb.Certificate:
        """Serve Certificates.GetCertificate."""
        return self._certificates.get(request)

    async def ListCertificates(
        self, request: pb.ListCertificatesRequest, call: Call
    ) -> pb.ListCertificatesResponse:
        """Serve Certificates.ListCertificates."""
        return self._certificates.list(request)

    async def UpdateCertificate(self, request: pb.UpdateCertificateRequest, call: Call) -> pb.Certificate:
        """Serve Certificates.UpdateCertificate."""
        return await self._certificates.update(request, call.caller())

    async def DeleteCertificate(self, request: pb.DeleteCertificateRequest, call: Call) -> Empty:
        """Serve Certificates.DeleteCertificate."""
        await self._certificates.delete(request, call.caller())
        return Empty()

    async def WatchCertificates(
        self, request: pb.WatchCertificatesRequest, call: Call
    ) -> AsyncIterator[pb.WatchCertificatesResponse]:
        """Serve Certificates.WatchCertificates."""
        if request.private_keys:
            check_token(self._gateway_token, call.metadata)
        async for message in watch_certificates(self._store, request):
            yield message
