"""Several tokens in one step mean what they would have meant one by one."""

from __future__ import annotations

from collections.abc import Sequence as Ids
from functools import partial

from hypothesis import given
from hypothesis import strategies as st

from tiermesh.cloud.drafts import DraftCounts, Drafter
from tiermesh.cloud.outputs import Ended, Produced
from tiermesh.cloud.progress import Progress, Stages
from tiermesh.cloud.request import Choice, Job, Sequence
from tiermesh.cloud.scheduler import Work
from tiermesh.common.detokenize import Detokenizer
from tiermesh.common.types import FinishReason, Sampling

TABLE = [b"a", b"b", b"ab", b"c", "ü".encode()[:1], "ü".encode()[1:], b" ", b""]
END = 7
PROMPT = [0, 1, 2]

Told = tuple[list[int], str, list[float], list[int], FinishReason | None, int]


def told(truth: Ids[int], wrong: Ids[int], drafts: Ids[int], stop: tuple[str, ...], max_tokens: int) -> Told:
    """Generates `truth`; each step drafts as many ids as `drafts` says, those at the places in `wrong` in vain."""
    sequence = Sequence(1, Job.GENERATE, 3, list(PROMPT), max_tokens, Sampling(), frozenset({END}), True, 1)
    sequence.computed, sequence.drafter = len(PROMPT) - 1, Drafter(DraftCounts())
    detokenizer = partial(Detokenizer, TABLE, stop)
    progress = Progress(sequence, detokenizer, detokenizer(), Stages(0.0))
    ids, text, logprobs, top, step = list[int](), "", list[float](), list[int](), 0
    while len(ids) < len(truth):
        at = sequence.answer_length
        room = min(max_tokens - at - 1, len(truth) - at - 1)
        sequence.draft = list(truth[at : at + min(room, drafts[step % len(drafts)])])
        for i in range(len(sequence.draft)):
            if at + i in wrong:
                sequence.draft[i] = (sequence.draft[i] + 1) % len(TABLE)
        chosen = enumerate(truth[at : at + len(sequence.draft) + 1])
        choices = [Choice(token, -float(at + i), top=((token, 0.0),)) for i, token in chosen]
        outputs = progress.advance(Work(sequence, 1 + len(sequence.draft)), choices, 1.0)
        step += 1
        for output in outputs:
            if isinstance(output, Ended):
                return ids, text, logprobs, top, output.reason, output.answer_tokens
            assert isinstance(output, Produced)
            assert output.position == len(ids)
            ids += output.ids
            text += output.text
            logprobs += output.logprobs
            top += [place[0][0] for place in output.top_logprobs]
        assert (sequence.draft, sequence.choices) == ([], [])
        assert sequence.tokens == PROMPT + ids
        assert sequence.pending == 1, "what was rolled back is run again, and only that"
    return ids, text, logprobs, top, None, len(ids)


@given(
    truth=st.lists(st.integers(0, 7), min_size=1, max_size=24),
    wrong=st.sets(st.integers(0, 24), max_size=5),
    drafts=st.lists(st.integers(0, 16), min_size=1, max_size=6),
    stop=st.sampled_from([(), ("ab",), ("abc", "c "), ("ü",)]),
    max_tokens=st.integers(1, 26),
)
def test_drafted_is_as_one_by_one(
    truth: list[int], wrong: set[int], drafts: list[int], stop: tuple[str, ...], max_tokens: int
) -> None:
    """Stop ids, stop strings and max_tokens cut in the middle of what was accepted, exactly there."""
    assert told(truth, sorted(wrong), drafts, stop, max_tokens) == told(truth, (), [0], stop, max_tokens)


def test_the_drafter_hears_what_stood() -> None:
    counts = DraftCounts()
    sequence = Sequence(1, Job.GENERATE, 3, list(PROMPT), 9, Sampling(), frozenset())
    sequence.computed, sequence.drafter, sequence.draft = 2, Drafter(counts), [3, 3, 0]
    detokenizer = partial(Detokenizer, TABLE, ())
    progress = Progress(sequence, detokenizer, detokenizer(), Stages(0.0))
    (output,) = progress.advance(Work(sequence, 4), [Choice(3), Choice(3), Choice(1), Choice(6)], 1.0)
    assert isinstance(output, Produced)
    assert output.ids == (3, 3, 1)
    assert (counts.drafted, counts.accepted) == (3, 2)
    assert sequence.computed == 5
