from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from programs import missing

from pkix import der
from pkix import extensions as ext
from pkix.algorithms import SIGNATURES, KeyKind, SignatureAlgorithm
from pkix.certificate import Certificate, TbsTemplate, assemble, build_tbs, parse_certificate, split, verify_signed
from pkix.csr import build_csr
from pkix.errors import BadSignature, Malformed, Unsupported, WeakKey
from pkix.extensions import Extension
from pkix.name import name
from pkix.privatekey import generate

MakePki = Callable[[KeyKind], Any]
OpenSsl = Callable[..., str]
DISTID = ("-vfyopt", "distid:1234567812345678")
NOT_IN_OPENSSL_3 = {KeyKind.ML_DSA_65}


def leaf_extensions(root: Certificate) -> list[Extension]:
    return [
        ext.key_usage("digitalSignature", "keyAgreement"),
        ext.extended_key_usage("clientAuth", "serverAuth"),
        ext.subject_alternative_name("uri:urn:ironroot:device:ecc-devices:plc-7", "dns:plc-7.plant", "ip:192.0.2.7", "ip:2001:db8::7"),
        ext.crl_distribution_points("http://pki.example/crl/ecc-issuing.crl"),
        ext.authority_information_access(["http://pki.example/ocsp"], ["http://pki.example/aia/ecc-issuing.cer"]),
        ext.certificate_policies("1.2.3.4"),
        ext.subject_key_identifier(root.public_key),
        ext.authority_key_identifier(root),
    ]


# --- other people's programs ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", list(KeyKind))
def test_openssl_verifies_what_we_issue_with_every_kind_of_key(kind: KeyKind, pki: MakePki, openssl: OpenSsl, tmp_path: Path) -> None:
    authority = pki(kind)
    sub_key = generate(kind if not kind.startswith("rsa") else KeyKind.P_256)
    sub = authority.issue(
        [
            ext.basic_constraints(True, 0),
            ext.key_usage("keyCertSign", "cRLSign"),
            ext.subject_key_identifier(sub_key.public_key),
            ext.authority_key_identifier(authority.root),
        ],
        key=sub_key,
        subject=name(("CN", "Issuing")),
        serial=2,
    )
    leaf = authority.issue(leaf_extensions(authority.root), serial=3)
    for certificate, file in ((authority.root, "root"), (sub, "sub"), (leaf, "leaf")):
        (tmp_path / f"{file}.pem").write_text(certificate.pem)
    if kind in NOT_IN_OPENSSL_3:
        for certificate in (authority.root, sub, leaf):
            x509.load_der_x509_certificate(certificate.der).verify_directly_issued_by(x509.load_der_x509_certificate(authority.root.der))
        return
    extra = DISTID if kind == KeyKind.SM2 else ()
    for file in ("root", "sub", "leaf"):
        openssl(
            "verify", "-x509_strict" if file != "root" else "-no-CAfile", *extra, "-partial_chain", "-CAfile", "root.pem", f"{file}.pem"
        )
        assert "Subject: " in openssl("x509", "-text", "-noout", "-in", f"{file}.pem")
    printed = openssl("x509", "-text", "-noout", "-in", "leaf.pem")
    for shown in (
        "IP Address:2001:DB8:0:0:0:0:0:7",
        "TLS Web Client Authentication",
        "URI:http://pki.example/crl/ecc-issuing.crl",
        "Key Agreement",
    ):
        assert shown in printed


def test_sm2_signatures_are_under_the_default_id(pki: MakePki, openssl: OpenSsl, tmp_path: Path) -> None:
    (tmp_path / "root.pem").write_text(pki(KeyKind.SM2).root.pem)
    (tmp_path / "leaf.pem").write_text(pki(KeyKind.SM2).issue(serial=9).pem)
    openssl("verify", "-vfyopt", "distid:other", "-partial_chain", "-CAfile", "root.pem", "leaf.pem", ok=False)
    openssl("verify", *DISTID, "-partial_chain", "-CAfile", "root.pem", "leaf.pem")


