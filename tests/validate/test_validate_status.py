"""Revocation, over a real HTTP server: OCSP, CRLs, staples, and every way in which they can be no use."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from pkix import der, extensions
from pkix.algorithms import KeyKind
from pkix.certificate import split
from pkix.crl import CrlEntry
from pkix.extensions import Extension
from pkix.name import name
from pkix.ocsp import error_response, parse_request
from validate import Policy, anchors, validate
from validate.fetch import LOOPBACK, HttpFetcher
from validate.status import Revocation

HARD, SOFT, OFFLINE = {}, {"status": "soft-fail"}, {"status": "offline"}
KINDS = [KeyKind.P_256, KeyKind.SM2, KeyKind.RSA_2048]


def judged(pki, arrange, *, kind=KeyKind.P_256, policy=HARD, fetch=None, nonce=None, **device):
    """Validates the device of a fresh plant that points to a loopback server. ``arrange(plant, web)`` fills the server and may return
    more arguments of ``validate``."""

    async def run():
        async with pki.serving() as web:
            plant = pki.at(web.url, kind, **device)
            web.answers["/root.crl"] = plant.root.crl()
            more = arrange(plant, web) or {}
            status = Revocation(fetch or HttpFetcher(networks=LOOPBACK))
            try:
                result = await validate(
                    (plant.device.der, plant.issuing.der),
                    policy=Policy(anchors=anchors(plant.root.der), **policy),
                    now=pki.NOW,
                    status=status,
                    nonce=nonce,
                    **more,
                )
            finally:
                await status.close()
            return result, plant, web

    return asyncio.run(run())


def handed(plant, leaf=None, *, staples=(), crls=(), **more):
    """Validates with what is handed in, and nothing fetched."""
    return plant.validate(leaf, status="offline", more={"status": Revocation(), "staples": staples, "crls": crls}, **more)


def respond(plant, web, status="good", about=None, **more):
    """OCSP answers for the device; about the issuing CA there is none, only the root's CRL."""
    device = plant.device

    async def answer(request):
        (asked,) = parse_request(await request.read()).cert_ids
        if asked.serial != device.certificate.serial:
            return error_response(6)
        return plant.issuing.ocsp(about or device, status, hash=asked.hash, **({"signer": plant.signer} | more))

    web.answers["/ocsp"] = answer


@pytest.mark.parametrize("kind", KINDS)
def test_good_by_ocsp_and_the_issuing_ca_by_crl(pki, kind):
    result, _, web = judged(pki, respond, kind=kind)
    assert result.good
    device, issuing = result.basis
    assert (device.source, device.standing, device.url) == ("ocsp", "good", f"{web.url}/ocsp")
    assert (issuing.source, issuing.standing, issuing.url) == ("crl", "good", f"{web.url}/root.crl")
    assert device.until == pki.NOW + pki.DAY
    assert f"not revoked (OCSP of {web.url}/ocsp, produced 2026-11-23 10:00:00Z)" in result.sentence()
    assert sorted(set(web.seen)) == ["GET /root.crl", "POST /ocsp"]


def test_sm2_issuers_are_asked_in_sm3_others_in_sha1(pki):
    asked = []

    def spy(plant, web):
        respond(plant, web)
        answer = web.answers["/ocsp"]

        async def wrapped(request):
            (cert_id,) = parse_request(await request.read()).cert_ids
            if cert_id.serial == plant.device.certificate.serial:
                asked.append(cert_id.hash)
            return await answer(request)

        web.answers["/ocsp"] = wrapped

    judged(pki, spy, kind=KeyKind.SM2)
    judged(pki, spy)
    assert asked == ["sm3", "sha1"]


