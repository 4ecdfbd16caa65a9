from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.x509 import ocsp as theirs
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pkix import der, ocsp
from pkix import extensions as ext
from pkix.algorithms import SIGNATURES, KeyKind
from pkix.certificate import Certificate
from pkix.errors import BadSignature, Malformed, Unsupported
from pkix.extensions import Extension
from pkix.name import name
from pkix.ocsp import CertId, OcspRequest, Single, build_request, cert_id, parse_request, parse_response, verify_response
from pkix.privatekey import PrivateKey, generate

MakePki = Callable[[KeyKind], Any]
OpenSsl = Callable[..., str]
DELEGATED = [ext.key_usage("digitalSignature"), ext.extended_key_usage("OCSPSigning"), ext.ocsp_nocheck()]
HASHES = ["sha1", "sha256", "sha384", "sm3"]


@cache
def _signer(pki: MakePki, kind: KeyKind) -> tuple[PrivateKey, Certificate]:
    """The delegated OCSP signer of an authority."""
    key = generate(kind)
    return key, pki(kind).issue(DELEGATED, key=key, subject=name(("CN", "OCSP signer")), serial=0x0C5B)


def _single(item: CertId, now: datetime, status: str = "good", reason: int | None = None) -> Single:
    revoked_at = now - timedelta(hours=1) if status == "revoked" else None
    return Single(item, status, revoked_at, reason, now, now + timedelta(hours=1))


def _answer(
    singles: Sequence[Single], key: PrivateKey, now: datetime, certificates: Sequence[bytes] = (), nonce: bytes | None = None
) -> bytes:
    tbs = ocsp.build_response_data(responder_key=key.public_key, produced_at=now, singles=singles, nonce=nonce)
    return ocsp.assemble_response(tbs, SIGNATURES[key.kind], key.sign(tbs), certificates)


# --- other people's clients ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("digest", HASHES)
def test_requests_of_openssl_are_answered_to_its_satisfaction(digest: str, pki: MakePki, openssl: OpenSsl, tmp_path: Path) -> None:
    authority = pki(KeyKind.P_256)
    key, signer = _signer(pki, KeyKind.P_256)
    (tmp_path / "root.pem").write_text(authority.root.pem)
    for file, serial in (("good", 11), ("held", 12), ("lost", 13), ("nobody", 14)):
        (tmp_path / f"{file}.pem").write_text(authority.issue(serial=serial).pem)
    asked = [part for file in ("good", "held", "lost", "nobody") for part in (f"-{digest}", "-cert", f"{file}.pem")]
    openssl("ocsp", "-issuer", "root.pem", *asked, "-nonce", "-reqout", "q.der")
    request = parse_request((tmp_path / "q.der").read_bytes())
    hash_names = ocsp.issuer_hashes(digest, authority.root)
    assert [(each.hash, (each.name_hash, each.key_hash), each.serial) for each in request.cert_ids] == [
        (digest, hash_names, serial) for serial in (11, 12, 13, 14)
    ]
    assert request.nonce is not None

    states = [("good", None), ("revoked", 6), ("revoked", 1), ("unknown", None)]
    singles = [_single(item, authority.now, status, reason) for item, (status, reason) in zip(request.cert_ids, states, strict=True)]
    (tmp_path / "a.der").write_bytes(_answer(singles, key, authority.now, [signer.der], request.nonce))
    # With names of certificates it would put a second nonce into the request that it reads; it compares the one that is there.
    printed = openssl("ocsp", "-no_nonce", "-reqin", "q.der", "-respin", "a.der", "-issuer", "root.pem", *asked, "-CAfile", "root.pem")
    for shown in (
        "Response verify OK",
        "good.pem: good",
        "held.pem: revoked",
        "Reason: certificateHold",
        "Reason: keyCompromise",
        "nobody.pem: unknown",
    ):
        assert shown in printed
    assert "nonce" not in printed.lower()  # it complains when it is not the one that was sent
    assert "WARNING" not in printed


