"""What goes into a validation and what comes out: Policy, Result and what a Result is made of. All are values."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal, Protocol

from pkix.certificate import Certificate
from pkix.errors import Malformed
from pkix.extensions import general_name
from validate.text import Text, moment

Purpose = Literal["client", "server", "any"]
StatusMode = Literal["hard-fail", "soft-fail", "offline", "none"]
Outcome = Literal["pass", "fail", "skipped"]
Language = Literal["en", "zh"]


@dataclass(frozen=True, slots=True)
class Policy:
    """What the relying party asks for. The defaults are what a platform should use that knows only its purpose.

    Attributes:
        purpose: ``client`` or ``server`` (of TLS), or ``any``: no key purpose is asked for.
        names: what the peer must be called, each of them: ``dns:plc-7.plant``, ``ip:192.0.2.7``, ``uri:urn:…``, ``email:…``.
        status: ``hard-fail``: without a trustworthy status the answer is no. ``soft-fail``: status is asked for, and its absence
            forgiven; a revocation never is. ``offline``: as hard-fail, but only from staples and CRLs that were handed in; nothing is
            fetched. ``none``: revocation is not looked at.
        max_age: how old a status may be at most, counted from its thisUpdate, whatever its own nextUpdate says; None: no bound but that.
        skew: how far the clocks of those who sign status may be off ours. Certificates get none (RFC 5280 4.1.2.5).
        fetch_time: how long fetching the status of one certificate may take, all its sources together.
        mixed_families: whether one path may hold both SM2 and international algorithms, or ML-DSA and others.
        max_intermediates: CAs between anchor and end entity at most; self-issued ones do not count.
        certificate_policies: dotted OIDs of which one must hold for the whole path; empty: any will do (user-initial-policy-set).
        explicit_policy: whether the path must be good for some certificate policy at all (initial-explicit-policy).

    Raises:
        Malformed: a name in ``names`` that is none.
    """

    purpose: Purpose = "any"
    names: tuple[str, ...] = ()
    status: StatusMode = "hard-fail"
    max_age: timedelta | None = None
    skew: timedelta = timedelta(seconds=60)
    fetch_time: timedelta = timedelta(seconds=10)
    mixed_families: bool = False
    max_intermediates: int = 8
    certificate_policies: frozenset[str] = frozenset()
    explicit_policy: bool = False

    def __post_init__(self) -> None:
        for name in self.names:
            general_name(name)
            if name.startswith("dns:*"):
                raise Malformed(f"{name!r} is a pattern; ask for the one name that the peer was reached under")


class Fetcher(Protocol):
    """What ``validate`` needs of the network. Both raise an IronrootError when there is nothing to return."""

    async def get(self, url: str) -> bytes:
        """The body of a 200 response to GET: a CRL."""

    async def post(self, url: str, body: bytes, content_type: str) -> bytes:
        """The body of a 200 response to POST: an OCSP response."""

    async def close(self) -> None:
        """Lets go of connections. A fetcher may be used again after that, in another event loop too."""


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at: ``outcome`` and why, by which clause. ``code`` is the stable name of the sentence."""

    name: str
    outcome: Outcome
    message: Text
    clause: str

    @property
    def code(self) -> str:
        return self.message.code

    @property
    def text(self) -> str:
        """The sentence in English; ``message.zh`` is the Chinese one."""
        return self.message.en


@dataclass(frozen=True, slots=True)
class StatusEvidence:
    """What the revocation status of one certificate of the path rests on.

    ``source`` is ``ocsp`` or ``crl`` if fetched from ``url``; ``staple`` for an OCSP response and ``supplied-crl`` for a CRL that the
    caller handed in, with ``url`` empty. ``produced_at`` is thisUpdate for a CRL. ``reason`` is an RFC 5280 5.3.1 name.
    """

    subject: str
    serial: int
    source: Literal["ocsp", "crl", "staple", "supplied-crl"]
    url: str
    status: Literal["good", "revoked", "unknown"]
    produced_at: datetime
    this_update: datetime
    next_update: datetime | None
    revoked_at: datetime | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Result:
    """The verdict. ``path`` leads from the certificate to the anchor; empty if none was found.

    ``code`` is ``good`` or the code of the check that failed first; ``reason`` is one sentence for a person.
    """

    good: bool
    path: tuple[Certificate, ...]
    checks: tuple[Check, ...]
    evidence: tuple[StatusEvidence, ...]
    message: Text
    at: datetime

    @property
    def code(self) -> str:
        return self.message.code

    @property
    def reason(self) -> str:
        return self.message.en

    @property
    def reason_zh(self) -> str:
        return self.message.zh

    def text(self, language: Language = "en") -> str:
        """The reason in English (``en``) or Chinese (``zh``)."""
        return self.message.zh if language == "zh" else self.message.en

    def as_dict(self) -> dict[str, object]:
        """The result in types that JSON knows; times in ISO 8601, certificates by subject, serial and fingerprint."""
        return {
            "good": self.good,
            "code": self.code,
            "reason": self.reason,
            "reason_zh": self.reason_zh,
            "at": moment(self.at),
            "path": [{"subject": c.subject.text, "serial": f"{c.serial:x}", "sha256": c.sha256.hex()} for c in self.path],
            "checks": [
                {"name": c.name, "outcome": c.outcome, "code": c.code, "text": c.text, "text_zh": c.message.zh, "clause": c.clause}
                for c in self.checks
            ],
            "evidence": [_evidence(e) for e in self.evidence],
        }


def _evidence(evidence: StatusEvidence) -> dict[str, object]:
    def iso(at: datetime | None) -> str | None:
        return None if at is None else moment(at)

    return {
        "subject": evidence.subject,
        "serial": f"{evidence.serial:x}",
        "source": evidence.source,
        "url": evidence.url,
        "status": evidence.status,
        "produced_at": iso(evidence.produced_at),
        "this_update": iso(evidence.this_update),
        "next_update": iso(evidence.next_update),
        "revoked_at": iso(evidence.revoked_at),
        "reason": evidence.reason,
    }
