from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, pkcs7
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pkix import der, pem
from pkix import extensions as ext
from pkix.algorithms import KeyKind
from pkix.certificate import parse_certificate
from pkix.cms import SignedData, certs_only, parse_certs_only, parse_signed_data, sign_data
from pkix.errors import BadSignature, Malformed, Unsupported
from pkix.name import name
from pkix.privatekey import generate

MakePki = Callable[[KeyKind], Any]
OpenSsl = Callable[..., str]
CONTENT = b"the new request\r\nof plc-7\n\x00\xff"
WHEN = datetime(2026, 11, 23, 8, 0, 1, tzinfo=UTC)


@cache
def _signed(pki: MakePki, kind: KeyKind) -> bytes:
    leaf = pki(kind).issue()
    return sign_data(CONTENT, pki(kind).key, leaf, now=WHEN, chain=[pki(kind).root])


# --- bundles of certificates ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [KeyKind.P_256, KeyKind.SM2])
def test_others_read_our_bundles_of_certificates(kind: KeyKind, pki: MakePki, openssl: OpenSsl, tmp_path: Path) -> None:
    root, leaf = pki(kind).root, pki(kind).issue()
    bundle = certs_only([leaf.der, root.der])
    (tmp_path / "b.p7").write_bytes(bundle)
    printed = openssl("pkcs7", "-inform", "DER", "-print_certs", "-in", "b.p7")
    assert {parse_certificate(each) for each in pem.certificates(printed.encode())} == {root, leaf}
    theirs = pkcs7.load_der_pkcs7_certificates(bundle)
    assert {each.public_bytes(Encoding.DER) for each in theirs} == {root.der, leaf.der}
    assert set(parse_certs_only(bundle)) == {root.der, leaf.der}


def test_bundles_that_openssl_makes_are_read(pki: MakePki, openssl: OpenSsl, tmp_path: Path) -> None:
    root, leaf = pki(KeyKind.P_256).root, pki(KeyKind.P_256).issue()
    (tmp_path / "all.pem").write_text(leaf.pem + root.pem)
    openssl("crl2pkcs7", "-nocrl", "-certfile", "all.pem", "-outform", "DER", "-out", "b.p7")
    assert set(parse_certs_only((tmp_path / "b.p7").read_bytes())) == {root.der, leaf.der}


def test_an_empty_bundle_is_a_bundle() -> None:
    assert parse_certs_only(certs_only([])) == []


def test_a_signed_message_is_no_bundle_and_a_bundle_no_signed_message(pki: MakePki) -> None:
    with pytest.raises(Malformed, match="signed message"):
        parse_certs_only(_signed(pki, KeyKind.P_256))
    with pytest.raises(Malformed, match="bundle"):
        parse_signed_data(certs_only([pki(KeyKind.P_256).root.der]))


# --- messages that we sign -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", list(KeyKind))
def test_what_is_signed_is_read_back_with_every_kind_of_key(kind: KeyKind, pki: MakePki) -> None:
    signed = parse_signed_data(_signed(pki, kind))
    assert signed.content == CONTENT
    assert signed.certificate.subject.text.endswith("CN=plc-7")
    assert set(signed.certificates) == {signed.certificate, pki(kind).root}
    assert signed.signing_time == WHEN


@pytest.mark.parametrize("kind", [KeyKind.P_256, KeyKind.P_384, KeyKind.RSA_2048])
def test_openssl_verifies_what_we_sign(kind: KeyKind, pki: MakePki, openssl: OpenSsl, tmp_path: Path) -> None:
    (tmp_path / "m.der").write_bytes(_signed(pki, kind))
    assert "successful" in openssl("cms", "-verify", "-noverify", "-binary", "-inform", "DER", "-in", "m.der", "-out", "content")
    assert (tmp_path / "content").read_bytes() == CONTENT


