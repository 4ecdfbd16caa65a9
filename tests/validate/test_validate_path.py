"""Paths without revocation: what makes one good, and each thing that makes it not."""

from __future__ import annotations

import asyncio
import json
from datetime import timedelta
from types import SimpleNamespace

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from pkix import der, extensions, sm2
from pkix.algorithms import SIGNATURES, KeyKind, SignatureAlgorithm
from pkix.certificate import assemble, build_tbs
from pkix.errors import Malformed
from pkix.extensions import Extension
from pkix.name import Name, name
from validate import Expected, Memory, Policy, anchors, validate, validate_sync

FAMILIES = [KeyKind.P_256, KeyKind.SM2, KeyKind.RSA_2048, KeyKind.ML_DSA_65]
DEVICE = "uri:urn:ironroot:device:x:plc-7"


@pytest.mark.parametrize("kind", FAMILIES)
def test_chain_of_three_is_good_for_its_purpose_and_name(pki, kind):
    plant = pki.plant(kind)
    result = plant.validate(purpose="tls-client", names=(DEVICE,))
    assert result.good
    assert result.code == "good"
    assert [certificate.der for certificate in result.path] == [plant.device.der, plant.issuing.der, plant.root.der]
    assert {check.outcome for check in result.checks} <= {"ok", "skipped"}
    assert result.sentence().startswith("Good: CN=plc-7")
    assert result.sentence("zh").startswith("有效")


def test_the_result_turns_into_plain_json(pki):
    plant = pki.plant()
    shown = json.loads(json.dumps(plant.validate().as_dict()))
    assert shown["good"] is True
    assert shown["path"][0]["serial"] == f"{plant.device.certificate.serial:x}"
    assert all(check["clause"] and check["text"] and check["text_zh"] for check in shown["checks"])


@pytest.mark.parametrize(
    ("moment", "code"),
    [
        (lambda c: c.not_before, "good"),
        (lambda c: c.not_before - timedelta(seconds=1), "not_yet_valid"),
        (lambda c: c.not_after, "good"),
        (lambda c: c.not_after + timedelta(microseconds=999_999), "good"),
        (lambda c: c.not_after + timedelta(seconds=1), "expired"),
    ],
)
def test_validity_counts_whole_seconds_at_both_ends(pki, moment, code):
    root = pki.issue(None, "old root", ca=True, not_before=pki.NOW - 400 * pki.DAY, not_after=pki.NOW + 4000 * pki.DAY)
    leaf = pki.issue(root, "short lived", not_before=pki.NOW - pki.DAY, not_after=pki.NOW + pki.DAY)
    result = pki.plant().validate(leaf, chain=[], trust=[root], now=moment(leaf.certificate))
    assert result.code == code


def test_expired_issuing_ca_is_named(pki):
    plant = pki.plant()
    issuing = pki.issue(plant.root, "late issuing", ca=True, not_before=pki.NOW - 9 * pki.DAY, not_after=pki.NOW - pki.DAY)
    result = plant.validate(pki.issue(issuing, "plc-8"), chain=[issuing])
    assert result.code == "expired"
    assert "late issuing" in result.sentence()
    assert "2026-11-22 10:00:00Z" in result.sentence()


def test_wrong_purpose(pki):
    plant = pki.plant()
    assert plant.validate(purpose="tls-server").code == "wrong_purpose"
    both = pki.issue(plant.issuing, "both", purposes=("serverAuth", "clientAuth"))
    assert plant.validate(both, purpose="tls-server").good
    anything = pki.issue(plant.issuing, "anything", purposes=("anyExtendedKeyUsage",))
    assert plant.validate(anything, purpose="tls-server").code == "wrong_purpose"
    unrestricted = pki.issue(plant.issuing, "unrestricted", purposes=())
    assert plant.validate(unrestricted, purpose="tls-server").good


def test_purpose_is_nested_a_ca_for_clients_certifies_no_servers(pki):
    plant = pki.plant()
    clients_only = pki.issue(plant.root, "clients only", ca=True, extra=(extensions.extended_key_usage("clientAuth"),))
    server = pki.issue(clients_only, "server", purposes=("serverAuth",))
    assert plant.validate(server, chain=[clients_only], purpose="tls-server").code == "wrong_purpose"
    assert plant.validate(server, chain=[clients_only]).good


