"""A signer in software, for tests of what stands before and behind the HSM."""

from __future__ import annotations

from dataclasses import dataclass, field

from ca.model import Signable
from pkix.algorithms import KeyKind, PublicKey
from pkix.errors import Conflict, NotFound, Unavailable
from pkix.privatekey import PrivateKey, generate


@dataclass
class SoftSigner:
    """A ``Signer`` whose keys are in memory; ``away`` makes it unreachable."""

    held: dict[str, PrivateKey] = field(default_factory=dict)
    away: bool = False
    signed: int = 0

    async def generate(self, key: str, kind: KeyKind) -> PublicKey:
        if key in self.held:
            raise Conflict(f"There is a key {key} already.")
        self.held[key] = generate(kind)
        return self.held[key].public_key

    async def public_key(self, key: str) -> PublicKey:
        if key not in self.held:
            raise NotFound(f"There is no key {key}.")
        return self.held[key].public_key

    async def sign(self, item: Signable) -> bytes:
        if self.away:
            raise Unavailable("The HSM does not answer. Try again later.", retry_after=7)
        self.signed += 1
        return self.held[item.key].sign(item.take())

    async def destroy(self, key: str) -> None:
        del self.held[key]

    async def ready(self) -> None:
        if self.away:
            raise Unavailable("The HSM does not answer.")

    async def close(self) -> None: ...