@pytest.mark.parametrize(("kind", "known"), [(KeyKind.SM2, "sha1"), (KeyKind.P_256, "sha256")])
def test_a_responder_that_knows_another_digest_is_asked_again(pki, kind, known):
    def arrange(plant, web):
        async def answer(request):
            (asked,) = parse_request(await request.read()).cert_ids
            if asked.hash != known:
                return error_response(6)
            about = plant.device if asked.serial == plant.device.certificate.serial else plant.issuing
            return (plant.issuing if about is plant.device else plant.root).ocsp(about, hash=known)

        web.answers["/ocsp"] = answer

    result, *_ = judged(pki, arrange, kind=kind)
    assert [basis.source for basis in result.basis] == ["ocsp", "ocsp"]


@pytest.mark.parametrize("kind", KINDS)
def test_revoked_by_ocsp_with_date_reason_and_source(pki, kind):
    at = pki.NOW - timedelta(minutes=7)
    result, _, web = judged(pki, lambda p, w: respond(p, w, "revoked", revoked_at=at, reason=1), kind=kind)
    assert result.code == "revoked"
    assert result.sentence() == (
        f"Not good: CN=plc-7,O=Example Plant was revoked on 2026-11-23 09:53:00Z, reason keyCompromise "
        f"(OCSP of {web.url}/ocsp, produced 2026-11-23 10:00:00Z)."
    )
    assert "已于 2026-11-23 09:53:00Z 被吊销，原因 keyCompromise" in result.sentence("zh")
    assert (result.basis[0].revoked_at, result.basis[0].reason) == (at, "keyCompromise")


def test_on_hold(pki):
    result, *_ = judged(pki, lambda p, w: respond(p, w, "revoked", revoked_at=pki.NOW, reason=6))
    assert result.code == "on_hold"
    assert "on hold since 2026-11-23 10:00:00Z" in result.sentence()


def test_never_issued_is_not_good_even_if_the_crl_would_say_so(pki):
    def unknown(plant, web):
        respond(plant, web, "unknown")
        web.answers["/issuing.crl"] = plant.issuing.crl()

    assert judged(pki, unknown)[0].code == "unknown_serial"
    epoch = datetime(1970, 1, 1, tzinfo=UTC)
    assert judged(pki, lambda p, w: respond(p, w, "revoked", revoked_at=epoch, reason=6))[0].code == "unknown_serial"


@pytest.mark.parametrize("kind", KINDS)
def test_without_ocsp_the_crl_decides(pki, kind):
    def crl(plant, web):
        web.answers["/issuing.crl"] = plant.issuing.crl(CrlEntry(1, pki.NOW))

    result, _, web = judged(pki, crl, kind=kind)
    assert result.good
    assert [basis.source for basis in result.basis] == ["crl", "crl"]
    assert "POST /ocsp" in web.seen

    def revoked(plant, web):
        web.answers["/issuing.crl"] = plant.issuing.crl(CrlEntry(plant.device.certificate.serial, pki.NOW - pki.DAY, 4))

    result, _, web = judged(pki, revoked, kind=kind)
    assert result.code == "revoked"
    assert f"reason superseded (CRL of {web.url}/issuing.crl, issued" in result.sentence()


def test_revoked_issuing_ca(pki):
    def arrange(plant, web):
        respond(plant, web)
        web.answers["/root.crl"] = plant.root.crl(CrlEntry(plant.issuing.certificate.serial, pki.NOW, 2))

    result, *_ = judged(pki, arrange)
    assert result.code == "revoked"
    assert "p-256 issuing" in result.sentence()
    assert "cACompromise" in result.sentence()


def test_nobody_answers_hard_and_soft(pki):
    def nothing(plant, web):
        del web.answers["/root.crl"]

    result, _, web = judged(pki, nothing)
    assert result.code == "no_status"
    assert f"{web.url}/ocsp did not answer: HTTP status 404" in result.sentence()
    assert f"{web.url}/issuing.crl did not answer" in result.sentence()
    result, *_ = judged(pki, nothing, policy=SOFT)
    assert result.good
    assert "the policy forgives" in result.sentence()
    assert {basis.standing for basis in result.basis} == {"none"}


