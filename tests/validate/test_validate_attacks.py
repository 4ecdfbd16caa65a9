"""Inputs made to be called good, or to bring a validator down; each of them once did."""

from __future__ import annotations

import tracemalloc
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from pkix import der, extensions
from pkix.algorithms import SIGNATURES, KeyKind
from pkix.certificate import assemble
from pkix.constraints import ANY_POLICY
from pkix.crl import CrlEntry, build_tbs_crl, read_entry_extensions
from pkix.errors import Malformed
from pkix.extensions import Extension, general_name
from pkix.name import Name, name
from validate import Anchor, Expected, Memory, Policy, anchors, names, validate_sync
from validate.crl_load import LoadedCrl, read
from validate.fetched import Fetched
from validate.status import Revocation
from validate.status_store import StatusStore, issuer_key

URL = "http://pki.plant/issuing.crl"
ODD = Extension("1.3.6.1.4.1.55738.666.1", True, der.null())
MINUTE, HOUR = timedelta(minutes=1), timedelta(hours=1)


def handed(plant, leaf=None, *, staples=(), crls=(), status="offline", **more):
    """Validates with what is handed in, and nothing fetched."""
    return plant.validate(leaf, status=status, more={"status": Revocation(), "staples": staples, "crls": crls}, **more)


def kept(plant, status, *, now, mode="offline", leaf=None, staples=(), **policy):
    """The code of a validation by what ``status`` has."""
    policy = Policy(anchors=anchors(plant.root.der), status=mode, **policy)
    chain = [(leaf or plant.device).der, plant.issuing.der]
    return validate_sync(chain, policy=policy, now=now, status=status, staples=staples).code


# --- names ---------------------------------------------------------------------------------------------------------


def excluding(pki, *bases):
    return pki.issue(pki.plant().root, "excluding", ca=True, extra=(pki.name_constraints((), bases),))


def permitting(pki, *bases):
    return pki.issue(pki.plant().root, "permitting", ca=True, extra=(pki.name_constraints(bases),))


def alternative(*general):
    return Extension(extensions.SUBJECT_ALT_NAME, False, der.sequence(*general))


def mailbox(text):
    return der.context(0, der.oid("1.3.6.1.5.5.7.8.9"), der.context(0, der.utf8_string(text)))


@pytest.mark.parametrize(("tag", "codec"), [(0x16, "ascii"), (0x0C, "utf-8"), (0x1E, "utf-16-be"), (0x1C, "utf-32-be")])
def test_excluded_mail_in_the_subject_in_any_string_type(pki, tag, codec):
    authority = excluding(pki, der.context(1, b"evil.example", constructed=False))
    address = der.sequence(der.oid("1.2.840.113549.1.9.1"), der.tlv(tag, "a@evil.example".encode(codec)))
    leaf = pki.issue(authority, "mail", subject=Name(der.sequence(der.tlv(der.SET, address))))
    assert pki.plant().validate(leaf, chain=[authority]).code == "name_constraint"


@pytest.mark.parametrize("text", ["ü@xn--bcher-kva.example", "ü@bücher.example", "ü@xn--bcher-kva.example.", "ü"])
def test_excluded_mail_host_however_it_is_written(pki, text):
    authority = excluding(pki, der.context(1, b"xn--bcher-kva.example", constructed=False))
    leaf = pki.issue(authority, "mail", extra=(alternative(mailbox(text)),))
    assert pki.plant().validate(leaf, chain=[authority]).code == "name_constraint"


def test_mailboxes_are_other_names_too(pki):
    authority = excluding(pki, der.context(0, der.oid("1.2.3"), der.context(0, der.utf8_string("x"))))
    leaf = pki.issue(authority, "mail", extra=(alternative(mailbox("ü@plant.example")),))
    assert pki.plant().validate(leaf, chain=[authority]).code == "name_constraint"


