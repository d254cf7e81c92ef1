"""Proto ⇄ our types: the frames of the relay."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tiermesh.v1 import relay_pb2 as rpb

from . import frames as f
from . import types as t
from . import wire as w
from .errors import InvalidRequest

_MODE = {
    f.SessionMode.GENERATE: rpb.SESSION_MODE_GENERATE,
    f.SessionMode.VERIFY: rpb.SESSION_MODE_VERIFY,
}
_CLOSE = {
    f.CloseReason.DONE: rpb.CLOSE_REASON_DONE,
    f.CloseReason.CANCELLED: rpb.CLOSE_REASON_CANCELLED,
    f.CloseReason.DEADLINE: rpb.CLOSE_REASON_DEADLINE,
}
_FROM_MODE: dict[int, f.SessionMode] = {v: k for k, v in _MODE.items()}
_FROM_CLOSE: dict[int, f.CloseReason] = {v: k for k, v in _CLOSE.items()}


def _hello_from(pb: rpb.Hello) -> f.Hello:
    return f.Hello(pb.name, w.digests_from(pb.digests), pb.protocol_version)


def _hello_to(x: f.Hello) -> rpb.UpFrame:
    hello = rpb.Hello(protocol_version=x.protocol_version, name=x.name, digests=w.digests_to(x.digests))
    return rpb.UpFrame(hello=hello)


def _open_from(pb: rpb.Open) -> f.Open:
    return f.Open(
        session=pb.session,
        attempt=pb.attempt,
        request=w.request_from(pb.request),
        mode=w.enum_from(_FROM_MODE, pb.mode, "mode"),
        tenant=pb.tenant,
        delivered_ids=tuple(pb.delivered_ids),
        delivered_bytes=pb.delivered_bytes,
        deadline_left_s=w.seconds_from(pb.deadline_left_ms),
    )


def _open_to(x: f.Open) -> rpb.UpFrame:
    frame = rpb.Open(
        session=x.session,
        attempt=x.attempt,
        request=w.request_to(x.request),
        mode=_MODE[x.mode],
        tenant=x.tenant,
        delivered_ids=x.delivered_ids,
        delivered_bytes=x.delivered_bytes,
        deadline_left_ms=w.ms_to(x.deadline_left_s),
    )
    return rpb.UpFrame(open=frame)


def _ask_from(pb: rpb.Ask) -> f.Ask:
    return f.Ask(pb.session, pb.attempt, pb.position, tuple(pb.draft_ids), tuple(pb.alone_ids), pb.hand_over)


def _ask_to(x: f.Ask) -> rpb.UpFrame:
    ask = rpb.Ask(
        session=x.session,
        attempt=x.attempt,
        position=x.position,
        alone_ids=x.alone_ids,
        draft_ids=x.draft_ids,
        hand_over=x.hand_over,
    )
    return rpb.UpFrame(ask=ask)


def _close_from(pb: rpb.Close) -> f.Close:
    return f.Close(pb.session, pb.attempt, w.enum_from(_FROM_CLOSE, pb.reason, "reason"))


def _close_to(x: f.Close) -> rpb.UpFrame:
    return rpb.UpFrame(close=rpb.Close(session=x.session, attempt=x.attempt, reason=_CLOSE[x.reason]))


def _report_from(pb: rpb.UsageReport) -> f.UsageReport:
    return f.UsageReport(
        request_id=pb.request_id,
        tenant=pb.tenant,
        tier=pb.tier,
        prompt_tokens=pb.prompt_tokens,
        edge_tokens=pb.edge_tokens,
        cloud_tokens=pb.cloud_tokens,
        cache_tokens=pb.cache_tokens,
        alone=pb.alone,
        asks=pb.asks,
        handed_over=pb.handed_over,
        alone_tokens=pb.alone_tokens,
        labelled_tokens=pb.labelled_tokens,
        wrong_tokens=pb.wrong_tokens,
        audits=pb.audits,
        audits_lost=pb.audits_lost,
        audit_tokens=pb.audit_tokens,
    )


def _report_to(x: f.UsageReport) -> rpb.UpFrame:
    report = rpb.UsageReport(
        request_id=x.request_id,
        tenant=x.tenant,
        tier=x.tier,
        prompt_tokens=x.prompt_tokens,
        edge_tokens=x.edge_tokens,
        cloud_tokens=x.cloud_tokens,
        cache_tokens=x.cache_tokens,
        alone=x.alone,
        asks=x.asks,
        handed_over=x.handed_over,
        alone_tokens=x.alone_tokens,
        labelled_tokens=x.labelled_tokens,
        wrong_tokens=x.wrong_tokens,
        audits=x.audits,
        audits_lost=x.audits_lost,
        audit_tokens=x.audit_tokens,
    )
    return rpb.UpFrame(usage=report)


def _welcome_from(pb: rpb.Welcome) -> f.Welcome:
    return f.Welcome(pb.name, tuple(w.model_from(m) for m in pb.models), pb.protocol_version)


def _welcome_to(x: f.Welcome) -> rpb.DownFrame:
    models = [w.model_to(m) for m in x.models]
    return rpb.DownFrame(welcome=rpb.Welcome(protocol_version=x.protocol_version, name=x.name, models=models))


def _tenant_from(pb: rpb.TenantPolicy) -> f.TenantPolicy:
    return f.TenantPolicy(
        name=pb.name,
        key_hashes=tuple(pb.key_hashes),
        tiers=tuple(pb.tiers),
        quality=w.enum_from(w.FROM_QUALITY, pb.quality, "quality"),
        delta=pb.delta,
        degraded_allowed=pb.degraded_allowed,
        cache_exact=pb.cache_exact,
        cache_ttl_s=pb.cache_ttl_ms / 1000,
    )


def _tenant_to(x: f.TenantPolicy) -> rpb.TenantPolicy:
    return rpb.TenantPolicy(
        name=x.name,
        key_hashes=x.key_hashes,
        tiers=x.tiers,
        quality=w.QUALITY[x.quality],
        delta=x.delta,
        degraded_allowed=x.degraded_allowed,
        cache_exact=x.cache_exact,
        cache_ttl_ms=round(x.cache_ttl_s * 1000),
    )


def policy_from(pb: rpb.Policy) -> f.Policy:
    """Also read from an edge node's own disk."""
    tiers = tuple(f.TierPolicy(x.name, x.ttft_ms / 1000, x.deadline_ms / 1000) for x in pb.tiers)
    return f.Policy(tuple(_tenant_from(x) for x in pb.tenants), tiers, pb.valid_ms / 1000, pb.salt)


