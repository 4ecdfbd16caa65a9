from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta, timezone
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pkix import der
from pkix import extensions as ext
from pkix.algorithms import SIGNATURES, KeyKind
from pkix.certificate import assemble, verify_signed
from pkix.crl import Crl, CrlEntry, TbsCrl, build_tbs_crl, parse_crl
from pkix.errors import BadSignature, Malformed, Unsupported
from pkix.extensions import Extension
from pkix.privatekey import generate

MakePki = Callable[[KeyKind], Any]
OpenSsl = Callable[..., str]
WHEN = datetime(2026, 11, 23, 8, 0, 1, tzinfo=UTC)
REASONS = (0, 1, 2, 3, 4, 5, 6, 8, 9, 10)
ENTRIES = [
    CrlEntry(0x40000000000000000000000000000001, WHEN),
    CrlEntry(0x7F000000000000000000000000000002, WHEN, 1, WHEN - timedelta(days=9)),
    CrlEntry(3, WHEN - timedelta(days=1), 6),
    CrlEntry(0x80, WHEN, 0, WHEN - timedelta(days=1)),
    CrlEntry((1 << 159) - 1, datetime(2050, 1, 1, tzinfo=UTC), 9),
]


def _tbs(authority: Any, entries: Sequence[CrlEntry] | Iterator[CrlEntry], *, number: int = 7, extra: Sequence[Extension] = ()) -> bytes:
    return build_tbs_crl(
        issuer=authority.root.subject,
        signature=SIGNATURES[authority.kind],
        this_update=authority.now,
        next_update=authority.now + timedelta(days=1),
        number=number,
        authority_key_identifier=ext.authority_key_identifier(authority.root),
        entries=entries,
        extra=extra,
    )


def _crl(authority: Any, entries: Sequence[CrlEntry], *, number: int = 7, extra: Sequence[Extension] = ()) -> bytes:
    tbs = _tbs(authority, entries, number=number, extra=extra)
    return assemble(tbs, SIGNATURES[authority.kind], authority.key.sign(tbs))


# --- other people's programs ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [KeyKind.P_256, KeyKind.P_384, KeyKind.RSA_2048, KeyKind.ED25519])
def test_openssl_verifies_and_prints_our_lists(kind: KeyKind, pki: MakePki, openssl: OpenSsl, tmp_path: Path) -> None:
    (tmp_path / "c.crl").write_bytes(_crl(pki(kind), ENTRIES))
    (tmp_path / "root.pem").write_text(pki(kind).root.pem)
    printed = openssl("crl", "-inform", "DER", "-in", "c.crl", "-CAfile", "root.pem", "-noout", "-text", "-crlnumber")
    assert "verify OK" in printed
    assert "crlNumber=0x07" in printed
    assert "Version 2" in printed
    assert printed.count("Serial Number:") == len(ENTRIES)
    for shown in ("Key Compromise", "Certificate Hold", "Privilege Withdrawn", "Nov 14 08:00:01 2026 GMT", "Jan  1 00:00:00 2050 GMT"):
        assert shown in printed
    assert printed.count("CRL Reason Code") == 3  # not for unspecified


@pytest.mark.parametrize("kind", [KeyKind.P_256, KeyKind.SM2])
@pytest.mark.parametrize("entries", [ENTRIES, []], ids=["some", "none"])
def test_cryptography_reads_the_same_in_them(kind: KeyKind, entries: list[CrlEntry], pki: MakePki) -> None:
    authority = pki(kind)
    raw = _crl(authority, entries)
    theirs = x509.load_der_x509_crl(raw)
    assert theirs.issuer.public_bytes() == authority.root.subject.der
    assert (theirs.last_update_utc, theirs.next_update_utc) == (authority.now, authority.now + timedelta(days=1))
    assert theirs.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number == 7
    assert theirs.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier == authority.root.ski
    assert [(each.serial_number, each.revocation_date_utc) for each in theirs] == [(each.serial, each.revoked_at) for each in entries]
    for each, entry in zip(theirs, entries, strict=True):
        found = {extension.oid.dotted_string: extension.value for extension in each.extensions}
        assert (ext.CRL_REASON in found, ext.INVALIDITY_DATE in found) == (entry.reason != 0, entry.invalidity is not None)
    ours = parse_crl(raw)
    assert list(ours.entries.values()) == entries
    assert (ours.number, ours.aki, ours.issuer, ours.tbs) == (7, authority.root.ski, authority.root.subject, theirs.tbs_certlist_bytes)
    assert (ours.this_update, ours.next_update) == (authority.now, authority.now + timedelta(days=1))


