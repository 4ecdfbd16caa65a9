"""CRLs as the status of certificates needs them: read once, scope and all, their signature verified once, their octets then let go.

    crl = await aside(read, raw)                # LoadedCrl, or the Text of why not
    await aside(crl.check, issuer)              # None, or what is wrong with its signature

A list of more than ``INLINE`` octets is never read in the event loop, and only one such list at a time: that bounds memory.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime
from typing import TypeVar

from pkix import extensions
from pkix.algorithms import PublicKey
from pkix.certificate import Certificate, verify_signed
from pkix.crl_index import CrlIndex, index_crl
from pkix.errors import BadSignature, Malformed, TooLarge, Unavailable
from validate.crl_points import Scope, directory_names, freshest, issuer_urls, scope_of
from validate.names import Canonical, canonical
from validate.text import Text, say

INLINE = 64 << 10
"""Octets up to which a list is read where it is asked for: less than the time a thread takes to begin."""

_reader = ThreadPoolExecutor(1, "crl")
T = TypeVar("T")


@dataclass(slots=True)
class LoadedCrl:
    """One list.

    Attributes:
        index: what it says.
        issuer: who signed it, comparable. numbers: of the issuers of certificates in ``index.entries``, by name.
        scope, freshest, issuer_urls: see ``validate.crl_points``.
        size: octets that it had on the wire.
    """

    index: CrlIndex
    issuer: Canonical
    numbers: Mapping[Canonical, Sequence[int]]
    scope: Scope
    freshest: tuple[str, ...]
    issuer_urls: tuple[str, ...]
    size: int
    _raw: bytes | None = field(repr=False)
    _key: PublicKey | None = None

    @property
    def octets(self) -> int:
        """Memory that it takes, about."""
        return 4096 + self.index.entries.octets + (self.size if self._raw is not None else 0)

    @property
    def verified(self) -> bool:
        """Whether it is known whose signature it has."""
        return self._key is not None

    @property
    def inline(self) -> bool:
        """Whether it may be verified in the event loop: it is short, or was verified before."""
        return self.verified or self.size <= INLINE

    def check(self, signer: Certificate) -> Text | None:
        """None if ``signer`` may sign lists and signed this one (RFC 5280 6.3.3 (f), (g)); else what is wrong. May take long."""
        if extensions.KEY_USAGE in signer.extensions and "cRLSign" not in signer.key_usage:
            return say("no_crl_sign", issuer=signer)
        raw = self._raw
        try:
            if self._key is None and raw is not None:
                verify_signed(raw, signer.public_key)
                self._key, self._raw = signer.public_key, None
            # A signature is one key's: what verified with another does not verify with this one.
            return None if self._key == signer.public_key else say("bad_crl_signature", issuer=signer)
        except BadSignature:
            return say("bad_crl_signature", issuer=signer)
        except (Malformed, Unavailable) as error:
            return say("unusable_detail", why=error)

    def same_key(self, other: LoadedCrl) -> bool:
        """Whether one key has verified both."""
        return self._key is not None and self._key == other._key

    @property
    def this_update(self) -> datetime:
        """When it was made."""
        return self.index.this_update


def read(raw: bytes) -> LoadedCrl | Text:
    """The list, or why it cannot be used. May take long."""
    try:
        index = index_crl(raw)
        issuer, scope = canonical(index.issuer.der), scope_of(index)
        numbers = _numbers(issuer, scope, index.entries.issuers)
        return LoadedCrl(index, issuer, numbers, scope, freshest(index), issuer_urls(index), len(raw), raw)
    except (Malformed, TooLarge) as error:
        return say("unusable_detail", why=error)


def _numbers(issuer: Canonical, scope: Scope, issuers: Sequence[bytes]) -> dict[Canonical, list[int]]:
    """Whose certificates the numbers in the entries stand for; 0: the list's own issuer's (RFC 5280 5.3.3)."""
    numbers = {issuer: [0]}
    if len(issuers) > 1 and not scope.indirect:
        raise Malformed("CRL: entries of other issuers in a list that does not call itself indirect (RFC 5280 5.3.3)")
    for number, value in enumerate(issuers[1:], 1):
        for name in directory_names(value):
            numbers.setdefault(name, []).append(number)
    return numbers


async def aside(function: Callable[..., T], *arguments: object) -> T:
    """What ``function`` returns, from the one thread that reads long lists. Giving up waiting does not end it."""
    return await asyncio.get_running_loop().run_in_executor(_reader, function, *arguments)
