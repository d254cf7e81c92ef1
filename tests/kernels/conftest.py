"""Triton kernels run here in Triton's interpreter, on tensors of the CPU; set before anything imports Triton."""

import functools
import os
from typing import Any

import pytest
import torch

GPU = torch.cuda.is_available()
if not GPU:
    os.environ["TRITON_INTERPRET"] = "1"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("gpu") and not GPU:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(scope="session")
def device() -> torch.device:
    """Where the kernels run: a GPU where there is one."""
    pytest.importorskip("triton", reason="no Triton on this system: the kernels' references are all there is")
    return torch.device("cuda" if GPU else "cpu")


@pytest.fixture(autouse=True)
def _poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a launcher allocates begins as NaN: a cell that its kernel forgets to write can't go unseen."""

    def nan(make: Any) -> Any:
        @functools.wraps(make)
        def made(*args: Any, **kwargs: Any) -> torch.Tensor:
            return make(*args, **kwargs).fill_(float("nan"))

        return made

    monkeypatch.setattr(torch, "empty", nan(torch.empty))
    monkeypatch.setattr(torch, "empty_like", nan(torch.empty_like))
