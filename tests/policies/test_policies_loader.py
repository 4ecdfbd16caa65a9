"""The loader: the defaults load, every unsafe policy is refused by the rule that is meant for it, nothing but Malformed comes out."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
import tomllib
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pkix.algorithms import KeyKind
from pkix.errors import Malformed
from policies.fleet_rules import FLEET_RULES, NAMES_FROM_CSR
from policies.loader import DEFAULTS, load
from policies.model import Fleet, Profile
from policies.rules import PROFILE_RULES

DEVICE, PLATFORM, SM2_DEVICE = "profiles/ecc-device", "profiles/ecc-platform", "profiles/sm2-device"
ROOT, ISSUING, OCSP = "profiles/ecc-root", "profiles/ecc-issuing", "profiles/ecc-ocsp"
DEVICES, PLATFORMS = "fleets/ecc-devices", "fleets/ecc-platforms"
URI = "uri:urn:ironroot:device:{fleet}:{device}"


def test_default_fleets_and_profiles() -> None:
    policies = load(DEFAULTS)
    assert set(policies.fleets) == {"ecc-devices", "ecc-platforms", "sm2-devices", "sm2-platforms"}
    assert policies.fleets["ecc-devices"].keys == (KeyKind.P_256, KeyKind.P_384)
    assert policies.fleets["sm2-platforms"].keys == (KeyKind.SM2,)
    for family in ("ecc", "sm2"):
        kinds = {name.removeprefix(f"{family}-"): policies.profiles[name].kind for name in policies.profiles if name.startswith(family)}
        assert kinds == {"root": "root", "issuing": "issuing", "ocsp": "ocsp-signer", "device": "leaf", "platform": "leaf"}
        fleet = policies.fleets[f"{family}-devices"]
        assert (fleet.authority, fleet.profile, fleet.family) == (f"{family}-issuing", f"{family}-device", family)
        assert fleet.authenticators == ("token", "idevid")
        assert policies.fleets[f"{family}-platforms"].authenticators == ("token",)


def test_default_lifetimes() -> None:
    days = {name: profile.validity / timedelta(days=1) for name, profile in load(DEFAULTS).profiles.items()}
    for family in ("ecc", "sm2"):
        found = [days[f"{family}-{kind}"] for kind in ("root", "issuing", "ocsp", "device", "platform")]
        assert found == [20 * 365, 10 * 365, 30, 90, 90]


# Rule, file, edits (None removes the key), the key that the complaint names.
UNSAFE: list[tuple[str, str, dict[str, str | None], str]] = [
    ("profile.placeholder", DEVICE, {"subject": '[{ CN = "{serial}-{device}" }]'}, "subject"),
    ("profile.placeholder", DEVICE, {"subject": '[{ CN = "{device" }, { OU = "{device}" }]'}, "subject"),
    ("profile.placeholder", DEVICE, {"san": f'["{URI}", "uri:urn:x:{{device}}:{{DEVICE}}"]'}, "san"),
    ("profile.placeholder", DEVICE, {"subject": '[{ CN = "{device}}" }]'}, "subject"),
    ("profile.placeholder", OCSP, {"subject": '[{ CN = "{device}" }, { OU = "{fleet}" }]'}, "subject"),
    ("profile.subject", DEVICE, {"subject": '[{ CN = "{device}" }, { emailAddress = "a@b" }]'}, "subject"),
    ("profile.subject", DEVICE, {"subject": '[{ CN = "{device}" }, { CN = "admin" }]'}, "subject"),
    ("profile.subject", DEVICE, {"subject": '[{ CN = "{device}" }, { O = "" }]'}, "subject"),
    ("profile.subject", DEVICE, {"subject": '[{ CN = "device" }]'}, "subject"),
    ("profile.subject", DEVICE, {"subject": "[]"}, "subject"),
    ("profile.subject", ISSUING, {"subject": "[]"}, "subject"),
    ("profile.no-identity", DEVICE, {"san": None}, "san"),
    ("profile.no-identity", DEVICE, {"san": f'["{URI}", "uri:urn:ironroot:device:sm2-devices:{{device}}"]'}, "san"),
    ("profile.no-identity", DEVICE, {"san": f'["{URI}", "uri:URN:ironroot:device:{{device}}"]'}, "san"),
    ("profile.san", DEVICE, {"san": f'["{URI}", "{{device}}.plant"]'}, "san"),
    ("profile.san", DEVICE, {"san": f'["{URI}", "upn:{{device}}"]'}, "san"),
    ("profile.san", DEVICE, {"san": f'["{URI}", "uri:urn:{{organization}}:{{device}}"]'}, "san"),
    ("profile.san", ISSUING, {"san": '["dns:{device}"]'}, "san"),
    ("profile.san", OCSP, {"names": '["dns"]'}, "san"),
    ("profile.san", OCSP, {"san": '["dns:{device}"]'}, "san"),
    ("profile.shared-name", PLATFORM, {"san": f'["{URI}", "dns:gateway.plant"]'}, "san"),
    ("profile.wildcard", PLATFORM, {"san": f'["{URI}", "dns:*.{{device}}.plant"]'}, "san"),
    ("profile.no-eku", DEVICE, {"extended_key_usage": "[]"}, "extended_key_usage"),
    ("profile.no-eku", DEVICE, {"extended_key_usage": None}, "extended_key_usage"),
    ("profile.any-purpose", DEVICE, {"extended_key_usage": '["clientAuth", "anyExtendedKeyUsage"]'}, "extended_key_usage"),
    ("profile.any-purpose", DEVICE, {"extended_key_usage": '["2.5.29.37.0"]'}, "extended_key_usage"),
    ("profile.ca-purpose", ISSUING, {"extended_key_usage": '["serverAuth"]'}, "extended_key_usage"),
    ("profile.ocsp-signing", DEVICE, {"extended_key_usage": '["clientAuth", "OCSPSigning"]'}, "extended_key_usage"),
    ("profile.ocsp-signing", DEVICE, {"extended_key_usage": '["1.3.6.1.5.5.7.3.9"]'}, "extended_key_usage"),
    ("profile.ocsp-signer", OCSP, {"extended_key_usage": '["OCSPSigning", "clientAuth"]'}, "extended_key_usage"),
    ("profile.ocsp-signer", OCSP, {"key_usage": '["digitalSignature", "keyAgreement"]'}, "key_usage"),
    ("profile.agent-purpose", DEVICE, {"extended_key_usage": '["clientAuth", "1.3.6.1.4.1.311.20.2.1"]'}, "extended_key_usage"),
    ("profile.agent-purpose", DEVICE, {"extended_key_usage": '["cmcRA"]'}, "extended_key_usage"),
    ("profile.mixed-purpose", DEVICE, {"extended_key_usage": '["clientAuth", "codeSigning"]'}, "extended_key_usage"),
    ("profile.mixed-purpose", DEVICE, {"extended_key_usage": '["codeSigning", "timeStamping"]'}, "extended_key_usage"),
    ("profile.key-usage", DEVICE, {"key_usage": "[]", "critical": "[]"}, "key_usage"),
    ("profile.key-usage", DEVICE, {"key_usage": '["digitalSignature", "encipherOnly"]'}, "key_usage"),
    ("profile.mixed-sm2-usage", SM2_DEVICE, {"key_usage": '["digitalSignature", "keyEncipherment"]'}, "key_usage"),
    ("profile.mixed-sm2-usage", SM2_DEVICE, {"key_usage": '["nonRepudiation", "keyAgreement"]'}, "key_usage"),
    ("profile.mixed-sm2-usage", SM2_DEVICE, {"family": '"any"', "key_usage": '["digitalSignature", "dataEncipherment"]'}, "key_usage"),
    ("profile.leaf-ca", DEVICE, {"key_usage": '["digitalSignature", "keyCertSign"]'}, "key_usage"),
    ("profile.leaf-ca", DEVICE, {"key_usage": '["digitalSignature", "cRLSign"]'}, "key_usage"),
    ("profile.leaf-ca", DEVICE, {"path_length": "0"}, "path_length"),
    ("profile.leaf-ca", DEVICE, {"critical": '["keyUsage", "basicConstraints"]'}, "path_length"),
    ("profile.ca-usage", ISSUING, {"key_usage": '["keyCertSign", "cRLSign", "digitalSignature"]'}, "key_usage"),
    ("profile.ca-usage", ROOT, {"key_usage": '["keyCertSign"]'}, "key_usage"),
    ("profile.path-length", ISSUING, {"path_length": None}, "path_length"),
    ("profile.path-length", ISSUING, {"path_length": "-1"}, "path_length"),
    ("profile.path-length", ROOT, {"path_length": "6"}, "path_length"),
    ("profile.any-policy", ISSUING, {"policies": '["2.5.29.32.0"]'}, "policies"),
    ("profile.lifetime", DEVICE, {"validity": '"0d"', "backdate": '"0s"'}, "validity"),
    ("profile.lifetime", DEVICE, {"validity": '"6y"'}, "validity"),
    ("profile.lifetime", OCSP, {"validity": '"91d"'}, "validity"),
    ("profile.lifetime", ISSUING, {"validity": '"16y"'}, "validity"),
    ("profile.lifetime", ROOT, {"validity": '"999999y"'}, "validity"),
    ("profile.backdate", DEVICE, {"backdate": '"25h"'}, "backdate"),
    ("profile.backdate", DEVICE, {"backdate": '"61min"', "validity": '"2h"'}, "backdate"),
    ("profile.criticality", DEVICE, {"critical": "[]"}, "critical"),
    ("profile.criticality", ISSUING, {"critical": '["keyUsage"]'}, "critical"),
    ("profile.criticality", DEVICE, {"critical": '["keyUsage", "certificatePolicies"]'}, "critical"),
    ("profile.criticality", DEVICE, {"critical": '["keyUsage", "subjectAltName"]'}, "critical"),
    ("profile.no-status", DEVICE, {"crl": "false", "ocsp": "false"}, "crl"),
    ("profile.no-status", ISSUING, {"crl": "false", "ocsp": "false"}, "crl"),
    ("profile.ocsp-loop", OCSP, {"ocsp": "true"}, "ocsp"),
    ("profile.ocsp-loop", OCSP, {"crl": "true"}, "ocsp"),
    ("profile.root-pointers", ROOT, {"issuers": "true"}, "crl"),
    ("profile.root-pointers", ROOT, {"crl": "true"}, "crl"),
    ("profile.root-pointers", ROOT, {"ocsp": "true"}, "crl"),
    ("profile.names-from-csr", DEVICE, {"names": '["dns"]', "csr_names": '["dns"]'}, "csr_names"),  # its fleet takes IDevIDs too
    ("profile.names-from-csr", PLATFORM, {"names": '["dns"]', "csr_names": '["ip"]'}, "csr_names"),
    ("fleet.authority", DEVICES, {"authority": '"issuing"'}, "authority"),
    ("fleet.authority", DEVICES, {"authority": '"ecc-../root"'}, "authority"),
    ("fleet.root-authority", DEVICES, {"authority": '"ecc-root"'}, "authority"),
    ("fleet.unknown-profile", DEVICES, {"profile": '"ecc-robot"'}, "profile"),
    ("fleet.ca-profile", DEVICES, {"profile": '"ecc-issuing"'}, "profile"),
    ("fleet.ca-profile", DEVICES, {"profile": '"ecc-ocsp"'}, "profile"),
    ("fleet.family-mix", DEVICES, {"keys": '["p-256", "sm2"]'}, "keys"),
    ("fleet.family-mix", DEVICES, {"profile": '"sm2-device"'}, "profile"),
    ("fleet.family-mix", DEVICES, {"keys": '["p-256", "ml-dsa-65"]'}, "keys"),
    ("fleet.family-mix", "fleets/sm2-devices", {"keys": '["ml-dsa-65"]'}, "keys"),
    ("fleet.family-mix", "fleets/sm2-devices", {"keys": '["p-256"]'}, "keys"),
    ("fleet.no-keys", DEVICES, {"keys": "[]"}, "keys"),
    ("fleet.no-authenticator", PLATFORMS, {"authenticators": "[]"}, "authenticators"),
    ("fleet.idevid-trust", PLATFORMS, {"authenticators": '["token", "idevid"]'}, "idevid.trust"),
    ("fleet.idevid-trust", DEVICES, {"authenticators": '["token"]'}, "idevid.trust"),
    ("fleet.trust-path", DEVICES, {"idevid__trust": '["../other/ca.pem"]'}, "idevid.trust"),
    ("fleet.trust-path", DEVICES, {"idevid__trust": '["/etc/ssl/ca.pem"]'}, "idevid.trust"),
    ("fleet.trust-path", DEVICES, {"idevid__trust": '["hsm/pin"]'}, "idevid.trust"),
    ("fleet.trust-path", DEVICES, {"idevid__trust": '["a\\nb.pem"]'}, "idevid.trust"),
    ("fleet.trust-path", DEVICES, {"idevid__trust": "['a\\b.pem']"}, "idevid.trust"),
    ("fleet.token-lifetime", DEVICES, {"token_lifetime": '"59s"'}, "token_lifetime"),
    ("fleet.token-lifetime", DEVICES, {"token_lifetime": '"32d"'}, "token_lifetime"),
    ("fleet.renew", DEVICES, {"renew__after": "1.0"}, "renew"),
    ("fleet.renew", DEVICES, {"renew__window": "0.0"}, "renew"),
    ("fleet.renew", DEVICES, {"renew__after": "nan"}, "renew"),
    ("fleet.renew", DEVICES, {"renew__after": "0.09"}, "renew"),
    ("fleet.renew", DEVICES, {"renew__after": "0.91", "renew__window": "0.01"}, "renew"),
    ("fleet.renew", DEVICES, {"renew__after": "0.2", "renew__window": "0.51"}, "renew"),
    ("fleet.renew", DEVICES, {"renew__after": "0.9", "renew__window": "0.1"}, "renew"),
    ("fleet.policy-grant", DEVICES, {"policies": '["1.2.3.4"]'}, "policies"),
    ("profile.unknown-key", DEVICE, {"copy_csr_extensions": "true"}, "copy_csr_extensions"),
    ("profile.unknown-key", DEVICE, {"ca": "true"}, "ca"),
    ("fleet.unknown-key", DEVICES, {"idevid__trust": '["a.pem"]\nallow_any = true'}, "idevid.allow_any"),
    ("profile.missing-key", DEVICE, {"family": None}, "family"),
    ("fleet.missing-key", DEVICES, {"approval": None}, "approval"),
    ("profile.value", DEVICE, {"validity": "90"}, "validity"),
    ("profile.value", DEVICE, {"validity": '"-90d"'}, "validity"),
    ("profile.value", DEVICE, {"validity": '"3m"'}, "validity"),
    ("profile.value", DEVICE, {"crl": '"yes"'}, "crl"),
    ("profile.value", DEVICE, {"key_usage": '["digitalsignature"]'}, "key_usage"),
    ("profile.value", DEVICE, {"key_usage": '["digitalSignature", "digitalSignature"]'}, "key_usage"),
    ("profile.value", DEVICE, {"extended_key_usage": '["clientAuth", "1.3.6.1.5.5.7.3.2"]'}, "extended_key_usage"),
    ("profile.value", DEVICE, {"extended_key_usage": '["2.5.29.037.0"]'}, "extended_key_usage"),
    ("profile.value", DEVICE, {"names": '["uri"]'}, "names.0"),
    ("profile.value", DEVICE, {"subject": '[{ CN = "{device}", O = "x" }]'}, "subject"),
    ("profile.value", DEVICE, {"policies": '["gold"]'}, "policies"),
    ("fleet.value", DEVICES, {"keys": '["p-521"]'}, "keys.0"),
    ("fleet.value", DEVICES, {"authenticators": '["none"]'}, "authenticators.0"),
    ("fleet.value", DEVICES, {"idevid__serial_from": '"csr"'}, "idevid.serial_from"),
    ("file.id", DEVICE, {"id": '"ecc-root"'}, "id"),
]  # fmt: skip


def complaints(folder: Path) -> list[tuple[str, str, str]]:
    """(file, key, rule) of each line that the loader complains with."""
    with pytest.raises(Malformed) as caught:
        load(folder)
    found = []
    for line in str(caught.value).splitlines():
        matched = re.fullmatch(r"([^:]+): (?:([a-z_.0-9]+): )?.+ \[([a-z0-9.-]+)\]", line)
        assert matched, line
        found.append((matched[1], matched[2] or "", matched[3]))
    return found


@pytest.mark.parametrize(("rule", "file", "edits", "key"), UNSAFE, ids=[f"{case[0]}-{at}" for at, case in enumerate(UNSAFE)])
def test_unsafe_is_refused_by_its_rule(home: SimpleNamespace, rule: str, file: str, edits: dict[str, str | None], key: str) -> None:
    home.set(file, **edits)
    found = complaints(home.path)
    assert (f"{file}.toml", key, rule) in found
    assert {name for _, _, name in found} == {rule}, "one mistake, one rule"


def test_every_rule_has_an_unsafe_case() -> None:
    by_name = {"profile.id", "fleet.id", "fleet.key-usage"}  # tested below: they need another file name or a profile beside
    assert {case[0] for case in UNSAFE if case[0] in PROFILE_RULES or case[0] in FLEET_RULES or case[0] == NAMES_FROM_CSR} | by_name == {
        *PROFILE_RULES,
        *FLEET_RULES,
        NAMES_FROM_CSR,
    }


@pytest.mark.parametrize("stem", ["Press", "a b", "a.b", "ümlaut", "-a", "a" * 64])
@pytest.mark.parametrize(("folder", "source"), [("profiles", "ecc-device"), ("fleets", "ecc-platforms")])
def test_id_must_be_a_path_segment(home: SimpleNamespace, folder: str, source: str, stem: str) -> None:
    shutil.copy(home.path / folder / f"{source}.toml", home.path / folder / f"{stem}.toml")
    assert complaints(home.path) == [(f"{folder}/{stem}.toml", "id", f"{folder[:-1]}.id")]


def test_fleet_named_like_an_est_operation(home: SimpleNamespace) -> None:
    (home.path / "fleets/ecc-platforms.toml").rename(home.path / "fleets/simpleenroll.toml")
    assert complaints(home.path) == [("fleets/simpleenroll.toml", "id", "fleet.id")]


def test_keys_that_cannot_encipher(home: SimpleNamespace) -> None:
    home.set(DEVICE, key_usage='["digitalSignature", "keyEncipherment"]')
    assert complaints(home.path) == [("fleets/ecc-devices.toml", "keys", "fleet.key-usage")]
    home.set(DEVICES, keys='["rsa-2048", "rsa-3072"]')
    assert load(home.path).profiles["ecc-device"].key_usage == ("digitalSignature", "keyEncipherment")


def test_names_from_csr_need_a_fleet_that_binds_names(home: SimpleNamespace) -> None:
    home.set(PLATFORM, csr_names='["dns"]')
    assert load(home.path).profiles["ecc-platform"].csr_names == ("dns",)
    (home.path / "fleets/ecc-platforms.toml").unlink()
    assert complaints(home.path) == [("profiles/ecc-platform.toml", "csr_names", "profile.names-from-csr")]


def test_policies_need_the_fleets_consent(home: SimpleNamespace) -> None:
    home.set(DEVICE, policies='["1.2.3.4"]')
    assert complaints(home.path) == [("fleets/ecc-devices.toml", "policies", "fleet.policy-grant")]
    home.set(DEVICES, policies='["1.2.3.4"]')
    assert load(home.path).fleets["ecc-devices"].policies == ("1.2.3.4",)


def test_empty_subject_with_critical_names(home: SimpleNamespace) -> None:
    home.set(DEVICE, subject="[]", critical='["keyUsage", "subjectAltName"]')
    assert load(home.path).profiles["ecc-device"].subject == ()


@pytest.mark.parametrize(
    ("file", "edits"),
    [
        (DEVICE, {"validity": '"5min"', "backdate": '"150s"'}),
        (DEVICE, {"validity": '"5y"', "backdate": '"24h"'}),
        (DEVICE, {"extended_key_usage": '["codeSigning"]'}),
        (SM2_DEVICE, {"key_usage": '["keyEncipherment", "dataEncipherment", "keyAgreement"]'}),
        (ISSUING, {"path_length": "5"}),
        (PLATFORM, {"csr_names": '["dns", "ip"]'}),
        (DEVICES, {"token_lifetime": '"1min"', "renew__after": "0.1"}),
        (DEVICES, {"token_lifetime": '"31d"', "renew__after": "0.9"}),
        (DEVICES, {"renew__after": "0.45", "renew__window": "0.5"}),
    ],
)
def test_what_is_just_safe_loads(home: SimpleNamespace, file: str, edits: dict[str, str | None]) -> None:
    home.set(file, **edits)
    load(home.path)


def test_short_lived_needs_no_status(home: SimpleNamespace) -> None:
    home.set(DEVICE, crl="false", ocsp="false", issuers="false", validity='"7d"')
    assert load(home.path).profiles["ecc-device"].validity == timedelta(days=7)


def test_all_mistakes_are_named_at_once(home: SimpleNamespace) -> None:
    home.set(DEVICE, extended_key_usage='["anyExtendedKeyUsage"]', validity='"6y"', nonsense="1")
    home.set(PLATFORM, extended_key_usage='["anyExtendedKeyUsage"]', validity='"6y"')
    home.set(PLATFORMS, keys="[]")
    rules = [rule for _, _, rule in complaints(home.path)]
    assert sorted(rules) == sorted(["profile.unknown-key", "profile.any-purpose", "profile.lifetime", "fleet.no-keys"])


def test_files_that_are_no_policy(home: SimpleNamespace) -> None:
    (home.path / "profiles/big.toml").write_bytes(b"# " + b"x" * 65536)
    (home.path / "profiles/latin.toml").write_bytes(b'kind = "\xe9"')
    (home.path / "profiles/broken.toml").write_text("kind = ")
    (home.path / "profiles/folder.toml").mkdir()
    (home.path / "profiles/notes.txt").write_text("not read")
    (home.path / "fleets/deep.toml").write_text("a = " + "[" * 5000)
    assert complaints(home.path) == [
        ("profiles/big.toml", "", "file.too-large"),
        ("profiles/broken.toml", "", "file.not-toml"),
        ("profiles/folder.toml", "", "file.unreadable"),
        ("profiles/latin.toml", "", "file.not-toml"),
        ("fleets/deep.toml", "", "file.not-toml"),
    ]


def test_exactly_64_kib_is_read(home: SimpleNamespace) -> None:
    path = home.path / "profiles/ecc-device.toml"
    path.write_bytes(path.read_bytes().ljust(65536, b"\n"))
    assert "ecc-device" in load(home.path).profiles
    path.write_bytes(path.read_bytes() + b"\n")
    assert ("profiles/ecc-device.toml", "", "file.too-large") in complaints(home.path)


def test_empty_or_missing_folder(tmp_path: Path) -> None:
    assert complaints(tmp_path / "nowhere") == [("profiles/", "", "file.none")]


def test_profiles_are_frozen_and_hashed() -> None:
    first, again = load(DEFAULTS).profiles, load(DEFAULTS).profiles
    assert [profile.hash for profile in first.values()] == [profile.hash for profile in again.values()]
    assert len({profile.hash for profile in first.values()}) == len(first)
    with pytest.raises(ValueError, match="frozen"):
        first["ecc-device"].crl = False
    with pytest.raises(TypeError):
        first["x"] = first["ecc-device"]  # type: ignore[index]


CHANGES: dict[str, Any] = {
    "id": "other", "kind": "issuing", "family": "any", "validity": timedelta(days=91), "backdate": timedelta(0),
    "subject": (("CN", "{device}"),),
    "san": (), "names": ("dns",), "csr_names": ("dns",), "key_usage": (), "extended_key_usage": ("serverAuth",), "policies": ("1.2.3",),
    "path_length": 0, "critical": (), "crl": False, "ocsp": False, "issuers": False,
}  # fmt: skip


@pytest.mark.parametrize("field", Profile.model_fields)
def test_hash_covers_every_field(field: str) -> None:
    profile = load(DEFAULTS).profiles["ecc-device"]
    changed = Profile.model_validate(profile.model_dump() | {field: CHANGES[field]})
    assert changed.hash != profile.hash


# --- fuzz ---------------------------------------------------------------------------------------------------------------

KEYS = {
    name: set(tomllib.loads((DEFAULTS / f"{name}.toml").read_text())) | set(model.model_fields)
    for name, model in ((DEVICE, Profile), (DEVICES, Fleet))
}
VALUES = st.sampled_from(
    ["true", "0", "-1", "1e400", "nan", '""',
      '"x"', '"90d"', '"\\u0000"', "[]", "[[]]", "[{}]", '[{ CN = 1 }]', '["clientAuth"]', '["{device}"]',
     "{}", "{ trust = [] }", "1979-05-27", "99999999999999999999999999",
     '[{ CN = ["a"] }]', '["sm2", "p-256"]', '[["CN", "{device}"]]', '["token"]']
)  # fmt: skip


def _load_edited(name: str, edit: str) -> None:
    with tempfile.TemporaryDirectory(prefix="ir") as folder:
        for path in DEFAULTS.glob("*/*.toml"):
            target = Path(folder, path.parent.name, path.name)
            target.parent.mkdir(exist_ok=True)
            text = path.read_text()
            if f"{path.parent.name}/{path.stem}" == name:
                key = edit.partition(" =")[0]
                text = edit + "\n" + re.sub(rf"^{re.escape(key)} =.*$", "", text, flags=re.M)
            target.write_text(text)
        load(Path(folder))


@settings(max_examples=150, deadline=None)
@given(name=st.sampled_from([DEVICE, DEVICES]), key=st.from_regex(r"[A-Za-z_-]{1,20}", fullmatch=True), value=VALUES)
def test_unknown_keys_always_refuse(name: str, key: str, value: str) -> None:
    if key in KEYS[name]:
        return
    with pytest.raises(Malformed, match=re.escape(f"{name}.toml: {key}: no such key")):
        _load_edited(name, f"{key} = {value}")


@settings(max_examples=300, deadline=None)
@given(data=st.data(), name=st.sampled_from([DEVICE, DEVICES]), value=VALUES)
def test_any_value_loads_or_is_malformed(data: st.DataObject, name: str, value: str) -> None:
    key = data.draw(st.sampled_from(sorted(KEYS[name])))
    with contextlib.suppress(Malformed):
        _load_edited(name, f"{key} = {value}")


@settings(max_examples=150, deadline=None)
@given(raw=st.binary(max_size=200) | st.text(alphabet="[]{}=\"'#\n.ab1-", max_size=60).map(str.encode))
def test_any_octets_load_or_are_malformed(raw: bytes) -> None:
    with tempfile.TemporaryDirectory(prefix="ir") as folder:
        os.mkdir(f"{folder}/profiles")
        Path(folder, "profiles/x.toml").write_bytes(raw)
        with pytest.raises(Malformed, match=r"profiles/x\.toml"):
            load(Path(folder))
