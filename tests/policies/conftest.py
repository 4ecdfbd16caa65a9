"""A root, an issuing authority and keys of each family, made with the default profiles, for the tests of this room."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import pytest

from pkix.algorithms import SIGNATURES, KeyKind
from pkix.certificate import Certificate, assemble, parse_certificate
from pkix.privatekey import generate
from policies.compile import Built, Compiled, Urls
from policies.loader import DEFAULTS, Policies, load

NOW = datetime(2026, 11, 23, 12, 0, 0, tzinfo=UTC)
URLS = Urls("http://pki.test/crl/a.crl", "http://pki.test/ocsp", "http://pki.test/aia/a.cer")


def new_serial() -> int:
    return 1 << 126 | secrets.randbits(126)


class World:
    """One family's hierarchy. ``leaf_key`` is a device's."""

    def __init__(self, family: str) -> None:
        self.family = family
        self.kind = KeyKind.SM2 if family == "sm2" else KeyKind.P_256
        self.signature = SIGNATURES[self.kind]
        self.policies: Policies = load(DEFAULTS)
        self.now, self.urls = NOW, URLS
        self.root_key, self.issuing_key, self.leaf_key = (generate(self.kind) for _ in range(3))
        self.root = self._authority("root", self.root_key, None)
        self.issuing = self._authority("issuing", self.issuing_key, self.root)

    def compiled(self, profile: str, issuer: Certificate | None = None) -> Compiled:
        chosen = self.policies.profiles[f"{self.family}-{profile}"]
        above = None if chosen.kind == "root" else issuer or (self.root if chosen.kind == "issuing" else self.issuing)
        return Compiled(chosen, above, self.signature, self.urls, "Example Plant", "CN")

    def build(self, profile: str, *, device: str = "press-7", names: Sequence[str] = (), now: datetime | None = None) -> Built:
        return self.compiled(profile).tbs(
            serial=new_serial(),
            now=now or self.now,
            subject_key=self.leaf_key.public_key,
            fleet=f"{self.family}-{profile}s",
            device=device,
            names=names,
        )

    def signed(self, profile: str, *, device: str = "press-7", names: Sequence[str] = ()) -> Certificate:
        built = self.build(profile, device=device, names=names)
        return self._sign(built, self.root_key if profile == "issuing" else self.issuing_key)

    def _authority(self, profile: str, key: object, issuer: Certificate | None) -> Certificate:
        built = self.compiled(profile, issuer).tbs(
            serial=new_serial(),
            now=self.now,
            subject_key=key.public_key,  # type: ignore[attr-defined]
            fleet="",
            device=f"{self.family}-{profile}",
        )
        return self._sign(built, self.root_key)

    def _sign(self, built: Built, key: object) -> Certificate:
        return parse_certificate(assemble(built.der, self.signature, key.sign(built.der)))  # type: ignore[attr-defined]


_world = cache(World)


@pytest.fixture(scope="session")
def world() -> Callable[[str], World]:
    """``world("ecc")``, ``world("sm2")``: made once."""
    return _world


@pytest.fixture
def home(tmp_path: Path) -> SimpleNamespace:
    """A copy of the default policies that can be edited: ``home.set("profiles/ecc-device", key="raw TOML")``; None removes a key."""
    for path in DEFAULTS.glob("*/*.toml"):
        target = tmp_path / path.parent.name / path.name
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(path.read_bytes())

    def set_(file: str, **edits: str | None) -> None:
        path = tmp_path / f"{file}.toml"
        lines = path.read_text().splitlines()
        for key, value in edits.items():
            # Keys of tables are written table__key; no two of the defaults have a key of the same name.
            table, _, name = key.rpartition("__")
            at = [number for number, line in enumerate(lines) if line.startswith(f"{name} =")]
            for number in at:
                lines[number] = "" if value is None else f"{name} = {value}"
            if value is not None and not at:
                lines.insert(lines.index(f"[{table}]") + 1 if table else 0, f"{name} = {value}")
        path.write_text("\n".join(lines) + "\n")

    return SimpleNamespace(path=tmp_path, set=set_)
