"""What exits are distilled on: text that a model itself continued, and for the starter what the cloud learnt from too.

A draft is judged on the model's own text, which is not the text that people write: greedy code of a small model repeats
itself, and an answer that went wrong goes on from there.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, cast

import torch
from tokenizers import Tokenizer
from transformers import LlamaForCausalLM

from ..common.errors import ModelDirError
from ..common.model_dir import file_digest
from ..models import starter
from .batches import Batch, encode_command
from .commands import generate
from .corpus import read_corpus
from .heldout import code_prompts, command_prompts, read_heldout
from .pretrain import MIXES, mixed_batches, prepare

_ROWS = 64
_HELDOUT_SHARE = 10
"""Of the prompts of a file, one in so many is kept to measure on."""
_CODE_PROMPT, _CODE_STRIDE = 40, 997
_NEW = {"command": 72, "code": 64}


@dataclass(frozen=True, slots=True)
class Asked:
    """Prompts as ids, and how many tokens each is continued by at most."""

    prompts: Sequence[Sequence[int]]
    new: int


@dataclass(frozen=True, slots=True)
class Text:
    """Where the text of a distillation comes from."""

    kinds: tuple[str, ...]
    """Of the given text; empty when there is none but what the model says."""
    given: Callable[[int], Iterator[tuple[Batch, ...]]]
    """From a step on, one batch of each kind per step. Endless."""
    asked: tuple[Asked, ...]
    heldout: tuple[Asked, ...]


def starter_text(work: Path, tokenizer_file: Path) -> Text:
    """Commands and code of the starter's corpus. Raises ModelDirError when `tokenizer_file` is not the corpus's own."""
    tokenizer, stream = prepare(work)
    if file_digest(tokenizer_file) != file_digest(work / "tokenizer.json"):
        raise ModelDirError(f"{tokenizer_file} is not the starter's tokenizer: give the model's own text by --prompts")
    commands = [encode_command(tokenizer, command) for command in islice(generate("train", 5), 1200)]
    starts = range(0, len(stream) - _CODE_PROMPT, _CODE_STRIDE * 8)
    code = [stream[start : start + _CODE_PROMPT].tolist() for start in starts]
    kept = {prompt.prompt for prompt in read_heldout(starter() / "heldout.jsonl")}
    unseen = [p for p in command_prompts(400, 13) + code_prompts(read_corpus().heldout, 60, 13) if p.prompt not in kept]
    by_kind = {kind: [tokenizer.encode(p.prompt).ids[:_CODE_PROMPT] for p in unseen if p.kind == kind] for kind in _NEW}
    return Text(
        ("commands", "code"),
        partial(mixed_batches, tokenizer, stream, MIXES[0][1], 2),
        (Asked([ids[:prompt] for ids, prompt in commands], _NEW["command"]), Asked(code[:1200], _NEW["code"])),
        tuple(Asked(by_kind[kind], new) for kind, new in _NEW.items()),
    )


def file_text(path: Path, tokenizer_file: Path, longest: int, new: int = 128) -> Text:
    """Prompts of a file, one per line: plain, or JSON objects with `prompt`. For any model, by its own tokenizer.

    Prompts are cut at `longest` − `new` ids. Raises ModelDirError when there are too few to keep some apart.
    """
    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    texts = [_prompt_of(line) for line in lines]
    ids = [tokenizer.encode(text).ids[: max(1, longest - new)] for text in texts]
    if len(ids) < 2 * _HELDOUT_SHARE:
        raise ModelDirError(f"{path} has {len(ids)} prompts; give {2 * _HELDOUT_SHARE} or more, better thousands")
    learnt = [row for place, row in enumerate(ids) if place % _HELDOUT_SHARE]
    return Text((), _nothing, (Asked(learnt, new),), (Asked(ids[::_HELDOUT_SHARE], new),))


def _prompt_of(line: str) -> str:
    try:
        told = json.loads(line)
    except ValueError:
        return line
    return str(told["prompt"]) if isinstance(told, dict) and "prompt" in told else line


def _nothing(step: int) -> Iterator[tuple[Batch, ...]]:
    while True:
        yield ()


@torch.no_grad()
def continued(
    model: LlamaForCausalLM, asked: Asked, temperature: float = 0.0, rows: int = _ROWS, seed: int = 0
) -> Iterator[Batch]:
    """Batches of prompts of like length, continued by the model; only its own words, with their end, have weight."""
    ends = _ids(model.generation_config.eos_token_id)
    sampling: dict[str, Any] = {"do_sample": False}
    if temperature:
        torch.manual_seed(seed)
        sampling = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
    ordered = sorted(asked.prompts, key=len)
    for start in range(0, len(ordered), rows):
        group = ordered[start : start + rows]
        longest = max(map(len, group))
        given = torch.tensor([[0] * (longest - len(ids)) + list(ids) for ids in group])
        mask = torch.tensor([[0] * (longest - len(ids)) + [1] * len(ids) for ids in group])
        told = cast(Any, model).generate(
            given, attention_mask=mask, max_new_tokens=asked.new, pad_token_id=0, **sampling
        )
        answers = (_until(row, ends) for row in told[:, longest:].tolist())
        yield _right_padded([(list(ids), answer) for ids, answer in zip(group, answers, strict=True)])


def _ids(told: int | Sequence[int] | None) -> frozenset[int]:
    return frozenset([told] if isinstance(told, int) else told or ())


def _until(ids: list[int], ends: Iterable[int]) -> list[int]:
    """The ids up to the first end, which is kept."""
    first = min((ids.index(end) for end in ends if end in ids), default=len(ids))
    return ids[: first + 1]


def _right_padded(rows: Sequence[tuple[list[int], list[int]]]) -> Batch:
    """Prompts with their answers; padding behind them needs no mask, since nothing looks ahead."""
    length = max(len(prompt) + len(answer) for prompt, answer in rows)
    ids, weights = torch.zeros(len(rows), length, dtype=torch.int64), torch.zeros(len(rows), length - 1)
    for row, (prompt, answer) in enumerate(rows):
        ids[row, : len(prompt) + len(answer)] = torch.tensor(prompt + answer)
        weights[row, len(prompt) - 1 : len(prompt) + len(answer) - 1] = 1.0
    return Batch(ids, weights)
