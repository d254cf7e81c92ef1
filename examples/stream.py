"""Several answers at once with the asynchronous client, each with a deadline.

python examples/stream.py [HOST:PORT]
"""

import asyncio
import sys
from contextlib import aclosing

from tiermesh import AsyncClient, Finished, Tokens

PROMPTS = ("def read(path):\n", "class Stack:\n", "import os\n")


async def main() -> None:
    """Runs all prompts concurrently and prints each answer when it is complete."""
    address = sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:7070"
    async with AsyncClient(address, api_key="demo-key") as client, asyncio.TaskGroup() as tasks:
        for prompt in PROMPTS:
            tasks.create_task(show(client, prompt))


async def show(client: AsyncClient, prompt: str) -> None:
    """Streams one answer."""
    text = prompt
    async with aclosing(client.stream(prompt, max_tokens=48, temperature=0.7, seed=1, deadline_s=20)) as events:
        async for event in events:
            if isinstance(event, Tokens):
                text += event.text
            elif isinstance(event, Finished):
                print(f"{text}\n[{event.reason.value}, {event.usage.completion_tokens} tokens]\n")


if __name__ == "__main__":
    asyncio.run(main())