def _fields(raw: bytes) -> list[der.Tlv]:
    """The fields of the only SignerInfo."""
    signed_data = der.children(raw, der.children(raw, der.children(raw, der.read(raw))[1])[0])
    return der.children(raw, der.children(raw, signed_data[-1])[0])


def test_openssl_verifies_the_sm2_signature_over_the_attributes(pki: MakePki, openssl: OpenSsl, tmp_path: Path) -> None:
    # Its cms command does not know SM2; its dgst command does.
    raw = _signed(pki, KeyKind.SM2)
    *_, attributes, _, signature = _fields(raw)
    (tmp_path / "attributes").write_bytes(b"\x31" + raw[attributes.start + 1 : attributes.end])
    (tmp_path / "signature").write_bytes(raw[signature.body : signature.end])
    (tmp_path / "root.pem").write_text(pki(KeyKind.SM2).root.pem)
    (tmp_path / "key.pem").write_text(openssl("x509", "-pubkey", "-noout", "-in", "root.pem"))
    verify = ["dgst", "-sm3", "-verify", "key.pem", "-signature", "signature"]
    assert "OK" in openssl(*verify, "-sigopt", "distid:1234567812345678", "attributes")


def test_a_key_signs_only_with_its_own_certificate(pki: MakePki) -> None:
    with pytest.raises(Malformed, match="not the key"):
        sign_data(CONTENT, generate(KeyKind.SM2), pki(KeyKind.SM2).root, now=WHEN)


# --- messages that openssl signs -----------------------------------------------------------------------------------


def _theirs(kind: KeyKind, pki: MakePki, openssl: OpenSsl, folder: Path, *options: str, content: bytes = CONTENT) -> bytes:
    key = generate(kind) if kind != KeyKind.RSA_2048 else pki(kind).key
    (folder / "c.pem").write_text(pki(kind).issue([ext.subject_key_identifier(key.public_key)], key=key).pem)
    (folder / "c.key").write_bytes(key.to_pem())
    (folder / "content").write_bytes(content)
    (folder / "root.pem").write_text(pki(kind).root.pem)
    standard = ["-binary", "-outform", "DER", "-in", "content", "-out", "m.der", "-signer", "c.pem", "-inkey", "c.key"]
    openssl("cms", "-sign", *standard, *options)
    return (folder / "m.der").read_bytes()


@pytest.mark.parametrize("kind", [KeyKind.P_256, KeyKind.P_384, KeyKind.RSA_2048])
@pytest.mark.parametrize("digest", ["sha256", "sha384", "sha512"])
def test_messages_signed_by_openssl_are_read(kind: KeyKind, digest: str, pki: MakePki, openssl: OpenSsl, tmp_path: Path) -> None:
    raw = _theirs(kind, pki, openssl, tmp_path, "-nodetach", "-md", digest, "-certfile", "root.pem")
    signed = parse_signed_data(raw)
    assert signed.content == CONTENT
    assert signed.certificate.pem == (tmp_path / "c.pem").read_text()
    assert pki(kind).root in signed.certificates
    assert signed.signing_time is not None
    assert abs((signed.signing_time - datetime.now(UTC)).total_seconds()) < 120


@pytest.mark.parametrize(
    ("options", "refusal", "complaint"),
    [
        ([], Malformed, "-nodetach"),
        (["-nodetach", "-noattr"], Malformed, "signed"),
        (["-nodetach", "-keyid"], Unsupported, "issuer and serial"),
        (["-nodetach", "-nocerts"], Malformed, "not included"),
        (["-nodetach", "-md", "sha1"], Unsupported, "sha1"),
        (["-nodetach", "-md", "md5"], Unsupported, "digest"),
        (["-nodetach", "-stream"], Malformed, "indefinite"),
        (["-nodetach", "-econtent_type", "1.2.3.4"], Unsupported, "id-data"),
        (["-nodetach", "-signer", "root.pem", "-inkey", "c.key"], Malformed, "2 signers"),
    ],
)
def test_other_forms_of_signed_message_are_refused(
    options: list[str], refusal: type[Malformed], complaint: str, pki: MakePki, openssl: OpenSsl, tmp_path: Path
) -> None:
    raw = _theirs(KeyKind.RSA_2048, pki, openssl, tmp_path, *options)
    with pytest.raises(refusal, match=complaint):
        parse_signed_data(raw)


