"""Publishing the installation's trust list: what validators elsewhere follow.

    received = await publish(here, days=30, actor="cli:ops")      # HOME/trust/list.p7m, served at /trust/list.p7m

The list is signed with a key in the HSM that does nothing else; its self-signed certificate names the key (CN) and is trusted for nothing:
followers pin the key. With ``rollover`` a new key takes over, introduced by the old one.

Crash before the file is written: the version was not seen by anybody, and the next run gives it out again.
"""

from __future__ import annotations

import asyncio
import re
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

from pydantic import TypeAdapter

from ca.authority import born, sign_and_verify
from ca.issue import draw_serial
from ca.model import Signable
from ironroot.files import write_atomically
from ironroot.settings import Settings
from ironroot.wire import Installation
from pkix import cms, extensions
from pkix.algorithms import SIGNATURES, KeyKind, PublicKey
from pkix.certificate import Certificate, build_tbs, parse_certificate
from pkix.errors import Fatal, IronrootError, NotFound
from pkix.name import name
from pkix.privatekey import PrivateKey
from validate.model import Anchor
from validate.trust_limits import Limits, narrow
from validate.trustlist import Received, StatusSource, TrustList, accept, encode, introduction, read

_SIGNER_YEARS = 20
_TSL_SIGNING = "0.4.0.2231.3.0"  # ETSI TS 119 612 clause 5.7.1: a certificate for signing trust lists
_MAX_INTRODUCTIONS = 16
_LIMITS = TypeAdapter(Limits)


def list_file(settings: Settings) -> Path:
    """Where the published list is kept."""
    return settings.home / "trust" / "list.p7m"


def published(settings: Settings) -> Received | None:
    """The list that was published last, or None. Raises Fatal: the file was changed."""
    try:
        return read(list_file(settings).read_bytes())
    except FileNotFoundError:
        return None
    except IronrootError as error:
        raise Fatal(f"{list_file(settings)} is not what was published: {error} Restore it from a backup.") from None


async def publish(
    here: Installation,
    *,
    actor: str,
    days: int = 30,
    name: str | None = None,
    kind: KeyKind = KeyKind.P_256,
    rollover: bool = False,
    limits: Limits | None = None,
    version: int | None = None,
) -> Received:
    """Signs and publishes a new version.

    Args:
        name: of the list, the first time; by default made of the organization.  kind: of the signing key, when there is to be a new one.
        limits: for what others are to trust us; None: as in the version before.
        version: at least this one; for going on after the file was lost.
    Raises:
        NotFound: there is no authority to be trusted.
        Unavailable: the HSM is away.
    """
    now, before = here.clock.now(), published(here.settings)
    if limits is None:
        limits = _limits(here.settings)
    found = _contents(here, before, now, days=days, name=name, limits=limits, version=version)
    signer = None if before is None else cms.parse_signed_data(before.raw, max_size=len(before.raw)).certificate
    if signer is None or rollover:
        fresh = await _new_signer(here, kind, now)
        if signer is not None:
            introduced = await _signed(here, signer, introduction(found.name, fresh), now)
            found = replace(found, introductions=(*found.introductions, introduced)[-_MAX_INTRODUCTIONS:])
        signer = fresh
    raw = await _signed(here, signer, encode(found), now)
    # What followers will do with it, before they can: a list that they refuse is not published.
    received = accept(raw, pins=frozenset((read(raw).signer,)), held=before, now=now)
    file = list_file(here.settings)
    await here.store.audit(actor, "trust.published", f"{found.name}/{found.version}", now, signer=received.signer.hex())
    file.parent.mkdir(mode=0o755, exist_ok=True)
    # The limits first: what is published later on its own shall not say more than what was meant now.
    await asyncio.to_thread(write_atomically, file.with_name("limits.json"), _LIMITS.dump_json(limits, indent=1))
    await asyncio.to_thread(write_atomically, file, raw)
    return received


