"""CRLs beyond the plain one: deltas, partitions by point and by reason, indirect lists, keys that changed; openssl has to agree."""

from __future__ import annotations

import asyncio
import subprocess
from contextlib import suppress
from datetime import timedelta

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from programs import need

from pkix import der, extensions
from pkix.algorithms import SIGNATURES, KeyKind
from pkix.certificate import assemble
from pkix.crl import CrlEntry
from pkix.errors import Malformed
from pkix.extensions import Extension
from pkix.pem import encode
from validate import Policy, anchors, crl_points, validate
from validate.crl_load import LoadedCrl, read
from validate.fetch import LOOPBACK, HttpFetcher
from validate.status import Revocation
from validate.text import Text

HOLD, REMOVED = 6, 8
KINDS = [KeyKind.P_256, KeyKind.SM2]


def flag(number):
    return der.context(number, b"\xff", constructed=False)


def uri(url):
    return der.context(6, url.encode(), constructed=False)


def full_name(*names):
    return der.context(0, der.context(0, *names))


def scope(*fields):
    """IssuingDistributionPoint, critical."""
    return Extension(extensions.ISSUING_DISTRIBUTION_POINT, True, der.sequence(*fields))


def some_reasons(*bits):
    return der.tlv(0x83, der.named_bits(bits)[2:])


def base(number):
    """DeltaCRLIndicator."""
    return Extension(extensions.DELTA_CRL_INDICATOR, True, der.integer(number))


def freshest(*urls):
    return Extension("2.5.29.46", False, der.sequence(*(der.sequence(full_name(uri(url))) for url in urls)))


def points(*listed):
    """CRLDistributionPoints out of whole points."""
    return Extension(extensions.CRL_DISTRIBUTION_POINTS, False, der.sequence(*listed))


def directory(party):
    return der.context(4, party.certificate.subject.der)