def test_the_chain_is_found_revoked_by_openssl(pki: MakePki, openssl: OpenSsl, tmp_path: Path) -> None:
    authority = pki(KeyKind.P_256)
    (tmp_path / "root.pem").write_text(authority.root.pem)
    (tmp_path / "bad.pem").write_text(authority.issue(serial=0x80).pem)
    (tmp_path / "good.pem").write_text(authority.issue(serial=0x81).pem)
    (tmp_path / "c.crl").write_bytes(_crl(authority, ENTRIES))
    openssl("crl", "-inform", "DER", "-in", "c.crl", "-out", "c.pem")
    verify = ["verify", "-crl_check", "-CAfile", "root.pem", "-CRLfile", "c.pem"]
    openssl(*verify, "good.pem")
    assert "certificate revoked" in openssl(*verify, "bad.pem", ok=False)


def test_lists_that_openssl_makes_are_read(pki: MakePki, openssl: OpenSsl, tmp_path: Path) -> None:
    config = "[ca]\ndefault_ca=d\n[d]\ndatabase=index\ncrlnumber=number\ndefault_md=sha256\ndefault_crl_days=5\ncrl_extensions=x\n"
    (tmp_path / "ca.cnf").write_text(config + "[x]\nauthorityKeyIdentifier=keyid:always\n")
    (tmp_path / "index").write_text("R\t301231235959Z\t261101000000Z,keyTime,20261031000000Z\t4A11CE\tunknown\t/CN=a\n"
                                    "R\t301231235959Z\t261102000000Z\t4A11CF\tunknown\t/CN=b\n")  # fmt: skip
    (tmp_path / "number").write_text("0A0B\n")
    authority = pki(KeyKind.P_256)
    (tmp_path / "root.pem").write_text(authority.root.pem)
    (tmp_path / "root.key").write_bytes(authority.key.to_pem())
    openssl("ca", "-gencrl", "-config", "ca.cnf", "-cert", "root.pem", "-keyfile", "root.key", "-out", "c.pem")
    openssl("crl", "-in", "c.pem", "-outform", "DER", "-out", "c.crl")
    crl = parse_crl((tmp_path / "c.crl").read_bytes())
    verify_signed(crl.der, authority.root.public_key)
    assert crl.number == 0x0A0B
    assert list(crl.entries.values()) == [
        CrlEntry(0x4A11CE, datetime(2026, 11, 1, tzinfo=UTC), 1, datetime(2026, 10, 31, tzinfo=UTC)),
        CrlEntry(0x4A11CF, datetime(2026, 11, 2, tzinfo=UTC)),
    ]


def test_old_lists_without_numbers_and_of_version_1_are_read(openssl: OpenSsl, pki: MakePki) -> None:
    authority = pki(KeyKind.P_256)
    revoked = der.sequence(der.sequence(der.integer(5), der.time(WHEN)))
    algorithm = SIGNATURES[KeyKind.P_256]
    tbs = der.sequence(algorithm.der, authority.root.subject.der, der.time(WHEN), revoked)
    crl = parse_crl(assemble(tbs, algorithm, authority.key.sign(tbs)))
    assert (crl.number, crl.aki, crl.next_update, crl.extensions) == (None, None, None, {})
    assert dict(crl.entries) == {5: CrlEntry(5, WHEN)}


# --- signatures ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", list(KeyKind))
def test_a_list_with_an_entry_changed_or_of_another_key_does_not_verify(kind: KeyKind, pki: MakePki) -> None:
    raw = _crl(pki(kind), ENTRIES)
    verify_signed(raw, pki(kind).root.public_key)
    changed = raw.replace(ENTRIES[1].serial.to_bytes(16), ENTRIES[1].serial.to_bytes(16)[:-1] + b"\x03")
    assert ENTRIES[1].serial not in parse_crl(changed).entries
    with pytest.raises(BadSignature):
        verify_signed(changed, pki(kind).root.public_key)
    with pytest.raises((BadSignature, Unsupported)):
        verify_signed(raw, generate(KeyKind.SM2).public_key)


def test_the_algorithm_inside_has_to_be_the_one_outside(pki: MakePki) -> None:
    tbs = _tbs(pki(KeyKind.SM2), [])
    null = bytes.fromhex("300c06082a811ccf550183750500")
    with pytest.raises(Malformed, match="differs"):
        parse_crl(der.sequence(tbs, null, der.bit_string(pki(KeyKind.SM2).key.sign(tbs))))


