"""transformers on the same weights and requests: `generate` on a padded batch, and its continuous batching."""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence as Many
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch

from tiermesh.common.errors import TiermeshError

from .engine_served import Request

CACHES = ("dynamic", "static")

_PAGES, _STEP_TOKENS = 64, 512
"""Of continuous batching on a CPU: room for all that runs here."""
_PATIENCE_S = 120.0


def _load(directory: Path, dtype: torch.dtype, device: str, **more: Any) -> Any:
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    return transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=dtype, **more).eval().to(device)


class Generate:
    """Eager `generate`, greedy; it goes on for all streams until the longest has ended."""

    def __init__(self, directory: Path, cache: str, dtype: torch.dtype = torch.float32, device: str = "cpu") -> None:
        """`cache` is one of CACHES."""
        self._model = _load(directory, dtype, device)
        self._settings = copy.deepcopy(self._model.generation_config)
        self._settings.update(do_sample=False, eos_token_id=None, cache_implementation=cache, disable_compile=True)

    def rate(self, requests: Many[Request]) -> float:
        """Answer tokens that were asked for, per second; prompts are padded on the left."""
        longest = max(len(prompt) for prompt, _ in requests)
        most = max(tokens for _, tokens in requests)
        padding = [longest - len(prompt) for prompt, _ in requests]
        rows = [[0] * pad + list(prompt) for pad, (prompt, _) in zip(padding, requests, strict=True)]
        device = self._model.device
        ids = torch.tensor(rows, device=device)
        mask = torch.arange(longest, device=device) >= torch.tensor(padding, device=device)[:, None]
        began = time.perf_counter()
        with torch.inference_mode():
            out = self._model.generate(
                ids, attention_mask=mask.long(), generation_config=self._settings, max_new_tokens=most
            )
        took = time.perf_counter() - began
        assert out.shape[1] == longest + most
        return sum(tokens for _, tokens in requests) / took


class Continuous:
    """Continuous batching, greedy, with its manager kept running; `with` ends it."""

    def __init__(
        self,
        directory: Path,
        streams: int,
        dtype: torch.dtype = torch.float32,
        device: str = "cpu",
        pages: int = _PAGES,
        step_tokens: int = _STEP_TOKENS,
    ) -> None:
        """`pages` of 256 tokens each; left to itself it fills 60 % of the memory, in a minute and a half on a CPU."""
        import transformers

        settings = transformers.GenerationConfig(do_sample=False, eos_token_id=-1, pad_token_id=0)
        config = transformers.ContinuousBatchingConfig(
            num_blocks=pages,
            max_batch_tokens=step_tokens,
            max_requests_per_batch=streams,
            # The same prompts come again in every pair; neither side may find them.
            allow_block_sharing=False,
        )
        model = _load(directory, dtype, device, attn_implementation="sdpa")
        self._manager = model.init_continuous_batching(settings, continuous_batching_config=config)
        self._manager.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._manager.stop(block=True)

    def rate(self, requests: Many[Request]) -> float:
        """Answer tokens per second of requests that come at once. TiermeshError when it fails on one."""
        began = time.perf_counter()
        for prompt, tokens in requests:
            self._manager.add_request(list(prompt), max_new_tokens=tokens)
        left, made = len(requests), 0
        while left:
            result = self._manager.get_result(timeout=1)
            if result is None:
                if not self._manager.is_running() or time.perf_counter() - began > _PATIENCE_S:
                    raise TiermeshError("continuous batching of transformers gave up or took too long")
            elif result.is_finished():
                if result.error is not None:
                    raise TiermeshError(f"continuous batching of transformers: {result.error}")
                left -= 1
                made += len(result.generated_tokens)
        took = time.perf_counter() - began
        assert made == sum(tokens for _, tokens in requests)
        return made / took