def test_openssl_notices_another_nonce_and_another_signer(pki: MakePki, openssl: OpenSsl, tmp_path: Path) -> None:
    authority = pki(KeyKind.P_256)
    key, signer = _signer(pki, KeyKind.P_256)
    (tmp_path / "root.pem").write_text(authority.root.pem)
    (tmp_path / "c.pem").write_text(authority.issue(serial=11).pem)
    openssl("ocsp", "-issuer", "root.pem", "-cert", "c.pem", "-nonce", "-reqout", "q.der")
    single = _single(cert_id("sha1", authority.root, 11), authority.now)
    check = ["ocsp", "-reqin", "q.der", "-respin", "a.der", "-CAfile", "root.pem"]
    (tmp_path / "a.der").write_bytes(_answer([single], key, authority.now, [signer.der], bytes(16)))
    assert "Nonce Verify error" in openssl(*check, ok=None)
    (tmp_path / "a.der").write_bytes(_answer([single], generate(KeyKind.P_256), authority.now, [signer.der]))
    assert "Response Verify Failure" in openssl(*check, ok=None)


def test_requests_signed_by_the_client_are_read_like_others(pki: MakePki, openssl: OpenSsl, tmp_path: Path) -> None:
    authority = pki(KeyKind.P_256)
    (tmp_path / "root.pem").write_text(authority.root.pem)
    (tmp_path / "root.key").write_bytes(authority.key.to_pem())
    openssl("ocsp", "-issuer", "root.pem", "-serial", "17", "-signer", "root.pem", "-signkey", "root.key", "-no_nonce", "-reqout", "q.der")
    assert parse_request((tmp_path / "q.der").read_bytes()) == OcspRequest((cert_id("sha1", authority.root, 17),), None)


@pytest.mark.parametrize("kind", [KeyKind.P_256, KeyKind.SM2, KeyKind.RSA_2048, KeyKind.ED25519])
def test_cryptography_reads_the_same_in_our_answers(kind: KeyKind, pki: MakePki) -> None:
    authority, now = pki(kind), pki(kind).now
    key, signer = _signer(pki, kind)
    raw = _answer([_single(cert_id("sha256", authority.root, 11), now, "revoked", 4)], key, now, [signer.der], b"n" * 32)
    answer = theirs.load_der_ocsp_response(raw)
    assert answer.response_status == theirs.OCSPResponseStatus.SUCCESSFUL
    assert answer.responder_key_hash == signer.public_key.key_identifier
    assert (answer.serial_number, answer.certificate_status, answer.revocation_reason) == (
        11,
        theirs.OCSPCertStatus.REVOKED,
        x509.ReasonFlags.superseded,
    )
    assert (answer.this_update_utc, answer.next_update_utc, answer.produced_at_utc) == (now, now + timedelta(hours=1), now)
    assert answer.revocation_time_utc == now - timedelta(hours=1)
    assert answer.extensions.get_extension_for_class(x509.OCSPNonce).value.nonce == b"n" * 32
    assert [each.public_bytes(serialization.Encoding.DER) for each in answer.certificates] == [signer.der]
    ours = parse_response(raw)
    assert (answer.tbs_response_bytes, answer.signature) == (ours.tbs, ours.signature)
    verify_response(ours, authority.root, now)


SHA = [("sha1", hashes.SHA1()), ("sha256", hashes.SHA256()), ("sha384", hashes.SHA384())]  # noqa: S303 - most clients ask with SHA-1


@pytest.mark.parametrize(("digest", "algorithm"), SHA)
def test_our_requests_are_octet_for_octet_those_of_cryptography(digest: str, algorithm: hashes.HashAlgorithm, pki: MakePki) -> None:
    root, leaf = (x509.load_der_x509_certificate(each.der) for each in (pki(KeyKind.P_256).root, pki(KeyKind.P_256).issue(serial=11)))
    assert isinstance(algorithm, hashes.SHA1 | hashes.SHA256 | hashes.SHA384)
    builder = theirs.OCSPRequestBuilder().add_certificate(leaf, root, algorithm)
    item = cert_id(digest, pki(KeyKind.P_256).root, 11)
    assert build_request([item]) == builder.build().public_bytes(serialization.Encoding.DER)
    with_nonce = builder.add_extension(x509.OCSPNonce(b"n" * 16), critical=False).build()
    assert build_request([item], b"n" * 16) == with_nonce.public_bytes(serialization.Encoding.DER)


