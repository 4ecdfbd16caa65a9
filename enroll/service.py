"""What every enrolment door does between knowing who asks and handing out a certificate.

    csr = parse_csr(message.pkcs10)
    issued = await enrolment.enroll(fleet, csr, proof, now)       # or renew(…) with the device's current certificate as proof

The rules here are about the request; what the certificate then says comes from the identity and the profile (``ca.issue``).
"""

from __future__ import annotations

import hashlib
from datetime import datetime

from ca.issue import Issuer
from ca.model import Authorized, Decision, Identity, Issued, Method
from ca.ports import Store
from enroll.auth import Proof
from pkix.certificate import Certificate
from pkix.csr import Csr
from pkix.errors import Pending, Refused
from policies.model import Fleet

PENDING_RETRY = 15
"""Seconds after which a device that waits for approval should ask again."""


class Enrolment:
    """Args: the store, for approvals; the issuance pipeline."""

    def __init__(self, store: Store, issuer: Issuer) -> None:
        self._store, self._issuer = store, issuer

    async def enroll(self, fleet: Fleet, csr: Csr, proof: Proof, now: datetime, *, request_id: bytes | None = None) -> Issued:
        """A certificate for an authenticated device.

        Args:
            request_id: what names this request among all of this device; the same once more, with the same key, gets the same certificate.
        Raises:
            Refused: the request wants what the fleet does not give, or an administrator said no.
            Pending: an administrator has to approve first. A device that shows a certificate of ours was approved before.
            Unauthenticated, Conflict, Unavailable: as ``Issuer.issue``.
        """
        _check_wishes(fleet, csr)
        _check_subject(csr, proof.identity)
        application = None
        # A token that is used gets nothing new: only the store can tell whether this is the request that used it.
        if fleet.approval == "manual" and proof.identity.method is not Method.CERTIFICATE and not proof.used:
            application = await self._approved(proof.identity, csr, now)
        return await self._issue(fleet, csr, proof, now, request_id, application)

    async def renew(self, fleet: Fleet, csr: Csr, proof: Proof, now: datetime, *, request_id: bytes | None = None) -> Issued:
        """A new certificate for a device that authenticated with its current one (RFC 7030 4.2.2). Raises as ``enroll``."""
        if proof.current is None:
            raise Refused("A renewal takes the device's own current certificate, nothing else. For a first certificate, enrol.")
        _check_wishes(fleet, csr)
        _check_same(csr, proof.current)
        return await self._issue(fleet, csr, proof, now, request_id)

    async def _approved(self, identity: Identity, csr: Csr, now: datetime) -> int:
        """The id of the approved application. One whose approval was used goes on to the store, which knows an earlier request again."""
        application = await self._store.apply(identity, csr.public_key.sha256, now)
        if application.decision is Decision.DENIED:
            raise Refused("An administrator denied this request. Ask why; a new key makes a new request.")
        if application.decision is Decision.PENDING:
            raise Pending(
                f"The request waits for an administrator (ironroot device approve {identity.device} --fleet {identity.fleet}). "
                "Repeat it with the same key.",
                retry_after=PENDING_RETRY,
            )
        return application.id

    async def _issue(
        self, fleet: Fleet, csr: Csr, proof: Proof, now: datetime, request_id: bytes | None, application: int | None = None
    ) -> Issued:
        request = Authorized(
            csr=csr,
            identity=proof.identity,
            profile=fleet.profile,
            authority=fleet.authority,
            token=proof.token,
            idempotency=None if request_id is None else _idempotency(proof.identity, csr, request_id),
            application=application,
        )
        return await self._issuer.issue(request, now)


def _idempotency(identity: Identity, csr: Csr, request_id: bytes) -> bytes:
    """Names a request so that nobody but the same device, with the same credential and key, can name it."""
    who = f"{identity.fleet}/{identity.device}/{identity.evidence}/{csr.public_key.sha256.hex()}/"
    return hashlib.sha256(who.encode() + request_id).digest()


def _check_wishes(fleet: Fleet, csr: Csr) -> None:
    if csr.public_key.kind not in fleet.keys:
        raise Refused(f"Fleet {fleet.id} takes keys of kind {' or '.join(fleet.keys)}; this one is {csr.public_key.kind}.")
    if csr.requests_ca:
        raise Refused("The request asks for a CA certificate (basicConstraints CA:TRUE), which no device gets. Leave that extension out.")


def _check_subject(csr: Csr, identity: Identity) -> None:
    """A device that believes to be another one must be told. The rest of the subject is not ours to mind: it is not copied."""
    for attribute in ("CN", "serialNumber"):
        for value in csr.subject.get(attribute):
            if value != identity.device:
                raise Refused(
                    f"The request's subject says {attribute}={value}, but the credential is that of {identity.device}. "
                    "Send the subject of this device, or an empty one."
                )


def _check_same(csr: Csr, current: Certificate) -> None:
    """Subject and names as in the current certificate, or left out (RFC 7030 4.2.2)."""
    if csr.subject.text and csr.subject.text != current.subject.text:
        raise Refused(
            f"The request's subject ({csr.subject.text}) differs from the current certificate's ({current.subject.text}). "
            "A renewal keeps it: send the same one, or an empty one."
        )
    if csr.names and set(csr.names) != set(current.names):
        raise Refused("The alternative names asked for differ from the current certificate's. A renewal keeps them: leave them out.")
