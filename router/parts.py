"""What answers are made with."""

from __future__ import annotations

from dataclasses import dataclass

from ..cache.port import Store
from ..common.clock import Clock
from .dispatch import Dispatcher
from .estimates import Estimates
from .limits import Limits
from .metrics import Metrics
from .registry import Registry
from .slots import Slots


@dataclass(frozen=True, slots=True)
class Parts:
    """The parts of one router that its answers share."""

    registry: Registry
    slots: Slots
    dispatcher: Dispatcher
    store: Store
    limits: Limits
    estimates: Estimates
    metrics: Metrics
    clock: Clock