def policy_to(x: f.Policy) -> rpb.Policy:
    """Also kept on an edge node's own disk."""
    tiers = [rpb.TierPolicy(name=y.name, ttft_ms=w.ms_to(y.ttft_s), deadline_ms=w.ms_to(y.deadline_s)) for y in x.tiers]
    return rpb.Policy(tenants=[_tenant_to(y) for y in x.tenants], tiers=tiers, valid_ms=w.ms_to(x.valid_s), salt=x.salt)


def _accepted_from(pb: rpb.Accepted) -> f.Accepted:
    return f.Accepted(pb.session, pb.attempt, pb.queue_place, pb.tier, pb.model)


def _accepted_to(x: f.Accepted) -> rpb.DownFrame:
    accepted = rpb.Accepted(session=x.session, attempt=x.attempt, queue_place=x.queue_place, tier=x.tier, model=x.model)
    return rpb.DownFrame(accepted=accepted)


def _tokens_from(pb: rpb.RelayTokens) -> f.RelayTokens:
    origin = w.FROM_ORIGIN.get(pb.origin, t.Origin.CLOUD)
    top = w.top_logprobs_from(pb.top_logprobs)
    return f.RelayTokens(pb.session, pb.attempt, pb.position, tuple(pb.ids), pb.text, tuple(pb.logprobs), origin, top)


def _tokens_to(x: f.RelayTokens) -> rpb.DownFrame:
    tokens = rpb.RelayTokens(
        session=x.session,
        attempt=x.attempt,
        position=x.position,
        ids=x.ids,
        text=x.text,
        logprobs=x.logprobs,
        origin=w.ORIGIN[x.origin],
        top_logprobs=w.top_logprobs_to(x.top_logprobs),
    )
    return rpb.DownFrame(tokens=tokens)


def _verdict_from(pb: rpb.Verdict) -> f.Verdict:
    return f.Verdict(
        session=pb.session,
        attempt=pb.attempt,
        position=pb.position,
        stands=pb.stands,
        next_id=pb.next_id if pb.HasField("next_id") else None,
        choices=tuple(pb.choices),
        logprobs=tuple(pb.logprobs),
        compute_s=pb.compute_ms / 1000,
        top_logprobs=w.top_logprobs_from(pb.top_logprobs),
    )


def _verdict_to(x: f.Verdict) -> rpb.DownFrame:
    verdict = rpb.Verdict(
        session=x.session,
        attempt=x.attempt,
        position=x.position,
        stands=x.stands,
        next_id=x.next_id,
        choices=x.choices,
        logprobs=x.logprobs,
        compute_ms=x.compute_s * 1000,
        top_logprobs=w.top_logprobs_to(x.top_logprobs),
    )
    return rpb.DownFrame(verdict=verdict)


