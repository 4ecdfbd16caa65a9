"""PEM: read from whatever surrounds it, written as openssl writes it."""

from __future__ import annotations

import subprocess

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pkix import pem
from pkix.errors import Malformed


def test_openssl_writes_the_same() -> None:
    made = subprocess.run(["openssl", "genpkey", "-algorithm", "ED25519"], capture_output=True, check=True, timeout=30).stdout
    ((label, contents),) = pem.decode(made)
    assert pem.encode(label, contents).encode() == made


@settings(deadline=None)
@given(
    contents=st.lists(st.binary(max_size=200), min_size=1, max_size=4),
    around=st.sampled_from(("", "text\n", "subject=CN=压机\n\n")),
    crlf=st.booleans(),
)
def test_what_is_written_reads_back_whatever_is_around_it(contents: list[bytes], around: str, crlf: bool) -> None:
    text = around + around.join(pem.encode("CERTIFICATE", block) for block in contents) + around
    assert pem.decode(text.replace("\n", "\r\n") if crlf else text) == [("CERTIFICATE", block) for block in contents]
    assert all(len(line) <= 64 for line in pem.encode("X", b"x" * 200).splitlines())


def test_blocks_are_chosen_by_their_label() -> None:
    bundle = pem.encode("PRIVATE KEY", b"k") + pem.encode("CERTIFICATE", b"a") + pem.encode("CERTIFICATE", b"b")
    assert pem.decode(bundle, "CERTIFICATE") == [("CERTIFICATE", b"a"), ("CERTIFICATE", b"b")]
    assert pem.certificates(bundle.encode()) == [b"a", b"b"]
    assert pem.certificates(b"\x30\x03abc") == [b"\x30\x03abc"]
    assert len(pem.decode(bundle)) == 3


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "no block 'CERTIFICATE'"),
        (pem.encode("X509 CRL", b"x"), "no block 'CERTIFICATE'"),
        ("-----BEGIN CERTIFICATE-----\nAAAA\n", "cut off"),
        ("-----BEGIN CERTIFICATE-----\nAAAA\n-----END X509 CRL-----\n", "not closed"),
        ("-----BEGIN CERTIFICATE-----\n-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "not closed"),
        ("-----BEGIN CERTIFICATE-----\nAAA\n-----END CERTIFICATE-----\n", "no base64"),
        ("-----BEGIN CERTIFICATE-----\nAA*A\n-----END CERTIFICATE-----\n", "no base64"),
        ("-----BEGIN CERTIFICATE-----\nAÄAA\n-----END CERTIFICATE-----\n", "no base64"),
        ("-----BEGIN CERTIFICATE-----\nProc-Type: 4,ENCRYPTED\n\nAAAA\n-----END CERTIFICATE-----\n", "passphrase"),
    ],
)
def test_broken_text_is_refused_with_the_reason(text: str, reason: str) -> None:
    with pytest.raises(Malformed, match=reason):
        pem.decode(text, "CERTIFICATE")
    with pytest.raises(Malformed):
        pem.certificates(text.encode())


@settings(deadline=None)
@given(
    text=st.binary(max_size=300)
    | st.text(max_size=300)
    | st.text("-BEGINDX \nA=", max_size=100).map(lambda text: "-----BEGIN X-----\n" + text)
)
def test_any_text_is_blocks_or_malformed(text: bytes | str) -> None:
    try:
        blocks = pem.decode(text)
    except Malformed:
        return
    assert all(pem.decode(pem.encode(label, contents)) == [(label, contents)] for label, contents in blocks)
