"""Drawn bits are never given twice, to nobody."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from tiermesh.common.draws import draw_bytes, draw_hex, draw_seed


def test_no_draw_repeats_over_threads_and_fetches() -> None:
    with ThreadPoolExecutor(4) as threads:
        drawn = [
            hexes for part in threads.map(lambda _: [draw_hex(16) for _ in range(2000)], range(4)) for hexes in part
        ]
    assert len(set(drawn)) == 8000
    assert {len(hexes) for hexes in drawn} == {32}


def test_seeds_use_all_64_bits() -> None:
    seeds = [draw_seed() for _ in range(200)]
    assert len(set(seeds)) == 200
    assert max(seeds).bit_length() == 64
    assert len(draw_bytes(6)) == 6


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_draws_other_bits() -> None:
    """In an interpreter of its own: one with threads must not fork."""
    script = (
        "import os; from tiermesh.common.draws import draw_hex; draw_hex(16); child = os.fork();"
        "os.write(1, (draw_hex(16) + chr(10)).encode()); child and os.waitpid(child, 0)"  # print may write twice
    )
    drawn = subprocess.run([sys.executable, "-P", "-c", script], capture_output=True, text=True, check=True, timeout=20)
    assert len(set(drawn.stdout.split())) == 2
