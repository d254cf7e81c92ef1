"""When to stop asking: the cloud finishes an answer as soon as more visits cost clearly more time per token. Pure.

Asking: a unit of γ drafts costs γ·t_edge, and with probability 1 − a (it isn't trusted) a visit V. It yields γ tokens
when trusted, else E(γ) = (1 − α^(γ+1)) / (1 − α): what stands, and the cloud's own next id (Leviathan et al., "Fast
inference from transformers via speculative decoding", ICML 2023, section 3.1). Streaming costs the cloud's step. All
five are measured. α and a differ from answer to answer, and before the first verdict one thing tells: how sure the edge
model is of its draft. So both are kept by classes of sureness, and an answer begins with those of its class.
"""

from __future__ import annotations

import math
from bisect import bisect
from collections.abc import Sequence
from dataclasses import dataclass, field

from .units import UNIT_TOKENS

_PER_VISIT = 0.1
_PER_TOKEN = 0.02
"""Weights of a new observation in a running mean: the last 20 visits, or the last 100 tokens, count."""

_PER_STREAM = 0.25
_FIRST_PROBE, _LAST_PROBE = 3, 256
"""Visits before the cloud's stream is measured by handing an answer over, and before it is measured anew: twice as many
each time, up to 256. Without a probe, a stream that was never tried would never be found to be the faster way; one
answer in dozens pays for it. The first, of few tokens while everything warms up, was off by a factor of up to 2.6."""

_WORTH_A_PASS = 1.3
"""Asking may take so many times the stream's time per token. A streamed token takes a whole pass of the cloud, an asked
unit takes one for all of its tokens; and a hand-over is for good, while what it is judged by is uncertain. So patience
is also faster up to 1.2, where simulated hard answers over 1 to 15 ms took at most 1.03 times the best way's time; at
1.0, 1.14. What more saves in passes and costs in time: docs/decisions/013-hand-over.md."""

_SURENESS = (0.7, 0.8, 0.9, 0.97)
"""Borders between the classes, in geometric means of the edge model's own probabilities over the answer so far."""

_PRIOR_ACCEPTANCE = 0.8
_PRIOR_ALONE = 0.5
_PRIOR_TOKENS = 16.0
"""How many tokens of its own an answer needs to outweigh what other answers showed: one unit."""
_PRIOR_UNITS = 2.0


@dataclass(slots=True)
class RunningMean:
    """An exponentially weighted mean; None until the first observation."""

    value: float | None = None
    weight: float = _PER_VISIT

    def add(self, observed: float) -> None:
        """Moves the mean towards one more observation."""
        self.value = observed if self.value is None else self.value + self.weight * (observed - self.value)

    def get(self, default: float) -> float:
        """The mean, or `default` before the first observation."""
        return default if self.value is None else self.value


@dataclass(slots=True)
class Kin:
    """What answers that the edge model is about equally sure of came to."""

    acceptance: RunningMean = field(default_factory=lambda: RunningMean(weight=_PER_TOKEN))
    alone: RunningMean = field(default_factory=RunningMean)
    share: RunningMean = field(default_factory=RunningMean)
    """Of answers whose first unit is of this class."""


