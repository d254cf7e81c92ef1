"""Proto ⇄ our types: the events of a streamed answer."""

from __future__ import annotations

from collections.abc import Sequence

from tiermesh.v1 import inference_pb2 as ipb

from . import types as t
from .errors import InvalidRequest
from .wire import (
    FINISH,
    FROM_FINISH,
    FROM_ORIGIN,
    FROM_QUALITY,
    ORIGIN,
    QUALITY,
    enum_from,
    timings_from,
    timings_to,
    top_logprobs_from,
    top_logprobs_to,
    usage_from,
    usage_to,
)


def event_from(pb: ipb.GenerateResponse) -> t.Event:
    """Raises InvalidRequest for an event that this version does not know."""
    kind = pb.WhichOneof("event")
    if kind == "tokens":
        tokens = pb.tokens
        origin = enum_from(FROM_ORIGIN, tokens.origin, "origin")
        top = top_logprobs_from(tokens.top_logprobs)
        return t.Tokens(tuple(tokens.ids), tokens.text, origin, tuple(tokens.logprobs), tokens.degraded, top)
    if kind == "started":
        started = pb.started
        quality = enum_from(FROM_QUALITY, started.quality, "quality")
        return t.Started(started.request_id, started.model, started.tier, quality)
    if kind == "finished":
        finished = pb.finished
        reason = enum_from(FROM_FINISH, finished.reason, "reason")
        return t.Finished(reason, usage_from(finished.usage), timings_from(finished.timings))
    raise InvalidRequest("an event of an unknown kind came; the server speaks a newer protocol")


def event_to(event: t.Event) -> ipb.GenerateResponse:
    """One streamed message."""
    match event:
        case t.Tokens():
            tokens = ipb.Tokens(
                ids=event.ids,
                text=event.text,
                origin=ORIGIN[event.origin],
                logprobs=event.logprobs,
                degraded=event.degraded,
                top_logprobs=top_logprobs_to(event.top_logprobs),
            )
            return ipb.GenerateResponse(tokens=tokens)
        case t.Started():
            started = ipb.Started(
                request_id=event.request_id, model=event.model, tier=event.tier, quality=QUALITY[event.quality]
            )
            return ipb.GenerateResponse(started=started)
        case t.Finished():
            finished = ipb.Finished(
                reason=FINISH[event.reason], usage=usage_to(event.usage), timings=timings_to(event.timings)
            )
            return ipb.GenerateResponse(finished=finished)


def events_from(pb: ipb.GenerateResponse) -> tuple[t.Event, ...]:
    """All events of a message, in order. Raises InvalidRequest as `event_from`."""
    return event_from(pb), *map(event_from, pb.then)


def events_to(events: Sequence[t.Event]) -> ipb.GenerateResponse:
    """Events that are ready at once, at least one, as one message."""
    first = event_to(events[0])
    if len(events) > 1:
        first.then.extend(map(event_to, events[1:]))
    return first