def test_soft_fail_does_not_forgive_a_revocation(pki):
    result, *_ = judged(pki, lambda p, w: respond(p, w, "revoked", revoked_at=pki.NOW, reason=1), policy=SOFT)
    assert result.code == "revoked"


def test_a_server_that_is_not_there(pki):
    plant = pki.at("http://127.0.0.1:9")
    result = plant.validate(status="hard-fail", more={"status": Revocation(HttpFetcher(networks=LOOPBACK))})
    assert result.code == "no_status"


def test_names_no_place_to_ask(pki):
    result, *_ = judged(pki, respond, ocsp=(), crl=())
    assert result.code == "no_status"
    assert "no OCSP responder and no CRL" in result.sentence()


def test_status_none_asks_nobody(pki):
    result, _, web = judged(pki, respond, policy={"status": "none"})
    assert result.good
    assert not web.seen
    assert "revocation was not looked at" in result.sentence()


# --- OCSP responses that are no use --------------------------------------------------------------------------------


def unusable(pki, arrange, **more):
    result, *_ = judged(pki, arrange, **more)
    assert not result.good
    assert result.code == "no_status"
    return result.sentence()


def test_stale_and_future_and_too_old(pki):
    past = {"this_update": pki.NOW - 2 * pki.DAY, "next_update": pki.NOW - pki.DAY}
    assert "valid only until 2026-11-22" in unusable(pki, lambda p, w: respond(p, w, **past))
    later = pki.NOW + timedelta(minutes=2)
    assert "in the future" in unusable(pki, lambda p, w: respond(p, w, this_update=later))
    hours_ago = {"this_update": pki.NOW - timedelta(hours=3)}
    assert judged(pki, lambda p, w: respond(p, w, **hours_ago))[0].good
    strict = {"max_age": timedelta(hours=1)}
    assert "longer ago than the policy allows" in unusable(pki, lambda p, w: respond(p, w, **hours_ago), policy=strict)


def test_clocks_may_differ_by_the_skew(pki):
    assert judged(pki, lambda p, w: respond(p, w, this_update=pki.NOW + timedelta(seconds=30)))[0].good
    just_over = {"this_update": pki.NOW - pki.DAY, "next_update": pki.NOW - timedelta(seconds=30)}
    assert judged(pki, lambda p, w: respond(p, w, **just_over))[0].good


def test_without_next_update_a_response_lasts_an_hour(pki):
    fresh = {"this_update": pki.NOW - timedelta(minutes=50), "next_update": None}
    assert judged(pki, lambda p, w: respond(p, w, **fresh))[0].good
    old = {"this_update": pki.NOW - timedelta(minutes=70), "next_update": None}
    unusable(pki, lambda p, w: respond(p, w, **old))


def test_signed_by_the_wrong_key(pki):
    stranger = pki.issue(None, "stranger", ca=True)
    reason = unusable(pki, lambda p, w: respond(p, w, key=stranger.key))
    assert "is no use" in reason
    # A signer that another CA delegated to, and one that calls itself the issuer.
    foreign = pki.issue(stranger, "foreign ocsp", purposes=("OCSPSigning",), extra=(extensions.ocsp_nocheck(),))
    unusable(pki, lambda p, w: respond(p, w, signer=foreign))
    unusable(pki, lambda p, w: respond(p, w, signer=stranger))


def test_signer_without_the_purpose(pki):
    def arrange(plant, web):
        device = pki.issue(plant.issuing, "just a device")
        respond(plant, web, signer=device)

    assert "OCSPSigning" in unusable(pki, arrange)


def test_expired_signer(pki):
    def arrange(plant, web):
        late = pki.issue(
            plant.issuing, "late ocsp", purposes=("OCSPSigning",), extra=(extensions.ocsp_nocheck(),), not_after=pki.NOW - pki.DAY / 2
        )
        respond(plant, web, signer=late)

    unusable(pki, arrange)


