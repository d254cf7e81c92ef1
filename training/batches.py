"""Training text as batches: commands padded in rows of like length, code as windows of one long stream.

Every batch follows from its number and a seed alone, so a run that stops goes on where it was.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from .commands import Command, Split, generate
from .tokenizer import EOS, PAD

_LEVELS = (1, 2, 2, 2, 3, 3, 3, 3)
"""Drawn evenly from these: level 1 is learnt (held out, 98 % exact) when level 2 stands at 48 %."""
PROMPT_WEIGHT = 0.1
"""Loss weight of a command's own words: their slots are drawn at random and can't be predicted."""


@dataclass(frozen=True, slots=True)
class Batch:
    """`ids` [rows, length] int64 and the loss `weights` [rows, length − 1] of the tokens that follow."""

    ids: Tensor
    weights: Tensor


def encode_command(tokenizer: Tokenizer, command: Command) -> tuple[list[int], int]:
    """Ids of `<|bos|>{text}\\n{json}<|eos|>` and how many of them are the prompt (with its newline)."""
    prompt = tokenizer.encode(command.text + "\n").ids
    return [*prompt, *tokenizer.encode(command.truth, add_special_tokens=False).ids, EOS], len(prompt)


def command_batches(tokenizer: Tokenizer, split: Split, seed: int, tokens: int, skip: int = 0) -> Iterator[Batch]:
    """Endless batches of about `tokens` ids with padding, the first `skip` left out without being built."""
    number = chunk = 0
    while True:
        commands = generate(split, seed * 100_003 + chunk, _LEVELS)
        rows = sorted((encode_command(tokenizer, next(commands)) for _ in range(512)), key=lambda row: len(row[0]))
        groups = _groups([len(ids) for ids, _ in rows], tokens)
        random.Random(chunk).shuffle(groups)
        for group in groups:
            if number >= skip:
                yield _padded([rows[index] for index in group])
            number += 1
        chunk += 1


def _groups(lengths: Sequence[int], tokens: int) -> list[list[int]]:
    """Consecutive rows that fit `tokens` ids when padded to the longest; lengths come sorted."""
    groups: list[list[int]] = [[]]
    for index, length in enumerate(lengths):
        if groups[-1] and (len(groups[-1]) + 1) * length > tokens:
            groups.append([])
        groups[-1].append(index)
    return groups


def _padded(rows: Sequence[tuple[list[int], int]]) -> Batch:
    length = max(len(ids) for ids, _ in rows)
    ids = torch.full((len(rows), length), PAD)
    weights = torch.zeros(len(rows), length - 1)
    for row, (row_ids, prompt) in enumerate(rows):
        ids[row, : len(row_ids)] = torch.tensor(row_ids)
        weights[row, : prompt - 2] = PROMPT_WEIGHT
        weights[row, prompt - 2 : len(row_ids) - 1] = 1.0  # from the newline on, so that a prompt without one gets it
    return Batch(ids, weights)


def code_stream(tokenizer: Tokenizer, texts: Sequence[str], limit: int) -> np.ndarray:
    """All texts as `<|bos|>{source}<|eos|>`, one after the other in a shuffled order: uint16 [up to about limit]."""
    order = list(texts)
    random.Random(0).shuffle(order)
    ids: list[int] = []
    for start in range(0, len(order), 64):
        for encoding in tokenizer.encode_batch(order[start : start + 64]):
            ids += [*encoding.ids, EOS]
        if len(ids) >= limit:
            break
    return np.array(ids, np.uint16)


def code_batches(stream: np.ndarray, seed: int, rows: int, length: int, skip: int = 0) -> Iterator[Batch]:
    """Endless batches of windows of the stream in a shuffled order, each window once per pass."""
    windows = (len(stream) - 1) // length
    if windows < rows:
        raise ValueError(f"{len(stream)} tokens don't fill {rows} windows of {length}")
    number, passed = skip, -1
    order: list[int] = []
    while True:
        epoch, place = divmod(number, windows // rows)
        if epoch != passed:
            order, passed = list(range(windows)), epoch
            random.Random(f"{seed}/{epoch}").shuffle(order)
        chosen = order[place * rows : (place + 1) * rows]
        ids = np.stack([stream[window * length : (window + 1) * length] for window in chosen]).astype(np.int64)
        yield Batch(torch.from_numpy(ids), torch.ones(rows, length - 1))
        number += 1
