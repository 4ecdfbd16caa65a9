"""Authorities that got a successor, or whose key moved: what the store keeps of it, on both databases."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest

from ca.model import Authority, current
from ca.store_sql import SqlStore
from pkix import extensions
from pkix.algorithms import SIGNATURES, KeyKind
from pkix.certificate import assemble, build_tbs, parse_certificate
from pkix.errors import Conflict
from pkix.name import name
from pkix.privatekey import generate

P256 = SIGNATURES[KeyKind.P_256]


def authority(id: str, now: datetime, parent: Authority | None = None) -> Authority:
    """Signed by a key that nobody keeps; the store does not look at signatures."""
    key, subject = generate(KeyKind.P_256), name(("CN", id))
    tbs = build_tbs(
        serial=7,
        issuer=parent.certificate.subject if parent else subject,
        subject=subject,
        not_before=now,
        not_after=now + timedelta(days=9),
        public_key=key.public_key,
        signature=P256,
        extensions=[extensions.basic_constraints(True)],
    )
    certificate = parse_certificate(assemble(tbs, P256, key.sign(tbs)))
    return Authority(id, certificate, id, parent.id if parent else id, (certificate, *(parent.chain if parent else ())))


def test_who_issues_today_and_where_its_key_is(run: Any, drafts: Any) -> None:
    async def test(store: SqlStore) -> None:
        now = drafts.now
        root = authority("ecc-root", now)
        generations = [authority(id, now, root) for id in ("ecc-issuing", "ecc-issuing-g2", "ecc-issuing-g3")]
        for one in (root, *generations):
            await store.add_authority(one, now)
        assert current(await store.authorities(), "ecc-issuing") == "ecc-issuing"
        assert current(await store.authorities(), "unknown") == "unknown"
        with pytest.raises(Conflict):
            await store.supersede("unknown", "ecc-issuing-g2", now, actor="op")
        await store.supersede("ecc-issuing", "ecc-issuing-g2", now, actor="op")
        await store.supersede("ecc-issuing-g2", "ecc-issuing-g3", now, actor="op")
        with pytest.raises(Conflict, match="successor already"):
            await store.supersede("ecc-issuing", "ecc-issuing-g3", now, actor="op")
        found = await store.authorities()
        assert {current(found, one.id) for one in generations} == {"ecc-issuing-g3"}
        assert found["ecc-issuing"] == replace(generations[0], successor="ecc-issuing-g2")

        reference = "pkcs11:token=second;object=ecc-root?module-path=/lib/p11.so"
        await store.move_key(root, reference, now, actor="op")
        assert (await store.authorities())["ecc-root"] == replace(root, key=reference)
        with pytest.raises(Conflict, match="meanwhile"):  # whoever planned with the old reference plans again
            await store.move_key(root, "elsewhere", now, actor="op")
        entries = [entry async for entry in store.audit_entries()]
        assert [(entry.actor, entry.action, entry.subject, dict(entry.detail)) for entry in entries[4:]] == [
            ("op", "authority.superseded", "ecc-issuing", {"successor": "ecc-issuing-g2"}),
            ("op", "authority.superseded", "ecc-issuing-g2", {"successor": "ecc-issuing-g3"}),
            ("op", "authority.moved", "ecc-root", {"was": "ecc-root", "key": reference}),
        ]

    run(test)