@pytest.mark.parametrize("kind", [KeyKind.P_256, KeyKind.SM2, KeyKind.RSA_2048])
def test_cryptography_reads_the_same_in_it(kind: KeyKind, pki: MakePki) -> None:
    authority = pki(kind)
    leaf = authority.issue(leaf_extensions(authority.root))
    theirs = x509.load_der_x509_certificate(leaf.der)
    assert theirs.serial_number == leaf.serial
    assert theirs.tbs_certificate_bytes == leaf.tbs
    assert theirs.signature == leaf.signature
    assert theirs.subject.public_bytes() == leaf.subject.der
    assert theirs.issuer.public_bytes() == leaf.issuer.der == authority.root.subject.der
    assert (theirs.not_valid_before_utc, theirs.not_valid_after_utc) == (leaf.not_before, leaf.not_after)
    assert theirs.fingerprint(hashes.SHA256()) == leaf.sha256
    assert [(e.oid.dotted_string, e.critical) for e in theirs.extensions] == [(e.oid, e.critical) for e in leaf.extensions.values()]
    assert [e.value.public_bytes() for e in theirs.extensions] == [e.value for e in leaf.extensions.values()]
    assert leaf.aki == authority.root.ski == authority.root.public_key.key_identifier


def test_what_openssl_issues_is_read(openssl: OpenSsl, tmp_path: Path) -> None:
    san = "subjectAltName=DNS:Plc-7.Plant,IP:192.0.2.7,email:a@b.example,URI:urn:x:y,dirName:dn,otherName:1.2.3;UTF8:x,RID:1.2.3"
    config = "[req]\ndistinguished_name=none\nx509_extensions=v3\n[none]\n[v3]\n" + san + "\n"
    config += "basicConstraints=critical,CA:TRUE,pathlen:2\nkeyUsage=critical,keyCertSign,cRLSign\nextendedKeyUsage=OCSPSigning,1.2.3.4\n"
    config += "crlDistributionPoints=URI:http://a.example/x.crl\n"
    config += "authorityInfoAccess=OCSP;URI:http://a.example/ocsp,caIssuers;URI:http://a.example/i"
    config += "\nsubjectKeyIdentifier=hash\nauthorityKeyIdentifier=keyid:always,issuer:always\n"
    config += "1.2.3.4.5=critical,DER:0500\n[dn]\nCN=inside\n"
    (tmp_path / "c.cnf").write_text(config)
    subject = ["-subj", "/C=DE/CN=it", "-set_serial", "0x7fff", "-days", "30", "-config", "c.cnf"]
    openssl("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", "k", *subject, "-outform", "DER", "-out", "c.der")
    certificate = parse_certificate((tmp_path / "c.der").read_bytes())
    assert (certificate.serial, certificate.subject.text, certificate.issuer.text) == (0x7FFF, "CN=it,C=DE", "CN=it,C=DE")
    assert certificate.not_after - certificate.not_before == timedelta(days=30)
    assert (certificate.is_ca, certificate.path_length) == (True, 2)
    assert certificate.key_usage == {"keyCertSign", "cRLSign"}
    assert certificate.extended_key_usage == ("1.3.6.1.5.5.7.3.9", "1.2.3.4")
    assert certificate.names[:5] == ("dns:plc-7.plant", "ip:192.0.2.7", "email:a@b.example", "uri:urn:x:y", "dirname:CN=inside")
    assert [text.partition(":")[0] for text in certificate.names[5:]] == ["other", "other"]
    assert certificate.ski == certificate.aki == certificate.public_key.key_identifier
    assert certificate.crl_urls == ("http://a.example/x.crl",)
    assert (certificate.ocsp_urls, certificate.issuer_urls) == (("http://a.example/ocsp",), ("http://a.example/i",))
    assert certificate.extensions["1.2.3.4.5"] == Extension("1.2.3.4.5", True, b"\x05\x00")
    verify_signed(certificate.der, certificate.public_key)


