"""Non-extractable, looked for: no file, no answer of either door, no memory open to others holds the private numbers."""

from __future__ import annotations

import base64
import contextlib
import ctypes
import os
import resource
import signal
import socket
import stat
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hsm_inside import Inside, pin_of, run
from programs import missing, need

from hsm_sim import cka
from hsm_sim.__main__ import _harden
from hsm_sim.records import secret_of
from hsm_sim.roles import Role
from hsm_sim.seal import CIPHERS, Ring, seal, unseal
from pkix import der
from pkix.algorithms import KeyKind
from pkix.errors import Malformed

MODULE = "/usr/lib/x86_64-linux-gnu/pkcs11/p11-kit-client.so"
KINDS = [str(kind) for kind in KeyKind if kind not in (KeyKind.RSA_3072, KeyKind.RSA_4096)]


# --- sealing


@pytest.mark.parametrize("cipher", CIPHERS)
def test_what_is_sealed_opens_with_its_key_and_its_context_alone(cipher: str) -> None:
    key, data, context = bytes(range(32)), b"secret octets", b"what it belongs to"
    sealed = seal(key, data, context, cipher)
    assert unseal(key, sealed, context, cipher) == data
    assert data not in sealed
    assert seal(key, data, context, cipher) != sealed
    wrong: list[tuple[bytes, bytes, bytes]] = [
        (bytes(32), sealed, context),
        (key, sealed, b""),
        (key, sealed[:20], context),
        (key, b"", context),
    ]
    wrong += [(key, sealed[:place] + bytes([sealed[place] ^ 1]) + sealed[place + 1 :], context) for place in (0, 12, len(sealed) - 1)]
    for attempt in wrong:
        with pytest.raises(Malformed):
            unseal(*attempt, cipher)
    other = next(each for each in CIPHERS if each != cipher)
    with pytest.raises(Malformed):
        unseal(key, sealed, context, other)


def test_each_version_of_each_object_has_a_key_and_a_mark_of_its_own() -> None:
    ring = Ring(bytes(32), CIPHERS[0])
    record = ring.seal(b"1" * 16, 1, b"secret", b"described")
    assert ring.unseal(b"1" * 16, 1, record, b"described") == b"secret"
    for id_, version, described in ((b"2" * 16, 1, b"described"), (b"1" * 16, 2, b"described"), (b"1" * 16, 1, b"Described")):
        with pytest.raises(Malformed):
            ring.unseal(id_, version, record, described)
    marks = {ring.mark(bytes([number]) * 16, version) for number in range(5) for version in range(5)}
    assert len(marks) == 25
    assert Ring(b"\x01" * 32, CIPHERS[0]).mark(b"1" * 16, 1) != ring.mark(b"1" * 16, 1)
    assert "kek" not in repr(ring)


# --- the search


def numbers(contents: bytes) -> set[bytes]:
    """All integers and octet strings (also [0], ML-DSA's seed) of 31 octets and more in a DER structure, and in octet strings in it."""
    found, pos = set[bytes](), 0
    while pos < len(contents):
        element = der.read(contents, pos)
        body, pos = contents[element.body : element.end], element.end
        if element.tag & 0x20:
            found |= numbers(body)
        elif element.tag in (der.INTEGER, der.OCTET_STRING, 0x80) and len(body) >= 31:
            found.add(body)
            with contextlib.suppress(Malformed):
                found |= numbers(body)
    return found


def forms(secret: bytes) -> list[bytes]:
    """How a secret could be written down: as it is, little-endian, hex, base64 (at each of the three alignments), decimal."""
    plain = secret.lstrip(b"\0")
    encoded = [base64.b64encode(bytes(shift) + plain)[4 : 4 + len(plain)] for shift in range(3)]
    decimal = [str(int.from_bytes(plain)).encode()] if len(plain) <= 512 else []  # no single number is longer
    return [plain, plain[::-1], plain.hex().encode(), plain.hex().upper().encode(), *encoded, *decimal]


