"""A real worker on a real port: the public API, the relay, and what happens to bad input."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tiermesh import (
    AsyncClient,
    DeadlineExceeded,
    Draining,
    FinishReason,
    InvalidRequest,
    ModelNotFound,
    RequestIdReused,
    Tokens,
    Unauthenticated,
)
from tiermesh.cloud.loading import load_worker
from tiermesh.cloud.loads import Loads
from tiermesh.cloud.relay import WorkerPeer
from tiermesh.cloud.service import Worker
from tiermesh.common import wire_frames
from tiermesh.common.config import default_mesh
from tiermesh.common.frames import (
    Accepted,
    Ask,
    Close,
    CloseReason,
    DownFrame,
    Hello,
    Load,
    Open,
    RelayFinished,
    RelayTokens,
    SessionError,
    SessionMode,
    UpFrame,
    Verdict,
    Welcome,
)
from tiermesh.common.inference_servicer import InferenceServicer
from tiermesh.common.relay_link import RelayLink
from tiermesh.common.relay_server import RelayServicer
from tiermesh.common.rpc import RpcServer, channel
from tiermesh.common.types import Digests, Request, Sampling
from tiermesh.training.random_model import write_random_model
from tiermesh.v1 import relay_pb2, relay_pb2_grpc

PROMPT = "dim the kitchen lights\n"
WARM = Sampling(temperature=0.9, seed=5)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_model(tmp_path_factory.mktemp("random") / "tiny")


class Served:
    """A worker with its address."""

    def __init__(self, worker: Worker, address: str) -> None:
        self.worker = worker
        self.address = address

    async def until(self, true: Callable[[], bool]) -> None:
        async with asyncio.timeout(20):
            while not true():  # noqa: ASYNC110 - it changes on the engine's thread
                await asyncio.sleep(0.002)

    async def is_empty(self) -> None:
        """Waits until nothing runs, waits, or holds KV."""
        await self.until(lambda: not self.worker.engine.busy and self.worker.engine.load.kv_free == 1.0)


@asynccontextmanager
async def serving(directory: Path, token: str | None = None, slots: int = 4) -> AsyncIterator[Served]:
    worker = load_worker(replace(default_mesh({}).cloud, model=directory, device="cpu", slots=slots, token=token))
    loads, server = Loads(worker.engine), RpcServer()
    server.add_inference(InferenceServicer(worker))
    server.add_relay(RelayServicer(partial(WorkerPeer.connect, worker, loads)))
    address = await server.start("127.0.0.1:0")
    worker.engine.start(asyncio.get_running_loop())
    telling = asyncio.create_task(loads.run())
    try:
        yield Served(worker, address)
    finally:
        await server.stop(0)
        worker.engine.stop()
        telling.cancel()


@pytest.fixture
async def served(directory: Path) -> AsyncIterator[Served]:
    async with serving(directory) as served:
        yield served


@pytest.fixture
async def client(served: Served) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(served.address) as client:
        yield client


class Raw:
    """A relay stream without the link's manners."""

    def __init__(self, call: Any) -> None:
        self._call = call
        self._frames: list[DownFrame] = []

    async def send(self, *frames: UpFrame) -> None:
        await self._call.write(relay_pb2.RelayRequest(frames=[wire_frames.up_to(f) for f in frames]))

    async def next(self) -> DownFrame:
        """The next frame that is no load."""
        async with asyncio.timeout(20):
            while True:
                while not self._frames:
                    self._frames += [wire_frames.down_from(f) for f in (await self._call.read()).frames]
                if not isinstance(frame := self._frames.pop(0), Load):
                    return frame

    async def until_end(self) -> tuple[list[int], str, DownFrame]:
        """Tokens of the one session that talks, and what ended it."""
        ids: list[int] = []
        text = ""
        while isinstance(frame := await self.next(), RelayTokens | Accepted):
            if isinstance(frame, RelayTokens):
                ids += frame.ids
                text += frame.text
        return ids, text, frame


@asynccontextmanager
async def relay(served: Served, hello: Hello | None = None, **metadata: str) -> AsyncIterator[Raw]:
    async with channel(served.address) as chan:
        call = relay_pb2_grpc.RelayServiceStub(chan).Relay(metadata=list(metadata.items()))
        raw = Raw(call)
        await raw.send(hello or Hello("router"))
        assert isinstance(await raw.next(), Welcome)
        yield raw
        call.cancel()


