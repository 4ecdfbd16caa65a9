"""What every ``Signer`` does, on every key store: SoftHSM2, the simulator as a PKCS#11 token, and the simulator's own socket."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator

import pytest
import structlog
from key_stores import STANDS, Stand, standing
from soft import SoftSigner

from ca.model import Signable
from ca.ports import Signer
from pkix.algorithms import KeyKind, PublicKey
from pkix.errors import Conflict, Fatal, IronrootError, NotFound, OutcomeUnknown, Unavailable, Unsupported


@pytest.fixture(params=STANDS)
def stand(request: pytest.FixtureRequest) -> Iterator[Stand]:
    with standing(request.param) as made:
        yield made


def run(scene: Callable[[], Coroutine[None, None, None]]) -> None:
    asyncio.run(scene())


def signable(key: str, public_key: PublicKey, message: bytes = b"tbs") -> Signable:
    return Signable(key, public_key, "certificate", message)


async def failed(kind: type[IronrootError], work: Coroutine[None, None, object]) -> IronrootError:
    """The error of exactly this kind that ``work`` ends with."""
    with pytest.raises(kind) as caught:
        await work
    assert type(caught.value) is kind, caught.value
    return caught.value


async def in_the_end(work: Callable[[], Coroutine[None, None, bytes]]) -> bytes:
    """What ``work`` gives once the key store is back. Until then it is unavailable, and nothing else."""
    while True:
        try:
            return await work()
        except Unavailable:
            await asyncio.sleep(0.05)


def test_every_kind_of_key_signs_and_verifies(stand: Stand) -> None:
    async def scene() -> None:
        signer = stand.signer(60)
        for kind in stand.kinds:
            made = await signer.generate(f"key {kind}", kind)
            assert made.kind == kind
            made.verify(await signer.sign(signable(f"key {kind}", made)), b"tbs")
        await signer.close()
        newcomer = stand.signer(60)
        for kind in stand.kinds:
            found = await newcomer.public_key(f"key {kind}")
            found.verify(await newcomer.sign(signable(f"key {kind}", found, b"later")), b"later")
        await newcomer.close()

    run(scene)


def test_what_a_key_store_cannot_do_is_said(stand: Stand) -> None:
    async def scene() -> None:
        signer = stand.signer()
        await failed(Unsupported, signer.generate("odd", "dsa-1024"))  # type: ignore[arg-type]
        if KeyKind.SM2 not in stand.kinds:  # it knows the curve, and would sign ECDSA with it
            assert "SM2" in str(await failed(Unsupported, signer.generate("odd", KeyKind.SM2)))
        await failed(NotFound, signer.public_key("odd"))
        await signer.close()

    run(scene)


def test_what_is_and_what_is_not_there(stand: Stand) -> None:
    async def scene() -> None:
        signer = stand.signer()
        key = await signer.generate("k", KeyKind.P_256)
        await failed(Conflict, signer.generate("k", KeyKind.P_384))
        await failed(NotFound, signer.public_key("none"))
        await failed(NotFound, signer.sign(signable("none", key)))
        await signer.destroy("k")
        await failed(NotFound, signer.destroy("k"))
        await failed(NotFound, signer.sign(signable("k", key)))
        again = await signer.generate("k", KeyKind.P_256)
        assert again != key
        again.verify(await signer.sign(signable("k", again)), b"tbs")
        await signer.close()

    run(scene)


def test_many_signatures_at_once_are_not_mixed_up(stand: Stand) -> None:
    async def scene() -> None:
        signer, other = stand.signer(), stand.signer()
        keys = {name: await signer.generate(name, kind) for name, kind in (("a", KeyKind.P_256), ("b", KeyKind.P_384))}

        async def one(by: Signer, name: str, message: bytes) -> None:
            keys[name].verify(await by.sign(signable(name, keys[name], message)), message)

        await asyncio.gather(*(one((signer, other)[n % 3 == 0], "ab"[n % 2], b"%d" % n) for n in range(300)))
        await signer.close()
        await other.close()

    run(scene)


def test_restarted_between_calls_it_goes_on(stand: Stand) -> None:
    async def scene() -> None:
        signer = stand.signer()
        key = await signer.generate("k", KeyKind.P_256)
        for message in (b"1", b"2"):
            stand.stop()
            stand.start()
            key.verify(await in_the_end(lambda m=message: signer.sign(signable("k", key, m))), message)  # type: ignore[misc]
        await signer.ready()
        await signer.close()

    run(scene)


def test_one_that_is_not_there_is_unavailable_and_used_when_it_comes(stand: Stand) -> None:
    async def scene() -> None:
        signer = stand.signer()
        key = await signer.generate("k", KeyKind.P_256)
        stand.stop()
        with pytest.raises(Unavailable):  # in doubt where the connection is found broken only by the question
            await signer.sign(signable("k", key))
        for _ in range(20):
            error = await failed(Unavailable, signer.sign(signable("k", key)))
            assert error.retry_after == 5
        await failed(Unavailable, signer.ready())
        newcomer = stand.signer()
        await failed(Unavailable, newcomer.ready())
        stand.start()
        key.verify(await in_the_end(lambda: signer.sign(signable("k", key))), b"tbs")
        await signer.close()
        await newcomer.close()

    run(scene)


def test_one_that_hangs_costs_a_deadline_and_nobody_else_anything(stand: Stand) -> None:
    async def scene() -> None:
        signer, elsewhere = stand.signer(2), SoftSigner()
        key = await signer.generate("k", KeyKind.P_256)
        other = await elsewhere.generate("o", KeyKind.P_256)
        await signer.sign(signable("k", key))
        stand.freeze()
        hanging = asyncio.ensure_future(signer.sign(signable("k", key)))
        for _ in range(100):  # the loop is free
            await asyncio.sleep(0.001)
            other.verify(await elsewhere.sign(signable("o", other)), b"tbs")
        assert not hanging.done()
        outcome = (await asyncio.gather(hanging, return_exceptions=True))[0]
        assert type(outcome) is OutcomeUnknown
        stand.thaw()
        key.verify(await in_the_end(lambda: signer.sign(signable("k", key))), b"tbs")
        await signer.close()

    run(scene)


def test_a_wrong_pin_is_tried_once_until_its_file_changes(stand: Stand) -> None:
    async def scene() -> None:
        pin = stand.pin_file.read_text()
        stand.pin_file.write_text("not the PIN\n")
        signer = stand.signer()
        with structlog.testing.capture_logs() as said:
            for _ in range(15):  # more than would lock it
                error = await failed(Unavailable, signer.ready())
                assert "PIN is wrong" in str(error)
                assert "not the PIN" not in str(error)
        assert len(said) == 1
        assert "not the PIN" not in str(said)
        stand.pin_file.unlink()
        assert "PIN file" in str(await failed(Unavailable, signer.ready()))
        stand.pin_file.write_text(pin)
        await signer.ready()
        await signer.close()

    run(scene)


@pytest.mark.parametrize("stand", [name for name, kind in STANDS.items() if kind.locks], indirect=True)
def test_a_locked_pin_says_so(stand: Stand) -> None:
    async def scene() -> None:
        await stand.lock()
        signer = stand.signer()
        assert "locked" in str(await failed(Unavailable, signer.ready()))
        await signer.close()

    run(scene)


def test_another_key_under_a_known_name_stops_everything(stand: Stand) -> None:
    async def scene() -> None:
        signer, somebody = stand.signer(), stand.signer()
        key = await signer.generate("k", KeyKind.P_256)
        await signer.sign(signable("k", key))
        await somebody.destroy("k")
        other = await somebody.generate("k", KeyKind.P_256)
        await somebody.close()
        stand.stop()
        stand.start()
        with pytest.raises(Fatal):
            await in_the_end(lambda: signer.sign(signable("k", key)))
        newcomer = stand.signer()  # has never seen the key, but knows from the certificate which one it has to be
        await failed(Fatal, newcomer.sign(signable("k", key)))
        await newcomer.close()
        newest = stand.signer()
        other.verify(await newest.sign(signable("k", other)), b"tbs")
        await signer.close()
        await newest.close()

    run(scene)


def test_a_caller_that_gives_up_takes_nobody_with_it(stand: Stand) -> None:
    async def scene() -> None:
        signer = stand.signer()
        key = await signer.generate("k", KeyKind.P_256)
        asked = [asyncio.ensure_future(signer.sign(signable("k", key, b"%d" % number))) for number in range(40)]
        await asyncio.sleep(0)
        for request in asked[::2]:
            request.cancel()
        await asyncio.wait(asked[::2])
        for number in range(1, 40, 2):
            key.verify(await asked[number], b"%d" % number)
        await signer.close()

    run(scene)
