"""The methods of a server by name, each behind the pipeline; generated code registers them here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import grpc

from services.rpc.pipeline.pipeline import Pipeline


class Methods(grpc.GenericRpcHandler):
    """Finds a method for gRPC. What is not there is answered with a reason, too."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline
        self._handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}
        self._older: list[tuple[Any, bool]] = []
        self.foreign = _Foreign(self)
        """Registers servicers that take gRPC's own context, as published ones do."""

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Any]) -> None:
        """Register a service's methods."""
        self.add(service, handlers, with_context=False)

    def add_generic_rpc_handlers(self, handlers: Sequence[Any]) -> None:
        """Register a service's methods as older generated code does: found by asking it, once each."""
        self._older += [(handler, False) for handler in handlers]

    def add(self, service: str, handlers: Mapping[str, Any], *, with_context: bool) -> None:
        """Register methods by their short names."""
        for name, method in handlers.items():
            path = f"/{service}/{name}"
            self._handlers[path] = self._pipeline.wrap(path, method, with_context=with_context)

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any]:
        """Return the handler of a call."""
        path = handler_call_details.method
        found = self._handlers.get(path)
        if found is not None:
            return found
        details = _Details(path)
        for older, with_context in self._older:
            method = older.service(details)
            if method is not None:
                found = self._handlers[path] = self._pipeline.wrap(path, method, with_context=with_context)
                return found
        return self._pipeline.unknown(path)


@dataclass(frozen=True, slots=True)
class _Foreign:
    methods: Methods

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Any]) -> None:
        self.methods.add(service, handlers, with_context=True)

    def add_generic_rpc_handlers(self, handlers: Sequence[Any]) -> None:
        """Do nothing: the same handlers are registered by name."""


@dataclass(frozen=True, slots=True)
class _Details:
    method: str
    invocation_metadata: tuple[()] = ()
