"""Attestation: what the HSM says about a key, who believes it, and what it does not say."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hsm_inside import NOW, Inside, code, run
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from programs import SM2_ID, need, openssl

from hsm_sim import cka, initialise, trust_ops
from hsm_sim.attest import HISTORY, Identity, attest, manufacture
from hsm_sim.errors import Code
from hsm_sim.objects import Object
from hsm_sim.roles import Role
from pkix import attestation, der, pem
from pkix.algorithms import KeyKind
from pkix.attestation import Attestation, verify_attestation
from pkix.certificate import parse_certificate
from pkix.errors import IronrootError, Malformed, NotValid
from pkix.privatekey import generate

KINDS = ("p-256", "p-384", "sm2", "ed25519", "rsa-2048", "ml-dsa-65")


@pytest.fixture
def sm_home() -> Iterator[Path]:
    """A device that chains its log with SM3, and attests with SM2."""
    folder = Path(tempfile.mkdtemp(prefix="ir", dir="/tmp"))
    initialise(folder / "hsm", NOW, digest="sm3", cipher="sm4-gcm")
    yield folder / "hsm"
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def identity() -> Identity:
    return manufacture("00112233aabbccdd", "2.0.0", NOW)


@pytest.fixture(scope="module")
def chain(identity: Identity) -> list[bytes]:
    return attest(identity, key_object(), NOW)


KEY = generate(KeyKind.P_256)


def key_object(**changes: bool) -> Object:
    """A private key as a device makes it by default."""

    class Stub:
        spki = KEY.public_key.spki

    attributes: dict[int, bytes | bool | int | tuple[int, ...]] = {
        cka.CKA_CLASS: cka.CKO_PRIVATE_KEY,
        cka.CKA_LABEL: "线 ‮7".encode(),
        **dict.fromkeys((cka.CKA_LOCAL, cka.CKA_SENSITIVE, cka.CKA_ALWAYS_SENSITIVE, cka.CKA_NEVER_EXTRACTABLE, cka.CKA_SIGN), True),
        cka.CKA_EXTRACTABLE: False,
    }
    attributes |= {getattr(cka, f"CKA_{name.upper()}"): value for name, value in changes.items()}
    return Object(b"\x07" * 16, 1, "plant", attributes, "generated", "2026-11-23T00:00:00+00:00", key=Stub())  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", KINDS)
def test_a_generated_key_of_any_kind_is_attested_as_made_here(home: Path, kind: str) -> None:
    async def story(hsm: Inside) -> tuple[list[bytes], bytes]:
        shown, _ = await hsm.pair("root", kind)
        assert shown.key is not None
        return await trust_ops.attest(hsm.device, hsm.caller, {"key": "root"}), shown.key.spki

    chain, spki = run(home, story)
    [(_, manufacturer)] = pem.decode((home / "manufacturer.pem").read_bytes())
    said = verify_attestation(chain, manufacturer, spki)
    assert said.made_here
    assert (said.label, said.partition, said.origin, said.history) == ("root", "ironroot", "generated", ())
    assert said.capabilities == ({"sign", "decrypt"} if kind == "rsa-2048" else {"sign"})
    assert said.serial == parse_certificate(chain[1]).subject.get("serialNumber")[0]
    assert said.at == NOW


@pytest.mark.parametrize("sm", [False, True])
def test_openssl_verifies_the_chain(home: Path, sm_home: Path, sm: bool, tmp_path: Path) -> None:
    need("openssl")

    async def story(hsm: Inside) -> list[bytes]:
        await hsm.pair("root", "sm2" if sm else "p-256")
        return await trust_ops.attest(hsm.device, hsm.caller, {"key": "root"})

    used = sm_home if sm else home
    for name, certificate in zip(("key", "device", "manufacturer"), run(used, story), strict=True):
        (tmp_path / f"{name}.pem").write_text(pem.encode("CERTIFICATE", certificate))
    assert (tmp_path / "manufacturer.pem").read_text() == (used / "manufacturer.pem").read_text()
    if sm:  # openssl 3.0 gives the id to the lowest certificate only, so link by link
        for below, above in (("key.pem", "device.pem"), ("device.pem", "manufacturer.pem")):
            options = ("-purpose", "any", "-x509_strict", "-vfyopt", SM2_ID, "-partial_chain", "-CAfile", above)
            assert f"{below}: OK" in openssl("verify", *options, below, folder=tmp_path)
    else:
        options = ("-purpose", "any", "-x509_strict", "-CAfile", "manufacturer.pem", "-untrusted", "device.pem")
        assert "key.pem: OK" in openssl("verify", *options, "key.pem", folder=tmp_path)
    assert attestation.ARC in openssl("x509", "-in", "key.pem", "-noout", "-text", folder=tmp_path)


def test_keys_that_are_not_made_here_are_not_said_to_be(home: Path) -> None:
    async def story(hsm: Inside) -> dict[str, Attestation]:
        await hsm.pair("loose", extractable=True)
        under = await hsm.secret("under", wrap=True, unwrap=True)
        loose = hsm.partition.by_label(hsm.caller, "loose")
        wrapped = await hsm.partition.wrap(hsm.caller, cka.CKM_AES_KEY_WRAP_PAD, None, under, loose)
        template = {cka.CKA_CLASS: cka.CKO_PRIVATE_KEY, cka.CKA_KEY_TYPE: cka.CKK_EC, cka.CKA_TOKEN: True, cka.CKA_LABEL: b"back"}
        await hsm.partition.unwrap(hsm.caller, cka.CKM_AES_KEY_WRAP_PAD, None, under, wrapped, template)
        await hsm.partition.set_attributes(hsm.caller, loose, {cka.CKA_EXTRACTABLE: False})
        said = {}
        for label in ("loose", "back"):
            chain = await trust_ops.attest(hsm.device, hsm.caller, {"key": label})
            spki = parse_certificate(chain[0]).spki
            said[label] = verify_attestation(chain, hsm.device.identity.manufacturer_certificate, spki)
        return said

    said = run(home, story)
    assert said["loose"].origin == "generated"
    assert "neverExtractable" not in said["loose"].protection, "it could leave once, whatever it says now"
    assert said["back"].origin == "unwrapped"
    assert not said["back"].protection & {"local", "alwaysSensitive", "neverExtractable"}
    assert not any(attested.made_here for attested in said.values())


@pytest.mark.parametrize("name", ["local", "sensitive", "always_sensitive", "never_extractable"])
def test_each_missing_protection_counts(identity: Identity, name: str) -> None:
    chain = attest(identity, key_object(**{name: False}), NOW)
    assert not verify_attestation(chain, identity.manufacturer_certificate, KEY.public_key.spki).made_here


def test_a_restored_key_says_where_it_was(identity: Identity) -> None:
    obj = key_object()
    obj.attributes[HISTORY] = b"0000000000000001,0000000000000002"
    said = verify_attestation(attest(identity, obj, NOW), identity.manufacturer_certificate, KEY.public_key.spki)
    assert said.history == ("0000000000000001", "0000000000000002")
    assert not said.made_here


def test_who_may_ask_and_for_what(home: Path) -> None:
    async def story(hsm: Inside) -> None:
        await hsm.pair("root")
        await hsm.secret("aes")
        so = await hsm.login(Role.SO)
        assert await code(trust_ops.attest(hsm.device, so, {"key": "root"})) is Code.PERMISSION_DENIED
        assert await code(trust_ops.attest(hsm.device, hsm.caller, {"key": "aes"})) is Code.KEY_NOT_FOUND
        assert await code(trust_ops.attest(hsm.device, hsm.caller, {"key": ""})) is Code.BAD_REQUEST
        shown = hsm.partition.by_label(hsm.caller, "root", cka.CKO_PUBLIC_KEY)
        with pytest.raises(Exception, match="private keys"):
            attest(hsm.device.identity, shown, NOW)

    run(home, story)


def test_the_identity_is_open_to_all_and_hides_its_keys(home: Path) -> None:
    async def story(hsm: Inside) -> None:
        said = await trust_ops.identity(hsm.device, hsm.caller, {})
        own = hsm.device.identity
        assert said["transport"] == own.transport_certificate
        numbers = [key._secret.private_numbers().private_value.to_bytes(32) for key in (own.device, own.transport)]
        public = b"".join(value for value in said.values() if isinstance(value, bytes))
        for number in (*numbers, own.audit._secret.private_bytes_raw()):
            assert number not in public + (home / "hsm.db").read_bytes()
            assert number.hex() not in repr(own)
            assert repr(number) not in repr(own)

    run(home, story, role=None)


# --- what the verifier refuses -------------------------------------------------------------------------------------


def test_a_chain_of_another_manufacturer_or_about_another_key_is_refused(identity: Identity, chain: list[bytes]) -> None:
    other = manufacture("00112233aabbccdd", "2.0.0", NOW)
    spki, anchor = KEY.public_key.spki, identity.manufacturer_certificate
    assert verify_attestation(chain, anchor, spki).label == "线 ‮7"
    assert verify_attestation(chain[:2], anchor, spki).made_here
    with pytest.raises(NotValid, match="another manufacturer"):
        verify_attestation(chain, other.manufacturer_certificate, spki)
    with pytest.raises(NotValid, match=r"not issued by|not signed with"):
        verify_attestation(chain[:2], other.manufacturer_certificate, spki)
    with pytest.raises(NotValid, match="another key"):
        verify_attestation(chain, anchor, generate(KeyKind.P_256).public_key.spki)
    for short in ([], chain[:1], [*chain, anchor]):
        with pytest.raises(Malformed, match="in this order"):
            verify_attestation(short, anchor, spki)


def test_no_other_certificate_of_the_device_attests(identity: Identity, chain: list[bytes]) -> None:
    """Only the attestation key's certificate is a CA; audit and transport keys, and attested keys, vouch for nothing."""
    spki, anchor = KEY.public_key.spki, identity.manufacturer_certificate
    for wrong in (identity.audit_certificate, identity.transport_certificate):
        with pytest.raises(NotValid):
            verify_attestation([chain[0], wrong], anchor, spki)
    forger = replace(identity, device_certificate=chain[0], device=KEY)
    forged = attest(forger, key_object(), NOW)
    with pytest.raises(NotValid):
        verify_attestation(forged[:2], identity.device_certificate, spki)
    with pytest.raises((NotValid, Malformed)):
        verify_attestation([identity.device_certificate, anchor], anchor, parse_certificate(identity.device_certificate).spki)


def test_a_device_cannot_speak_for_another(identity: Identity) -> None:
    liar = replace(identity, serial="ffffffffffffffff")
    with pytest.raises(NotValid, match="given to another device"):
        verify_attestation(attest(liar, key_object(), NOW), identity.manufacturer_certificate, KEY.public_key.spki)


@given(st.data())
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_a_changed_octet_is_found(identity: Identity, chain: list[bytes], data: st.DataObject) -> None:
    which, spki = data.draw(st.integers(0, 1)), KEY.public_key.spki
    changed = bytearray(chain[which])
    changed[data.draw(st.integers(0, len(changed) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(IronrootError):
        verify_attestation([bytes(changed) if at == which else chain[at] for at in (0, 1)], identity.manufacturer_certificate, spki)


def test_an_identity_survives_its_own_octets(identity: Identity) -> None:
    again = Identity.from_bytes(identity.to_bytes())
    assert again == identity
    for octets in (b"", b"\x80", identity.to_bytes()[:-1], b"\x85\x02\x60\x60\x80\x80"):
        with pytest.raises(Malformed):
            Identity.from_bytes(octets)
    assert der.read(identity.manufacturer_certificate).end == len(identity.manufacturer_certificate)
