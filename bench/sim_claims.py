"""What was asked of the schedule, beside the worst of what was simulated. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .engine_claims import Claim
from .sim_run import RULES

Row = Mapping[str, Any]
"""What `schedule_sim.summary` says of a scenario at a load."""
OVERLOAD = 1.5


def claims(rows: Sequence[Row]) -> list[Claim]:
    """Each aim beside the worst row."""
    loaded = [row for row in rows if row["load"] >= OVERLOAD]
    highest, lowest = RULES[0], RULES[-1]
    least, most = True, False
    realtime = f"{highest.name} requests that attain their tier, of those offered; a fifth of the work is theirs"
    share = f"{lowest.name}'s part of the useful tokens, least of any run"
    found = [
        _worst(realtime, rows, lambda row: row["attained"][highest.name], 0.99, least),
        _worst(share, rows, lambda row: row["batch_share"], lowest.min_share, least),
        _worst("goodput over the best of the other orders", rows, lambda row: row["to_best_other"], 0.98, least),
        _worst(f"the same at {OVERLOAD:g} and more", loaded, lambda row: row["to_best_other"], 1.0, least),
        _worst("Jain index of equal tenants that wait, least of any run", rows, lambda row: row["jain"], 0.95, least),
        _worst("largest lag over its bound", rows, lambda row: row["lag_to_bound"], 1.0, most),
        _worst("longest wait over its bound", rows, lambda row: row["wait_to_bound"], 1.0, most),
    ]
    return [claim for claim in found if claim is not None]


def return_claims(rows: Sequence[Row]) -> list[Claim]:
    """Of clients that come back as told, see `schedule_returns`."""
    found = [
        _worst("of those who come back as told, taken in", rows, lambda row: row["all"]["taken"], 0.8, True),
        _worst(
            "told delay over the shortest that would have worked, median",
            rows,
            lambda row: row["all"]["to_shortest"],
            2.0,
            False,
        ),
    ]
    return [claim for claim in found if claim is not None]


def onset_claims(rows: Sequence[Row]) -> list[Claim]:
    """Of an overload that begins at once, see `schedule_onset`."""
    highest = RULES[0].name
    found = [
        _worst("requests that were taken in and not brought home in time", rows, lambda row: row["lost"], 0.0, False),
        _worst(
            f"{highest} requests that attain their tier, of those offered",
            rows,
            lambda row: row["attained"][highest],
            0.98,
            True,
        ),
    ]
    return [claim for claim in found if claim is not None] + return_claims(rows)


def _worst(
    what: str, rows: Sequence[Row], figure: Callable[[Row], float | None], aim: float, at_least: bool
) -> Claim | None:
    """None where no row has the figure."""
    values = {f"{row['scenario']} at {row['load']:g}": value for row in rows if (value := figure(row)) is not None}
    if not values:
        return None
    where = (min if at_least else max)(values, key=lambda name: values[name])
    missed = [name for name, value in values.items() if (value < aim if at_least else value > aim)]
    return Claim(f"{what} ({where})", values[where], aim, at_least, {"by_row": values, "missed_in": missed})
