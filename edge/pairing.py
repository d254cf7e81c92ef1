"""Whether the artifact's calibration speaks of the models that answer now."""

from __future__ import annotations

from ..common.telemetry import get_logger
from ..common.types import Digests, ModelInfo
from .calibration import Calibration

_log = get_logger()
_KNOWN_POOLS = 64


class Pairing:
    """Holds a calibration to the pair that it was measured on; logs once per change what is uncalibrated and why."""

    def __init__(self, edge: Digests, calibration: Calibration | None) -> None:
        self._edge = edge
        self._calibration = calibration
        self._told: dict[str, str] = {}
        """By pool, the cloud model that the log last spoke of."""

    def in_force(self, pool: ModelInfo | None) -> Calibration | None:
        """The calibration, where it was made for this edge and the pool's model; a pool never heard of has none."""
        fault = self.fault(pool)
        if pool is not None and self._told.get(pool.id) != pool.digests.model:
            if len(self._told) >= _KNOWN_POOLS:
                self._told.clear()
            self._told[pool.id] = pool.digests.model
            if fault:
                _log.warning("uncalibrated", pool=pool.id, cause=fault, effect="every bounded unit asks")
            else:
                _log.info("calibrated", pool=pool.id)
        return None if fault else self._calibration

    def fault(self, pool: ModelInfo | None) -> str:
        """Why units can't be trusted with this pool; empty when they can."""
        calibration = self._calibration
        if calibration is None:
            return "the edge directory has no calibration.json; run `tiermesh calibrate`"
        if calibration.edge != self._edge:
            return "calibration.json was made for another edge artifact; run `tiermesh calibrate`"
        if pool is None:
            return "no pool was heard of since the start"
        if calibration.cloud_model != pool.digests.model:
            return "calibration.json was made with another cloud model; run `tiermesh calibrate`"
        return ""
