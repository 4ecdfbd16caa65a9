"""The compact index of a CRL says what the plain reader says; and long lists in a running event loop, within bounds."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pkix import der, extensions
from pkix.algorithms import SIGNATURES, KeyKind
from pkix.certificate import assemble
from pkix.crl import CrlEntry, TbsCrl, parse_crl
from pkix.crl_index import MAX_ENTRIES, index_crl
from pkix.errors import Malformed, TooLarge, Unsupported
from pkix.extensions import Extension
from validate import Policy, anchors, crl_load, validate
from validate.fetch import LOOPBACK, HttpFetcher
from validate.status import Revocation

WHEN = datetime(2026, 11, 23, 8, 0, 1, tzinfo=UTC)
REASONS = (0, 1, 2, 3, 4, 5, 6, 8, 9, 10)
moments = st.datetimes(datetime(1950, 1, 1), datetime(9999, 12, 31, 23, 59, 59)).map(lambda at: at.replace(microsecond=0, tzinfo=UTC))
# Numbers that end in the same octet meet in one bucket.
serials = st.integers(0, (1 << 159) - 1) | st.integers(0, 1 << 140).map(lambda high: high << 8 | 0x7F) | st.integers(0, 300)
entries = st.builds(CrlEntry, serials, moments, st.sampled_from(REASONS))


def listing(pki, listed, *, extra=(), number=1):
    """A CRL with these entries; its signature is nobody's."""
    issuer = pki.plant().issuing.certificate
    crl = TbsCrl(
        issuer=issuer.subject,
        signature=SIGNATURES[KeyKind.P_256],
        this_update=WHEN,
        next_update=WHEN + timedelta(days=1),
        number=number,
        authority_key_identifier=extensions.authority_key_identifier(issuer),
        extra=extra,
    )
    for entry in listed:
        crl.add(entry)
    return assemble(crl.finish(), SIGNATURES[KeyKind.P_256], bytes(64))


@given(listed=st.lists(entries, max_size=40, unique_by=lambda entry: entry.serial), absent=serials)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_finds_what_is_listed_and_nothing_else(pki, listed, absent):
    raw = listing(pki, listed)
    index, plain = index_crl(raw), parse_crl(raw)
    assert len(index.entries) == len(listed)
    for entry in listed:
        assert index.entries.find(entry.serial) == entry == plain.entries[entry.serial]
        assert index.entries.find(entry.serial, 1) is None
    assert (index.entries.find(absent) is None) is (absent not in plain.entries)
    assert index.entries.octets == 28 * len(listed)
    for name in ("issuer", "this_update", "next_update", "number", "aki", "algorithm", "signature"):
        assert getattr(index, name) == getattr(plain, name)
    assert raw[index.signed.start : index.signed.end] == plain.tbs


def test_numbers_that_no_list_can_hold_are_not_found(pki):
    index = index_crl(listing(pki, [CrlEntry(0x80, WHEN), CrlEntry(0, WHEN)]))
    assert index.entries.find(-0x80) is None
    assert index.entries.find(1 << 160) is None
    assert index.entries.find(0) == CrlEntry(0, WHEN)


def test_negative_numbers_do_not_revoke_positive_ones(pki):
    raw = listing(pki, [CrlEntry(0x1234, WHEN)]).replace(b"\x02\x02\x12\x34", b"\x02\x02\x92\x34")
    index = index_crl(raw)
    assert index.entries.find(0x9234) is None
    assert len(index.entries) == 1


@pytest.mark.parametrize(
    "other", [CrlEntry(9, WHEN - timedelta(days=1), 6), CrlEntry(9, WHEN - timedelta(days=1), 8), CrlEntry(9, WHEN, 4)]
)
def test_of_a_number_that_is_listed_twice_what_revokes_for_good_counts(pki, other):
    first = CrlEntry(9, WHEN - timedelta(hours=1), 4)
    for entries in ([first, other], [other, first]):
        assert index_crl(listing(pki, entries)).entries.find(9) == first


@pytest.mark.parametrize(
    "moment",
    [b"\x17\x0d261399000000Z", b"\x17\x0d261123240000Z", b"\x17\x0d261123006000Z", b"\x17\x0d26112300000aZ", b"\x17\x0d261123000000+"],
)
def test_moments_that_are_none_are_refused(pki, moment):
    raw = listing(pki, [CrlEntry(9, datetime(2026, 11, 1, tzinfo=UTC))])
    broken = raw.replace(b"\x17\x0d261101000000Z", moment)
    assert broken != raw
    for read in (index_crl, parse_crl):
        with pytest.raises(Malformed):
            read(broken)


