"""Run by LiteLLM's own interpreter: `stub PORT` answers OpenAI's chat API at once, `load STUB PROXY KEY` asks both.

The figures go to stdout as JSON. Not a part of the package at run time: it needs aiohttp and uvicorn, which LiteLLM
brings, and nothing of ours.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
import time
from typing import Any

_AT_ONCE = 32
_STREAMS = 16
_STREAM_TOKENS = 256
_ROUNDS = 3
_HEAD = {"id": "x", "created": 1, "model": "stub"}
_USAGE = {"prompt_tokens": 8, "completion_tokens": 1, "total_tokens": 9}


def _chunk(delta: dict[str, str], finish: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return b"data: " + json.dumps({**_HEAD, "object": "chat.completion.chunk", "choices": [choice]}).encode() + b"\n\n"


async def stub(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """An ASGI application."""
    if scope["type"] != "http":
        return
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            break
    asked = json.loads(body or b"{}")
    kind = b"text/event-stream" if asked.get("stream") else b"application/json"
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", kind)]})
    if asked.get("stream"):
        # LiteLLM takes a hundred chunks that are the same for a model gone wrong, and ends the stream.
        words = [_chunk({"role": "assistant", "content": f" word{number}"}) for number in range(2)]
        for number in range(asked["max_tokens"]):
            await send({"type": "http.response.body", "body": words[number % 2], "more_body": True})
        await send({"type": "http.response.body", "body": _chunk({}, "length") + b"data: [DONE]\n\n"})
    else:
        message = {"role": "assistant", "content": " word"}
        choice = {"index": 0, "message": message, "finish_reason": "length"}
        whole = {**_HEAD, "object": "chat.completion", "choices": [choice], "usage": _USAGE}
        await send({"type": "http.response.body", "body": json.dumps(whole).encode()})


async def _ask(session: Any, address: str, key: str, tokens: int, stream: bool) -> float:
    message = {"role": "user", "content": "a question of some length, as it is usual"}
    asked = {"model": "stub", "messages": [message], "max_tokens": tokens, "stream": stream}
    began = time.perf_counter()
    url, headers = f"http://{address}/v1/chat/completions", {"authorization": f"Bearer {key}"}
    async with session.post(url, json=asked, headers=headers) as answer:
        answer.raise_for_status()
        body = await answer.read()
    if stream:
        assert body.count(b" word") == tokens, "every token must come"
    return time.perf_counter() - began


async def _rate(session: Any, address: str, key: str, at_once: int, requests: int, tokens: int, stream: bool) -> float:
    left = iter(range(requests))

    async def one() -> None:
        for _ in left:
            await _ask(session, address, key, tokens, stream)

    began = time.perf_counter()
    await asyncio.gather(*(one() for _ in range(at_once)))
    return requests / (time.perf_counter() - began)


async def _load(stub_at: str, proxy_at: str, key: str) -> None:
    import aiohttp

    ways = {"stub": stub_at, "proxy": proxy_at}
    figures: dict[str, dict[str, float]] = {}
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        for way, at in ways.items():
            await _rate(session, at, key, 8, 100, 1, False)
            alone = sorted([await _ask(session, at, key, 1, False) for _ in range(200)])
            rates = [await _rate(session, at, key, _AT_ONCE, 600, 1, False) for _ in range(_ROUNDS)]
            streams = [await _rate(session, at, key, _STREAMS, _STREAMS, _STREAM_TOKENS, True) for _ in range(_ROUNDS)]
            figures[way] = {
                "alone_p50_ms": 1000 * alone[len(alone) // 2],
                "requests_per_s": statistics.median(rates),
                "tokens_per_s": _STREAM_TOKENS * statistics.median(streams),
            }
    print(json.dumps(figures))


if __name__ == "__main__":
    import uvloop

    if sys.argv[1] == "stub":
        import uvicorn

        uvicorn.run(stub, host="127.0.0.1", port=int(sys.argv[2]), log_level="error", access_log=False)
    else:
        uvloop.run(_load(*sys.argv[2:5]))