def test_signer_without_nocheck_is_itself_checked_by_crl(pki):
    def arrange(entries, handed_in):
        def fill(plant, web):
            signer = pki.issue(plant.issuing, "checked ocsp", purposes=("OCSPSigning",), crl=(f"{web.url}/signers.crl",))
            respond(plant, web, signer=signer)
            crl = plant.issuing.crl(*(CrlEntry(signer.certificate.serial, pki.NOW, 1) for _ in range(entries)))
            if handed_in:
                web.answers["/signers.crl"] = crl

        return fill

    assert judged(pki, arrange(0, True))[0].good
    assert "nothing says that its signer" in unusable(pki, arrange(1, True))
    assert "nothing says that its signer" in unusable(pki, arrange(0, False))


def test_issuer_may_sign_for_itself_and_by_name(pki):
    def by_issuer(plant, web):
        respond(plant, web, signer=None, included=())

    assert judged(pki, by_issuer)[0].good
    assert judged(pki, lambda p, w: respond(p, w, by_name=True))[0].good


def test_signer_of_the_other_family(pki):
    def arrange(plant, web):
        odd = pki.issue(plant.issuing, "sm2 ocsp", KeyKind.SM2, purposes=("OCSPSigning",), extra=(extensions.ocsp_nocheck(),))
        respond(plant, web, signer=odd)

    assert "mixes algorithm families" in unusable(pki, arrange)
    assert judged(pki, arrange, policy={"mixed_families": True})[0].good


def test_response_about_another_certificate(pki):
    def arrange(plant, web):
        respond(plant, web, about=pki.issue(plant.issuing, "plc-8"))

    assert "not about this certificate" in unusable(pki, arrange)

    def same_serial_of_another_issuer(plant, web):
        other = pki.issue(plant.root, "other issuing", ca=True)
        web.answers["/ocsp"] = other.ocsp(plant.device, signer=plant.signer)

    assert "not about this certificate" in unusable(pki, same_serial_of_another_issuer)


@pytest.mark.parametrize("rubbish", [b"", b"<html>", error_response(3), error_response(6), b"\x30\x80\x00\x00"])
def test_rubbish_and_errors_from_the_responder(pki, rubbish):
    def arrange(plant, web):
        web.answers["/ocsp"] = rubbish

    unusable(pki, arrange)


def test_nonce_must_come_back_if_one_was_sent(pki):
    nonce = bytes(range(32))
    assert judged(pki, lambda p, w: respond(p, w, nonce=nonce), nonce=nonce)[0].good
    assert "nonce" in unusable(pki, respond, nonce=nonce)
    assert "nonce" in unusable(pki, lambda p, w: respond(p, w, nonce=bytes(32)), nonce=nonce)


def test_a_responder_that_hangs(pki):
    def arrange(plant, web):
        async def hang(request):
            await asyncio.Event().wait()

        web.answers["/ocsp"] = hang
        web.answers["/issuing.crl"] = plant.issuing.crl() if arrange.lists else hang

    # It may not take all the time there is: then the CRL is asked.
    arrange.lists = True
    result, *_ = judged(pki, arrange, fetch=HttpFetcher(networks=LOOPBACK, timeout=0.2))
    assert result.good
    assert result.basis[0].source == "crl"
    # If all of them do, the answer is no, in time.
    arrange.lists = False
    result, *_ = judged(pki, arrange, policy={"budget": timedelta(seconds=0.2)})
    assert result.code == "no_status"
    assert "within 0.2 s" in result.sentence()


# --- CRLs that are no use ------------------------------------------------------------------------------------------


def with_crl(make):
    def arrange(plant, web):
        web.answers["/issuing.crl"] = make(plant)

    return arrange


def test_crl_stale_or_of_the_future(pki):
    stale = with_crl(lambda p: p.issuing.crl(this_update=pki.NOW - 2 * pki.DAY, next_update=pki.NOW - pki.DAY))
    assert "valid only until" in unusable(pki, stale)
    unusable(pki, with_crl(lambda p: p.issuing.crl(this_update=pki.NOW + pki.DAY, next_update=pki.NOW + 2 * pki.DAY)))