@pytest.mark.filterwarnings("ignore:Parsed a:cryptography.utils.CryptographyDeprecationWarning")
def test_the_roots_that_the_system_trusts_are_read() -> None:
    bundle = Path("/etc/ssl/certs/ca-certificates.crt")
    if not bundle.exists():
        missing("a list of trusted roots (package ca-certificates)")
    for theirs in x509.load_pem_x509_certificates(bundle.read_bytes()):
        ours = parse_certificate(theirs.public_bytes(Encoding.DER))
        assert ours.serial == theirs.serial_number
        assert ours.subject.der == theirs.subject.public_bytes()
        assert ours.is_ca


# --- times and numbers ---------------------------------------------------------------------------------------------


def test_times_are_utctime_to_the_end_of_2049_and_generalizedtime_from_2050(pki: MakePki, openssl: OpenSsl, tmp_path: Path) -> None:
    last, first = datetime(2049, 12, 31, 23, 59, 59, tzinfo=UTC), datetime(2050, 1, 1, tzinfo=UTC)
    before = pki(KeyKind.P_256).issue(not_after=last)
    after = pki(KeyKind.P_256).issue(not_after=first)
    assert bytes.fromhex("170d") + b"491231235959Z" in before.tbs
    assert bytes.fromhex("180f") + b"20500101000000Z" in after.tbs
    assert (before.not_after, after.not_after) == (last, first)
    (tmp_path / "c.pem").write_text(after.pem)
    assert "notAfter=Jan  1 00:00:00 2050 GMT" in openssl("x509", "-noout", "-enddate", "-in", "c.pem")


def test_times_of_other_zones_are_written_in_utc(pki: MakePki) -> None:
    moment = datetime.fromisoformat("2026-11-23T08:00:00+08:00")
    assert pki(KeyKind.P_256).issue(not_before=moment).not_before == datetime(2026, 11, 23, tzinfo=UTC)


@given(st.integers(min_value=-(1 << 159), max_value=(1 << 159) - 1))
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_serial_numbers_come_back(pki: MakePki, serial: int) -> None:
    assert pki(KeyKind.P_256).issue(serial=serial).serial == serial


def test_a_serial_number_of_21_octets_is_refused(pki: MakePki) -> None:
    with pytest.raises(Malformed, match="20 octets"):
        pki(KeyKind.P_256).issue(serial=1 << 159)


# --- building ------------------------------------------------------------------------------------------------------


@given(serial=st.integers(1, 1 << 127), minutes=st.integers(0, 60 * 24 * 9000), host=st.from_regex(r"[a-z]{1,30}", fullmatch=True))
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_template_fills_in_what_the_plain_builder_writes(pki: MakePki, serial: int, minutes: int, host: str) -> None:
    authority = pki(KeyKind.SM2)
    root, key, algorithm = authority.root, authority.key.public_key, SIGNATURES[KeyKind.SM2]
    static, own = [ext.key_usage("digitalSignature"), ext.authority_key_identifier(root)], [ext.subject_alternative_name(f"dns:{host}")]
    start = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(minutes=minutes)
    end, subject = start + timedelta(days=90), name(("CN", host))
    filled = TbsTemplate(root.subject, algorithm, static).fill(serial, start, end, subject, key, own)
    assert filled == build_tbs(
        serial=serial,
        issuer=root.subject,
        subject=subject,
        not_before=start,
        not_after=end,
        public_key=key,
        signature=algorithm,
        extensions=[*static, ext.subject_key_identifier(key), *own],
    )


