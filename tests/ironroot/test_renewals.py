"""What the service renews by itself, its TLS certificate and OCSP signers: when their time has come, and when they begin in the future."""

from __future__ import annotations

import asyncio
import ssl
from dataclasses import dataclass
from datetime import datetime, timedelta

from ironroot.clock import SystemClock
from ironroot.settings import Settings
from ironroot.setup import ensure_responder, ensure_tls, tls_certificate
from ironroot.wire import installation
from pkix.certificate import parse_certificate


@dataclass
class Ahead(SystemClock):
    """A clock that stands ahead by so much."""

    by: timedelta = timedelta()

    def now(self) -> datetime:
        return super().now() + self.by


def served(plant) -> bytes:
    """The certificate that the TLS door shows now."""
    return ssl.PEM_cert_to_DER_cert(ssl.get_server_certificate(("127.0.0.1", plant.https)))


def test_the_service_renews_what_is_its_own(own_plant):
    own_plant.start()
    settings = Settings.load(own_plant.home)
    file = settings.tls / "service.pem"

    async def at(by: timedelta) -> tuple[bytes, bytes]:
        """Does the scheduler's work at that moment; the TLS certificate and the OCSP signer's."""
        async with installation(settings) as here:
            here.clock = Ahead(by)
            await ensure_tls(here)
            await ensure_responder(here, here.authority("ecc-issuing"))
            signer = await here.store.newest("ecc-ocsp", "ecc-issuing-ocsp")
        certificate = tls_certificate(file)
        assert certificate is not None
        assert signer is not None
        assert signer.der is not None
        return certificate.der, signer.der

    first = asyncio.run(at(timedelta()))
    assert asyncio.run(at(timedelta(days=10))) == first  # early in both lives
    later = asyncio.run(at(timedelta(days=70)))
    assert later[0] != first[0]
    assert later[1] != first[1]
    assert parse_certificate(later[0]).names == parse_certificate(first[0]).names
    # The clock was ahead: what begins in the future is replaced, and the door shows the new one without a restart.
    back = asyncio.run(at(timedelta()))
    assert back[0] != later[0]
    assert back[1] != later[1]
    own_plant.until(lambda: served(own_plant) == back[0], "the renewed certificate in the door")
    assert own_plant.stop() == 0
