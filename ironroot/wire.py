"""The composition root: opens one installation and hands out its parts, wired.

async with installation(Settings.load(home)) as here:
    issued = await here.issuer.issue(request, here.clock.now())
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from ca.issue import Issuer
from ca.model import Authority
from ca.ports import Signer, Store
from ca.signer_native import NativeSigner
from ca.store_sql import SqlStore
from ironroot.clock import SystemClock
from ironroot.settings import Settings
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
    signer: Signer
    issuer: Issuer
    authorities: dict[str, Authority]
    clock: SystemClock

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


@asynccontextmanager
async def installation(settings: Settings) -> AsyncIterator[Installation]:
    """Opens the database and the policies; the HSM is reached at its first use. Closes all at the end."""
    policies = loader.load(settings.policies)
    store = await SqlStore.open(settings.database_url, lock_file=settings.database_lock)
    signer = NativeSigner(settings.hsm_socket, settings.pin_file)
    try:
        authorities = await store.authorities()
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
