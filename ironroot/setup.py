"""Bringing an installation into being, and keeping what it needs in place. Everything here may be run again at any time.

``initialise`` is ``ironroot init``; ``prepare`` is what ``ironroot serve`` does before it serves; the ``ensure_…`` functions are also the
scheduler's work.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import stat
import subprocess  # runs our own hsm_sim
import sys
from collections.abc import Awaitable, Callable
from contextlib import nullcontext
from datetime import datetime, timedelta
from pathlib import Path

import structlog

from ca.authority import certify_responder, create_issuing, create_root
from ca.crl import publish
from ca.migrate import upgrade
from ca.model import Authority, Authorized, Identity, Method, Record
from ca.pkcs11_uri import parse_store
from ca.signer_pkcs11 import Pkcs11Signer
from ironroot.files import write_atomically
from ironroot.names import canonical
from ironroot.responders import responder_profile
from ironroot.settings import Settings, write_default
from ironroot.supervisor import home_lock, hsm
from ironroot.wire import Installation, installation
from pkix import pem, sm2
from pkix.algorithms import KeyKind
from pkix.certificate import Certificate, parse_certificate
from pkix.csr import build_csr, parse_csr
from pkix.errors import Conflict, Fatal, IronrootError, Refused, Unavailable, Unsupported
from pkix.name import name
from pkix.privatekey import generate
from policies import loader

log = structlog.get_logger("setup")

FAMILIES = {"ecc": KeyKind.P_256, "sm2": KeyKind.SM2}
TLS_FLEET, TLS_DEVICE = "ecc-platforms", "ironroot-service"
_PATIENCE = 30  # seconds that a second `init` waits for what an interrupted one left in the middle


async def initialise(
    home: Path, *, http_port: int | None, https_port: int | None, organization: str | None, hsm_uri: str | None = None
) -> Settings:
    """Makes the folder, the HSM, the database, the authorities and what they publish.

    There are authorities of both families, or of those whose keys the token at ``hsm_uri`` can make.

    Raises:
        Conflict: ``home`` exists already with other ports, another organization or another key store.
        Malformed: settings or policies there that are not valid.
        Unsupported: the token makes no keys of the family that the service itself needs.
    """
    home = home.absolute()
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = home.stat()
    if found.st_uid != os.geteuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise Refused(f"{home} belongs to somebody else, or others may write there; whoever can could swap keys and rules. chmod 700 it.")
    with home_lock(home) as ours:
        if hsm_uri is not None and not (home / "ironroot.toml").exists():
            await _try(home, hsm_uri)
        write_default(home, http_port, https_port, organization, hsm_uri)
        return await _initialise(home, alone=ours)


async def _initialise(home: Path, *, alone: bool) -> Settings:
    settings = Settings.load(home)
    for folder in (home / "db", settings.tls, home / "idevid"):
        folder.mkdir(mode=0o700, exist_ok=True)
    if not settings.policies.exists():
        partial = settings.policies.with_name("policies.new")
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(loader.DEFAULTS, partial)
        partial.rename(settings.policies)
    if settings.hsm_uri is None:
        await _initialise_hsm(settings)
    await asyncio.to_thread(upgrade, settings.database_url)
    async with hsm(settings) if alone else nullcontext(), installation(settings) as here:
        families = {family: kind for family, kind in FAMILIES.items() if await here.makes(kind)}
        if "ecc" not in families:
            raise Unsupported(f"The token makes no {FAMILIES['ecc']} keys, which the service's own certificate needs. Choose another one.")
        for family, kind in families.items():
            await _hierarchy(here, family, kind)
        await prepare(here)
    return settings


async def prepare(here: Installation) -> None:
    """What must be there before anybody is served: self-tests passed, OCSP signers, CRLs, the TLS certificate."""
    sm2.self_test()
    await here.reload_authorities()
    await here.issuer.recover(here.clock.now(), here.clock.now())
    await for_each_authority(here, ensure_responder)
    await for_each_authority(here, ensure_crl)
    await ensure_tls(here)


async def for_each_authority(here: Installation, work: Callable[[Installation, Authority], Awaitable[None]]) -> None:
    """Does ``work`` for every authority. One whose key or certificate is in trouble does not keep the others waiting: it is logged."""
    for authority in list(here.authorities.values()):
        try:
            await work(here, authority)
        except Fatal:
            raise
        except IronrootError as error:
            log.error("authority_in_trouble", authority=authority.id, work=work.__name__, code=error.code, error=str(error))


async def ensure_responder(here: Installation, authority: Authority) -> None:
    """A delegated OCSP signer that is not revoked and has more than a third of its life left; none for an authority that is revoked."""
    if authority.revoked:
        return
    profile = responder_profile(authority)
    newest = await here.store.newest(profile, f"{authority.id}-ocsp")
    if newest is None or newest.revocation is not None or worn(newest, here.clock.now()):
        await certify_responder(authority, profile, signer=here.signer, issuer=here.issuer, now=here.clock.now())


async def ensure_crl(here: Installation, authority: Authority) -> None:
    """A CRL that has every revocation and is less than half over."""
    now, lifetime = here.clock.now(), here.settings.crl_lifetime
    if not await here.store.crl_is_stale(authority.id):
        latest = await here.store.latest_crl(authority.id)
        # One from the future was made while the clock was ahead; nobody takes it before its time, so it is replaced.
        if latest is not None and latest.this_update <= now < latest.this_update + lifetime / 2:
            return
    await publish(authority, lifetime, store=here.store, signer=here.signer, now=now)


async def ensure_tls(here: Installation) -> None:
    """The service's own certificate from ``ecc-platforms``, for the names in the settings, with more than a third of its life left.

    Key and chain are one file, replaced as one: a crash leaves the old pair or the new one.
    """
    file = here.settings.tls / "service.pem"
    names = tuple(sorted({canonical(text) for text in here.settings.https.names}))
    now = here.clock.now()
    current = tls_certificate(file)
    if current is not None and set(names) <= set(current.names) and not worn(current, now):
        record = await here.store.by_sha256(current.sha256)
        if record and record[0].revocation is None:
            return
    fleet = here.fleet(TLS_FLEET)
    key = generate(KeyKind.P_256)
    csr = parse_csr(build_csr(key, name(("CN", TLS_DEVICE))))
    identity = Identity(TLS_FLEET, TLS_DEVICE, Method.SERVICE, hashlib.sha256(csr.der).hexdigest(), names)
    issued = await here.issuer.issue(Authorized(csr, identity, fleet.profile, fleet.authority), now)
    chain = [issued.der] + [above.der for above in here.authority(issued.authority).chain[:-1]]
    bundle = key.to_pem() + "".join(pem.encode("CERTIFICATE", der) for der in chain).encode()
    write_atomically(file, bundle, mode=0o600)


def tls_certificate(file: Path) -> Certificate | None:
    """The service's certificate as stored, or None where there is none yet or it cannot be read."""
    try:
        return parse_certificate(pem.decode(file.read_bytes(), "CERTIFICATE")[0][1])
    except (OSError, IronrootError, IndexError):
        return None


