"""One-time tokens: ``secret.pin``, made here, stored only as a hash, shown once.

The secret is 32 random octets; the pin is the SHA-256 of the root certificate behind the service's TLS certificate, so that whoever holds
the token needs no trust on first use. Both in base64url without padding.
"""

from __future__ import annotations

import base64
import hashlib
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from ca.model import Invitation
from ironroot.names import canonical
from ironroot.setup import TLS_FLEET
from ironroot.wire import Installation
from pkix.errors import Malformed, Refused
from policies.model import DEVICE
from policies.names import choose


@dataclass(frozen=True, slots=True)
class Invited:
    """A token, and what its holder needs to know."""

    token: str
    ca_sha256: str
    expires: datetime


async def invite(here: Installation, fleet: str, device: str, *, names: Sequence[str], now: datetime, actor: str) -> Invited:
    """Makes and stores one token.

    Args:
        names: DNS names and addresses that the certificate shall carry; the one who invites vouches for them.
    Raises:
        NotFound: no such fleet.  Malformed: a serial or name that no certificate may carry.
        Refused: the fleet takes no tokens, or no names.
    """
    chosen = here.fleet(fleet)
    if "token" not in chosen.authenticators:
        raise Refused(f"Fleet {fleet} does not take tokens; its policies/fleets/{fleet}.toml says which proofs it takes.")
    if not DEVICE.fullmatch(device):
        raise Malformed("A device serial is 1 to 64 letters, digits, dots and hyphens, and starts with a letter or digit.")
    root = here.authority(here.fleet(TLS_FLEET).authority).chain[-1]
    token = f"{_secret()}.{_text(root.sha256)}"
    vouched = choose(here.policies.profiles[chosen.profile], vouched=sorted({canonical(name) for name in names}), proposed=())
    expires = now + chosen.token_lifetime
    invitation = Invitation(hashlib.sha256(token.encode()).digest(), fleet, device, vouched, now, expires)
    await here.store.invite([invitation], now, actor=actor)
    return Invited(token, root.sha256.hex(), expires)


def _text(octets: bytes) -> str:
    return base64.urlsafe_b64encode(octets).rstrip(b"=").decode()


def _secret() -> str:
    """256 random bits whose text does not begin with a hyphen, which commands take for an option."""
    while (text := _text(secrets.token_bytes(32))).startswith("-"):
        continue
    return text
