"""What an intent must not collide with: other claims on its token and name, its key's history, its device's history.

    known = look_up(connection, wanted)        # a few statements for any number of requests
    earlier = decide(known, tbs, now)          # for each, in order; ``known.begin`` after each that goes ahead

All of it is read under the lock that the intents are written under: nothing that is decided here can be overtaken.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, Row, case, select

from ca import records
from ca.model import Identity, Method, Reason, State, Tbs
from ca.ports import STALE
from ca.records import among, each
from ca.schema import authorities, certificates, invitations, revocations
from pkix.errors import Conflict, Refused, Unauthenticated

_c, _r = certificates.c, revocations.c
Device = tuple[str, str]  # fleet and serial number


INVITED = among(select(invitations), invitations.c.token_sha256)
EARLIER = select(
    _c.id,
    _c.authority,
    _c.serial,
    _c.state,
    _c.spki_sha256,
    _c.fleet,
    _c.device,
    _c.method,
    _c.evidence,
    _c.names,
    _c.not_after,
    _c.created,
    _c.taken,
    _c.token,
    _c.idempotency,
    _c.tbs,
    _c.der,
    _r.at,
).select_from(records.JOINED)
BY_TOKEN, BY_IDEMPOTENCY = among(EARLIER, _c.token), among(EARLIER, _c.idempotency)
KEY_USES = among(select(_c.spki_sha256, _c.fleet, _c.device, _c.state, _r.reason).select_from(records.JOINED).distinct(), _c.spki_sha256)
OWN_KEYS = among(select(authorities.c.spki_sha256, authorities.c.key), authorities.c.spki_sha256)
DEVICES = among(
    select(_c.fleet, _c.device, _c.state, case((_c.method == Method.IDEVID.value, _c.evidence), else_="").label("idevid"), _r.reason)
    .select_from(records.JOINED)
    .distinct(),
    _c.device,
)
NOT_REVOKED = among(select(_c.sha256).select_from(records.JOINED).where(_r.at.is_(None)), _c.sha256)
HARMLESS = (None, Reason.superseded, Reason.cessationOfOperation)  # what a certificate may be revoked for, and its device be in order
ASK = "Ask the administrator for an invitation (ironroot device invite)."


@dataclass(slots=True)
class Claim:
    """What holds a token or an idempotency value: a certificate of this key and device. ``row`` is None while the batch decides on it."""

    state: str
    spki_sha256: bytes
    device: Device
    taken: datetime
    row: Row[Any] | None


@dataclass(slots=True)
class Known:
    """What the database says about everything that a batch of requests mentions, kept up to date while the batch is decided."""

    invitations: dict[bytes, Row[Any]] = field(default_factory=dict)
    tokens: dict[bytes, Claim] = field(default_factory=dict)
    idempotencies: dict[bytes, Claim] = field(default_factory=dict)
    devices: dict[bytes, set[Device]] = field(default_factory=dict)  # by key
    compromised: set[bytes] = field(default_factory=set)
    own: dict[bytes, set[str | None]] = field(default_factory=dict)
    credentials: dict[Device, set[str]] = field(default_factory=dict)  # the IDevIDs by which a device got certificates; "": otherwise
    barred: set[Device] = field(default_factory=set)  # has a certificate that is held, or revoked for a reason that is not harmless
    good: set[str] = field(default_factory=set)  # evidence: certificates of ours that are not revoked

    def begin(self, tbs: Tbs, now: datetime) -> None:
        """The claims of a new intent on token, name, key and serial number, for the rest of the batch."""
        identity = tbs.identity
        device = (identity.fleet, identity.device)
        claim = Claim(State.INTENDED, tbs.spki_sha256, device, now, None)
        if tbs.token is not None:
            self.tokens[tbs.token] = claim
        if tbs.idempotency is not None:
            self.idempotencies[tbs.idempotency] = claim
        self.devices.setdefault(tbs.spki_sha256, set()).add(device)
        self.credentials.setdefault(device, set()).add(identity.evidence if identity.method is Method.IDEVID else "")


def look_up(connection: Connection, wanted: Sequence[Tbs]) -> Known:
    """All that has to be known to decide on ``wanted``. What only some methods need is asked only for them."""
    known = Known()
    tokens = [tbs.token for tbs in wanted]
    for row in each(connection, INVITED, tokens):
        known.invitations[row.token_sha256] = row
    for row in each(connection, BY_TOKEN, tokens):
        known.tokens[row.token] = _claim(row)
    for row in each(connection, BY_IDEMPOTENCY, (tbs.idempotency for tbs in wanted)):
        known.idempotencies[row.idempotency] = _claim(row)
    keys = [tbs.spki_sha256 for tbs in wanted]
    for row in each(connection, KEY_USES, keys):
        if row.reason == Reason.keyCompromise:
            known.compromised.add(row.spki_sha256)
        if row.state != State.ABANDONED:
            known.devices.setdefault(row.spki_sha256, set()).add((row.fleet, row.device))
    for row in each(connection, OWN_KEYS, keys):
        known.own.setdefault(row.spki_sha256, set()).add(row.key)
    identities = [tbs.identity for tbs in wanted]
    for row in each(connection, DEVICES, (one.device for one in identities if one.method is Method.IDEVID)):
        device = (row.fleet, row.device)
        if row.reason not in HARMLESS:
            known.barred.add(device)
        if row.state != State.ABANDONED:
            known.credentials.setdefault(device, set()).add(row.idevid)
    currents = (bytes.fromhex(one.evidence) for one in identities if one.method is Method.CERTIFICATE)
    known.good = {row.sha256.hex() for row in each(connection, NOT_REVOKED, currents)}
    return known


def _claim(row: Row[Any]) -> Claim:
    return Claim(row.state, row.spki_sha256, (row.fleet, row.device), row.taken, row)


def decide(known: Known, tbs: Tbs, now: datetime) -> Row[Any] | None:
    """None: go ahead. A row: the certificate, or the intent to finish, that this request had made before.

    Raises Unauthenticated, Conflict and Refused, as ``ca.ports.Store.intend``.
    """
    claim = None
    if tbs.idempotency is not None:
        claim = _repeated(known, tbs)
    if claim is None and tbs.token is not None:
        claim = _invited(known, tbs, now)
    if claim is not None and claim.state != State.ISSUED:
        _check_stale(claim, now)
        if claim.spki_sha256 != tbs.spki_sha256:
            raise Unauthenticated("This token was used before, with another key. Ask for a new token.")
    if claim is not None and claim.row is not None:
        if claim.row.at is not None or claim.row.not_after < now:
            raise Conflict("The certificate that this request got is revoked or expired. Make a new request.")
        if claim.state == State.ISSUED:
            return claim.row
    _check_key(known, tbs)
    _check_proof(known, tbs.identity)
    if claim is None:
        return None
    claim.taken = now
    return claim.row


def _check_stale(claim: Claim, now: datetime) -> None:
    """Nobody works on it any more. That it was taken far in the future says only that a clock was ahead: nobody waits for that moment."""
    if claim.row is None or abs(now - claim.taken) < timedelta(seconds=STALE):
        raise Conflict("The same request is being worked on. Repeat it in a moment.", retry_after=STALE)


def _repeated(known: Known, tbs: Tbs) -> Claim | None:
    claim = known.idempotencies.get(tbs.idempotency or b"")
    if claim is None:
        return None
    if claim.spki_sha256 != tbs.spki_sha256 or claim.device != (tbs.identity.fleet, tbs.identity.device):
        raise Conflict("A request of this name was made before, for another key or device. Give the new one a name of its own.")
    return claim


def _invited(known: Known, tbs: Tbs, now: datetime) -> Claim | None:
    """The claim on the token of ``tbs``, if there is one. Who does not hold the token learns nothing of it."""
    token, identity = tbs.token or b"", tbs.identity
    invitation = known.invitations.get(token)
    if invitation is None or invitation.fleet != identity.fleet:
        raise Unauthenticated("This token is not known in this fleet. Check that both were copied whole, or ask for a new token.")
    if invitation.device != identity.device:
        raise Unauthenticated("This token was made for another device. Use the one that was made for this serial number.")
    claim = known.tokens.get(token)
    if claim is not None and claim.state == State.ISSUED:
        raise Unauthenticated("This token was used before; each is good for one certificate. Ask for a new token.")
    if claim is None and invitation.expires <= now:
        raise Unauthenticated("This token has expired. Ask for a new token.")
    return claim


def _check_key(known: Known, tbs: Tbs) -> None:
    key, device = tbs.spki_sha256, (tbs.identity.fleet, tbs.identity.device)
    if key in known.compromised:
        raise Refused("This key was revoked because it may be in other hands. Generate a new key.")
    if known.own.get(key, {tbs.key}) != {tbs.key}:  # an authority's key may be certified anew for itself, by its own reference
        raise Refused("This key belongs to an authority. Generate a key of your own.")
    if known.devices.get(key, {device}) != {device}:
        raise Refused("This key is certified for another device. Generate a key for each device, on the device.")


def _check_proof(known: Known, identity: Identity) -> None:
    """What the proof was good for when it was looked at may be over by now, or be another device's."""
    device = (identity.fleet, identity.device)
    if identity.method is Method.CERTIFICATE and identity.evidence not in known.good:
        raise Refused(f"The certificate presented is revoked or on hold. {ASK}")
    if identity.method is not Method.IDEVID:
        return
    if device in known.barred:  # its manufacturer's certificate is good for ever: it must not undo what an administrator did
        raise Refused(f"A certificate of this device is revoked or on hold; the manufacturer's certificate gets no new one. {ASK}")
    if identity.evidence not in known.credentials.get(device, {identity.evidence}):  # serial numbers are one maker's, not the world's
        raise Refused(
            "This serial number belongs to a device that enrolled with another credential. "
            "If it is the same device, the administrator invites it (ironroot device invite)."
        )