def _limits(settings: Settings) -> Limits:
    """Under which limits others are to trust us, as said last."""
    file = list_file(settings).with_name("limits.json")
    try:
        return _LIMITS.validate_json(file.read_bytes())
    except FileNotFoundError:
        return Limits()
    except ValueError as error:
        raise Fatal(f"{file} cannot be read ({error}). Restore it from a backup, or say the limits again.") from None


async def ensure_trust_list(here: Installation) -> None:
    """For the scheduler: a list that was published is published again when two thirds of its life are over, or authorities changed."""
    before = published(here.settings)
    if before is None:
        return
    now, life = here.clock.now(), before.list.expires - before.list.issued
    same = _contents(here, before, now, days=1, limits=_limits(here.settings))
    if now < before.list.issued + life * 2 / 3 and (same.anchors, same.intermediates) == (before.list.anchors, before.list.intermediates):
        return
    await publish(here, days=max(1, life.days), actor="ironroot")


def _contents(
    here: Installation,
    before: Received | None,
    now: datetime,
    *,
    days: int,
    limits: Limits,
    name: str | None = None,
    version: int | None = None,
) -> TrustList:
    authorities = [a for a in here.authorities.values() if not a.revoked and a.certificate.not_after > now]
    roots = (Anchor(a.certificate) for a in authorities if a.is_root)
    anchors = [narrowed for anchor in roots if (narrowed := narrow(anchor, limits)) is not None]
    if not anchors:
        raise NotFound("There is no authority that others could trust under these limits. There are: ironroot ca list")
    sources = []
    for a in authorities:
        urls = here.settings.urls(a.id)
        sources.append(StatusSource(a.certificate.sha256, (urls.ocsp,), (urls.crl,)))
    return TrustList(
        name=before.list.name if before is not None else name or _slug(here.settings.organization),
        version=max((before.list.version if before is not None else 0) + 1, version or 1),
        issued=now,
        expires=now + timedelta(days=days),
        anchors=tuple(anchors),
        intermediates=tuple(a.certificate for a in authorities if not a.is_root),
        status=tuple(sources),
        introductions=before.list.introductions if before is not None else (),
    )


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:64] or "ironroot"


async def _new_signer(here: Installation, kind: KeyKind, now: datetime) -> Certificate:
    """A new key in the HSM, and a certificate by itself that says what it is called there."""
    key = f"trust-list-{now:%Y%m%dT%H%M%SZ}"
    public_key = await born(here.signer, key, kind)
    subject = name(("O", here.settings.organization), ("CN", key))
    tbs = build_tbs(
        serial=draw_serial(),
        issuer=subject,
        subject=subject,
        not_before=now,
        not_after=now.replace(year=now.year + _SIGNER_YEARS, day=min(now.day, 28)),
        public_key=public_key,
        signature=SIGNATURES[kind],
        extensions=[
            extensions.key_usage("digitalSignature"),
            extensions.extended_key_usage(_TSL_SIGNING, critical=True),
            extensions.subject_key_identifier(public_key),
        ],
    )
    return parse_certificate(await sign_and_verify(here.signer, Signable(key, public_key, "trust-list", tbs), tbs))


async def _signed(here: Installation, signer: Certificate, content: bytes, now: datetime) -> bytes:
    """``content`` in CMS SignedData. What the key in the HSM has to sign is what a key that only listens is asked for."""
    listening = _Elsewhere(signer.public_key)
    cms.sign_data(content, listening, signer, now=now)
    item = Signable(signer.subject.get("CN")[0], signer.public_key, "trust-list", listening.asked)
    return cms.sign_data(content, _Elsewhere(signer.public_key, await here.signer.sign(item)), signer, now=now)


class _Elsewhere(PrivateKey):
    """A key that is in the HSM: notes what it is asked to sign, and answers with the signature that was made there."""

    def __init__(self, public_key: PublicKey, signature: bytes = b"") -> None:
        super().__init__(public_key, None)
        object.__setattr__(self, "asked", b"")
        object.__setattr__(self, "_signature", signature)

    asked: bytes
    _signature: bytes

    def sign(self, message: bytes) -> bytes:
        object.__setattr__(self, "asked", message)
        return self._signature
