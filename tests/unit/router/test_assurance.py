"""What a tier can be sure of."""

from __future__ import annotations

import pytest

from tiermesh.router.assurance import sure_part
from tiermesh.router.jobs import TierRule

TIER = TierRule("low", 1.0, 0.1)


@pytest.mark.parametrize(
    ("above", "first", "back"), [(0.0, 0.5, 1.0), (0.2, 0.4, 0.7), (0.32, 0.1, 0.52), (9.0, 0.1, 0.1)]
)
def test_a_tier_is_sure_of_its_share_and_of_more_while_little_is_asked_above(
    above: float, first: float, back: float
) -> None:
    assert sure_part(TIER, above) == pytest.approx(first)
    assert sure_part(TIER, above, comes_back=True) == pytest.approx(back)