def test_the_authority_key_identifier_is_the_issuers_own_whatever_its_form(pki: MakePki) -> None:
    authority = pki(KeyKind.SM2)
    sm3_style = Extension(ext.SUBJECT_KEY_IDENTIFIER, False, der.octet_string(bytes(range(32))))
    issuer = authority.issue([ext.basic_constraints(True), sm3_style])
    leaf = authority.issue([ext.authority_key_identifier(issuer)])
    assert leaf.aki == bytes(range(32))
    with pytest.raises(Malformed, match="subject key identifier"):
        ext.authority_key_identifier(authority.issue([ext.basic_constraints(True)]))


def test_a_leaf_without_extensions_has_no_empty_list_of_them(pki: MakePki) -> None:
    leaf = pki(KeyKind.P_256).issue([])
    assert leaf.extensions == {}
    assert (leaf.is_ca, leaf.key_usage, leaf.names, leaf.ski, leaf.aki) == (False, frozenset(), (), None, None)
    assert x509.load_der_x509_certificate(leaf.der).serial_number == leaf.serial


# --- signatures ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", list(KeyKind))
def test_a_changed_bit_or_another_key_is_a_bad_signature(kind: KeyKind, pki: MakePki) -> None:
    leaf = pki(kind).issue()
    verify_signed(leaf.der, pki(kind).root.public_key)
    at = leaf.der.index(b"plc-7")
    with pytest.raises(BadSignature):
        verify_signed(leaf.der[:at] + b"qlc-7" + leaf.der[at + 5 :], pki(kind).root.public_key)
    with pytest.raises((BadSignature, Unsupported)):
        verify_signed(leaf.der, pki(KeyKind.P_256 if kind != KeyKind.P_256 else KeyKind.SM2).root.public_key)
    if not kind.startswith("rsa"):
        with pytest.raises(BadSignature):
            verify_signed(leaf.der, generate(kind).public_key)


def _sm2_with(inner: bytes, outer: bytes, pki: MakePki) -> bytes:
    """A leaf of the SM2 authority with these two AlgorithmIdentifiers."""
    authority, absent = pki(KeyKind.SM2), SIGNATURES[KeyKind.SM2]
    plain = authority.issue()
    tbs = build_tbs(
        serial=plain.serial,
        issuer=plain.issuer,
        subject=plain.subject,
        not_before=plain.not_before,
        not_after=plain.not_after,
        public_key=authority.key.public_key,
        signature=SignatureAlgorithm(absent.name, absent.oid, inner),
        extensions=[],
    )
    return der.sequence(tbs, outer, der.bit_string(authority.key.sign(tbs)))


ABSENT, NULL = bytes.fromhex("300a06082a811ccf55018375"), bytes.fromhex("300c06082a811ccf550183750500")


def test_sm2_algorithms_are_read_with_null_and_without_and_written_without(pki: MakePki) -> None:
    for form in (ABSENT, NULL):
        raw = _sm2_with(form, form, pki)
        assert parse_certificate(raw).signature_algorithm == SIGNATURES[KeyKind.SM2]
        verify_signed(raw, pki(KeyKind.SM2).root.public_key)
    assert pki(KeyKind.SM2).root.algorithm == ABSENT


@pytest.mark.parametrize(("inner", "outer"), [(ABSENT, NULL), (NULL, ABSENT)])
def test_the_algorithm_inside_has_to_be_the_one_outside(inner: bytes, outer: bytes, pki: MakePki) -> None:
    with pytest.raises(Malformed, match="differs"):
        parse_certificate(_sm2_with(inner, outer, pki))


def test_split_takes_certificates_and_requests_apart(pki: MakePki) -> None:
    authority = pki(KeyKind.P_256)
    for raw in (authority.root.der, build_csr(authority.key, name(("CN", "plc-7")))):
        tbs, algorithm, signature = split(raw)
        assert algorithm == SIGNATURES[KeyKind.P_256].der
        assert assemble(tbs, SIGNATURES[KeyKind.P_256], signature) == raw
        verify_signed(raw, authority.key.public_key)


# --- certificates of others ----------------------------------------------------------------------------------------