# --- writing -------------------------------------------------------------------------------------------------------


@st.composite
def entries(draw: st.DrawFn) -> list[CrlEntry]:
    moments = st.datetimes(datetime(1950, 1, 1), datetime(2120, 1, 1), timezones=st.sampled_from([UTC, timezone(timedelta(hours=8))]))
    moments = moments.map(lambda moment: moment.replace(microsecond=0))
    one = st.builds(CrlEntry, st.integers(0, (1 << 159) - 1), moments, st.sampled_from(REASONS), st.none() | moments)
    return draw(st.lists(one, max_size=12, unique_by=lambda entry: entry.serial))


@given(listed=entries())
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_entries_come_back_and_are_what_cryptography_reads(listed: list[CrlEntry], pki: MakePki) -> None:
    tbs = _tbs(pki(KeyKind.ED25519), listed)
    raw = assemble(tbs, SIGNATURES[KeyKind.ED25519], bytes(64))
    der.prescan(raw)
    assert list(parse_crl(raw).entries.values()) == listed
    assert [(each.serial_number, each.revocation_date_utc) for each in x509.load_der_x509_crl(raw)] == [
        (each.serial, each.revoked_at) for each in listed
    ]


@pytest.mark.parametrize("count", [1, 3, 4, 6, 7, 8, 1800, 1900])
def test_lengths_around_every_boundary_are_minimal(count: int, pki: MakePki) -> None:
    listed = [CrlEntry(0x40 << 120 | serial, WHEN) for serial in range(count)]
    tbs = _tbs(pki(KeyKind.ED25519), listed)
    der.prescan(tbs, max_size=1 << 20)
    assert len(x509.load_der_x509_crl(assemble(tbs, SIGNATURES[KeyKind.ED25519], bytes(64)))) == count


def test_entries_are_taken_one_at_a_time_and_memory_holds_little_more_than_the_list(pki: MakePki) -> None:
    def cursor() -> Iterator[CrlEntry]:
        for serial in range(20000):
            yield CrlEntry(0x40 << 120 | serial, WHEN + timedelta(seconds=serial), 4)

    _tbs(pki(KeyKind.ED25519), [])
    tracemalloc.start()
    tbs = _tbs(pki(KeyKind.ED25519), cursor())
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(parse_crl(assemble(tbs, SIGNATURES[KeyKind.ED25519], bytes(64))).entries) == 20000
    # The buffer, what it over-allocates when it grows, and the result; 20,000 objects would be three times that.
    assert peak < 3 * len(tbs)


@pytest.mark.parametrize(
    "wrong", [CrlEntry(-1, WHEN), CrlEntry(1 << 159, WHEN), CrlEntry(1, WHEN, 7), CrlEntry(1, WHEN, 11), CrlEntry(1, WHEN, 7, WHEN)]
)
def test_entries_that_no_list_may_hold_are_refused(wrong: CrlEntry, pki: MakePki) -> None:
    with pytest.raises(Malformed):
        _tbs(pki(KeyKind.ED25519), [wrong])


def test_a_list_may_be_built_entry_by_entry(pki: MakePki) -> None:
    authority = pki(KeyKind.ED25519)
    crl = TbsCrl(
        issuer=authority.root.subject,
        signature=SIGNATURES[KeyKind.ED25519],
        this_update=authority.now,
        next_update=authority.now + timedelta(days=1),
        number=7,
        authority_key_identifier=ext.authority_key_identifier(authority.root),
    )
    for entry in ENTRIES:
        crl.add(entry)
    assert crl.finish() == _tbs(authority, ENTRIES)


# --- lists that must not be used, and what is none -----------------------------------------------------------------


def test_delta_lists_and_other_critical_extensions_are_refused(pki: MakePki) -> None:
    authority = pki(KeyKind.ED25519)
    for extra in (Extension(ext.DELTA_CRL_INDICATOR, True, der.integer(1)), Extension("1.2.3.4", True, der.null())):
        with pytest.raises(Unsupported, match="must not be used"):
            parse_crl(_crl(authority, [], extra=[extra]))
    assert "1.2.3.4" in parse_crl(_crl(authority, [], extra=[Extension("1.2.3.4", False, der.null())])).extensions
    point = Extension(ext.ISSUING_DISTRIBUTION_POINT, True, der.sequence(der.context(1, b"\xff", constructed=False)))
    assert parse_crl(_crl(authority, [], extra=[point])).extensions[ext.ISSUING_DISTRIBUTION_POINT] == point


