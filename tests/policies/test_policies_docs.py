"""docs/profiles.md: its examples load, its tables are complete."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from pkix.errors import Malformed
from policies.fleet_rules import FLEET_RULES, NAMES_FROM_CSR
from policies.lint import READING_RULES, RULES
from policies.loader import load
from policies.model import Fleet, IdevidTrust, Profile, Renewal
from policies.rules import PROFILE_RULES

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs/profiles.md").read_text()


def section(title: str) -> str:
    return re.split(r"^## ", TEXT.partition(f"## {title}\n")[2], maxsplit=1, flags=re.M)[0]


def first_column(title: str) -> list[str]:
    return [name for row in re.findall(r"^\| (`[^|]*) \|", section(title), re.M) for name in re.findall(r"`([^`]+)`", row)]


def test_examples_load(home: SimpleNamespace) -> None:
    examples = re.findall(r"```toml\n# (\S+)\n(.*?)```", TEXT, re.S)
    assert len(examples) >= 5
    for file, content in examples:
        (home.path / file).write_text(content)
    policies = load(home.path)
    for file, _ in examples:
        folder, _, name = file.removesuffix(".toml").partition("/")
        assert name in (policies.profiles if folder == "profiles" else policies.fleets)


def test_tables_name_every_key() -> None:
    assert set(first_column("Keys of a profile")) == set(Profile.model_fields) - {"id"}
    nested = {f"idevid.{key}" for key in IdevidTrust.model_fields} | {f"renew.{key}" for key in Renewal.model_fields}
    assert set(first_column("Keys of a fleet")) == set(Fleet.model_fields) - {"id", "idevid", "renew"} | nested


def test_tables_name_every_rule() -> None:
    raised = set(re.findall(r"\[(file\.[a-z-]+)\]", (ROOT / "policies/loader.py").read_text()))
    schema = {f"{room}.{what}" for room in ("profile", "fleet") for what in ("unknown-key", "missing-key", "value")}
    assert sorted(first_column("Rules")) == sorted({*PROFILE_RULES, *FLEET_RULES, NAMES_FROM_CSR} | raised | schema)
    assert sorted(first_column("Lint rules")) == sorted({*RULES, *READING_RULES})


def test_errors_shown_are_the_real_ones(home: SimpleNamespace) -> None:
    home.set("profiles/ecc-device", extended_key_usage='["anyExtendedKeyUsage"]')
    home.set("fleets/ecc-devices", keys='["p-256", "sm2"]')
    with pytest.raises(Malformed) as caught:
        load(home.path)
    assert str(caught.value) in TEXT
