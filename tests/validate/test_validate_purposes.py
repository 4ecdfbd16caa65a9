"""Purposes, names that are asked for, families and strengths, constraints on anchors, and the rules of the public web."""

from __future__ import annotations

import pytest

from pkix import der, extensions
from pkix.algorithms import KeyKind
from pkix.constraints import inhibit_any_policy, name_constraints, policy_constraints, policy_mappings, subtree
from pkix.errors import Malformed
from pkix.extensions import Extension
from pkix.name import name
from validate import Anchor, Expected

DOCUMENTS = "1.3.6.1.5.5.7.3.36"
GOLD, SILVER = "1.3.6.1.4.1.55738.1.1", "1.3.6.1.4.1.55738.1.2"
SIGNS, ENCRYPTS = ("digitalSignature", "nonRepudiation"), ("keyEncipherment", "dataEncipherment", "keyAgreement")
ALONE = Extension("2.5.29.37", True, der.sequence(der.oid("1.3.6.1.5.5.7.3.8")))


@pytest.mark.parametrize(
    ("purpose", "leaf", "code"),
    [
        ("code", {"purposes": ("codeSigning",)}, "good"),
        ("code", {"purposes": ()}, "purpose_unnamed"),
        ("code", {"purposes": ("clientAuth",)}, "wrong_purpose"),
        ("code", {"purposes": ("codeSigning",), "usage": ("keyAgreement",)}, "wrong_usage"),
        ("data-signature", {"purposes": (), "usage": ("nonRepudiation",)}, "good"),
        ("data-signature", {"purposes": (DOCUMENTS,)}, "good"),
        ("data-signature", {"purposes": ("clientAuth",)}, "wrong_purpose"),
        ("data-signature", {"purposes": (), "usage": ENCRYPTS}, "wrong_usage"),
        ("data-encryption", {"purposes": (), "usage": ENCRYPTS}, "good"),
        ("data-encryption", {"purposes": (), "usage": SIGNS}, "wrong_usage"),
        ("ocsp-signer", {"purposes": ("OCSPSigning",)}, "good"),
        ("ocsp-signer", {"purposes": ()}, "purpose_unnamed"),
        ("ocsp-signer", {"purposes": ("anyExtendedKeyUsage",)}, "wrong_purpose"),
        ("time-stamp", {"extra": (ALONE,)}, "good"),
        ("time-stamp", {"purposes": ("timeStamping",)}, "purpose_not_sole"),
        ("time-stamp", {"purposes": ("timeStamping", "clientAuth")}, "purpose_not_sole"),
        ("any", {"purposes": ("clientAuth",), "usage": ENCRYPTS}, "good"),
    ],
)
def test_purposes(pki, purpose, leaf, code):
    plant = pki.plant()
    result = plant.validate(pki.issue(plant.issuing, "x", **leaf), purpose=purpose)
    assert result.code == code
    assert next(check for check in result.checks if check.name == "purpose" and check.index == 0).clause


def test_the_two_certificates_of_an_sm2_pair_are_each_for_one_thing(pki):
    """GM/T 0015: one for signatures, whose key nobody else has, one for encryption, whose key is escrowed."""
    plant = pki.plant(KeyKind.SM2)
    signs = pki.issue(plant.issuing, "pair", KeyKind.SM2, usage=SIGNS, purposes=())
    encrypts = pki.issue(plant.issuing, "pair", KeyKind.SM2, usage=ENCRYPTS, purposes=(), key_label="escrowed")
    for purpose in ("tls-client", "tls-server", "data-signature"):
        assert plant.validate(signs, purpose=purpose).good
        assert plant.validate(encrypts, purpose=purpose).code == "wrong_usage"
    assert plant.validate(encrypts, purpose="data-encryption").good
    assert plant.validate(signs, purpose="data-encryption").code == "wrong_usage"
    # Elsewhere a server may have a certificate for key agreement alone.
    ecc = pki.plant()
    assert ecc.validate(pki.issue(ecc.issuing, "agrees", usage=("keyAgreement",), purposes=()), purpose="tls-server").good


def test_the_clause_of_an_sm2_signature_is_of_the_national_standard(pki):
    checks = pki.plant(KeyKind.SM2).validate().checks
    assert "GM/T 0009" in next(check for check in checks if check.name == "signature").clause


