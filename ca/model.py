"""The words of the trust core, as types. A value of one of these is the proof that a step was taken.

    Csr ─authenticate→ Authorized ─build→ Tbs ─lint→ Linted ─store.intend→ Intent ─signer.sign→ signature ─verify→ Issued

``Linted`` is made only by ``ca.issue``, ``Intent`` only by a store from a ``Linted``, and an ``Intent`` gives its bytes to a signer once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import IntEnum, StrEnum

from pkix.algorithms import PublicKey
from pkix.certificate import Certificate
from pkix.csr import Csr
from pkix.errors import Fatal


@dataclass(frozen=True, slots=True)
class Authority:
    """A CA: its certificate, where its key is, what stands above it.

    ``id`` is its name in URLs and commands (``ecc-issuing``); ``key`` the reference that the signer understands; ``parent`` the id of
    the authority that certified it (its own for a root); ``chain`` its own certificate first, then upwards to the root. ``revoked``: it or
    one above it is, or is held; it issues nothing more, and goes on saying what is revoked. ``successor``: the id of the one that issues in
    its place, once it was given a new key; it too goes on saying what is revoked.
    """

    id: str
    certificate: Certificate
    key: str
    parent: str
    chain: tuple[Certificate, ...]
    revoked: bool = False
    successor: str | None = None

    @property
    def is_root(self) -> bool:
        return self.parent == self.id

    @property
    def family(self) -> str:
        """``sm2`` or ``ecc``: the algorithm families never mix in one chain."""
        return "sm2" if self.certificate.public_key.kind == "sm2" else "ecc"


def current(authorities: Mapping[str, Authority], authority: str) -> str:
    """The id of the one that issues for ``authority`` today: itself, or the last of its successors."""
    while authority in authorities and (successor := authorities[authority].successor) is not None:
        authority = successor
    return authority


class Method(StrEnum):
    """How somebody proved who they are."""

    TOKEN = "token"  # noqa: S105 - the name of a method
    IDEVID = "idevid"
    CERTIFICATE = "certificate"
    SERVICE = "service"


@dataclass(frozen=True, slots=True)
class Identity:
    """Who was authenticated: the device ``device`` (its serial number) of fleet ``fleet``.

    ``names`` are the subject alternative names that the authenticator vouches for (``dns:host``, ``ip:::1``), in their canonical form;
    ``evidence`` identifies the proof (hex SHA-256 of the token or certificate), for audit and for idempotence.
    """

    fleet: str
    device: str
    method: Method
    evidence: str
    names: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Authorized:
    """A request whose sender was authenticated and may have a certificate of its fleet.

    ``token`` is the SHA-256 of the one-time token to burn with the intent, if that was the proof. ``idempotency`` (32 octets or None)
    names the request: a repetition gets the certificate that the first one got. ``key`` is the signer's reference when the key is one
    of our own (OCSP signers), else None. ``application`` is the one whose approval this uses up, where an administrator had to approve.
    """

    csr: Csr
    identity: Identity
    profile: str
    authority: str
    token: bytes | None = None
    idempotency: bytes | None = None
    key: str | None = None
    application: int | None = None


@dataclass(frozen=True, slots=True)
class Tbs:
    """A certificate to be signed: the exact DER of its TBSCertificate, and what the store wants to look it up by."""

    authority: str
    serial: int
    der: bytes
    subject: str
    not_before: datetime
    not_after: datetime
    spki_sha256: bytes
    profile: str
    profile_hash: bytes
    identity: Identity
    token: bytes | None = None
    idempotency: bytes | None = None
    key: str | None = None
    application: int | None = None


@dataclass(frozen=True, slots=True)
class Linted:
    """A Tbs that lint found nothing against. Only ``ca.issue`` makes one: it alone holds the key."""

    tbs: Tbs
    proof: object = field(repr=False)

    def __post_init__(self) -> None:
        if self.proof is not LINT_PROOF:
            raise Fatal("a Linted was made outside of the issuance pipeline")


LINT_PROOF = object()


class Signable:
    """Octets that may be signed once, with one key: what a ``Signer`` takes.

    ``key`` is the signer's reference; ``purpose`` (``certificate``, ``csr``, ``crl``, ``ocsp``, ``audit``)
    goes to the HSM's own log.
    """

    __slots__ = ("_message", "key", "public_key", "purpose")

    def __init__(self, key: str, public_key: PublicKey, purpose: str, message: bytes) -> None:
        self.key, self.public_key, self.purpose = key, public_key, purpose
        self._message: bytes | None = message

    def take(self) -> bytes:
        """The octets, the first time. Raises Fatal the second."""
        message, self._message = self._message, None
        if message is None:
            raise Fatal("the same octets were given to the signer twice")
        return message


@dataclass(frozen=True, slots=True)
class Intent:
    """A certificate that is durably recorded as about to be signed: row ``id``. Serial and TBS are fixed from here on.

    ``created`` is when; what crashes leave behind is an Intent, and recovery signs exactly its ``tbs_der``.
    """

    id: int
    authority: str
    serial: int
    tbs_der: bytes
    identity: Identity
    created: datetime


@dataclass(frozen=True, slots=True)
class Issued:
    """A certificate that was signed, verified and durably recorded."""

    id: int
    authority: str
    serial: int
    der: bytes


class Reason(IntEnum):
    """CRLReason (RFC 5280 5.3.1), named as there. 7 is not used; removeFromCRL (8) is only for delta CRLs."""

    unspecified = 0
    keyCompromise = 1
    cACompromise = 2
    affiliationChanged = 3
    superseded = 4
    cessationOfOperation = 5
    certificateHold = 6
    removeFromCRL = 8
    privilegeWithdrawn = 9
    aACompromise = 10


class State(StrEnum):
    """What the store knows of a serial. ``intended``: a signature may exist, no certificate was handed out."""

    INTENDED = "intended"
    ABANDONED = "abandoned"
    ISSUED = "issued"


@dataclass(frozen=True, slots=True)
class Revocation:
    """That a certificate is no longer good: since when (``at``), why, and since when its key may have been in other hands."""

    at: datetime
    reason: Reason
    invalidity: datetime | None = None


@dataclass(frozen=True, slots=True)
class Record:
    """One certificate as the store knows it. ``der`` is None while it is only an intent."""

    id: int
    authority: str
    serial: int
    state: State
    der: bytes | None
    sha256: bytes | None
    spki_sha256: bytes
    subject: str
    fleet: str
    device: str
    names: tuple[str, ...]
    profile: str
    method: Method
    not_before: datetime
    not_after: datetime
    created: datetime
    key: str | None
    revocation: Revocation | None


@dataclass(frozen=True, slots=True)
class Status:
    """What a relying party may be told of one serial: state, revocation, and until when the certificate runs."""

    state: State
    revocation: Revocation | None
    not_after: datetime


@dataclass(frozen=True, slots=True)
class Invitation:
    """A one-time token as stored: its SHA-256 and what it is good for."""

    token_sha256: bytes
    fleet: str
    device: str
    names: tuple[str, ...]
    created: datetime
    expires: datetime
    used: datetime | None = None


class Decision(StrEnum):
    """State of a request that waits for an administrator. ``USED``: approved, and the certificate that this was good for was begun."""

    PENDING = "pending"
    APPROVED = "approved"
    USED = "used"
    DENIED = "denied"


@dataclass(frozen=True, slots=True)
class Application:
    """A device's request in a fleet that asks for approval. ``spki_sha256`` is the key it asked for."""

    id: int
    fleet: str
    device: str
    spki_sha256: bytes
    method: Method
    decision: Decision
    created: datetime
    decided: datetime | None


@dataclass(frozen=True, slots=True)
class CrlRecord:
    """A published CRL: DER, its number (strictly rising per authority) and its times."""

    authority: str
    number: int
    der: bytes
    this_update: datetime
    next_update: datetime
    entries: int


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """One link of the audit chain: ``digest`` covers the entry and the digest before it (``ca.audit``)."""

    seq: int
    at: datetime
    actor: str
    action: str
    subject: str
    detail: Mapping[str, object]
    digest: bytes
