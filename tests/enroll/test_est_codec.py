"""EST bodies: every form in which a device may send its request, and the forms that clients insist on in answers."""

from __future__ import annotations

import base64
import subprocess
import textwrap
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enroll import est
from pkix import extensions, pem
from pkix.algorithms import SIGNATURES, KeyKind
from pkix.certificate import Certificate, assemble, build_tbs, parse_certificate
from pkix.cms import parse_certs_only, sign_data
from pkix.csr import build_csr, parse_csr
from pkix.errors import BadSignature, Malformed
from pkix.name import name
from pkix.privatekey import PrivateKey, generate

NOW = datetime(2026, 11, 1, 12, tzinfo=UTC)
KEY = generate(KeyKind.P_256)
CSR = build_csr(KEY, name(("CN", "press-7")))


def self_signed(key: PrivateKey, common_name: str = "press-7") -> Certificate:
    """A certificate of ``key`` by itself, for messages whose signer nobody looks at yet."""
    algorithm, subject = SIGNATURES[key.kind], name(("CN", common_name))
    tbs = build_tbs(
        serial=7,
        issuer=subject,
        subject=subject,
        not_before=NOW,
        not_after=NOW.replace(year=2030),
        public_key=key.public_key,
        signature=algorithm,
        extensions=[extensions.key_usage("digitalSignature")],
    )
    return parse_certificate(assemble(tbs, algorithm, key.sign(tbs)))


def layouts(der: bytes, label: str) -> dict[str, bytes]:
    """The same DER in every form that devices were seen to send."""
    text = base64.b64encode(der).decode()
    return {
        "der": der,
        "one line": text.encode(),
        "one line and newline": text.encode() + b"\n",
        "lines of 76": base64.encodebytes(der),
        "lines of 64 with CRLF": "\r\n".join(textwrap.wrap(text, 64)).encode() + b"\r\n",
        "indented": b"  " + text.encode() + b"  ",
        "pem": pem.encode(label, der).encode(),
        "pem with text before it": b"\nCertificate Request:\n    Data:\n" + pem.encode(label, der).encode(),
        "pem with CRLF": pem.encode(label, der).replace("\n", "\r\n").encode(),
    }


@pytest.mark.parametrize("form", list(layouts(b"", "X")))
def test_every_layout_of_a_request_is_read(form: str) -> None:
    assert est.decode(layouts(CSR, "CERTIFICATE REQUEST")[form], signed=False).pkcs10 == CSR


def test_the_old_pem_label_is_read() -> None:
    assert est.decode(pem.encode("NEW CERTIFICATE REQUEST", CSR).encode(), signed=False).pkcs10 == CSR


@pytest.mark.parametrize("form", list(layouts(b"", "X")))
def test_every_layout_of_a_signed_request_is_read(form: str) -> None:
    certificate = self_signed(KEY)
    message = sign_data(CSR, KEY, certificate, now=NOW)
    decoded = est.decode(layouts(message, "CMS")[form], signed=True)
    assert (decoded.pkcs10, decoded.signer, decoded.presented) == (CSR, certificate, ())


@pytest.mark.parametrize("kind", [KeyKind.P_256, KeyKind.SM2, KeyKind.RSA_2048, KeyKind.ED25519, KeyKind.ML_DSA_65])
def test_a_signed_request_by_any_kind_of_key_fits_into_the_limit(kind: KeyKind) -> None:
    key = generate(kind)
    issuer = self_signed(generate(kind), "factory")
    csr = build_csr(key, name(("CN", "press-7")))
    body = base64.b64encode(sign_data(base64.b64encode(csr), key, self_signed(key), now=NOW, chain=[issuer]))
    assert len(body) <= est.MAX_SIGNED_REQUEST
    decoded = est.decode(body, signed=True)
    assert decoded.pkcs10 == csr
    assert decoded.presented == (issuer,)


def test_a_message_signed_with_openssl_is_read(tmp_path: Path) -> None:
    (tmp_path / "key.pem").write_bytes(KEY.to_pem())
    (tmp_path / "certificate.pem").write_text(self_signed(KEY).pem)
    (tmp_path / "request.der").write_bytes(CSR)
    command = "openssl cms -sign -binary -nodetach -signer certificate.pem -inkey key.pem -in request.der -outform DER"
    message = subprocess.run(command.split(), cwd=tmp_path, check=True, capture_output=True).stdout
    assert est.decode(message, signed=True).pkcs10 == CSR


