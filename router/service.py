"""The front door: checks a request and hands it on. Serves clients (`Answerer`) and edge nodes (`RelayPeer`)."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from dataclasses import replace

from ..common.clock import Clock
from ..common.config_types import MeshConfig, TenantConfig
from ..common.errors import Draining, ModelNotFound, NoWorkers, TiermeshError
from ..common.frames import DownFrame, Hello, Welcome
from ..common.inference_servicer import Caller, bearer
from ..common.relay_server import RelayPeer
from ..common.router_status import ConfigStatus
from ..common.telemetry import get_logger
from ..common.types import Event, Finished, ModelInfo, Prompt, Request, ScoreRequest, Scores, Started
from ..common.validate import Limits, check_prompt_length, check_request, check_score_request
from .announced import LEASE_S
from .answers import Answers
from .core import Core
from .explain import Explainer
from .nodes import Nodes
from .operated import Operations
from .orders import Order, order_of
from .spacing import Spacing
from .unary import Unary

_log = get_logger()

FIRST_WORKER_GRACE_S = 2.0
"""How long a request waits for a first worker before it is refused: a worker restarts or reconnects in less."""

_LINGER_S = 0.02
"""How long Started waits for the first tokens, to be one message with them: each message costs 0.1 ms here, and the
same at the client."""


class RouterService:
    """Everything behind the ports of one router."""

    def __init__(self, mesh: MeshConfig, clock: Clock) -> None:
        self._core = Core(mesh, clock)
        self._clock = clock
        self._answers = Answers(self._core.parts)
        self._nodes = Nodes(self._core.directory, self._core.parts, self._answers, self._welcome)
        self._unary = Unary(self._core.parts)
        self._core.watch_nodes(lambda: self._nodes.sessions)
        self._core.listen(self._nodes.tell_all)
        self.metrics = self._core.metrics
        explainer = Explainer(self._core, self._answers, self._admit)
        self.operations = Operations(self._core, explainer, lambda: self.config)
        self.config = ConfigStatus()
        """What is in force; kept by `Reloader`."""
        self.metrics.watch_config(lambda: not self.config.fault, lambda: self.config.since)

    @property
    def ready(self) -> bool:
        """Whether a worker can take requests."""
        return self._core.parts.registry.any_usable and not self._nodes.draining

    def start(self, on_change: Callable[[], None]) -> None:
        """Connects to the workers; `on_change` is called when `ready` may have changed."""
        self._core.listen(on_change)
        self._core.start()

    def reload(self, mesh: MeshConfig) -> None:
        """Puts another configuration in force. Raises ConfigError for what needs a restart; nothing changes then."""
        self._core.check(mesh)
        directory = self._core.directory_of(mesh)
        self._core.reload(directory)
        self._nodes.reload(directory)

    def renew_policies(self) -> None:
        """Tells the nodes again what they may do, before it runs out."""
        self._nodes.tell_all()

    def announce(self, address: str, leaving: bool, metadata: Mapping[str, str]) -> float:
        """A worker is there, or leaves. Raises Unauthenticated, Forbidden, InvalidRequest or Overloaded."""
        self._core.directory.check_worker(bearer(metadata))
        (self._core.worker_left if leaving else self._core.worker_heard)(address)
        return LEASE_S

    def forget_workers(self) -> None:
        """Lets go of workers that have not announced themselves again."""
        self._core.forget_silent_workers()

    @property
    def spacing(self) -> Spacing:
        """Of the streams; to be told how much the thread works."""
        return self._core.spacing

    @property
    def drain_s(self) -> float:
        """What requests get to end when the router is told to stop."""
        return self._core.directory.mesh.router.drain_s

    @property
    def busy(self) -> int:
        """Requests and sessions of nodes that have not ended, and calls that wait or run beside them."""
        scheduler = self._core.parts.slots.scheduler
        jobs = scheduler.running + sum(map(scheduler.queued, self._core.directory.tiers))
        return max(jobs, self._answers.running + sum(self._nodes.sessions.values()))

    def drain(self) -> None:
        """Refuses what is new from now on."""
        self._nodes.draining = True

    async def end_all(self) -> None:
        """Ends what still runs, and tells clients so."""
        await self._nodes.end_all()
        self._answers.end_all(
            Draining("this router stopped before the answer was complete; try again", retry_after_s=1.0)
        )

    async def close(self) -> None:
        """Lets go of the workers."""
        await self._unary.close()
        await self._core.close()

    def connect(self, hello: Hello, metadata: Mapping[str, str], send: Callable[[DownFrame], None]) -> RelayPeer:
        """A stream of an edge node. Raises Unauthenticated or Draining."""
        return self._nodes.connect(hello, bearer(metadata), send)

    def authenticate(self, metadata: Mapping[str, str]) -> Caller:
        """The tenant of the key that was shown. Raises Unauthenticated."""
        return Caller(self._core.directory.authenticate(bearer(metadata)).name)

    async def generate(self, request: Request, caller: Caller) -> AsyncGenerator[tuple[Event, ...], None]:
        """Started, Tokens…, Finished, what is ready at once together; closing it cancels the work upstream."""
        tier, outcome, first, begun = "", "abandoned", None, self._clock.now()
        try:
            order = await self._admit(request, caller)
            tier = order.request.tier
            async with aclosing(self._answers.answer(order, _LINGER_S)) as events:
                async for ready in events:
                    if first is None and not isinstance(ready[-1], Started):
                        first = self._clock.now()
                    if isinstance(ready[-1], Finished):
                        outcome = ready[-1].reason.value
                    yield ready
        except TiermeshError as error:
            outcome = error.reason
            _log.info("refused", request_id=request.request_id, tenant=caller.tenant, reason=error.reason)
            raise
        finally:
            self.metrics.ended(tier, outcome)
            if first is not None and first - begun <= self._core.directory.tiers[tier].ttft_s:
                self.metrics.in_time(tier)

    async def score(self, request: ScoreRequest, caller: Caller) -> Scores:
        """Log-probabilities and own choices of a worker."""
        tenant = self._tenant(caller)
        tier = self._core.directory.tier(request.tier, tenant)
        model = await self._model(request.model, request.deadline_s)
        check_score_request(request, _limits(model))
        left_s = tier.deadline_s if request.deadline_s is None else min(request.deadline_s, tier.deadline_s)
        asked = replace(request, tier=tier.name)
        return await self._unary.score(asked, tenant, self._clock.now() + left_s, self._worker_token)

    async def count_tokens(self, prompt: Prompt, model: str, caller: Caller) -> int:
        """Tokens of the prompt."""
        self._tenant(caller)
        await self._model(model, None)
        return await self._unary.count_tokens(prompt, model, self._worker_token)

    def models(self) -> tuple[ModelInfo, ...]:
        """What the pool serves; nothing while no worker is ready."""
        return self._welcome().models

    async def cancel(self, request_id: str, caller: Caller) -> bool:
        """Whether a running request of this tenant was ended."""
        return self._answers.cancel(caller.tenant, request_id)

    async def _admit(self, request: Request, caller: Caller) -> Order:
        """The request, checked and held to its tenant."""
        tenant = self._tenant(caller)
        clamped = self._core.directory.clamp(request, tenant)
        model = await self._model(request.model, clamped.deadline_s)
        check_request(request, _limits(model))
        if not isinstance(request.prompt, str) and request.prompt and isinstance(request.prompt[0], int):
            check_prompt_length(len(request.prompt), request.max_tokens, _limits(model))
        return order_of(request, clamped, tenant, self._clock.now(), seed_given=request.sampling.seed is not None)

    def _tenant(self, caller: Caller) -> TenantConfig:
        if self._nodes.draining:
            raise Draining("this router is stopping; try again", retry_after_s=1.0)
        return self._core.directory.tenant(caller.tenant)

    async def _model(self, name: str, deadline_s: float | None) -> ModelInfo:
        """What is asked for. Raises NoWorkers after a short grace, or ModelNotFound."""
        registry = self._core.parts.registry
        if not registry.any_usable:
            grace_s = FIRST_WORKER_GRACE_S if deadline_s is None else min(FIRST_WORKER_GRACE_S, deadline_s)
            if not await registry.wait_usable(grace_s):
                raise NoWorkers("no worker is ready; try again soon", retry_after_s=1.0)
        model = registry.model
        if model is None or name not in ("", model.id):
            raise ModelNotFound(f"no model {name!r} is served here; there is {model.id if model else 'none'}")
        return model

    @property
    def _worker_token(self) -> str | None:
        return self._core.directory.mesh.router.worker_token

    def _welcome(self) -> Welcome:
        registry, mesh = self._core.parts.registry, self._core.directory.mesh
        served = registry.model is not None and registry.any_usable
        return Welcome(f"router@{mesh.name}", (registry.model,) if served and registry.model else ())


def _limits(model: ModelInfo) -> Limits:
    return Limits(max_context=model.max_context, vocab_size=model.vocab_size)