def test_other_kinds_of_message_are_refused(openssl: OpenSsl, tmp_path: Path) -> None:
    (tmp_path / "content").write_bytes(CONTENT)
    openssl("cms", "-digest_create", "-md", "sha256", "-in", "content", "-outform", "DER", "-out", "m.der")
    with pytest.raises(Unsupported, match="signedData"):
        parse_signed_data((tmp_path / "m.der").read_bytes())


# --- forgeries -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [KeyKind.P_256, KeyKind.SM2])
def test_other_content_than_was_signed_is_a_bad_signature(kind: KeyKind, pki: MakePki) -> None:
    with pytest.raises(BadSignature, match="digest"):
        parse_signed_data(_signed(pki, kind).replace(b"plc-7\n\x00", b"plc-8\n\x00"))


@pytest.mark.parametrize("kind", [KeyKind.P_256, KeyKind.SM2])
def test_other_attributes_than_were_signed_are_a_bad_signature(kind: KeyKind, pki: MakePki) -> None:
    with pytest.raises(BadSignature):
        parse_signed_data(_signed(pki, kind).replace(b"261123080001Z", b"271123080001Z"))


def test_the_certificate_of_another_key_under_the_same_name_and_serial_is_a_bad_signature(pki: MakePki) -> None:
    mine = pki(KeyKind.SM2).issue()
    another = pki(KeyKind.SM2).issue(key=generate(KeyKind.SM2))
    raw = sign_data(CONTENT, pki(KeyKind.SM2).key, mine, now=WHEN)
    with pytest.raises(BadSignature):
        parse_signed_data(_exchange(raw, mine.der, another.der))


def _exchange(raw: bytes, old: bytes, new: bytes) -> bytes:
    """``raw`` with one element exchanged anywhere in it, and the lengths around it put right."""

    def walk(element: der.Tlv) -> bytes:
        if raw[element.start : element.end] == old:
            return new
        if not element.tag & 0x20:
            return raw[element.start : element.end]
        return der.tlv(element.tag, *(walk(child) for child in der.children(raw, element)))

    changed = walk(der.read(raw))
    assert changed != raw
    return changed


def _attribute(raw: bytes, oid: str) -> bytes:
    """The signed attribute ``oid`` of a message."""
    attributes = der.children(raw, _fields(raw)[3])
    return next(raw[each.start : each.end] for each in attributes if der.oid(oid) in raw[each.start : each.end])


CONTENT_TYPE, MESSAGE_DIGEST = "1.2.840.113549.1.9.3", "1.2.840.113549.1.9.4"


@pytest.mark.parametrize(
    "attributes",
    [
        lambda listed: listed[1:],
        lambda listed: listed[:2],
        lambda listed: [*listed, listed[0]],
        lambda listed: [*listed, der.sequence(der.oid("1.2.3"), der.set_of([der.integer(1), der.integer(2)]))],
        lambda listed: [der.sequence(der.oid(CONTENT_TYPE), der.set_of([der.oid("1.2.840.113549.1.7.2")])), *listed[1:]],
        lambda listed: [*listed[:2], der.sequence(der.oid(MESSAGE_DIGEST), der.set_of([der.integer(1)]))],
        lambda listed: [*listed, der.sequence(der.oid("1.2.3"))],
    ],
    ids=["no contentType", "no messageDigest", "twice", "two values", "other contentType", "digest no octets", "no values"],
)
def test_attributes_that_rfc_5652_does_not_allow_are_refused_though_rightly_signed(
    attributes: Callable[[list[bytes]], list[bytes]], pki: MakePki
) -> None:
    authority = pki(KeyKind.SM2)
    raw = sign_data(CONTENT, authority.key, authority.issue(), now=WHEN)
    fields = _fields(raw)
    listed = [raw[each.start : each.end] for each in der.children(raw, fields[3])]
    listed.sort(key=lambda each: (der.oid(MESSAGE_DIGEST) in each, der.oid(CONTENT_TYPE) not in each))
    changed = attributes(listed)
    forged = _exchange(raw, raw[fields[3].start : fields[3].end], der.context(0, *changed))
    resigned = der.octet_string(authority.key.sign(der.set_of(changed)))
    forged = _exchange(forged, raw[fields[5].start : fields[5].end], resigned)
    with pytest.raises(Malformed) as caught:
        parse_signed_data(forged)
    assert not isinstance(caught.value, BadSignature)


