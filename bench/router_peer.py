"""The LiteLLM proxy in front of a stub that answers at once, beside the router in front of its own.

It has an environment of its own, made on demand in a folder outside the tree, and `bench/router_http.py` runs there:
the stub (OpenAI-compatible, over HTTP) and the client. All of it is what LiteLLM's users run: uvicorn on uvloop, one
worker process, no database.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..common.errors import Unavailable

_PINNED = "litellm[proxy]==1.108.7"
_INSTALL_S = 600.0
_START_S = 120.0
_LOAD_S = 170.0
_SCRIPT = Path(__file__).with_name("router_http.py")
_KEY = "sk-bench"


def beside_litellm(folder: Path, figures: dict[str, Any]) -> dict[str, Any]:
    """Figures of the peer and how many times ours are of them; or why there are none."""
    try:
        python = _installed(folder)
        with _server(python, "stub") as stub, _proxy(folder, stub) as proxy:
            theirs = _load(python, stub, proxy)
    except (Unavailable, OSError, subprocess.SubprocessError) as error:
        return {"why_not": str(error)}
    ours = figures["ways"]["router"]
    added_ms = theirs["proxy"]["alone_p50_ms"] - theirs["stub"]["alone_p50_ms"]
    ours_added_ms = ours["alone_p50_ms"] - figures["ways"]["direct"]["alone_p50_ms"]
    times = {
        "requests_per_s": ours["requests_per_s"] / theirs["proxy"]["requests_per_s"],
        "tokens_per_s": ours["tokens_per_s"] / theirs["proxy"]["tokens_per_s"],
        "added_p50": ours_added_ms / added_ms,
    }
    lines = [
        f"LiteLLM {theirs['proxy']['requests_per_s']:.0f} requests/s, {theirs['proxy']['tokens_per_s']:.0f} tokens/s, "
        f"adds {added_ms:.2f} ms to the median one by one; the router adds {ours_added_ms:.2f} ms",
        f"of LiteLLM's the router has {times['requests_per_s']:.1f} times the requests/s, {times['tokens_per_s']:.1f} "
        f"times the tokens/s, {times['added_p50']:.3f} of the added time",
    ]
    return {"version": _PINNED, "theirs": theirs, "times": times, "lines": lines}


def _installed(folder: Path) -> str:
    """The interpreter of the peer's environment, which is made if need be. Raises Unavailable."""
    python = folder / "bin" / "python"
    if not (folder / "bin" / "litellm").exists():
        print(f"installing {_PINNED} into {folder}", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True, timeout=_INSTALL_S)
        install = [str(python), "-m", "pip", "install", "--quiet", _PINNED]
        done = subprocess.run(install, capture_output=True, text=True, timeout=_INSTALL_S, check=False)
        if done.returncode:
            raise Unavailable(f"{_PINNED} can't be installed: {done.stderr.strip()[-200:]}")
    return str(python)


@contextmanager
def _server(python: str, role: str) -> Iterator[str]:
    """The stub: its "host:port"."""
    port = _free_port()
    with _running([python, str(_SCRIPT), role, str(port)], port) as address:
        yield address


@contextmanager
def _proxy(folder: Path, stub: str) -> Iterator[str]:
    """LiteLLM with one model, which the stub serves."""
    model = {"model": "openai/stub", "api_base": f"http://{stub}/v1", "api_key": _KEY}
    config = {
        "model_list": [{"model_name": "stub", "litellm_params": model}],
        "general_settings": {"master_key": _KEY},
        "litellm_settings": {"telemetry": False},
    }
    port = _free_port()
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "litellm.yaml"
        path.write_text(json.dumps(config))
        command = [str(folder / "bin" / "litellm"), "--config", str(path), "--host", "127.0.0.1", "--port", str(port)]
        with _running([*command, "--num_workers", "1"], port) as address:
            yield address


@contextmanager
def _running(command: list[str], port: int) -> Iterator[str]:
    """A process, once it listens."""
    environ = {**os.environ, "LITELLM_LOG": "ERROR", "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    quiet = subprocess.DEVNULL
    process = subprocess.Popen(command, stdout=quiet, stderr=quiet, env=environ)
    try:
        ends = time.monotonic() + _START_S
        while not _listens(port):
            if process.poll() is not None or time.monotonic() > ends:
                raise Unavailable(f"{Path(command[0]).name} does not start")
            time.sleep(0.1)
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        try:
            process.wait(10.0)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _load(python: str, stub: str, proxy: str) -> dict[str, Any]:
    """What the client measured on either."""
    command = [python, str(_SCRIPT), "load", stub, proxy, _KEY]
    done = subprocess.run(command, capture_output=True, text=True, timeout=_LOAD_S, check=False)
    if done.returncode:
        raise Unavailable(f"its load ended with {done.stderr.strip()[-200:]}")
    measured: dict[str, Any] = json.loads(done.stdout)
    return measured


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(0.5)
        return probe.connect_ex(("127.0.0.1", port)) == 0
