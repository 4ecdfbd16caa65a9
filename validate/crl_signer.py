"""Whose signature a CRL has, and whether they may (RFC 5280 6.3.3 (f), (g)).

    signer = await authorised(inquiry, crl)         # its certificate, or the Text of why nobody

That is the certificate's own issuer; or the same issuer with another key; or, for an indirect list, who was named for it. Of these others a
path has to lead to the very anchor of the certificate in question, they may not be revoked, and they cannot vouch for themselves.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

from pkix.certificate import Certificate, parse_certificate
from pkix.errors import IronrootError
from validate.crl_load import LoadedCrl, aside
from validate.names import subject
from validate.status_inquiry import Inquiry, MustWait
from validate.status_store import issuer_key
from validate.text import Text, say
from validate.validator import validate

_MAX_SIGNERS, _MAX_DEPTH = 4, 2


async def authorised(inquiry: Inquiry, crl: LoadedCrl) -> Certificate | Text:
    """The certificate whose key signed ``crl`` and that may do so, or why there is none."""
    problem = say("bad_crl_signature", issuer=inquiry.issuer)
    if crl.issuer == subject(inquiry.issuer):
        own = say("crl_circular") if issuer_key(inquiry.issuer) in inquiry.signing else await signed_by(inquiry, crl, inquiry.issuer)
        if own is None:
            return inquiry.issuer
        problem = own
    for signer in await _candidates(inquiry, crl):
        if "cRLSign" not in signer.key_usage:
            # Of the issuer its silence will do. Of others not: any end entity of the right name could be one.
            problem = say("no_crl_sign", issuer=signer)
        elif await signed_by(inquiry, crl, signer) is not None:
            continue
        elif issuer_key(signer) in inquiry.signing:
            problem = say("crl_circular")
        elif await _leads_to_anchor(inquiry, signer):
            return signer
        else:
            problem = say("crl_signer", who=signer)
    return problem


async def signed_by(inquiry: Inquiry, crl: LoadedCrl, signer: Certificate) -> Text | None:
    """``LoadedCrl.check``, out of the event loop where it would take long."""
    if crl.inline:
        return crl.check(signer)
    if not inquiry.waits:
        raise MustWait
    return await aside(crl.check, signer)


async def _candidates(inquiry: Inquiry, crl: LoadedCrl) -> list[Certificate]:
    """Certificates of the list's issuer at hand, whose key identifier does not speak against it; else those that the list says where to
    find (RFC 5280 5.2.7)."""
    policy = inquiry.question.policy
    at_hand = [*policy.intermediates, *(anchor.certificate for anchor in policy.anchors)]
    found = _fitting(at_hand, inquiry, crl)
    if not found and inquiry.fetch is not None and crl.issuer_urls:
        if not inquiry.waits:
            raise MustWait
        try:
            fetch, url = inquiry.fetch, crl.issuer_urls[0]
            fetched = await inquiry.in_time(f"issuer {url}", lambda: fetch.fetch(url), others=True)
            found = _fitting([parse_certificate(fetched.body)], inquiry, crl)
        except (IronrootError, TimeoutError):
            found = []
    return found


def _fitting(certificates: list[Certificate], inquiry: Inquiry, crl: LoadedCrl) -> list[Certificate]:
    wanted = crl.index.aki
    fitting = [
        certificate
        for certificate in dict.fromkeys(certificates)
        if subject(certificate) == crl.issuer
        and certificate.spki != inquiry.issuer.spki
        and (wanted is None or certificate.ski is None or wanted == certificate.ski)
    ]
    return fitting[:_MAX_SIGNERS]


async def _leads_to_anchor(inquiry: Inquiry, signer: Certificate) -> bool:
    """Whether ``signer`` is good, status included, under the anchor of the certificate in question."""
    if not inquiry.waits:
        raise MustWait
    if len(inquiry.signing) >= _MAX_DEPTH:
        return False
    question = inquiry.question
    left = timedelta(seconds=max(question.deadline - question.monotonic(), 0.0))
    policy = replace(question.policy, budget=left, web_pki=False)
    keys = inquiry.signing | {issuer_key(signer)}
    above = await validate(inquiry.issuer, policy=replace(policy, status="none"), now=question.now, monotonic=question.monotonic)
    if not above.good:
        return False
    same = replace(policy, anchors=tuple(anchor for anchor in policy.anchors if anchor.certificate == above.path[-1]))
    result = await validate(
        (signer, inquiry.issuer),
        policy=same,
        now=question.now,
        status=inquiry.nested(keys),
        crls=question.crls,
        monotonic=question.monotonic,
    )
    return result.good
