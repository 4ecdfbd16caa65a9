"""Status on disk: it stands in for sources that are away, within its own bounds, and cannot be emptied from outside."""

from __future__ import annotations

import asyncio
import os
import time
from datetime import timedelta

import pytest

from ironroot.validator import kept
from ironroot.validator.kept import KeptFetch
from pkix.crl import CrlEntry
from pkix.errors import IronrootError, Refused, Unavailable
from pkix.ocsp import build_request, cert_id
from validate import Policy, anchors, validate
from validate.fetched import Fetched
from validate.status import Revocation

OCSP, CRL = "http://pki/ocsp", "http://pki/issuing.crl"


class Wire:
    """A network: answers by URL and body; octets, an error, or None for no answer ever."""

    def __init__(self) -> None:
        self.answers: dict[object, bytes | IronrootError | None] = {}
        self.asked: list[str] = []

    async def fetch(self, url: str, body: bytes = b"", _content_type: str = "") -> Fetched:
        self.asked.append(url)
        answer = self.answers.get((url, body) if (url, body) in self.answers else url, Unavailable("gone"))
        if answer is None:
            await asyncio.Event().wait()
        if isinstance(answer, IronrootError):
            raise answer
        assert answer is not None
        return Fetched(answer, 0.0)

    async def close(self) -> None: ...


@pytest.fixture
def wire() -> Wire:
    return Wire()


@pytest.fixture
def plant(pki):
    return pki.plant(url="http://pki")


@pytest.fixture
def opened(wire, plant, tmp_path):
    """A new memory of the same disk, as after a restart."""
    return lambda: KeptFetch(wire, tmp_path, authorities=lambda: [plant.root.certificate, plant.issuing.certificate])


def got(fetch: KeptFetch, url: str, body: bytes = b"") -> bytes:
    async def work() -> bytes:
        try:
            return (await fetch.fetch(url, body, "application/ocsp-request" if body else "")).body
        finally:
            await fetch.close()

    return asyncio.run(work())


def question(plant, about=None) -> bytes:
    return build_request([cert_id("sha1", plant.issuing.certificate, (about or plant.device).certificate.serial)])


def test_it_survives_a_restart(wire, plant, opened, tmp_path) -> None:
    ask = question(plant)
    wire.answers = {CRL: plant.issuing.crl(), (OCSP, ask): plant.issuing.ocsp(plant.device, signer=plant.signer)}
    before = got(opened(), CRL), got(opened(), OCSP, ask)
    wire.answers = {}
    assert (got(opened(), CRL), got(opened(), OCSP, ask)) == before
    assert wire.asked == [CRL, OCSP] * 2  # the network first, always
    assert {file.stat().st_mode & 0o777 for file in tmp_path.iterdir()} == {0o600}
    with pytest.raises(Unavailable, match="gone"):
        got(opened(), "http://pki/other.crl")


def test_what_is_newer_takes_its_place_and_nothing_else_does(pki, wire, plant, opened) -> None:
    first, newer = plant.issuing.crl(), plant.issuing.crl(this_update=pki.NOW + timedelta(hours=1), number=2)
    stranger = pki.issue(None, "p-256 issuing", ca=True, key_label="stranger")
    wire.answers = {CRL: first}
    got(opened(), CRL)
    for hostile in (
        b"",
        b"junk",
        stranger.crl(this_update=pki.NOW + timedelta(hours=2), number=9),  # the same name, another key
        plant.root.crl(this_update=pki.NOW + timedelta(hours=2)),  # somebody whom we know, about something else
        plant.issuing.crl(this_update=pki.NOW - timedelta(hours=1)),  # older
    ):
        wire.answers = {CRL: hostile}
        assert got(opened(), CRL) == hostile  # judging is for others
        wire.answers = {}
        assert got(opened(), CRL) == first
    wire.answers = {CRL: newer}
    got(opened(), CRL)
    wire.answers = {}
    assert got(opened(), CRL) == newer


