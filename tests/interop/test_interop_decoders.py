"""Other people's decoders and another SM2 read what we issued: asn1crypto, cryptography and gmssl agree on every certificate and CRL."""

from __future__ import annotations

from typing import ClassVar

import pytest
from asn1crypto import core
from asn1crypto import crl as asn1_crl
from asn1crypto import x509 as asn1
from cryptography import x509
from gmssl import sm2, sm3
from workshop import der

SM2_ID = b"1234567812345678"
A_AND_B = (
    "fffffffeffffffffffffffffffffffffffffffff00000000fffffffffffffffc28e9fa9e9d9f5e344d5a9e4bcf6509a7f39789f515ab8f92ddbcbd414d940e93"
    "32c4ae2c1f1981195f9904466a39c9948fe30bbff2660be1715a4589334c74c7bc3736a2f4f6779c59bdcee36b692153d0a9877cc62a474002df32e52139f0a0"
)


class Signed(core.Sequence):
    """Certificate, CRL, certificate request: what they have in common."""

    _fields: ClassVar = [("tbs", core.Any), ("algorithm", core.Any), ("signature", core.OctetBitString)]


class Numbers(core.SequenceOf):
    """An SM2 signature: r and s."""

    _child_spec = core.Integer


def point(certificate: bytes) -> bytes:
    """The public key as ``04 X Y``."""
    return bytes(asn1.Certificate.load(certificate, strict=True)["tbs_certificate"]["subject_public_key_info"]["public_key"].native)


def gmssl_verifies(signed: bytes, signer: bytes, *, identifier: bytes = SM2_ID) -> bool:
    """Whether gmssl finds the signature of a certificate or CRL right: e = SM3(Z || TBS), Z with ``identifier`` (GM/T 0009)."""
    parts = Signed.load(signed, strict=True)
    numbers = Numbers.load(parts["signature"].native, strict=True)
    public = point(signer)[1:]
    entl = (8 * len(identifier)).to_bytes(2, "big")
    z = sm3.sm3_hash(list(entl + identifier + bytes.fromhex(A_AND_B) + public))
    digest = sm3.sm3_hash(list(bytes.fromhex(z) + parts["tbs"].dump()))
    key = sm2.CryptSM2(private_key="", public_key="")
    key.public_key = public.hex()  # the constructor takes leading zeros and fours off
    return bool(key.verify("".join(f"{number.native:064x}" for number in numbers), bytes.fromhex(digest)))


def asn1_names(certificate: asn1.Certificate) -> list[tuple[str, str]]:
    found = certificate.subject_alt_name_value
    return sorted((name.name, str(name.native)) for name in found or ())


def cryptography_names(certificate: x509.Certificate) -> list[tuple[str, str]]:
    kinds = {x509.DNSName: "dns_name", x509.IPAddress: "ip_address", x509.UniformResourceIdentifier: "uniform_resource_identifier"}
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    return sorted((kinds[type(name)], str(name.value)) for name in found)


def every_certificate(workshop) -> dict[str, bytes]:
    """One of each kind: devices, platforms, authorities."""
    found = {}
    for fleet, names in (("devices", ()), ("platforms", ("dns:www.plant.example", "ip:192.0.2.7", "ip:2001:db8::7"))):
        for family in ("ecc", "sm2"):
            found[f"{family}-{fleet}"] = workshop.enrolled(f"{family}-{fleet}", names=names).der
    return found | {name: der(workshop.folder / f"{name}.pem") for name in ("ecc-root", "ecc-issuing", "sm2-root", "sm2-issuing")}


def test_two_decoders_see_the_same(workshop) -> None:
    for name, octets in every_certificate(workshop).items():
        one, other = asn1.Certificate.load(octets, strict=True), x509.load_der_x509_certificate(octets)
        assert one.dump(force=True) == octets, name  # what it understood, written again, is what we wrote
        assert one.serial_number == other.serial_number
        assert one.serial_number.bit_length() > 64
        assert (one.issuer.dump(), one.subject.dump()) == (other.issuer.public_bytes(), other.subject.public_bytes())
        assert (one.not_valid_before, one.not_valid_after) == (other.not_valid_before_utc, other.not_valid_after_utc)
        assert asn1_names(one) == cryptography_names(other)
        inner, outer = one["tbs_certificate"]["signature"].dump(), one["signature_algorithm"].dump()
        assert inner == outer
        read = [(e["extn_id"].dotted, e["critical"].native) for e in one["tbs_certificate"]["extensions"]]
        assert read == [(e.oid.dotted_string, e.critical) for e in other.extensions]
        assert len(set(read)) == len(read)
        for extension in one["tbs_certificate"]["extensions"]:
            assert extension["extn_value"].parsed.native is not None, (name, extension["extn_id"].native)
        ca = name.endswith(("root", "issuing"))
        usages = one.key_usage_value.native
        assert usages == ({"key_cert_sign", "crl_sign"} if ca else usages - {"key_cert_sign", "crl_sign"})
        assert ca == bool(one.basic_constraints_value and one.basic_constraints_value["ca"].native)
        if not name.endswith("root"):
            issuer = asn1.Certificate.load(der(workshop.folder / f"{name[:3]}-{'root' if ca else 'issuing'}.pem"))
            assert one.authority_key_identifier == issuer.key_identifier
            assert one.issuer.dump() == issuer.subject.dump()


@pytest.mark.parametrize("what", ["sm2-root", "sm2-issuing", "sm2-devices", "sm2-platforms"])
def test_gmssl_finds_the_signature_right(workshop, what) -> None:
    certificate = workshop.enrolled(what).der if what.endswith("s") else der(workshop.folder / f"{what}.pem")
    issuer = der(workshop.folder / f"sm2-{'root' if what in ('sm2-root', 'sm2-issuing') else 'issuing'}.pem")
    assert gmssl_verifies(certificate, issuer)
    assert not gmssl_verifies(certificate, issuer, identifier=b"")  # the id is in it
    changed = bytearray(certificate)
    changed[20] ^= 1  # in the serial number
    assert not gmssl_verifies(bytes(changed), issuer)


def test_gmssl_finds_the_crls_right(workshop) -> None:
    for authority in ("sm2-root", "sm2-issuing"):
        octets = workshop.plant.get(f"/crl/{authority}.crl")
        assert gmssl_verifies(octets, der(workshop.folder / f"{authority}.pem"))


def test_two_decoders_see_the_same_crl(workshop) -> None:
    revoked = [workshop.revoked("ecc-devices", reason) for reason in ("superseded", "keyCompromise")]
    octets = workshop.plant.get("/crl/ecc-issuing.crl")
    one, other = asn1_crl.CertificateList.load(octets, strict=True), x509.load_der_x509_crl(octets)
    assert one.dump(force=True) == octets
    assert (one.issuer.dump(), one.crl_number_value.native) == (
        other.issuer.public_bytes(),
        other.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number,
    )
    read = {
        e["user_certificate"].native: (e["revocation_date"].native, e.crl_reason_value.native)
        for e in one["tbs_cert_list"]["revoked_certificates"]
    }
    assert {entry.serial_number: entry.revocation_date_utc for entry in other} == {number: date for number, (date, _) in read.items()}
    serials = [asn1.Certificate.load(device.der).serial_number for device in revoked]
    assert [read[number][1] for number in serials] == ["superseded", "key_compromise"]
