"""One session of an edge node: asks that are verified, or an answer that the cloud gives, whichever worker does it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import aclosing, suppress
from dataclasses import replace

from ..cache.entry import Entry
from ..common.config_types import TenantConfig
from ..common.errors import DeadlineExceeded, InternalError, InvalidRequest, TiermeshError
from ..common.frames import (
    Accepted,
    Ask,
    CloseReason,
    DownFrame,
    Open,
    RelayFinished,
    RelayTokens,
    SessionError,
    SessionMode,
    Verdict,
)
from ..common.telemetry import get_logger
from ..common.types import Origin, Started, Tokens
from .answers import Answers
from .dispatch import Place, Work
from .estimates import actual_cost
from .jobs import Job
from .orders import Order, order_of
from .parts import Parts
from .slots import Ticket
from .tenants import Directory

_log = get_logger()


class NodeSession:
    """Runs in a task of its own. Each ask is a job of its own in the schedule: between asks it holds no slot.

    An edge node that foresees an ask opens early, without one: then the worker reads the prompt while the node drafts.
    That is a job too.
    """

    def __init__(
        self,
        opening: Open,
        tenant: TenantConfig,
        directory: Directory,
        parts: Parts,
        answers: Answers,
        send: Callable[[DownFrame], None],
    ) -> None:
        asked = replace(opening.request, deadline_s=opening.deadline_left_s)
        now = parts.clock.now()
        clamped = directory.clamp(asked, tenant)
        # The edge may have drawn the seed itself; what nobody can ask for again is not worth keeping.
        self._order: Order = order_of(asked, clamped, tenant, now, seed_given=False, metered=False)
        self.attempt = opening.attempt
        self._session = opening.session
        self._mode = opening.mode
        self._parts = parts
        self._answers = answers
        self._send = send
        self._work = Work(
            self._order.request,
            tenant.name,
            lambda: self._order.deadline,
            ids=list(opening.delivered_ids),
            shown_bytes=opening.delivered_bytes,
        )
        self._asks: asyncio.Queue[Ask] = asyncio.Queue()
        self._asking = False
        """Whether an ask waits for its verdict."""
        self._place: Place | None = None
        self._ticket: Ticket | None = None
        self._reads = 0.0
        """What the job in progress has its worker read, in tokens."""
        self._attained = parts.estimates.attained(self._order.request.prompt)
        """Cost of the jobs that are done, and of earlier turns."""
        self._task: asyncio.Task[None] | None = None
        self._reason = CloseReason.CANCELLED

    def start(self, on_end: Callable[[], None]) -> None:
        """Begins; `on_end` is called when the session has ended by itself."""
        self._task = asyncio.create_task(self._run(on_end))

    async def cancel(self, reason: CloseReason) -> None:
        """Ends it from above; returns when worker and slot are free."""
        if self._task is not None:
            self._reason = reason
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def ask(self, frame: Ask) -> None:
        """A unit to verify. Raises InvalidRequest where it can't belong to this session."""
        if self._mode is not SessionMode.VERIFY:
            raise InvalidRequest("an ask came for a session that was opened to generate")
        if self._asking:
            raise InvalidRequest("an ask came before the last one was answered")
        if frame.position != len(self._work.ids):
            raise InvalidRequest.field("position", f"is {frame.position}, but {len(self._work.ids)} ids are known here")
        self._asking = True
        self._asks.put_nowait(frame)

    async def _run(self, on_end: Callable[[], None]) -> None:
        error: TiermeshError | None = None
        try:
            left_s = self._order.deadline - self._parts.clock.now()
            async with asyncio.timeout(left_s):
                await (self._verify() if self._mode is SessionMode.VERIFY else self._generate())
        except TimeoutError:
            error = DeadlineExceeded("the deadline passed before the answer was complete; allow more time")
        except TiermeshError as raised:
            error = raised
        except Exception:  # noqa: BLE001 - the top of a task; logged
            _log.exception("defect", task="node_session", request_id=self._order.request.request_id)
            error = InternalError("an internal error ended this session; the router's log has the details")
        finally:
            self._release_slot(0)
            if self._place is not None:
                self._place.close(self._reason)
            on_end()
        if error is not None:
            self._send(SessionError(self._session, self.attempt, error))

    async def _verify(self) -> None:
        """Ask by ask, until one hands over."""
        ask = await (self._read_ahead() if self._asks.empty() else self._asks.get())
        while True:
            await self._take_slot(len(ask.alone_ids) + len(ask.draft_ids), hand_over=ask.hand_over)
            before = len(self._work.ids)
            ended = await self._visit(ask)
            self._release_slot(max(0, len(self._work.ids) - before))
            if ended:
                return
            ask = await self._asks.get()

    async def _read_ahead(self) -> Ask:
        """Has a worker read the prompt before the first ask, which it returns.

        Nobody tells when the prompt was read: the slot is held for as long as that should take, or until the ask.
        """
        estimates, ask = self._parts.estimates, None
        prompt = estimates.prompt_tokens(self._order.request.prompt)
        await self._take_slot(0, hand_over=False)
        self._place = await self._parts.dispatcher.place(self._work, SessionMode.VERIFY)
        with suppress(TimeoutError):
            async with asyncio.timeout(estimates.workers.ttft_s(prompt, self._place.worker.address)):
                ask = await self._asks.get()
        self._release_slot(0)
        return ask or await self._asks.get()

    async def _visit(self, ask: Ask) -> bool:
        """Has a draft verified, and the answer finished if it hands over; True when the session is over."""
        frame = await self._verdict(ask)
        if isinstance(frame, Verdict):
            self._work.ids += [*ask.alone_ids, *ask.draft_ids[: frame.stands]]
            self._work.ids += [] if frame.next_id is None else [frame.next_id]
            self._work.barren = 0
            self._asking = ask.hand_over
            self._pass_on(frame)
            if not ask.hand_over:
                return False
            await self._stream()
        else:
            self._complete(frame)
        return True

    async def _verdict(self, ask: Ask) -> Verdict | RelayFinished:
        """Asks until a worker answers; another worker is told all ids and asked the same again."""
        dispatcher, work = self._parts.dispatcher, self._work
        broken = self._place is None
        while True:
            try:
                if broken:
                    self._place = await dispatcher.place(work, SessionMode.VERIFY, self._place)
                assert self._place is not None
                self._place.session.ask(len(work.ids), ask.draft_ids, ask.alone_ids, ask.hand_over)
                while not isinstance(frame := await self._place.session.receive(), Verdict | RelayFinished):
                    pass
                if self._place.worker.trial:
                    self._parts.registry.succeeded(self._place.worker)
                return frame
            except TiermeshError as error:
                dispatcher.failed(work, self._place, error)
                broken = True

    async def _stream(self) -> None:
        """The rest of a handed-over answer."""
        dispatcher, work = self._parts.dispatcher, self._work
        while True:
            assert self._place is not None
            try:
                frame = await self._place.session.receive()
            except TiermeshError as error:
                dispatcher.failed(work, self._place, error)
                self._place = await dispatcher.place(work, SessionMode.GENERATE, self._place)
                continue
            if isinstance(frame, RelayTokens):
                work.add(frame)
                self._pass_on(frame)
            elif isinstance(frame, RelayFinished):
                self._complete(frame)
                return

    def _complete(self, frame: RelayFinished) -> None:
        assert self._place is not None
        self._parts.dispatcher.done(self._place)
        self._pass_on(frame)

    async def _generate(self) -> None:
        """The whole answer like a client's; the rest of a begun one from the cache or the pool."""
        if not self._work.ids:
            await self._whole()
        elif (entry := await self._entry()) is not None:
            self._rest_of(entry)
        else:
            given = len(self._work.ids)
            await self._take_slot(given, hand_over=True)
            self._pass_on(await self._parts.dispatcher.answer(self._work, self._pass_on))
            self._release_slot(len(self._work.ids) - given)

    async def _whole(self) -> None:
        position = 0
        async with aclosing(self._answers.answer(self._order)) as events:
            async for ready in events:
                for event in ready:
                    if isinstance(event, Started):
                        self._send(Accepted(self._session, self.attempt, 0, event.tier, event.model))
                    elif isinstance(event, Tokens):
                        shown = event.ids, event.text, event.logprobs, event.origin, event.top_logprobs
                        self._pass_on(RelayTokens(0, 0, position, *shown))
                        position += len(event.ids)
                    else:
                        self._pass_on(RelayFinished(0, 0, event.reason, event.usage, event.timings))

    async def _entry(self) -> Entry | None:
        """The cached answer, if it begins with the very ids that were given."""
        model, order = self._parts.registry.model, self._order
        if model is None or not order.tenant.cache_exact or not order.shared:
            return None
        entry = await self._parts.store.get(order.key(model.digests))
        given = tuple(self._work.ids)
        return entry if entry is not None and entry.ids[: len(given)] == given else None

    def _rest_of(self, entry: Entry) -> None:
        given, shown = len(self._work.ids), self._work.shown_bytes
        text = entry.text.encode()[shown:].decode(errors="ignore")
        rest = RelayTokens(0, 0, given, entry.ids[given:], text, entry.logprobs[given:], Origin.CACHE)
        self._pass_on(rest)
        self._pass_on(RelayFinished(0, 0, entry.reason, entry.hit_usage()))

    def _pass_on(self, frame: RelayTokens | Verdict | RelayFinished) -> None:
        """Sends a frame under the node's own numbers."""
        self._send(replace(frame, session=self._session, attempt=self.attempt))

    async def _take_slot(self, reads: int, *, hand_over: bool) -> None:
        """Waits for a turn: a visit reads a few ids, and the prompt too when the session is new at its worker."""
        estimates, order = self._parts.estimates, self._order
        prompt = estimates.prompt_tokens(order.request.prompt) if self._place is None else 0
        output = self._expected_output if hand_over else 1.0
        self._reads = estimates.uncached_tokens(order.tenant.name, prompt) + reads
        batches = self._parts.registry.batches
        self._ticket = self._parts.slots.submit(
            Job(
                number=self._parts.slots.number(),
                tenant=order.tenant.name,
                tier=order.request.tier,
                cost=actual_cost(self._reads, output),
                deadline=order.deadline,
                service_s=estimates.service_s(self._reads, output, batches),
                first_s=estimates.service_s(self._reads, 1.0, batches),
                identity=order.identity,
                attained=self._attained,
            )
        )
        await self._ticket.wait()

    @property
    def _expected_output(self) -> float:
        model = self._parts.registry.model
        request, tenant = self._order.request, self._order.tenant.name
        return self._parts.estimates.output_tokens(tenant, model.id if model else "", request.max_tokens)

    def _release_slot(self, output: int) -> None:
        """After so many tokens of answer. A job that never ran, or broke off, counts what it had read for it."""
        if self._ticket is not None:
            cost = actual_cost(self._reads, output) if self._ticket.running else 0.0
            self._attained += cost
            self._ticket.release(cost)
            self._ticket = None
