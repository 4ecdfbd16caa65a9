"""What the operations of the native door do with keys, held against other implementations; and sign_many behind limits and faults."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_der_public_key
from hsm_inside import Inside, code, run

from hsm_sim.errors import Code
from hsm_sim.native_ops import OPS
from hsm_sim.roles import Role
from pkix.algorithms import load_public_key

OPEN = {"extractable": True}


async def call(hsm: Inside, op: str, **args: object) -> Any:
    return await OPS[op].run(hsm.device, hsm.caller, args)


def test_wrapped_keys_come_back_and_sign_as_before(home: Path) -> None:
    async def story(hsm: Inside) -> None:
        await call(hsm, "generate", key="kek", kind="aes-256", attributes={"wrap": True, "unwrap": True})
        for kind in ("p-256", "sm2", "rsa-2048", "ed25519"):
            made = await call(hsm, "generate", key=kind, kind=kind, attributes={"extractable": True, "sign": True})
            wrapped = await call(hsm, "wrap", key=kind, wrapping="kek", mechanism="CKM_AES_KEY_WRAP_KWP")
            again = await call(
                hsm,
                "unwrap",
                key="kek",
                data=wrapped,
                mechanism="CKM_AES_KEY_WRAP_KWP",
                label=f"{kind} again",
                kind=kind,
                attributes={"sign": True},
            )
            assert (again["public_key"], again["origin"], again["extractable"]) == (made["public_key"], "unwrapped", False)
            assert not again["always_sensitive"]
        assert await code(call(hsm, "wrap", key="p-256 again", wrapping="kek", mechanism="CKM_AES_KEY_WRAP_KWP")) is Code.KEY_UNEXTRACTABLE
        unwrap = {"key": "kek", "mechanism": "CKM_AES_KEY_WRAP_KWP", "label": "x", "kind": "p-256"}
        assert await code(call(hsm, "unwrap", data=bytes(72), **unwrap)) is Code.WRAPPED_KEY_INVALID
        assert await code(call(hsm, "wrap", key="p-256", wrapping="kek", mechanism="ROT13")) is Code.MECHANISM_INVALID
        assert await code(call(hsm, "wrap", key="p-256", wrapping="none", mechanism="CKM_AES_KEY_WRAP_KWP")) is Code.KEY_NOT_FOUND

    run(home, story)


def test_ciphers_are_everybody_elses(home: Path) -> None:
    async def story(hsm: Inside) -> None:
        use = {"encrypt": True, "decrypt": True}
        await call(hsm, "generate", key="aes", kind="aes-256", attributes=use)
        gcm: dict[str, Any] = {"key": "aes", "mechanism": "CKM_AES_GCM", "iv": bytes(12), "aad": b"about"}
        sealed = await call(hsm, "encrypt", data=b"plain", **gcm)
        assert len(sealed) == 5 + 16
        assert await call(hsm, "decrypt", data=sealed, **gcm) == b"plain"
        changed = {**gcm, "aad": b"other"}
        assert await code(call(hsm, "decrypt", data=sealed, **changed)) is Code.ENCRYPTED_DATA_INVALID

        made = await call(hsm, "generate", key="rsa", kind="rsa-2048", attributes={"decrypt": True, "sign": False})
        public: Any = load_der_public_key(made["public_key"])
        oaep = padding.OAEP(padding.MGF1(hashes.SHA256()), hashes.SHA256(), None)
        assert await call(hsm, "decrypt", key="rsa", mechanism="CKM_RSA_PKCS_OAEP", data=public.encrypt(b"plain", oaep)) == b"plain"

        for name, data in (("sha256", b""), ("sha384", b"abc")):
            assert await call(hsm, "digest", hash=name, data=data) == hashlib.new(name, data).digest()
        sm3 = "66c7f0f462eeedd9d1f2d46bdc10e4e24167c4875cf2f7a2297da02b8f4ba8e0"  # GB/T 32905 A.1
        assert (await call(hsm, "digest", hash="sm3", data=b"abc")).hex() == sm3
        assert await code(call(hsm, "digest", hash="md5", data=b"")) is Code.MECHANISM_INVALID

    run(home, story)


def test_two_sides_derive_the_same_key(home: Path) -> None:
    async def story(hsm: Inside) -> None:
        made = await call(hsm, "generate", key="ecdh", kind="p-256", attributes={"derive": True})
        ours: Any = load_der_public_key(made["public_key"])
        theirs = ec.generate_private_key(ec.SECP256R1())
        point = theirs.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
        use = {"encrypt": True, "decrypt": True}
        derived = await call(hsm, "derive", key="ecdh", public=point, label="shared", kind="aes-256", attributes=use)
        assert (derived["kind"], derived["origin"]) == ("aes-256", "derived")
        sealed = AESGCM(theirs.exchange(ec.ECDH(), ours)).encrypt(bytes(12), b"plain", None)
        assert await call(hsm, "decrypt", key="shared", mechanism="CKM_AES_GCM", iv=bytes(12), data=sealed) == b"plain"

    run(home, story)


def test_attributes_are_given_shown_and_only_tightened(home: Path) -> None:
    async def story(hsm: Inside) -> None:
        wanted = {**OPEN, "id": b"\x07", "usage_limit": 100, "quorum": ["export"], "not_after": "2030-01-01T00:00:00+00:00"}
        made = await call(hsm, "generate", key="k", kind="p-256", attributes=wanted)
        assert {name: made[name] for name in wanted} == wanted
        assert await call(hsm, "attributes", key="k") == made
        changed = await call(hsm, "set_attributes", key="k", attributes={"extractable": False, "usage_limit": 10})
        assert (changed["extractable"], changed["usage_limit"], changed["id"]) == (False, 10, b"\x07")
        for attributes in ({"extractable": True}, {"usage_limit": 11}, {"local": True}, {"colour": "red"}, {"sign": "yes"}):
            assert await code(call(hsm, "set_attributes", key="k", attributes=attributes)) in (
                Code.ATTRIBUTE_READ_ONLY,
                Code.ACTION_PROHIBITED,
                Code.ATTRIBUTE_TYPE_INVALID,
            )

    run(home, story)


def test_partitions_are_made_by_the_so_and_keep_apart(hsm: Any) -> None:
    so = hsm.login(Role.SO)
    assert so.call("create_partition", name="other", so_pin="the other SO")["slot"] == 1
    other = hsm.connect()
    other.call("login", pin="the other SO", role="so", partition="other")
    other.call("set_pin", role="officer", new="the other officer")
    other.call("login", pin="the other officer", partition="other")
    other.call("generate", key="k", kind="p-256")
    mine = hsm.login()
    assert mine.call("keys") == []
    assert mine.code("public_key", key="k") == "key_not_found"
    assert other.call("status")["partitions"] == {"ironroot": "operational", "other": "operational"}
    assert other.code("login", pin=hsm.pin, partition="other") == "pin_incorrect"
    assert len(other.call("keys")) == 1  # and is still logged in


@pytest.mark.parametrize("form", ["lean", "items"])
def test_a_batch_that_a_limit_does_not_allow_is_not_begun(hsm: Any, form: str) -> None:
    client = hsm.login()
    client.call("generate", key="k", kind="p-256", attributes={"usage_limit": 5})

    def sign(count: int) -> list[Any]:
        if form == "lean":
            return client.call("sign_many", key="k", purpose="certificate", data=[bytes(32)] * count)
        return client.call("sign_many", items=[{"key": "k", "purpose": "certificate", "data": bytes(32)}] * count)

    assert len(sign(3)) == 3
    if form == "lean":
        assert client.code("sign_many", key="k", purpose="certificate", data=[bytes(32)] * 3) == "limit_reached"
    else:
        assert {outcome["error"] for outcome in sign(3)} == {"limit_reached"}
    assert len(sign(2)) == 2
    assert client.call("attributes", key="k")["used"] == 5


def test_faults_of_the_laboratory_reach_sign_many(hsm: Any) -> None:
    client = hsm.login()
    assert client.code("lab", scenario="") == "function_not_supported"
    hsm.stop()
    client = hsm.start("--lab").login()
    public = load_public_key(client.call("generate", key="k", kind="p-256")["public_key"])
    client.call("generate", key="other", kind="p-256")

    def sign() -> Any:
        return client.call("sign_many", key="k", purpose="certificate", data=[public.signing_input(b"m")])[0]

    public.verify(sign(), b"m")
    for fault in ('kind = "bit-flip"', 'kind = "wrong-key"\nother = "other"'):
        client.call("lab", scenario=f'[[fault]]\nop = "sign"\ncount = 1\n{fault}\n')
        with pytest.raises(Exception, match="does not verify"):
            public.verify(sign(), b"m")
        public.verify(sign(), b"m")
    client.call("lab", scenario='[[fault]]\nkind = "error"\ncode = "device_error"\nop = "sign"\n')
    assert client.code("sign_many", key="k", purpose="certificate", data=[bytes(32)]) == "device_error"
    assert client.call("sign_many", items=[{"key": "k", "purpose": "crl", "data": bytes(32)}])[0]["error"] == "device_error"
    client.call("lab", scenario='[[fault]]\nkind = "session-lost"\nop = "sign"\n')
    with pytest.raises(ConnectionResetError):
        client.call("sign_many", key="k", purpose="certificate", data=[bytes(32)])
    client = hsm.login()
    assert client.call("lab", clear=True) == []
    public.verify(client.call("sign_many", key="k", purpose="certificate", data=[public.signing_input(b"m")])[0], b"m")
    assert client.code("lab", scenario="[[fault") == "bad_request"
