"""The worker's side of the relay: sessions of one stream, each a sequence of the engine.

Frames of lower attempts and repeated asks are dropped; what is wrong ends its session with a reason, and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from ..common.errors import InvalidRequest, TiermeshError
from ..common.frames import (
    Accepted,
    Ask,
    Close,
    DownFrame,
    Hello,
    Open,
    RelayFinished,
    RelayTokens,
    SessionError,
    SessionMode,
    UpFrame,
    Verdict,
    Welcome,
)
from ..common.types import FinishReason
from ..common.validate import check_request
from .loads import Loads
from .outputs import Ended, Failed, Output, Produced, Verified
from .request import Job
from .service import Worker, submission_of, usage_of
from .submission import Submission

Send = Callable[[DownFrame], None]


@dataclass(slots=True)
class _Session:
    """One session, and the sink of its sequence's outputs."""

    peer: WorkerPeer
    opening: Open
    submission: Submission
    number: int = 0
    """Of the engine's sequence."""
    position: int = 0
    """Answer ids that are certain."""
    asked: Ask | None = None
    """The ask that waits for its verdict."""
    asks: int = 0
    handed_over: bool = False
    closed: bool = False

    def take(self, output: Output) -> None:
        """Sends an output of the engine on as a frame."""
        if self.closed:
            return
        frame = self._frame(output)
        self.peer.send(frame)
        if isinstance(frame, RelayFinished | SessionError):
            self.peer.end(self, frame.reason.value if isinstance(frame, RelayFinished) else frame.error.reason)

    def _frame(self, output: Output) -> DownFrame:
        session, attempt = self.opening.session, self.opening.attempt
        match output:
            case Produced(position, ids, text, logprobs, top):
                return RelayTokens(session, attempt, position, ids, text, logprobs, top_logprobs=top)
            case Verified(position, stands, next_id, choices, logprobs, compute_s, top):
                assert self.asked is not None
                self.peer.worker.metrics.verified(len(self.asked.draft_ids), stands)
                self.asked = None
                self.position = position + stands + (next_id is not None)
                return Verdict(session, attempt, position, stands, next_id, choices, logprobs, compute_s, top)
            case Ended(reason, answer_tokens, timings, cached):
                self.peer.worker.metrics.answered(output)
                usage = usage_of(len(self.submission.prompt), answer_tokens, cached, self.asks, self.handed_over)
                return RelayFinished(session, attempt, reason, usage, timings)
            case Failed(error):
                return SessionError(session, attempt, error)
        raise AssertionError(f"no session has {type(output).__name__}")