# --- names ---------------------------------------------------------------------------------------------------------


def other_name(kind: str, text: str) -> bytes:
    return der.context(0, der.oid(kind), der.context(0, der.utf8_string(text)))


def named(*names: bytes) -> tuple[Extension]:
    return (Extension("2.5.29.17", False, der.sequence(*names)),)


@pytest.mark.parametrize(
    ("names", "expected", "good"),
    [
        ([extensions.general_name("uri:urn:ironroot:device:ecc-devices:plc-7")], "device:ecc-devices/plc-7", True),
        ([extensions.general_name("uri:urn:ironroot:device:ecc-devices:plc-7")], "device:ecc-devices/plc-70", False),
        ([extensions.general_name("uri:urn:ironroot:device:ecc-devices:plc-7")], "device:ecc-platforms/plc-7", False),
        ([other_name("1.2.156.9.9", "88.123.1/plc-7")], "id:88.123.1/plc-7", True),
        ([other_name("1.2.156.9.9", "88.123.1/plc-7")], "id:88.123.1/plc-8", False),
        ([extensions.general_name("uri:hdl:88.123.1/plc-7")], "id:88.123.1/plc-7", True),
        ([extensions.general_name("uri:https://elsewhere.example/88.123.1/plc-7")], "id:88.123.1/plc-7", False),
        ([extensions.general_name("uri:urn:oid:1.2.156.7")], "id:1.2.156.7", True),
        ([extensions.general_name("email:Op@Plant.example")], "email:Op@plant.EXAMPLE", True),
        ([extensions.general_name("email:op@plant.example")], "email:Op@plant.example", False),
        ([other_name("1.3.6.1.5.5.7.8.9", "操作员@plant.example")], "email:操作员@plant.example", True),
        ([other_name("1.2.156.9.9", "操作员@plant.example")], "email:操作员@plant.example", False),
    ],
)
def test_what_the_end_entity_must_be_called(pki, names, expected, good):
    plant = pki.plant()
    result = plant.validate(pki.issue(plant.issuing, "plc-7", extra=named(*names)), names=(expected,))
    assert result.code == ("good" if good else "wrong_name")


@pytest.mark.parametrize("wrong", ["device:fleet", "device:/plc", "id:", "id:a\nb", "email:操作员", "email:@x.example", "dns:例.example"])
def test_an_expected_name_says_what_is_wrong_with_it(wrong):
    with pytest.raises(Malformed):
        Expected(wrong)


def test_constraints_on_mail_bind_addresses_in_other_scripts(pki):
    """RFC 9598 6: SmtpUTF8Mailbox obeys the rfc822Name constraints."""
    plant = pki.plant()
    limited = pki.issue(plant.root, "mail ca", ca=True, extra=(name_constraints(["email:plant.example"], ["email:lab.example"]),))
    inside = pki.issue(limited, "x", extra=named(other_name("1.3.6.1.5.5.7.8.9", "操作员@plant.example")))
    outside = pki.issue(limited, "x", extra=named(other_name("1.3.6.1.5.5.7.8.9", "操作员@lab.example")))
    assert plant.validate(inside, chain=[limited]).good
    result = plant.validate(outside, chain=[limited])
    assert result.code == "name_constraint"
    assert "操作员@lab.example" in result.sentence()


# --- families, strengths, anchors ----------------------------------------------------------------------------------


def test_families_and_strengths_that_the_policy_takes(pki):
    ecc, gm, rsa, pq = (pki.plant(kind) for kind in (KeyKind.P_256, KeyKind.SM2, KeyKind.RSA_2048, KeyKind.ML_DSA_65))
    assert gm.validate(families=frozenset(("sm2",))).good
    assert ecc.validate(families=frozenset(("sm2",))).code == "family_not_taken"
    assert gm.validate(families=frozenset(("ecc", "pq"))).code == "family_not_taken"
    assert rsa.validate(minimum_strength=128).code == "too_weak"
    assert ecc.validate(minimum_strength=128).good
    assert ecc.validate(minimum_strength=192).code == "too_weak"
    assert pq.validate(minimum_strength=192).good
    assert "112" in rsa.validate(minimum_strength=128).sentence()


