"""A small PKI of every kind of key, and the openssl program as second opinion."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path

import pytest

from pkix import extensions as ext
from pkix.algorithms import SIGNATURES, KeyKind
from pkix.certificate import Certificate, assemble, build_tbs, parse_certificate
from pkix.extensions import Extension
from pkix.name import Name, name
from pkix.privatekey import PrivateKey, generate

NOW = datetime.now(UTC).replace(microsecond=0)  # openssl asks the clock of the machine


@dataclass(frozen=True)
class Pki:
    """A self-signed authority and what it issues."""

    key: PrivateKey
    root: Certificate
    now: datetime = NOW

    @property
    def kind(self) -> KeyKind:
        return self.key.kind

    def issue(
        self,
        extensions: Sequence[Extension] = (),
        *,
        key: PrivateKey | None = None,
        subject: Name | None = None,
        serial: int = 0x4A_11CE,
        not_before: datetime = NOW - timedelta(hours=1),
        not_after: datetime = NOW + timedelta(days=90),
    ) -> Certificate:
        """A certificate for ``key`` (the authority's own if None) with exactly ``extensions``."""
        tbs = build_tbs(
            serial=serial,
            issuer=self.root.subject,
            subject=subject or name(("CN", "plc-7"), ("serialNumber", "plc-7")),
            not_before=not_before,
            not_after=not_after,
            public_key=(key or self.key).public_key,
            signature=SIGNATURES[self.kind],
            extensions=extensions,
        )
        return parse_certificate(assemble(tbs, SIGNATURES[self.kind], self.key.sign(tbs)))


@cache
def _pki(kind: KeyKind) -> Pki:
    key, subject = generate(kind), name(("C", "CN"), ("O", "Plant"), ("CN", f"Root {kind}"))
    tbs = build_tbs(
        serial=0x40_0000_0001,
        issuer=subject,
        subject=subject,
        not_before=NOW - timedelta(days=1),
        not_after=NOW + timedelta(days=3650),
        public_key=key.public_key,
        signature=SIGNATURES[kind],
        extensions=[
            ext.basic_constraints(True),
            ext.key_usage("keyCertSign", "cRLSign", "digitalSignature"),
            ext.subject_key_identifier(key.public_key),
        ],
    )
    return Pki(key, parse_certificate(assemble(tbs, SIGNATURES[kind], key.sign(tbs))))


@pytest.fixture(scope="session")
def pki() -> Callable[[KeyKind], Pki]:
    """``pki(kind)``: the authority of that kind, made once."""
    return _pki


@pytest.fixture
def openssl(tmp_path: Path) -> Callable[..., str]:
    """``openssl("x509", "-text", …, ok=True)``: runs the program in ``tmp_path``, returns all that it printed."""

    def run(*arguments: str, ok: bool | None = True) -> str:
        done = subprocess.run(["openssl", *arguments], cwd=tmp_path, capture_output=True, timeout=60, check=False)
        text = (done.stdout + done.stderr).decode(errors="replace")
        if ok is not None:
            assert (done.returncode == 0) is ok, f"openssl {' '.join(arguments)}: {done.returncode}\n{text}"
        return text

    return run