@pytest.mark.parametrize("delegated", [True, False])
@pytest.mark.parametrize("by", [theirs.OCSPResponderEncoding.HASH, theirs.OCSPResponderEncoding.NAME])
def test_answers_of_others_are_read_and_verified(by: theirs.OCSPResponderEncoding, delegated: bool, pki: MakePki) -> None:
    authority = pki(KeyKind.P_256)
    key, signer = _signer(pki, KeyKind.P_256) if delegated else (authority.key, authority.root)
    root, leaf, responder = (x509.load_der_x509_certificate(each.der) for each in (authority.root, authority.issue(serial=11), signer))
    builder = theirs.OCSPResponseBuilder().responder_id(by, responder)
    builder = builder.add_response(
        leaf, root, hashes.SHA256(), theirs.OCSPCertStatus.REVOKED, authority.now, None, authority.now, x509.ReasonFlags.aa_compromise
    )
    if delegated:
        builder = builder.certificates([responder])
    private = serialization.load_der_private_key(key.to_der(), None)
    raw = builder.sign(private, hashes.SHA256()).public_bytes(serialization.Encoding.DER)  # type: ignore[arg-type]
    response = parse_response(raw)
    verify_response(response, authority.root, authority.now)
    single = response.find(cert_id("sha256", authority.root, 11))
    assert single is not None
    assert (single.status, single.reason, single.revoked_at, single.next_update) == ("revoked", 10, authority.now, None)
    assert response.find(cert_id("sha256", authority.root, 12)) is None


# --- CertIDs -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("parameters", [b"", der.null()], ids=["absent", "NULL"])
@pytest.mark.parametrize(
    ("digest", "oid"), [("sm3", "1.2.156.10197.1.401"), ("sha256", "2.16.840.1.101.3.4.2.1"), ("sha1", "1.3.14.3.2.26")]
)
def test_a_cert_id_is_echoed_octet_for_octet(digest: str, oid: str, parameters: bytes, pki: MakePki) -> None:
    authority = pki(KeyKind.SM2)
    ours = cert_id(digest, authority.root, 11)
    hashed = (der.octet_string(ours.name_hash), der.octet_string(ours.key_hash), der.integer(11))
    asked = der.sequence(der.sequence(der.oid(oid), parameters), *hashed)
    (read,) = parse_request(der.sequence(der.sequence(der.sequence(der.sequence(asked))))).cert_ids
    assert read.der == asked
    assert read == ours  # compared by what it means
    answer = _answer([_single(read, authority.now)], authority.key, authority.now)
    assert asked in answer
    response = parse_response(answer)
    verify_response(response, authority.root, authority.now)
    assert response.find(ours) is not None


def test_hashes_are_of_the_issuers_name_and_of_its_key_bits(pki: MakePki) -> None:
    root = pki(KeyKind.SM2).root
    assert root.public_key.key_bits[0] == 4
    assert len(root.public_key.key_bits) == 65
    for digest in HASHES:
        name_hash, key_hash = ocsp.issuer_hashes(digest, root)
        assert name_hash == hashlib.new(digest, root.subject.der).digest()
        assert key_hash == hashlib.new(digest, root.public_key.key_bits).digest()


# --- requests that are refused -------------------------------------------------------------------------------------


def _request(*items: bytes, after: bytes = b"", before: bytes = b"") -> bytes:
    return der.sequence(der.sequence(before, der.sequence(*items), after))


