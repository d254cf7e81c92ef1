"""When drafting from the inner exit pays, and how far to draft. Pure.

One cycle runs r rows through the shallow segment, r − 1 of them drafts, and then all of them through the deep one. With
q the share of tokens that the inner exit is sure of and a the share of those that stand, a cycle of at most R rows has
E[r] = Σ q^i rows and yields E[n] = Σ (q·a)^i tokens, i from 0 to R − 1 (Leviathan et al., "Fast inference from
transformers via speculative decoding", ICML 2023, section 3.1, with drafts that end where the drafter is unsure; the
draft shares its layers with the target as in LayerSkip, Elhoushi et al., ACL 2024). R = 1 drafts nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .artifact import ExitPoint
from .chooser import RunningMean
from .split import MAX_DRAFTS, Guess

_WEIGHT = 0.005
"""Of one token in the running shares: the last 200 count."""
_REVIEW_TOKENS = 64
"""Between two looks at whether drafting pays."""
_CLEAR_GAIN = 0.97
"""Of the plain cost: what drafting must come down to before it begins. It ends at 1: in between nothing flaps."""


@dataclass(frozen=True, slots=True)
class Costs:
    """What the segments take on this machine, in seconds."""

    shallow_s: float
    """Of one row through the shallow segment and the inner exit."""
    deep_s: float
    """Of one row through the deep segment."""
    row_s: float
    """Of each further row in the same run of the deep segment."""

    def per_token(self, drafted: float, acceptance: float, rows: int) -> float:
        """Expected seconds per token in cycles of at most `rows` rows; rows of 1 is decoding without drafts."""
        mean_rows = sum(drafted**i for i in range(rows))
        tokens = sum((drafted * acceptance) ** i for i in range(rows))
        return (mean_rows * self.shallow_s + self.deep_s + (mean_rows - 1) * self.row_s) / tokens

    def best_rows(self, drafted: float, acceptance: float) -> int:
        """The number of rows with the smallest cost; 1 when no draft pays."""
        return min(range(1, MAX_DRAFTS + 2), key=lambda rows: self.per_token(drafted, acceptance, rows))

    def best_point(self, curve: Sequence[ExitPoint]) -> ExitPoint:
        """The point of the curve whose best cycle costs least."""

        def cost(point: ExitPoint) -> float:
            return self.per_token(point.drafted, point.acceptance, self.best_rows(point.drafted, point.acceptance))

        return min(curve, key=cost)


class ExitAccount:
    """Drafts of one kind of sampling: decides how far each cycle goes, and keeps count of what became of it."""

    def __init__(self, costs: Costs, point: ExitPoint) -> None:
        self.drafted = self.accepted = 0
        """Tokens since `take_counts`."""
        self.rows = 1
        """Most rows of a cycle; 1 while drafting doesn't pay."""
        self.cost_ratio = 1.0
        """Expected time per token with the best drafts over that without any, as last reviewed."""
        self._costs = costs
        self._min_probability = point.min_probability
        self._sure = RunningMean(point.drafted, _WEIGHT)
        self._right = RunningMean(point.acceptance, _WEIGHT)
        self._until_review = _REVIEW_TOKENS
        self._review()

    @property
    def on(self) -> bool:
        """Whether anything is drafted."""
        return self.rows > 1

    def wants(self, guess: Guess, drafts: int) -> bool:
        """Whether the cycle, with `drafts` drafts so far, goes on with this guess as one more."""
        return drafts + 1 < self.rows and self._sure_of(guess)

    def saw(self, guess: Guess, token_id: int) -> None:
        """Notes what the full depth took where the inner exit guessed, whether or not that was drafted."""
        sure = self._sure_of(guess)
        self._sure.add(float(sure))
        if sure:
            self._right.add(float(guess.id == token_id))
        self._until_review -= 1
        if not self._until_review:
            self._until_review = _REVIEW_TOKENS
            self._review()

    def count(self, drafted: int, accepted: int) -> None:
        """Notes a cycle: what was drafted, and how much of it stands."""
        self.drafted += drafted
        self.accepted += accepted

    def take_counts(self) -> tuple[int, int]:
        """Tokens drafted and accepted since the last call."""
        counts = self.drafted, self.accepted
        self.drafted = self.accepted = 0
        return counts

    def _sure_of(self, guess: Guess) -> bool:
        return guess.id >= 0 and guess.probability >= self._min_probability

    def _review(self) -> None:
        sure, right = self._sure.get(0.0), self._right.get(0.0)
        rows = self._costs.best_rows(sure, right)
        self.cost_ratio = self._costs.per_token(sure, right, rows) / self._costs.per_token(sure, right, 1)
        self.rows = rows if self.cost_ratio < (1.0 if self.on else _CLEAR_GAIN) else 1


class Exits:
    """The accounts of one node. Sampled text is foretold worse than greedy text, so each has its own."""

    def __init__(self, costs: Costs, curve: Sequence[ExitPoint]) -> None:
        point = costs.best_point(curve)
        self.greedy, self.sampled = ExitAccount(costs, point), ExitAccount(costs, point)

    def account(self, *, greedy: bool) -> ExitAccount:
        """The one for a request."""
        return self.greedy if greedy else self.sampled

    def named(self) -> dict[str, ExitAccount]:
        """Both, by the name that metrics give them."""
        return {"greedy": self.greedy, "sampled": self.sampled}