def test_a_changed_message_is_no_message() -> None:
    message = bytearray(sign_data(CSR, KEY, self_signed(KEY), now=NOW))
    at = message.find(CSR) + len(CSR) - 1
    message[at] ^= 1
    with pytest.raises(BadSignature):
        est.decode(bytes(message), signed=True)


@pytest.mark.parametrize(
    ("content_type", "signed"),
    [
        ("application/pkcs7-mime; smime-type=signed-data", True),
        ("Application/PKCS7-MIME;smime-type=signed-data", True),
        ("application/pkcs10", False),
        ("application/pkcs10; charset=utf-8", False),
        ("", False),
        ("application/x-www-form-urlencoded", False),
        ("application/pkcs7", False),
    ],
)
def test_the_content_type_tells_signed_from_bare(content_type: str, signed: bool) -> None:
    assert est.is_signed(content_type) is signed


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"  \r\n",
        b"hello world",
        b"MIIB!!!!",
        b"%PDF-1.7",
        b'{"csr": 1}',
        pem.encode("CERTIFICATE", CSR).encode(),
        (pem.encode("CERTIFICATE REQUEST", CSR) * 2).encode(),
        b"-----BEGIN CERTIFICATE REQUEST-----\n",
        "５５".encode(),
    ],
)
def test_what_is_no_request_is_refused_with_a_sentence(body: bytes) -> None:
    with pytest.raises(Malformed) as refusal:
        est.decode(body, signed=False)
    assert str(refusal.value).rstrip().endswith((".", "this text", "cut off"))


@given(st.binary(max_size=2000), st.booleans())
def test_any_bytes_are_a_message_or_malformed(body: bytes, signed: bool) -> None:
    try:
        message = est.decode(body, signed=signed)
        parse_csr(message.pkcs10)
    except Malformed:
        pass


@pytest.mark.parametrize("wrap", [False, True])
def test_certificates_survive_the_way(wrap: bool) -> None:
    chain = [self_signed(KEY).der, self_signed(generate(KeyKind.SM2)).der]
    body = est.encode_certificates(chain, wrap=wrap)
    lines = body.decode().splitlines()
    assert (max(map(len, lines)) == 76) if wrap else (len(lines) == 1 and not body.endswith(b"\n"))
    assert sorted(parse_certs_only(base64.b64decode(body))) == sorted(chain)


def test_openssl_reads_the_certificates(tmp_path: Path) -> None:
    certificate = self_signed(KEY)
    message = base64.b64decode(est.encode_certificates([certificate.der], wrap=False))
    shown = subprocess.run(["openssl", "pkcs7", "-inform", "DER", "-print_certs"], input=message, capture_output=True, check=True).stdout
    assert pem.decode(shown) == [("CERTIFICATE", certificate.der)]


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (KeyKind.P_256, ["id-ecPublicKey", "prime256v1", "ecdsa-with-SHA256"]),
        (KeyKind.P_384, ["id-ecPublicKey", "secp384r1", "ecdsa-with-SHA384"]),
        (KeyKind.SM2, ["id-ecPublicKey", "sm2", "SM2-with-SM3"]),
        (KeyKind.RSA_3072, ["rsaEncryption", "0C00", "sha256WithRSAEncryption"]),
        (KeyKind.ED25519, ["ED25519"]),
    ],
)
def test_openssl_reads_the_attributes_asked_for(kind: KeyKind, expected: list[str]) -> None:
    body = base64.b64decode(est.encode_csrattrs(kind))
    shown = subprocess.run(["openssl", "asn1parse", "-inform", "DER"], input=body, capture_output=True, check=True).stdout.decode()
    values = [line.rpartition(":")[2].strip() for line in shown.splitlines() if " prim: " in line]
    assert values == expected


def test_only_libest_needs_lines() -> None:
    assert est.wants_lines("libest 3.2.0")
    assert not est.wants_lines("")
    assert not est.wants_lines("curl/7.88.1")