@given(data=st.data())
@settings(max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_both_readers_take_and_refuse_the_same(pki, data):
    raw = bytearray(listing(pki, [CrlEntry(5, WHEN, 1), CrlEntry(1 << 100, WHEN + timedelta(days=9), 4), CrlEntry(0x80, WHEN)]))
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    plain = index = None
    try:
        plain = parse_crl(bytes(raw))
    except Malformed as error:
        plain = error
    try:
        index = index_crl(bytes(raw))
    except Malformed as error:
        index = error
    if isinstance(plain, Malformed):
        # The index also takes deltas and indirect lists.
        assert isinstance(index, Malformed) or isinstance(plain, Unsupported)
    elif not isinstance(index, Malformed):
        assert all(index.entries.find(serial) is not None for serial in plain.entries if serial >= 0)


def test_deltas_are_read_as_such(pki):
    assert index_crl(listing(pki, [])).base is None
    assert index_crl(listing(pki, [], extra=[Extension(extensions.DELTA_CRL_INDICATOR, True, der.integer(7))], number=9)).base == 7
    with pytest.raises(Malformed, match="not critical"):
        index_crl(listing(pki, [], extra=[Extension(extensions.DELTA_CRL_INDICATOR, False, der.integer(7))]))
    with pytest.raises(Unsupported, match=r"1\.2\.3\.4"):
        index_crl(listing(pki, [], extra=[Extension("1.2.3.4", True, der.null())]))


def test_more_than_is_taken_is_refused_as_such(pki):
    raw = listing(pki, [CrlEntry(serial, WHEN) for serial in range(100)])
    for limits in ({"max_octets": 1000}, {"max_entries": 99}):
        with pytest.raises(TooLarge):
            index_crl(raw, **limits)
    assert len(index_crl(raw, max_entries=100).entries) == 100
    assert MAX_ENTRIES >= 1_000_000


# --- long lists in use ---------------------------------------------------------------------------------------------


def signed_listing(party, count, revoked=()):
    crl = TbsCrl(
        issuer=party.certificate.subject,
        signature=SIGNATURES[party.key.kind],
        this_update=WHEN,
        next_update=WHEN + timedelta(days=1),
        number=1,
        authority_key_identifier=extensions.authority_key_identifier(party.certificate),
    )
    for at in range(count):
        crl.add(CrlEntry(0x50 << 120 | at * 7919, WHEN - timedelta(seconds=at), 4))
    for serial in revoked:
        crl.add(CrlEntry(serial, WHEN, 1))
    tbs = crl.finish()
    return assemble(tbs, SIGNATURES[party.key.kind], party.key.sign(tbs))


@pytest.mark.parametrize("kind", [KeyKind.P_256, KeyKind.SM2])
def test_a_long_list_is_read_aside_and_is_there_for_the_next_who_asks(pki, kind):
    """The first validation may be over before the list has come; nothing is fetched twice, and the event loop goes on turning."""

    async def run():
        async with pki.serving() as web:
            plant = pki.at(web.url, kind, ocsp=())
            other = pki.issue(plant.issuing, "other", kind, crl=(f"{web.url}/issuing.crl",))
            raw = signed_listing(plant.issuing, 20_000, revoked=[other.certificate.serial])
            assert len(raw) > crl_load.INLINE
            gate = asyncio.Event()

            async def slow(request):
                await gate.wait()
                return raw

            web.answers |= {"/root.crl": plant.root.crl(), "/issuing.crl": slow}
            status = Revocation(HttpFetcher(networks=LOOPBACK))
            short = Policy(anchors=anchors(plant.root.der), budget=timedelta(seconds=0.05))
            long = Policy(anchors=anchors(plant.root.der), budget=timedelta(seconds=60))

            async def judged(party, policy):
                return await validate((party.der, plant.issuing.der), policy=policy, now=pki.NOW, status=status)

            try:
                assert (await judged(plant.device, short)).code == "no_status"
                gate.set()
                assert (await judged(plant.device, long)).good
                assert (await judged(other, long)).code == "revoked"
                assert web.seen.count("GET /issuing.crl") == 1
            finally:
                await status.close()

    asyncio.run(run())


def test_a_list_over_the_limit_is_refused_in_words(pki, monkeypatch):
    plant = pki.plant()
    raw = plant.issuing.crl(*(CrlEntry(serial, WHEN) for serial in range(50)))
    monkeypatch.setattr(crl_load, "index_crl", lambda octets: index_crl(octets, max_entries=10))
    result = plant.validate(status="offline", more={"status": Revocation(), "crls": [plant.root.crl(), raw]})
    assert result.code == "no_status"
    assert "more than 10 entries" in result.sentence()


def test_a_long_list_that_was_handed_in(pki):
    plant = pki.plant()
    raw = signed_listing(plant.issuing, 20_000, revoked=[plant.device.certificate.serial])
    status = Revocation()
    for _ in range(2):
        result = plant.validate(status="offline", more={"status": status, "crls": [plant.root.crl(), raw]})
        assert result.code == "revoked"


@pytest.mark.nightly
def test_a_list_of_a_hundred_megabytes(pki, tmp_path):
    """In a process of its own: the memory at its peak, and how long the event loop stood still at most, are bounded."""
    import subprocess
    import sys

    plant = pki.plant()
    (tmp_path / "big.crl").write_bytes(signed_listing(plant.issuing, 2_300_000))
    (tmp_path / "issuer.der").write_bytes(plant.issuing.der)
    program = """
import asyncio, resource, sys, time
from pkix.certificate import parse_certificate
from validate.crl_load import aside, read
raw, issuer = open(sys.argv[1], "rb").read(), parse_certificate(open(sys.argv[2], "rb").read())
async def run():
    work, worst, last = asyncio.ensure_future(aside(read, raw)), 0.0, time.perf_counter()
    while not work.done():
        await asyncio.sleep(0.001)
        now = time.perf_counter(); worst = max(worst, now - last); last = now
    crl = work.result()
    assert await aside(crl.check, issuer) is None
    print(len(raw), len(crl.index.entries), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024, round(worst * 1000))
asyncio.run(run())
"""
    done = subprocess.run(
        [sys.executable, "-c", program, "big.crl", "issuer.der"], cwd=tmp_path, capture_output=True, text=True, check=True, timeout=120
    )
    octets, count, megabytes, _ = map(int, done.stdout.split())
    assert octets > 100_000_000
    assert count == 2_300_000
    assert megabytes < 600