def worn(what: Record | Certificate, now: datetime) -> bool:
    """Whether it is time to renew: two thirds of its life are over, or it begins in the future (the clock was ahead when it was made)."""
    return not what.not_before <= now < what.not_before + (what.not_after - what.not_before) * 2 / 3


async def _try(home: Path, hsm_uri: str) -> None:
    """Raises what is wrong with a token before it is written down as the one of this installation."""
    signer = Pkcs11Signer(parse_store(hsm_uri), home)
    try:
        await signer.ready()
    finally:
        await signer.close()


async def _initialise_hsm(settings: Settings) -> None:
    command = [sys.executable, "-m", "hsm_sim", "init", "--home", str(settings.hsm_home)]
    done = await asyncio.to_thread(subprocess.run, command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode:
        raise Unavailable(f"The HSM could not be initialised: {done.stderr.strip() or done.stdout.strip()}")


async def _hierarchy(here: Installation, family: str, kind: KeyKind) -> None:
    settings, profiles = here.settings, here.policies.profiles
    root = await create_root(
        f"{family}-root",
        kind,
        profiles[f"{family}-root"],
        store=here.store,
        signer=here.signer,
        organization=settings.organization,
        country=settings.country,
        now=here.clock.now(),
    )
    await here.reload_authorities()
    for _ in range(_PATIENCE):
        try:
            await create_issuing(
                f"{family}-issuing",
                kind,
                f"{family}-issuing",
                root,
                store=here.store,
                signer=here.signer,
                issuer=here.issuer,
                now=here.clock.now(),
            )
            break
        except Conflict as error:
            # An earlier run died between the intent and the certificate; its intent is ours to finish once it is stale.
            if error.retry_after is None:
                raise
            await asyncio.sleep(1)
            stale = here.clock.now() - timedelta(seconds=error.retry_after)
            await here.issuer.recover(stale, here.clock.now())
    else:
        raise Unavailable(f"{family}-issuing is being made by another ironroot init. Wait for it, then run this again.", retry_after=5)
    await here.reload_authorities()
