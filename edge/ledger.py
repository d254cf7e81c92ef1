"""The account of one tenant, model pair and bound: how many tokens may still be shown without asking. Pure.

A token shown alone is *pending* until a visit labels it; what its answer leaves unlabelled is audited for certain
(and stays pending until then), or left to a coin (`unvisited.py`). The rule, in tokens, before a unit is shown:

    wrong + forfeited + pending + bound on the unvisited + unit ≤ δ · (shown + unit) + allowance

Everything on the left counts as wrong until labels say otherwise, so only showing can raise it: what the rule allowed
stays true. `docs/decisions/010-ledger.md` says what follows from it, and what does not.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from .drift import Standing, Watch
from .units import UNIT_TOKENS
from .unvisited import Unvisited

ALLOWANCE = 4.0 * UNIT_TOKENS
"""B: tokens that may be wrong before anything was earned; four units, so that an answer can begin."""

CLASSES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0)
"""The bounds that have accounts. A request's own is rounded down to one: clients can't open accounts at will."""

AUDIT_PROBABILITIES = (0.03, 0.06, 0.12, 0.25, 0.5)
"""Of a coin; the lowest one that the account can afford, or else the audit is certain."""

_LEFT_TO_CHANCE = 0.7
"""Share of what may be wrong that the bound on the unvisited may take. It costs about 6 n/π before it has seen anything
(n the longest remainder), so a young account has all audited, and an old one a few; so has one that is often wrong."""

_SLACK = 1e-6
"""Tokens by which sums of floats may be off."""


class Cause(Enum):
    """Why a trusted unit is not shown alone."""

    LEDGER = "ledger"
    DRIFT = "drift"


@dataclass(slots=True)
class Account:
    """Counts tokens from the account's beginning on."""

    delta: float
    """Share of what is shown alone that may be wrong; one of CLASSES."""
    allowance: float = ALLOWANCE
    """B, and what was earned since (see `_review`)."""
    shown: int = 0
    wrong: int = 0
    """Shown alone, and the cloud would have taken another token there."""
    right: int = 0
    pending: int = 0
    """Shown alone; their labels may still come."""
    forfeited: int = 0
    """Shown alone, perhaps: their labels, or their very number, are lost."""
    withheld: int = 0
    """Trusted by the score, and verified before they were shown all the same."""
    spent: float = 0.0
    """Of `withheld`: tokens that allowance was granted for."""
    ceiling: float = float("inf")
    """What `shown` may come to: what is on disk holds up to there."""
    unvisited: Unvisited = field(default_factory=Unvisited)
    watch: Watch = field(init=False)

    def __post_init__(self) -> None:
        self.watch = Watch(self.delta, Standing.GOOD if self.allowance > 0 else Standing.UNPROVEN)

    @property
    def room(self) -> float:
        """What may still go wrong, in tokens, if all that has no label is wrong."""
        return self.delta * self.shown + self.allowance - self.wrong - self.forfeited - self.unlabelled

    @property
    def unlabelled(self) -> float:
        """Tokens that count as wrong for want of a label."""
        return self.pending + self.unvisited.bound

    def refuses(self, tokens: int) -> Cause | None:
        """Why a unit of so many tokens has to be asked about; None when it may be shown alone."""
        if self.watch.standing is not Standing.GOOD:
            return Cause.DRIFT if self.watch.standing is Standing.DRIFTED else Cause.LEDGER
        allowed = tokens <= self.delta * tokens + self.room + _SLACK and self.shown + tokens <= self.ceiling
        return None if allowed else Cause.LEDGER

    def show(self, tokens: int) -> None:
        """So many tokens, which `refuses` let pass, were shown alone."""
        self.shown += tokens
        self.pending += tokens

    def label(self, wrong: int, tokens: int) -> None:
        """The cloud's word on pending tokens: a visit's or a certain audit's."""
        self.pending -= tokens
        self.wrong += wrong
        self.right += tokens - wrong
        self.watch.shown(wrong, tokens)
        self._review()

    def verified(self, drafted: int, stands: int) -> None:
        """The cloud's word on a trusted unit that was withheld: it checks up to the first id that doesn't stand."""
        self.withheld += min(stands + 1, drafted)
        self.watch.withheld(drafted, stands)
        self._review()

    def audit_probability(self, tokens: int) -> float:
        """With what probability an answer's remainder of so many tokens is to be audited; fixed before the coin."""
        funds = self.delta * self.shown + self.allowance - self.wrong - self.forfeited
        affordable = (p for p in AUDIT_PROBABILITIES if self.unvisited.foreseen(tokens, p) <= _LEFT_TO_CHANCE * funds)
        return next(affordable, 1.0)

    def leave(self, tokens: int, probability: float, picked: bool) -> None:
        """Pending tokens whose answer has ended, and whose coin has fallen; `probability` below 1."""
        self.pending -= tokens
        self.unvisited.leave(tokens, probability, picked)
        self._review()

    def audited(self, tokens: int, probability: float, wrong: int) -> None:
        """The labels of a remainder that was to be audited with this probability, and was."""
        if probability == 1.0:
            self.label(wrong, tokens)
            return
        self.unvisited.told(tokens, probability, wrong)
        self.watch.shown(wrong, tokens)
        self._review()

    def audit_lost(self, tokens: int, probability: float) -> None:
        """An audit that was due and will never be: its tokens count as wrong from now on."""
        if probability == 1.0:
            self.pending -= tokens
            self.forfeited += tokens
        else:
            self.unvisited.lost()
        self._review()

    def _review(self) -> None:
        """Closes an account that can't show one more unit whatever labels say, and reopens one that has proved itself.

        An allowance is topped up to B, and paid for in withheld tokens, at δ each: that many were trusted and could
        not go wrong. So wrong ≤ δ·(shown + withheld) + B holds for ever, and wrong ≤ δ·shown + B until the first time.
        """
        if self.watch.standing is Standing.GOOD:
            waiting = self.pending or self.unvisited.awaited
            if not waiting and self.room + _SLACK < (1.0 - self.delta) * UNIT_TOKENS:
                self.watch.turn(Standing.UNPROVEN)
        elif self.watch.proven:
            missing = max(0.0, ALLOWANCE - self.room)
            if missing <= self.delta * (self.withheld - self.spent):
                self.spent += missing / self.delta
                self.allowance += missing
                self.watch.turn(Standing.GOOD)


def bound_class(delta: float) -> float | None:
    """The largest bound with an account that is no looser than a request's; None when even the strictest one is."""
    return next((bound for bound in reversed(CLASSES) if bound <= delta), None)
