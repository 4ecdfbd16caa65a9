"""The processes that use a PKCS#11 token: they crash, hang, are too few or too many, and nobody's PIN or output goes astray."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path

import pytest
from key_stores import SOFTHSM, SoftHsm, standing, workers
from programs import need

from ca.model import Signable
from ca.pkcs11_uri import parse
from ca.signer_pkcs11 import Pkcs11Signer
from ca.signer_router import RouterSigner
from pkix.algorithms import KeyKind
from pkix.errors import Conflict, Malformed, NotFound, Unavailable


@pytest.fixture
def softhsm() -> Iterator[SoftHsm]:
    with standing("softhsm2") as made:
        assert isinstance(made, SoftHsm)
        yield made


def run(scene: Callable[[], Coroutine[None, None, None]]) -> None:
    asyncio.run(scene())
    assert workers() == []  # none is left behind


def state(process: int) -> str:
    return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]


def tool(softhsm: SoftHsm, *arguments: str) -> str:
    """``pkcs11-tool …``: somebody else's program on the same token."""
    need("pkcs11-tool")
    command = ["pkcs11-tool", "--module", SOFTHSM, "--token-label", "ironroot", "--login", "--pin", softhsm.pin, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_library_that_crashes_takes_nobody_with_it(softhsm: SoftHsm) -> None:
    async def scene() -> None:
        signer = softhsm.signer()
        key = await signer.generate("k", KeyKind.P_256)
        for number in range(3):
            [process] = workers()
            os.kill(process, signal.SIGSEGV)
            message = b"%d" % number
            key.verify(await signer.sign(Signable("k", key, "x", message)), message)
            assert workers() != [process]
        [process] = workers()
        os.kill(process, signal.SIGSTOP)
        asked = [asyncio.ensure_future(signer.sign(Signable("k", key, "x", b"%d" % number))) for number in range(30)]
        await asyncio.sleep(0)
        await asyncio.sleep(0)  # some of them are with it
        os.kill(process, signal.SIGKILL)
        for number, request in enumerate(asked):
            key.verify(await request, b"%d" % number)
        await signer.close()

    run(scene)


def test_while_one_process_hangs_another_signs(softhsm: SoftHsm) -> None:
    async def scene() -> None:
        signer = softhsm.signer(10, processes=2)
        key = await signer.generate("k", KeyKind.P_256)
        [first] = workers()
        os.kill(first, signal.SIGSTOP)
        hanging = asyncio.ensure_future(signer.sign(Signable("k", key, "x", b"tbs")))
        for _ in range(5):
            await asyncio.sleep(0)  # it is with the first
        for number in range(100):
            key.verify(await signer.sign(Signable("k", key, "x", b"%d" % number)), b"%d" % number)
        assert not hanging.done()
        assert state(first) == "T"
        os.kill(first, signal.SIGCONT)
        key.verify(await hanging, b"tbs")
        assert len(workers()) == 2
        await signer.close()

    run(scene)


def test_processes_are_started_when_they_are_needed(softhsm: SoftHsm) -> None:
    async def scene() -> None:
        signer = softhsm.signer(processes=3)
        assert workers() == []
        key = await signer.generate("k", KeyKind.P_256)
        for _ in range(5):
            await signer.sign(Signable("k", key, "x", b"tbs"))
        assert len(workers()) == 1
        await asyncio.gather(*(signer.sign(Signable("k", key, "x", b"%d" % number)) for number in range(2000)))
        assert 1 < len(workers()) <= 3
        await signer.close()
        with pytest.raises(Unavailable):
            await asyncio.wait_for(signer.sign(Signable("k", key, "x", b"late")), 1)

    run(scene)


def test_they_end_with_their_parent(softhsm: SoftHsm) -> None:
    program = (
        "import asyncio, sys, pathlib\n"
        "from ca.pkcs11_uri import parse\nfrom ca.signer_pkcs11 import Pkcs11Signer\n"
        "async def main():\n"
        f"    signer = Pkcs11Signer(parse({str(softhsm.uri())!r}), pathlib.Path('/'))\n"
        "    await signer.ready()\n"
        "    print(signer._workers[0].pid, flush=True)\n"
        "    await asyncio.Event().wait()\n"
        "asyncio.run(main())\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    worker = os.pidfd_open(int(parent.stdout.readline()))
    parent.kill()
    parent.communicate()
    os.set_blocking(worker, False)

    async def ended() -> None:
        gone = asyncio.Event()
        asyncio.get_running_loop().add_reader(worker, gone.set)
        await asyncio.wait_for(gone.wait(), 30)

    asyncio.run(ended())
    os.close(worker)


def test_the_pin_is_in_no_argument_environment_or_memory_of_ours(softhsm: SoftHsm) -> None:
    pin = "a-rather-long-PIN-4711"
    tool(softhsm, "--change-pin", "--new-pin", pin)
    softhsm.pin_file.write_text(pin + "\n")

    async def scene() -> None:
        signer = softhsm.signer()
        await signer.ready()
        [process] = workers()
        for name in ("cmdline", "environ"):
            assert pin.encode() not in Path(f"/proc/{process}/{name}").read_bytes()
        status = Path(f"/proc/{process}/status").read_text()
        assert "CoreDumping:\t0" in status
        assert Path(f"/proc/{process}/limits").read_text().split("Max core file size")[1].split()[:2] == ["0", "0"]
        await signer.close()

    run(scene)


def test_two_keys_of_one_name_are_refused_until_one_is_meant(softhsm: SoftHsm) -> None:
    for identifier in ("01", "02"):
        tool(softhsm, "--keypairgen", "--key-type", "EC:prime256v1", "--label", "twin", "--id", identifier)

    async def scene() -> None:
        signer = softhsm.signer()
        with pytest.raises(Conflict, match="2 private keys 'twin'"):
            await signer.public_key("twin")
        twin = str(softhsm.uri().key("twin"))
        first, second = [await signer.public_key(twin.replace("object=twin", f"object=twin;id=%0{number}")) for number in (1, 2)]
        assert first != second
        reference = twin.replace("object=twin", "id=%02")
        second.verify(await signer.sign(Signable(reference, second, "x", b"tbs")), b"tbs")
        with pytest.raises(Malformed, match="no key on it"):
            await signer.public_key(str(softhsm.uri()))
        await signer.close()

    run(scene)


def test_keys_that_other_programs_made_are_used(softhsm: SoftHsm) -> None:
    tool(softhsm, "--keypairgen", "--key-type", "EC:secp384r1", "--label", "made elsewhere", "--id", "0a0b")
    tool(softhsm, "--keypairgen", "--key-type", "rsa:3072", "--label", "rsa", "--id", "0c")

    async def scene() -> None:
        signer = softhsm.signer()
        for name, kind in (("made elsewhere", KeyKind.P_384), ("rsa", KeyKind.RSA_3072)):
            key = await signer.public_key(name)
            assert key.kind is kind
            key.verify(await signer.sign(Signable(name, key, "x", b"tbs")), b"tbs")
        mine = await signer.generate("mine", KeyKind.P_256)
        await signer.close()
        shown = tool(softhsm, "--list-objects", "--type", "privkey")
        assert "label:      mine" in shown
        assert "sensitive, always sensitive, never extractable, local" in shown
        assert mine.key_bits.hex() in tool(softhsm, "--list-objects", "--type", "pubkey")

    run(scene)


def test_what_cannot_be_opened_says_why(softhsm: SoftHsm, monkeypatch: pytest.MonkeyPatch) -> None:
    async def trouble(text: str) -> str:
        signer = Pkcs11Signer(parse(text), softhsm.folder)
        with pytest.raises(Unavailable) as caught:
            await signer.ready()
        await signer.close()
        return str(caught.value)

    async def scene() -> None:
        assert "library cannot be used" in await trouble("pkcs11:token=a?module-path=/nowhere/p11.so")
        assert "library cannot be used" in await trouble("pkcs11:token=a?module-path=/usr/lib/x86_64-linux-gnu/libz.so.1")
        assert "no token fits the URI; there are: 'ironroot'" in await trouble(f"pkcs11:token=other?module-path={SOFTHSM}")
        softhsm.add_token("other")
        assert "several tokens fit" in await trouble(f"pkcs11:manufacturer=SoftHSM%20project?module-path={SOFTHSM}")
        monkeypatch.setattr("ca.signer_pkcs11.find_spec", lambda _name: None)
        assert "extra `pkcs11`" in await trouble(str(softhsm.uri()))

    run(scene)


def test_keys_on_several_tokens_at_once(softhsm: SoftHsm) -> None:
    softhsm.add_token("other")
    opened = []

    async def scene() -> None:
        uri, other = softhsm.uri(), softhsm.uri("other")
        in_use = ["here", str(other.key("there"))]

        def open_store(wanted: object) -> Pkcs11Signer:
            opened.append(wanted)
            return softhsm.signer(label="other")

        signer = RouterSigner(softhsm.signer(), uri, open_store, lambda: in_use)
        keys = {name: await signer.generate(name, KeyKind.P_256) for name in in_use}
        for name, key in keys.items():
            assert await signer.public_key(name) == key
            key.verify(await signer.sign(Signable(name, key, "x", b"tbs")), b"tbs")
        assert await signer.public_key(str(uri.key("here"))) == keys["here"]  # the default token, by its full name
        assert opened == [other]
        with pytest.raises(NotFound):
            await signer.public_key("there")
        await signer.ready()
        softhsm.stop()
        with pytest.raises(Unavailable):
            await signer.ready()
        softhsm.start()
        await signer.close()

    run(scene)
