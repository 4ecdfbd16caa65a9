from __future__ import annotations

import ipaddress
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from cryptography import x509
from cryptography.x509.oid import AuthorityInformationAccessOID
from hypothesis import given
from hypothesis import strategies as st

from pkix import der
from pkix import extensions as ext
from pkix.algorithms import KeyKind
from pkix.errors import Malformed

HOSTS = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?){0,4}", fullmatch=True)
URIS = st.from_regex(r"(urn|https?):[\x21-\x7e]{1,60}", fullmatch=True)
NAMES = st.one_of(
    HOSTS.map("dns:{}".format),
    st.ip_addresses().map("ip:{}".format),
    URIS.map("uri:{}".format),
    st.from_regex(r"[a-z0-9.+-]{1,20}@[a-z0-9-]{1,20}\.[a-z]{2,3}", fullmatch=True).map("email:{}".format),
)


def theirs(text: str) -> x509.GeneralName:
    kind, _, value = text.partition(":")
    if kind == "ip":
        return x509.IPAddress(ipaddress.ip_address(value))
    if kind == "dns":
        return x509.DNSName(value)
    return x509.RFC822Name(value) if kind == "email" else x509.UniformResourceIdentifier(value)


@given(st.lists(NAMES, min_size=1, max_size=5))
def test_subject_alternative_names_are_encoded_as_cryptography_does_and_read_back(names: list[str]) -> None:
    extension = ext.subject_alternative_name(*names)
    assert extension.value == x509.SubjectAlternativeName([theirs(name) for name in names]).public_bytes()
    assert ext.read_general_names(extension.value) == tuple(names)


@given(st.sets(st.sampled_from(ext.KEY_USAGES), min_size=1))
def test_key_usage_bits(names: set[str]) -> None:
    extension = ext.key_usage(*names)
    assert extension.critical
    assert ext.read_key_usage(extension.value) == names
    if "keyAgreement" in names or not names & {"encipherOnly", "decipherOnly"}:
        flags = ("digitalSignature", "nonRepudiation", "keyEncipherment", "dataEncipherment", "keyAgreement", "keyCertSign", "cRLSign")
        usage = x509.KeyUsage(*(flag in names for flag in (*flags, "encipherOnly", "decipherOnly")))
        assert extension.value == usage.public_bytes()


@pytest.mark.parametrize(("ca", "length"), [(True, None), (True, 0), (True, 3), (True, 200), (False, None)])
def test_basic_constraints(ca: bool, length: int | None) -> None:
    extension = ext.basic_constraints(ca, length)
    assert extension.critical
    assert extension.value == x509.BasicConstraints(ca, length).public_bytes()
    assert ext.read_basic_constraints(extension.value) == (ca, length)


def test_basic_constraints_with_an_explicit_false_are_read_since_old_certificates_have_them() -> None:
    assert ext.read_basic_constraints(bytes.fromhex("3003010100")) == (False, None)


def test_what_other_extensions_look_like() -> None:
    oid, url = x509.ObjectIdentifier, x509.UniformResourceIdentifier
    crl, ocsp, issuer = "http://a.example/x.crl", "http://a.example/ocsp", "http://a.example/x.cer"
    points = ext.crl_distribution_points(crl, crl + "2")
    assert (
        points.value
        == x509.CRLDistributionPoints([x509.DistributionPoint([url(each)], None, None, None) for each in (crl, crl + "2")]).public_bytes()
    )
    assert ext.read_distribution_points(points.value) == (crl, crl + "2")

    access = ext.authority_information_access([ocsp], [issuer])
    assert (
        access.value
        == x509.AuthorityInformationAccess(
            [
                x509.AccessDescription(AuthorityInformationAccessOID.OCSP, url(ocsp)),
                x509.AccessDescription(AuthorityInformationAccessOID.CA_ISSUERS, url(issuer)),
            ]
        ).public_bytes()
    )
    assert ext.read_information_access(access.value) == ((ocsp,), (issuer,))

    usage = ext.extended_key_usage("serverAuth", "OCSPSigning", "1.2.3.4")
    assert usage.value == x509.ExtendedKeyUsage([oid("1.3.6.1.5.5.7.3.1"), oid("1.3.6.1.5.5.7.3.9"), oid("1.2.3.4")]).public_bytes()
    assert ext.read_extended_key_usage(usage.value) == ("1.3.6.1.5.5.7.3.1", "1.3.6.1.5.5.7.3.9", "1.2.3.4")

    policies = [x509.PolicyInformation(oid(each), None) for each in ("1.2.3", "2.5.29.32.0")]
    assert ext.certificate_policies("1.2.3", "2.5.29.32.0").value == x509.CertificatePolicies(policies).public_bytes()
    assert ext.ocsp_nocheck().value == x509.OCSPNoCheck().public_bytes()


