"""The audit chain: each entry's digest covers the entry and the digest before it. Pure; the store keeps the entries.

    entry = link(head, draft)                     # head: the last AuditEntry, or None
    flaw = verify(entries, checkpoints, {"audit": public_key})

digest = SHA-256 of the canonical JSON (keys sorted, no spaces, UTF-8) of ``{seq, at, actor, action, subject, detail, prev}``, with ``at``
in seconds since 1970 and ``prev`` in hexadecimal. ``seq`` counts from 1; ``prev`` of the first is 32 zero octets. What was cut off the
end shows only against a checkpoint: a signed ``(seq, digest)`` that was kept. Keep checkpoints on another machine as well: who can
rewrite the database can drop those in it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from ca.model import AuditEntry
from pkix.algorithms import PublicKey
from pkix.errors import BadSignature, Malformed

GENESIS = bytes(32)

Checkpoint = tuple[int, bytes, str, bytes]
"""seq, digest, reference of the key, signature over ``checkpoint_message(seq, digest)``."""


@dataclass(frozen=True, slots=True)
class Draft:
    """An entry before it has its place in the chain. ``detail``: JSON values."""

    at: int
    actor: str
    action: str
    subject: str
    detail: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Flaw:
    """The first place where the chain does not hold: entry ``seq``, and what is wrong with it."""

    seq: int
    text: str


def canonical(value: Mapping[str, object]) -> str:
    """Canonical JSON. Raises Malformed for what has none (octets, NaN, lone surrogates)."""
    try:
        text = _encode(value)
        text.encode()
    except (TypeError, ValueError) as error:  # UnicodeEncodeError is a ValueError
        raise Malformed("The details of an audit entry must be text, numbers, booleans, lists and mappings of those.") from error
    return text


_encode = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode


def digest_of(seq: int, draft: Draft, prev: bytes) -> bytes:
    """The digest (32 octets) of the entry ``seq`` that says ``draft`` after the digest ``prev``."""
    fields = {
        "seq": seq,
        "at": draft.at,
        "actor": draft.actor,
        "action": draft.action,
        "subject": draft.subject,
        "detail": draft.detail,
        "prev": prev.hex(),
    }
    return hashlib.sha256(canonical(fields).encode()).digest()


def link(head: AuditEntry | None, draft: Draft) -> AuditEntry:
    """The entry that follows ``head`` (None: the chain is empty) and says ``draft``."""
    seq, prev = (head.seq + 1, head.digest) if head else (1, GENESIS)
    at = datetime.fromtimestamp(draft.at, UTC)
    return AuditEntry(seq, at, draft.actor, draft.action, draft.subject, draft.detail, digest_of(seq, draft, prev))


def checkpoint_message(seq: int, digest: bytes) -> bytes:
    """The octets that a checkpoint's signature is over."""
    return canonical({"audit-checkpoint": 1, "seq": seq, "digest": digest.hex()}).encode()


class Chain:
    """Verifies entries as they come, in order, with flat memory.

    ``feed`` each, then ``finish``; both return the first flaw or None. After a flaw there is nothing more to learn: stop.
    """

    def __init__(self, checkpoints: Sequence[Checkpoint] = (), public_keys: Mapping[str, PublicKey] | None = None) -> None:
        self._seq, self._digest = 0, GENESIS
        self._checkpoints: dict[int, list[Checkpoint]] = {}
        for checkpoint in checkpoints:
            self._checkpoints.setdefault(checkpoint[0], []).append(checkpoint)
        self._keys = public_keys or {}

    @property
    def length(self) -> int:
        """How many entries held so far."""
        return self._seq

    def feed(self, entry: AuditEntry) -> Flaw | None:
        """Takes the next entry."""
        expected = self._seq + 1
        if entry.seq != expected:
            return Flaw(expected, f"Audit entry {expected} is missing; {entry.seq} came in its place.")
        draft = Draft(int(entry.at.timestamp()), entry.actor, entry.action, entry.subject, entry.detail)
        if digest_of(entry.seq, draft, self._digest) != entry.digest:
            return Flaw(entry.seq, f"Audit entry {entry.seq}, or the one before it, is not what was written: its digest does not fit.")
        self._seq, self._digest = entry.seq, entry.digest
        for checkpoint in self._checkpoints.pop(entry.seq, ()):
            if (flaw := self._check(checkpoint)) is not None:
                return flaw
        return None

    def finish(self) -> Flaw | None:
        """Says whether entries that a checkpoint covers are missing at the end."""
        if not self._checkpoints:
            return None
        last = max(self._checkpoints)
        return Flaw(self._seq + 1, f"Audit entry {self._seq + 1} is missing: a checkpoint was signed over {last} entries.")

    def _check(self, checkpoint: Checkpoint) -> Flaw | None:
        seq, digest, key, signature = checkpoint
        if digest != self._digest:
            return Flaw(seq, f"Audit entry {seq} is not the one that the checkpoint by {key} was signed over.")
        if key not in self._keys:
            return Flaw(seq, f"The checkpoint over audit entry {seq} was signed with {key}, whose public key is not known.")
        try:
            self._keys[key].verify(signature, checkpoint_message(seq, digest))
        except BadSignature:
            return Flaw(seq, f"The signature of {key} on the checkpoint over audit entry {seq} does not verify.")
        return None


def verify(
    entries: Iterable[AuditEntry], checkpoints: Sequence[Checkpoint] = (), public_keys: Mapping[str, PublicKey] | None = None
) -> Flaw | None:
    """Verifies a whole chain from its first entry on.

    Args:
        entries: all of them, ascending.
        checkpoints: signed heads; also those kept elsewhere.
        public_keys: by key reference, for the checkpoints' signatures.

    Returns:
        The first flaw (an entry changed, dropped, or cut off that a checkpoint covers), or None if all holds.
    """
    chain = Chain(checkpoints, public_keys)
    for entry in entries:
        if (flaw := chain.feed(entry)) is not None:
            return flaw
    return chain.finish()