def test_attributes_may_come_in_any_order_since_the_signature_is_over_the_sorted_ones(pki: MakePki) -> None:
    raw = _signed(pki, KeyKind.P_256)
    element = _fields(raw)[3]
    backwards = [raw[each.start : each.end] for each in reversed(der.children(raw, element))]
    shuffled = _exchange(raw, raw[element.start : element.end], der.context(0, *backwards))
    assert parse_signed_data(shuffled).content == CONTENT


def test_unsigned_attributes_are_refused(pki: MakePki) -> None:
    raw = _signed(pki, KeyKind.P_256)
    signature = _fields(raw)[5]
    unsigned = der.context(1, der.sequence(der.oid("1.2.3"), der.set_of([der.null()])))
    octets = raw[signature.start : signature.end]
    with pytest.raises(Malformed, match="unsigned"):
        parse_signed_data(_exchange(raw, octets, octets + unsigned))


def test_sm2_goes_with_sm3_alone(pki: MakePki) -> None:
    raw = _signed(pki, KeyKind.SM2)
    sm3, sha256 = der.sequence(der.oid("1.2.156.10197.1.401")), der.sequence(der.oid("2.16.840.1.101.3.4.2.1"))
    with pytest.raises(Unsupported, match="sha256"):
        parse_signed_data(_exchange(raw, sm3, sha256))


def test_a_message_longer_than_is_taken_is_refused(pki: MakePki) -> None:
    raw = sign_data(bytes(32768), pki(KeyKind.SM2).key, pki(KeyKind.SM2).root, now=WHEN)
    with pytest.raises(Malformed, match="32768"):
        parse_signed_data(raw)
    assert len(parse_signed_data(raw, max_size=40000).content) == 32768


# --- any octets ----------------------------------------------------------------------------------------------------


@given(st.binary(max_size=200))
def test_any_octets_are_malformed(raw: bytes) -> None:
    for parse in (parse_signed_data, parse_certs_only):
        with pytest.raises(Malformed):
            parse(raw)


@pytest.mark.parametrize("kind", [KeyKind.P_256, KeyKind.SM2])
@given(data=st.data())
@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_mutated_message_never_passes_with_other_content(data: st.DataObject, kind: KeyKind, pki: MakePki) -> None:
    raw = bytearray(_signed(pki, kind))
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    with suppress(Malformed):
        signed: SignedData = parse_signed_data(bytes(raw))
        assert signed.content == CONTENT
        assert signed.certificate.public_key == pki(kind).key.public_key
    with suppress(Malformed):
        parse_certs_only(bytes(raw))


@given(content=st.binary(max_size=300))
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_content_comes_back(content: bytes, pki: MakePki) -> None:
    authority = pki(KeyKind.SM2)
    assert parse_signed_data(sign_data(content, authority.key, authority.root, now=WHEN)).content == content


def test_names_of_the_signer_with_the_largest_serial_number(pki: MakePki) -> None:
    leaf = pki(KeyKind.P_256).issue(serial=(1 << 159) - 1, subject=name(("CN", "x")))
    assert parse_signed_data(sign_data(b"", pki(KeyKind.P_256).key, leaf, now=WHEN)).certificate == leaf
