"""The audit chain: what was changed, dropped or cut off is found, and where."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ca.audit import GENESIS, Chain, Draft, checkpoint_message, link, verify
from ca.model import AuditEntry
from pkix.algorithms import KeyKind
from pkix.errors import Malformed
from pkix.privatekey import generate

KEY = generate(KeyKind.P_256)
KEYS = {"audit": KEY.public_key}
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(st.characters(codec="utf-8")),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(st.characters(codec="utf-8")), inner, max_size=3),
    max_leaves=5,
)


def chain_of(length: int) -> list[AuditEntry]:
    entries: list[AuditEntry] = []
    for number in range(length):
        draft = Draft(
            1_780_000_000 + number, "op:ana", "certificate.revoked", f"ecc-issuing/{number:x}", {"reason": "superseded", "id": number}
        )
        entries.append(link(entries[-1] if entries else None, draft))
    return entries


def checkpoint_at(entry: AuditEntry) -> tuple[int, bytes, str, bytes]:
    return entry.seq, entry.digest, "audit", KEY.sign(checkpoint_message(entry.seq, entry.digest))


def test_digest_is_what_anybody_can_compute() -> None:
    first, second = chain_of(2)
    said = {
        "action": "certificate.revoked",
        "actor": "op:ana",
        "at": 1_780_000_001,
        "detail": {"id": 1, "reason": "superseded"},
        "prev": first.digest.hex(),
        "seq": 2,
        "subject": "ecc-issuing/1",
    }
    assert second.digest == hashlib.sha256(json.dumps(said, sort_keys=True, separators=(",", ":")).encode()).digest()
    said |= {"at": 1_780_000_000, "detail": {"id": 0, "reason": "superseded"}, "prev": "00" * 32, "seq": 1, "subject": "ecc-issuing/0"}
    assert first.digest == hashlib.sha256(json.dumps(said, sort_keys=True, separators=(",", ":")).encode()).digest()
    assert bytes(32) == GENESIS


def test_whole_chain_holds() -> None:
    entries = chain_of(9)
    assert verify(entries) is None
    assert verify([]) is None
    assert verify(entries, [checkpoint_at(entries[3]), checkpoint_at(entries[8])], KEYS) is None


@pytest.mark.parametrize("number", [1, 5, 9])
@pytest.mark.parametrize(
    "change",
    [
        {"at": datetime(2020, 1, 1, tzinfo=UTC)},
        {"actor": "op:bob"},
        {"action": "certificate.issued"},
        {"subject": "ecc-issuing/ff"},
        {"detail": {"reason": "keyCompromise"}},
        {"digest": bytes(32)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_changed_entry_is_named(number: int, change: dict[str, object]) -> None:
    entries = chain_of(9)
    entries[number - 1] = replace(entries[number - 1], **change)  # type: ignore[arg-type]
    flaw = verify(entries)
    assert flaw is not None
    assert flaw.seq == number
    assert f"Audit entry {number}" in flaw.text


@pytest.mark.parametrize("number", [1, 5])
def test_dropped_entry_is_named(number: int) -> None:
    entries = chain_of(9)
    del entries[number - 1]
    flaw = verify(entries)
    assert flaw is not None
    assert flaw.seq == number
    assert "missing" in flaw.text


def test_renumbered_chain_after_a_drop_is_found() -> None:
    entries = chain_of(9)
    entries = entries[:4] + [replace(entry, seq=entry.seq - 1) for entry in entries[5:]]
    flaw = verify(entries)
    assert flaw is not None
    assert flaw.seq == 5


def test_truncation_shows_against_a_checkpoint_only() -> None:
    entries = chain_of(9)
    assert verify(entries[:6]) is None
    flaw = verify(entries[:6], [checkpoint_at(entries[3]), checkpoint_at(entries[8])], KEYS)
    assert flaw is not None
    assert flaw.seq == 7
    assert "missing" in flaw.text


def test_rewritten_chain_does_not_fit_its_checkpoint() -> None:
    entries, other = chain_of(9), chain_of(9)
    rewritten: list[AuditEntry] = []
    for entry in other:
        actor = "op:mallory" if entry.seq == 4 else entry.actor
        draft = Draft(int(entry.at.timestamp()), actor, entry.action, entry.subject, entry.detail)
        rewritten.append(link(rewritten[-1] if rewritten else None, draft))
    assert verify(rewritten) is None
    flaw = verify(rewritten, [checkpoint_at(entries[6])], KEYS)
    assert flaw is not None
    assert flaw.seq == 7


def test_checkpoint_must_be_signed_by_a_known_key() -> None:
    entries = chain_of(3)
    seq, digest, _, signature = checkpoint_at(entries[1])
    forged = generate(KeyKind.P_256).sign(checkpoint_message(seq, digest))
    for checkpoint in ((seq, digest, "audit", forged), (seq, digest, "other", signature)):
        flaw = verify(entries, [checkpoint], KEYS)
        assert flaw is not None
        assert flaw.seq == 2


def test_details_without_canonical_form_are_refused() -> None:
    for value in (b"octets", "\ud800", {"a": object()}, float("nan")):
        with pytest.raises(Malformed):
            link(None, Draft(0, "a", "b", "c", {"value": value}))


@given(st.dictionaries(st.text(st.characters(codec="utf-8")), VALUES, max_size=4))
def test_details_survive_storage_as_json(detail: dict[str, object]) -> None:
    entry = link(None, Draft(0, "a", "b", "c", detail))
    read = replace(entry, detail=json.loads(json.dumps(detail, ensure_ascii=False)))
    chain = Chain()
    assert chain.feed(read) is None
    assert chain.length == 1