@pytest.mark.parametrize(("size", "taken"), [(0, False), (1, True), (16, True), (32, True), (128, True), (129, False)])
def test_nonces_of_1_to_128_octets_are_taken(size: int, taken: bool, pki: MakePki) -> None:
    nonce = der.octet_string(bytes(size))
    item = der.sequence(cert_id("sha1", pki(KeyKind.P_256).root, 1).der)
    raw = _request(item, after=der.context(2, der.sequence(Extension(ext.OCSP_NONCE, False, nonce).der)))
    if taken:
        assert parse_request(raw).nonce == bytes(size)
        assert build_request([cert_id("sha1", pki(KeyKind.P_256).root, 1)], bytes(size)) == raw
    else:
        with pytest.raises(Malformed, match="RFC 9654"):
            parse_request(raw)
        with pytest.raises(Malformed, match="RFC 9654"):
            build_request([], bytes(size))


def test_critical_extensions_that_we_do_not_know_are_refused_and_others_passed_over(pki: MakePki) -> None:
    item = cert_id("sha1", pki(KeyKind.P_256).root, 1).der
    for critical in (True, False):
        extra = der.sequence(Extension("1.2.3.4", critical, der.null()).der)
        for raw in (_request(der.sequence(item), after=der.context(2, extra)), _request(der.sequence(item, der.context(0, extra)))):
            if critical:
                with pytest.raises(Malformed, match="critical"):
                    parse_request(raw)
            else:
                assert len(parse_request(raw).cert_ids) == 1


def test_the_number_of_certificates_asked_about_is_bounded(pki: MakePki) -> None:
    items = [cert_id("sha1", pki(KeyKind.P_256).root, serial) for serial in range(65)]
    assert len(parse_request(build_request(items[:64])).cert_ids) == 64
    with pytest.raises(Malformed, match="64"):
        parse_request(build_request(items))
    with pytest.raises(Malformed):
        parse_request(build_request([]))
    with pytest.raises(Malformed, match="8192"):
        parse_request(build_request(items * 4), max_requests=1000)


def test_digests_that_name_no_issuer_safely_or_of_the_wrong_length_are_refused() -> None:
    def asked(oid: str, size: int) -> bytes:
        hashed = der.octet_string(bytes(size))
        return _request(der.sequence(der.sequence(der.sequence(der.oid(oid), der.null()), hashed, hashed, der.integer(1))))

    assert len(parse_request(asked("1.3.14.3.2.26", 20)).cert_ids) == 1
    with pytest.raises(Malformed, match="as long as"):
        parse_request(asked("1.3.14.3.2.26", 21))
    for oid, size in (("1.2.840.113549.2.5", 16), ("2.16.840.1.101.3.4.2.3", 64)):
        with pytest.raises(Unsupported):
            parse_request(asked(oid, size))


def test_versions_and_names_of_requestors(pki: MakePki) -> None:
    item = der.sequence(cert_id("sha1", pki(KeyKind.P_256).root, 1).der)
    requestor = der.context(1, ext.general_name("dns:client.example"))
    assert len(parse_request(_request(item, before=der.context(0, der.integer(0)) + requestor)).cert_ids) == 1
    with pytest.raises(Unsupported, match="version"):
        parse_request(_request(item, before=der.context(0, der.integer(1))))


# --- whose answers are believed ------------------------------------------------------------------------------------