def test_crl_of_somebody_else(pki):
    stranger = pki.issue(None, "stranger", ca=True)
    assert "not signed with the key" in unusable(pki, with_crl(lambda p: p.issuing.crl(signer=stranger)))
    assert "not about" in unusable(pki, with_crl(lambda _: stranger.crl()))
    assert "not signed with the key" in unusable(pki, with_crl(lambda p: stranger.crl(issuer=p.issuing.certificate.subject)))


def test_crl_of_a_ca_that_may_not_sign_crls(pki):
    root = pki.issue(None, "r", ca=True, usage=("keyCertSign",))
    leaf = pki.issue(root, "x")
    result = handed(pki.plant(), leaf, chain=[], trust=[root], crls=[root.crl()])
    assert result.code == "no_status"
    assert "cRLSign" in result.sentence()


def test_crl_without_a_number_or_a_next_update(pki):
    def rewritten(drop):
        def make(plant):
            """A CRL as we write it, without some of its fields, signed again."""
            tbs, algorithm, _ = split(plant.issuing.crl())
            fields = [tbs[field.start : field.end] for field in der.children(tbs, der.read(tbs))]
            shorter = der.sequence(*drop(fields))
            return der.sequence(shorter, algorithm, der.bit_string(plant.issuing.key.sign(shorter)))

        return make

    assert judged(pki, with_crl(rewritten(lambda fields: fields)))[0].good
    assert "CRL number" in unusable(pki, with_crl(rewritten(lambda fields: fields[:-1])))
    assert "when the next one comes" in unusable(pki, with_crl(rewritten(lambda fields: fields[:4] + fields[5:])))


def scope(*fields: bytes) -> tuple[Extension, ...]:
    return (Extension("2.5.29.28", True, der.sequence(*fields)),)


def flag(number: int) -> bytes:
    return der.context(number, b"\xff", constructed=False)


def point(url: str) -> bytes:
    return der.context(0, der.context(0, der.context(6, url.encode(), constructed=False)))


@pytest.mark.parametrize(
    ("fields", "good"),
    [
        ((flag(1),), True),  # end entities only
        ((flag(2),), False),  # CAs only
        ((flag(5),), False),  # attribute certificates only
        ((der.context(3, b"\x06\x40", constructed=False),), False),  # keyCompromise only
        ((flag(4),), True),  # indirect: also for others, but for its issuer's own first of all
        ((flag(1), flag(2)), False),  # nonsense
        ((point("http://elsewhere.example/part.crl"),), False),
        ((der.context(9, b"", constructed=False),), False),
    ],
)
def test_crl_scope(pki, fields, good):
    result, *_ = judged(pki, with_crl(lambda p: p.issuing.crl(extra=scope(*fields))))
    assert result.good is good


def test_crl_for_the_distribution_point_of_the_certificate(pki):
    def arrange(plant, web):
        web.answers["/issuing.crl"] = plant.issuing.crl(extra=scope(point(f"{web.url}/issuing.crl"), flag(1)))

    assert judged(pki, arrange)[0].good


def test_a_list_for_some_reasons_still_revokes(pki):
    partial = scope(der.context(3, b"\x06\x40", constructed=False))
    make = with_crl(lambda p: p.issuing.crl(CrlEntry(p.device.certificate.serial, pki.NOW, 1), extra=partial))
    assert judged(pki, make)[0].code == "revoked"


def test_delta_crl_is_no_complete_one(pki):
    delta = (Extension("2.5.29.27", True, der.integer(1)),)
    unusable(pki, with_crl(lambda p: p.issuing.crl(extra=delta)))


# --- handed in -----------------------------------------------------------------------------------------------------


