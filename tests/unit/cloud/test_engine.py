"""The whole engine on a tiny real model: one request's answer never depends on its neighbours, cuts or restarts."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tiermesh.cloud.engine import Engine, EngineConfig
from tiermesh.cloud.outputs import Ended, Failed, Output, Produced, Scored, Verified
from tiermesh.cloud.request import Job
from tiermesh.cloud.runner import ModelRunner, Placement
from tiermesh.cloud.submission import Submission
from tiermesh.common.errors import DeadlineExceeded, Draining, InternalError, Overloaded
from tiermesh.common.text import Text
from tiermesh.common.types import FinishReason, Sampling
from tiermesh.training.random_model import write_random_model

CPU = Placement(torch.device("cpu"), torch.float32)
EOS = 1
WARM = Sampling(temperature=0.8, top_p=0.95, seed=11)
PENALIZED = Sampling(0.9, seed=12, repetition_penalty=1.3, frequency_penalty=0.4)
SAMPLINGS = [Sampling(), WARM, PENALIZED, Sampling(presence_penalty=1.0)]


class Directly:
    """Stands in for the event loop: outputs are delivered on the engine's own thread."""

    def call_soon_threadsafe(self, callback: Callable[..., None], *arguments: Any) -> None:
        callback(*arguments)


class Reader:
    """Reads the outputs of one sequence."""

    def __init__(self, engine: Engine, submission: Submission) -> None:
        self._outputs: queue.Queue[Output] = queue.Queue()
        self.number = engine.submit(submission, self._outputs.put)

    def next(self) -> Output:
        return self._outputs.get(timeout=60)

    def until_end(self) -> tuple[list[int], str, Output]:
        ids, text = [], ""
        while isinstance(output := self.next(), Produced):
            ids += output.ids
            text += output.text
        return ids, text, output

    def everything(self) -> tuple[list[int], str, FinishReason, torch.Tensor]:
        """Ids, text, the reason to end, and all log-probabilities."""
        ids, text, logprobs = list[int](), "", list[float]()
        while isinstance(output := self.next(), Produced):
            ids += output.ids
            text += output.text
            logprobs += output.logprobs
            logprobs += [x for top in output.top_logprobs for _, x in top]
            assert len(output.ids) == len(output.logprobs) == len(output.top_logprobs)
        assert isinstance(output, Ended), output
        return ids, text, output.reason, torch.tensor(sorted(logprobs))

    def nothing_more(self) -> bool:
        return self._outputs.empty()


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def text(directory: Path) -> Text:
    return Text(directory)


def started(directory: Path, text: Text, pool_tokens: int = 4096, **config: Any) -> Engine:
    engine = Engine(ModelRunner.load(directory, CPU, pool_tokens), text, EngineConfig(**config))
    engine.start(Directly())  # type: ignore[arg-type]
    return engine


@pytest.fixture(scope="module")
def engine(directory: Path, text: Text) -> Iterator[Engine]:
    engine = started(directory, text, slots=8, step_tokens=24)
    yield engine
    engine.stop()


def wish(prompt: list[int], max_tokens: int = 24, sampling: Sampling = WARM, **more: Any) -> Submission:
    more = {"stop_ids": frozenset({EOS}), "job": Job.GENERATE} | more
    return Submission(prompt=tuple(prompt), max_tokens=max_tokens, sampling=sampling, **more)


def prompt_of(seed: int, length: int) -> list[int]:
    return [0, *torch.randint(3, 300, (length - 1,), generator=torch.Generator().manual_seed(seed)).tolist()]


def answer(engine: Engine, submission: Submission) -> tuple[list[int], str]:
    ids, text, end = Reader(engine, submission).until_end()
    assert isinstance(end, Ended), end
    return ids, text


_alone: dict[tuple[int, Sampling], tuple[list[int], str]] = {}


def alone(engine: Engine, seed: int, sampling: Sampling) -> tuple[list[int], str]:
    """The answer of 30 tokens to a prompt, generated once."""
    if (seed, sampling) not in _alone:
        _alone[seed, sampling] = answer(engine, wish(prompt_of(seed, 9), 30, sampling))
    return _alone[seed, sampling]