def test_key_usage_must_allow_tls(pki):
    plant = pki.plant()
    encryption = pki.issue(plant.issuing, "encryption only", usage=("keyEncipherment",))
    assert plant.validate(encryption, purpose="tls-client").code == "wrong_usage"
    assert plant.validate(plant.issuing, purpose="tls-server", chain=[]).code == "wrong_usage"


@pytest.mark.parametrize(
    ("names", "expected", "good"),
    [
        (("dns:plc-7.plant.example",), "dns:plc-7.plant.example", True),
        (("dns:*.plant.example",), "dns:plc-7.plant.example", True),
        (("dns:*.plant.example",), "dns:a.plc-7.plant.example", False),
        (("dns:*.plant.example",), "dns:plant.example", False),
        (("dns:*.example",), "dns:plant.example", False),
        (("ip:192.0.2.7",), "ip:192.0.2.7", True),
        (("ip:192.0.2.7",), "ip:192.0.2.8", False),
        (("ip:2001:db8::7",), "ip:2001:db8::7", True),
        (("dns:plc-7",), "uri:urn:ironroot:device:x:plc-7", False),
        (("uri:urn:ironroot:device:x:plc-7",), "uri:urn:ironroot:device:x:plc-70", False),
        ((), "dns:plc-7", False),
    ],
)
def test_expected_names(pki, names, expected, good):
    plant = pki.plant()
    leaf = pki.issue(plant.issuing, "plc-7", names=names)
    result = plant.validate(leaf, names=(expected,))
    assert result.good is good
    assert good or result.code == "wrong_name"


def test_every_expected_name_must_be_there_and_the_common_name_does_not_count(pki):
    plant = pki.plant()
    leaf = pki.issue(plant.issuing, "plc-9.example", names=("dns:a.example", "ip:192.0.2.1"))
    assert plant.validate(leaf, names=("dns:a.example", "ip:192.0.2.1")).good
    assert plant.validate(leaf, names=("dns:a.example", "ip:192.0.2.2")).code == "wrong_name"
    assert plant.validate(leaf, names=("dns:plc-9.example",)).code == "wrong_name"


@pytest.mark.parametrize("wrong", ["dns:*.example", "dns:PLC-7", "plc-7", "ip:192.0.2.300", "uri:"])
def test_an_expected_name_must_be_one(wrong):
    with pytest.raises(Malformed):
        Expected(wrong)


def test_unknown_issuer_and_untrusted_root(pki):
    plant = pki.plant()
    assert plant.validate(chain=[]).code == "unknown_issuer"
    assert plant.validate(trust=[]).code == "unknown_issuer"
    assert plant.validate(chain=[plant.issuing, plant.root], trust=[]).code == "untrusted_root"
    assert plant.validate(plant.root, chain=[], trust=[]).code == "untrusted_root"


def test_same_names_other_keys_is_a_bad_signature(pki):
    plant = pki.plant()
    forged = pki.issue(plant.issuing, "plc-7", signed_by=pki.issue(None, "mallory", ca=True))
    assert plant.validate(forged).code == "bad_signature"