def test_what_an_anchor_is_trusted_for(pki):
    plant = pki.plant()
    root = plant.root.certificate
    host = pki.issue(plant.issuing, "host", names=("dns:a.plant.example",), purposes=("serverAuth",))

    def code(leaf=None, purpose="any", **limits):
        return plant.validate(leaf, trust=[Anchor(root, **limits)], purpose=purpose).code

    assert code(purposes=frozenset(("tls-client",)), purpose="tls-client") == "good"
    assert code(purposes=frozenset(("tls-server",)), purpose="tls-client") == "anchor_purpose"
    assert code(path_length=1) == "good"
    assert code(path_length=0) == "path_length"
    assert code(host, name_constraints=name_constraints(["dns:plant.example"]).value) == "good"
    assert code(host, name_constraints=name_constraints(["dns:elsewhere.example"]).value) == "name_constraint"
    assert code(host, name_constraints=b"\x30\x00") == "bad_constraint"
    assert code(explicit_policy=True) == "policy_missing"


def test_policies_that_an_anchor_is_trusted_for(pki):
    plant = pki.plant()
    ca = pki.issue(plant.root, "gold ca", ca=True, extra=(extensions.certificate_policies(GOLD),))
    leaf = pki.issue(ca, "x", extra=(extensions.certificate_policies(GOLD),))

    def code(*oids, explicit=True, wanted=()):
        anchor = Anchor(plant.root.certificate, certificate_policies=frozenset(oids), explicit_policy=explicit)
        return plant.validate(leaf, chain=[ca], trust=[anchor], certificate_policies=frozenset(wanted)).code

    assert code(GOLD) == "good"
    assert code(SILVER) == "policy_missing"
    assert code(GOLD, wanted=(SILVER,)) == "policy_missing"
    assert code(SILVER, explicit=False) == "good"


def test_one_certificate_under_several_constraints(pki):
    plant = pki.plant()
    root = plant.root.certificate
    trust = [Anchor(root, purposes=frozenset(("tls-server",))), Anchor(root, purposes=frozenset(("tls-client",)))]
    assert plant.validate(trust=trust, purpose="tls-client").good
    assert plant.validate(trust=trust, purpose="code").code == "wrong_purpose"


def test_subtrees_are_written_as_they_are_meant():
    assert subtree("ip:10.20.0.0/16") == der.context(7, bytes((10, 20, 0, 0, 255, 255, 0, 0)), constructed=False)
    assert subtree(name(("O", "x"))) == der.context(4, name(("O", "x")).der)
    for wrong in ("ip:10.20.0.1/16", "x", "uri:", "dns:例.example", "host:a"):
        with pytest.raises(Malformed):
            subtree(wrong)
    for wrong in (name_constraints, policy_constraints, policy_mappings):
        with pytest.raises(Malformed):
            wrong()
    with pytest.raises(Malformed):
        inhibit_any_policy(-1)
    assert policy_constraints(explicit=0, mapping=2).value == bytes.fromhex("3006800100810102")


# --- the public web ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("leaf", "code"),
    [
        ({"names": ("dns:a.example",), "subject": name(("CN", "a.example"))}, "good"),
        ({"names": ("dns:a.example",), "subject": name(("CN", "A.example"))}, "web_common_name"),
        ({"names": ("ip:192.0.2.7",), "subject": name(("CN", "192.0.2.7"))}, "good"),
        ({"names": ("dns:a.example",), "subject": name(("O", "x"))}, "good"),
        ({"names": ("dns:a.example",), "subject": name(("O", "x")), "purposes": ()}, "web_usage"),
        ({"names": ("dns:*.co.uk",), "subject": name(("O", "x"))}, "web_wildcard"),
        ({"names": ("dns:*.a.co.uk",), "subject": name(("O", "x"))}, "good"),
    ],
)
def test_the_rules_of_the_public_web_hold_where_they_are_asked_for(pki, leaf, code):
    plant = pki.plant()
    party = pki.issue(plant.issuing, "x", **({"purposes": ("serverAuth",)} | leaf))
    suffixes = frozenset(("uk", "co.uk"))
    assert plant.validate(party, purpose="tls-server", web_pki=True, public_suffixes=suffixes).code == code
    assert plant.validate(party, purpose="tls-server").good