def test_greedy_ids_equal_transformers(directory: Path, engine: Engine) -> None:
    model = transformers.LlamaForCausalLM.from_pretrained(directory)
    for seed, length in ((1, 3), (2, 60), (3, 25)):
        prompt = prompt_of(seed, length)
        out = model.generate(torch.tensor([prompt]), max_new_tokens=40, do_sample=False, pad_token_id=2)
        expected = out[0, length:].tolist()
        ids, _ = answer(engine, wish(prompt, 40, Sampling()))
        assert ids == (expected[: expected.index(EOS)] if EOS in expected else expected)


def test_neighbours_that_join_and_leave_change_nothing(directory: Path, text: Text, engine: Engine) -> None:
    """Alone, and in a crowd on a pool so small that sequences are preempted: the same ids and text."""
    wishes = [wish(prompt_of(i, 5 + 13 * i % 70), 10 + 7 * i % 50, SAMPLINGS[i % 4]) for i in range(14)]
    apart = [answer(engine, w) for w in wishes]
    crowded = started(directory, text, 256, slots=5, step_tokens=24)
    readers = [Reader(crowded, w) for w in wishes]
    crowd = [reader.until_end() for reader in readers]
    assert [(ids, text) for ids, text, _ in crowd] == apart
    assert sum(crowded.load.preemptions.values()) > 0, "the pool was meant to be too small"
    assert crowded.load.kv_free == 1.0
    crowded.stop()


def test_drafts_by_looking_back_change_nothing(directory: Path, text: Text) -> None:
    """Texts that repeat themselves, in a crowd, with stops and penalties: the same to the last log-probability."""
    looped = [Sampling(logit_bias=tuple((i, 6.0) for i in range(40, 43))), Sampling(0.05, seed=4), *SAMPLINGS]
    wishes = [
        wish(prompt_of(i, 9) * 3, 40 + i, looped[i % 6], logprobs=True, top_logprobs=2, stop=("q", " zz")[: i % 3])
        for i in range(12)
    ]
    plain = started(directory, text, slots=4, step_tokens=48, ngram_drafts=False)
    drafting = started(directory, text, pool_tokens=256, slots=4, step_tokens=48)
    told = []
    for engine in (plain, drafting):
        readers = [Reader(engine, w) for w in wishes]
        told.append([reader.everything() for reader in readers])
        engine.stop()
    for mine, theirs in zip(*told, strict=True):
        assert mine[:3] == theirs[:3]
        torch.testing.assert_close(mine[3], theirs[3], rtol=1e-3, atol=1e-4)
    assert drafting.load.preemptions, "the pool was meant to be too small"
    assert plain.load.drafted == 0
    assert 0 < drafting.load.accepted < drafting.load.drafted


def test_the_seed_decides(engine: Engine) -> None:
    prompt = prompt_of(4, 10)
    one, again, other = (answer(engine, wish(prompt, 24, Sampling(1.0, seed=s)))[0] for s in (1, 1, 2))
    assert one == again != other


