"""The exact key of a request. Leaving anything out that can change the answer would be a wrong answer."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass

from ..common.types import ChatMessage, Digests, Prompt, Request, Sampling

SCHEMA = 2
"""Raised whenever the canonical form or the entry changes, so that old entries are never read as new ones."""

CLOUD_QUALITY = "cloud"
"""Quality class of answers that the cloud chose whole; they serve any quality."""


@dataclass(frozen=True, slots=True)
class CacheKey:
    """Tenants never share: the tenant stands beside the digest, and in it."""

    tenant: str
    digest: str
    """SHA-256 of the canonical request, hex."""
    model: str = ""
    """Digest of the model that answers: what a purge by model goes by."""


def cacheable(request: Request, seed_given: bool) -> bool:
    """Whether the answer is a function of the request: greedy, or sampled with the client's own seed.

    Answers with top_logprobs are not kept: at 20 a token they take ten times the room of all the rest.
    """
    repeatable = request.sampling.greedy or (seed_given and request.sampling.seed is not None)
    return repeatable and not request.top_logprobs


def exact_key(request: Request, tenant: str, digests: Digests, quality: str = CLOUD_QUALITY) -> CacheKey:
    """The key of a request whose model has these digests.

    `quality` is the class of answers that share an entry: `CLOUD_QUALITY`, or whatever else decides what an edge
    shows (quality, δ, digests of the edge model and its calibration).
    """
    canonical = [
        SCHEMA,
        tenant,
        [digests.model, digests.tokenizer, digests.template],
        _prompt(request.prompt),
        _sampling(request.sampling),
        request.max_tokens,
        sorted(set(request.stop)),
        sorted(set(request.stop_ids)),
        request.logprobs,
        request.top_logprobs,
        quality,
    ]
    # Not as ASCII: JSON's escapes for a character beyond U+FFFF are those of two lone surrogates.
    text = json.dumps(canonical, ensure_ascii=False, separators=(",", ":"))
    return CacheKey(tenant, hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest(), digests.model)


def _prompt(prompt: Prompt) -> list[object]:
    """The kind is part of the form: the text "1" is not the id 1."""
    if isinstance(prompt, str):
        return ["text", prompt]
    if prompt and isinstance(prompt[0], ChatMessage):
        return ["messages", [[m.role, m.content] for m in prompt if isinstance(m, ChatMessage)]]
    return ["ids", list(prompt)]


def _sampling(sampling: Sampling) -> list[object]:
    """Filters and seed play no part in a greedy answer; bias and penalties do. Floats as hex: no digit is lost."""
    penalties = [sampling.repetition_penalty, sampling.presence_penalty, sampling.frequency_penalty]
    form: list[object] = [_number(value) for value in penalties]
    form.append([[i, _number(value)] for i, value in sampling.logit_bias])
    if not sampling.greedy:
        form += [_number(value) for value in (sampling.temperature, sampling.top_p, sampling.min_p)]
        form += [sampling.top_k, sampling.seed]
    return form


def _number(value: float) -> str:
    """One form for one number: 1 is 1.0, and −0.0 is 0.0."""
    return (float(value) + 0.0).hex()