@dataclass(slots=True)
class Pace:
    """What one node measured over all its answers. Seconds."""

    edge_step_s: RunningMean = field(default_factory=RunningMean)
    """Per drafted token."""
    travel_s: RunningMean = field(default_factory=RunningMean)
    """Of a visit, without the time that the cloud worked on it; see `travelled`."""
    verify_s: RunningMean = field(default_factory=RunningMean)
    """That the cloud worked on a visit; not on a first one, which holds the prompt's prefill."""
    stream_step_s: RunningMean = field(default_factory=lambda: RunningMean(weight=_PER_STREAM))
    """Per token that the cloud streams."""
    acceptance: RunningMean = field(default_factory=lambda: RunningMean(_PRIOR_ACCEPTANCE, _PER_TOKEN))
    """Share of checked drafts that stand."""
    alone: RunningMean = field(default_factory=lambda: RunningMean(_PRIOR_ALONE))
    """Share of units that needed no visit, where that was possible at all."""
    kin: tuple[Kin, ...] = field(default_factory=lambda: tuple(Kin() for _ in range(len(_SURENESS) + 1)))
    """The same two by classes of sureness; each begins where all answers were then."""
    unit_tokens: RunningMean = field(default_factory=RunningMean)
    """Tokens of a unit."""
    visits_to_probe: int = _FIRST_PROBE
    """Visits until one is made a hand-over, to learn how fast the cloud streams."""
    between_probes: int = _FIRST_PROBE

    def probe_due(self) -> bool:
        """Whether the next visit shall hand over for that reason; says so once."""
        if self.visits_to_probe > 0:
            return False
        self.visits_to_probe = self.between_probes
        return True

    def travelled(self, travel_s: float, first: bool) -> None:
        """Notes what a visit took beside the cloud's work. A first one of a session is more: the cloud reads the prompt
        meanwhile, before a hand-over too. If those counted, each hand-over would be a reason for the next."""
        if not first or travel_s < self.travel_s.get(0.0):
            self.travel_s.add(travel_s)

    def streamed(self, step_s: float) -> None:
        """Notes how long the cloud took per token of a stream."""
        self.stream_step_s.add(step_s)
        self.between_probes = min(2 * self.between_probes, _LAST_PROBE)
        self.visits_to_probe = self.between_probes


@dataclass(slots=True)
class Course:
    """How one answer goes so far."""

    pace: Pace
    may_be_alone: bool
    """False for exact quality."""
    stood: int = 0
    """Drafts that stood."""
    checked: int = 0
    """Drafts that the cloud looked at: those that stood, and the first that did not."""
    units: int = 0
    alone_units: int = 0
    drafted: int = 0
    """Tokens of all units."""
    log_sure: float = 0.0
    """Logarithm of the product of the edge model's probabilities over all units."""

    def visited(self, drafted: int, stands: int) -> None:
        """Notes a verdict."""
        for place in range(min(stands + 1, drafted)):
            _add(float(place < stands), self.pace.acceptance, self.kin.acceptance if self.kin else None)
        self.pace.visits_to_probe -= 1
        self.stood += stands
        self.checked += min(stands + 1, drafted)

    def decided(self, probabilities: Sequence[float], alone: bool) -> None:
        """Notes one more unit, by the edge model's probabilities, and whether it was shown without a visit."""
        self.log_sure += math.fsum(math.log(max(p, 1e-30)) for p in probabilities)
        self.drafted += len(probabilities)
        if not self.units:
            for kin in self.pace.kin:
                kin.share.add(float(kin is self.kin))
        if self.may_be_alone:
            _add(float(alone), self.pace.alone, self.kin.alone if self.kin else None)
        self.pace.unit_tokens.add(len(probabilities))
        self.units += 1
        self.alone_units += alone

    @property
    def kin(self) -> Kin | None:
        """The class of this answer; None before its first unit."""
        return self.pace.kin[bisect(_SURENESS, math.exp(self.log_sure / self.drafted))] if self.drafted else None

    @property
    def acceptance(self) -> float:
        """Probability that the next draft stands."""
        prior = _prior(self.pace.acceptance, self.kin.acceptance if self.kin else None)
        return (self.stood + prior * _PRIOR_TOKENS) / (self.checked + _PRIOR_TOKENS)

    @property
    def unit_tokens(self) -> float:
        """Tokens that the next unit will have."""
        return (self.drafted + self.pace.unit_tokens.get(UNIT_TOKENS) * _PRIOR_UNITS) / (self.units + _PRIOR_UNITS)

    @property
    def alone(self) -> float:
        """Probability that the next unit needs no visit."""
        if not self.may_be_alone:
            return 0.0
        prior = _prior(self.pace.alone, self.kin.alone if self.kin else None)
        return (self.alone_units + prior * _PRIOR_UNITS) / (self.units + _PRIOR_UNITS)

    def expected_tokens(self, drafted: int) -> float:
        """Tokens that a visit with so many drafts yields; before the first unit, over the classes it may be of.

        An answer that begins easily would have its drafts cut short for the sake of hard ones, if E(γ) were taken at
        the mean α of both.
        """
        if self.kin is not None or self.pace.kin[0].share.value is None:
            return expected_tokens(self.acceptance, drafted)
        priors = [(kin.share.get(0.0), _prior(self.pace.acceptance, kin.acceptance)) for kin in self.pace.kin]
        return math.fsum(share * expected_tokens(acceptance, drafted) for share, acceptance in priors)


