"""The one error tree.

    TiermeshError                 reason                gRPC code            HTTP
    ├─ InvalidRequest             INVALID_ARGUMENT      INVALID_ARGUMENT     400
    │  └─ RequestTooLarge         REQUEST_TOO_LARGE     INVALID_ARGUMENT     413
    ├─ Unauthenticated            UNAUTHENTICATED       UNAUTHENTICATED      401
    ├─ Forbidden                  FORBIDDEN             PERMISSION_DENIED    403
    ├─ ModelNotFound              MODEL_NOT_FOUND       NOT_FOUND            404
    ├─ RequestIdReused            REQUEST_ID_REUSED     ALREADY_EXISTS       409
    ├─ QuotaExceeded              QUOTA_EXCEEDED        RESOURCE_EXHAUSTED   429
    ├─ Overloaded                 OVERLOADED            RESOURCE_EXHAUSTED   429
    ├─ ReaderStalled              READER_STALLED        RESOURCE_EXHAUSTED   408
    ├─ DeadlineExceeded           DEADLINE_EXCEEDED     DEADLINE_EXCEEDED    504
    ├─ Cancelled                  CANCELLED             CANCELLED            499
    ├─ Unavailable                UNAVAILABLE           UNAVAILABLE          503
    │  ├─ NoWorkers               NO_WORKERS            UNAVAILABLE          503
    │  ├─ Draining                DRAINING              UNAVAILABLE          503
    │  └─ LeaseExpired            LEASE_EXPIRED         UNAVAILABLE          503
    ├─ Unsupported                UNSUPPORTED           UNIMPLEMENTED        501
    ├─ InternalError              INTERNAL              INTERNAL             500
    └─ ConfigError                BAD_CONFIG            FAILED_PRECONDITION  412
       └─ ModelDirError           BAD_MODEL_DIR         FAILED_PRECONDITION  412

Every message says what to do, in the caller's terms, and never holds a prompt or a key.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True, slots=True)
class Violation:
    """One field of a request and what is wrong with it."""

    field: str
    description: str


class TiermeshError(Exception):
    """Root of all errors that tiermesh raises on purpose."""

    reason: ClassVar[str] = "INTERNAL"
    grpc_code: ClassVar[int] = 13
    http_status: ClassVar[int] = 500

    def __init__(
        self, message: str, *, violations: Sequence[Violation] = (), retry_after_s: float | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.violations = tuple(violations)
        self.retry_after_s = retry_after_s
        """Seconds after which trying again makes sense; None when it does not help."""


class InvalidRequest(TiermeshError):
    """The request can't be served as it is; `violations` names the fields."""

    reason, grpc_code, http_status = "INVALID_ARGUMENT", 3, 400

    @classmethod
    def field(cls, field: str, description: str) -> InvalidRequest:
        """The error for one wrong field."""
        return cls(f"{field}: {description}", violations=[Violation(field, description)])


class RequestTooLarge(InvalidRequest):
    """A size limit was passed; the message names the limit."""

    reason, grpc_code, http_status = "REQUEST_TOO_LARGE", 3, 413


class Unauthenticated(TiermeshError):
    """No credential, or one that nobody knows."""

    reason, grpc_code, http_status = "UNAUTHENTICATED", 16, 401


class Forbidden(TiermeshError):
    """The credential is known but does not allow this."""

    reason, grpc_code, http_status = "FORBIDDEN", 7, 403


class ModelNotFound(TiermeshError):
    """No pool serves this model."""

    reason, grpc_code, http_status = "MODEL_NOT_FOUND", 5, 404


class RequestIdReused(TiermeshError):
    """The same request id came with another body."""

    reason, grpc_code, http_status = "REQUEST_ID_REUSED", 6, 409


class QuotaExceeded(TiermeshError):
    """A limit of the tenant is used up."""

    reason, grpc_code, http_status = "QUOTA_EXCEEDED", 8, 429


class Overloaded(TiermeshError):
    """There is no capacity in time; `retry_after_s` says when a place is kept, None that none can be promised."""

    reason, grpc_code, http_status = "OVERLOADED", 8, 429


class ReaderStalled(TiermeshError):
    """The client did not read its answer; what waited for it was dropped."""

    reason, grpc_code, http_status = "READER_STALLED", 8, 408


class DeadlineExceeded(TiermeshError):
    """The deadline passed, or can't be met."""

    reason, grpc_code, http_status = "DEADLINE_EXCEEDED", 4, 504


class Cancelled(TiermeshError):
    """The client, or an operator, ended it."""

    reason, grpc_code, http_status = "CANCELLED", 1, 499


class Unavailable(TiermeshError):
    """The next hop can't be reached now."""

    reason, grpc_code, http_status = "UNAVAILABLE", 14, 503


class NoWorkers(Unavailable):
    """No worker of the pool is ready."""

    reason = "NO_WORKERS"


class Draining(Unavailable):
    """This process is stopping; another one may answer."""

    reason = "DRAINING"


class LeaseExpired(Unavailable):
    """A session waited too long for its next ask and was dropped; opened anew with all delivered ids, it goes on."""

    reason = "LEASE_EXPIRED"


class Unsupported(TiermeshError):
    """Known, but not offered here."""

    reason, grpc_code, http_status = "UNSUPPORTED", 12, 501


class InternalError(TiermeshError):
    """A defect; the log has the details."""

    reason, grpc_code, http_status = "INTERNAL", 13, 500


class ConfigError(TiermeshError):
    """The configuration is wrong; the message has the path in the file."""

    reason, grpc_code, http_status = "BAD_CONFIG", 9, 412


class ModelDirError(ConfigError):
    """A model directory is missing, broken or of an unsupported kind."""

    reason = "BAD_MODEL_DIR"


def _tree(root: type[TiermeshError]) -> list[type[TiermeshError]]:
    return [root, *(leaf for child in root.__subclasses__() for leaf in _tree(child))]


_BY_REASON = {cls.reason: cls for cls in reversed(_tree(TiermeshError)) if cls is not TiermeshError}
_BY_CODE = {
    1: Cancelled,
    3: InvalidRequest,
    4: DeadlineExceeded,
    5: ModelNotFound,
    6: RequestIdReused,
    7: Forbidden,
    8: Overloaded,
    9: ConfigError,
    12: Unsupported,
    14: Unavailable,
    16: Unauthenticated,
}


def error_of(
    reason: str,
    code: int,
    message: str,
    *,
    violations: Sequence[Violation] = (),
    retry_after_s: float | None = None,
) -> TiermeshError:
    """The error for a reason that came over the wire; an unknown reason falls back to its gRPC code."""
    cls = _BY_REASON.get(reason) or _BY_CODE.get(code, InternalError)
    return cls(message, violations=violations, retry_after_s=retry_after_s)
