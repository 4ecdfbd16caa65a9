"""What goes into a validation and what comes out: Policy, Anchor, Expected; Result, Check, Basis. All are values.

policy = Policy(anchors=anchors(root_der), status="hard-fail", max_age=timedelta(hours=12))
expected = Expected("dns:plc-7.plant", "device:ecc-devices/plc-7")
# result = await validate([leaf, *chain], purpose="tls-client", expected=expected, now=now, policy=policy)
result.good, result.code, result.sentence("zh")
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Literal, Protocol, overload

from pkix import der
from pkix.certificate import Certificate, parse_certificate
from pkix.errors import Malformed
from pkix.extensions import general_name, read_general_name
from validate.text import Text, moment, say

Purpose = Literal["tls-client", "tls-server", "code", "data-signature", "data-encryption", "ocsp-signer", "time-stamp", "any"]
Family = Literal["ecc", "sm2", "pq"]
StatusMode = Literal["hard-fail", "soft-fail", "offline", "none"]
Outcome = Literal["ok", "failed", "skipped", "unknown"]
Source = Literal["staple", "ocsp", "crl", "delta", "push", "none"]
Standing = Literal["good", "revoked", "held", "unknown", "exempt", "none"]
Language = Literal["en", "zh"]

FAMILIES: frozenset[Family] = frozenset(("ecc", "sm2", "pq"))


@dataclass(frozen=True, slots=True)
class Anchor:
    """A trust anchor: whose name and key end a path, and under which constraints (RFC 5914, RFC 5937).

    What the certificate itself says (name constraints, path length, policies, key usages) limits too; what stands here limits further.

    Attributes:
        certificate: holds the name and the key. Its own signature, and revocation, do not count.
        name_constraints: DER of a NameConstraints (``pkix.extensions.name_constraints``), or None.
        certificate_policies: dotted OIDs that paths under this anchor may be good for; empty: any.
        explicit_policy, inhibit_mapping, inhibit_any: initial indicators of RFC 5280 6.1.1 (e) to (g) for paths under this anchor.
        path_length: CAs that are not self-issued below it at most; None: as the certificate says.
        purposes: what end entities below it may be used for; empty: anything.
    """

    certificate: Certificate
    name_constraints: bytes | None = None
    certificate_policies: frozenset[str] = frozenset()
    explicit_policy: bool = False
    inhibit_mapping: bool = False
    inhibit_any: bool = False
    path_length: int | None = None
    purposes: frozenset[Purpose] = frozenset()


def anchors(*certificates: bytes | Certificate) -> tuple[Anchor, ...]:
    """Anchors without constraints of ours. Raises Malformed: one of them does not parse."""
    return tuple(Anchor(c if isinstance(c, Certificate) else parse_certificate(c)) for c in certificates)


@dataclass(frozen=True, kw_only=True, eq=False)
class Policy:
    """What a relying party accepts, whoever the peer. The defaults are what a platform should use that knows only its anchors.

    Make one and keep it: what is worked out from it is kept with it. Two policies are equal if they are the same object.

    Attributes:
        anchors: where paths may end. The same certificate under several constraints: any of them will do.
        intermediates: certificates of CAs that are at hand, beside those that a peer presents; trusted for nothing.
        families: algorithm families that are taken at all: ``ecc`` (RSA, NIST curves, Ed25519), ``sm2``, ``pq`` (ML-DSA).
        mixed_families: whether one path may hold more than one of them.
        minimum_strength: of every key of a path, in bits of security (NIST SP 800-57 table 2: RSA-2048 112, RSA-3072, P-256, SM2 128).
        status: ``hard-fail``: without a trustworthy status the answer is no. ``soft-fail``: status is asked for, and its absence
            forgiven; a revocation never is. ``offline``: as hard-fail, but nothing is fetched. ``none``: revocation is not looked at.
        max_age: how old a status may be at most, counted from its thisUpdate, whatever its own nextUpdate says; None: no bound but that.
        skew: how far the clocks of those who sign status may be off ours. Certificates get none (RFC 5280 4.1.2.5).
        budget: how long one validation may take in all, status included, by a monotonic clock.
        max_intermediates: CAs between anchor and end entity at most; self-issued ones do not count.
        max_certificates: presented by a peer at most, duplicates apart; more are refused unread.
        max_signatures, max_steps, max_paths: signatures verified, candidates tried and complete paths judged at most.
        certificate_policies: dotted OIDs that are acceptable where a path needs a policy: with ``explicit_policy``, or because a CA
            demands one; empty: any will do (user-initial-policy-set). Without ``explicit_policy`` a path may do without.
        explicit_policy, inhibit_mapping, inhibit_any: initial indicators of RFC 5280 6.1.1 (e) to (g).
        web_pki: also the rules of the CA/Browser Forum for public TLS servers; for peers out on the internet.
        public_suffixes: names under which anybody may register (``co.uk``); with ``web_pki``, no wildcard stands right below one.
    """

    anchors: tuple[Anchor, ...]
    intermediates: tuple[Certificate, ...] = ()
    families: frozenset[Family] = FAMILIES
    mixed_families: bool = False
    minimum_strength: int = 112
    status: StatusMode = "hard-fail"
    max_age: timedelta | None = None
    skew: timedelta = timedelta(seconds=60)
    budget: timedelta = timedelta(seconds=2)
    max_intermediates: int = 8
    max_certificates: int = 1000
    max_signatures: int = 128
    max_steps: int = 2048
    max_paths: int = 16
    certificate_policies: frozenset[str] = frozenset()
    explicit_policy: bool = False
    inhibit_mapping: bool = False
    inhibit_any: bool = False
    web_pki: bool = False
    public_suffixes: frozenset[str] = frozenset()


@dataclass(frozen=True, init=False, slots=True)
class Expected:
    """What the end entity must be called: every one of ``names``.

        Expected("dns:plc-7.plant", "ip:192.0.2.7", "uri:urn:x", "email:ops@plant.example",
                 "device:ecc-devices/plc-7",         # fleet and serial number, as ironroot writes them into a URI
                 "id:88.123.1/plc-7")                # industrial identifier: an otherName of this text, or the URI of it (hdl:, urn:oid:)

    Raises:
        Malformed: a name that is none, or a pattern.
    """

    names: tuple[str, ...]

    def __init__(self, *names: str) -> None:
        object.__setattr__(self, "names", tuple(map(_expected, names)))


def _expected(name: str) -> str:
    kind, _, value = name.partition(":")
    if kind == "device":
        fleet, slash, serial = value.partition("/")
        if not (fleet and slash and serial) or ":" in fleet:
            raise Malformed(f"{name!r} is no device identity; it is written device:FLEET/SERIAL")
        name = f"uri:urn:ironroot:device:{fleet}:{serial}"
    if kind == "id":
        if not value or not value.isprintable():
            raise Malformed(f"{name!r} is no industrial identifier; it is written id:TEXT")
        return name
    if kind == "ip":
        encoded = general_name(name)
        return read_general_name(encoded, der.read(encoded))  # as certificates have it, however it was written
    if kind == "dns" and value.count(".") == 3 and value.replace(".", "").isdecimal():
        raise Malformed(f"{name!r} is an address; write ip:{value}")
    local, at, host = value.rpartition("@")
    if kind == "email" and not local.isascii() and local.isprintable():
        general_name(f"email:x{at}{host}")  # a mailbox in another script, host in A-labels (RFC 9598 3)
        return name
    general_name(name)
    if name.startswith("dns:*"):
        raise Malformed(f"{name!r} is a pattern; ask for the one name that the peer was reached under")
    return name


ANYBODY = Expected()
"""No name is asked for."""


# --- status --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Basis:
    """What the revocation status of one certificate rests on.

    Attributes:
        standing: ``good``, ``revoked``, ``held`` (revoked for the time being), ``unknown`` (its issuer does not know it), ``exempt`` (no
            status is due: nocheck, noRevAvail), ``none`` (nothing usable was found).
        source: ``staple`` (an OCSP response handed in), ``ocsp``, ``crl`` (complete), ``delta`` (complete and delta), ``push``, ``none``.
        detail: the sentence of why there is none, or None.
        url: where it was fetched from; empty: it was handed in or pushed.
        produced_at: OCSP producedAt, thisUpdate of a CRL, when a push came. this_update: counts for ``max_age``.
        until: the last moment at which this may be used: nextUpdate, or what stands in for it.
        revoked_at, reason: of a revocation; ``reason`` is an RFC 5280 5.3.1 name.
    """

    standing: Standing
    source: Source = "none"
    detail: Text | None = None
    url: str = ""
    produced_at: datetime | None = None
    this_update: datetime | None = None
    until: datetime | None = None
    revoked_at: datetime | None = None
    reason: str | None = None

    def origin(self) -> Text:
        """Where it came from, for a person; a part of a sentence."""
        handed_in = self.source in ("crl", "delta") and not self.url
        return say(f"from_{self.source}_supplied" if handed_in else f"from_{self.source}", url=self.url, at=self.produced_at)

    def summary(self) -> Text:
        """What it comes to, for a person; a part of a sentence."""
        return say(f"status_{self.standing}", source=self.origin)


@dataclass(slots=True)
class Question:
    """What every certificate of one validation is asked about with.

    Attributes:
        policy, now: mode, bounds and moment.
        earliest, latest: what the moment may be by the clocks of those who sign status.
        staples, crls: OCSP responses and CRLs in DER that came with the peer or are at hand.
        nonce: octets that OCSP responders must repeat, or None.
        deadline: moment of ``monotonic`` at which the answer is given with what there is.
        monotonic: seconds; never goes back.
        answered: for the status store to keep what it has worked out within this validation.
    """

    policy: Policy
    now: datetime
    earliest: datetime
    latest: datetime
    monotonic: Monotonic
    deadline: float
    staples: tuple[bytes, ...] = ()
    crls: tuple[bytes, ...] = ()
    nonce: bytes | None = None
    answered: dict[object, object] = field(default_factory=dict)


class Monotonic(Protocol):
    """``time.monotonic``, or a test's."""

    def __call__(self) -> float:
        """Seconds since whenever."""