@pytest.mark.parametrize(
    ("uri", "good"),
    [
        ("http://good.example/x?y#z", True),
        ("http://user:word@GOOD.example:80", True),
        ("urn:x://good.example/", False),
        ("http:evil.example://good.example/", False),
        ("http://evil.example\\@good.example/", False),
        ("http://evil.example@x@good.example/", False),
        ("http://good.example:80:80/", False),
        ("http://good.example./", False),
        ("http://[::1]@good.example/", False),
    ],
)
def test_the_host_of_a_uri_is_where_its_scheme_ends(pki, uri, good):
    authority = permitting(pki, der.context(6, b"good.example", constructed=False))
    leaf = pki.issue(authority, "uri", extra=(alternative(der.context(6, uri.encode(), constructed=False)),))
    assert pki.plant().validate(leaf, chain=[authority]).good is good


@pytest.mark.parametrize("written", ["Evil", " EVIL", "Ev\u00adil", "\u200bEvil", "Ｅvil", "Evil\ufe0f", "E\u034fvil"])
def test_excluded_directory_names_that_look_the_same(pki, written):
    authority = excluding(pki, der.context(4, name(("O", "Evil")).der))
    leaf = pki.issue(authority, "dn", subject=name(("O", written), ("CN", "x")))
    assert pki.plant().validate(leaf, chain=[authority]).code == "name_constraint"


def test_text_is_not_taken_for_octets():
    def of(value):
        return names.canonical(der.sequence(der.tlv(der.SET, der.sequence(der.oid("1.2.3.4"), value))))

    assert of(der.utf8_string("#0201aa")) != of(der.tlv(der.INTEGER, b"\xaa"))


def test_an_excluded_ipv4_address_inside_an_ipv6_one(pki):
    authority = excluding(pki, der.context(7, bytes((192, 0, 2, 0, 255, 255, 255, 0)), constructed=False))
    for address, good in (("::ffff:192.0.2.7", False), ("::ffff:192.0.3.7", True), ("2001:db8::c000:207", True)):
        leaf = pki.issue(authority, "v6", names=(f"ip:{address}",))
        assert pki.plant().validate(leaf, chain=[authority]).good is good


def test_expected_names_that_could_be_taken_for_another(pki):
    wild = pki.issue(pki.plant().issuing, "wild", names=("dns:*.0.2.7", "ip:2001:db8::7"))
    for unclear in ("dns:192.0.2.7", "device:a:b/c"):
        with pytest.raises(Malformed):
            Expected(unclear)
    assert pki.plant().validate(wild, names=("ip:2001:0DB8:0::7",)).good


def test_long_names_of_strangers_are_not_kept():
    long = "\ufdfa" * 1000  # eighteen times as long in normal form
    before = names._shared_canonical.cache_info().currsize
    for number in range(3):
        parts = [der.tlv(der.SET, der.sequence(der.oid("2.5.4.3"), der.utf8_string(f"{long}{number}"))) for _ in range(5)]
        names.canonical(der.sequence(*parts))
    assert names._shared_canonical.cache_info().currsize == before


# --- anchors -------------------------------------------------------------------------------------------------------


def test_an_anchor_that_is_itself_the_peer_is_good_for_what_it_is_trusted_for(pki):
    plant = pki.plant()
    leaf = pki.issue(plant.issuing, "pinned", names=("dns:plc-7.plant.example",), purposes=("clientAuth", "serverAuth"))

    def code(purpose="tls-client", **limits):
        return plant.validate(leaf, trust=[Anchor(leaf.certificate, **limits)], purpose=purpose).code

    assert code(purposes=frozenset({"tls-client"})) == "good"
    assert code(purposes=frozenset({"tls-server"})) == "anchor_purpose"
    assert code("any", purposes=frozenset({"tls-server"})) == "anchor_purpose"
    assert code(name_constraints=pki.name_constraints((pki.dns("plant.example"),)).value) == "good"
    assert code(name_constraints=pki.name_constraints((pki.dns("other.example"),)).value) == "name_constraint"
    assert code(name_constraints=b"\x30\x00") == "bad_constraint"
    assert code(explicit_policy=True) == "policy_missing"
    marked = pki.issue(plant.issuing, "marked", extra=(extensions.certificate_policies("1.2.3"),))
    for wanted, good in (("1.2.3", True), (ANY_POLICY, True), ("1.2.4", False)):
        asked = {"certificate_policies": frozenset({wanted}), "explicit_policy": True}
        assert plant.validate(marked, trust=[marked], **asked).good is good


