"""One answer's session with the cloud: opened at the first visit, resumed after a broken stream."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..common.errors import InternalError
from ..common.frames import Accepted, CloseReason, Open, RelayFinished, RelayTokens, SessionMode, Verdict
from ..common.relay_link import LinkSession, RelayLink
from ..common.types import Request
from .answer import Answer


@dataclass(frozen=True, slots=True)
class Errand:
    """What every `Open` of one answer says."""

    request: Request
    """With seed, tier, quality and request id filled in."""
    tenant: str
    time_left: Callable[[], float | None]
    """Seconds to the deadline."""


class Visits:
    """Sends asks and hand-overs; every method raises Unavailable when the stream is down or breaks, and the session's
    own error when the cloud refuses. After Unavailable the next call opens the session anew, with a higher attempt."""

    def __init__(self, link: RelayLink, errand: Errand) -> None:
        self._link = link
        self._errand = errand
        self._session: LinkSession | None = None
        self._known = 0
        """Answer ids that the cloud has."""
        self.lost = True
        """Whether the session must be opened before it is used: at the beginning, and after any error."""
        self.prefilled = False
        """Whether the last visit was the first of its session, so that the cloud had to read the prompt for it."""
        self._closed = False
        self.begun = False
        """Whether the cloud was ever asked for something."""
        self._fresh = True
        """Whether the session has had no ask yet."""

    async def ask(self, answer: Answer, draft_ids: tuple[int, ...], hand_over: bool) -> Verdict | RelayFinished:
        """What the cloud says of a draft that follows all of `answer`."""
        if self.lost or (self._session is not None and self._session.failed):
            self._open(SessionMode.VERIFY, answer, tell_alone=self._known == 0)
        self.begun = True
        self.prefilled, self._fresh = self._fresh, False
        session = self._session
        assert session is not None
        alone = tuple(answer.ids[self._known :])
        verdict = await self._guarded(lambda: session.ask(self._known, draft_ids, alone, hand_over))
        if isinstance(verdict, RelayTokens):
            raise InternalError("the cloud sent tokens before it answered an ask")
        if isinstance(verdict, Verdict):
            if verdict.position != len(answer.ids) or verdict.stands > len(draft_ids):
                raise InternalError("the cloud's verdict does not belong to the ask")
            self._known = len(answer.ids) + verdict.stands + (verdict.next_id is not None)
        return verdict

    def foresee(self, answer: Answer) -> None:
        """Opens the session before its first ask, so that the cloud reads the prompt while the edge still drafts.

        Does nothing when the session is open already, or can't be opened now: the ask itself will tell. Nor after
        `close`: the model's thread may raise a doubt about an answer that was just cancelled.
        """
        if self._session is None and self._link.connected and not self._closed:
            self._open(SessionMode.VERIFY, answer, tell_alone=True)

    def generate(self, answer: Answer) -> None:
        """Opens a session in which the cloud finishes the answer."""
        self._open(SessionMode.GENERATE, answer, tell_alone=False)
        self.begun = True

    async def more(self) -> RelayTokens | RelayFinished:
        """What the cloud adds after a hand-over."""
        frame = await self._guarded(lambda: None)
        if isinstance(frame, Verdict):
            raise InternalError("the cloud sent a verdict that nobody asked for")
        return frame

    def close(self, reason: CloseReason) -> None:
        """Ends the session, if there is one, for good."""
        self._closed = True
        if self._session is not None:
            self._session.close(reason)

    def _open(self, mode: SessionMode, answer: Answer, tell_alone: bool) -> None:
        """Alone ids travel with the first ask, for their labels; after a loss they are told as delivered."""
        session = self._session or self._link.session()
        delivered = () if tell_alone else tuple(answer.ids)
        session.open(
            Open(
                session=0,
                attempt=0,
                request=self._errand.request,
                mode=mode,
                tenant=self._errand.tenant,
                delivered_ids=delivered,
                delivered_bytes=answer.shown_bytes if delivered else 0,
                deadline_left_s=self._errand.time_left(),
            )
        )
        self._session, self._known = session, len(delivered)
        self.lost, self._fresh = False, True

    async def _guarded(self, send: Callable[[], None]) -> Verdict | RelayTokens | RelayFinished:
        """Sends, and waits for the answer; any error ends the session."""
        assert self._session is not None
        answered = False
        try:
            send()
            while isinstance(frame := await self._session.receive(), Accepted):
                pass
            answered = True
        finally:
            self.lost = not answered
        assert isinstance(frame, Verdict | RelayTokens | RelayFinished)
        return frame
