"""The composition root: opens one installation and hands out its parts, wired.

async with installation(Settings.load(home)) as here:
    issued = await here.issuer.issue(request, here.clock.now())
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial

from ca.issue import Issuer
from ca.model import Authority
from ca.pkcs11_uri import Pkcs11Uri
from ca.ports import Store
from ca.signer_native import NativeSigner
from ca.signer_pkcs11 import Pkcs11Signer
from ca.signer_router import RouterSigner
from ca.store_sql import SqlStore
from ironroot.clock import SystemClock
from ironroot.settings import Settings
from pkix.algorithms import KeyKind
from pkix.errors import NotFound
from policies import loader
from policies.loader import Policies
from policies.model import Fleet


@dataclass(slots=True)
class Installation:
    """The parts of one installation, open."""

    settings: Settings
    policies: Policies
    store: Store
    signer: RouterSigner
    issuer: Issuer
    authorities: dict[str, Authority]
    clock: SystemClock

    async def makes(self, kind: KeyKind) -> bool:
        """Whether the key store of the settings makes keys of this kind, and signs with them as X.509 needs it."""
        default = self.signer.default
        return not isinstance(default, Pkcs11Signer) or await default.can(kind)

    async def reload_authorities(self) -> None:
        """Reads the authorities again: another process may have made one."""
        self.authorities.update(await self.store.authorities())

    def authority(self, authority: str) -> Authority:
        """Raises NotFound naming the ones there are."""
        try:
            return self.authorities[authority]
        except KeyError:
            raise NotFound(f"There is no authority {authority!r}. There are: {', '.join(self.authorities) or 'none'}.") from None

    def fleet(self, fleet: str) -> Fleet:
        """Raises NotFound naming the ones there are."""
        try:
            return self.policies.fleets[fleet]
        except KeyError:
            raise NotFound(f"There is no fleet {fleet!r}. There are: {', '.join(self.policies.fleets) or 'none'}.") from None


def token(settings: Settings, uri: Pkcs11Uri) -> Pkcs11Signer:
    """The signer of a PKCS#11 token; opened at its first use."""
    return Pkcs11Signer(uri, settings.home, processes=settings.hsm.processes)


def key_stores(settings: Settings, authorities: Mapping[str, Authority]) -> RouterSigner:
    """The signer of this installation: the store that the settings name, and those that the authorities' keys name themselves.

    It is ready while every authority that issues can sign.
    """
    uri = settings.hsm_uri
    default = NativeSigner(settings.hsm_socket, settings.pin_file) if uri is None else token(settings, uri)

    def in_use() -> list[str]:
        return [authority.key for authority in authorities.values() if not authority.revoked and authority.successor is None]

    return RouterSigner(default, uri, partial(token, settings), in_use)


@asynccontextmanager
async def installation(settings: Settings) -> AsyncIterator[Installation]:
    """Opens the database and the policies; the HSM is reached at its first use. Closes all at the end."""
    policies = loader.load(settings.policies)
    store = await SqlStore.open(settings.database_url, lock_file=settings.database_lock)
    authorities: dict[str, Authority] = {}
    signer = key_stores(settings, authorities)
    try:
        authorities.update(await store.authorities())
        issuer = Issuer(
            store=store,
            signer=signer,
            authorities=authorities,
            profiles=policies.profiles,
            urls=settings.urls,
            organization=settings.organization,
            country=settings.country,
        )
        yield Installation(settings, policies, store, signer, issuer, authorities, SystemClock())
    finally:
        await signer.close()
        await store.close()
