"""Every error that ironroot raises on purpose, on one page.

    IronrootError
    ├── Malformed            400  the bytes or the text are not what they claim to be
    │   ├── Unsupported      400  well formed, but an algorithm or a version we do not take
    │   ├── WeakKey          400  a key that must not be certified
    │   └── BadSignature     400  a signature or proof of possession that does not verify
    ├── Unauthenticated      401  we do not know who asks
    ├── Refused              403  we know who asks, and the answer is no
    ├── NotFound             404
    ├── Conflict             409  it exists already, or somebody else is at it
    ├── TooLarge             413
    ├── Limited              429  too often
    ├── Pending              202  an administrator has to decide first
    ├── NotValid             ---  a certificate is not good for what was asked (exit code 8)
    ├── Unavailable          503  a part that we need is away; try again later
    │   └── OutcomeUnknown   503  the request was sent and the answer never came: it may have been done
    └── Fatal                500  an invariant is broken: stop rather than go on

``str(error)`` is safe to show to whoever caused it: it names no secret, no file of ours and says what to do next.
``code`` is stable and for machines. ``status`` is the HTTP status, ``exit_code`` that of a command. Third-party exceptions
are turned into one of these where they arise, in the adapter.
"""

from __future__ import annotations

from typing import ClassVar


class IronrootError(Exception):
    """Base of all; never raised itself.

    Args:
        text: one or two sentences for the caller: what is wrong and what to do about it.
        retry_after: seconds after which the same request is worth repeating, if it is.
    """

    code: ClassVar[str] = "error"
    status: ClassVar[int] = 500
    exit_code: ClassVar[int] = 1

    def __init__(self, text: str, *, retry_after: int | None = None) -> None:
        super().__init__(text)
        self.retry_after = retry_after


class Malformed(IronrootError):
    """The input does not parse, or breaks a rule of its own format."""

    code, status, exit_code = "malformed", 400, 2


class Unsupported(Malformed):
    """Well formed, but of an algorithm, curve or version that we do not take."""

    code = "unsupported"


class WeakKey(Malformed):
    """A public key that must never be certified (too short, off its curve, known bad)."""

    code = "weak_key"


class BadSignature(Malformed):
    """A signature, or a proof of possession, that does not verify."""

    code = "bad_signature"


class Unauthenticated(IronrootError):
    """No credential, or one that is wrong, used up or expired."""

    code, status, exit_code = "unauthenticated", 401, 4


class Refused(IronrootError):
    """The caller is known and may not have this."""

    code, status, exit_code = "refused", 403, 4


class NotFound(IronrootError):
    """No such thing here."""

    code, status, exit_code = "not_found", 404, 3


class Conflict(IronrootError):
    """It exists already, or another request is at it right now."""

    code, status, exit_code = "conflict", 409, 5


class TooLarge(IronrootError):
    """The body is longer than this door takes."""

    code, status, exit_code = "too_large", 413, 2


class Limited(IronrootError):
    """Too many requests from this caller."""

    code, status, exit_code = "limited", 429, 7


class Pending(IronrootError):
    """Nothing wrong: an administrator has to approve first. Repeat the request after ``retry_after`` seconds."""

    code, status, exit_code = "pending", 202, 6


class NotValid(IronrootError):
    """A certificate that is not good for the purpose asked."""

    code, status, exit_code = "not_valid", 422, 8


class Unavailable(IronrootError):
    """A part that we depend on (HSM, database, disk) is away. Nothing was done; repeat later."""

    code, status, exit_code = "unavailable", 503, 7


class OutcomeUnknown(Unavailable):
    """The request left us and no answer came back: it may or may not have been carried out."""

    code = "outcome_unknown"


class Fatal(IronrootError):
    """An invariant does not hold (wrong key under a label, audit chain broken, clock far back). The process stops."""

    code = "fatal"
