"""A key goes from one token to another, wrapped; and one that may not leave its token does not."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Iterator

import pytest
from key_stores import SOFTHSM, SoftHsm, standing
from programs import need

from ca.model import Signable
from ca.signer_pkcs11 import Pkcs11Signer
from pkix.algorithms import KeyKind
from pkix.errors import Conflict, Fatal, Refused, Unavailable, Unsupported


@pytest.fixture
def softhsm() -> Iterator[SoftHsm]:
    with standing("softhsm2") as made:
        assert isinstance(made, SoftHsm)
        made.add_token("other")
        yield made


def tool(softhsm: SoftHsm, *arguments: str) -> str:
    need("pkcs11-tool")
    command = ["pkcs11-tool", "--module", SOFTHSM, "--token-label", "ironroot", "--login", "--pin", softhsm.pin, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


async def moved(source: Pkcs11Signer, target: Pkcs11Signer, name: str) -> None:
    key = await source.public_key(name)
    await target.receive(name, key, await source.send(name, key, await target.transport()))


@pytest.mark.parametrize(("type_", "kind"), [("EC:prime256v1", KeyKind.P_256), ("EC:secp384r1", KeyKind.P_384)])
def test_an_extractable_key_moves_and_is_not_extractable_any_more(softhsm: SoftHsm, type_: str, kind: KeyKind) -> None:
    tool(softhsm, "--keypairgen", "--key-type", type_, "--label", "k", "--id", "01", "--extractable")

    async def scene() -> None:
        source, target = softhsm.signer(), softhsm.signer(label="other")
        key = await source.public_key("k")
        assert key.kind is kind
        assert await source.extractable("k", key)
        await moved(source, target, "k")
        assert await target.public_key("k") == key
        key.verify(await target.sign(Signable("k", key, "x", b"tbs")), b"tbs")
        assert not await target.extractable("k", key)
        with pytest.raises(Conflict):
            await moved(source, target, "k")
        with pytest.raises(Refused, match="not to leave"):
            await target.send("k", key, await source.transport())
        key.verify(await source.sign(Signable("k", key, "x", b"tbs")), b"tbs")  # it is still there too
        await source.close()
        await target.close()

    asyncio.run(scene())


def test_a_key_that_was_made_to_stay_stays(softhsm: SoftHsm) -> None:
    async def scene() -> None:
        source, target = softhsm.signer(), softhsm.signer(label="other")
        key = await source.generate("k", KeyKind.P_256)
        assert not await source.extractable("k", key)
        with pytest.raises(Refused, match="not to leave"):
            await moved(source, target, "k")
        await source.close()
        await target.close()

    asyncio.run(scene())


def test_a_kind_of_key_that_its_token_does_not_wrap(softhsm: SoftHsm) -> None:
    tool(softhsm, "--keypairgen", "--key-type", "EC:edwards25519", "--label", "e", "--id", "02", "--extractable")

    async def scene() -> None:
        source, target = softhsm.signer(), softhsm.signer(label="other")
        with pytest.raises(Refused, match="does not wrap"):  # SoftHSM 2.6 has no wrapping for Edwards keys
            await moved(source, target, "e")
        await source.close()
        await target.close()

    asyncio.run(scene())


def test_what_arrives_damaged_or_late_is_no_key(softhsm: SoftHsm) -> None:
    tool(softhsm, "--keypairgen", "--key-type", "EC:prime256v1", "--label", "k", "--id", "01", "--extractable")
    tool(softhsm, "--keypairgen", "--key-type", "rsa:2048", "--label", "r", "--id", "02", "--extractable")

    async def scene() -> None:
        source, target = softhsm.signer(), softhsm.signer(label="other")
        key, rsa = await source.public_key("k"), await source.public_key("r")
        with pytest.raises(Unsupported):
            await moved(source, target, "r")
        other = await target.generate("another", KeyKind.P_256)
        with pytest.raises(Fatal):
            await source.send("k", other, await target.transport())
        wrapped = await source.send("k", key, await target.transport())
        damaged = [*wrapped[:2], wrapped[2][:-1] + bytes([wrapped[2][-1] ^ 1])]
        with pytest.raises(Unavailable):
            await target.receive("k", key, damaged)
        await target.close()
        late = softhsm.signer(label="other")
        with pytest.raises(Unavailable):
            await late.receive("k", key, wrapped)
        await moved(source, late, "k")
        key.verify(await late.sign(Signable("k", key, "x", b"tbs")), b"tbs")
        assert rsa.kind is KeyKind.RSA_2048
        await source.close()
        await late.close()

    asyncio.run(scene())
