"""Background work waits for a quiet moment, and not for ever."""

from __future__ import annotations

import asyncio

from tiermesh.edge.lull import Lull


async def test_it_comes_when_nobody_answers() -> None:
    lull = Lull()
    await asyncio.wait_for(lull.wait(asyncio.get_running_loop().time() + 60), 5)


async def test_it_does_not_come_while_an_answer_runs_or_another_follows() -> None:
    loop, lull = asyncio.get_running_loop(), Lull()
    with lull.answering():
        waiting = asyncio.create_task(lull.wait(loop.time() + 60))
        with lull.answering():
            await asyncio.sleep(0)
        assert not waiting.done()
    for _ in range(3):  # one answer after the other, with less than a moment in between
        await asyncio.sleep(0)
        with lull.answering():
            await asyncio.sleep(0)
        assert not waiting.done()
    await asyncio.wait_for(waiting, 5)


async def test_patience_ends() -> None:
    loop, lull = asyncio.get_running_loop(), Lull()
    with lull.answering():
        await asyncio.wait_for(lull.wait(loop.time() + 0.01), 5)
        await asyncio.wait_for(lull.wait(loop.time() - 1.0), 5)


async def test_hurry_ends_the_patience_of_those_who_wait_now() -> None:
    loop, lull = asyncio.get_running_loop(), Lull()
    with lull.answering():
        first = asyncio.create_task(lull.wait(loop.time() + 60))
        await asyncio.sleep(0)
        lull.hurry()
        await asyncio.wait_for(first, 5)
        later = asyncio.create_task(lull.wait(loop.time() + 60))
        await asyncio.sleep(0)
        assert not later.done()
        later.cancel()
        await asyncio.gather(later, return_exceptions=True)
