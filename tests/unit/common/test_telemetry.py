"""Whatever anybody sends, a log is lines of JSON that hold no message of an exception and no long field."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterator

import grpc
import pytest
import structlog

from tiermesh.common.telemetry import get_logger, setup_logging

SECRETS = ("my prompt", "tm_key")


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    handlers, level = logging.root.handlers[:], logging.root.level
    yield
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()
    logging.root.handlers[:] = handlers
    logging.root.setLevel(level)


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, object]]:
    told = capsys.readouterr().err
    assert all(secret not in told for secret in SECRETS)
    assert all(character == "\n" or character.isprintable() for character in told)
    return [json.loads(line) for line in told.splitlines()]


def failing(prompt: str, key: str) -> None:
    try:
        raise grpc.aio.AioRpcError(
            grpc.StatusCode.INTERNAL, grpc.aio.Metadata(), grpc.aio.Metadata(), prompt, f"UNKNOWN: {key}"
        )
    except grpc.RpcError as exc:
        raise ValueError(f"{key} can't answer {prompt!r}") from exc


def test_a_defect_is_its_types_and_places(capsys: pytest.CaptureFixture[str]) -> None:
    setup_logging("test", "debug")
    try:
        failing(*SECRETS)
    except ValueError:
        get_logger().exception("defect", method="Generate")
    (line,) = lines(capsys)
    assert (line["event"], line["level"], line["service"]) == ("defect", "error", "test")
    first, cause = line["exception"]  # type: ignore[misc]
    assert first.startswith("builtins.ValueError at test_telemetry.py:")
    assert "failing" in first
    assert cause.startswith("grpc.aio._call.AioRpcError at test_telemetry.py:")


@pytest.mark.parametrize(
    "hostile", ["a\nb", "a\r\n{}", "\x1b[31mred\x1b[0m", "\x00\x07\x7f", "\u2028\u2029", "\x9b1m", "\ud800"]
)
def test_a_field_stays_on_its_line(capsys: pytest.CaptureFixture[str], hostile: str) -> None:
    setup_logging("test", "debug")
    get_logger().info("refused", request_id=hostile)
    (line,) = lines(capsys)
    assert line["request_id"] == hostile


def test_a_long_field_is_cut(capsys: pytest.CaptureFixture[str]) -> None:
    setup_logging("test")
    get_logger().info("refused", request_id="x" * 10**6)
    (line,) = lines(capsys)
    assert len(str(line["request_id"])) < 600


def test_libraries_speak_the_same_way(capsys: pytest.CaptureFixture[str]) -> None:
    setup_logging("test")
    try:
        failing(*SECRETS)
    except ValueError as error:
        logging.getLogger("grpc").exception("Unexpected [%s]\nraised by %s", type(error).__name__, SECRETS[0])
    logging.getLogger("chatty").info("not worth a line")
    (line,) = lines(capsys)
    assert (line["event"], line["logger"], line["detail"]) == ("library", "grpc", "Unexpected [ValueError]")


def test_a_task_that_nobody_waited_for_tells_no_more(capsys: pytest.CaptureFixture[str]) -> None:
    """As asyncio does it: the task, with what it held, and its exception."""
    setup_logging("test")

    async def lost() -> None:
        task = asyncio.create_task(asyncio.sleep(0, SECRETS[0]), name=SECRETS[1])
        await task
        context = {"message": "Task exception was never retrieved", "task": task, "exception": ValueError(SECRETS[0])}
        asyncio.get_running_loop().call_exception_handler(context)

    asyncio.run(lost())
    (line,) = lines(capsys)
    assert line["detail"] == "Task exception was never retrieved"
    assert line["exception"] == ["builtins.ValueError at "]