@settings(deadline=None, max_examples=25)
@given(
    seed=st.integers(0, 5),
    sampling=st.sampled_from(SAMPLINGS),
    cuts=st.lists(st.integers(1, 9), min_size=1, max_size=6),
    unasked=st.lists(st.integers(0, 3), min_size=6, max_size=6),
    wrong=st.lists(st.integers(0, 9), min_size=6, max_size=6),
    hand_over=st.booleans(),
)
@example(seed=1, sampling=WARM, cuts=[1] * 5 + [2], unasked=[3] * 6, wrong=[1] * 5 + [2], hand_over=True)
def test_verifying_is_generating(
    engine: Engine,
    seed: int,
    sampling: Sampling,
    cuts: list[int],
    unasked: list[int],
    wrong: list[int],
    hand_over: bool,
) -> None:
    """Whatever is drafted, wherever it is cut: what stands plus the model's own ids is what it generates alone.

    Ids given alone are right ones here, so that labels must agree with them.
    """
    prompt, most = prompt_of(seed, 9), 30
    target, whole = alone(engine, seed, sampling)
    ended = len(target) < most
    truth = [*target, EOS] if ended else target
    session = Reader(engine, wish(prompt, most, sampling, job=Job.VERIFY))
    have: list[int] = []
    for i, size in enumerate(cuts):
        given = target[len(have) : len(have) + unasked[i]]
        unit = truth[len(have) + len(given) :][:size]
        fault = wrong[i]
        draft = [(5 if t != 5 else 6) if j == fault else t for j, t in enumerate(unit)]
        last = i == len(cuts) - 1
        engine.ask(session.number, given, draft, hand_over and last)
        verdict = session.next()
        assert isinstance(verdict, Verified)
        assert verdict.choices == tuple(given)
        assert verdict.position == len(have) + len(given)
        assert verdict.stands == min(fault, len(draft))
        have += [*given, *draft[: verdict.stands]]
        if have and have[-1] == EOS:
            assert verdict.next_id is None
            break
        assert verdict.next_id is not None
        have.append(verdict.next_id)
        if len(have) >= len(truth):
            break
    assert have[: len(truth)] == truth[: len(have)]
    if hand_over and i == len(cuts) - 1:
        ids, text, end = session.until_end()
        shown = [t for t in have if t != EOS]
        assert (shown + ids)[:most] == target
        assert whole.endswith(text)
        assert isinstance(end, Ended)
        assert end.answer_tokens == len(target), "the id that ends an answer is no part of it"
        assert end.reason is (FinishReason.STOP if ended else FinishReason.LENGTH)
    else:
        engine.cancel(session.number)
        assert isinstance(session.next(), Ended)


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 5), at=st.integers(0, 30), sampling=st.sampled_from(SAMPLINGS), held=st.integers(0, 3))
def test_a_resumed_answer_goes_on_where_it_was(
    engine: Engine, text: Text, seed: int, at: int, sampling: Sampling, held: int
) -> None:
    prompt = prompt_of(seed, 9)
    ids, whole = alone(engine, seed, sampling)
    shown = text.detokenizer().push(ids[:at])
    shown = shown[: max(0, len(shown) - held)]
    rest = wish(prompt, 30, sampling, delivered_ids=tuple(ids[:at]), delivered_bytes=len(shown.encode()))
    more, tail = answer(engine, rest)
    assert ids[:at] + more == ids
    assert shown + tail == whole


