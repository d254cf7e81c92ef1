"""Asks a running mesh, for `try.sh`, which pipes this into the edge node's container.

`prompts EDGE` shows a few answers and who gave what. `streams ROUTER` takes twenty answers undisturbed, then again,
says when all of them are under way, so that somebody can kill a worker, and compares. `alone EDGE` and `healed EDGE`
ask for an answer that the cloud should have a part in, and want it without and with that part.
"""

import asyncio
import json
import os
import sys
from contextlib import aclosing

from tiermesh import Answer, AsyncClient
from tiermesh.common.types import Finished, Tokens
from tiermesh.models import starter

KEY = os.environ["API_KEY"]
TIER = "batch"
"""Its deadline is long enough for a machine that is busy with other things."""
COMMANDS, CODE = 6, 2
"""Prompts of each kind that are shown."""
HEALS_WITHIN_S = 30.0
STREAMS = 20
MAX_TOKENS = 400
UNDER_WAY = 8
"""Tokens that every stream has shown when the worker may die."""
MAY_PART = 1
"""Answers that may differ from the undisturbed run: in fp32 another batch may turn a near tie of two logits."""


def held_out(kind: str) -> list[str]:
    """Prompts that the starter models were not trained on."""
    rows = [json.loads(line) for line in (starter() / "heldout.jsonl").read_text(encoding="utf-8").splitlines()]
    return [row["prompt"] for row in rows if row["kind"] == kind]


def shown(answer: Answer) -> str:
    """One line: the spans with their tokens, the times, the text."""
    spans = " ".join(
        f"{span.origin.value}:{span.tokens}{' (degraded)' if span.degraded else ''}" for span in answer.spans
    )
    return (
        f"  [{spans}] {answer.ttft_s * 1e3:.0f} ms to the first token, {answer.total_s * 1e3:.0f} ms; {answer.text!r}"
    )


async def prompts(address: str) -> int:
    """Commands and code through the edge node, the first of them twice."""
    asked = [*held_out("command")[:COMMANDS], *held_out("code")[:CODE]]
    async with AsyncClient(address, api_key=KEY) as client:
        for prompt in [*asked, asked[0]]:
            print(f"{prompt[-72:]!r}", shown(await client.generate(prompt, max_tokens=48, tier=TIER)), sep="\n")
    return 0


async def alone(address: str) -> int:
    """0 when the edge node answers by itself and says so."""
    async with AsyncClient(address, api_key=KEY) as client:
        answer = await hard_answer(client)
    print(shown(answer))
    return int(not any(span.degraded for span in answer.spans))


async def healed(address: str) -> int:
    """0 when the edge node is with the router again in time."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    async with AsyncClient(address, api_key=KEY) as client:
        while True:
            answer = await hard_answer(client)
            degraded = any(span.degraded for span in answer.spans)
            if not degraded or loop.time() - began > HEALS_WITHIN_S:
                print(shown(answer))
                return int(degraded)
            await asyncio.sleep(0.2)


async def hard_answer(client: AsyncClient) -> Answer:
    """To code that was not asked for before, where the edge model trusts itself little."""
    prompt = held_out("code")[CODE]
    print(f"{prompt[-72:]!r}")
    return await client.generate(prompt, max_tokens=48, tier=TIER, cache="bypass")


async def streams(address: str) -> int:
    """0 when all disturbed answers finished and at most MAY_PART of them differ."""
    async with AsyncClient(address, api_key=KEY) as client:
        calm = await all_answers(client, asyncio.Event())
        under_way = asyncio.Event()
        disturbed = asyncio.create_task(all_answers(client, under_way))
        await under_way.wait()
        print(f"UNDER WAY: {STREAMS} answers", flush=True)
        again = await disturbed
    parted = [index for index, texts in enumerate(zip(calm, again, strict=True)) if texts[0][0] != texts[1][0]]
    print(f"finished: {len(again)} of {STREAMS}, {sum(count for _, count in again)} tokens")
    print(f"equal to the undisturbed run: {STREAMS - len(parted)} of {STREAMS}")
    return int(len(parted) > MAY_PART)


async def all_answers(client: AsyncClient, under_way: asyncio.Event) -> list[tuple[str, int]]:
    """Text and number of tokens of each answer: even ones greedy, odd ones at T=0.8. Sets `under_way`."""
    code = held_out("code")
    waiting = set(range(STREAMS))

    async def one(index: int) -> tuple[str, int]:
        text, count = "", 0
        answer = client.stream(
            code[index % len(code)],
            max_tokens=MAX_TOKENS,
            temperature=0.8 * (index % 2),
            seed=index,
            tier=TIER,
            cache="bypass",
        )
        async with aclosing(answer) as events:
            async for event in events:
                if isinstance(event, Tokens):
                    text, count = text + event.text, count + len(event.ids)
                if isinstance(event, Finished) or count >= UNDER_WAY:
                    waiting.discard(index)
                if not waiting:
                    under_way.set()
        return text, count

    return await asyncio.gather(*(one(index) for index in range(STREAMS)))


MODES = {"prompts": prompts, "streams": streams, "alone": alone, "healed": healed}

if __name__ == "__main__":
    sys.exit(asyncio.run(MODES[sys.argv[1]](sys.argv[2])))