def _prior(everyone: RunningMean, kin: RunningMean | None) -> float:
    return everyone.get(1.0) if kin is None else kin.get(everyone.get(1.0))


def _add(observed: float, everyone: RunningMean, kin: RunningMean | None) -> None:
    """One observation, in both means; a class without any begins where all answers are."""
    if kin is not None:
        kin.value = kin.get(everyone.get(observed))
        kin.add(observed)
    everyone.add(observed)


def expected_tokens(acceptance: float, drafted: float) -> float:
    """Tokens that one visit yields: E(γ), between 1 and γ + 1."""
    if acceptance >= 1.0:
        return drafted + 1.0
    return float((1.0 - acceptance ** (drafted + 1)) / (1.0 - acceptance))


def asking_s_per_token(
    edge_step_s: float, visit_s: float, acceptance: float, alone: float, whole: float, asked: float
) -> float:
    """Seconds per token of going on in units of `whole` tokens, those that are asked about cut to `asked`."""
    cost = alone * whole * edge_step_s + (1.0 - alone) * (asked * edge_step_s + visit_s)
    return cost / (alone * whole + (1.0 - alone) * expected_tokens(acceptance, asked))


def prefers_streaming(course: Course, cloud_step_s: float | None) -> bool:
    """Whether the cloud should finish the answer: asking takes over 1.3 times the time per token of its stream.

    False while visits are unmeasured: the first ones measure them.
    For as long as no stream was measured, its step is taken to be what the cloud says of its steps (`cloud_step_s`), or
    else as long as verifying a unit, which a step for one token never exceeds.
    """
    pace = course.pace
    known = [mean for mean in (pace.stream_step_s.value, cloud_step_s, pace.verify_s.value) if mean is not None]
    if not known or pace.travel_s.value is None or pace.edge_step_s.value is None:
        return False
    stream_s = known[0]
    visit_s = pace.travel_s.value + pace.verify_s.get(stream_s)
    whole = course.unit_tokens
    asked = min(whole, worthwhile_drafts(course))
    asking_s = asking_s_per_token(pace.edge_step_s.value, visit_s, course.acceptance, course.alone, whole, asked)
    return asking_s > _WORTH_A_PASS * stream_s


def worthwhile_drafts(course: Course) -> int:
    """How many drafts make a visit's tokens cheapest where every unit is asked about; 16 while visits are unmeasured.

    The running product of the edge's own probabilities would be the wrong guide: with a pair that agreed on 97 % of
    tokens, drafts still stood in 93 % of cases where that product was below 0.005.
    """
    pace = course.pace
    if pace.travel_s.value is None or pace.verify_s.value is None or pace.edge_step_s.value is None:
        return UNIT_TOKENS
    edge_s, visit_s = pace.edge_step_s.value, pace.travel_s.value + pace.verify_s.value
    costs = [(n * edge_s + visit_s) / course.expected_tokens(n) for n in range(1, UNIT_TOKENS + 1)]
    return costs.index(min(costs)) + 1
