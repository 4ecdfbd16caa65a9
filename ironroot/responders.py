"""Which delegated signer answers OCSP for an authority right now."""

from __future__ import annotations

from ca.model import Authority, Record
from ca.ports import Store
from ocsp.answer import Responder
from pkix.certificate import parse_certificate
from pkix.errors import Unavailable


def responder_profile(authority: Authority) -> str:
    """The profile of an authority's OCSP signers."""
    return f"{authority.family}-ocsp"


class Responders:
    """The newest OCSP signer of every authority, read again by ``refresh``."""

    def __init__(self) -> None:
        self._by_authority: dict[str, Responder] = {}

    def for_authority(self, authority: str) -> Responder:
        """Raises Unavailable while an authority has no signer yet."""
        try:
            return self._by_authority[authority]
        except KeyError:
            raise Unavailable(f"{authority} has no OCSP signer yet.", retry_after=5) from None

    async def refresh(self, store: Store, authorities: dict[str, Authority]) -> None:
        """Reads the newest signers from the store."""
        for authority in authorities.values():
            newest: Record | None = await store.newest(responder_profile(authority), f"{authority.id}-ocsp")
            current = self._by_authority.get(authority.id)
            if newest is None or newest.der is None or newest.key is None:
                continue
            if current is None or current.certificate.sha256 != newest.sha256:
                self._by_authority[authority.id] = Responder(authority, parse_certificate(newest.der), newest.key)