def test_indirect_lists_are_refused() -> None:
    key, issuer = ec.generate_private_key(ec.SECP256R1()), x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "a")])
    revoked = x509.RevokedCertificateBuilder(5, WHEN, [])
    revoked = revoked.add_extension(x509.CertificateIssuer([x509.DirectoryName(issuer)]), critical=True)
    builder = x509.CertificateRevocationListBuilder(issuer, WHEN, WHEN, [], [revoked.build()])
    with pytest.raises(Unsupported, match=r"2\.5\.29\.29"):
        parse_crl(builder.sign(key, hashes.SHA256()).public_bytes(Encoding.DER))


def _list_of(entries: bytes, pki: MakePki) -> bytes:
    authority, algorithm = pki(KeyKind.ED25519), SIGNATURES[KeyKind.ED25519]
    head = (der.integer(1), algorithm.der, authority.root.subject.der, der.time(WHEN), der.time(WHEN))
    return assemble(der.sequence(*head, entries), algorithm, bytes(64))


@pytest.mark.parametrize(
    "entry",
    [
        der.sequence(),
        der.sequence(der.integer(1)),
        der.sequence(der.tlv(der.INTEGER, b"\x00\x01"), der.time(WHEN)),
        der.sequence(der.tlv(der.INTEGER), der.time(WHEN)),
        der.sequence(der.integer(1 << 160), der.time(WHEN)),
        der.sequence(der.octet_string(b"\x01"), der.time(WHEN)),
        der.sequence(der.integer(1), der.utf8_string("20261123080001Z")),
        der.sequence(der.integer(1), der.time(WHEN), der.sequence()),
        der.sequence(der.integer(1), der.time(WHEN), der.null()),
        der.sequence(der.integer(1), der.time(WHEN), der.sequence(Extension(ext.CRL_REASON, False, der.enumerated(7)).der)),
        der.sequence(der.integer(1), der.time(WHEN), der.sequence(Extension(ext.CRL_REASON, False, der.integer(1)).der)),
        der.sequence(der.integer(1), der.time(WHEN), der.sequence(Extension("1.2.3", True, der.null()).der)),
        der.tlv(der.SET, der.integer(1), der.time(WHEN)),
        der.null(),
    ],
)
def test_broken_entries_are_refused(entry: bytes, pki: MakePki) -> None:
    good = der.sequence(der.integer(9), der.time(WHEN))
    assert list(parse_crl(_list_of(der.sequence(good), pki)).entries) == [9]
    with pytest.raises(Malformed):
        parse_crl(_list_of(der.sequence(good, entry), pki))


def test_the_first_entry_of_a_serial_counts(pki: MakePki) -> None:
    twice = der.sequence(der.sequence(der.integer(9), der.time(WHEN)), der.sequence(der.integer(9), der.time(WHEN + timedelta(1))))
    assert parse_crl(_list_of(twice, pki)).entries[9].revoked_at == WHEN


def test_a_list_longer_than_is_taken_is_refused(pki: MakePki) -> None:
    with pytest.raises(Malformed, match="1000"):
        parse_crl(_crl(pki(KeyKind.ED25519), [CrlEntry(serial, WHEN) for serial in range(100)]), max_size=1000)


def test_other_objects_are_no_list(pki: MakePki) -> None:
    for raw in (pki(KeyKind.P_256).root.der, _crl(pki(KeyKind.P_256), []) + b"\x00", b""):
        with pytest.raises(Malformed):
            parse_crl(raw)


@given(st.binary(max_size=200))
def test_any_octets_are_malformed(raw: bytes) -> None:
    with pytest.raises(Malformed):
        parse_crl(raw)


@cache
def _sample(pki: MakePki) -> bytes:
    return _crl(pki(KeyKind.P_256), ENTRIES)


@given(data=st.data())
@settings(max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_mutated_lists_are_refused_or_read_and_then_do_not_verify(data: st.DataObject, pki: MakePki) -> None:
    raw = bytearray(_sample(pki))
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    if bytes(raw) == _sample(pki):
        return
    with suppress(Malformed):
        crl: Crl = parse_crl(bytes(raw))
        with pytest.raises(Malformed):
            verify_signed(crl.der, pki(KeyKind.P_256).root.public_key)
