"""``Signer`` over several key stores at once: each key is used where its reference says that it lives.

A plain name is a key of the default store. A PKCS#11 URI brings its own token, which is opened at its first use. So authorities can live on
different tokens, and one of them can move while the others stay.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

from ca.model import Signable
from ca.pkcs11_uri import Pkcs11Uri, is_uri, parse
from ca.ports import Signer
from pkix.algorithms import KeyKind, PublicKey


class RouterSigner(Signer):
    """See the module.

    Args:
        default: for plain names.  uri: the default's own, if it is a token.
        open_store: makes the signer of another token.
        in_use: references of the keys that have to be usable for the service to be ready.
    """

    def __init__(
        self, default: Signer, uri: Pkcs11Uri | None, open_store: Callable[[Pkcs11Uri], Signer], in_use: Callable[[], Iterable[str]]
    ) -> None:
        self.default, self._open_store, self._in_use = default, open_store, in_use
        self._stores: dict[Pkcs11Uri, Signer] = {} if uri is None else {uri.store: default}
        self._by_reference: dict[str, Signer] = {}

    def store(self, reference: str) -> Signer:
        """The signer of the store that a reference names. Raises Malformed where it is no URI that it looks like."""
        if (known := self._by_reference.get(reference)) is not None:
            return known
        found = self.default
        if is_uri(reference):
            uri = parse(reference).store
            if uri not in self._stores:
                self._stores[uri] = self._open_store(uri)
            found = self._stores[uri]
        self._by_reference[reference] = found
        return found

    async def generate(self, key: str, kind: KeyKind) -> PublicKey:
        return await self.store(key).generate(key, kind)

    async def public_key(self, key: str) -> PublicKey:
        return await self.store(key).public_key(key)

    async def sign(self, item: Signable) -> bytes:
        return await self.store(item.key).sign(item)

    async def destroy(self, key: str) -> None:
        await self.store(key).destroy(key)

    async def ready(self) -> None:
        """Every store in use is asked at once; the first trouble found is raised."""
        stores = {self.store(reference) for reference in self._in_use()} or {self.default}
        outcomes = await asyncio.gather(*(store.ready() for store in stores), return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome

    async def close(self) -> None:
        await asyncio.gather(*(store.close() for store in {self.default, *self._stores.values()}))