@pytest.mark.parametrize("kind", FAMILIES)
def test_no_flipped_bit_of_the_signed_part_survives(pki, kind):
    plant = pki.plant(kind)
    signed = plant.device.der
    for at in range(len(signed) // 3, len(signed), 97):
        altered = bytearray(signed)
        altered[at] ^= 0x10
        assert not plant.validate(bytes(altered)).good


def test_empty_id_sm2_signature_is_refused(pki):
    plant = pki.plant(KeyKind.SM2)
    tbs = plant.device.certificate.tbs
    secret = plant.issuing.key
    point = secret.public_key.key_bits
    wrong = secret.sign_input(sm2.digest(point, tbs, b""))
    assert plant.validate(assemble(tbs, SIGNATURES[KeyKind.SM2], wrong)).code == "bad_signature"
    right = secret.sign_input(sm2.digest(point, tbs, sm2.DEFAULT_ID))
    assert plant.validate(assemble(tbs, SIGNATURES[KeyKind.SM2], right)).good


def test_a_device_is_no_ca(pki):
    plant = pki.plant()
    below = pki.issue(plant.device, "rogue")
    result = plant.validate(below, chain=[plant.device, plant.issuing])
    assert result.code == "not_ca"
    assert "no_cert_sign" not in pki.codes(result)


def test_ca_without_cert_sign(pki):
    plant = pki.plant()
    crl_only = pki.issue(plant.root, "crl only", ca=True, usage=("cRLSign",))
    assert plant.validate(pki.issue(crl_only, "x"), chain=[crl_only]).code == "no_cert_sign"


def test_path_length(pki):
    plant = pki.plant()
    lower = pki.issue(plant.issuing, "one too many", ca=True)
    result = plant.validate(pki.issue(lower, "x"), chain=[lower, plant.issuing])
    assert result.code == "path_length"
    roomy = pki.issue(plant.root, "roomy", ca=True, path_length=1)
    lower = pki.issue(roomy, "lower", ca=True)
    assert plant.validate(pki.issue(lower, "x"), chain=[lower, roomy]).good


def test_self_issued_ca_does_not_count_for_path_length(pki):
    plant = pki.plant()
    renewed = pki.issue(plant.issuing, "issuing with a new key", ca=True, subject=plant.issuing.certificate.subject, key_label="renewed")
    assert plant.validate(pki.issue(renewed, "x"), chain=[renewed, plant.issuing]).good


def test_depth_is_bounded(pki):
    party = root = pki.issue(None, "deep root", ca=True)
    chain = []
    for depth in range(4):
        party = pki.issue(party, f"deep {depth}", ca=True)
        chain.append(party)
    leaf = pki.issue(party, "x")
    plant = pki.plant()
    assert plant.validate(leaf, chain=chain, trust=[root], max_intermediates=4).good
    assert plant.validate(leaf, chain=chain, trust=[root], max_intermediates=3).code == "path_too_long"


def test_a_key_that_must_not_be_certified(pki):
    """Whoever certified it: 1024 bits of RSA, a point off the curve."""
    plant = pki.plant()
    short = rsa.generate_private_key(65537, 1024).public_key()  # noqa: S505 (the point of the test)
    spki = short.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    weak = SimpleNamespace(spki=spki, key_identifier=bytes(20))
    result = plant.validate(pki.issue(plant.issuing, "weak", public_key=weak))
    assert result.code == "bad_key"
    assert "CN=weak" in result.sentence()
    off = bytearray(plant.device.certificate.spki)
    off[-1] ^= 1
    result = plant.validate(pki.issue(plant.issuing, "off", public_key=SimpleNamespace(spki=bytes(off), key_identifier=bytes(20))))
    assert result.code == "bad_key"


def test_unknown_critical_extension(pki):
    plant = pki.plant()
    odd = Extension("1.3.6.1.4.1.55738.666.1", True, der.null())
    assert plant.validate(pki.issue(plant.issuing, "x", extra=(odd,))).code == "unknown_critical"
    issuing = pki.issue(plant.root, "odd issuing", ca=True, extra=(odd,))
    assert plant.validate(pki.issue(issuing, "x"), chain=[issuing]).code == "unknown_critical"
    mild = pki.replace(odd, critical=False)
    assert plant.validate(pki.issue(plant.issuing, "x", extra=(mild,))).good


def test_a_broken_intermediate_that_is_not_needed_does_no_harm_and_a_needed_one_is_explained(pki):
    plant = pki.plant()
    broken = plant.issuing.der[:-40]
    arguments = {"policy": Policy(anchors=anchors(plant.root.der), status="none"), "now": pki.NOW}
    assert validate_sync([plant.device.der, broken, plant.issuing.der, b"", b"\x00" * 50], **arguments).good
    assert validate_sync([plant.device.der, broken], **arguments).code == "unreadable_issuer"


def test_rubbish_is_a_verdict_and_no_exception(pki):
    plant = pki.plant()
    for rubbish in (b"", b"\x30", b"\x30\x80\x00\x00", b"not a certificate", plant.device.der + b"\x00"):
        assert plant.validate(rubbish).code == "malformed"


# --- without status, or without end --------------------------------------------------------------------------------


def test_nobody_to_ask_about_revocation(pki):
    plant = pki.plant()
    result = plant.validate(status="hard-fail")
    assert result.code == "no_status"
    assert [basis.standing for basis in result.basis] == ["none", "none"]
    forgiven = plant.validate(status="soft-fail")
    assert forgiven.good
    assert {check.outcome for check in forgiven.checks if check.name == "status"} == {"unknown"}
    assert "forgives" in forgiven.sentence("en")
    assert "策略允许忽略" in forgiven.sentence("zh")


class Hanging:
    """A status store that has nothing and never comes back."""

    def at_hand(self, _certificate, _issuer, _question):
        return None

    async def find(self, _certificate, _issuer, _question):
        await asyncio.Event().wait()

    async def close(self):
        self.closed = True


@pytest.mark.parametrize("mode", ["hard-fail", "soft-fail"])
def test_a_status_store_that_hangs_is_left_behind(pki, mode):
    store = Hanging()
    result = pki.plant().validate(status=mode, budget=timedelta(0), more={"status": store})
    assert result.good is (mode == "soft-fail")
    assert result.basis[0].detail.code == "too_slow"
    assert store.closed


def test_side_by_side_in_one_event_loop(pki):
    plant, memory = pki.plant(), Memory()
    policy = Policy(anchors=anchors(plant.root.der), status="none")

    async def all_at_once():
        chains = [[pki.issue(plant.issuing, f"x{n}").der, plant.issuing.der] for n in range(8)]
        return await asyncio.gather(*(validate(chain, policy=policy, now=pki.NOW, memory=memory) for chain in chains))

    assert all(result.good for result in asyncio.run(all_at_once()))


# --- several paths -------------------------------------------------------------------------------------------------


def test_cross_certified_through_either_root(pki):
    old, new = pki.issue(None, "old root", ca=True), pki.issue(None, "new root", ca=True)
    issuing = pki.issue(old, "crossed issuing", ca=True)
    crossed = pki.issue(new, "crossed issuing", ca=True)
    leaf = pki.issue(issuing, "x")
    plant = pki.plant()
    for trusted, chain in ((old, [issuing, crossed]), (new, [crossed, issuing]), (new, [issuing, crossed])):
        result = plant.validate(leaf, chain=chain, trust=[trusted])
        assert result.good
        assert result.path[-1] == trusted.certificate


def test_an_expired_cross_certificate_is_passed_by(pki):
    old, new = pki.issue(None, "old root", ca=True), pki.issue(None, "new root", ca=True)
    stale = pki.issue(old, "crossed issuing", ca=True, not_before=pki.NOW - 9 * pki.DAY, not_after=pki.NOW - pki.DAY)
    fresh = pki.issue(new, "crossed issuing", ca=True)
    leaf = pki.issue(fresh, "x")
    for chain in ([stale, fresh], [fresh, stale]):
        result = pki.plant().validate(leaf, chain=chain, trust=[old, new])
        assert result.good
        assert result.path[1] == fresh.certificate


def test_circle_of_cas_ends(pki):
    a, b = pki.issue(None, "ring a", ca=True), pki.issue(None, "ring b", ca=True)
    a_by_b = pki.issue(b, "ring a", ca=True)
    b_by_a = pki.issue(a, "ring b", ca=True)
    result = pki.plant().validate(pki.issue(a_by_b, "x"), chain=[a_by_b, b_by_a])
    assert result.code == "circle"
    assert pki.plant().validate(pki.issue(a_by_b, "x"), chain=[a_by_b, b_by_a], trust=[b]).good


def test_thousands_of_cas_with_one_name_are_given_up_or_judged(pki):
    """Same name, same key identifier, other keys: no index tells them apart, only signatures do."""
    plant = pki.plant()
    ski = extensions.subject_key_identifier(plant.issuing.certificate.public_key)
    crowd = [
        pki.issue(plant.root, "impostor", ca=True, subject=plant.issuing.certificate.subject, key_label=f"crowd {n % 5}", extra=(ski,))
        for n in range(600)
    ]
    result = plant.validate(chain=[*crowd, plant.issuing])
    assert result.good or result.code == "too_complex"
    result = plant.validate(chain=crowd)
    assert result.code in ("bad_signature", "too_complex")


def test_an_anchor_that_is_no_root_ends_the_path(pki):
    plant = pki.plant()
    result = plant.validate(chain=[plant.root], trust=[plant.issuing])
    assert result.good
    assert len(result.path) == 2


def test_a_trusted_certificate_itself_is_good(pki):
    plant = pki.plant()
    result = plant.validate(
        plant.root,
        chain=[],
    )
    assert result.good
    assert result.path == (plant.root.certificate,)


# --- families ------------------------------------------------------------------------------------------------------


def test_families_do_not_mix_unless_the_policy_says_so(pki):
    ecc, gm = pki.plant(), pki.plant(KeyKind.SM2)
    mixed = pki.issue(ecc.issuing, "sm2 device", KeyKind.SM2)
    assert ecc.validate(mixed).code == "mixed_families"
    assert ecc.validate(mixed, mixed_families=True).good
    rsa = pki.issue(ecc.issuing, "rsa device", KeyKind.RSA_2048)
    assert ecc.validate(rsa).good
    crossed = pki.issue(ecc.root, "sm2 issuing", KeyKind.SM2, ca=True, subject=gm.issuing.certificate.subject, key_label="sm2 issuing")
    under = gm.validate(chain=[crossed], trust=[ecc.root])
    assert under.code == "mixed_families"
    both = gm.validate(chain=[crossed, gm.issuing], trust=[ecc.root, gm.root])
    assert both.good
    assert both.path[-1] == gm.root.certificate


def test_sm2_with_null_parameters_is_read(pki):
    """GM/T 0015 D.2 and all production certificates write NULL, we write nothing: both verify, inner and outer alike."""
    plant = pki.plant(KeyKind.SM2)
    null = SignatureAlgorithm("sm2sign-with-sm3", "1.2.156.10197.1.501", bytes.fromhex("300c06082a811ccf550183750500"))
    own = plant.device.certificate
    tbs = build_tbs(
        serial=77,
        issuer=own.issuer,
        subject=own.subject,
        not_before=own.not_before,
        not_after=own.not_after,
        public_key=own.public_key,
        signature=null,
        extensions=list(own.extensions.values()),
    )
    assert plant.validate(assemble(tbs, null, plant.issuing.key.sign(tbs))).good


# --- what a certificate must look like -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"without": ("2.5.29.35",)}, "no_authority_key"),
        ({"serial": 0}, "bad_serial"),
        ({"serial": -5}, "bad_serial"),
        ({"subject": Name(der.sequence())}, "empty_subject_alternative"),
        ({"usage": ("digitalSignature", "keyCertSign")}, "ca_usage"),
        ({"extra": (Extension("2.5.29.14", True, der.octet_string(b"1" * 20)),)}, "must_not_be_critical"),
        ({"extra": (Extension("2.5.29.36", False, der.sequence(der.context(0, b"\x00", constructed=False))),)}, "must_be_critical"),
        ({"extra": (Extension("2.5.29.17", False, der.sequence(extensions.general_name("dns:plc_7"))),)}, "bad_name"),
        ({"names": ("dns:192.0.2.7",)}, "bad_name"),
    ],
)
def test_departures_from_rfc_5280_in_the_end_entity(pki, change, code):
    plant = pki.plant()
    result = plant.validate(pki.issue(plant.issuing, "x", **change))
    assert result.code == code


def test_v1_certificate_is_not_taken(pki):
    plant = pki.plant()
    tbs = plant.device.certificate.tbs
    fields = der.children(tbs, der.read(tbs))
    parts = [tbs[field.start : field.end] for field in fields]
    assert parts[0][:1] == b"\xa0"
    first = der.sequence(*parts[1:7])
    old = assemble(first, SIGNATURES[KeyKind.P_256], plant.issuing.key.sign(first))
    assert plant.validate(old).code == "old_version"


def test_names_differing_only_in_case_spacing_and_string_type_chain(pki):
    root = pki.issue(None, "r", ca=True, subject=name(("O", "Example  Plant"), ("CN", "The Root")))
    plant = pki.plant()
    printable = der.sequence(
        der.tlv(der.SET, der.sequence(der.oid("2.5.4.10"), der.printable_string("example plant"))),
        der.tlv(der.SET, der.sequence(der.oid("2.5.4.3"), der.printable_string("THE ROOT"))),
    )
    alias = pki.replace(root, certificate=pki.replace(root.certificate, subject=Name(printable)))
    assert plant.validate(pki.issue(alias, "x"), chain=[], trust=[root]).good