def _foreign(public: Any) -> Certificate:
    key, subject = ec.generate_private_key(ec.SECP256R1()), x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "foreign")])
    builder = x509.CertificateBuilder(subject, subject, public, 1, datetime(2020, 1, 1), datetime(2040, 1, 1))
    return parse_certificate(builder.sign(key, hashes.SHA256()).public_bytes(Encoding.DER))


def test_a_key_that_policy_refuses_shows_when_it_is_asked_for(pki: MakePki) -> None:
    strange = _foreign(ec.generate_private_key(ec.SECP521R1()).public_key())
    assert strange.subject.text == "CN=foreign"
    with pytest.raises(Unsupported):
        _ = strange.public_key
    # e = 3 is a key that others certified in good faith; here it counts as weak.
    weak = _foreign(rsa.RSAPublicNumbers(3, rsa.generate_private_key(65537, 2048).private_numbers().public_numbers.n).public_key())
    with pytest.raises(WeakKey):
        _ = weak.public_key


def test_a_signature_by_sha1_can_be_looked_at_but_not_verified(openssl: OpenSsl, tmp_path: Path) -> None:
    openssl(
        "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-sha1", "-keyout", "k", "-subj", "/CN=old", "-outform", "DER", "-out", "c.der"
    )
    old = parse_certificate((tmp_path / "c.der").read_bytes())
    assert old.subject.text == "CN=old"
    with pytest.raises(Unsupported, match="sha1"):
        _ = old.signature_algorithm
    with pytest.raises(Unsupported):
        verify_signed(old.der, old.public_key)


def test_certificates_of_version_1_are_read(openssl: OpenSsl, tmp_path: Path) -> None:
    openssl("req", "-newkey", "rsa:2048", "-nodes", "-keyout", "k", "-subj", "/CN=v1", "-out", "r")
    openssl("x509", "-req", "-in", "r", "-signkey", "k", "-outform", "DER", "-out", "c.der")
    certificate = parse_certificate((tmp_path / "c.der").read_bytes())
    assert b"\xa0\x03\x02\x01" not in certificate.tbs[:12]
    assert certificate.extensions == {}


# --- what is no certificate ----------------------------------------------------------------------------------------


def _retouched(leaf: Certificate, fields: Callable[[list[bytes]], list[bytes]]) -> bytes:
    """``leaf`` with the fields of its TBSCertificate changed; the signature no longer fits."""
    parts = [leaf.tbs[child.start : child.end] for child in der.children(leaf.tbs, der.read(leaf.tbs))]
    return der.sequence(der.sequence(*fields(parts)), leaf.algorithm, der.bit_string(leaf.signature))


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda f: [der.context(0, der.integer(3)), *f[1:]], "version"),
        (lambda f: [der.context(0, der.integer(0)), *f[1:]], "version"),
        (lambda f: f[1:], "version does not have"),
        (lambda f: [der.context(0, der.integer(1)), *f[1:]], "version does not have"),
        (lambda f: [*f, der.context(3, der.sequence())], "version does not have"),
        (lambda f: [*f[:7], der.context(3, der.sequence())], "nothing in it"),
        (lambda f: [*f[:7], der.context(3, der.sequence(), der.sequence())], "one SEQUENCE"),
        (lambda f: [*f[:7], f[7], der.context(1, b"\x00", constructed=False)], "version does not have"),
        (lambda f: [*f[:4], der.sequence(der.time(datetime(2026, 1, 1, tzinfo=UTC))), *f[5:]], "two times"),
        (lambda f: [*f[:4], der.sequence(der.utf8_string("now"), der.utf8_string("then")), *f[5:]], "UTCTime"),
        (lambda f: [f[0], der.octet_string(b"\x01"), *f[2:]], "fields"),
        (lambda f: f[:6], "fields"),
    ],
)
def test_structures_that_are_no_certificate(change: Callable[[list[bytes]], list[bytes]], complaint: str, pki: MakePki) -> None:
    leaf = pki(KeyKind.P_256).issue([ext.key_usage("digitalSignature")])
    assert parse_certificate(_retouched(leaf, lambda fields: fields)).tbs == leaf.tbs
    with pytest.raises(Malformed, match=complaint):
        parse_certificate(_retouched(leaf, change))