def _finished_from(pb: rpb.RelayFinished) -> f.RelayFinished:
    reason = w.enum_from(w.FROM_FINISH, pb.reason, "reason")
    return f.RelayFinished(pb.session, pb.attempt, reason, w.usage_from(pb.usage), w.timings_from(pb.timings))


def _finished_to(x: f.RelayFinished) -> rpb.DownFrame:
    finished = rpb.RelayFinished(
        session=x.session,
        attempt=x.attempt,
        reason=w.FINISH[x.reason],
        usage=w.usage_to(x.usage),
        timings=w.timings_to(x.timings),
    )
    return rpb.DownFrame(finished=finished)


def _session_error_from(pb: rpb.SessionError) -> f.SessionError:
    return f.SessionError(pb.session, pb.attempt, w.error_from(pb.error))


def _session_error_to(x: f.SessionError) -> rpb.DownFrame:
    error = rpb.SessionError(session=x.session, attempt=x.attempt, error=w.error_to(x.error))
    return rpb.DownFrame(error=error)


def _load_from(pb: rpb.Load) -> f.Load:
    step_s, hit = pb.step_ms / 1000, pb.prefix_hit
    return f.Load(pb.slots, pb.running, pb.waiting, pb.kv_free, step_s, pb.draining, hit, pb.preemptions)


def _load_to(x: f.Load) -> rpb.DownFrame:
    load = rpb.Load(
        slots=x.slots,
        running=x.running,
        waiting=x.waiting,
        kv_free=x.kv_free,
        step_ms=x.step_s * 1000,
        draining=x.draining,
        prefix_hit=x.prefix_hit,
        preemptions=x.preemptions,
    )
    return rpb.DownFrame(load=load)


_UP_FROM: dict[str, Callable[[Any], f.UpFrame]] = {
    "hello": _hello_from,
    "open": _open_from,
    "ask": _ask_from,
    "close": _close_from,
    "usage": _report_from,
}
_UP_TO: dict[type, Callable[[Any], rpb.UpFrame]] = {
    f.Hello: _hello_to,
    f.Open: _open_to,
    f.Ask: _ask_to,
    f.Close: _close_to,
    f.UsageReport: _report_to,
}
_DOWN_FROM: dict[str, Callable[[Any], f.DownFrame]] = {
    "welcome": _welcome_from,
    "policy": policy_from,
    "accepted": _accepted_from,
    "tokens": _tokens_from,
    "verdict": _verdict_from,
    "finished": _finished_from,
    "error": _session_error_from,
    "load": _load_from,
}
_DOWN_TO: dict[type, Callable[[Any], rpb.DownFrame]] = {
    f.Welcome: _welcome_to,
    f.Policy: lambda x: rpb.DownFrame(policy=policy_to(x)),
    f.Accepted: _accepted_to,
    f.RelayTokens: _tokens_to,
    f.Verdict: _verdict_to,
    f.RelayFinished: _finished_to,
    f.SessionError: _session_error_to,
    f.Load: _load_to,
}


def up_from(pb: rpb.UpFrame) -> f.UpFrame:
    """Raises InvalidRequest for an empty frame or one that the types can't hold."""
    kind = pb.WhichOneof("frame")
    if kind is None:
        raise InvalidRequest("a frame of an unknown kind came; the caller speaks a newer protocol, or none")
    return _UP_FROM[kind](getattr(pb, kind))


def up_to(frame: f.UpFrame) -> rpb.UpFrame:
    """Raises InvalidRequest where a value does not fit its field."""
    return _UP_TO[type(frame)](frame)


def session_of(pb: rpb.UpFrame) -> tuple[int, int] | None:
    """(session, attempt) of a frame, even of one that `up_from` refuses; None where it belongs to no session."""
    kind = pb.WhichOneof("frame")
    if kind not in ("open", "ask", "close"):
        return None
    frame = getattr(pb, kind)
    return frame.session, frame.attempt


def down_from(pb: rpb.DownFrame) -> f.DownFrame:
    """Raises InvalidRequest for an empty frame or one that the types can't hold."""
    kind = pb.WhichOneof("frame")
    if kind is None:
        raise InvalidRequest("a frame of an unknown kind came; the answerer speaks a newer protocol")
    return _DOWN_FROM[kind](getattr(pb, kind))


def down_to(frame: f.DownFrame) -> rpb.DownFrame:
    """One frame for the stream."""
    return _DOWN_TO[type(frame)](frame)