def test_an_answer_of_a_signer_that_the_issuer_did_not_delegate_to_is_refused(pki: MakePki) -> None:
    kind = KeyKind.SM2
    authority, now, key = pki(kind), pki(kind).now, generate(kind)
    single = _single(cert_id("sm3", authority.root, 11), now)

    def verify(certificate: Certificate | None, signing: PrivateKey = key) -> None:
        raw = _answer([single], signing, now, [certificate.der] if certificate else [])
        verify_response(parse_response(raw), authority.root, now)

    verify(authority.issue(DELEGATED, key=key))
    with pytest.raises(BadSignature, match="OCSPSigning"):
        verify(authority.issue([ext.extended_key_usage("clientAuth")], key=key))
    with pytest.raises(BadSignature, match="OCSPSigning"):
        verify(authority.issue([], key=key))
    with pytest.raises(BadSignature, match="digital signatures"):
        verify(authority.issue([ext.extended_key_usage("OCSPSigning"), ext.key_usage("keyAgreement")], key=key))
    with pytest.raises(BadSignature, match="not valid now"):
        verify(authority.issue(DELEGATED, key=key, not_after=now - timedelta(seconds=1)))
    with pytest.raises(BadSignature, match="not valid now"):
        verify(authority.issue(DELEGATED, key=key, not_before=now + timedelta(seconds=1)))
    verify(authority.issue(DELEGATED, key=key, not_before=now, not_after=now))
    with pytest.raises(BadSignature, match="no certificate"):
        verify(None)
    with pytest.raises(BadSignature, match="no certificate"):
        verify(authority.issue(DELEGATED, key=generate(kind)))
    with pytest.raises(BadSignature, match="somebody else"):
        verify(pki(KeyKind.P_256).issue(DELEGATED, key=key))
    verify(None, authority.key)


def test_a_signer_certified_by_an_impostor_of_the_same_name_is_refused(pki: MakePki) -> None:
    authority, now = pki(KeyKind.P_256), pki(KeyKind.P_256).now
    impostor, key = type(authority)(generate(KeyKind.P_256), authority.root), generate(KeyKind.P_256)
    raw = _answer([_single(cert_id("sha1", authority.root, 11), now)], key, now, [impostor.issue(DELEGATED, key=key).der])
    with pytest.raises(BadSignature):
        verify_response(parse_response(raw), authority.root, now)


@pytest.mark.parametrize("kind", [KeyKind.P_256, KeyKind.SM2])
def test_a_changed_answer_is_refused(kind: KeyKind, pki: MakePki) -> None:
    authority, now = pki(kind), pki(kind).now
    raw = _answer([_single(cert_id("sha1", authority.root, 0x11223344), now)], authority.key, now)
    changed = parse_response(raw.replace(b"\x11\x22\x33\x44", b"\x11\x22\x33\x45"))
    assert changed.singles[0].cert_id.serial == 0x11223345
    with pytest.raises(BadSignature):
        verify_response(changed, authority.root, now)


def test_a_responder_may_be_named(pki: MakePki) -> None:
    authority, now = pki(KeyKind.SM2), pki(KeyKind.SM2).now
    key, signer = _signer(pki, KeyKind.SM2)
    single = _single(cert_id("sm3", authority.root, 11), now)
    tbs = ocsp.build_response_data(responder_name=signer.subject, produced_at=now, singles=[single])
    response = parse_response(ocsp.assemble_response(tbs, SIGNATURES[KeyKind.SM2], key.sign(tbs), [signer.der]))
    assert response.responder == signer.subject
    verify_response(response, authority.root, now)


def test_when_an_answer_is_current() -> None:
    now, item = datetime(2026, 11, 23, tzinfo=UTC), CertId("sha1", b"", b"", 1, b"")
    single = Single(item, "good", None, None, now, now + timedelta(hours=1))
    minute = timedelta(minutes=1)
    assert [single.covers(now + offset, minute) for offset in (-2 * minute, -minute, 0 * minute)] == [False, True, True]
    assert [single.covers(now + 60 * minute + offset, minute) for offset in (0 * minute, minute, 2 * minute)] == [True, True, False]
    assert Single(item, "good", None, None, now).covers(now + timedelta(days=9))


# --- errors and forms ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "text"), [(1, "malformedrequest"), (2, "internalerror"), (3, "trylater"), (5, "sigrequired"), (6, "unauthorized")]
)
def test_errors_are_five_octets_that_openssl_understands(status: int, text: str, openssl: OpenSsl, tmp_path: Path, pki: MakePki) -> None:
    raw = ocsp.error_response(status)
    assert raw == bytes((0x30, 3, 0x0A, 1, status))
    (tmp_path / "a.der").write_bytes(raw)
    assert f"Responder Error: {text}" in openssl("ocsp", "-respin", "a.der", ok=None)
    response = parse_response(raw)
    assert (response.status, response.singles) == (status, ())
    with pytest.raises(Malformed, match="no answer"):
        verify_response(response, pki(KeyKind.P_256).root, datetime.now(UTC))