@contextlib.contextmanager
def tee(path: Path, beside: Path, heard: bytearray) -> Iterator[None]:
    """A socket ``beside`` that passes everything on to ``path`` and keeps what came back."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(beside))
    listener.listen()

    def copy(source: socket.socket, target: socket.socket, keep: bytearray | None) -> None:
        with contextlib.suppress(OSError):
            while octets := source.recv(1 << 16):
                if keep is not None:
                    keep += octets
                target.sendall(octets)
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_WR)

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                client, server = listener.accept()[0], socket.socket(socket.AF_UNIX)
                with client, server:
                    server.connect(str(path))
                    back = threading.Thread(target=copy, args=(server, client, heard))
                    back.start()
                    copy(client, server, None)
                    back.join()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


def pkcs11(beside: Path, *arguments: str) -> str:
    environment = {**os.environ, "P11_KIT_SERVER_ADDRESS": f"unix:path={beside}"}
    command = ["pkcs11-tool", "--module", MODULE, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False).stdout


def test_no_private_number_is_in_any_answer_or_file(hsm: Any) -> None:
    officer, so, auditor = hsm.login(), hsm.login(Role.SO), hsm.login(Role.AUDITOR)
    for kind in KINDS:
        officer.call("generate", key=kind, kind=kind)
        officer.sign(kind, bytes(48) if kind == "p-384" else bytes(32))
    officer.call("generate", key="aes-256", kind="aes-256")
    for op in ("public_key", "attributes", "attest", "generate", "wrap", "export", "get", "backup", "decrypt", "derive"):
        for kind in (*KINDS, "aes-256"):
            with contextlib.suppress(RuntimeError):
                officer.call(op, key=kind, kind=kind, wrapping="aes-256", under="aes-256", data=bytes(32), mechanism="CKM_AES_KEY_WRAP_KWP")
    for client in (officer, so, auditor):
        for op in ("hello", "status", "keys", "log_head", "approvers", "backup", "certificates"):
            with contextlib.suppress(RuntimeError):
                client.call(op, needed=1, total=1)
        with contextlib.suppress(RuntimeError):
            client.call("audit_read", after=0, limit=1000)
    officer.code("login", pin="wrong pin")
    heard = bytearray()
    if Path(MODULE).exists():
        need("pkcs11-tool")
        beside = hsm.home.parent / "tee.sock"
        with tee(hsm.home / "pkcs11.sock", beside, heard):
            said = pkcs11(beside, "--login", "--pin", hsm.pin, "--list-objects")
            assert said.count("Private Key Object") >= 4
            for kind in KINDS:
                pkcs11(beside, "--login", "--pin", hsm.pin, "--read-object", "--type", "privkey", "--label", kind)
            pkcs11(beside, "--login", "--pin", hsm.pin, "--read-object", "--type", "secrkey", "--label", "aes-256")
        assert len(heard) > 1000
    assert hsm.stop() == 0

    async def read(inside: Inside) -> list[tuple[str, bytes, bytes]]:
        found = await inside.partition.contents(inside.caller)
        return [(obj.label, obj.key.spki if obj.key else b"", secret) for obj, secret in found if obj.secret]

    before = {path: path.read_bytes() for path in hsm.home.iterdir() if path.is_file()}
    keys = run(hsm.home, read, role=Role.SO)
    assert len(keys) == len(KINDS) + 1
    pins = [pin_of(hsm.home, role).encode() for role in (Role.OFFICER, Role.SO, Role.AUDITOR)]
    answers = bytes(heard) + b"".join(bytes(client.received) for client in hsm.clients)
    files = b"\0".join(octets for path, octets in before.items() if not path.name.endswith("pin"))
    seen = answers + b"\0" + files
    for label, spki, secret in keys:
        assert not spki or spki in seen  # the search finds what is there
        hidden = {secret} | ({number for number in numbers(secret) if number not in spki} if spki else set())  # PKCS#8 repeats the modulus
        assert len(hidden) >= (3 if spki else 1), label
        for number in hidden:
            for form in forms(number):
                assert form not in seen, label
    assert before[hsm.home / "device.key"] not in answers
    for pin in pins:
        assert pin not in seen
        assert pin.hex().encode() not in seen


def test_the_search_looks_for_the_right_octets(home: Path) -> None:
    """What is sealed is what the key signs with: its scalar is among the numbers that were searched for."""

    async def story(hsm: Inside) -> None:
        _, key = await hsm.pair("k")
        assert key.key is not None
        scalar = key.key.revealed()[cka.CKA_VALUE]
        assert isinstance(scalar, bytes)
        assert scalar in secret_of(key)
        assert scalar in numbers(secret_of(key))

    run(home, story)


# --- the process


def test_it_leaves_no_core_and_cannot_gain_privileges(hsm: Any) -> None:
    pid = hsm.process.pid
    assert resource.prlimit(pid, resource.RLIMIT_CORE) == (0, 0)
    assert "NoNewPrivs:\t1" in Path(f"/proc/{pid}/status").read_text()
    assert Path(f"/proc/{pid}/mem").stat().st_uid == 0  # not dumpable: its files in /proc are root's, whoever it runs as
    for name in ("native.sock", "pkcs11.sock"):
        assert stat.S_IMODE((hsm.home / name).stat().st_mode) == 0o600


def as_nobody(work: Callable[[], object]) -> str:
    """Does it in a child process of another user; the name of the error that it ends in, or ""."""
    if os.geteuid() != 0:
        missing("the right to become somebody else (root)")
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        outcome = "died"
        try:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
            work()
            outcome = ""
        except BaseException as error:
            outcome = type(error).__name__
        os.write(writing, outcome.encode())
        os._exit(0)
    os.close(writing)
    with open(reading, "rb") as said:
        outcome = said.read().decode()
    os.waitpid(child, 0)
    return outcome


def memory(pid: int) -> None:
    os.close(os.open(f"/proc/{pid}/mem", os.O_RDONLY))


def test_its_memory_and_its_files_are_closed_to_another_user(hsm: Any) -> None:
    assert as_nobody(lambda: memory(hsm.process.pid)) == "PermissionError"
    assert as_nobody((hsm.home / "device.key").read_bytes) == "PermissionError"
    hsm.home.parent.chmod(0o711)
    hsm.home.chmod(0o711)
    for name in ("device.key", "hsm.db", "hsm.db-wal", "pin", "audit.log"):
        assert as_nobody((hsm.home / name).read_bytes) == "PermissionError", name


@pytest.mark.parametrize("hardened", [True, False])
def test_its_memory_is_closed_even_to_its_own_user(hardened: bool) -> None:
    """Two processes of one user who is not root: the one that is hardened as the HSM is cannot be read by the other."""

    def look() -> None:
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            _harden(with_parent=False)
            if not hardened:
                ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)  # PR_SET_DUMPABLE
            os.write(writing, b"1")
            signal.pause()
        os.read(reading, 1)
        try:
            memory(child)
        finally:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)

    assert as_nobody(look) == ("PermissionError" if hardened else "")