class WorkerPeer:
    """One router or edge node that is connected; a `RelayPeer`."""

    def __init__(self, worker: Worker, loads: Loads, hello: Hello, send: Send) -> None:
        self.worker = worker
        self.send = send
        self._loads = loads
        self._hello = hello
        self._sessions: dict[int, _Session] = {}
        self._latest = 0
        send(Welcome(worker.served.info.id, worker.models()))
        loads.join(send)

    @classmethod
    def connect(cls, worker: Worker, loads: Loads, hello: Hello, metadata: Mapping[str, str], send: Send) -> WorkerPeer:
        """A peer for a stream that begins. Raises Unauthenticated."""
        worker.authenticate(metadata)
        return cls(worker, loads, hello, send)

    def receive(self, frame: UpFrame) -> None:
        """Takes a frame; a TiermeshError ends the frame's session."""
        if isinstance(frame, Open):
            known = self._sessions.get(frame.session)
            if known is None or frame.attempt > known.opening.attempt:
                self._guard(frame.session, lambda: self._open(frame))
        elif isinstance(frame, Ask | Close):
            session = self._sessions.get(frame.session)
            if session is None and frame.session > self._latest:
                raise InvalidRequest.field("session", f"{frame.session} was never opened")
            if session is None or frame.attempt < session.opening.attempt:
                return
            if isinstance(frame, Close):
                self.end(session, frame.reason.value)
            else:
                self._guard(frame.session, lambda: self._ask(session, frame))

    async def closed(self) -> None:
        """The stream is gone, and with it all its sessions."""
        self._loads.leave(self.send)
        for session in list(self._sessions.values()):
            self.end(session, FinishReason.CANCELLED.value)

    def end(self, session: _Session, outcome: str) -> None:
        """Forgets a session and frees its sequence, if it still has one."""
        session.closed = True
        if self._sessions.get(session.opening.session) is session:
            del self._sessions[session.opening.session]
        self.worker.engine.cancel(session.number)
        self.worker.metrics.finished(session.opening.mode.value, outcome)

    def _guard(self, session: int, action: Callable[[], None]) -> None:
        """A fault of a frame ends its session here too, not only at the other side."""
        try:
            action()
        except TiermeshError as error:
            if known := self._sessions.get(session):
                self.end(known, error.reason)
            raise

    def _open(self, frame: Open) -> None:
        self._latest = max(self._latest, frame.session)
        if known := self._sessions.get(frame.session):
            self.end(known, FinishReason.CANCELLED.value)
        session = _Session(self, frame, self._submission(frame), position=len(frame.delivered_ids))
        load = self.worker.engine.load
        place = load.waiting + 1 if load.running >= load.slots else 0
        session.number = self.worker.engine.submit(session.submission, session.take)
        self._sessions[frame.session] = session
        tier = self.worker.engine.tiers.named(frame.request.tier)
        self.send(Accepted(frame.session, frame.attempt, place, tier, self.worker.served.info.id))

    def _submission(self, frame: Open) -> Submission:
        """The sequence of an open. Raises what is wrong with it."""
        served, request = self.worker.served, frame.request
        self.worker.admit(request.model)
        check_request(request, served.limits)
        verify = frame.mode is SessionMode.VERIFY
        theirs = self._hello.digests.tokenizer
        if (verify or frame.delivered_ids) and theirs not in ("", served.info.digests.tokenizer):
            raise InvalidRequest.field("hello.digests.tokenizer", "differs from this worker's: no ids can be exchanged")
        self._check_ids("delivered_ids", frame.delivered_ids)
        if len(frame.delivered_ids) > request.max_tokens:
            raise InvalidRequest.field("delivered_ids", f"hold more than max_tokens {request.max_tokens} ids")
        prompt = served.text.encode_prompt(request.prompt)
        left = [s for s in (frame.deadline_left_s, request.deadline_s) if s is not None]
        return replace(
            submission_of(request, prompt, Job.VERIFY if verify else Job.GENERATE, served),
            tenant=frame.tenant,
            deadline_s=min(left, default=None),
            delivered_ids=frame.delivered_ids,
            delivered_bytes=frame.delivered_bytes,
        )

    def _ask(self, session: _Session, frame: Ask) -> None:
        if frame.attempt > session.opening.attempt:
            raise InvalidRequest.field("attempt", f"{frame.attempt} was never opened")
        if session.opening.mode is not SessionMode.VERIFY or session.handed_over:
            raise InvalidRequest.field("session", "generates by itself and takes no asks")
        if frame.position < session.position or (session.asked and frame.position == session.position):
            return
        if session.asked or frame.position > session.position:
            raise InvalidRequest.field("position", f"{frame.position} is ahead of the answer's {session.position} ids")
        self._check_ids("alone_ids", frame.alone_ids)
        self._check_ids("draft_ids", frame.draft_ids)
        # One more than max_tokens: the id that ends the text is no part of the answer.
        room = session.submission.max_tokens + 1 - session.position
        if len(frame.alone_ids) + len(frame.draft_ids) > room:
            raise InvalidRequest.field("draft_ids", f"go past max_tokens; there is room for {room} ids")
        session.asked = frame
        session.asks += 1
        session.handed_over = frame.hand_over
        self.worker.engine.ask(session.number, frame.alone_ids, frame.draft_ids, frame.hand_over)

    def _check_ids(self, field: str, ids: tuple[int, ...]) -> None:
        """An id outside the vocabulary must never reach the embedding."""
        size = self.worker.served.info.vocab_size
        wrong = next((i for i in ids if not 0 <= i < size), None)
        if wrong is not None:
            raise InvalidRequest.field(field, f"id {wrong} is outside the vocabulary of {size}")
