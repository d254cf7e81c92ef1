"""Loading holds one shard besides the model, reports what it read, and names a directory's faults before it reads."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import safetensors
import torch
from safetensors.torch import load_file, save_file
from structlog.testing import capture_logs

from tiermesh.cloud import checkpoint
from tiermesh.cloud.architecture import read_architecture
from tiermesh.cloud.checkpoint import INDEX
from tiermesh.cloud.load_report import load_report
from tiermesh.cloud.runner import ModelRunner, Placement
from tiermesh.cloud.weights import load_weights
from tiermesh.common.errors import ModelDirError
from tiermesh.training.random_model import write_random_model

CPU = torch.device("cpu")


def shard(directory: Path, count: int) -> list[Path]:
    """Splits the one file of a directory into `count`, tensor by tensor in the order of their layers."""
    tensors = load_file(directory / "model.safetensors")
    names = sorted(tensors, key=lambda name: (name.count("layers"), [int(p) for p in name.split(".") if p.isdigit()]))
    where: dict[str, str] = {}
    for i in range(count):
        part = names[i * len(names) // count : (i + 1) * len(names) // count]
        file = f"model-{i + 1:05}-of-{count:05}.safetensors"
        save_file({name: tensors[name] for name in part}, directory / file)
        where |= dict.fromkeys(part, file)
    (directory / "model.safetensors").unlink()
    (directory / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return sorted(directory.glob("*.safetensors"))


MEASURE = """
import sys
import time
from pathlib import Path
import torch
from tiermesh.cloud.architecture import read_architecture
from tiermesh.cloud.linear import linear
from tiermesh.cloud.weights import load_weights

def kib(key):
    return int(next(line for line in open("/proc/self/status") if line.startswith(key)).split()[1])

torch.set_num_threads(1)
directory = Path(sys.argv[1])
linear(torch.full((64, 64), 1 / 3))(torch.zeros(1, 64))  # What a first product loads is not the model's.
before = kib("VmRSS")
Path("/proc/self/clear_refs").write_text("5")
weights = load_weights(directory, read_architecture(directory), torch.device("cpu"), torch.float32)
print((kib("VmHWM") - before) * 1024, (kib("VmRSS") - before) * 1024)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory is read from Linux's /proc")
def test_memory_peaks_at_the_model_and_one_shard(tmp_path: Path) -> None:
    write_random_model(tmp_path, layers=12, hidden=512, heads=8, vocab=300)
    files = shard(tmp_path, 8)
    total, largest = sum(f.stat().st_size for f in files), max(f.stat().st_size for f in files)
    command = [sys.executable, "-P", "-c", MEASURE, str(tmp_path)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120, cwd=tmp_path)
    peak, after = map(int, done.stdout.split())
    assert total > 100e6
    assert after > 0.9 * total, "the model isn't there"
    # The rest is what the allocator, the room for one product and the interpreter take.
    assert peak < total + largest + 16e6, f"{peak / 1e6:.0f} MB for {total / 1e6:.0f} MB of weights"


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="threads are counted in Linux's /proc")
def test_loading_leaves_no_thread_behind(tmp_path: Path) -> None:
    write_random_model(tmp_path, layers=2, hidden=256, heads=4)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        before = set(os.listdir("/proc/self/task"))
        ModelRunner.load(tmp_path, Placement(CPU, torch.float32), 64)
        # They end just behind the thread that they served.
        until = time.monotonic() + 5
        while (left := set(os.listdir("/proc/self/task")) - before) and time.monotonic() < until:
            os.sched_yield()
        assert not left
    finally:
        torch.set_num_threads(threads)


def test_at_most_one_shard_is_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shard(write_random_model(tmp_path, layers=3, tie=False), 5)
    opened: list[str] = []
    open_now: set[str] = set()

    class Counted:
        def __init__(self, path: Path, **options: Any) -> None:
            self._name, self._file = path.name, safetensors.safe_open(path, **options)

        def __enter__(self) -> Any:
            opened.append(self._name)
            open_now.add(self._name)
            assert len(open_now) == 1
            return self._file.__enter__()

        def __exit__(self, *error: Any) -> None:
            open_now.remove(self._name)
            self._file.__exit__(*error)

    monkeypatch.setattr(checkpoint, "safe_open", Counted)
    load_weights(tmp_path, read_architecture(tmp_path), CPU, torch.float32)
    assert not open_now
    assert len(set(opened)) == 5