# --- OCSP ----------------------------------------------------------------------------------------------------------


def test_delegated_ocsp_signers_obey_the_policy(pki):
    plant = pki.plant()
    silent = Extension(extensions.KEY_USAGE, True, der.bit_string(b""))

    def code(kind=KeyKind.P_256, extra=(), **policy):
        listed = (extensions.ocsp_nocheck(), *extra)
        signer = pki.issue(plant.issuing, "delegate", kind, purposes=("OCSPSigning",), extra=listed, key_label=f"delegate {kind}")
        staples = [plant.root.ocsp(plant.issuing), plant.issuing.ocsp(plant.device, signer=signer)]
        return handed(plant, staples=staples, **policy).code

    assert code() == "good"
    assert code(extra=(ODD,)) == "no_status"
    assert code(extra=(silent,)) == "no_status"
    assert code(KeyKind.RSA_2048) == "good"
    assert code(KeyKind.RSA_2048, minimum_strength=128) == "no_status"
    assert code(KeyKind.SM2, mixed_families=True) == "good"
    assert code(KeyKind.SM2, mixed_families=True, families=frozenset({"ecc"})) == "no_status"


def test_an_answer_at_the_end_of_time(pki):
    plant = pki.plant()
    end = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)
    assert handed(plant, staples=[plant.issuing.ocsp(plant.device, this_update=end, next_update=None)]).code == "no_status"


def test_what_is_exempt_is_nothing_else(pki):
    plant = pki.plant()
    nocheck = extensions.ocsp_nocheck()
    unavailable = Extension("2.5.29.56", False, der.null())
    for good, more in (
        (True, {"purposes": ("OCSPSigning",), "extra": (nocheck,)}),
        (True, {"extra": (unavailable,)}),
        (False, {"purposes": ("clientAuth", "OCSPSigning"), "extra": (nocheck,)}),
        (False, {"crl": (URL,), "extra": (unavailable,)}),
        (False, {"ocsp": ("http://pki.plant/ocsp",), "extra": (unavailable,)}),
    ):
        leaf = pki.issue(plant.issuing, "exempt", **more)
        listed = plant.issuing.crl(CrlEntry(leaf.certificate.serial, pki.NOW, 1))
        assert handed(plant, leaf, crls=[plant.root.crl(), listed]).code == ("good" if good else "revoked")


# --- CRLs ----------------------------------------------------------------------------------------------------------


def test_a_date_that_is_no_text(pki):
    plant = pki.plant()
    raw = bytearray(plant.issuing.crl(CrlEntry(5, pki.NOW)))
    at = raw.index(b"\x02\x01\x05\x17\x0d") + 5
    raw[at : at + 12] = b"\xff" * 6 + b"999999"
    assert handed(plant, crls=[bytes(raw)]).code == "no_status"


@pytest.mark.parametrize("inside", [True, False])
def test_a_list_of_millions_of_nothing_is_not_taken_apart(inside):
    nothing = der.null() * 500_000
    signed = der.sequence(nothing) if inside else der.sequence()
    raw = der.sequence(signed, SIGNATURES[KeyKind.P_256].der, der.bit_string(b"x"), b"" if inside else nothing)
    tracemalloc.start()
    try:
        assert not isinstance(read(raw), LoadedCrl)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_long_entry_extensions_are_read_and_not_kept():
    issuers = der.sequence(*(general_name(f"uri:urn:x:{number}") for number in range(40)))
    long = der.sequence(Extension("2.5.29.29", True, issuers).der)
    assert read_entry_extensions(long) == (0, None, issuers)
    assert read_entry_extensions(long)[2] is not read_entry_extensions(long)[2]


@pytest.mark.parametrize("other", [6, 8])
def test_a_release_or_a_hold_does_not_hide_a_revocation(pki, other):
    plant = pki.plant()
    serial = plant.device.certificate.serial
    entries = [CrlEntry(serial, pki.NOW - pki.DAY, other), CrlEntry(serial, pki.NOW, 1)]
    for listed in (entries, entries[::-1]):
        assert handed(plant, crls=[plant.root.crl(), plant.issuing.crl(*listed)]).code == "revoked"


