"""Answers on a terminal: spans coloured by who gave them, and where the time went."""

from __future__ import annotations

from collections.abc import Iterable

from rich.text import Text

from tiermesh.common.types import Origin, Timing, Tokens

from .answer import Answer

COLOURS = {Origin.EDGE: "green", Origin.CLOUD: "blue", Origin.CACHE: "magenta"}


def coloured(pieces: Iterable[Tokens]) -> Text:
    """The text of an answer; degraded spans are underlined."""
    text = Text()
    for piece in pieces:
        text.append(piece.text, style=COLOURS[piece.origin] + (" underline" if piece.degraded else ""))
    return text


def legend() -> Text:
    """Which colour means whom."""
    text = Text("answered by ")
    for origin, colour in COLOURS.items():
        text.append(f"{origin.value} ", style=colour)
    return text


def facts(answer: Answer) -> Text:
    """One dim line: times as the client saw them, how it was answered, milliseconds per hop."""
    usage = answer.usage
    how = [f"first token {answer.ttft_s * 1000:.0f} ms", f"all {answer.total_s * 1000:.0f} ms"]
    how += [f"{usage.alone} alone"] if usage.alone else []
    how += [f"{usage.asks} asked"] if usage.asks else []
    how += ["handed over"] if usage.handed_over else []
    how += ["cached"] if usage.cached else []
    return Text(" · ".join([*how, *hops(answer.timings)]), style="dim")


def hops(timings: Iterable[Timing]) -> list[str]:
    """For instance "edge prefill 3 decode 11 ms", one per hop, in order of appearance."""
    by_hop: dict[str, list[str]] = {}
    for timing in timings:
        by_hop.setdefault(timing.hop, []).append(f"{timing.stage} {timing.duration_s * 1000:.1f}")
    return [f"{hop} {' '.join(stages)} ms" for hop, stages in by_hop.items()]
