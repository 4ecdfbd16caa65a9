"""A token that fails on purpose: what is put right without anybody noticing, and what the caller is told of the rest."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager

import pytest
import structlog
from key_stores import SimulatorToken, standing

from ca.model import Signable
from hsm_sim.client import Client
from pkix.algorithms import KeyKind, PublicKey
from pkix.errors import BadSignature, IronrootError, OutcomeUnknown, Unavailable, Unsupported


@pytest.fixture
def laboratory() -> Iterator[SimulatorToken]:
    with standing("p11-kit") as made:
        assert isinstance(made, SimulatorToken)
        made.stop()
        made.start("--lab")
        yield made


@contextmanager
def operator(stand: SimulatorToken) -> Iterator[Client]:
    """Somebody with the PIN, at the native socket."""
    with Client(stand.home / "native.sock") as hsm:
        hsm.call("login", pin=stand.pin_file.read_text().strip())
        yield hsm


def fault(stand: SimulatorToken, kind: str, **more: object) -> None:
    """From now on the token shows this fault, and no other."""
    values = {"kind": kind, "door": "pkcs11"} | more
    text = "[[fault]]\n" + "".join(f"{name} = {value if isinstance(value, int) else repr(value)}\n" for name, value in values.items())
    with operator(stand) as hsm:
        hsm.call("lab", scenario=text)


def clear(stand: SimulatorToken) -> None:
    """Nothing fails any more."""
    with operator(stand) as hsm:
        hsm.call("lab", clear=True)


def signable(key: PublicKey) -> Signable:
    return Signable("k", key, "x", b"tbs")


async def in_the_end(work: Callable[[], Coroutine[None, None, bytes]]) -> bytes:
    while True:
        try:
            return await work()
        except Unavailable:
            await asyncio.sleep(0.05)


def test_what_may_pass_is_tried_once_more(laboratory: SimulatorToken) -> None:
    lost = "key_handle_invalid session_handle_invalid session_closed user_not_logged_in operation_active"
    passing = f"{lost} device_error function_failed general_error device_removed token_not_present"

    async def scene() -> None:
        signer = laboratory.signer()
        key = await signer.generate("k", KeyKind.P_256)
        for code in passing.split():
            fault(laboratory, "error", code=code, op="sign", count=1)
            key.verify(await signer.sign(signable(key)), b"tbs")
        fault(laboratory, "session-lost", op="sign", count=1)
        key.verify(await signer.sign(signable(key)), b"tbs")
        await signer.close()

    asyncio.run(scene())


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("key_handle_invalid", Unavailable),  # nothing was signed, and the caller may rely on it
        ("key_function_not_permitted", Unavailable),
        ("action_prohibited", Unavailable),
        ("device_error", OutcomeUnknown),  # the token was asked, and who knows
        ("device_removed", OutcomeUnknown),
        ("session_closed", OutcomeUnknown),
    ],
)
def test_what_does_not_pass_is_told(laboratory: SimulatorToken, code: str, kind: type[IronrootError]) -> None:
    async def scene() -> None:
        signer = laboratory.signer()
        key = await signer.generate("k", KeyKind.P_256)
        fault(laboratory, "error", code=code, op="sign")
        with pytest.raises(kind) as caught:
            await signer.sign(signable(key))
        assert type(caught.value) is kind
        clear(laboratory)
        key.verify(await in_the_end(lambda: signer.sign(signable(key))), b"tbs")
        await signer.close()

    asyncio.run(scene())


def test_a_removed_token_is_looked_for_again(laboratory: SimulatorToken) -> None:
    async def scene() -> None:
        signer = laboratory.signer()
        key = await signer.generate("k", KeyKind.P_256)
        with operator(laboratory) as hsm:
            fault(laboratory, "device-removed", seconds=3600)
            with pytest.raises(Unavailable):
                await signer.sign(signable(key))
            for _ in range(10):
                with pytest.raises(Unavailable) as caught:
                    await signer.sign(signable(key))
                assert type(caught.value) is Unavailable
            hsm.call("lab", clear=True)
        key.verify(await in_the_end(lambda: signer.sign(signable(key))), b"tbs")
        await signer.close()

    asyncio.run(scene())


def test_a_locked_pin_is_an_alarm_and_not_tried_again(laboratory: SimulatorToken) -> None:
    async def scene() -> None:
        fault(laboratory, "pin-locked", op="login", count=1)
        signer = laboratory.signer()
        with structlog.testing.capture_logs() as said:
            for _ in range(5):
                with pytest.raises(Unavailable, match="locked"):
                    await signer.ready()
        assert [(line["event"], line["code"], line["log_level"]) for line in said] == [("hsm.pin_refused", "pin_locked", "error")]
        laboratory.pin_file.touch()  # somebody saw to it
        await signer.ready()
        await signer.close()

    asyncio.run(scene())


def test_a_curve_that_is_not_there_and_a_slow_token(laboratory: SimulatorToken) -> None:
    async def scene() -> None:
        signer = laboratory.signer()
        fault(laboratory, "error", code="curve_not_supported", op="generate")
        with pytest.raises(Unsupported):
            await signer.generate("k", KeyKind.P_384)
        assert not await signer.can(KeyKind.SM2)
        clear(laboratory)
        assert await signer.can(KeyKind.SM2)
        key = await signer.generate("k", KeyKind.P_256)
        fault(laboratory, "latency", ms=200, op="sign")
        # Longer for all of them than the deadline of a frame's worth; none is lost, and no process is killed for being slow.
        with structlog.testing.capture_logs() as said:
            signatures = await asyncio.gather(*(signer.sign(signable(key)) for _ in range(16)))
        for signature in signatures:
            key.verify(signature, b"tbs")
        assert said == []
        await signer.close()

    asyncio.run(scene())


def test_a_flipped_bit_reaches_the_caller_who_checks(laboratory: SimulatorToken) -> None:
    async def scene() -> None:
        signer = laboratory.signer()
        key = await signer.generate("k", KeyKind.P_256)
        fault(laboratory, "bit-flip", op="sign", count=1)
        with pytest.raises(BadSignature):
            key.verify(await signer.sign(signable(key)), b"tbs")
        key.verify(await signer.sign(signable(key)), b"tbs")
        await signer.close()

    asyncio.run(scene())
