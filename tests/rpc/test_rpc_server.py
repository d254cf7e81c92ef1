"""The end of a server."""

from __future__ import annotations

import asyncio

from grpc_health.v1 import health_pb2, health_pb2_grpc

from tiermesh.common.rpc import RpcServer, channel


async def test_a_server_may_be_stopped_again_while_it_stops() -> None:
    """With two ends of one server under way, grpc crashed the process within a few of these rounds."""
    for calls in range(1, 41):
        server = RpcServer()
        async with channel(await server.start("127.0.0.1:0")) as chan:
            watch = health_pb2_grpc.HealthStub(chan).Watch(health_pb2.HealthCheckRequest())
            await watch.read()

            async def stop(turns: int, server: RpcServer = server) -> None:
                for _ in range(turns):
                    await asyncio.sleep(0)
                await server.stop(0)

            await asyncio.gather(*(stop(turns) for turns in range(calls)))
