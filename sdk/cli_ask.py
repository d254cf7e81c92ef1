"""Commands that ask a running mesh: generate, score."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from tiermesh.common.types import CacheControl, Quality, Tokens

from .answer import Answer, Gatherer
from .blocking import Client
from .requests import DEFAULT_MAX_TOKENS, GenerateOptions

Address = Annotated[str, typer.Option(envvar="TIERMESH_ADDRESS", help="Edge node, router or worker, as host:port.")]
Key = Annotated[str, typer.Option(envvar="TIERMESH_API_KEY", help="API key.", show_default=False)]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]

EDGE_ADDRESS = "127.0.0.1:7070"
DEMO_KEY = "demo-key"


def add_to(app: typer.Typer) -> None:
    """Puts the commands of this file into the application."""
    app.command()(generate)
    app.command()(score)


def generate(
    prompt: Annotated[str, typer.Argument(help="The text to continue.")],
    address: Address = EDGE_ADDRESS,
    key: Key = DEMO_KEY,
    tier: Annotated[str, typer.Option(help="Latency class; the tenant's default when left out.")] = "",
    quality: Annotated[Quality | None, typer.Option(help="How far the answer may differ from the cloud's.")] = None,
    max_tokens: Annotated[int, typer.Option(help="Length of the answer at most, in tokens.")] = DEFAULT_MAX_TOKENS,
    temperature: Annotated[float, typer.Option(help="0 takes the most probable token.")] = 0.0,
    top_p: Annotated[float, typer.Option(help="Keep the smallest set of tokens with this probability.")] = 1.0,
    seed: Annotated[int | None, typer.Option(help="Same seed, same text.")] = None,
    stop: Annotated[list[str] | None, typer.Option(help="String that ends the answer; may be repeated.")] = None,
    deadline_ms: Annotated[int | None, typer.Option(help="Milliseconds until the answer must be complete.")] = None,
    no_cache: Annotated[bool, typer.Option("--no-cache", help="Neither read nor write the cache.")] = False,
    as_json: AsJson = False,
) -> None:
    """Stream the continuation of a prompt.

    Example: tiermesh generate "dim the kitchen lights to 40 %" --quality bounded
    """
    options: GenerateOptions = {
        "tier": tier,
        "max_tokens": max_tokens,
        "temperature": temperature,
        "top_p": top_p,
        "stop": stop or (),
        "quality": quality,
        "cache": CacheControl.BYPASS if no_cache else CacheControl.USE,
    }
    if seed is not None:
        options["seed"] = seed
    if deadline_ms is not None:
        options["deadline_s"] = deadline_ms / 1000
    with Client(address, api_key=key) as client:
        gatherer, answer = Gatherer(), None
        for event in client.stream(prompt, **options):
            if isinstance(event, Tokens) and not as_json:
                print(event.text, end="", flush=True)
            answer = gatherer.add(event) or answer
    assert answer is not None
    print(json.dumps(answer_facts(answer)) if as_json else "")


def score(
    text: Annotated[str, typer.Argument(help="The text to score.")],
    address: Address = EDGE_ADDRESS,
    key: Key = DEMO_KEY,
    as_json: AsJson = False,
) -> None:
    """Log-probabilities (natural) of a text's tokens, each given those before it.

    Example: tiermesh score "turn on the lights" --json
    """
    with Client(address, api_key=key) as client:
        scores = client.score(text)
    if as_json:
        print(json.dumps({"token_ids": scores.token_ids, "logprobs": scores.logprobs}))
        return
    for token, logprob in zip(scores.token_ids[1:], scores.logprobs, strict=True):
        print(f"{token:>8} {logprob:>9.4f}")
    print(f"{len(scores.logprobs)} tokens, sum {sum(scores.logprobs):.4f}")


def answer_facts(answer: Answer) -> dict[str, Any]:
    """An answer as plain data; times in milliseconds."""
    usage = answer.usage
    return {
        "text": answer.text,
        "token_ids": answer.token_ids,
        "finish_reason": answer.finish_reason.value,
        "spans": [{"origin": s.origin.value, "tokens": s.tokens, "degraded": s.degraded} for s in answer.spans],
        "usage": {name: getattr(usage, name) for name in usage.__dataclass_fields__},
        "timings": [
            {"hop": t.hop, "stage": t.stage, "duration_ms": round(t.duration_s * 1000, 3)} for t in answer.timings
        ],
        "model": answer.model,
        "tier": answer.tier,
        "quality": answer.quality.value,
        "request_id": answer.request_id,
        "ttft_ms": round(answer.ttft_s * 1000, 3),
        "total_ms": round(answer.total_s * 1000, 3),
    }
