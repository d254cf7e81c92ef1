"""Kernels on a GPU, as fractions of what its memory and its matrix units do.

The device's own copy bandwidth and bfloat16 GEMM rate are measured first. Then each kernel of `kernels/` at the shapes
of an 8 B model, beside torch doing the same; the figure is bytes that must move, by time, by copy bandwidth.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tiermesh.common.errors import ConfigError
from tiermesh.kernels import attention, rms_norm, rope_kv_write, swiglu
from tiermesh.kernels.dispatch import triton_ops
from tiermesh.kernels.paged import Group

from .results import require_green, write_result

HEADS, KV_HEADS, HEAD_DIM, HIDDEN, INNER, BLOCK = 32, 8, 128, 4096, 14336, 16
"""Of Llama 3.1 8B."""


@dataclass(frozen=True, slots=True)
class Case:
    """One kernel at one shape."""

    name: str
    moved: int
    """Bytes that have to be read and written."""
    ours: Callable[[], object]
    theirs: Callable[[], object]
    """The torch reference."""


def main(arguments: Sequence[str]) -> None:
    """Measures and writes results/kernels.json. Raises ConfigError where there is no GPU."""
    parser = argparse.ArgumentParser(prog="bench kernels", description=__doc__)
    parser.add_argument("--force", action="store_true", help="also from a tree that was not tested")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        raise ConfigError("kernels are measured on a GPU, and this machine has none that torch can use")
    green = require_green(options.force)
    copy, gemm = copy_bandwidth(), gemm_rate()
    print(f"{torch.cuda.get_device_name()}: copy {copy / 1e9:.0f} GB/s, bfloat16 GEMM {gemm / 1e12:.0f} TFLOP/s")
    figures: dict[str, object] = {"device": torch.cuda.get_device_name(), "copy_bytes_s": copy, "gemm_flop_s": gemm}
    with torch.inference_mode():
        for case in cases(torch.device("cuda")):
            ours, theirs, copied = seconds(case.ours), seconds(case.theirs), seconds(_copy(case.moved // 2))
            share = case.moved / ours / copy
            figures[case.name] = {
                "seconds": ours,
                "torch_seconds": theirs,
                "bytes": case.moved,
                "share_of_copy": share,
                "copy_of_as_many_bytes_seconds": copied,
            }
            print(
                f"{case.name:<36} {ours * 1e6:8.1f} µs  {share:6.1%} of copy  a copy of as many bytes "
                f"{copied * 1e6:8.1f} µs  torch {theirs * 1e6:8.1f} µs"
            )
    print(write_result("kernels", figures, green=green))


def seconds(call: Callable[[], object]) -> float:
    """Median time of a call by CUDA events, the cache flushed before each (Triton's `do_bench`).

    It is replayed from a CUDA graph: launching from Python takes longer than most kernels run.
    """
    from triton.testing import do_bench

    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        for _ in range(3):
            call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return float(do_bench(graph.replay, warmup=20, rep=100, return_mode="median")) / 1e3


def _copy(size: int) -> Callable[[], object]:
    """Reads and writes `size` bytes, by a kernel: in a graph a copy proper goes by another engine, which is slower."""
    source = torch.randint(1 << 30, (size // 4,), dtype=torch.int32, device="cuda")
    target = torch.empty_like(source)
    return lambda: torch.bitwise_not(source, out=target)


def copy_bandwidth() -> float:
    """Bytes per second, read and written, of a device's copy of 1 GiB."""
    return 2 * (1 << 30) / seconds(_copy(1 << 30))


def gemm_rate() -> float:
    """FLOP per second of a bfloat16 product of 8192³."""
    left, right = (torch.randn(8192, 8192, dtype=torch.bfloat16, device="cuda") for _ in range(2))
    return 2 * 8192**3 / seconds(lambda: left @ right)


def cases(device: torch.device) -> list[Case]:
    """Decode attention over batch, context and query length; the kernels of single rows at decode and prefill sizes."""
    found = [
        attention_case(device, sequences, context, length)
        for sequences, context, length in ((1, 4096, 1), (16, 1024, 1), (16, 4096, 1), (64, 4096, 1), (16, 4096, 4))
    ]
    for rows in (64, 4096):
        found += row_cases(device, rows)
    return found


def attention_case(device: torch.device, sequences: int, context: int, length: int) -> Case:
    """Sequences whose blocks are scattered over the pool."""
    per_sequence = context // BLOCK
    kv = torch.randn(sequences * per_sequence, BLOCK, 2, KV_HEADS, HEAD_DIM, dtype=torch.bfloat16, device=device)
    tables = torch.randperm(sequences * per_sequence, device=device).view(sequences, per_sequence)
    rows = sequences * length
    query = torch.randn(rows, HEADS * HEAD_DIM, dtype=torch.bfloat16, device=device)
    positions = torch.arange(context - length, context, device=device).repeat(sequences, 1)

    def group() -> Group:
        return Group(0, rows, sequences, length, positions, tables, None, context, length == 1, query.dtype)

    # Each implementation keeps its own room in its group.
    op, mine, reference = triton_ops().attention, group(), group()
    return Case(
        f"attention {sequences} × {context}, {length} rows",
        kv.nbytes + 2 * query.nbytes,
        lambda: op(query, kv, [mine], None),
        lambda: attention.attention(query, kv, [reference], None),
    )


def row_cases(device: torch.device, rows: int) -> list[Case]:
    """Norm, rotation with the KV write, SwiGLU."""

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.bfloat16, device=device)

    ops = triton_ops()
    hidden, residual, weight = drawn(rows, HIDDEN), drawn(rows, HIDDEN), drawn(HIDDEN)
    gate_up = drawn(rows, 2 * INNER)
    qkv, kv = drawn(rows, (HEADS + 2 * KV_HEADS) * HEAD_DIM), drawn(-(-rows // BLOCK), BLOCK, 2, KV_HEADS, HEAD_DIM)
    turn = torch.polar(torch.ones(rows, 1, HEAD_DIM // 2), torch.randn(rows, 1, HEAD_DIM // 2)).to(device)
    slots = torch.randperm(rows, device=device)
    return [
        Case(
            f"rms_norm {rows} rows",
            4 * hidden.nbytes,
            lambda: ops.rms_norm(hidden, weight, 1e-5, residual),
            lambda: rms_norm.rms_norm(hidden, weight, 1e-5, residual),
        ),
        Case(
            f"rope_kv_write {rows} rows",
            2 * qkv.nbytes + turn.nbytes,
            lambda: ops.rope_kv_write(qkv, turn, slots, kv),
            lambda: rope_kv_write.rope_kv_write(qkv, turn, slots, kv),
        ),
        Case(
            f"swiglu {rows} rows",
            gate_up.nbytes * 3 // 2,
            lambda: ops.swiglu(gate_up),
            lambda: swiglu.swiglu(gate_up),
        ),
    ]