def test_unique_identifiers_of_version_2_are_passed_over(pki: MakePki) -> None:
    leaf = pki(KeyKind.P_256).issue([ext.key_usage("digitalSignature")])
    unique = [der.context(1, b"\x00\x01", constructed=False), der.context(2, b"\x00\x02", constructed=False)]
    assert parse_certificate(_retouched(leaf, lambda f: [*f[:7], *unique, f[7]])).key_usage == {"digitalSignature"}


def test_broken_values_of_known_extensions_are_refused_and_of_unknown_ones_kept(pki: MakePki) -> None:
    assert pki(KeyKind.P_256).issue([Extension("1.2.3.4", True, b"no DER")]).extensions["1.2.3.4"].value == b"no DER"
    for oid in (ext.BASIC_CONSTRAINTS, ext.KEY_USAGE, ext.SUBJECT_ALT_NAME, ext.EXTENDED_KEY_USAGE, ext.SUBJECT_KEY_IDENTIFIER):
        with pytest.raises(Malformed):
            pki(KeyKind.P_256).issue([Extension(oid, False, b"no DER")])


def test_octets_before_and_after_a_certificate_are_refused(pki: MakePki) -> None:
    raw = pki(KeyKind.P_256).root.der
    for wrong in (raw + b"\x00", raw[:-1], b"", b"\x30\x80" + raw[4:] + b"\x00\x00", raw + raw, pki(KeyKind.P_256).root.pem.encode()):
        with pytest.raises(Malformed):
            parse_certificate(wrong)


def test_more_than_64_kib_is_refused(pki: MakePki) -> None:
    with pytest.raises(Malformed, match="65536"):
        pki(KeyKind.P_256).issue([Extension("1.2.3.4", False, bytes(65536))])


@given(st.binary(max_size=300))
def test_any_octets_are_a_certificate_or_malformed(raw: bytes) -> None:
    with pytest.raises(Malformed):
        parse_certificate(raw)


@cache
def _sample(pki: MakePki) -> bytes:
    """One leaf, the same in every example: its signature would change its length."""
    raw: bytes = pki(KeyKind.P_256).issue(leaf_extensions(pki(KeyKind.P_256).root)).der
    return raw


@pytest.mark.filterwarnings("ignore:Parsed a:cryptography.utils.CryptographyDeprecationWarning")
@given(data=st.data())
@settings(max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_mutated_certificates_are_refused_or_read_as_cryptography_reads_them(data: st.DataObject, pki: MakePki) -> None:
    raw = bytearray(_sample(pki))
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    try:
        ours = parse_certificate(bytes(raw))
    except Malformed:
        return
    try:
        theirs = x509.load_der_x509_certificate(ours.der)
        assert theirs.subject.public_bytes() == ours.subject.der
    except (ValueError, x509.InvalidVersion):
        return
    assert theirs.signature == ours.signature
    assert theirs.tbs_certificate_bytes == ours.tbs
    assert (theirs.not_valid_before_utc, theirs.not_valid_after_utc) == (ours.not_before, ours.not_after)
    try:
        found = theirs.extensions
    except (ValueError, x509.DuplicateExtension, x509.UnsupportedGeneralNameType):
        return
    assert [(e.oid.dotted_string, e.critical) for e in found] == [(e.oid, e.critical) for e in ours.extensions.values()]


def test_certificates_compare_by_their_octets(pki: MakePki) -> None:
    root = pki(KeyKind.P_256).root
    again = parse_certificate(root.der)
    assert again == root
    assert len({again, root, pki(KeyKind.SM2).root}) == 2
    assert root != root.der
    key = x509.load_der_x509_certificate(root.der).public_key()
    assert key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo) == root.public_key.spki
