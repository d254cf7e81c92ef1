"""A client of the public API that costs little itself: one channel, a request made once, times taken as they come."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import grpc

from tiermesh.v1 import inference_pb2 as pb
from tiermesh.v1 import inference_pb2_grpc
from tiermesh.v1 import types_pb2 as tpb

from ..common.config import DEMO_KEY
from .hops import IDLE

_METADATA = (("authorization", f"Bearer {DEMO_KEY}"),)


@dataclass(frozen=True, slots=True)
class Answered:
    """Times of one request, in seconds from its call."""

    first_s: float
    """To the first token."""
    total_s: float
    tokens: int


class Client:
    """Asks one address; to be used as a context."""

    def __init__(self, address: str) -> None:
        self._channel = grpc.aio.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)])
        self._stub: Any = inference_pb2_grpc.InferenceServiceStub(self._channel)

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._channel.close()

    async def ask(self, tokens: int) -> Answered:
        """One answer, past the cache. Every token must come."""
        prompt, began = tpb.Prompt(text="a question of some length, as it is usual"), time.perf_counter()
        request = pb.GenerateRequest(prompt=prompt, max_tokens=tokens, cache=tpb.CACHE_CONTROL_BYPASS, together=True)
        first_s, given = 0.0, 0
        async for message in self._stub.Generate(request, metadata=_METADATA, timeout=60.0):
            for event in (message, *message.then):
                if event.HasField("tokens"):
                    first_s = first_s or time.perf_counter() - began
                    given += len(event.tokens.ids)
        assert given == tokens, f"{given} of {tokens} tokens came"
        return Answered(first_s, time.perf_counter() - began, given)

    async def idle(self) -> Any:
        """A stream that has had its first token and gets no more; cancel it in the end."""
        request = pb.GenerateRequest(prompt=tpb.Prompt(text=IDLE), max_tokens=4000, cache=tpb.CACHE_CONTROL_BYPASS)
        call = self._stub.Generate(request, metadata=_METADATA)
        while not (await call.read()).HasField("tokens"):
            pass
        return call


async def closed_loop(client: Client, at_once: int, requests: int, tokens: int) -> tuple[list[Answered], float]:
    """So many requests, as many at once; all answers, and the seconds that they took together."""
    answers: list[Answered] = []
    left = iter(range(requests))

    async def one() -> None:
        for _ in left:
            answers.append(await client.ask(tokens))

    began = time.perf_counter()
    await asyncio.gather(*(one() for _ in range(at_once)))
    return answers, time.perf_counter() - began


async def open_loop(client: Client, offsets_s: Sequence[float], tokens: int) -> list[Answered]:
    """Requests at given times from now, whatever becomes of those before."""
    loop = asyncio.get_running_loop()
    begun = loop.time()
    tasks = []
    for offset in offsets_s:
        await asyncio.sleep(max(0.0, begun + offset - loop.time()))
        tasks.append(asyncio.create_task(client.ask(tokens)))
    return list(await asyncio.gather(*tasks))