def test_distribution_points_for_some_reasons_or_of_another_issuer_are_no_complete_crl() -> None:
    name = [x509.UniformResourceIdentifier("http://a.example/some.crl")]
    some = x509.DistributionPoint(name, None, frozenset([x509.ReasonFlags.key_compromise]), None)
    other = x509.DistributionPoint(name, None, None, [x509.DirectoryName(x509.Name([]))])
    assert ext.read_distribution_points(x509.CRLDistributionPoints([some, other]).public_bytes()) == ()


def test_names_of_other_kinds_are_not_lost() -> None:
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "plc-7")])
    names = [x509.DirectoryName(subject), x509.RegisteredID(x509.ObjectIdentifier("1.2.3")), x509.DNSName("PLC.example")]
    assert ext.read_general_names(x509.SubjectAlternativeName(names).public_bytes()) == (
        "dirname:CN=plc-7",
        "other:88022a03",
        "dns:plc.example",
    )


def test_key_identifiers(pki: Callable[..., Any]) -> None:
    root = pki(KeyKind.P_256).root
    key = x509.load_der_x509_certificate(root.der).public_key()
    assert ext.subject_key_identifier(root.public_key).value == x509.SubjectKeyIdentifier.from_public_key(key).public_bytes()
    authority = ext.authority_key_identifier(root)
    assert authority.value == x509.AuthorityKeyIdentifier(root.ski, None, None).public_bytes()
    assert ext.read_authority_key_identifier(authority.value) == root.ski


@pytest.mark.parametrize(
    "wrong",
    [
        "dns:PLC.example",
        "dns:-a.example",
        "dns:a..example",
        "dns:plc_7.example",
        "dns:_tcp",
        "dns:a.example.",
        "dns:a\x00.example",
        "dns:" + "a." * 127 + "example",
        "dns:" + "a" * 64,
        "dns:*",
        "dns:a.*.example",
        "dns:设备.example",
        "dns:",
        "ip:1.2.3",
        "ip:fe80::1%eth0",
        "ip:192.0.2.0/24",
        "uri:nothing",
        "uri:urn:a b",
        "uri:urn:设备",
        "email:a",
        "plc-7",
        "",
        "other:88022a03",
    ],
)
def test_names_that_no_certificate_should_carry(wrong: str) -> None:
    with pytest.raises(Malformed):
        ext.subject_alternative_name(wrong)


def test_an_underscore_is_read_where_others_wrote_it() -> None:
    assert ext.read_general_names(x509.SubjectAlternativeName([x509.DNSName("plc_7.example")]).public_bytes()) == ("dns:plc_7.example",)


def test_a_host_that_is_not_ascii_but_looks_like_it_is_refused() -> None:
    with pytest.raises(Malformed):
        ext.general_name("dns:plc\u2025example")


@pytest.mark.parametrize("encode", [ext.key_usage, ext.extended_key_usage, ext.subject_alternative_name, ext.crl_distribution_points])
def test_an_extension_of_nothing_is_refused(encode: Callable[[], object]) -> None:
    with pytest.raises(Malformed):
        encode()


def test_mistaken_names_are_refused() -> None:
    with pytest.raises(Malformed, match="keyCertSing"):
        ext.key_usage("keyCertSing")
    with pytest.raises(Malformed):
        ext.extended_key_usage("webAuth")
    with pytest.raises(Malformed):
        ext.basic_constraints(False, 1)


def test_the_same_extension_twice_is_refused() -> None:
    twice = der.sequence(ext.ocsp_nocheck().der, ext.ocsp_nocheck().der)
    with pytest.raises(Malformed, match="twice"):
        ext.read_extensions(twice, der.read(twice))


READERS = [
    ext.read_basic_constraints,
    ext.read_key_usage,
    ext.read_extended_key_usage,
    ext.read_general_names,
    ext.read_key_identifier,
    ext.read_authority_key_identifier,
    ext.read_distribution_points,
    ext.read_information_access,
    ext.read_integer,
    ext.read_reason,
]
TAGS = st.sampled_from([0x01, 0x02, 0x03, 0x04, 0x06, 0x0A, 0x30, 0x31, 0x80, 0x81, 0x82, 0x86, 0x87, 0x88, 0xA0, 0xA1, 0xA4])
VALUES = st.recursive(
    st.builds(der.tlv, TAGS, st.binary(max_size=20)),
    lambda inner: st.builds(lambda tag, parts: der.tlv(tag, *parts), TAGS, st.lists(inner, max_size=4)),
    max_leaves=12,
)


@given(st.one_of(st.binary(max_size=60), VALUES))
def test_readers_answer_or_refuse_any_octets(value: bytes) -> None:
    for read in READERS:
        with suppress(Malformed):
            read(value)
