"""GM/T 0018: the structures octet for octet, the functions over a real HSM process, and the password of a key index."""

from __future__ import annotations

import ctypes
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import gmssl.sm2
import gmssl.sm4
import pytest
from hsm_inside import Inside, code, pin_of, run
from programs import SM2_ID, need, openssl

from hsm_sim import cka
from hsm_sim.client import Client
from hsm_sim.errors import Code, Rejected
from hsm_sim.roles import Role
from hsm_sim.sdf import DEVICEINFO, ECCCipher, ECCrefPrivateKey, ECCrefPublicKey, ECCSignature, SdfDevice, SdfError, Sdr
from hsm_sim.sdf.types import SGD_SHA256, SGD_SM2_1, SGD_SM2_3, SGD_SM3, SGD_SM4_CBC, SGD_SM4_CFB, SGD_SM4_ECB, SGD_SM4_MAC
from hsm_sim.sdf_ops import sdf
from pkix import der, digest, pem, sm2, sm2_cipher
from pkix.algorithms import SM2_FRAME

PASSWORD = "a password"
E = bytes.fromhex("b524f552cd82b8b028476e005c377fb19a87e6fc682d48bb5d42e3d9b9effe76")
ID = b"1234567812345678"


@pytest.fixture(scope="module")
def served(made_home: Path) -> Iterator[Path]:
    """The home of a process that the tests share which do not stop it."""
    home = Path(tempfile.mkdtemp(prefix="ir", dir="/tmp")) / "hsm"
    shutil.copytree(made_home, home)
    command = [sys.executable, "-m", "hsm_sim", "serve", "--home", str(home)]
    with subprocess.Popen(command, cwd=Path(__file__).parents[2], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield home
        process.terminate()
    shutil.rmtree(home.parent)


@contextmanager
def opened(home: Path) -> Iterator[SdfDevice]:
    """All sessions are closed in the end."""
    device = SdfDevice(home / "native.sock", lambda: pin_of(home, Role.OFFICER))
    yield device
    for handle in list(device._devices):
        device.SDF_CloseDevice(handle)


def begun(device: SdfDevice) -> int:
    """A session; index 1 is there, and its right is had."""
    session = device.SDF_OpenSession(device.SDF_OpenDevice())
    with suppress(SdfError):
        device.make_key_pair(session, 1, PASSWORD)
    device.SDF_GetPrivateKeyAccessRight(session, 1, PASSWORD)
    return session


@pytest.fixture
def device(served: Path) -> Iterator[SdfDevice]:
    with opened(served) as device:
        yield device


@pytest.fixture
def session(device: SdfDevice) -> int:
    return begun(device)


def refused(code: Sdr, function: Callable[..., object], *arguments: object) -> str:
    with pytest.raises(SdfError) as caught:
        function(*arguments)
    assert caught.value.code is code, caught.value
    return caught.value.text


# --- structures ----------------------------------------------------------------------------------------------------


def test_structures_have_the_layout_of_the_c_headers() -> None:
    sizes = {DEVICEINFO: 100, ECCrefPublicKey: 132, ECCrefPrivateKey: 68, ECCSignature: 128, ECCCipher: 164}
    assert {kind: ctypes.sizeof(kind) for kind in sizes} == sizes
    offsets = {field: getattr(DEVICEINFO, field).offset for field, _ in DEVICEINFO._fields_}
    assert list(offsets.values()) == [0, 40, 56, 72, 76, 80, 88, 92, 96]
    x, y = bytes(range(1, 33)), bytes(range(33, 65))
    key = ECCrefPublicKey.of(b"\x04" + x + y)
    assert bytes(key) == (256).to_bytes(4, "little") + bytes(32) + x + bytes(32) + y
    assert key.point() == b"\x04" + x + y
    assert bytes(ECCSignature.of(x + y)) == bytes(32) + x + bytes(32) + y
    assert bytes(ECCrefPrivateKey.of(7)) == (256).to_bytes(4, "little") + bytes(63) + b"\x07"
    raw = b"\x04" + x + y + b"m" * 32 + b"text"
    cipher = ECCCipher.of(raw)
    assert bytes(cipher) == bytes(32) + x + bytes(32) + y + b"m" * 32 + (4).to_bytes(4, "little") + b"text"
    assert ECCCipher.read(bytes(cipher) + b"behind").raw() == cipher.raw() == raw


def test_structures_that_make_no_sense_are_refused() -> None:
    key = ECCrefPublicKey.of(b"\x04" + bytes(64))
    key.bits = 512
    refused(Sdr.SDR_INARGERR, key.point)
    left = ECCSignature()
    left.r[0] = 1
    refused(Sdr.SDR_INARGERR, left.raw)
    cipher = bytes(ECCCipher.of(b"\x04" + bytes(64) + bytes(32) + b"text"))
    for length in (0, 163, len(cipher) - 1):
        refused(Sdr.SDR_INARGERR, ECCCipher.read, cipher[:length])


def test_return_codes_are_those_of_the_standard() -> None:
    assert [(code.name, code) for code in Sdr if code.name in ("SDR_OK", "SDR_PRKRERR", "SDR_OUTARGERR")] == [
        ("SDR_OK", 0),
        ("SDR_PRKRERR", 0x01000018),
        ("SDR_OUTARGERR", 0x0100001E),
    ]
    assert list(Sdr)[1:] == list(range(0x01000001, 0x0100001F))


# --- signing and encryption ----------------------------------------------------------------------------------------


def test_what_it_signs_openssl_verifies(device: SdfDevice, session: int, tmp_path: Path) -> None:
    """e comes from SDF_HashInit with the public key, as an application would do it."""
    need("openssl")
    public = device.SDF_ExportSignPublicKey_ECC(session, 1)
    device.SDF_HashInit(session, SGD_SM3, public, ID)
    device.SDF_HashUpdate(session, b"a mess")
    device.SDF_HashUpdate(session, b"age")
    e = device.SDF_HashFinal(session)
    assert e == sm2.digest(public.point(), b"a message", ID)
    made = device.SDF_InternalSign_ECC(session, 1, e)
    raw = made.raw()
    (tmp_path / "signature").write_bytes(der.sequence(*(der.integer(int.from_bytes(half)) for half in (raw[:32], raw[32:]))))
    (tmp_path / "key.pem").write_text(pem.encode("PUBLIC KEY", SM2_FRAME + public.point()))
    (tmp_path / "message").write_bytes(b"a message")
    command = ("dgst", "-sm3", "-verify", "key.pem", "-sigopt", SM2_ID, "-signature", "signature", "message")
    assert "Verified OK" in openssl(*command, folder=tmp_path)
    device.SDF_InternalVerify_ECC(session, 1, e, made)
    device.SDF_ExternalVerify_ECC(session, SGD_SM2_1, public, e, made)
    refused(Sdr.SDR_VERIFYERR, device.SDF_ExternalVerify_ECC, session, SGD_SM2_1, public, E, made)
    refused(Sdr.SDR_VERIFYERR, device.SDF_InternalVerify_ECC, session, 1, e, ECCSignature.of(bytes(64)))
    refused(Sdr.SDR_INARGERR, device.SDF_InternalSign_ECC, session, 1, e[:31])
    encryption = device.SDF_ExportEncPublicKey_ECC(session, 1)
    assert encryption.point() != public.point()
    refused(Sdr.SDR_VERIFYERR, device.SDF_ExternalVerify_ECC, session, SGD_SM2_1, encryption, e, made)


def test_encryption_to_the_index_and_to_others(device: SdfDevice, session: int) -> None:
    public = device.SDF_ExportEncPublicKey_ECC(session, 1)
    theirs = gmssl.sm2.CryptSM2(private_key="0" * 64, public_key="", mode=1)
    theirs.public_key = public.point()[1:].hex()  # set here: its constructor strips a leading 04
    for cipher in (
        device.SDF_InternalEncrypt_ECC(session, 1, SGD_SM2_3, b"to the index"),
        device.SDF_ExternalEncrypt_ECC(session, SGD_SM2_3, public, b"to the index"),
        ECCCipher.of(b"\x04" + theirs.encrypt(b"to the index")),
    ):
        assert device.SDF_InternalDecrypt_ECC(session, 1, SGD_SM2_3, cipher) == b"to the index"
    changed = ECCCipher.read(bytes(cipher))
    changed.M[0] ^= 1
    refused(Sdr.SDR_ENCDATAERR, device.SDF_InternalDecrypt_ECC, session, 1, SGD_SM2_3, changed)
    changed.x[63] ^= 1
    refused(Sdr.SDR_ENCDATAERR, device.SDF_InternalDecrypt_ECC, session, 1, SGD_SM2_3, changed)
    refused(Sdr.SDR_ALGNOTSUPPORT, device.SDF_InternalEncrypt_ECC, session, 1, SGD_SM4_ECB, b"x")
    refused(Sdr.SDR_INARGERR, device.SDF_ExternalEncrypt_ECC, session, SGD_SM2_3, public, b"")


def test_a_pair_of_the_applications_own(device: SdfDevice, session: int) -> None:
    public, private = device.SDF_GenerateKeyPair_ECC(session, SGD_SM2_1, 256)
    assert sm2.public_point(int.from_bytes(private.octets("K"))) == public.point()
    refused(Sdr.SDR_INARGERR, device.SDF_GenerateKeyPair_ECC, session, SGD_SM2_1, 512)


# --- session keys --------------------------------------------------------------------------------------------------


def test_session_keys_go_there_and_back(device: SdfDevice, session: int) -> None:
    """Both ends encrypt alike, and as gmssl does, which has the key because it was encrypted to one of its own."""
    scalar, point = sm2.generate()
    iv, text = bytes(range(16)), bytes(range(48))
    cipher, key = device.SDF_GenerateKeyWithEPK_ECC(session, 128, SGD_SM2_3, ECCrefPublicKey.of(point))
    plain = sm2_cipher.decrypt(sm2.Key(point, scalar), sm2_cipher.from_raw(cipher.raw()))
    assert len(plain) == 16

    other = gmssl.sm4.CryptSM4()  # pads by itself, into a block of its own
    other.set_key(plain, gmssl.sm4.SM4_ENCRYPT)
    made, after = device.SDF_Encrypt(session, key, SGD_SM4_CBC, iv, text)
    assert made == other.crypt_cbc(iv, text)[:48]
    assert after == made[-16:]
    assert device.SDF_Decrypt(session, key, SGD_SM4_CBC, iv, made) == (text, made[-16:])
    assert device.SDF_Encrypt(session, key, SGD_SM4_ECB, b"", text)[0] == other.crypt_ecb(text)[:48]
    assert device.SDF_CalculateMAC(session, key, SGD_SM4_MAC, iv, text) == made[-16:]
    in_parts, vector = device.SDF_Encrypt(session, key, SGD_SM4_CBC, iv, text[:16])
    assert in_parts + device.SDF_Encrypt(session, key, SGD_SM4_CBC, vector, text[16:])[0] == made

    back = device.SDF_InternalEncrypt_ECC(session, 1, SGD_SM2_3, plain)
    imported = device.SDF_ImportKeyWithISK_ECC(session, 1, back)
    assert device.SDF_Decrypt(session, imported, SGD_SM4_CBC, iv, made)[0] == text
    device.SDF_DestroyKey(session, imported)
    refused(Sdr.SDR_KEYNOTEXIST, device.SDF_Encrypt, session, imported, SGD_SM4_ECB, b"", text)
    refused(Sdr.SDR_KEYNOTEXIST, device.SDF_DestroyKey, session, imported)


def test_keys_under_the_index_and_under_a_kek_and_envelopes(device: SdfDevice, session: int) -> None:
    text = bytes(32)
    cipher, key = device.SDF_GenerateKeyWithIPK_ECC(session, 1, 128)
    again = device.SDF_ImportKeyWithISK_ECC(session, 1, cipher)
    assert device.SDF_Encrypt(session, key, SGD_SM4_ECB, b"", text) == device.SDF_Encrypt(session, again, SGD_SM4_ECB, b"", text)

    device.make_kek(session, 9)
    wrapped, key = device.SDF_GenerateKeyWithKEK(session, 128, SGD_SM4_ECB, 9)
    again = device.SDF_ImportKeyWithKEK(session, SGD_SM4_ECB, 9, wrapped)
    assert device.SDF_Encrypt(session, key, SGD_SM4_ECB, b"", text) == device.SDF_Encrypt(session, again, SGD_SM4_ECB, b"", text)
    refused(Sdr.SDR_KEYNOTEXIST, device.SDF_ImportKeyWithKEK, session, SGD_SM4_ECB, 10, wrapped)
    refused(Sdr.SDR_ALGNOTSUPPORT, device.SDF_ImportKeyWithKEK, session, SGD_SM4_CBC, 9, wrapped)
    refused(Sdr.SDR_KEYTYPEERR, device.SDF_GenerateKeyWithKEK, session, 256, SGD_SM4_ECB, 9)

    scalar, point = sm2.generate()
    envelope = device.SDF_ExchangeDigitEnvelopeBaseOnECC(session, 1, SGD_SM2_3, ECCrefPublicKey.of(point), cipher)
    ours = device.SDF_InternalDecrypt_ECC(session, 1, SGD_SM2_3, cipher)
    assert sm2_cipher.decrypt(sm2.Key(point, scalar), sm2_cipher.from_raw(envelope.raw())) == ours


def test_symmetric_arguments(device: SdfDevice, session: int) -> None:
    _, key = device.SDF_GenerateKeyWithIPK_ECC(session, 1, 128)
    refused(Sdr.SDR_INARGERR, device.SDF_Encrypt, session, key, SGD_SM4_ECB, b"", b"no block")
    refused(Sdr.SDR_INARGERR, device.SDF_Encrypt, session, key, SGD_SM4_CBC, b"short", bytes(16))
    refused(Sdr.SDR_ALGNOTSUPPORT, device.SDF_Encrypt, session, key, SGD_SM4_CFB, bytes(16), bytes(16))
    refused(Sdr.SDR_ALGNOTSUPPORT, device.SDF_CalculateMAC, session, key, SGD_SM4_ECB, bytes(16), bytes(16))
    assert device.SDF_Encrypt(session, key, SGD_SM4_CBC, bytes(16), b"") == (b"", bytes(16))


def test_digests(device: SdfDevice, session: int) -> None:
    refused(Sdr.SDR_STEPERR, device.SDF_HashUpdate, session, b"")
    for algorithm, name in ((SGD_SM3, "sm3"), (SGD_SHA256, "sha256")):
        device.SDF_HashInit(session, algorithm)
        device.SDF_HashUpdate(session, b"abc")
        assert device.SDF_HashFinal(session) == digest.compute(name, b"abc")
    refused(Sdr.SDR_STEPERR, device.SDF_HashFinal, session)
    public = device.SDF_ExportSignPublicKey_ECC(session, 1)
    refused(Sdr.SDR_ALGNOTSUPPORT, device.SDF_HashInit, session, SGD_SHA256, public, ID)
    public.x[63] ^= 1
    refused(Sdr.SDR_INARGERR, device.SDF_HashInit, session, SGD_SM3, public, ID)


# --- devices, sessions, rights -------------------------------------------------------------------------------------


def test_device_information_and_random(device: SdfDevice, session: int, served: Path) -> None:
    info = device.SDF_GetDeviceInfo(session)
    assert info.octets("IssuerName").rstrip(b"\0") == b"ironroot"
    with Client(served / "native.sock") as client:
        assert info.octets("DeviceSerial") == client.call("status")["serial"].encode()
    assert info.SymAlgAbility == 0x413
    assert len({device.SDF_GenerateRandom(session, 16) for _ in range(4)}) == 4
    refused(Sdr.SDR_INARGERR, device.SDF_GenerateRandom, session, 0)


def test_handles_that_are_none(device: SdfDevice, session: int, served: Path) -> None:
    refused(Sdr.SDR_INARGERR, device.SDF_OpenSession, 999)
    refused(Sdr.SDR_INARGERR, device.SDF_GetDeviceInfo, 999)
    refused(Sdr.SDR_KEYNOTEXIST, device.SDF_ExportSignPublicKey_ECC, session, 2)
    refused(Sdr.SDR_INARGERR, device.SDF_ExportSignPublicKey_ECC, session, 0)
    refused(Sdr.SDR_KEYERR, device.make_key_pair, session, 1, PASSWORD)
    second = device.SDF_OpenSession(device.SDF_OpenDevice())
    device.SDF_CloseSession(second)
    refused(Sdr.SDR_INARGERR, device.SDF_GenerateRandom, second, 1)
    refused(Sdr.SDR_OPENDEVICE, SdfDevice(served / "nowhere.sock", "pin").SDF_OpenDevice)
    wrong = SdfDevice(served / "native.sock", "not the pin")
    refused(Sdr.SDR_OPENSESSION, wrong.SDF_OpenSession, wrong.SDF_OpenDevice())


def test_a_right_is_the_sessions_that_gave_the_password(device: SdfDevice, session: int) -> None:
    other = device.SDF_OpenSession(device.SDF_OpenDevice())
    assert "password" in refused(Sdr.SDR_PRKRERR, device.SDF_InternalSign_ECC, other, 1, E)
    _, key = device.SDF_GenerateKeyWithIPK_ECC(session, 1, 128)
    refused(Sdr.SDR_KEYNOTEXIST, device.SDF_Encrypt, other, key, SGD_SM4_ECB, b"", bytes(16))
    device.SDF_InternalSign_ECC(session, 1, E)
    device.SDF_ReleasePrivateKeyAccessRight(session, 1)
    refused(Sdr.SDR_PRKRERR, device.SDF_InternalSign_ECC, session, 1, E)
    cipher = device.SDF_InternalEncrypt_ECC(session, 1, SGD_SM2_3, b"text")
    refused(Sdr.SDR_PRKRERR, device.SDF_InternalDecrypt_ECC, session, 1, SGD_SM2_3, cipher)


def test_ten_wrong_passwords_lock_the_index_also_over_restarts(hsm: Any) -> None:
    with opened(hsm.home) as device:
        session = begun(device)
        for left in range(9, 4, -1):
            assert f"{left} tries are left" in refused(Sdr.SDR_PRKRERR, device.SDF_GetPrivateKeyAccessRight, session, 1, "another one")
        hsm.stop(signal.SIGKILL)
        hsm.start()
        refused(Sdr.SDR_COMMFAIL, device.SDF_GenerateRandom, session, 1)
        session = device.SDF_OpenSession(device.SDF_OpenDevice())
        for _ in range(5):
            refused(Sdr.SDR_PRKRERR, device.SDF_GetPrivateKeyAccessRight, session, 1, "another one")
        assert "locked" in refused(Sdr.SDR_PRKRERR, device.SDF_GetPrivateKeyAccessRight, session, 1, PASSWORD)
        device.set_password(session, 1, "a new one")
        refused(Sdr.SDR_PRKRERR, device.SDF_GetPrivateKeyAccessRight, session, 1, PASSWORD)
        device.SDF_GetPrivateKeyAccessRight(session, 1, "a new one")
        device.SDF_InternalSign_ECC(session, 1, E)
        log = (hsm.home / "audit.log").read_text()
        assert '"op":"sdf_access"' in log
        assert "another one" not in log


def test_no_other_door_uses_the_keys_of_an_index(served: Path, device: SdfDevice, session: int) -> None:
    """The password would be for nothing if sign_many took the key without it."""
    device.make_kek(session, 1)
    with Client(served / "native.sock") as officer:
        officer.call("login", pin=pin_of(served, Role.OFFICER))
        item = {"key": "sdf.1.sign", "data": E, "purpose": "certificate"}
        assert officer.call("sign_many", items=[item])[0]["error"] == "mechanism_invalid"
        for op in ("encrypt", "decrypt"):
            with pytest.raises(Rejected) as caught:
                officer.call(op, key="sdf.kek.1", mechanism="CKM_SM4_ECB", data=bytes(16))
            assert caught.value.code is Code.MECHANISM_INVALID


def test_what_the_crypto_user_may(home: Path) -> None:
    async def story(hsm: Inside) -> None:
        device, so = hsm.device, await hsm.login(Role.SO)
        await hsm.partition.set_pin(so, Role.USER, "user's pin")
        await sdf(device, hsm.caller, {"call": "make_key_pair", "index": 4, "password": PASSWORD})
        user = await hsm.login(Role.USER, "user's pin")
        await sdf(device, user, {"call": "get_access", "index": 4, "password": PASSWORD})
        assert len(await sdf(device, user, {"call": "sign", "index": 4, "e": E})) == 64
        for call in ("make_key_pair", "make_kek", "set_password", "create_file", "delete_file"):
            assert await code(sdf(device, user, {"call": call, "index": 5})) is Code.PERMISSION_DENIED
        for call in ("sign", "decrypt", "get_access", "cipher"):
            assert await code(sdf(device, so, {"call": call, "index": 4})) is Code.PERMISSION_DENIED
        await hsm.partition.lock(hsm.caller)
        for caller in (user, hsm.caller):
            assert await code(sdf(device, caller, {"call": "sign", "index": 4, "e": E})) is Code.LOCKED
        await hsm.partition.login(user, Role.USER, "user's pin")
        assert await code(sdf(device, user, {"call": "sign", "index": 4, "e": E})) is Code.USER_NOT_LOGGED_IN, (
            "the right ended with the login"
        )
        for wrong in ({}, {"call": "nothing"}, {"call": 7}):
            assert await code(sdf(device, user, wrong)) in (Code.BAD_REQUEST, Code.FUNCTION_NOT_SUPPORTED)

    run(home, story)


def test_a_restored_index_wants_a_new_password(home: Path) -> None:
    async def story(hsm: Inside) -> None:
        device = hsm.device
        await sdf(device, hsm.caller, {"call": "make_key_pair", "index": 1, "password": PASSWORD})
        await device.set(f"sdf password {hsm.partition.by_label(hsm.caller, 'sdf.1.sign').id.hex()}", None)
        access = {"call": "get_access", "index": 1, "password": PASSWORD}
        assert await code(sdf(device, hsm.caller, access)) is Code.USER_PIN_NOT_INITIALIZED
        assert await code(sdf(device, hsm.caller, {"call": "set_password", "index": 1, "password": "short"})) is Code.PIN_LEN_RANGE
        await sdf(device, hsm.caller, {"call": "set_password", "index": 1, "password": PASSWORD})
        await sdf(device, hsm.caller, access)
        assert not hsm.partition.by_label(hsm.caller, "sdf.1.sign").attributes[cka.CKA_EXTRACTABLE]

    run(home, story)


# --- files ---------------------------------------------------------------------------------------------------------


def test_files(hsm: Any) -> None:
    with opened(hsm.home) as device:
        session = begun(device)
        device.SDF_CreateFile(session, "settings", 16)
        refused(Sdr.SDR_FILEEXISTS, device.SDF_CreateFile, session, "settings", 16)
        refused(Sdr.SDR_FILESIZEERR, device.SDF_CreateFile, session, "large", 65537)
        device.SDF_WriteFile(session, "settings", 4, b"abcd")
        device.SDF_WriteFile(session, "settings", 8, b"efgh")
        assert device.SDF_ReadFile(session, "settings", 0, 99) == bytes(4) + b"abcdefgh" + bytes(4)
        assert device.SDF_ReadFile(session, "settings", 6, 4) == b"cdef"
        refused(Sdr.SDR_FILEOFSERR, device.SDF_WriteFile, session, "settings", 14, b"abc")
        refused(Sdr.SDR_FILEOFSERR, device.SDF_ReadFile, session, "settings", 17, 1)
        refused(Sdr.SDR_FILENOEXIST, device.SDF_ReadFile, session, "others", 0, 1)
        hsm.stop(signal.SIGKILL)
        hsm.start()
        session = device.SDF_OpenSession(device.SDF_OpenDevice())
        assert device.SDF_ReadFile(session, "settings", 4, 8) == b"abcdefgh"
        device.SDF_DeleteFile(session, "settings")
        refused(Sdr.SDR_FILENOEXIST, device.SDF_ReadFile, session, "settings", 0, 1)
        refused(Sdr.SDR_FILENOEXIST, device.SDF_DeleteFile, session, "settings")
