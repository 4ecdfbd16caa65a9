"""Making and publishing CRLs (RFC 5280 section 5).

A number is reserved before anything is signed and never used twice, so a run that dies leaves a gap and no double. What is published is
checked first: signed by this authority, number rising. The number alone says which is newer: a clock that stood ahead once must not keep
revocations off the CRL until its time has come.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from ca.authority import sign_and_verify
from ca.failpoint import failpoint
from ca.model import Authority, CrlRecord, Signable
from ca.ports import Signer, Store
from pkix.algorithms import SIGNATURES
from pkix.crl import build_tbs_crl
from pkix.extensions import authority_key_identifier


async def publish(authority: Authority, lifetime: timedelta, *, store: Store, signer: Signer, now: datetime) -> CrlRecord:
    """A new full CRL of ``authority``, valid for ``lifetime`` from ``now``, signed, verified and stored.

    Raises:
        Conflict: somebody published a newer one meanwhile.
        Unavailable: HSM or database away; the newest CRL stands as it was.
    """
    # The number is reserved before the entries are read: what is revoked after this point makes this CRL stale and calls for the next.
    number = await store.next_crl_number(authority.id)
    entries = [entry async for entry in store.revocation_entries(authority.id)]
    public_key = authority.certificate.public_key
    tbs = build_tbs_crl(
        issuer=authority.certificate.subject,
        signature=SIGNATURES[public_key.kind],
        this_update=now,
        next_update=now + lifetime,
        number=number,
        authority_key_identifier=authority_key_identifier(authority.certificate),
        entries=entries,
    )
    der = await sign_and_verify(signer, Signable(authority.key, public_key, "crl", tbs), tbs)
    # Crash here: the number is gone, the newest CRL stands as it was.
    failpoint("crl.signed")
    record = CrlRecord(authority.id, number, der, now, now + lifetime, len(entries))
    await store.publish_crl(record, now)
    return record
