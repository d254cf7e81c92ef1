"""Edge nodes: each connected stream is a peer, with the sessions that it has open."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from ..common.config_types import NodeConfig, TenantConfig
from ..common.errors import Draining, Forbidden, InvalidRequest, NoWorkers, Overloaded
from ..common.frames import Ask, Close, CloseReason, DownFrame, Hello, Open, UpFrame, UsageReport, Welcome
from ..common.telemetry import get_logger
from ..common.validate import Limits, check_request
from .answers import Answers
from .node_session import NodeSession
from .parts import Parts
from .policy import policy_for
from .tenants import Directory

_log = get_logger()

_MAX_SESSIONS = 1024
"""Sessions of one node at once."""


class NodePeer:
    """One connected edge node; a `RelayPeer`."""

    def __init__(self, node: NodeConfig, nodes: Nodes, send: Callable[[DownFrame], None]) -> None:
        self.node = node
        self._nodes = nodes
        self._send = send
        self._sessions: dict[int, NodeSession] = {}
        self._ending: set[asyncio.Task[None]] = set()

    @property
    def sessions(self) -> int:
        """Sessions that are open."""
        return len(self._sessions)

    def receive(self, frame: UpFrame) -> None:
        """Takes a frame; an error raised here ends the frame's session, not the stream."""
        if isinstance(frame, Open):
            self._open(frame)
        elif isinstance(frame, UsageReport):
            self._nodes.report(self.node, frame)
        elif isinstance(frame, Hello):
            raise InvalidRequest("hello comes once, as the first frame")
        elif (session := self._sessions.get(frame.session)) is not None and session.attempt == frame.attempt:
            if isinstance(frame, Ask):
                session.ask(frame)
            elif isinstance(frame, Close):
                self._end(frame.session, frame.reason)

    def tell(self, welcome: Welcome, directory: Directory) -> None:
        """Sends what is served and what the node may do; its tenants may have changed."""
        self._send(welcome)
        self._send(policy_for(directory, self.node))

    async def end_all(self) -> None:
        """Ends all sessions, and tells nobody."""
        for number in list(self._sessions):
            self._end(number, CloseReason.CANCELLED)
        await asyncio.gather(*self._ending)

    async def closed(self) -> None:
        """The stream is gone: ends all its sessions."""
        self._nodes.gone(self)
        await self.end_all()

    def _open(self, frame: Open) -> None:
        before = self._sessions.get(frame.session)
        if before is not None and frame.attempt <= before.attempt:
            return
        if before is not None:
            self._end(frame.session, CloseReason.CANCELLED)
        if len(self._sessions) >= _MAX_SESSIONS:
            raise Overloaded(f"this node has {_MAX_SESSIONS} sessions open; try again soon", retry_after_s=1.0)
        tenant = self._nodes.admit(self.node, frame)
        session = NodeSession(frame, tenant, self._nodes.directory, self._nodes.parts, self._nodes.answers, self._send)
        self._sessions[frame.session] = session
        session.start(lambda: self._forget(frame.session, session))

    def _end(self, number: int, reason: CloseReason) -> None:
        session = self._sessions.pop(number)
        task = asyncio.create_task(session.cancel(reason))
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    def _forget(self, number: int, session: NodeSession) -> None:
        if self._sessions.get(number) is session:
            del self._sessions[number]


class Nodes:
    """All connected edge nodes."""

    def __init__(self, directory: Directory, parts: Parts, answers: Answers, welcome: Callable[[], Welcome]) -> None:
        self.directory = directory
        self.parts = parts
        self.answers = answers
        self.draining = False
        self._welcome = welcome
        self._peers: set[NodePeer] = set()

    @property
    def sessions(self) -> dict[str, int]:
        """Sessions by node."""
        counts: dict[str, int] = {}
        for peer in tuple(self._peers):
            counts[peer.node.name] = counts.get(peer.node.name, 0) + peer.sessions
        return counts

    def connect(self, hello: Hello, credential: str, send: Callable[[DownFrame], None]) -> NodePeer:
        """A new stream. Raises Unauthenticated or Draining."""
        if self.draining:
            raise Draining("this router is stopping; connect to another one", retry_after_s=1.0)
        node = self.directory.node(hello.name, credential)
        peer = NodePeer(node, self, send)
        self._peers.add(peer)
        _log.info("node_up", node=node.name)
        peer.tell(self._welcome(), self.directory)
        return peer

    def gone(self, peer: NodePeer) -> None:
        """A stream has ended."""
        self._peers.discard(peer)
        _log.info("node_down", node=peer.node.name)

    def tell_all(self) -> None:
        """Renews every node's welcome and policy."""
        for peer in self._peers:
            peer.tell(self._welcome(), self.directory)

    async def end_all(self) -> None:
        """Ends all sessions of all nodes without a word: a stream that breaks is one that they resume in the next."""
        await asyncio.gather(*(peer.end_all() for peer in self._peers))

    def reload(self, directory: Directory) -> None:
        """Other tenants, tiers or nodes from now on. Nodes that lost their place keep no tenants."""
        self.directory = directory
        known = {node.name: node for node in directory.mesh.router.nodes}
        for peer in self._peers:
            if directory.mesh.router.nodes_open:
                peer.node = NodeConfig(peer.node.name, "", tuple(directory.tenants))
            else:
                peer.node = known.get(peer.node.name, NodeConfig(peer.node.name, "", ()))
        self.tell_all()

    def admit(self, node: NodeConfig, frame: Open) -> TenantConfig:
        """The tenant that a node acts for. Raises Forbidden, Draining, NoWorkers, QuotaExceeded or InvalidRequest."""
        if self.draining:
            raise Draining("this router is stopping; try again", retry_after_s=1.0)
        if frame.tenant not in node.tenants:
            raise Forbidden(f"edge node {node.name!r} may not serve tenant {frame.tenant!r}")
        tenant = self.directory.tenant(frame.tenant)
        model = self.parts.registry.model
        if model is None:
            raise NoWorkers("no worker is ready; try again soon", retry_after_s=1.0)
        limits = Limits(max_context=model.max_context, vocab_size=model.vocab_size)
        check_request(frame.request, limits)
        self.parts.limits.check(tenant)
        return tenant

    def report(self, node: NodeConfig, report: UsageReport) -> None:
        """Usage of an answer that a node gave; of tenants that are not the node's it counts nothing."""
        if report.tenant not in node.tenants or report.tenant not in self.directory.tenants:
            _log.warning("usage_of_another_tenant", node=node.name, request_id=report.request_id)
            return
        self._count(node, report)
        if report.audits:
            return
        tokens = report.prompt_tokens + report.edge_tokens + report.cloud_tokens
        if report.edge_tokens + report.cloud_tokens == 0:
            tokens = 0  # answered from the node's cache
        self.parts.limits.charge(self.directory.tenants[report.tenant], tokens)
        self.parts.metrics.tokens("edge", report.edge_tokens)
        self.parts.metrics.tokens("cloud", report.cloud_tokens)
        self.parts.metrics.tokens("cache", report.cache_tokens)
        self.parts.metrics.units(report.alone, report.asks, report.handed_over)

    def _count(self, node: NodeConfig, report: UsageReport) -> None:
        """What became of tokens shown alone. Nodes that nobody configured share one name: they choose their own."""
        name = "" if self.directory.mesh.router.nodes_open else node.name
        self.parts.metrics.alone(name, report.alone_tokens, report.labelled_tokens, report.wrong_tokens)
        self.parts.metrics.audited(name, report.audits, report.audits_lost, report.audit_tokens)
