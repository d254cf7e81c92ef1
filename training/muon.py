"""Muon (K. Jordan et al., 2024): momentum whose update is made orthogonal, for the matrices inside the layers.

torch.optim.Muon exists, but iterates in bfloat16 everywhere, which CPUs without AMX or AVX512-BF16 emulate, and takes
one matrix at a time.
"""

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor

from .precision import compute_dtype

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def orthogonalize(matrices: Tensor, steps: int = 5) -> Tensor:
    """Nearest semi-orthogonal matrices, about: [n, rows, columns] by the quintic Newton–Schulz iteration.

    Singular values land between 0.7 and 1.2, which is enough for an update.
    """
    tall = matrices.size(1) > matrices.size(2)
    x: Tensor = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    a, b, c = _COEFFICIENTS
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonalized; scaled so that an update has the root mean square of AdamW's (0.2 lr)."""

    def __init__(self, parameters: Iterable[Tensor], lr: float, momentum: float = 0.95) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update all matrices; those of one shape together, in batched products."""
        for group in self.param_groups:
            shapes: dict[torch.Size, list[Tensor]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    shapes[parameter.shape].append(parameter)
            for shape, parameters in shapes.items():
                updates = torch.stack([self._momentum(parameter, group["momentum"]) for parameter in parameters])
                updates = updates.to(compute_dtype())
                scale = 0.2 * max(shape) ** 0.5 * group["lr"]
                for parameter, update in zip(parameters, orthogonalize(updates), strict=True):
                    parameter.add_(update, alpha=-scale)

    def _momentum(self, parameter: Tensor, momentum: float) -> Tensor:
        state = self.state[parameter]
        if "velocity" not in state:
            state["velocity"] = torch.zeros_like(parameter)
        gradient = parameter.grad
        assert gradient is not None, "only parameters with gradients come here"
        velocity: Tensor = state["velocity"].mul_(momentum).add_(gradient)
        return gradient + momentum * velocity
