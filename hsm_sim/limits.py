"""Limits of keys that PKCS#11 has no attribute for: number of uses, time of use, operations that take approvals. Only ever tightened.

changes, said = tightened(obj, {"usage_limit": 100, "quorum": ["destroy"], "not_after": "2027-01-31T00:00:00+00:00"})
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from hsm_sim.errors import Code, Rejected
from hsm_sim.objects import Object
from hsm_sim.quorum import OPERATIONS


def tightened(obj: Object, wanted: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The limits of ``obj`` with those that are ``wanted`` (members of ``Object``; left out or None: as before); and the same for the log.

    Raises Rejected: ACTION_PROHIBITED (one would be loosened), BAD_REQUEST (no key that is kept; no operation or time).
    """
    if not obj.token or not obj.secret:
        raise Rejected(Code.BAD_REQUEST, "limits are for private and secret keys that are kept")
    uses, quorum = wanted.get("usage_limit"), frozenset(wanted.get("quorum") or ())
    since, until = moment(wanted.get("not_before")), moment(wanted.get("not_after"))
    if not quorum <= OPERATIONS.keys():
        raise Rejected(Code.BAD_REQUEST, f"approvals are for {', '.join(OPERATIONS)}")
    if uses is not None and (uses < 0 or (obj.usage_limit is not None and uses > obj.usage_limit)):
        raise Rejected(Code.ACTION_PROHIBITED, f"the usage limit of {obj.label} can only be lowered")
    if (obj.not_before and since and since < obj.not_before) or (obj.not_after and until and until > obj.not_after):
        raise Rejected(Code.ACTION_PROHIBITED, f"the time in which {obj.label} is used can only be shortened")
    marks = obj.quorum | quorum
    limits = {
        "usage_limit": obj.usage_limit if uses is None else uses,
        "quorum": marks,
        "not_before": since or obj.not_before,
        "not_after": until or obj.not_after,
    }
    return limits, {**limits, "quorum": sorted(marks)}


def moment(text: str | None) -> str | None:
    """A time as objects have it, so that two of them compare as texts. Raises Rejected(BAD_REQUEST)."""
    if text is None:
        return None
    try:
        given = datetime.fromisoformat(text)
        utc = given.astimezone(UTC)
    except (ValueError, OverflowError):
        raise Rejected(Code.BAD_REQUEST, f"{text[:40]!r} is no time as in 2027-01-31T00:00:00+00:00") from None
    if given.tzinfo is None:
        raise Rejected(Code.BAD_REQUEST, f"{text[:40]} does not say its time zone: write 2027-01-31T00:00:00+00:00")
    return utc.isoformat(timespec="seconds")