def test_who_signs_for_another_says_so_in_the_key_usage(pki):
    """An end entity without key usage whose name is that of a CA."""
    plant = pki.plant()
    sibling = pki.issue(plant.root, "sibling", ca=True)
    for usage, good in (((), False), (("digitalSignature",), False), (("cRLSign",), True)):
        stranger = pki.issue(sibling, "stranger", usage=usage, purposes=(), subject=plant.issuing.certificate.subject)
        own = Extension("2.5.29.35", False, der.sequence(der.context(0, stranger.certificate.ski, constructed=False)))
        algorithm = SIGNATURES[stranger.key.kind]
        tbs = build_tbs_crl(
            issuer=plant.issuing.certificate.subject,
            signature=algorithm,
            this_update=pki.NOW,
            next_update=pki.NOW + pki.DAY,
            number=1,
            authority_key_identifier=own,
            entries=(),
        )
        crls = [plant.root.crl(), sibling.crl(), assemble(tbs, algorithm, stranger.key.sign(tbs))]
        intermediates = (stranger.certificate, sibling.certificate)
        assert handed(plant, crls=crls, intermediates=intermediates).good is good


def test_a_ca_of_the_right_name_with_a_key_that_nobody_reads(pki):
    plant = pki.plant()
    spki = ec.generate_private_key(ec.SECP521R1()).public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    odd = SimpleNamespace(spki=spki, key_identifier=plant.issuing.certificate.ski)
    other = pki.issue(plant.root, "odd", ca=True, subject=plant.issuing.certificate.subject, public_key=odd)
    forged = plant.issuing.crl(signer=plant.root)
    assert handed(plant, crls=[plant.root.crl(), forged], intermediates=(other.certificate,)).code == "no_status"


def test_of_two_lists_of_one_name_that_of_the_issuers_own_key_counts(pki):
    plant = pki.plant()
    name_ = plant.root.certificate.subject
    later = pki.issue(plant.root, "root, next key", ca=True, subject=name_)
    leaf = pki.issue(later, "below the next key")
    held = later.crl(CrlEntry(leaf.certificate.serial, pki.NOW - HOUR, 6), this_update=pki.NOW - HOUR)
    for crls in ([plant.root.crl(), held], [held, plant.root.crl()]):
        assert handed(plant, leaf, chain=[later], crls=crls).code == "on_hold"


# --- what is kept --------------------------------------------------------------------------------------------------


def learned(pki):
    """A plant whose lists a store has, all good."""
    plant, status = pki.at("http://pki.plant"), Revocation()
    status.learn("http://pki.plant/root.crl", plant.root.crl(), plant.root.certificate, pki.NOW)
    status.learn(URL, plant.issuing.crl(), plant.issuing.certificate, pki.NOW)
    return plant, status


def revoking(pki, plant, reason=1, at=MINUTE):
    entry = CrlEntry(plant.device.certificate.serial, pki.NOW, reason)
    return plant.issuing.crl(entry, number=2, this_update=pki.NOW + at)


@pytest.mark.parametrize("mode", ["offline", "hard-fail", "soft-fail"])
def test_a_list_that_is_learned_counts_at_once(pki, mode):
    plant, status = learned(pki)
    assert kept(plant, status, now=pki.NOW, mode=mode) == "good"
    status.learn(URL, revoking(pki, plant), plant.issuing.certificate, pki.NOW + MINUTE)
    assert kept(plant, status, now=pki.NOW + MINUTE, mode=mode) == "revoked"


class Responder:
    """A way to the network at whose end there are only OCSP responses, by the certificate they are about. Counts."""

    def __init__(self, responses) -> None:
        self.responses, self.asked = responses, 0

    async def fetch(self, url, body=b"", content_type=""):  # noqa: ARG002
        self.asked += 1
        return Fetched(next(response for about, response in self.responses if der.integer(about.certificate.serial) in body))

    async def close(self):
        pass