class Status(Protocol):
    """What the entry needs of revocation: one object for the life of a program, with its caches and its way to the network.

    ``issuer`` is the certificate above in a path that is verified up to an anchor. Neither method raises for what is in certificates,
    staples, CRLs or answers.
    """

    def at_hand(self, certificate: Certificate, issuer: Certificate, question: Question) -> Basis | None:
        """An answer that needs no waiting (handed in, cached, pushed, exempt); None if it would have to be fetched. No I/O: a hot path."""

    async def find(self, certificate: Certificate, issuer: Certificate, question: Question) -> Basis:
        """The best answer to be had before the deadline, fetched if the mode allows; ``none`` with ``detail`` if there is none."""

    async def close(self) -> None:
        """Lets go of connections. It may be used again after that, in another event loop too."""


class Fetcher(Protocol):
    """What status needs of the network. Both raise an IronrootError when there is nothing to return."""

    async def get(self, url: str) -> bytes:
        """The body of a 200 response to GET: a CRL."""

    async def post(self, url: str, body: bytes, content_type: str) -> bytes:
        """The body of a 200 response to POST: an OCSP response."""

    async def close(self) -> None:
        """Lets go of connections. A fetcher may be used again after that, in another event loop too."""


# --- the verdict ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at: its outcome, why, and by which clause.

    Attributes:
        name: ``validity``, ``status``, …; stable.
        outcome: ``ok``; ``failed``; ``skipped``: there was nothing to judge, or the policy does not ask; ``unknown``: could not be judged.
        detail: the sentence; ``detail.code`` is its stable name.
        clause: ``RFC 5280 6.1.3 (a)(2)``, or one of a GM standard.
        index: position in ``Result.path`` of the certificate that it is about; None: the path as a whole.
    """

    name: str
    outcome: Outcome
    detail: Text
    clause: str
    index: int | None = None

    @property
    def code(self) -> str:
        return self.detail.code


class Checks(Sequence[Check]):
    """The checks of a verdict, put together by ``account`` when somebody looks: most verdicts are only asked whether they are good."""

    __slots__ = ("_account", "_found")

    def __init__(self, account: Callable[[], tuple[Check, ...]]) -> None:
        self._account = account
        self._found: tuple[Check, ...] | None = None

    def _all(self) -> tuple[Check, ...]:
        if self._found is None:
            self._found = self._account()
        return self._found

    def __len__(self) -> int:
        return len(self._all())

    @overload
    def __getitem__(self, at: int) -> Check: ...

    @overload
    def __getitem__(self, at: slice) -> tuple[Check, ...]: ...

    def __getitem__(self, at: int | slice) -> Check | tuple[Check, ...]:
        return self._all()[at]

    def __iter__(self) -> Iterator[Check]:
        return iter(self._all())


@dataclass(frozen=True, slots=True)
class Result:
    """The verdict. While nothing changes, the parts of a good one are the same objects again; only ``at`` is new.

    Attributes:
        good: the answer.
        path: from the end entity to the anchor; empty if none was found.
        checks: everything that was looked at, certificate by certificate from the end entity up; revocation last.
        basis: what the status of ``path[i]`` rests on, for each certificate below the anchor; empty if status was not looked at.
        message: the sentence; ``code`` is ``good``, or the code of the check that a person should hear of first.
        at: the moment judged for.
        signatures, steps: how much work the search for a path was.
    """

    good: bool
    path: tuple[Certificate, ...]
    checks: Sequence[Check]
    basis: tuple[Basis, ...]
    message: Text
    at: datetime
    signatures: int = 0
    steps: int = 0

    @property
    def code(self) -> str:
        return self.message.code

    def sentence(self, language: Language = "en") -> str:
        """One sentence for a person, in English (``en``) or Chinese (``zh``)."""
        return self.message.zh if language == "zh" else self.message.en

    def as_dict(self) -> dict[str, object]:
        """The result in types that JSON knows; times in ISO 8601, certificates by subject, serial and fingerprint."""
        return {
            "good": self.good,
            "code": self.code,
            "reason": self.sentence("en"),
            "reason_zh": self.sentence("zh"),
            "at": moment(self.at),
            "path": [{"subject": c.subject.text, "serial": f"{c.serial:x}", "sha256": c.sha256.hex()} for c in self.path],
            "checks": [
                {
                    "name": c.name,
                    "outcome": c.outcome,
                    "code": c.code,
                    "text": c.detail.en,
                    "text_zh": c.detail.zh,
                    "clause": c.clause,
                    "certificate": c.index,
                }
                for c in self.checks
            ],
            "basis": [_basis(basis) for basis in self.basis],
        }


def _basis(basis: Basis) -> dict[str, object]:
    def iso(at: datetime | None) -> str | None:
        return None if at is None else moment(at)

    return {
        "standing": basis.standing,
        "source": basis.source,
        "url": basis.url,
        "produced_at": iso(basis.produced_at),
        "until": iso(basis.until),
        "revoked_at": iso(basis.revoked_at),
        "reason": basis.reason,
        "detail": None if basis.detail is None else basis.detail.en,
    }


def certificates(given: Iterable[bytes | Certificate]) -> list[Certificate]:
    """Parsed, in order. Raises Malformed."""
    return [c if isinstance(c, Certificate) else parse_certificate(c) for c in given]
