"""The next hop up: one relay stream that heals itself, what it serves, and usage that waits for it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from ..common.errors import ModelNotFound, TiermeshError, Unavailable
from ..common.frames import Hello, Policy, UsageReport, Welcome
from ..common.relay_link import LinkEvents, RelayLink
from ..common.types import Digests, ModelInfo

_KEPT_REPORTS = 10_000
"""Usage reports kept while the link is down, about 3 MB; the oldest go first."""


class Upstream:
    """The router (or a worker) as the edge node sees it."""

    def __init__(
        self,
        address: str,
        name: str,
        digests: Digests,
        node_key: str | None,
        on_policy: Callable[[Policy], None],
    ) -> None:
        self._digests = digests
        self._reports: deque[UsageReport] = deque(maxlen=_KEPT_REPORTS)
        self.models: tuple[ModelInfo, ...] = ()
        """What was served when the link was last up."""
        metadata = [("authorization", f"Bearer {node_key}")] if node_key else []
        events = LinkEvents(welcome=self._welcomed, policy=on_policy)
        self.link = RelayLink(address, Hello(name, digests), metadata=metadata, events=events)

    @property
    def connected(self) -> bool:
        """Whether the next hop can be asked now."""
        return self.link.connected

    @property
    def cloud_step_s(self) -> float | None:
        """What the next hop says of its steps, in seconds; None when it says nothing."""
        load = self.link.load
        return load.step_s if load and load.step_s > 0 else None

    def pool(self, model: str) -> ModelInfo | None:
        """The model that a request names, or the default one; None while nothing is served.

        Raises ModelNotFound when something is served, but not this.
        """
        found = self.find(model)
        if found or not self.models:
            return found
        names = ", ".join(served.id for served in self.models)
        raise ModelNotFound(f"no model {model!r} is served here; there is {names}")

    def find(self, model: str) -> ModelInfo | None:
        """The model of this name, or for "" the default one; None when it isn't served."""
        return next((served for served in self.models if model in ("", served.id)), None)

    def speaks(self, pool: ModelInfo) -> bool:
        """Whether token ids may be exchanged with a pool: text and chats become the same ids on both sides."""
        theirs = pool.digests
        return (theirs.tokenizer, theirs.template) == (self._digests.tokenizer, self._digests.template)

    def why_down(self) -> Unavailable:
        """The error for a request that needs the next hop while it can't be reached."""
        cause = self.link.error
        detail = f": {cause.message}" if isinstance(cause, TiermeshError) else ""
        return Unavailable(f"the router can't be reached from this edge node{detail}", retry_after_s=1.0)

    def report(self, report: UsageReport) -> None:
        """Tells the router what was answered, now or when it can be reached again."""
        self._reports.append(report)
        if self.connected:
            self._flush()

    async def run(self) -> None:
        """Keeps the link up until cancelled."""
        await self.link.run()

    def _welcomed(self, welcome: Welcome) -> None:
        if welcome.models:
            self.models = welcome.models
        self._flush()

    def _flush(self) -> None:
        while self._reports:
            self.link.report(self._reports.popleft())
