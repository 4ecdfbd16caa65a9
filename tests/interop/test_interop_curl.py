"""curl and openssl as an EST client (RFC 7030, RFC 8951): what a device maker tries first."""

from __future__ import annotations

import base64

import pytest

FAMILIES = ("ecc", "sm2")
LAYOUTS = {
    "base64 on one line": lambda der: base64.b64encode(der),
    "base64 in lines": lambda der: base64.encodebytes(der).replace(b"\n", b"\r\n"),
    "raw DER": lambda der: der,
    "chunked": lambda der: base64.b64encode(der),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_cacerts(workshop, family) -> None:
    device = workshop.invited(f"{family}-devices")
    answer = device.est("cacerts")
    assert (answer.status, answer.headers["content-type"]) == (200, "application/pkcs7-mime; smime-type=certs-only")
    assert answer.headers["content-transfer-encoding"] == "base64"
    assert int(answer.headers["content-length"]) == len(answer.body)
    assert "transfer-encoding" not in answer.headers
    assert b"\n" not in answer.body
    assert set(workshop.certificates(answer)) == {device.issuing.read_text(), device.root.read_text()}
    # libest wants lines of at most 76 characters, and says who it is.
    wrapped = device.est("cacerts", "-A", "libest 3.2")
    assert max(map(len, wrapped.body.splitlines())) <= 76
    assert wrapped.body.replace(b"\n", b"") == answer.body
    head = device.est("cacerts", "-I")
    assert (head.status, head.headers["content-length"]) == (200, str(len(answer.body)))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_simpleenroll_in_every_layout(workshop, family, layout) -> None:
    device = workshop.invited(f"{family}-devices")
    chunked = ("-H", "Transfer-Encoding: chunked") if layout == "chunked" else ()
    answer = device.enroll(LAYOUTS[layout](device.csr()), *chunked)
    device.take(answer)
    assert "transfer-encoding" not in answer.headers
    assert device.recorded() == ["issued"]
    assert f"CN = {device.serial}" in workshop.openssl_text(device)


def test_simpleenroll_in_pem(workshop) -> None:
    device = workshop.invited("ecc-devices")
    device.take(device.enroll(device.csr(form="PEM")))
    assert device.recorded() == ["issued"]


def test_names_asked_for_are_not_copied(workshop) -> None:
    """A device's certificate says who was invited, whatever else the request wishes."""
    device = workshop.invited("ecc-devices")
    wishes = ("-addext", "subjectAltName=DNS:evil.example,IP:10.0.0.1", "-addext", "extendedKeyUsage=serverAuth,codeSigning")
    device.take(device.enroll(device.csr(*wishes, subject=f"/CN={device.serial}/O=Evil")))
    text = workshop.openssl_text(device)
    for word in ("evil", "Evil", "10.0.0.1", "Web Server", "Code Signing"):
        assert word not in text
    assert f"URI:urn:ironroot:device:ecc-devices:{device.serial}" in text


def test_a_request_with_a_name_may_be_repeated(workshop) -> None:
    """The answer was lost on the way; the token is used up, yet nothing is lost."""
    device = workshop.invited("ecc-devices")
    csr, named = device.csr(), ("-H", f"Idempotency-Key: {'5e' * 32}")
    first, second = device.enroll(csr, *named), device.enroll(base64.b64encode(csr), *named)
    assert first.status == second.status == 200
    assert first.body == second.body
    assert device.recorded() == ["issued"]
    device.take(first)


def test_simplereenroll_with_the_current_certificate(workshop) -> None:
    device = workshop.enrolled("ecc-devices")
    before = device.der
    new = device.next()
    answer = new.est("simplereenroll", *workshop.PKCS10, *device.as_client(), feed=new.csr(subject="/"))
    new.take(answer)
    assert new.der != before
    assert new.recorded() == ["issued", "issued"]
    assert workshop.subject(new) == workshop.subject(device)


def test_simplereenroll_by_cms_signed_with_openssl(workshop) -> None:
    """Behind a proxy that ends TLS the certificate cannot come by TLS; the request is signed with it instead."""
    device = workshop.enrolled("ecc-devices")
    new = device.next()
    signed = workshop.cms_sign(device, new.csr(subject="/"))
    answer = new.est("simplereenroll", "-H", "Content-Type: application/pkcs7-mime; smime-type=signed-data", feed=signed)
    new.take(answer)
    assert workshop.subject(new) == workshop.subject(device)


def test_csrattrs_says_what_key_is_wanted(workshop) -> None:
    for family, oid in (("ecc", "prime256v1"), ("sm2", "sm2")):
        answer = workshop.invited(f"{family}-devices").est("csrattrs")
        assert (answer.status, answer.headers["content-type"]) == (200, "application/csrattrs")
        assert oid in workshop.asn1(base64.b64decode(answer.body)).lower()
