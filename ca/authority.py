"""Making authorities: roots, issuing authorities and OCSP signers, with keys born in the signer.

All of it is idempotent: a ceremony that was cut short is run again and goes on where it stopped, with the keys that exist already.
"""

from __future__ import annotations

import hashlib
from datetime import datetime

from ca.issue import Issuer, draw_serial, self_signed
from ca.model import Authority, Authorized, Identity, Issued, Method, Signable
from ca.pkcs11_uri import beside
from ca.ports import Signer, Store
from pkix import der
from pkix.algorithms import SIGNATURES, KeyKind, PublicKey
from pkix.certificate import assemble, parse_certificate
from pkix.csr import Csr, parse_csr
from pkix.errors import BadSignature, Conflict, Unavailable
from pkix.name import Name, name
from policies.model import Profile


async def born(signer: Signer, key: str, kind: KeyKind) -> PublicKey:
    """The public key under ``key``, generated now if it does not exist yet."""
    try:
        return await signer.generate(key, kind)
    except Conflict:
        return await signer.public_key(key)


async def create_root(
    authority: str, kind: KeyKind, profile: Profile, *, store: Store, signer: Signer, organization: str, country: str | None, now: datetime
) -> Authority:
    """A self-signed authority. Returns the one that exists, if it does."""
    existing = (await store.authorities()).get(authority)
    if existing is not None:
        return existing
    public_key = await born(signer, authority, kind)
    tbs = self_signed(profile, public_key, device=authority, organization=organization, country=country, serial=draw_serial(), now=now)
    # A root has no row of its own before it is signed; the audit entry is its intent.
    await store.audit("ironroot", "authority.intended", authority, now, tbs_sha256=hashlib.sha256(tbs).hexdigest())
    certificate = parse_certificate(await sign_and_verify(signer, Signable(authority, public_key, "certificate", tbs), tbs))
    root = Authority(authority, certificate, authority, authority, (certificate,))
    await store.add_authority(root, now)
    return root


async def create_issuing(
    authority: str,
    kind: KeyKind,
    profile: str,
    parent: Authority,
    *,
    store: Store,
    signer: Signer,
    issuer: Issuer,
    now: datetime,
    key: str | None = None,
) -> Authority:
    """An authority certified by ``parent`` through the ordinary pipeline. Returns the one that exists, if it does.

    ``key`` is the reference of its key, where that is not its own id: on another token than the default.
    """
    existing = (await store.authorities()).get(authority)
    if existing is not None:
        return existing
    key = key or authority
    public_key = await born(signer, key, kind)
    issued = await _certify_own(authority, key, public_key, "authorities", profile, parent, signer=signer, issuer=issuer, now=now)
    certificate = parse_certificate(issued.der)
    made = Authority(authority, certificate, key, parent.id, (certificate, *parent.chain))
    await store.add_authority(made, now)
    return made


async def certify_responder(authority: Authority, profile: str, *, signer: Signer, issuer: Issuer, now: datetime) -> Issued:
    """A new delegated OCSP signer of ``authority``: a new key, where the authority's own is, and its certificate (RFC 6960 4.2.2.2)."""
    key = beside(authority.key, f"{authority.id}-ocsp-{now:%Y%m%dT%H%M%SZ}")
    public_key = await born(signer, key, authority.certificate.public_key.kind)
    return await _certify_own(
        f"{authority.id}-ocsp", key, public_key, "responders", profile, authority, signer=signer, issuer=issuer, now=now
    )


async def _certify_own(
    device: str, key: str, public_key: PublicKey, group: str, profile: str, by: Authority, *, signer: Signer, issuer: Issuer, now: datetime
) -> Issued:
    """Sends a key of our own through the pipeline, with a real proof of possession like anybody's."""
    csr = await _request(signer, key, public_key, name(("CN", device)))
    identity = Identity(group, device, Method.SERVICE, public_key.sha256.hex())
    request = Authorized(csr, identity, profile, by.id, idempotency=hashlib.sha256(f"{by.id}/{key}".encode()).digest(), key=key)
    return await issuer.issue(request, now)


async def _request(signer: Signer, key: str, public_key: PublicKey, subject: Name) -> Csr:
    """A PKCS#10 request signed by a key in the signer (RFC 2986)."""
    info = der.sequence(der.integer(0), subject.der, public_key.spki, der.context(0))
    return parse_csr(await sign_and_verify(signer, Signable(key, public_key, "csr", info), info))


async def sign_and_verify(signer: Signer, item: Signable, message: bytes) -> bytes:
    """``message`` as a signed object, its signature checked. Raises Unavailable where the HSM signed wrongly."""
    signature = await signer.sign(item)
    try:
        item.public_key.verify(signature, message)
    except BadSignature:
        raise Unavailable("The HSM returned a signature that does not verify; it was thrown away. Check the HSM.", retry_after=5) from None
    return assemble(message, SIGNATURES[item.public_key.kind], signature)
