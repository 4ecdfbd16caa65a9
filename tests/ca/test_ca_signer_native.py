"""NativeSigner against the real HSM process: what it signs, and what a caller learns when the HSM is away, hung, locked or not itself."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Coroutine, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import structlog

from ca.hsm_link import Link
from ca.model import Signable
from ca.signer_native import NativeSigner
from pkix.algorithms import KeyKind, PublicKey
from pkix.errors import Conflict, Fatal, IronrootError, NotFound, OutcomeUnknown, Unavailable, Unsupported

ROOT = Path(__file__).parents[2]


class Hsm:
    """The HSM's process over a home in /tmp."""

    def __init__(self, home: Path) -> None:
        self.home, self.socket, self.pin_file = home, home / "native.sock", home / "pin"
        self.process: subprocess.Popen[str] | None = None
        subprocess.run([sys.executable, "-m", "hsm_sim", "init", "--home", str(home)], cwd=ROOT, check=True)

    def start(self) -> Hsm:
        command = [sys.executable, "-m", "hsm_sim", "--home", str(self.home)]
        self.process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ready\n"
        return self

    def send(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def end(self, number: int = signal.SIGKILL) -> None:
        if self.process is not None:
            self.process.send_signal(number)
            self.process.communicate()
            self.process = None

    def signer(self, deadline: float = 30.0) -> NativeSigner:
        return NativeSigner(self.socket, self.pin_file, deadline=deadline)

    def log(self) -> list[dict[str, Any]]:
        """The lines about signatures."""
        lines = [json.loads(line) for line in (self.home / "audit.log").read_text().splitlines() if line]
        return [line for line in lines if line["op"] == "sign"]


@pytest.fixture
def hsm() -> Iterator[Hsm]:
    folder = Path(tempfile.mkdtemp(prefix="ir", dir="/tmp"))
    device = Hsm(folder / "hsm")
    yield device
    device.end()
    shutil.rmtree(folder)


def run(scene: Callable[[], Coroutine[None, None, None]]) -> None:
    asyncio.run(scene())


def signable(key: str, public_key: PublicKey, message: bytes = b"tbs", purpose: str = "certificate") -> Signable:
    return Signable(key, public_key, purpose, message)


async def turns() -> None:
    """Lets the loop run until what was begun has been written to the socket."""
    for _ in range(10):
        await asyncio.sleep(0)


async def failed(kind: type[IronrootError], work: Coroutine[None, None, object]) -> IronrootError:
    """The error of exactly this kind that ``work`` ends with."""
    with pytest.raises(kind) as caught:
        await work
    assert type(caught.value) is kind, caught.value
    return caught.value


def test_every_kind_of_key_signs_and_verifies(hsm: Hsm) -> None:
    hsm.start()

    async def scene() -> None:
        signer = hsm.signer(60)
        for kind in KeyKind:
            made = await signer.generate(f"key {kind}", kind)
            assert made.kind == kind
            assert await signer.public_key(f"key {kind}") == made
            made.verify(await signer.sign(signable(f"key {kind}", made)), b"tbs")
        await signer.ready()
        await signer.close()

    run(scene)


def test_signatures_asked_for_at_once_share_one_commit_and_are_not_mixed_up(hsm: Hsm) -> None:
    hsm.start()

    async def scene() -> None:
        signer = hsm.signer()
        key = await signer.generate("k", KeyKind.P_256)
        other = await signer.generate("s", KeyKind.SM2)
        messages = [b"%d" % number for number in range(100)]
        signatures = await asyncio.gather(*(signer.sign(signable("k", key, message)) for message in messages))
        for message, signature in zip(messages, signatures, strict=True):
            key.verify(signature, message)
        (line,) = hsm.log()
        assert line["inputs"] == [sha256(message).hexdigest() for message in messages]
        mixed = [(("k", key), ("s", other))[number % 2] for number in range(600)]  # more than one frame takes
        signatures = await asyncio.gather(*(signer.sign(signable(name, public, b"%d" % n)) for n, (name, public) in enumerate(mixed)))
        for number, ((_, public), signature) in enumerate(zip(mixed, signatures, strict=True)):
            public.verify(signature, b"%d" % number)
        await signer.close()

    run(scene)


def test_what_is_and_what_is_not_there(hsm: Hsm) -> None:
    hsm.start()

    async def scene() -> None:
        signer = hsm.signer()
        key = await signer.generate("k", KeyKind.ED25519)
        await failed(Conflict, signer.generate("k", KeyKind.SM2))
        await failed(NotFound, signer.public_key("none"))
        await failed(NotFound, signer.sign(signable("none", key)))
        await failed(Unsupported, signer.generate("odd", "dsa-1024"))  # type: ignore[arg-type]
        await signer.destroy("k")
        await failed(NotFound, signer.destroy("k"))
        await failed(NotFound, signer.sign(signable("k", key)))
        assert hsm.log() == []
        await signer.close()

    run(scene)


def test_an_hsm_that_is_not_there_costs_nothing_and_is_used_when_it_comes(hsm: Hsm) -> None:
    async def scene() -> None:
        signer = hsm.signer()
        error = await failed(Unavailable, signer.ready())
        assert error.retry_after == 5
        await failed(Unavailable, signer.generate("k", KeyKind.P_256))
        hsm.start()
        key = await signer.generate("k", KeyKind.P_256)
        hsm.end(signal.SIGTERM)
        for _ in range(3):
            await failed(Unavailable, signer.sign(signable("k", key)))
        hsm.start()
        key.verify(await signer.sign(signable("k", key)), b"tbs")
        await signer.close()

    run(scene)


def test_killed_while_signing_nobody_knows_and_afterwards_it_works(hsm: Hsm) -> None:
    hsm.start()

    async def scene() -> None:
        signer = hsm.signer()
        key = await signer.generate("k", KeyKind.SM2)
        hsm.send(signal.SIGSTOP)
        asked = [asyncio.ensure_future(signer.sign(signable("k", key, b"%d" % number))) for number in range(20)]
        await turns()  # they are sent
        await asyncio.to_thread(hsm.end)
        for outcome in await asyncio.gather(*asked, return_exceptions=True):
            assert type(outcome) is OutcomeUnknown
        await failed(Unavailable, signer.sign(signable("k", key)))
        hsm.start()
        key.verify(await signer.sign(signable("k", key)), b"tbs")
        await signer.close()

    run(scene)


def test_a_hung_hsm_is_asked_once_and_then_left_alone_for_a_while(hsm: Hsm) -> None:
    hsm.start()

    async def scene() -> None:
        maker, signer = hsm.signer(), hsm.signer(2)
        key = await maker.generate("k", KeyKind.P_256)
        await maker.close()
        await signer.public_key("k")
        hsm.send(signal.SIGSTOP)
        await failed(OutcomeUnknown, signer.sign(signable("k", key)))
        for _ in range(100):  # none of them is sent into the silence, or it would be OutcomeUnknown
            await failed(Unavailable, signer.sign(signable("k", key)))
        hsm.send(signal.SIGCONT)
        while True:
            try:
                key.verify(await signer.sign(signable("k", key)), b"tbs")
                break
            except Unavailable:
                await asyncio.sleep(0.05)
        await signer.close()

    run(scene)


def test_a_wrong_pin_is_tried_once_until_its_file_changes(hsm: Hsm) -> None:
    hsm.start()

    async def scene() -> None:
        pin = hsm.pin_file.read_text()
        hsm.pin_file.write_text("not the PIN\n")
        signer = hsm.signer()
        with structlog.testing.capture_logs() as said:
            for _ in range(12):
                error = await failed(Unavailable, signer.ready())
                assert "HSM PIN is wrong" in str(error)
                assert "not the PIN" not in str(error)
        assert [(line["event"], line["log_level"]) for line in said] == [("hsm.pin_wrong", "warning")]
        assert "not the PIN" not in str(said)
        assert (await operator(hsm, "status"))["tries_left"] == 9
        hsm.pin_file.unlink()
        assert "PIN file" in str(await failed(Unavailable, signer.ready()))
        hsm.pin_file.write_text(pin)
        await signer.ready()
        assert (await operator(hsm, "status"))["tries_left"] == 10
        await signer.close()

    run(scene)


def test_another_key_under_a_known_name_stops_everything(hsm: Hsm) -> None:
    hsm.start()

    async def scene() -> None:
        signer, somebody = hsm.signer(), hsm.signer()
        key = await signer.generate("k", KeyKind.P_256)
        await signer.sign(signable("k", key))
        await somebody.destroy("k")
        other = await somebody.generate("k", KeyKind.P_256)
        await somebody.close()
        hsm.end(signal.SIGTERM)
        hsm.start()
        before = len(hsm.log())
        for _ in range(2):
            await failed(Fatal, signer.sign(signable("k", key)))
        newcomer = hsm.signer()  # has never seen the key, but knows from the certificate which one it has to be
        await failed(Fatal, newcomer.sign(signable("k", key)))
        assert len(hsm.log()) == before
        other.verify(await newcomer.sign(signable("k", other)), b"tbs")
        await signer.close()
        await newcomer.close()

    run(scene)


async def operator(hsm: Hsm, *operations: str) -> Any:
    """Somebody with the PIN, on a connection of his own. The last answer."""
    _, link = await asyncio.get_running_loop().create_unix_connection(Link, os.fspath(hsm.socket))
    answer = None
    for operation in operations:
        answer = await link.ask(operation, **({"pin": hsm.pin_file.read_text().strip()} if operation == "login" else {}))
    link.retire()
    return answer


def test_a_locked_hsm_stays_locked_until_its_operator_unlocks_it(hsm: Hsm) -> None:
    hsm.start()

    async def scene() -> None:
        signer, newcomer = hsm.signer(), hsm.signer()
        key = await signer.generate("k", KeyKind.P_256)
        await operator(hsm, "login", "lock")
        for _ in range(2):
            error = await failed(Unavailable, signer.sign(signable("k", key)))
            assert "restart `ironroot serve`" in str(error)
            assert error.retry_after == 5
        await failed(Unavailable, newcomer.ready())
        await operator(hsm, "login")
        key.verify(await signer.sign(signable("k", key)), b"tbs")
        await newcomer.ready()
        await signer.close()
        await newcomer.close()

    run(scene)


def test_a_full_disk_is_unavailable_and_heals(hsm: Hsm) -> None:
    hsm.start()

    async def scene() -> None:
        signer = hsm.signer()
        key = await signer.generate("k", KeyKind.P_256)
        assert hsm.process is not None
        resource.prlimit(hsm.process.pid, resource.RLIMIT_FSIZE, (50, resource.RLIM_INFINITY))
        error = await failed(Unavailable, signer.sign(signable("k", key)))
        assert "nothing was done" in str(error)
        await failed(Unavailable, signer.generate("another", KeyKind.P_256))
        resource.prlimit(hsm.process.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        key.verify(await signer.sign(signable("k", key)), b"tbs")
        await failed(NotFound, signer.public_key("another"))
        assert len(hsm.log()) == 1
        await signer.close()

    run(scene)


def test_a_caller_that_gives_up_takes_nobody_with_it(hsm: Hsm) -> None:
    hsm.start()

    async def scene() -> None:
        signer = hsm.signer()
        key = await signer.generate("k", KeyKind.P_256)
        hsm.send(signal.SIGSTOP)
        asked = [asyncio.ensure_future(signer.sign(signable("k", key, b"%d" % number))) for number in range(10)]
        await turns()
        for request in asked[::2]:
            request.cancel()
        await asyncio.wait(asked[::2])
        hsm.send(signal.SIGCONT)
        for number in range(1, 10, 2):
            key.verify(await asked[number], b"%d" % number)
        await signer.close()

    run(scene)