def opening(session: int, attempt: int = 1, mode: SessionMode = SessionMode.VERIFY, **more: Any) -> Open:
    request = Request(more.pop("prompt", PROMPT), more.pop("max_tokens", 30), sampling=more.pop("sampling", WARM))
    return Open(session, attempt, request, mode, **more)


async def generated(client: AsyncClient, **more: Any) -> Any:
    options = {"max_tokens": 30, "temperature": WARM.temperature, "seed": WARM.seed} | more
    return await client.generate(PROMPT, **options)


async def test_generate_streams_and_tells_what_it_took(client: AsyncClient, served: Served) -> None:
    answer = await generated(client, logprobs=True)
    assert answer.finish_reason in (FinishReason.STOP, FinishReason.LENGTH)
    assert answer.model == "tiny"
    assert answer.usage.completion_tokens == len(answer.token_ids) > 0
    assert answer.usage.billed_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert {(t.hop, t.stage) for t in answer.timings} == {("cloud", s) for s in ("queue", "prefill", "decode")}
    assert all(t.duration_s >= 0 for t in answer.timings)
    assert answer.text == served.worker.served.text.decode(answer.token_ids)
    assert (await generated(client)).token_ids == answer.token_ids
    chat = await client.generate([{"role": "user", "content": PROMPT.strip()}], max_tokens=30, temperature=0.9, seed=5)
    assert chat.token_ids == answer.token_ids
    await served.is_empty()


async def test_thirty_at_once_on_four_slots(client: AsyncClient, served: Served) -> None:
    alone = await generated(client)
    crowd = await asyncio.gather(*(generated(client) for _ in range(30)))
    assert {a.token_ids for a in crowd} == {alone.token_ids}
    await served.is_empty()