def test_shards_hold_what_the_one_file_held(tmp_path: Path) -> None:
    arch = read_architecture(write_random_model(tmp_path, layers=2))
    rows = torch.randn(3, arch.hidden, generator=torch.Generator().manual_seed(0))
    whole = load_weights(tmp_path, arch, CPU, torch.float32)
    shard(tmp_path, 4)
    parts = load_weights(tmp_path, arch, CPU, torch.float32)
    assert torch.equal(parts.embedding, whole.embedding)
    for ours, theirs in zip(parts.layers, whole.layers, strict=True):
        assert torch.equal(ours.qkv(rows), theirs.qkv(rows))
        assert torch.equal(ours.gate_up(rows), theirs.gate_up(rows))


class Steps:
    """A clock that goes on by two seconds whenever it is looked at."""

    def __init__(self) -> None:
        self._at = 0.0

    def now(self) -> float:
        self._at += 2.0
        return self._at


def test_progress_is_logged_now_and_then(tmp_path: Path) -> None:
    arch = read_architecture(write_random_model(tmp_path))
    with capture_logs() as events, load_report("some", Steps()) as report:
        load_weights(tmp_path, arch, CPU, torch.float32, report)
    *under_way, end = events
    total = sum(t.nbytes for t in load_file(tmp_path / "model.safetensors").values())
    read = [event["read_bytes"] for event in under_way]
    assert len(read) > 3
    assert read == sorted(read)
    assert {event["of_bytes"] for event in under_way} == {total}
    assert read[-1] <= total
    assert (end["event"], end["model"]) == ("model_loaded", "some")


def test_a_quick_load_logs_nothing(tmp_path: Path) -> None:
    arch = read_architecture(write_random_model(tmp_path))
    with capture_logs() as events, load_report("some") as report:
        load_weights(tmp_path, arch, CPU, torch.float32, report)
    assert events == []


def test_a_terminal_gets_a_bar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    arch = read_architecture(write_random_model(tmp_path))
    with load_report("some") as report:
        load_weights(tmp_path, arch, CPU, torch.float32, report)
    assert "loading some" in terminal.getvalue()


def test_all_that_was_foreseen_is_read(tmp_path: Path) -> None:
    arch = read_architecture(write_random_model(tmp_path, tie=False))
    reports: list[tuple[int, int]] = []
    load_weights(tmp_path, arch, CPU, torch.bfloat16, lambda read, total: reports.append((read, total)))
    assert reports[-1][0] == reports[-1][1]


def change_index(directory: Path, change: dict[str, Any]) -> None:
    index = json.loads((directory / INDEX).read_text())
    (directory / INDEX).write_text(json.dumps({"weight_map": index["weight_map"] | change}))


def test_faults_of_an_index_are_named(tmp_path: Path) -> None:
    shard(write_random_model(tmp_path), 2)
    arch, norm = read_architecture(tmp_path), "model.norm.weight"
    for file, message in (
        ("model-3.safetensors", "names 'model-3.safetensors', which is no file"),
        ("../x.safetensors", r"names '\.\./x\.safetensors', which is no file"),
        (7, "weight_map must name a file for each tensor"),
        ("model-00002-of-00002.safetensors", "can't be read"),
    ):
        change_index(tmp_path, {norm: file})
        with pytest.raises(ModelDirError, match=message):
            load_weights(tmp_path, arch, CPU, torch.float32)
    (tmp_path / INDEX).write_text('{"weight_map": {}}')
    with pytest.raises(ModelDirError, match=r"holds model\.embed_tokens\.weight, .* and \d+ more"):
        load_weights(tmp_path, arch, CPU, torch.float32)


def test_faults_are_named_before_anything_is_read(tmp_path: Path) -> None:
    arch = read_architecture(write_random_model(tmp_path))
    tensors = load_file(tmp_path / "model.safetensors")
    last = tensors["model.layers.1.mlp.down_proj.weight"]
    read: list[int] = []
    for tensor, message in (
        (last[:, :5].contiguous(), r"down_proj\.weight has shape \(64, 5\), config\.json wants \(64, 128\)"),
        (last.to(torch.int8), "has type I8; quantized"),
        (last.to(torch.float8_e4m3fn), "has type F8_E4M3; quantized"),
    ):
        save_file(tensors | {"model.layers.1.mlp.down_proj.weight": tensor}, tmp_path / "model.safetensors")
        with pytest.raises(ModelDirError, match=message):
            load_weights(tmp_path, arch, CPU, torch.float32, lambda done, total: read.append(done))
    assert not read
