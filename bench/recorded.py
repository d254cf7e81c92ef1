"""The deployed edge and the cloud model in this process, both greedy. What was computed once is kept.

Streams of other orders, bounds and labels ask the same questions again, so that the models answer each only once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import LlamaForCausalLM

from ..common.frames import Accepted, Ask, Close, Hello, Open, UpFrame, Verdict, Welcome
from ..common.model_dir import digests
from ..common.relay_link import RelayLink
from ..common.types import ModelInfo, Sampling
from ..edge.drafting import Doubt
from ..edge.labelling import Task
from ..edge.measuring import Decoder
from ..edge.units import Unit
from ..training.calibrate import TorchLabeller

Ids = tuple[int, ...]


class Pair:
    """Units of the edge, and choices of the cloud, after any beginning of an answer."""

    def __init__(self, directory: Path) -> None:
        """`directory` holds `edge` and `cloud`. Raises ModelDirError."""
        self.decoder = Decoder(directory / "edge")
        cloud = LlamaForCausalLM.from_pretrained(directory / "cloud", dtype=torch.float32)
        shapes = self.decoder.artifact.architecture
        self.info = ModelInfo("cloud", digests(directory / "cloud"), shapes.max_length, shapes.vocab)
        self._labeller = TorchLabeller(cloud)
        self._units: dict[tuple[Ids, int], Unit] = {}
        self._choices: dict[Ids, Ids] = {}

    def close(self) -> None:
        """Ends the edge model's thread."""
        self.decoder.close()

    async def unit(self, prompt: Ids, known: Ids, room: int) -> Unit:
        """What the edge drafts after `known` (prompt and answer)."""
        if (known, room) not in self._units:
            draft = self.decoder.draft(Task(prompt, Sampling()))
            try:
                self._units[known, room] = await draft.unit(known, room)
            finally:
                draft.close()
        return self._units[known, room]

    async def choices(self, prompt: Ids, answer: Ids) -> Ids:
        """What the cloud takes at each place of an answer, and behind it: one more id than `answer`."""
        ids = (*prompt, *answer, 0)  # of the last id only the place counts
        if ids not in self._choices:
            self._choices[ids] = tuple(await self._labeller.choices(ids, len(prompt), Sampling()))
        return self._choices[ids]


class RecordedDraft:
    """A `Draft` of one answer."""

    def __init__(self, pair: Pair, prompt: Ids) -> None:
        self.prefill_s = self.decode_s = 0.0
        self.tokens = 0
        self._pair = pair
        self._prompt = prompt

    async def unit(self, known: Sequence[int], room: int, doubt: Doubt | None = None) -> Unit:
        """The next unit; nobody is told of doubts, for there is no time to gain."""
        return await self._pair.unit(self._prompt, tuple(known), room)

    def close(self) -> None:
        """Holds nothing."""


class RecordedCloud(RelayLink):
    """A link to the cloud that ends in this process: sessions that verify, and nothing else."""

    def __init__(self, pair: Pair) -> None:
        super().__init__("this process", Hello("bench"))
        self.welcome = Welcome("cloud", (pair.info,))
        self._connected.set()
        self._pair = pair
        self._answers: dict[int, tuple[Ids, Ids]] = {}
        """By session, the prompt and the answer as far as it is certain."""
        self._verdicts: set[asyncio.Task[None]] = set()

    def _send(self, frame: UpFrame) -> None:
        if isinstance(frame, Open):
            prompt = frame.request.prompt
            assert isinstance(prompt, tuple), "streams ask with ids"
            self._answers[frame.session] = tuple(i for i in prompt if isinstance(i, int)), frame.delivered_ids
            self._take(Accepted(frame.session, frame.attempt))
        elif isinstance(frame, Ask):
            task = asyncio.create_task(self._verify(frame))
            self._verdicts.add(task)
            task.add_done_callback(self._verdicts.discard)
        elif isinstance(frame, Close):
            self._answers.pop(frame.session, None)

    async def _verify(self, ask: Ask) -> None:
        """The verdict of a worker: what stands of the draft, its own id behind it, and labels of what was shown."""
        prompt, known = self._answers[ask.session]
        given = (*known, *ask.alone_ids)
        choices = await self._pair.choices(prompt, given + ask.draft_ids)
        drafts, own = ask.draft_ids, choices[len(given) :]
        stands = next((i for i, token in enumerate(drafts) if token != own[i]), len(drafts))
        ended = stands > 0 and drafts[stands - 1] in self._pair.decoder.end_ids
        following = None if ended else own[stands]
        self._answers[ask.session] = prompt, (*given, *drafts[:stands], *(() if ended else own[stands : stands + 1]))
        labels = choices[len(known) : len(given)]
        self._take(Verdict(ask.session, ask.attempt, len(given), stands, following, labels))
