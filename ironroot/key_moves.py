"""Authorities on other tokens: ``ironroot ca rekey`` and ``ironroot ca migrate``.

    move = await plan_rekey(here, "ecc-issuing", parse("pkcs11:token=…"))       # says what would be done
    await rekey(here, move, actor="cli:root")

*Rekey* makes a successor: a new key on the other token, a certificate of its own under the same parent, an id and a name of its own
(``ecc-issuing-g2``). From then on it issues in place of the old one, for the same fleets. The old one keeps its key where it is and goes on
saying, by CRL and OCSP, what of its own is revoked: who checks those certificates sees no change.

*Migrate* keeps key and certificate, and changes where the key is used. Each may be repeated after a crash, and goes on where it stopped.
"""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass
from typing import Literal

from ca.authority import certify_responder, create_issuing, sign_and_verify
from ca.model import Authority, Signable
from ca.pkcs11_uri import Pkcs11Uri, is_uri, parse
from ca.signer_pkcs11 import Pkcs11Signer
from ironroot.responders import responder_profile
from ironroot.setup import ensure_crl, ensure_responder
from ironroot.wire import Installation
from pkix.errors import Conflict, NotFound, Refused
from policies.model import SEGMENT

_GENERATION = re.compile(r"(.+)-g([0-9]{1,4})")


@dataclass(frozen=True, slots=True)
class Rekey:
    """What a rekey does: ``authority`` gets a ``successor``, made by the same ``profile``, whose key has the reference ``key``."""

    authority: Authority
    successor: str
    key: str
    profile: str


@dataclass(frozen=True, slots=True)
class Migration:
    """What a migration does: the key of ``authority`` has the reference ``key`` afterwards. It is there already, or moves ``wrapped``."""

    authority: Authority
    key: str
    way: Literal["there", "wrapped"]


async def plan_rekey(here: Installation, authority: str, onto: Pkcs11Uri) -> Rekey:
    """Looks whether an authority can be given a new key on the token ``onto`` (whose ``object``, if it says one, is the key's label).

    Raises:
        Refused: it is a root.
        Conflict: it has a successor already, or one was begun on another token.
    """
    old = here.authority(authority)
    if old.is_root:
        raise Refused(
            f"{old.id} is a root: nobody stands above it who could certify a new key, and all who trust it would have to get the new "
            "one. Migrate its key (ironroot ca migrate), or make a new installation with the root on that token (ironroot init --hsm)."
        )
    if old.successor is not None:
        raise Conflict(f"{old.id} has the successor {old.successor} already. Rekey that one.")
    successor = _next_generation(old.id)
    key = str(onto.key(onto.object or successor))
    begun = here.authorities.get(successor)
    if begun is not None and (begun.key, begun.parent) != (key, old.parent):
        raise Conflict(f"{successor} was begun with its key at {begun.key}. Go on with that, or remove nothing and choose the same token.")
    records = await here.store.by_sha256(old.certificate.sha256)
    if not records:
        raise NotFound(f"The certificate of {old.id} is not in the database, so its profile is not known.")
    return Rekey(old, successor, key, records[0].profile)


async def rekey(here: Installation, plan: Rekey, *, actor: str) -> Authority:
    """Makes the successor, what has to be there before it may issue (OCSP signer, CRL), and then hands over. Returns the successor.

    Crash before the last step: the old one issues as before, and the same command goes on with the key and certificate that were made.
    """
    old, now = plan.authority, here.clock.now()
    await create_issuing(
        *(plan.successor, old.certificate.public_key.kind, plan.profile, here.authority(old.parent)),
        store=here.store,
        signer=here.signer,
        issuer=here.issuer,
        now=now,
        key=plan.key,
    )
    await here.reload_authorities()
    made = here.authority(plan.successor)
    await ensure_responder(here, made)
    await ensure_crl(here, made)
    await here.store.supersede(old.id, made.id, here.clock.now(), actor=actor)
    await here.reload_authorities()
    return made


async def plan_migrate(here: Installation, authority: str, to: Pkcs11Uri) -> Migration:
    """Looks whether the key of an authority is on the token ``to`` already, or could be moved there.

    Raises:
        Conflict: it is used from there already, or the token holds another key under that name.
        Refused: it is not there, and does not leave its token.
    """
    owner = here.authority(authority)
    label = (parse(owner.key).object if is_uri(owner.key) else owner.key) or owner.id
    key = str(to if to.object is not None or to.id is not None else to.key(label))
    if key == owner.key:
        raise Conflict(f"{owner.id} uses its key at {key} already.")
    public_key = owner.certificate.public_key
    try:
        if await here.signer.public_key(key) == public_key:
            return Migration(owner, key, "there")
    except NotFound:
        source = here.signer.store(owner.key)
        if isinstance(source, Pkcs11Signer) and await source.extractable(owner.key, public_key):
            return Migration(owner, key, "wrapped")
        other = "" if owner.is_root else f", or make a new key there: ironroot ca rekey {owner.id} --onto …"
        raise Refused(
            f"The key of {owner.id} is not on that token, and does not leave the one that it is on. Bring it there with the backup of the "
            f"HSM's maker (simulators: ironroot hsm backup and restore) and repeat this{other}."
        ) from None
    raise Conflict(f"That token holds another key under this name than {owner.id} has. Say object=… in the URI, or choose another token.")


async def migrate(here: Installation, plan: Migration, *, actor: str) -> Authority:
    """Moves the key if it has to, has it sign something there, and then changes the reference. A new OCSP signer beside it follows.

    The key is not destroyed where it was. Crash before the reference is changed: nothing but a second copy has come of it.
    """
    owner, public_key = plan.authority, plan.authority.certificate.public_key
    if plan.way == "wrapped":
        await _move(here, owner, plan.key)
    message = b"ironroot ca migrate\0" + owner.id.encode() + b"\0" + secrets.token_bytes(32)
    await sign_and_verify(here.signer, Signable(plan.key, public_key, "proof", message), message)
    now = here.clock.now()
    await here.store.move_key(owner, plan.key, now, actor=actor)
    await here.reload_authorities()
    moved = here.authority(owner.id)
    if not moved.revoked:
        await certify_responder(moved, responder_profile(moved), signer=here.signer, issuer=here.issuer, now=now)
    return moved


async def _move(here: Installation, owner: Authority, key: str) -> None:
    source, public_key = here.signer.store(owner.key), owner.certificate.public_key
    assert isinstance(source, Pkcs11Signer)  # noqa: S101 - plan_migrate saw to it
    target = Pkcs11Signer(parse(key), here.settings.home, processes=1)  # one: the transport pair is of its session
    try:
        await target.receive(key, public_key, await source.send(owner.key, public_key, await target.transport()))
    finally:
        await target.close()


def _next_generation(authority: str) -> str:
    """``ecc-issuing`` → ``ecc-issuing-g2`` → ``ecc-issuing-g3``. Raises Conflict where that is no id."""
    found = _GENERATION.fullmatch(authority)
    following = f"{found[1]}-g{int(found[2]) + 1}" if found else f"{authority}-g2"
    if not SEGMENT.fullmatch(following):
        raise Conflict(f"{following} is too long for the id of an authority.")
    return following