def test_an_answer_about_another_is_not_kept(pki, wire, plant, opened) -> None:
    other = pki.issue(plant.issuing, "plc-8")
    right, ask = plant.issuing.ocsp(plant.device), question(plant)
    wire.answers = {OCSP: right}
    got(opened(), OCSP, ask)
    later = pki.NOW + timedelta(minutes=5)
    for hostile in (
        plant.issuing.ocsp(other, this_update=later),
        plant.root.ocsp(plant.device, this_update=later),
        b"\x30\x03\x0a\x01\x03",
    ):
        wire.answers = {OCSP: hostile}
        got(opened(), OCSP, ask)
        wire.answers = {}
        assert got(opened(), OCSP, ask) == right


def test_a_refusal_is_no_failure(wire, plant, opened) -> None:
    """What may not be asked (any more) has nothing to say from the disk either."""
    wire.answers = {CRL: plant.issuing.crl()}
    got(opened(), CRL)
    wire.answers = {CRL: Refused("not allowed")}
    with pytest.raises(Refused):
        got(opened(), CRL)


def test_a_source_that_hangs_is_not_waited_for(wire, plant, opened, monkeypatch) -> None:
    wire.answers = {CRL: plant.issuing.crl()}
    before = got(opened(), CRL)
    wire.answers = {CRL: None}
    monkeypatch.setattr(kept, "PATIENCE", 0.05)
    assert got(opened(), CRL) == before


def test_old_files_go(wire, plant, opened, tmp_path) -> None:
    wire.answers = {CRL: plant.issuing.crl()}
    got(opened(), CRL)
    opened().forget()
    (file,) = tmp_path.iterdir()
    os.utime(file, (time.time() - kept.FORGET - 60,) * 2)
    opened().forget()
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_file_is_replaced(wire, plant, opened, tmp_path) -> None:
    wire.answers = {CRL: plant.issuing.crl()}
    before = got(opened(), CRL)
    (file,) = tmp_path.iterdir()
    file.write_bytes(bytes(100))
    got(opened(), CRL)
    wire.answers = {}
    assert got(opened(), CRL) == before


@pytest.mark.parametrize(
    ("later", "max_age", "code"),
    [
        (timedelta(hours=23), None, "good"),  # within nextUpdate
        (timedelta(hours=25), None, "no_status"),
        (timedelta(hours=3), timedelta(hours=4), "good"),  # within the staleness bound
        (timedelta(hours=5), timedelta(hours=4), "no_status"),
    ],
)
def test_the_ca_is_away_and_peers_are_judged_on(pki, wire, plant, opened, later, max_age, code) -> None:
    """After a restart, by what is on disk, until that is too old."""
    policy = Policy(anchors=anchors(plant.root.der), max_age=max_age)

    async def judged(now):
        status = Revocation(opened())
        try:
            return await validate([plant.device.der, plant.issuing.der], policy=policy, now=now, status=status)
        finally:
            await status.close()

    wire.answers = {CRL: plant.issuing.crl(), "http://pki/root.crl": plant.root.crl()}
    assert asyncio.run(judged(pki.NOW)).code == "good"
    wire.answers = {}
    result = asyncio.run(judged(pki.NOW + later))
    assert result.code == code, result.sentence()
    assert result.good is (code == "good")


def test_a_revocation_that_was_seen_stays_seen(pki, wire, plant, opened) -> None:
    policy = Policy(anchors=anchors(plant.root.der))

    async def judged():
        status = Revocation(opened())
        try:
            return await validate([plant.device.der, plant.issuing.der], policy=policy, now=pki.NOW, status=status)
        finally:
            await status.close()

    entry = CrlEntry(plant.device.certificate.serial, pki.NOW - timedelta(hours=1), 1)
    wire.answers = {CRL: plant.issuing.crl(entry, number=2), "http://pki/root.crl": plant.root.crl()}
    assert asyncio.run(judged()).code == "revoked"
    wire.answers = {}
    assert asyncio.run(judged()).code == "revoked"
