"""One tree, one mapping: every error survives the trip through a gRPC status."""

from __future__ import annotations

from base64 import b64encode
from urllib.parse import quote

import pytest

from tiermesh.common import errors, rpc_errors


def leaves(root: type[errors.TiermeshError]) -> list[type[errors.TiermeshError]]:
    return [leaf for child in root.__subclasses__() for leaf in [child, *leaves(child)]]


CLASSES = leaves(errors.TiermeshError)


@pytest.mark.parametrize("cls", CLASSES)
def test_every_error_survives_a_status(cls: type[errors.TiermeshError]) -> None:
    error = cls("do this", violations=[errors.Violation("field", "is odd")], retry_after_s=0.25)
    got = rpc_errors._from_status(rpc_errors.status_of(error), 2, "")
    assert type(got) is cls
    assert (got.message, got.violations, got.retry_after_s) == (error.message, error.violations, 0.25)


def test_reasons_are_unique() -> None:
    assert len({cls.reason for cls in CLASSES}) == len(CLASSES)


@pytest.mark.parametrize("cls", CLASSES)
def test_the_table_in_the_docstring_is_true(cls: type[errors.TiermeshError]) -> None:
    import grpc

    name = next(code.name for code in grpc.StatusCode if code.value[0] == cls.grpc_code)
    row = next(line for line in (errors.__doc__ or "").splitlines() if f"─ {cls.__name__} " in line)
    assert row.split()[-3:] == [cls.reason, name, str(cls.http_status)]


def test_an_unknown_reason_falls_back_to_its_code() -> None:
    assert type(errors.error_of("NEVER_HEARD_OF", 14, "x")) is errors.Unavailable
    assert type(errors.error_of("", 999, "x")) is errors.InternalError


@pytest.mark.parametrize("character", ["x", "\n", "ß", "漢", "🙂", "\ud800"], ids=ascii)
def test_an_error_fits_into_metadata_whatever_it_quotes(character: str) -> None:
    """gRPC percent-encodes the message and sends the details in base64; a client takes 8 KiB of both."""
    long = character * 10**6
    error = errors.InvalidRequest(long, violations=[errors.Violation("prompt.text", long)] * 50, retry_after_s=1.0)
    status = rpc_errors.status_of(error)
    size = len(quote(status.message)) + len(b64encode(status.SerializeToString()))
    assert size < 8 * 1024
    got = rpc_errors._from_status(status, 3, "")
    assert got.message.endswith("…")
    assert len(got.violations) == 8