async def test_what_was_computed_is_found_by_its_tenant_alone_and_told(client: AsyncClient, served: Served) -> None:
    prompt = PROMPT * 8
    first, again = [await client.generate(prompt, max_tokens=6) for _ in range(2)]
    whole = first.usage.prompt_tokens
    assert (first.usage.cached_prompt_tokens, again.usage.cached_prompt_tokens) == (0, (whole - 1) // 16 * 16)
    assert (again.token_ids, again.usage.billed_tokens) == (first.token_ids, first.usage.billed_tokens)
    async with relay(served) as raw:
        for session, (tenant, cached) in enumerate((("a", False), ("a", True), ("b", False)), 1):
            plain = {"prompt": prompt, "max_tokens": 6, "sampling": Sampling()}
            await raw.send(opening(session, mode=SessionMode.GENERATE, tenant=tenant, **plain))
            ids, _, end = await raw.until_end()
            assert tuple(ids) == first.token_ids
            assert isinstance(end, RelayFinished)
            assert bool(end.usage.cached_prompt_tokens) == cached
    told = served.worker.metrics.registry.get_sample_value
    assert told("tiermesh_cloud_prompt_tokens_total", {"source": "cached"}) == 2 * again.usage.cached_prompt_tokens
    assert told("tiermesh_cloud_prompt_tokens_total", {"source": "computed"}) == (
        5 * whole - 2 * again.usage.cached_prompt_tokens
    )
    assert told("tiermesh_cloud_rows_total", {"kind": "decode"}) >= 5 * 6
    assert told("tiermesh_cloud_preemptions_total", {"short": "slots"}) == 0
    for part in ("schedule", "prepare", "forward", "sample", "publish"):
        assert told("tiermesh_cloud_step_part_seconds_total", {"part": part}) > 0
    await served.is_empty()


async def test_a_client_that_leaves_frees_its_sequence(client: AsyncClient, served: Served) -> None:
    stream = client.stream(PROMPT, max_tokens=450, temperature=1.5, seed=3)
    async for event in stream:
        if isinstance(event, Tokens):
            break
    await stream.aclose()
    await served.is_empty()


async def test_cancel_finishes_the_stream(client: AsyncClient, served: Served) -> None:
    slow = asyncio.create_task(client.generate(PROMPT, max_tokens=480, temperature=1.5, seed=3, request_id="mine"))
    await served.until(lambda: served.worker.engine.load.choices > 3)
    with pytest.raises(RequestIdReused):
        await client.generate(PROMPT, max_tokens=2, request_id="mine")
    assert await client.cancel("mine")
    answer = await slow
    assert answer.finish_reason is FinishReason.CANCELLED
    assert not await client.cancel("mine")
    await served.is_empty()


async def test_a_deadline_ends_the_work(client: AsyncClient, served: Served) -> None:
    with pytest.raises(DeadlineExceeded):
        await client.generate(PROMPT, max_tokens=480, temperature=1.5, seed=3, deadline_s=0.05)
    await served.is_empty()


async def test_bias_and_the_most_probable(client: AsyncClient, served: Served) -> None:
    plain = await generated(client, temperature=0.0, top_logprobs=3)
    assert [len(top) for top in plain.top_logprobs] == [3] * len(plain.token_ids)
    for token, logprob, top in zip(plain.token_ids, plain.logprobs, plain.top_logprobs, strict=True):
        assert top[0] == (token, pytest.approx(logprob, abs=1e-5))
        assert list(top) == sorted(top, key=lambda pair: -pair[1])
    banned = plain.token_ids[0]
    second = plain.top_logprobs[0][1][0]
    other = await generated(client, temperature=0.0, top_logprobs=1, logit_bias={banned: -100.0})
    assert other.token_ids[0] == second
    assert banned not in other.token_ids
    assert other.top_logprobs[0][0][0] == banned, "log-probabilities are those of the raw logits"
    with pytest.raises(InvalidRequest, match=r"logit_bias.*vocabulary"):
        await generated(client, logit_bias={100_000: 1.0})
    with pytest.raises(InvalidRequest, match="top_logprobs"):
        await generated(client, top_logprobs=21)
    await served.is_empty()


async def test_score_and_count(client: AsyncClient, served: Served) -> None:
    text = PROMPT + "open the blinds"
    scores = await client.score(text)
    assert len(scores.logprobs) == len(scores.token_ids) - 1 == await client.count_tokens(text) - 1
    assert all(logprob <= 0 for logprob in scores.logprobs)
    assert scores.top_logprobs == ()
    top = (await client.score(text, top_logprobs=4)).top_logprobs
    assert [len(place) for place in top] == [4] * len(scores.logprobs)
    assert [place[0][0] for place in top] == list(scores.choices)
    (model,) = await client.models()
    assert model == served.worker.served.info
    await served.is_empty()


@pytest.mark.parametrize(
    ("prompt", "options", "field"),
    [
        ("", {}, "prompt"),
        ([5, 100_000], {}, "prompt"),
        (PROMPT, {"max_tokens": 100_000}, "max_tokens"),
        (PROMPT * 60, {"max_tokens": 100}, "prompt"),
        (PROMPT, {"temperature": float("nan")}, "sampling.temperature"),
        (PROMPT, {"top_p": 1.5}, "sampling.top_p"),
        (PROMPT, {"stop": ["x"] * 99}, "stop"),
    ],
)
async def test_bad_requests_are_refused_by_field(
    client: AsyncClient, served: Served, prompt: Any, options: dict[str, Any], field: str
) -> None:
    with pytest.raises(InvalidRequest) as refused:
        await client.generate(prompt, **({"max_tokens": 5} | options))
    assert refused.value.violations[0].field.startswith(field)
    assert served.worker.engine.load.steps == 0


async def test_other_refusals(client: AsyncClient, served: Served, directory: Path) -> None:
    with pytest.raises(ModelNotFound, match="tiny"):
        await client.generate(PROMPT, max_tokens=2, model="huge")
    with pytest.raises(InvalidRequest, match="answer_start"):
        await client.score("abc", answer_start=50)
    async with serving(directory, token="secret") as closed:
        async with AsyncClient(closed.address, api_key="wrong") as stranger:
            with pytest.raises(Unauthenticated):
                await stranger.generate(PROMPT, max_tokens=2)
        async with AsyncClient(closed.address, api_key="secret") as router:
            assert (await router.generate(PROMPT, max_tokens=2)).token_ids
        link = RelayLink(closed.address, Hello("stranger"))
        task = asyncio.create_task(link.run())
        await closed.until(lambda: link.error is not None)
        assert isinstance(link.error, Unauthenticated)
        task.cancel()


async def test_a_session_verifies_and_hands_over(client: AsyncClient, served: Served) -> None:
    target = await generated(client)
    ids = list(target.token_ids)
    async with relay(served) as raw:
        wrong = (ids[3] + 1) % 300 + 3
        await raw.send(opening(1), Ask(1, 1, 0, (*ids[:3], wrong)))
        assert isinstance(await raw.next(), Accepted)
        verdict = await raw.next()
        assert isinstance(verdict, Verdict)
        assert (verdict.position, verdict.stands, verdict.next_id) == (0, 3, ids[3])
        assert verdict.compute_s > 0
        # A repeated and a stale ask are dropped; ids that were given alone come back as labels.
        await raw.send(Ask(1, 1, 0, (9,)), Ask(1, 0, 4, (9,)), Ask(1, 1, 4, tuple(ids[6:7]), tuple(ids[4:6]), True))
        verdict = await raw.next()
        assert isinstance(verdict, Verdict)
        assert (verdict.position, verdict.stands, verdict.next_id) == (6, 1, ids[7])
        assert verdict.choices == tuple(ids[4:6])
        first = await raw.next()
        assert isinstance(first, RelayTokens)
        assert first.position == 8
        more, text, end = await raw.until_end()
        assert ids[:8] + list(first.ids) + more == ids
        assert target.text.endswith(first.text + text)
        assert isinstance(end, RelayFinished)
        assert end.usage.asks == 2
        assert end.usage.handed_over
        assert end.usage.completion_tokens == len(ids)
        await raw.send(Ask(1, 1, 8, (5,)), Close(1, 1, CloseReason.DONE))
        await raw.send(opening(2, mode=SessionMode.GENERATE))
        again, _, _ = await raw.until_end()
        assert again == ids
    await served.is_empty()


async def test_a_session_resumes_with_a_higher_attempt(client: AsyncClient, served: Served) -> None:
    target = await generated(client)
    ids = target.token_ids
    shown = served.worker.served.text.decode(ids[:10])
    async with relay(served) as raw:
        done = {"delivered_ids": ids[:10], "delivered_bytes": len(shown.encode())}
        await raw.send(opening(1, mode=SessionMode.GENERATE), opening(1, 2, SessionMode.GENERATE, **done))
        await raw.send(opening(1, 1, SessionMode.GENERATE))
        frames = []
        while not isinstance(frame := await raw.next(), RelayFinished):
            frames.append(frame)
        assert frame.attempt == 2
        tokens = [f for f in frames if isinstance(f, RelayTokens) and f.attempt == 2]
        assert tokens[0].position == 10
        assert ids[:10] + tuple(i for f in tokens for i in f.ids) == ids
        assert shown + "".join(f.text for f in tokens) == target.text
    await served.is_empty()


BAD: dict[str, tuple[list[UpFrame], str]] = {
    "ask of a session never opened": ([Ask(9, 1, 0, (5,))], "never opened"),
    "ask ahead of the answer": ([opening(9), Ask(9, 1, 3, (5,))], "ahead"),
    "ask of an attempt never opened": ([opening(9), Ask(9, 2, 0, (5,))], "attempt"),
    "draft outside the vocabulary": ([opening(9), Ask(9, 1, 0, (4_000_000_000,))], "vocabulary"),
    "alone outside the vocabulary": ([opening(9), Ask(9, 1, 0, (5,), (320,))], "vocabulary"),
    "draft past max_tokens": ([opening(9, max_tokens=4), Ask(9, 1, 0, (5,) * 6)], "max_tokens"),
    "delivered past max_tokens": ([opening(9, max_tokens=2, delivered_ids=(5, 5, 5))], "max_tokens"),
    "delivered outside the vocabulary": ([opening(9, delivered_ids=(99_999,))], "vocabulary"),
    "ask of a generating session": (
        [opening(9, mode=SessionMode.GENERATE, max_tokens=400), Ask(9, 1, 0, (5,))],
        "takes no asks",
    ),
    "empty prompt": ([opening(9, prompt="")], "prompt"),
    "prompt beyond the context": ([opening(9, prompt=PROMPT * 99)], "context"),
    "two asks at once": ([opening(9), Ask(9, 1, 0, (5,)), Ask(9, 1, 1, (5,))], "ahead"),
}


@pytest.mark.parametrize("case", BAD)
async def test_bad_frames_end_their_session_only(served: Served, client: AsyncClient, case: str) -> None:
    frames, message = BAD[case]
    target = await generated(client)
    async with relay(served) as raw:
        await raw.send(opening(1), *frames)
        while isinstance(frame := await raw.next(), Accepted | RelayTokens | Verdict):
            pass
        assert isinstance(frame, SessionError)
        assert (frame.session, frame.error.grpc_code) == (9, 3)
        assert message in str(frame.error)
        await raw.send(Ask(1, 1, 0, target.token_ids[:4]))
        while not isinstance(verdict := await raw.next(), Verdict):
            assert isinstance(verdict, RelayTokens | SessionError), verdict
        assert verdict.stands == 4
    await served.is_empty()


async def test_a_stranger_to_the_tokenizer_may_send_text_only(served: Served) -> None:
    async with relay(served, Hello("edge", Digests(tokenizer="other"))) as raw:
        await raw.send(opening(1), opening(2, mode=SessionMode.GENERATE))
        error = await raw.next()
        assert isinstance(error, SessionError)
        assert "no ids" in str(error.error)
        _, _, end = await raw.until_end()
        assert isinstance(end, RelayFinished)


async def test_a_stream_that_breaks_ends_its_sessions(served: Served) -> None:
    async with relay(served) as raw:
        await raw.send(*(opening(i, mode=SessionMode.GENERATE, max_tokens=450) for i in range(1, 7)), opening(7))
        await served.until(lambda: served.worker.engine.load.running == 4)
    await served.is_empty()


async def test_deadlines_and_load_travel_on_the_relay(served: Served) -> None:
    loads: list[Load] = []
    async with channel(served.address) as chan:
        call = relay_pb2_grpc.RelayServiceStub(chan).Relay()
        # A session that nobody asks would stay for ever; one that generates makes the load change.
        frames = Hello("router"), opening(1, deadline_left_s=0.1), opening(2, mode=SessionMode.GENERATE, max_tokens=300)
        await call.write(relay_pb2.RelayRequest(frames=[wire_frames.up_to(frame) for frame in frames]))
        async with asyncio.timeout(20):
            error = None
            while error is None or not loads or loads[-1].running:
                for frame in (wire_frames.down_from(f) for f in (await call.read()).frames):
                    if isinstance(frame, Load):
                        loads.append(frame)
                    error = frame if isinstance(frame, SessionError) else error
        assert isinstance(error.error, DeadlineExceeded)
        assert any(load.running == 1 and load.slots == 4 for load in loads)
        call.cancel()
    await served.is_empty()


async def test_draining_refuses_the_new_and_finishes_the_old(client: AsyncClient, served: Served) -> None:
    running = asyncio.create_task(generated(client, max_tokens=200))
    await served.until(lambda: served.worker.engine.load.choices > 2)
    drain = asyncio.create_task(served.worker.drain(20))
    await served.until(lambda: served.worker.draining)
    async with AsyncClient(served.address) as late:
        with pytest.raises(Draining):
            await late.generate(PROMPT, max_tokens=2, deadline_s=2)
    assert (await running).token_ids
    await drain


def test_the_process_serves_drains_and_says_what_is_wrong(directory: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-P", "-m", "tiermesh.cloud.main", "--listen", "127.0.0.1:0", "--metrics", "127.0.0.1:0"]
    with subprocess.Popen([*command, "--model", str(directory)], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            address = next(line.split()[1] for line in process.stdout if line.startswith("listening"))
            assert asyncio.run(_one(address)).token_ids
            process.send_signal(signal.SIGTERM)
            began = time.monotonic()
            assert process.wait(20) == 0
            assert time.monotonic() - began < 8
        finally:
            process.kill()
    failed = subprocess.run([*command, "--model", str(tmp_path / "none")], capture_output=True, text=True, timeout=60)
    assert failed.returncode == 1
    assert "no such model directory" in failed.stderr


async def _one(address: str) -> Any:
    async with AsyncClient(address) as client:
        return await client.generate(PROMPT, max_tokens=5)