def openssl(folder, leaf, chain, trust, now, crls):
    """Whether ``openssl verify -crl_check_all`` is content, or the word that says why not."""
    need("openssl")
    for file, parties in (("leaf.pem", [leaf]), ("chain.pem", chain), ("trust.pem", [trust])):
        (folder / file).write_text("".join(party.certificate.pem for party in parties))
    (folder / "crls.pem").write_text("".join(encode("X509 CRL", crl) for crl in crls))
    command = ["openssl", "verify", "-attime", str(int(now.timestamp())), "-CAfile", "trust.pem", "-untrusted", "chain.pem"]
    command += ["-crl_check_all", "-extended_crl", "-use_deltas", "-CRLfile", "crls.pem", "leaf.pem"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    return done.returncode == 0, done.stdout + done.stderr


def handed(pki, plant, leaf, crls, *, now=None, intermediates=(), chain=None, **policy):
    return plant.validate(
        leaf,
        chain=chain,
        status="offline",
        now=now or pki.NOW,
        intermediates=tuple(party.certificate for party in intermediates),
        more={"status": Revocation(), "crls": crls},
        **policy,
    )


# --- deltas --------------------------------------------------------------------------------------------------------


def delta_cases(pki, serial):
    """(entries of the complete list, of the delta, the standing that they come to)."""
    at = pki.NOW - pki.DAY
    return {
        "nothing new": ([], [CrlEntry(5, at, 1)], "good"),
        "revoked since": ([], [CrlEntry(serial, at, 1)], "revoked"),
        "revoked before": ([CrlEntry(serial, at, 1)], [], "revoked"),
        "held since": ([], [CrlEntry(serial, at, HOLD)], "held"),
        "released": ([CrlEntry(serial, at, HOLD)], [CrlEntry(serial, at, REMOVED)], "good"),
        "hold became revocation": ([CrlEntry(serial, at, HOLD)], [CrlEntry(serial, at, 4)], "revoked"),
    }


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", ["nothing new", "revoked since", "revoked before", "held since", "released", "hold became revocation"])
def test_complete_and_delta_as_openssl_combines_them(pki, tmp_path, kind, case):
    plant = pki.plant(kind)
    complete, changes, standing = delta_cases(pki, plant.device.certificate.serial)[case]
    # openssl combines where the complete list says that there are deltas.
    crls = [
        plant.issuing.crl(*complete, number=7, extra=(freshest("http://x/d"),)),
        plant.issuing.crl(*changes, number=9, extra=(base(7),)),
    ]
    result = handed(pki, plant, plant.device, [plant.root.crl(), *crls])
    assert result.basis[0].standing == standing
    assert result.basis[0].source == "delta"
    assert result.good is (standing == "good")
    if kind is KeyKind.P_256:
        content, said = openssl(tmp_path, plant.device, [plant.issuing], plant.root, pki.NOW, [plant.root.crl(), *crls])
        assert content is result.good, said


def test_a_delta_takes_only_holds_off(pki):
    plant = pki.plant()
    serial = plant.device.certificate.serial
    crls = [
        plant.issuing.crl(CrlEntry(serial, pki.NOW, 1)),
        plant.issuing.crl(CrlEntry(serial, pki.NOW, REMOVED), number=2, extra=(base(1),)),
    ]
    assert handed(pki, plant, plant.device, [plant.root.crl(), *crls]).code == "revoked"


def test_a_delta_that_does_not_fit_is_passed_by(pki):
    """A delta that revokes, but not on top of this list: what is complete and current still counts."""
    plant = pki.plant()
    revoked = CrlEntry(plant.device.certificate.serial, pki.NOW, 1)
    complete = plant.issuing.crl(number=7)
    stranger = pki.issue(None, "stranger", ca=True)
    for delta in (
        plant.issuing.crl(revoked, number=9, extra=(base(8),)),  # on top of a later one
        plant.issuing.crl(revoked, number=7, extra=(base(6),)),  # not newer
        plant.issuing.crl(revoked, number=9, extra=(base(7), scope(flag(1)))),  # of another scope
        plant.issuing.crl(revoked, number=9, extra=(base(7),), signer=stranger),
        plant.issuing.crl(revoked, number=9, extra=(base(7),), this_update=pki.NOW - 2 * pki.DAY, next_update=pki.NOW - pki.DAY),
        plant.root.crl(revoked, number=9, extra=(base(7),)),
    ):
        result = handed(pki, plant, plant.device, [plant.root.crl(), complete, delta])
        assert (result.basis[0].standing, result.basis[0].source) == ("good", "crl")
    alone = handed(pki, plant, plant.device, [plant.root.crl(), plant.issuing.crl(number=9, extra=(base(7),))])
    assert alone.code == "no_status"


def test_a_current_delta_keeps_a_list_alive_that_is_over(pki):
    """RFC 5280 6.3.3 (a): an old complete list with a current delta is as good as a new one, and as old as the delta."""
    plant = pki.plant()
    old = {"this_update": pki.NOW - 9 * pki.DAY, "next_update": pki.NOW - 2 * pki.DAY}
    complete, delta = plant.issuing.crl(number=1, **old), plant.issuing.crl(number=5, extra=(base(1),))
    assert handed(pki, plant, plant.device, [plant.root.crl(), complete]).code == "no_status"
    result = handed(pki, plant, plant.device, [plant.root.crl(), complete, delta], max_age=timedelta(hours=1))
    assert result.good
    assert result.basis[0].this_update == pki.NOW


def test_of_several_deltas_the_newest_counts(pki):
    plant = pki.plant()
    serial = plant.device.certificate.serial
    crls = [
        plant.issuing.crl(number=1),
        plant.issuing.crl(CrlEntry(serial, pki.NOW, HOLD), number=2, extra=(base(1),)),
        plant.issuing.crl(CrlEntry(serial, pki.NOW, REMOVED), number=3, extra=(base(1),)),
    ]
    for order in (crls, crls[::-1]):
        assert handed(pki, plant, plant.device, [plant.root.crl(), *order]).good


# --- partitions ----------------------------------------------------------------------------------------------------

HERE, THERE = "http://pki.example/1.crl", "http://pki.example/2.crl"


@pytest.mark.parametrize(
    ("fields", "good"),
    [
        ((full_name(uri(HERE)),), True),
        ((full_name(uri(THERE)),), False),
        ((full_name(uri(THERE), uri(HERE)),), True),
        ((full_name(uri(HERE.upper())),), False),
        ((full_name(uri(HERE)), flag(1)), True),
        ((full_name(uri(HERE)), flag(2)), False),
        ((flag(1),), True),
    ],
)
def test_a_partition_covers_the_certificates_that_name_it(pki, tmp_path, fields, good):
    plant = pki.plant()
    device = pki.issue(plant.issuing, "partitioned", crl=(HERE,))
    crls = [plant.root.crl(), plant.issuing.crl(extra=(scope(*fields),))]
    assert handed(pki, plant, device, crls).good is good
    content, said = openssl(tmp_path, device, [plant.issuing], plant.root, pki.NOW, crls)
    assert content is good, said
    revoked = [plant.root.crl(), plant.issuing.crl(CrlEntry(device.certificate.serial, pki.NOW, 1), extra=(scope(*fields),))]
    assert handed(pki, plant, device, revoked).code == ("revoked" if good else "no_status")
    assert openssl(tmp_path, device, [plant.issuing], plant.root, pki.NOW, revoked)[0] is False


def test_a_partition_named_relative_to_its_issuer(pki):
    plant = pki.plant()
    rdn = der.sequence(der.oid("2.5.4.3"), der.utf8_string("shard 3"))
    relative = der.context(0, der.context(1, rdn))
    device = pki.issue(plant.issuing, "sharded", extra=(points(der.sequence(relative)),))
    whole = der.tlv(der.SEQUENCE, plant.issuing.certificate.subject.der[2:], der.tlv(der.SET, rdn))
    for name in (relative, full_name(der.context(4, whole))):
        assert handed(pki, plant, device, [plant.root.crl(), plant.issuing.crl(extra=(scope(name),))]).good
    elsewhere = full_name(directory(plant.issuing))
    assert handed(pki, plant, device, [plant.root.crl(), plant.issuing.crl(extra=(scope(elsewhere),))]).code == "no_status"


def test_lists_for_some_reasons_are_good_only_together(pki, tmp_path):
    plant = pki.plant()
    serial = plant.device.certificate.serial
    grave, others = scope(some_reasons(1, 2)), scope(some_reasons(3, 4, 5, 6, 7, 8))
    first, second = plant.issuing.crl(extra=(grave,)), plant.issuing.crl(extra=(others,), next_update=pki.NOW + pki.DAY / 2)
    root = plant.root.crl()
    assert handed(pki, plant, plant.device, [root, first]).code == "no_status"
    assert "do not cover every reason" in handed(pki, plant, plant.device, [root, first]).sentence()
    both = handed(pki, plant, plant.device, [root, first, second])
    assert both.good
    assert both.basis[0].until == pki.NOW + pki.DAY / 2
    assert openssl(tmp_path, plant.device, [plant.issuing], plant.root, pki.NOW, [root, first, second])[0]
    assert not openssl(tmp_path, plant.device, [plant.issuing], plant.root, pki.NOW, [root, first])[0]
    revoked = plant.issuing.crl(CrlEntry(serial, pki.NOW, 4), extra=(others,))
    for crls in ([root, revoked], [root, first, revoked], [root, revoked, first]):
        assert handed(pki, plant, plant.device, crls).code == "revoked"


def test_points_for_some_reasons(pki):
    """A certificate may say which of its points has which reasons."""
    plant = pki.plant()
    halves = [((1, 2), HERE), ((3, 4, 5, 6, 7, 8), THERE)]
    listed = [der.sequence(full_name(uri(url)), der.tlv(0x81, der.named_bits(bits)[2:])) for bits, url in halves]
    device = pki.issue(plant.issuing, "halves", extra=(points(*listed),))
    lists = [plant.issuing.crl(extra=(scope(full_name(uri(url)), some_reasons(*bits)),)) for bits, url in halves]
    assert handed(pki, plant, device, [plant.root.crl(), *lists]).good
    assert handed(pki, plant, device, [plant.root.crl(), lists[0]]).code == "no_status"
    # A list for everything serves both points.
    assert handed(pki, plant, device, [plant.root.crl(), plant.issuing.crl()]).good


# --- indirect lists ------------------------------------------------------------------------------------------------


def indirect(party, *listed, extra=(), number=1):
    """A CRL of ``party`` with entries (serial, reason, issuer or None), signed again."""
    empty = party.crl(number=number, extra=(scope(flag(4), *extra),))
    fields = der.children(empty, der.children(empty, der.read(empty))[0])
    entries = []
    for serial, reason, issuer in listed:
        also = [Extension(extensions.CRL_REASON, False, der.enumerated(reason)).der]
        if issuer is not None:
            also.append(Extension("2.5.29.29", True, der.sequence(directory(issuer))).der)
        entries.append(der.sequence(der.integer(serial), der.time(party.certificate.not_before), der.sequence(*also)))
    parts = [empty[field.start : field.end] for field in fields]
    tbs = der.sequence(*parts[:5], der.sequence(*entries) if entries else b"", *parts[5:])
    return assemble(tbs, SIGNATURES[party.key.kind], party.key.sign(tbs))


@pytest.fixture
def office(pki):
    """A device whose CRLs a revocation office signs, which its issuer names and the same root certified."""
    plant = pki.plant()
    signer = pki.issue(plant.root, "revocation office", usage=("cRLSign",), purposes=())
    named = points(der.sequence(full_name(uri(HERE)), der.context(2, directory(signer))))
    return plant, signer, pki.issue(plant.issuing, "indirectly", extra=(named,))


def test_indirect_lists_go_by_the_issuer_of_each_entry(pki, office, tmp_path):
    plant, signer, device = office
    serial, root = device.certificate.serial, plant.root.crl()

    def judged(*listed):
        crl = indirect(signer, *listed)
        result = handed(pki, plant, device, [root, crl], intermediates=[signer])
        content, said = openssl(tmp_path, device, [plant.issuing, signer], plant.root, pki.NOW, [root, crl])
        assert content is result.good, said
        return result

    assert judged((5, 1, plant.issuing), (6, 1, None)).good
    assert judged((serial, 1, plant.root)).good  # the same number, somebody else's
    assert judged((serial, 1, None)).good  # the office's own
    assert judged((serial, 1, plant.issuing)).code == "revoked"
    # An issuer that is named holds for the entries that follow.
    assert judged((5, 1, plant.issuing), (serial, 1, None)).code == "revoked"
    assert judged((5, 1, plant.issuing), (7, 1, plant.root), (serial, 1, None)).good


def test_an_indirect_list_needs_the_certificate_s_own_word(pki, office):
    plant, signer, device = office
    root = plant.root.crl()
    good = indirect(signer)
    assert handed(pki, plant, device, [root, good], intermediates=[signer]).good
    # Not the one who is named; not called indirect; not certified here; may not sign CRLs; revoked; a certificate that names nobody.
    other = pki.issue(plant.root, "other office", usage=("cRLSign",), purposes=())
    assert handed(pki, plant, device, [root, indirect(other)], intermediates=[other]).code == "no_status"
    assert handed(pki, plant, device, [root, signer.crl()], intermediates=[signer]).code == "no_status"
    elsewhere = pki.issue(None, "another root", ca=True)
    same_name = pki.issue(elsewhere, "revocation office", usage=("cRLSign",), purposes=())
    assert handed(pki, plant, device, [root, indirect(same_name)], intermediates=[same_name]).code == "no_status"
    mute = pki.issue(plant.root, "revocation office", purposes=())
    assert handed(pki, plant, device, [root, indirect(mute)], intermediates=[mute]).code == "no_status"
    revoked = plant.root.crl(CrlEntry(signer.certificate.serial, pki.NOW, 1))
    assert handed(pki, plant, device, [revoked, good], intermediates=[signer]).code == "no_status"
    assert handed(pki, plant, plant.device, [root, good], intermediates=[signer]).code == "no_status"


def test_the_signer_has_to_lead_to_the_same_anchor(pki, office):
    """Two anchors are trusted; the office is certified by the other one (RFC 5280 6.3.3 (f))."""
    plant, _, device = office
    other = pki.issue(None, "second root", ca=True)
    signer = pki.issue(other, "revocation office", usage=("cRLSign",), purposes=())
    crls = [plant.root.crl(), other.crl(), indirect(signer)]
    result = handed(pki, plant, device, crls, intermediates=[signer], trust=[plant.root, other])
    assert result.code == "no_status"
    assert "trust anchor" in result.sentence()


def test_entries_of_others_in_a_list_that_is_not_indirect(pki):
    plant = pki.plant()
    odd = indirect(plant.issuing, (5, 1, plant.root), extra=())
    assert handed(pki, plant, plant.device, [plant.root.crl(), odd]).good
    plain = odd.replace(flag(4), flag(1))  # the signature breaks too, but the form comes first
    assert "indirect" in handed(pki, plant, plant.device, [plant.root.crl(), plain]).sentence()


# --- keys ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_an_issuer_that_changed_its_key_signs_with_the_new_one(pki, kind):
    plant = pki.plant(kind)
    renewed = pki.issue(plant.root, f"{kind} issuing", kind, ca=True, key_label="renewed")
    crls = [plant.root.crl(), renewed.crl(CrlEntry(1, pki.NOW))]
    assert handed(pki, plant, plant.device, crls, intermediates=[renewed]).good
    assert handed(pki, plant, plant.device, crls).code == "no_status"
    listed = renewed.crl(CrlEntry(plant.device.certificate.serial, pki.NOW, 1))
    assert handed(pki, plant, plant.device, [plant.root.crl(), listed], intermediates=[renewed]).code == "revoked"
    # The other way round: certified by the new key, on a list of the old one, which was withdrawn.
    young = pki.issue(renewed, "young", kind)
    withdrawn = plant.root.crl(CrlEntry(plant.issuing.certificate.serial, pki.NOW, 1))
    for root, good in ((plant.root.crl(), True), (withdrawn, False)):
        result = handed(pki, plant, young, [root, plant.issuing.crl()], chain=[renewed], intermediates=[plant.issuing])
        assert result.good is good


def test_a_key_does_not_vouch_for_itself(pki):
    """A stolen key signs the list that would say that it was stolen."""
    root = pki.issue(None, "rolling root", ca=True)
    stolen = pki.issue(root, "rolling root", ca=True, key_label="stolen", subject=root.certificate.subject)
    leaf = pki.issue(root, "below")
    forged = stolen.crl()
    result = handed(pki, pki.plant(), leaf, [forged], chain=[], trust=[root], intermediates=[stolen])
    assert result.code == "no_status"
    assert handed(pki, pki.plant(), leaf, [forged, root.crl()], chain=[], trust=[root], intermediates=[stolen]).good
    told = [forged, root.crl(CrlEntry(leaf.certificate.serial, pki.NOW, 1))]
    assert handed(pki, pki.plant(), leaf, told, chain=[], trust=[root], intermediates=[stolen]).code == "revoked"


# --- fetched -------------------------------------------------------------------------------------------------------


def online(pki, arrange, *, now=None, **policy):
    """``arrange(web)`` gives plant, leaf and intermediates; yields the result and what the server saw."""

    async def run():
        async with pki.serving() as web:
            plant, leaf, intermediates = arrange(web)
            web.answers.setdefault("/root.crl", plant.root.crl())
            status = Revocation(HttpFetcher(networks=LOOPBACK))
            try:
                asked = Policy(anchors=anchors(plant.root.der), intermediates=tuple(p.certificate for p in intermediates), **policy)
                result = await validate((leaf.der, plant.issuing.der), policy=asked, now=now or pki.NOW, status=status)
            finally:
                await status.close()
            return result, web

    return asyncio.run(run())


@pytest.mark.parametrize("holder", ["certificate", "list"])
def test_freshest_lists_are_fetched(pki, holder):
    def arrange(web):
        plant = pki.at(web.url, ocsp=(), **({"extra": (freshest(f"{web.url}/delta.crl"),)} if holder == "certificate" else {}))
        extra = (freshest(f"{web.url}/delta.crl"),) if holder == "list" else ()
        web.answers["/issuing.crl"] = plant.issuing.crl(extra=extra)
        web.answers["/delta.crl"] = plant.issuing.crl(CrlEntry(plant.device.certificate.serial, pki.NOW, 1), number=2, extra=(base(1),))
        return plant, plant.device, ()

    result, web = online(pki, arrange)
    assert result.code == "revoked"
    assert (result.basis[0].source, result.basis[0].url) == ("delta", f"{web.url}/delta.crl")


def test_without_its_delta_a_list_still_counts(pki):
    def arrange(web):
        plant = pki.at(web.url, ocsp=())
        web.answers["/issuing.crl"] = plant.issuing.crl(extra=(freshest(f"{web.url}/delta.crl"),))
        return plant, plant.device, ()

    result, web = online(pki, arrange)
    assert (result.good, result.basis[0].source) == (True, "crl")
    assert "GET /delta.crl" in web.seen


def test_several_urls_are_tried_in_turn(pki):
    def arrange(web):
        plant = pki.at(web.url, ocsp=(), crl=tuple(f"{web.url}/{at}.crl" for at in range(3)))
        stale = {"this_update": pki.NOW - 9 * pki.DAY, "next_update": pki.NOW - pki.DAY}
        web.answers |= {"/1.crl": plant.issuing.crl(**stale), "/2.crl": plant.issuing.crl()}
        return plant, plant.device, ()

    result, web = online(pki, arrange)
    assert result.basis[0].url == f"{web.url}/2.crl"
    assert [one for one in web.seen if one[5] in "0123"] == ["GET /0.crl", "GET /1.crl", "GET /2.crl"]


def test_the_issuer_of_an_indirect_list_is_fetched(pki):
    def arrange(web):
        plant = pki.at(web.url)
        signer = pki.issue(plant.root, "far office", usage=("cRLSign",), purposes=(), crl=(f"{web.url}/root.crl",))
        named = points(der.sequence(full_name(uri(f"{web.url}/indirect.crl")), der.context(2, directory(signer))))
        access = extensions.authority_information_access(issuers=[f"{web.url}/office.cer"])
        tbs = signer.crl(extra=(scope(flag(4)), access))
        web.answers |= {"/indirect.crl": tbs, "/office.cer": signer.der}
        return plant, pki.issue(plant.issuing, "far", extra=(named,)), ()

    result, web = online(pki, arrange)
    assert result.good, result.sentence()
    assert "GET /office.cer" in web.seen


def test_points_that_cannot_be_read(pki):
    plant = pki.plant()
    for value in (der.sequence(), der.sequence(der.sequence()), der.sequence(*[der.sequence(full_name(uri(HERE)))] * 17)):
        device = pki.issue(plant.issuing, "odd", extra=(Extension(extensions.CRL_DISTRIBUTION_POINTS, False, value),))
        assert handed(pki, plant, device, [plant.root.crl(), plant.issuing.crl()]).code == "no_status"


# --- whatever stands there -----------------------------------------------------------------------------------------


@given(data=st.data())
@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_mutated_scopes_and_points_are_read_or_refused(pki, data):
    plant = pki.plant()
    scopes = [scope(full_name(uri(HERE), directory(plant.root)), flag(1), some_reasons(1, 3), flag(4)), freshest(HERE, THERE)]
    named = der.sequence(full_name(uri(HERE)), der.tlv(0x81, der.named_bits((1, 2))[2:]), der.context(2, directory(plant.root)))
    point = data.draw(st.sampled_from([*scopes, points(named, named)]))
    value = bytearray(point.value)
    for _ in range(data.draw(st.integers(0, 4))):
        value[data.draw(st.integers(0, len(value) - 1))] = data.draw(st.integers(0, 255))
    broken = Extension(point.oid, point.critical, bytes(value))
    if point.oid != extensions.CRL_DISTRIBUTION_POINTS:
        assert isinstance(read(plant.issuing.crl(extra=(broken,))), LoadedCrl | Text)
        return
    with suppress(Malformed):
        device = pki.issue(plant.issuing, "odd", extra=(broken,))
        assert all(point.names or point.authorities for point in crl_points.points(device.certificate))
