"""The HSM's device inside the test's own process: opened, somebody logged in, closed again.

async def story(hsm: Inside) -> None:
    _, key = await hsm.pair("root")
    await hsm.partition.sign(hsm.caller, key, cka.CKM_ECDSA, None, bytes(32))

run(home, story)
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

import pytest

from hsm_sim import cka, keys
from hsm_sim.device import Device
from hsm_sim.errors import Code, Rejected
from hsm_sim.objects import Object, Template
from hsm_sim.partition import Partition
from hsm_sim.roles import Caller, Role

NOW = datetime(2026, 11, 23, tzinfo=UTC)
T = TypeVar("T")
_FILES = {Role.OFFICER: "pin", Role.SO: "so-pin", Role.AUDITOR: "auditor-pin"}
_KEPT: Template = {cka.CKA_TOKEN: True}
CURVES = {"p-256": keys.P_256_PARAMS, "p-384": keys.P_384_PARAMS, "sm2": keys.SM2_PARAMS, "ed25519": keys.ED25519_PARAMS}


def pin_of(home: Path, role: Role) -> str:
    """The PIN that ``initialise`` wrote for this role."""
    return (home / _FILES[role]).read_text().strip()


def somebody(partition: str = "ironroot") -> Caller:
    """A connection on which nobody has logged in."""
    return Caller("native", 1, partition)


def pair_templates(label: str, kind: str = "p-256", **private: object) -> tuple[int, Template, Template]:
    """Mechanism and templates of a key pair that is kept. Keyword arguments: attributes of the private key by their names without CKA_."""
    named: Template = {**_KEPT, cka.CKA_LABEL: label.encode(), cka.CKA_ID: label.encode()}
    more: Template = {getattr(cka, f"CKA_{name.upper()}"): value for name, value in private.items()}  # type: ignore[misc]
    if kind.startswith("rsa"):
        return cka.CKM_RSA_PKCS_KEY_PAIR_GEN, {**named, cka.CKA_MODULUS_BITS: int(kind[4:])}, {**named, **more}
    if kind == "ml-dsa-65":
        return cka.CKM_ML_DSA_KEY_PAIR_GEN, named, {**named, **more}
    mechanism = cka.CKM_EC_EDWARDS_KEY_PAIR_GEN if kind == "ed25519" else cka.CKM_EC_KEY_PAIR_GEN
    return mechanism, {**named, cka.CKA_EC_PARAMS: CURVES[kind]}, {**named, **more}


@dataclass
class Inside:
    """An open device, one of its partitions, and who has logged in there."""

    device: Device
    partition: Partition
    caller: Caller
    home: Path

    async def pair(self, label: str, kind: str = "p-256", **private: object) -> tuple[Object, Object]:
        mechanism, public, hidden = pair_templates(label, kind, **private)
        return await self.partition.generate_pair(self.caller, mechanism, public, hidden, unique=True)

    async def secret(self, label: str, length: int = 32, **attributes: object) -> Object:
        """An AES key."""
        more: Template = {getattr(cka, f"CKA_{name.upper()}"): value for name, value in attributes.items()}  # type: ignore[misc]
        template = {**_KEPT, cka.CKA_LABEL: label.encode(), cka.CKA_VALUE_LEN: length, **more}
        return await self.partition.generate_secret(self.caller, cka.CKM_AES_KEY_GEN, template)

    async def sign(self, key: Object | str, data: bytes = b"\x07" * 32) -> bytes:
        obj = self.partition.by_label(self.caller, key) if isinstance(key, str) else key
        return await self.partition.sign(self.caller, obj, cka.CKM_ECDSA, None, data, "test")

    async def login(self, role: Role, pin: str = "", partition: str = "ironroot") -> Caller:
        """Another connection."""
        other = somebody(partition)
        await self.device.partition(partition).login(other, role, pin or pin_of(self.home, role))
        return other


def run(home: Path, story: Callable[[Inside], Awaitable[T]], *, role: Role | None = Role.OFFICER, now: datetime = NOW) -> T:
    """Opens the device in ``home``, logs ``role`` in, runs the story, and closes the device."""

    async def told() -> T:
        device = await Device.open(home, lambda: now)
        try:
            here = Inside(device, device.partition(), somebody(), home)
            if role is not None:
                await here.partition.login(here.caller, role, pin_of(home, role))
            return await story(here)
        finally:
            await device.close()

    return asyncio.run(told())


async def refused(work: Awaitable[object]) -> Rejected:
    """The refusal that this work has to end in."""
    with pytest.raises(Rejected) as caught:
        await work
    return caught.value


async def code(work: Awaitable[object]) -> Code:
    """The code of that refusal."""
    return (await refused(work)).code