def test_stop_strings_end_the_answer_exactly_before_them(engine: Engine) -> None:
    ids, whole = answer(engine, wish(prompt_of(1, 8), 40, Sampling()))
    stop = whole[len(whole) // 2 : len(whole) // 2 + 3]
    reader = Reader(engine, wish(prompt_of(1, 8), 40, Sampling(), stop=(stop,)))
    some, text, end = reader.until_end()
    assert text == whole[: whole.find(stop)]
    assert some == ids[: len(some)]
    assert len(some) < len(ids)
    assert isinstance(end, Ended)
    assert (end.reason, end.answer_tokens) == (FinishReason.STOP, len(some))


def test_scores_equal_the_definition(directory: Path, engine: Engine) -> None:
    model = transformers.LlamaForCausalLM.from_pretrained(directory)
    prompt = prompt_of(5, 60)
    ids, _ = answer(engine, wish(prompt, 20, WARM))
    whole = [*prompt, *ids]
    scored = Reader(engine, Submission(Job.SCORE, tuple(whole), sampling=WARM, answer_start=60)).next()
    assert isinstance(scored, Scored)
    with torch.inference_mode():
        expected = model(torch.tensor([whole])).logits[0].log_softmax(-1)
    given = expected[:-1].gather(1, torch.tensor(whole[1:])[:, None])[:, 0]
    torch.testing.assert_close(torch.tensor(scored.logprobs), given, rtol=1e-4, atol=1e-4)
    assert list(scored.choices) == ids, "with the same seed the choices are the answer"
    assert scored.choice_logprobs == pytest.approx(scored.logprobs[59:], abs=1e-5)


def test_cancelling_frees_within_a_step(engine: Engine) -> None:
    reader = Reader(engine, wish(prompt_of(6, 5), 400, Sampling(1.0, seed=3), stop_ids=frozenset()))
    assert isinstance(reader.next(), Produced)
    steps = engine.load.steps
    engine.cancel(reader.number)
    _, _, end = reader.until_end()
    assert isinstance(end, Ended)
    assert end.reason is FinishReason.CANCELLED
    assert engine.load.steps <= steps + 3
    assert wait_until(lambda: engine.load.kv_free == 1.0)


def wait_until(true: Callable[[], bool], seconds: float = 20.0) -> bool:
    until = time.monotonic() + seconds
    while not true() and time.monotonic() < until:
        time.sleep(0.001)
    return true()


def test_deadlines_hold_wherever_a_sequence_is(engine: Engine) -> None:
    busy = wish(prompt_of(7, 5), 400, WARM, stop_ids=frozenset(), deadline_s=0.05)
    idle = wish(prompt_of(7, 5), 40, job=Job.VERIFY, deadline_s=0.05)
    past = wish(prompt_of(7, 5), 40, deadline_s=-1.0)
    for reader in [Reader(engine, w) for w in (busy, idle, past)]:
        _, _, end = reader.until_end()
        assert isinstance(end, Failed)
        assert isinstance(end.error, DeadlineExceeded)
        assert reader.nothing_more()


def test_what_is_not_finite_ends_its_own_sequence_only(tmp_path: Path, text: Text) -> None:
    """Whoever reads an embedding of NaN is spoilt; neighbours in the step, and later owners of the blocks, are not."""
    directory = write_random_model(tmp_path, tie=False)
    good = [wish(prompt_of(i, 20 + i), 30) for i in range(3)]
    clean = started(directory, text)
    expected = [answer(clean, w) for w in good]
    clean.stop()
    runner = ModelRunner.load(directory, CPU, 256)
    runner._model._weights.embedding[2] = torch.nan
    poisoned = Engine(runner, text, EngineConfig(slots=6, step_tokens=64))
    poisoned.start(Directly())  # type: ignore[arg-type]
    for _ in range(2):
        bad = wish([0, 2, 7], 9), wish([0] * 20 + [2], 9)
        readers = [Reader(poisoned, w) for w in (good[0], bad[0], good[1], bad[1], good[2])]
        ends = [reader.until_end() for reader in readers]
        for at in (1, 3):
            assert isinstance(ends[at][2], Failed)
            assert isinstance(ends[at][2].error, InternalError)
        assert [ends[at][:2] for at in (0, 2, 4)] == expected
    poisoned.stop()


class Broken(ModelRunner):
    """Fails whenever a sequence of three prompt tokens is in the step."""

    def run(self, plan: Any) -> Any:
        if any(work.sequence.prompt_length == 3 for work in plan):
            raise RuntimeError("out of memory")
        return super().run(plan)


def test_a_failing_step_does_not_stop_the_engine(directory: Path, text: Text, engine: Engine) -> None:
    broken = Engine(Broken.load(directory, CPU, 512), text, EngineConfig(slots=2))
    broken.start(Directly())  # type: ignore[arg-type]
    _, _, end = Reader(broken, wish([0, 5, 6])).until_end()
    assert isinstance(end, Failed)
    assert answer(broken, wish(prompt_of(1, 9))) == answer(engine, wish(prompt_of(1, 9)))
    broken.stop()


def test_too_many_are_refused_with_a_delay(directory: Path, text: Text) -> None:
    engine = Engine(ModelRunner.load(directory, CPU, 512), text, EngineConfig(slots=1, max_waiting=2))
    for _ in range(2):
        engine.submit(wish([0, 5]), lambda _: None)
    with pytest.raises(Overloaded) as refused:
        engine.submit(wish([0, 5]), lambda _: None)
    assert refused.value.retry_after_s


def test_stopping_ends_everybody_once(directory: Path, text: Text) -> None:
    engine = started(directory, text, slots=1)
    readers = [
        Reader(engine, wish(prompt_of(1, 9), 400, stop_ids=frozenset())),
        Reader(engine, wish(prompt_of(2, 9), 400, stop_ids=frozenset())),
        Reader(engine, wish(prompt_of(3, 9), job=Job.VERIFY)),
    ]
    assert isinstance(readers[0].next(), Produced)
    engine.stop()
    for reader in readers:
        _, _, end = reader.until_end()
        assert isinstance(end, Failed)
        assert isinstance(end.error, Draining)
        assert reader.nothing_more()
    with pytest.raises(Draining):
        engine.submit(wish([0, 5]), lambda _: None)
