"""Who asks? From a credential to an ``Identity``, or a refusal that says what to do.

    proof = await authenticator.token(fleet, request.headers["Authorization"], now)    # HTTP Basic: serial and one-time token
    proof = await authenticator.certificate(fleet, certificate, presented, now)        # from TLS or from a CMS signature

That the caller holds the certificate's key was proved before (by TLS, or by the signature on the message). Here is decided whose
certificate it is: one of ours, by its record in the store, or one of a manufacturer whom the fleet trusts.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from ca.model import Identity, Method, Reason, Record, State
from ca.ports import Store
from enroll.path import verify_path
from enroll.trust import Trust
from pkix.certificate import Certificate
from pkix.errors import Refused, Unauthenticated
from policies.model import DEVICE, Fleet

_ASK_AGAIN = "Ask the administrator for a new invitation (ironroot device invite)."


@dataclass(frozen=True, slots=True)
class Proof:
    """What an authenticator found out.

    ``token`` is the SHA-256 of the one-time token to burn, if that was the proof, and ``used`` whether a certificate was got with it
    already. ``current`` is the device's certificate of ours that it authenticated with, if that was it.
    """

    identity: Identity
    token: bytes | None = None
    used: bool = False
    current: Certificate | None = None


class Authenticator:
    """Args: the store with invitations and certificates; ``trust`` gives the manufacturers' CAs of a fleet (``enroll.trust``)."""

    def __init__(self, store: Store, trust: Trust) -> None:
        self._store, self._trust = store, trust

    async def token(self, fleet: Fleet, authorization: str, now: datetime) -> Proof:
        """A one-time token in an HTTP Authorization header: ``Basic base64(serial:token)`` (RFC 7617).

        Looks at the token and changes nothing: ``Store.intend`` burns it. One that is used already passes here, because the same request
        once more must get its certificate; the store refuses any other request.

        Raises:
            Unauthenticated: not such a header; the token is unknown, expired, or another device's or fleet's.
            Refused: the fleet takes no tokens.
        """
        device, token = _basic(authorization)
        if "token" not in fleet.authenticators:
            raise Refused(f"Fleet {fleet.id} does not take one-time tokens. It takes: {_doors(fleet)}.")
        digest = hashlib.sha256(token).digest()
        invitation = await self._store.invitation(digest)
        if invitation is None:
            raise Unauthenticated(f"The one-time token is not known here. {_ASK_AGAIN}")
        if invitation.fleet != fleet.id:
            raise Unauthenticated("The one-time token was made for another fleet. Use the address that came with it.")
        if invitation.device != device:
            raise Unauthenticated("The one-time token was made for another device. Its serial number is the user name.")
        if invitation.used is None and now >= invitation.expires:
            raise Unauthenticated(f"The one-time token expired at {invitation.expires:%F %TZ}. {_ASK_AGAIN}")
        identity = Identity(fleet.id, device, Method.TOKEN, digest.hex(), invitation.names)
        return Proof(identity, token=digest, used=invitation.used is not None)

    async def certificate(self, fleet: Fleet, certificate: Certificate, presented: Sequence[Certificate], now: datetime) -> Proof:
        """A certificate whose key the caller holds: the device's current one of ours, or its manufacturer's (IDevID).

        Args:
            presented: other certificates that came along, for the path to the manufacturer.
        Raises:
            Refused: ours, but revoked, expired, or of another fleet; or no certificate that this fleet takes.
            Unauthenticated: not ours, and no manufacturer's certificate that this fleet trusts.
        """
        for record in await self._store.by_sha256(certificate.sha256):
            _check_own(record, fleet, now)
            return Proof(Identity(fleet.id, record.device, Method.CERTIFICATE, certificate.sha256.hex(), record.names), current=certificate)
        if "idevid" not in fleet.authenticators:
            raise Refused(f"The certificate presented is none of ours, and fleet {fleet.id} takes no other. It takes: {_doors(fleet)}.")
        verify_path(certificate, presented, self._trust(fleet), now)
        return Proof(Identity(fleet.id, _manufacturer_serial(certificate), Method.IDEVID, certificate.sha256.hex()))


def _basic(authorization: str) -> tuple[str, bytes]:
    """User name and password of a Basic header."""
    scheme, _, credentials = authorization.partition(" ")
    try:
        user, colon, password = base64.b64decode(credentials.strip(), validate=True).partition(b":")
    except (binascii.Error, ValueError):
        colon = b""
    if scheme.lower() != "basic" or not colon:
        raise Unauthenticated("The Authorization header is not HTTP Basic. Send serial number and token as user and password.")
    device = user.decode("ascii", "replace")
    if not DEVICE.fullmatch(device):
        raise Unauthenticated("The user name is no serial number: letters, digits, '.' and '-', at most 64.")
    return device, password


def _check_own(record: Record, fleet: Fleet, now: datetime) -> None:
    if record.fleet != fleet.id:
        raise Refused(f"The certificate presented belongs to another fleet than {fleet.id}. Use the address of its own.")
    if record.revocation is not None:
        reason = "on hold" if record.revocation.reason is Reason.certificateHold else f"revoked ({record.revocation.reason.name})"
        raise Refused(f"The certificate presented is {reason} since {record.revocation.at:%F %TZ}. {_ASK_AGAIN}")
    if record.state is not State.ISSUED or not record.not_before <= now <= record.not_after:
        raise Refused(f"The certificate presented is not valid now, but from {record.not_before:%F} to {record.not_after:%F}. {_ASK_AGAIN}")


def _manufacturer_serial(certificate: Certificate) -> str:
    """The device's serial number as its manufacturer wrote it: the one serialNumber attribute of the subject (IEEE 802.1AR 8.6)."""
    found = certificate.subject.get("serialNumber")
    if len(found) != 1 or not DEVICE.fullmatch(found[0]):
        raise Unauthenticated("The subject of the device certificate has not one serialNumber of at most 64 letters, digits, '.' and '-'.")
    return found[0]


def _doors(fleet: Fleet) -> str:
    names = {"token": "a one-time token", "idevid": "the manufacturer's certificate"}
    return " or ".join(names[door] for door in fleet.authenticators) or "nothing new, only renewals"