def test_staple_and_crl_handed_in_are_enough_offline(pki):
    plant = pki.plant()
    staple = plant.issuing.ocsp(plant.device, signer=plant.signer, hash="sha256")
    result = handed(plant, staples=[staple], crls=[plant.root.crl()])
    assert result.good
    assert [basis.source for basis in result.basis] == ["staple", "crl"]
    assert "OCSP response handed in" in result.sentence()
    assert handed(plant, staples=[staple]).code == "no_status"
    assert handed(plant).code == "no_status"


def test_of_what_is_handed_in_the_gravest_counts(pki):
    plant = pki.plant()
    staple = plant.issuing.ocsp(plant.device, signer=plant.signer)
    crls = [plant.root.crl(), plant.issuing.crl(CrlEntry(plant.device.certificate.serial, pki.NOW, 1))]
    for order in (crls, crls[::-1]):
        assert handed(plant, staples=[staple], crls=order).code == "revoked"


def test_offline_fetches_nothing(pki):
    result, _, web = judged(pki, respond, policy=OFFLINE)
    assert result.code == "no_status"
    assert not web.seen


def test_a_good_staple_spares_the_request(pki):
    def arrange(plant, web):
        return {"staples": [plant.issuing.ocsp(plant.device, signer=plant.signer)]}

    result, _, web = judged(pki, arrange)
    assert result.good
    assert "GET /issuing.crl" not in web.seen


def test_a_useless_staple_is_named_and_passed_by(pki):
    def arrange(plant, web):
        respond(plant, web)
        old = plant.issuing.ocsp(plant.device, signer=plant.signer, this_update=pki.NOW - 9 * pki.DAY, next_update=pki.NOW - 8 * pki.DAY)
        return {"staples": [old, b"rubbish"], "crls": [b"rubbish"]}

    assert judged(pki, arrange)[0].good
    reason = judged(pki, arrange, policy=OFFLINE)[0].sentence()
    assert "an OCSP response that was handed in is no use: it was valid only until 2026-11-15" in reason


def test_ocsp_signers_and_certificates_without_revocation_are_exempt(pki):
    plant = pki.plant()
    crls = [plant.root.crl()]
    assert handed(plant, plant.signer, crls=crls).good
    # nocheck in a device, and noRevAvail in a CA, mean nothing.
    device = pki.issue(plant.issuing, "sly", extra=(extensions.ocsp_nocheck(),))
    assert handed(plant, device, crls=crls).code == "no_status"
    none_available = Extension("2.5.29.56", False, der.null())
    short = pki.issue(plant.issuing, "short lived", extra=(none_available,))
    assert handed(plant, short, crls=crls).good
    issuing = pki.issue(plant.root, "sly issuing", ca=True, extra=(none_available,))
    below = pki.issue(issuing, "x", extra=(none_available,))
    assert handed(plant, below, chain=[issuing]).code == "no_status"


def test_another_path_is_taken_when_the_issuing_ca_of_one_was_revoked(pki):
    old, new = pki.issue(None, "old root", ca=True), pki.issue(None, "new root", ca=True)
    first, second = pki.issue(old, "crossed", ca=True), pki.issue(new, "crossed", ca=True)
    leaf = pki.issue(first, "x")
    crls = [old.crl(CrlEntry(first.certificate.serial, pki.NOW, 4)), new.crl(), first.crl()]
    result = handed(pki.plant(), leaf, chain=[first, second], trust=[old, new], crls=crls)
    assert result.good
    assert result.path[-1] == new.certificate
    assert handed(pki.plant(), leaf, chain=[first], trust=[old, new], crls=crls).code == "revoked"


def test_crl_with_the_issuer_name_spelled_otherwise(pki):
    root = pki.issue(None, "r", ca=True, subject=name(("CN", "The Root")))
    leaf = pki.issue(root, "x")
    result = handed(pki.plant(), leaf, chain=[], trust=[root], crls=[root.crl(issuer=name(("CN", "THE  ROOT")))])
    assert result.good
