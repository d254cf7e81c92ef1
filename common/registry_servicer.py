"""What workers may tell a router, over a port that it implements."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import grpc

from tiermesh.v1 import registry_pb2 as pb
from tiermesh.v1 import registry_pb2_grpc

from .inference_servicer import guarded, metadata_of


class Registrar(Protocol):
    """Who keeps the workers."""

    def announce(self, address: str, leaving: bool, metadata: Mapping[str, str]) -> float:
        """A worker is there, or leaves; seconds that it is kept without another word. Raises TiermeshError."""
        ...


class RegistryServicer(registry_pb2_grpc.RegistryServiceServicer):
    """Converts, and turns errors into statuses; nothing else."""

    def __init__(self, registrar: Registrar) -> None:
        self._registrar = registrar

    async def Announce(
        self, request: pb.AnnounceRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> pb.AnnounceResponse:
        """A worker is there, or leaves."""

        async def answer() -> pb.AnnounceResponse:
            lease_s = self._registrar.announce(request.address, request.leaving, metadata_of(context))
            return pb.AnnounceResponse(lease_ms=round(1000 * lease_s))

        return await guarded(context, "Announce", answer())
