"""The three ports of the trust core. Adapters implement them; everything else here takes them as arguments.

``Signer``: ``ca.signer_native`` (the simulator's socket), ``ca.signer_pkcs11`` (any PKCS#11 token), ``ca.signer_router`` (several at once).
``Store``: ``ca.store_sql`` (SQLite, PostgreSQL). ``Clock``: ``ironroot.clock``.

All of ``Store``'s verbs are one durable transaction each, audit entry included: when one returns, a power cut loses nothing of it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from datetime import datetime
from typing import Protocol

from ca.model import (
    Application,
    AuditEntry,
    Authority,
    CrlRecord,
    Decision,
    Identity,
    Intent,
    Invitation,
    Issued,
    Linted,
    Reason,
    Record,
    Signable,
    Status,
)
from pkix.algorithms import KeyKind, PublicKey
from pkix.crl import CrlEntry
from pkix.errors import Conflict


class SerialTaken(Conflict):
    """``Store.intend``: this authority gave that serial number out before. Draw another."""

    code = "serial_taken"


class Clock(Protocol):
    """Where ``now`` comes from, at the rim only."""

    def now(self) -> datetime:
        """The present moment, UTC, whole seconds."""


class Signer(Protocol):
    """Keys that we can use and never see.

    Errors: ``Unavailable`` (nothing was signed), ``OutcomeUnknown`` (it may have been), ``NotFound`` (no such key).
    """

    async def generate(self, key: str, kind: KeyKind) -> PublicKey:
        """A new key under the reference ``key``. Raises Conflict if there is one."""

    async def public_key(self, key: str) -> PublicKey:
        """The public key under ``key``. Raises NotFound."""

    async def sign(self, item: Signable) -> bytes:
        """The signature over ``item``, encoded as X.509 wants it in its BIT STRING. Not verified: the caller does that."""

    async def destroy(self, key: str) -> None:
        """Destroys a key for good (retired OCSP signers). Raises NotFound."""

    async def ready(self) -> None:
        """Returns if a signature could be made now. Raises Unavailable saying what is wrong."""

    async def close(self) -> None: ...


class Store(Protocol):
    """What must not be lost. Raises ``Unavailable`` where the database or the disk is at fault."""

    # Authorities
    async def add_authority(self, authority: Authority, now: datetime) -> None:
        """Raises Conflict if its id is taken."""

    async def authorities(self) -> dict[str, Authority]:
        """All of them by id, parents before children, chains filled in."""

    async def supersede(self, authority: str, successor: str, now: datetime, *, actor: str) -> None:
        """From now on ``successor`` issues what ``authority`` would have. Raises Conflict if it has a successor already."""

    async def move_key(self, authority: Authority, key: str, now: datetime, *, actor: str) -> None:
        """Its key, the same one, has the reference ``key`` from now on. Raises Conflict if its reference is not what it was."""

    # Issuance
    async def intend(self, linted: Linted, now: datetime) -> Intent | Issued:
        """Records the intent, burning its token and using up its approval in the same transaction.

        Returns an ``Intent`` to sign: a new one, or the unfinished one of the same token and key once nobody took it up for ``STALE``
        seconds; or the ``Issued`` of an earlier request with the same ``idempotency``, which spends nothing.

        Raises:
            Unauthenticated: the token is unknown, expired, of another fleet or device, or used.
            SerialTaken: draw another serial.
            Conflict: the token's request is still being worked on, or the certificate that the same request got is no longer good.
            Refused: the key was revoked for compromise, belongs to an authority, or is certified for another device; the approval was
                used; the certificate that renews is revoked or held by now. To a manufacturer's certificate: a certificate of the device
                is held, or revoked for anything but superseded and cessationOfOperation, or all were got with other credentials.
        """

    async def record(self, intent: Intent, der: bytes, now: datetime) -> Issued:
        """Intent → issued. If somebody finished it before, returns what they recorded."""

    async def unfinished(self, created_before: datetime) -> list[Intent]:
        """Intents without a certificate, oldest first: what recovery works on.

        One that holds a token is left to its device for ``PATIENCE`` seconds more.
        """

    async def abandon(self, intent: Intent, now: datetime) -> None:
        """For an intent that was certainly never signed: its serial is dead, its token and its approval are good again."""

    # Status and revocation
    async def status(self, authority: str, serial: int) -> Status | None:
        """None: never issued here. This is the hot read of OCSP."""

    async def revoke(
        self, ids: Sequence[int], reason: Reason, now: datetime, *, actor: str, invalidity: datetime | None = None
    ) -> list[Record]:
        """All of ``ids`` in one transaction. Already revoked ones keep date and reason, except that a hold becomes final.

        Returns the records as they are now. Raises NotFound for an id that is not there (and then changes nothing).
        """

    async def unhold(self, ids: Sequence[int], now: datetime, *, actor: str) -> list[Record]:
        """Lifts certificateHold. Raises Conflict if one of them is revoked for another reason (and then changes nothing)."""

    def revocation_entries(self, authority: str) -> AsyncIterator[CrlEntry]:
        """Revoked serials of one authority, unexpired or expired since its last CRL, in serial order, from a cursor."""

    # Look-ups
    async def get(self, certificate_id: int) -> Record | None: ...
    async def by_serial(self, serial: int) -> list[Record]: ...
    async def by_sha256(self, prefix: bytes, nibble: str = "") -> list[Record]:
        """Certificates whose SHA-256 starts with ``prefix`` (whole octets) and then the hex digit ``nibble``."""

    async def by_device(self, device: str, fleet: str | None = None) -> list[Record]:
        """All of a device, newest first."""

    async def page(self, *, after: int = 0, limit: int = 100, fleet: str | None = None, authority: str | None = None) -> list[Record]:
        """Certificates with ids above ``after``, ascending."""

    async def newest(self, profile: str, device: str) -> Record | None:
        """The latest issued one of a profile and device: OCSP signers, the service's TLS certificate."""

    # Enrolment
    async def invite(self, invitations: Sequence[Invitation], now: datetime, *, actor: str) -> None: ...
    async def invitation(self, token_sha256: bytes) -> Invitation | None: ...
    async def apply(self, identity: Identity, spki_sha256: bytes, now: datetime) -> Application:
        """Records that a device asks for approval of this key, or returns the application that it made before."""

    async def applications(self, decision: Decision | None = None) -> list[Application]: ...
    async def decide(self, ids: Sequence[int], decision: Decision, now: datetime, *, actor: str) -> list[Application]:
        """Decides the applications ``ids``: those that the administrator was shown, and no others.

        Raises NotFound if one of them is not pending any more (and then changes nothing).
        """

    # CRLs
    async def next_crl_number(self, authority: str) -> int:
        """Reserves and returns the next number; a number that is reserved is never given again."""

    async def publish_crl(self, crl: CrlRecord, now: datetime) -> None:
        """Raises Conflict unless its number is above the published one."""

    async def latest_crl(self, authority: str) -> CrlRecord | None: ...
    async def latest_crl_number(self, authority: str) -> int | None:
        """Number of the newest published CRL: the cheap question, whether a cached one is still it."""

    async def crl_is_stale(self, authority: str) -> bool:
        """Whether a revocation or unhold happened since the newest CRL was made (or there is none)."""

    # Audit
    async def audit(self, actor: str, action: str, subject: str, now: datetime, **detail: object) -> None:
        """Appends one entry of its own, for acts that are no other verb of this store."""

    def audit_entries(self, after: int = 0) -> AsyncIterator[AuditEntry]: ...
    async def audit_head(self) -> AuditEntry | None: ...
    async def add_checkpoint(self, seq: int, digest: bytes, key: str, signature: bytes, now: datetime) -> None: ...
    async def checkpoints(self) -> list[tuple[int, bytes, str, bytes]]: ...

    # One of many machines
    async def lease(self, name: str, holder: str, seconds: int, now: datetime) -> bool:
        """Takes or renews a named lease; False while somebody else holds it."""

    async def ready(self) -> None:
        """Returns if a write would succeed now. Raises Unavailable."""

    async def close(self) -> None: ...


STALE = 10  # seconds after which nobody works on an intent any more; longer than every deadline on the way (signer: 5 s)

PATIENCE = 600
"""Seconds for which recovery leaves an intent with a token to whoever holds the token.

A device that did not name its request gets a certificate only by finishing the intent itself: once recovery has, the token counts as
used, and the device needs a new one. Ten minutes outlast a restart of the service or of the device."""