@pytest.mark.parametrize(
    ("reason", "at", "code"), [(1, MINUTE, "revoked"), (6, MINUTE, "on_hold"), (1, -MINUTE, "revoked"), (6, -MINUTE, "good")]
)
def test_a_list_that_is_learned_counts_against_an_answer_that_is_kept(pki, reason, at, code):
    plant = pki.at("http://pki.plant")
    responder = Responder([(plant.device, plant.issuing.ocsp(plant.device)), (plant.issuing, plant.root.ocsp(plant.issuing))])
    status = Revocation(responder)
    assert kept(plant, status, now=pki.NOW, mode="hard-fail") == "good"
    status.learn(URL, revoking(pki, plant, reason, at), plant.issuing.certificate, pki.NOW + MINUTE)
    for _ in range(2):
        assert kept(plant, status, now=pki.NOW + MINUTE, mode="hard-fail") == code
    assert responder.asked == 2


@pytest.mark.parametrize("mode", ["soft-fail", "offline"])
def test_a_revocation_outlives_a_clock_that_goes_back(pki, mode):
    plant, status = pki.plant(), Revocation()
    staples = [plant.issuing.ocsp(plant.device, "revoked", revoked_at=pki.NOW)]
    assert kept(plant, status, now=pki.NOW, staples=staples, mode=mode) == "revoked"
    assert kept(plant, status, now=pki.NOW - HOUR, mode=mode) == "revoked"


def test_a_forgotten_push_takes_what_was_said_before_it_came(pki):
    plant, store = pki.plant(), StatusStore(max_pushed=1)
    status, key = Revocation(store=store), issuer_key(plant.issuing.certificate)
    said = {"this_update": pki.NOW - 2 * HOUR}
    staples = [plant.issuing.ocsp(plant.device, **said), plant.root.ocsp(plant.issuing, **said)]
    store.push(key, plant.device.certificate.serial, pki.NOW - 5 * HOUR, "keyCompromise", pki.NOW)
    assert kept(plant, status, now=pki.NOW, staples=staples) == "revoked"
    store.push(key, 999, pki.NOW - 5 * HOUR, "keyCompromise", pki.NOW)
    assert kept(plant, status, now=pki.NOW, staples=staples) == "no_status"


def test_what_one_policy_forgives_another_does_not(pki):
    """An indirect list whose signer's own status nobody knows: soft-fail takes it, hard-fail must not find the answer in the store."""
    plant, status = pki.plant(), Revocation()
    signer = pki.issue(plant.root, "list signer", usage=("cRLSign",), purposes=(), crl=("http://pki.plant/nowhere.crl",))
    issuer = der.context(2, der.context(4, signer.certificate.subject.der))
    point = der.sequence(der.context(0, der.context(0, general_name(f"uri:{URL}"))), issuer)
    leaf = pki.issue(plant.issuing, "indirect", extra=(Extension(extensions.CRL_DISTRIBUTION_POINTS, False, der.sequence(point)),))
    scope = der.sequence(der.context(0, der.context(0, general_name(f"uri:{URL}"))), der.context(4, b"\xff", constructed=False))
    crl = signer.crl(extra=(Extension("2.5.29.28", True, scope),))
    status.learn(URL, crl, signer.certificate, pki.NOW)
    more = {"leaf": leaf, "intermediates": (signer.certificate,), "staples": [plant.root.ocsp(plant.issuing)], "now": pki.NOW}
    for mode, code in (("soft-fail", "good"), ("hard-fail", "no_status"), ("offline", "no_status"), ("soft-fail", "good")):
        assert kept(plant, status, mode=mode, **more) == code


def test_rubbish_that_a_good_peer_presents_is_not_kept(pki):
    plant, memory = pki.plant(), Memory()
    policy = Policy(anchors=anchors(plant.root.der), status="none")
    for rubbish, verdicts in ((100_000, 0), (1000, 1)):
        for _ in range(2):
            chain = [plant.device.der, plant.issuing.der, bytes(rubbish)]
            assert validate_sync(chain, policy=policy, now=pki.NOW, memory=memory).good
        assert len(memory.verdicts) == verdicts
