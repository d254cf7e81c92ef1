"""The full depth's picks one after the other: plainly, or verified several at once where the inner exit foretold them.

Both give the same ids: a draft only decides what is run together, and is dropped where the full depth picks another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from .exits import ExitAccount
from .sampling import Pick, Picker
from .sequence import SequenceState
from .split import SplitState


def plain_picks(state: SequenceState, picker: Picker) -> Iterator[Pick]:
    """Picks from the outputs of `state` on, each run before the next. Endless; the last one taken is not run."""
    while True:
        pick = picker.pick(state)
        yield pick
        state.step(pick.id)


def drafted_picks(
    state: SplitState,
    picker: Picker,
    account: ExitAccount,
    new: Sequence[int],
    goes_on: Callable[[Sequence[int]], bool],
) -> Iterator[Pick]:
    """As `plain_picks`, in cycles of drafts and one verification.

    `new` are up to `MAX_NEW` known ids that `state` does not hold yet; none when its outputs are those to begin with.
    `goes_on` says whether tokens after these are wanted, given the unit so far: nothing is drafted that no one takes.
    """
    ids: list[int] = []
    if not new:
        pick = picker.pick(state)
        yield pick
        ids.append(pick.id)
        new = (pick.id,)
    while True:
        guesses = [state.peek(new)]
        drafts: list[int] = []
        while account.wants(guesses[-1], len(drafts)) and goes_on([*ids, *drafts, guesses[-1].id]):
            drafts.append(guesses[-1].id)
            guesses.append(state.peek(drafts[-1:]))
        state.deepen()
        stands = 0
        try:
            for guess in guesses:
                state.advance()
                pick = picker.pick(state)
                account.saw(guess, pick.id)
                right = stands < len(drafts) and pick.id == drafts[stands]
                stands += right
                ids.append(pick.id)
                yield pick
                if not right:
                    break
        finally:
            account.count(len(drafts), stands)
        new = ids[-1:]
