"""gRPC servers and channels as every hop sets them up."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from tiermesh.v1 import (
    admin_pb2,
    admin_pb2_grpc,
    inference_pb2,
    inference_pb2_grpc,
    registry_pb2,
    registry_pb2_grpc,
    relay_pb2,
    relay_pb2_grpc,
)

from .errors import ConfigError
from .validate import MAX_MESSAGE_BYTES, MAX_METADATA_BYTES

if TYPE_CHECKING:
    from .admin_servicer import AdminServicer
    from .inference_servicer import InferenceServicer
    from .registry_servicer import RegistryServicer
    from .relay_server import RelayServicer

# The interval that servers allow lies below the interval at which clients ping, or clients are told to go away.
_SERVER_OPTIONS = [
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    # A server that had no processor for a while finds the pings of that time at once; its peers are not to blame.
    ("grpc.http2.max_ping_strikes", 0),
    # One limit; by default grpc refuses calls with more than 8 KiB at random, and with 16 always.
    ("grpc.max_metadata_size", MAX_METADATA_BYTES),
    ("grpc.absolute_max_metadata_size", MAX_METADATA_BYTES),
    # Beyond a thousand calls that wait for the event loop grpc cancels some at random; refusing is ours, with a reason.
    ("grpc.server.max_pending_requests", 100_000),
    ("grpc.server.max_pending_requests_hard_limit", 100_000),
    # A client that vanished, or reads a byte a second, is found out, and what waits for it is freed.
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.so_reuseport", 0),  # Else a second server on the same port starts, and gets half of the calls.
]
_CHANNEL_OPTIONS = [
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 2_000),  # also the least time that one attempt to connect gets
    ("grpc.max_reconnect_backoff_ms", 2_000),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_retries", 0),
]

_CLOSE_S = 1.0


def channel(address: str) -> grpc.aio.Channel:
    """A plaintext channel to "host:port"."""
    return grpc.aio.insecure_channel(address, options=_CHANNEL_OPTIONS)


class RpcServer:
    """A gRPC server with health and reflection. NOT_SERVING until `ready`."""

    def __init__(self) -> None:
        self._server = grpc.aio.server(options=_SERVER_OPTIONS)
        self._health = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        self._names = [health.SERVICE_NAME, reflection.SERVICE_NAME]
        self._stopping: asyncio.Task[None] | None = None
        self.address = ""
        """ "host:port" once started."""

    def add_inference(self, servicer: InferenceServicer) -> None:
        """Offers the public API."""
        inference_pb2_grpc.add_InferenceServiceServicer_to_server(servicer, self._server)
        self._names.append(inference_pb2.DESCRIPTOR.services_by_name["InferenceService"].full_name)

    def add_relay(self, servicer: RelayServicer) -> None:
        """Offers the relay."""
        relay_pb2_grpc.add_RelayServiceServicer_to_server(servicer, self._server)
        self._names.append(relay_pb2.DESCRIPTOR.services_by_name["RelayService"].full_name)

    def add_admin(self, servicer: AdminServicer) -> None:
        """Offers what operators may call."""
        admin_pb2_grpc.add_AdminServiceServicer_to_server(servicer, self._server)
        self._names.append(admin_pb2.DESCRIPTOR.services_by_name["AdminService"].full_name)

    def add_registry(self, servicer: RegistryServicer) -> None:
        """Offers what workers may tell."""
        registry_pb2_grpc.add_RegistryServiceServicer_to_server(servicer, self._server)
        self._names.append(registry_pb2.DESCRIPTOR.services_by_name["RegistryService"].full_name)

    async def start(self, listen: str) -> str:
        """Listens on "host:port" (port 0: any) and returns the bound address. Raises ConfigError if that fails."""
        reflection.enable_server_reflection(self._names, self._server)
        await self.ready(False)
        host, _, _ = listen.rpartition(":")
        try:
            port = self._server.add_insecure_port(listen)
        except RuntimeError as exc:
            raise ConfigError(f"can't listen on {listen}: the port is in use or the address is not ours") from exc
        if port == 0:
            raise ConfigError(f"can't listen on {listen}: the port is in use or the address is not ours")
        await self._server.start()
        self.address = f"{host}:{port}"
        return self.address

    async def ready(self, serving: bool) -> None:
        """Tells the health service, for the whole server and each service."""
        status = health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING
        for name in ["", *self._names]:
            await self._health.set(name, status)

    async def retire(self) -> None:
        """Says NOT_SERVING for good, whatever `ready` tells later; takes calls as before."""
        await self._health.enter_graceful_shutdown()

    async def stop(self, grace_s: float) -> None:
        """Says NOT_SERVING, refuses new calls, gives running ones grace_s seconds, then cancels them.

        Returns a second later at most: grpc waits 20 s for connections that a client does not read from. Called again,
        it waits for the end that is under way: grpc crashes where two calls end one server (seen with 1.85).
        """
        await self.retire()
        if self._stopping is None:
            self._stopping = asyncio.create_task(self._server.stop(grace_s))
        await asyncio.wait([self._stopping], timeout=grace_s + _CLOSE_S)