def test_there_are_no_other_errors_and_no_other_statuses(pki: MakePki) -> None:
    for status in (0, 4, 7):
        with pytest.raises(Malformed):
            ocsp.error_response(status)
        with pytest.raises(Malformed):
            parse_response(bytes((0x30, 3, 0x0A, 1, status)))
    now, item = pki(KeyKind.P_256).now, cert_id("sha1", pki(KeyKind.P_256).root, 1)
    for single in (Single(item, "fine", None, None, now), Single(item, "revoked", None, 1, now)):
        with pytest.raises(Malformed):
            ocsp.build_response_data(responder_key=pki(KeyKind.P_256).key.public_key, produced_at=now, singles=[single])
    with pytest.raises(Malformed):
        ocsp.build_response_data(produced_at=now, singles=[])


MOMENTS = st.datetimes(datetime(1970, 1, 1), datetime(2150, 1, 1), timezones=st.just(UTC)).map(lambda moment: moment.replace(microsecond=0))


@st.composite
def singles(draw: st.DrawFn, root: Certificate) -> Single:
    item = cert_id(draw(st.sampled_from(HASHES)), root, draw(st.integers(0, (1 << 159) - 1)))
    status = draw(st.sampled_from(["good", "revoked", "unknown"]))
    revoked_at = draw(MOMENTS) if status == "revoked" else None
    reason = draw(st.none() | st.sampled_from([0, 1, 2, 3, 4, 5, 6, 8, 9, 10])) if status == "revoked" else None
    return Single(item, status, revoked_at, reason, draw(MOMENTS), draw(st.none() | MOMENTS))


@given(data=st.data())
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_statuses_and_requests_come_back(data: st.DataObject, pki: MakePki) -> None:
    authority = pki(KeyKind.ED25519)
    listed = data.draw(st.lists(singles(authority.root), min_size=1, max_size=4))
    nonce, produced = data.draw(st.none() | st.binary(min_size=1, max_size=128)), data.draw(MOMENTS)
    response = parse_response(_answer(listed, authority.key, produced, [authority.root.der], nonce))
    assert (list(response.singles), response.nonce, response.produced_at) == (listed, nonce, produced)
    assert [each.cert_id.der for each in response.singles] == [each.cert_id.der for each in listed]
    assert response.certificates == (authority.root,)
    verify_response(response, authority.root, authority.now)
    request = parse_request(build_request([each.cert_id for each in listed], nonce))
    assert (request.cert_ids, request.nonce) == (tuple(each.cert_id for each in listed), nonce)


@given(st.binary(max_size=200))
def test_any_octets_are_malformed(raw: bytes) -> None:
    for parse in (parse_request, parse_response):
        with pytest.raises(Malformed):
            parse(raw)


@cache
def _sample(pki: MakePki) -> tuple[bytes, bytes]:
    authority = pki(KeyKind.P_256)
    key, signer = _signer(pki, KeyKind.P_256)
    item = cert_id("sha1", authority.root, 11)
    answer = _answer([_single(item, authority.now, "revoked", 1)], key, authority.now, [signer.der], b"n" * 16)
    return build_request([item], b"n" * 16), answer


@given(data=st.data())
@settings(max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_mutated_messages_are_refused_or_read_and_the_status_is_never_another(data: st.DataObject, pki: MakePki) -> None:
    authority = pki(KeyKind.P_256)
    request, answer = (bytearray(each) for each in _sample(pki))
    for raw in (request, answer):
        for _ in range(data.draw(st.integers(1, 3))):
            raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    with suppress(Malformed):
        parse_request(bytes(request))
    with suppress(Malformed):
        response = parse_response(bytes(answer))
        verify_response(response, authority.root, authority.now)
        assert [(each.status, each.reason, each.cert_id.serial) for each in response.singles] == [("revoked", 1, 11)]
