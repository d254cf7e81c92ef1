"""How large an order is thought to be, as limits and schedule count it."""

from __future__ import annotations

from .estimates import actual_cost
from .jobs import Job
from .orders import Order
from .parts import Parts


def expected_tokens(parts: Parts, order: Order, model: str) -> tuple[int, float]:
    """Of its prompt, and of its answer."""
    request, estimates = order.request, parts.estimates
    prompt = estimates.prompt_tokens(request.prompt)
    return prompt, estimates.output_tokens(order.tenant.name, model, request.max_tokens)


def job_of(parts: Parts, order: Order, prompt: int, expected: float, number: int, deadline: float) -> Job:
    """The whole answer as a job of the schedule."""
    estimates = parts.estimates
    reads = estimates.uncached_tokens(order.tenant.name, prompt)
    batches = parts.registry.batches
    service_s = estimates.service_s(reads, expected, batches)
    return Job(
        number=number,
        tenant=order.tenant.name,
        tier=order.request.tier,
        cost=actual_cost(reads, expected),
        deadline=deadline,
        service_s=service_s,
        first_s=estimates.service_s(reads, 1.0, batches),
        identity=order.identity,
        attained=estimates.attained(order.request.prompt),
        slow_s=estimates.slow_s(order.tenant.name, order.request.tier, service_s),
    )
