"""The application's side of SDF: the functions of GM/T 0018-2012 clause 6, by their names, over the native socket.

    sdf = SdfDevice(home / "native.sock", pin)                     # the PIN of officer or user; SDF itself has no login
    device = sdf.SDF_OpenDevice()
    session = sdf.SDF_OpenSession(device)
    sdf.SDF_GetPrivateKeyAccessRight(session, 1, password)
    signature = sdf.SDF_InternalSign_ECC(session, 1, e)            # ECCSignature
    sdf.SDF_CloseSession(session)

What C hands back through pointers is returned here, and a return code other than SDR_OK is an ``SdfError`` with that code. Lengths that C
passes beside a buffer are the buffer's own. Handles are numbers. A session is a connection of its own, so rights and session keys are the
session's, as the standard wants. Not for several threads at once.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import hashes

from hsm_sim.client import Client
from hsm_sim.errors import Code, Rejected
from hsm_sim.sdf.codes import FILE_CODES, NO_CODES, arguments, coded, ecb_only, encrypt, key_bits, sm2_only, to_der, verify
from hsm_sim.sdf.types import (
    DEVICEINFO,
    SGD_SHA256,
    SGD_SM2_1,
    SGD_SM2_3,
    SGD_SM3,
    SGD_SM4_CBC,
    SGD_SM4_ECB,
    SGD_SM4_MAC,
    ECCCipher,
    ECCrefPrivateKey,
    ECCrefPublicKey,
    ECCSignature,
    SdfError,
    Sdr,
)
from pkix import sm2, sm2_cipher
from pkix.errors import Unavailable

_STANDARD_VERSION = 1


class SdfDevice:
    """The functions. Every one raises ``SdfError``.

    Args:
        socket: the HSM's native socket.
        pin: of the officer or the user of the partition; asked for at each session. A function, so that it need not be kept.
    """

    def __init__(self, socket: Path, pin: Callable[[], str] | str, *, role: str = "officer", partition: str = "ironroot") -> None:
        self._socket, self._pin, self._role, self._partition = socket, pin, role, partition
        self._numbers = itertools.count(1)
        self._devices: set[int] = set()
        self._sessions: dict[int, tuple[int, Client]] = {}
        self._hashes: dict[int, hashes.Hash] = {}

    # --- 6.2 device management -------------------------------------------------------------------------------------

    def SDF_OpenDevice(self) -> int:
        """A device handle. SDR_OPENDEVICE: nobody answers at the socket."""
        try:
            Client(self._socket).close()
        except Unavailable as error:
            raise SdfError(Sdr.SDR_OPENDEVICE, str(error)) from error
        handle = next(self._numbers)
        self._devices.add(handle)
        return handle

    def SDF_CloseDevice(self, device: int) -> None:
        """Closes its sessions too."""
        self._opened(device)
        for session in [number for number, (owner, _) in self._sessions.items() if owner == device]:
            self.SDF_CloseSession(session)
        self._devices.discard(device)

    def SDF_OpenSession(self, device: int) -> int:
        """A session handle. SDR_OPENSESSION: the HSM does not take the PIN, or nobody answers."""
        self._opened(device)
        try:
            client = Client(self._socket)
        except Unavailable as error:
            raise SdfError(Sdr.SDR_OPENSESSION, str(error)) from error
        try:
            pin = self._pin if isinstance(self._pin, str) else self._pin()
            client.call("login", pin=pin, role=self._role, partition=self._partition)
        except (Rejected, Unavailable) as error:
            client.close()
            raise SdfError(Sdr.SDR_OPENSESSION, str(error)) from error
        handle = next(self._numbers)
        self._sessions[handle] = device, client
        return handle

    def SDF_CloseSession(self, session: int) -> None:
        """Its rights and session keys end with it."""
        self._client(session).close()
        del self._sessions[session]
        self._hashes.pop(session, None)

    def SDF_GetDeviceInfo(self, session: int) -> DEVICEINFO:
        """Who made it, and what it can do."""
        with coded():
            status = self._client(session).call("status")
        info = DEVICEINFO(DeviceVersion=1, StandardVersion=_STANDARD_VERSION, BufferSize=1 << 20)
        for field, text in (("IssuerName", "ironroot"), ("DeviceName", "hsm_sim"), ("DeviceSerial", status["serial"])):
            array = getattr(info, field)
            array[: len(text)] = text.encode()
        info.AsymAlgAbility[0], info.AsymAlgAbility[1] = SGD_SM2_1 | SGD_SM2_3, 256
        info.SymAlgAbility, info.HashAlgAbility = SGD_SM4_ECB | SGD_SM4_CBC | SGD_SM4_MAC, SGD_SM3 | SGD_SHA256
        return info

    def SDF_GenerateRandom(self, session: int, length: int) -> bytes:
        """``length`` octets, 1 to 65536."""
        with coded():
            return bytes(self._client(session).call("random", length=length))

    def SDF_GetPrivateKeyAccessRight(self, session: int, index: int, password: str) -> None:
        """SDR_PRKRERR: the password is wrong, or locked after ten wrong ones."""
        self._call(session, "get_access", index=index, password=password)

    def SDF_ReleasePrivateKeyAccessRight(self, session: int, index: int) -> None:
        """Ends it."""
        self._call(session, "release_access", index=index)

    # --- 6.3 key management ----------------------------------------------------------------------------------------

    def SDF_ExportSignPublicKey_ECC(self, session: int, index: int) -> ECCrefPublicKey:
        """Of the index's signing pair."""
        return ECCrefPublicKey.of(self._call(session, "public_key", index=index, use="sign"))

    def SDF_ExportEncPublicKey_ECC(self, session: int, index: int) -> ECCrefPublicKey:
        """Of the index's encryption pair."""
        return ECCrefPublicKey.of(self._call(session, "public_key", index=index, use="enc"))

    def SDF_GenerateKeyPair_ECC(self, session: int, algorithm: int, bits: int) -> tuple[ECCrefPublicKey, ECCrefPrivateKey]:
        """A pair that the application gets in the clear, as this function has it. It is made here: the HSM gives no such key out."""
        self._client(session)
        sm2_only(algorithm)
        if bits != 256:
            raise SdfError(Sdr.SDR_INARGERR, "SM2 keys have 256 bits")
        scalar, point = sm2.generate()
        return ECCrefPublicKey.of(point), ECCrefPrivateKey.of(scalar)

    def SDF_GenerateKeyWithIPK_ECC(self, session: int, index: int, bits: int) -> tuple[ECCCipher, int]:
        """A session key: encrypted to the index's encryption key, and its handle."""
        key_bits(bits)
        return self._with_handle(self._call(session, "generate_for_index", index=index))

    def SDF_GenerateKeyWithEPK_ECC(self, session: int, bits: int, algorithm: int, public: ECCrefPublicKey) -> tuple[ECCCipher, int]:
        """A session key: encrypted to ``public``, and its handle."""
        key_bits(bits)
        sm2_only(algorithm)
        return self._with_handle(self._call(session, "generate_for_point", point=public.point()))

    def SDF_ImportKeyWithISK_ECC(self, session: int, index: int, key: ECCCipher) -> int:
        """The handle of a session key that came encrypted to the index's encryption key; needs the access right."""
        return int(self._call(session, "import_key", index=index, cipher=to_der(key))["handle"])

    def SDF_ExchangeDigitEnvelopeBaseOnECC(
        self, session: int, index: int, algorithm: int, public: ECCrefPublicKey, envelope: ECCCipher
    ) -> ECCCipher:
        """An envelope to the index's encryption key, made into one to ``public``; needs the access right."""
        sm2_only(algorithm)
        made = self._call(session, "exchange", index=index, point=public.point(), cipher=to_der(envelope))
        return ECCCipher.of(sm2_cipher.to_raw(made))

    def SDF_GenerateKeyWithKEK(self, session: int, bits: int, algorithm: int, index: int) -> tuple[bytes, int]:
        """A session key: under the KEK (SGD_SM4_ECB), and its handle."""
        key_bits(bits)
        ecb_only(algorithm)
        made = self._call(session, "generate_under_kek", index=index)
        return made["wrapped"], made["handle"]

    def SDF_ImportKeyWithKEK(self, session: int, algorithm: int, index: int, key: bytes) -> int:
        """The handle of a session key that came under the KEK."""
        ecb_only(algorithm)
        return int(self._call(session, "import_under_kek", index=index, wrapped=key)["handle"])

    def SDF_DestroyKey(self, session: int, key: int) -> None:
        """A session key."""
        self._call(session, "destroy_key", handle=key)

    # --- 6.4 asymmetric operations ---------------------------------------------------------------------------------

    def SDF_ExternalVerify_ECC(self, session: int, algorithm: int, public: ECCrefPublicKey, data: bytes, signature: ECCSignature) -> None:
        """Returns if ``signature`` over ``data``, the 32 octets of e, is ``public``'s; else SDR_VERIFYERR."""
        self._client(session)
        sm2_only(algorithm)
        verify(public, data, signature)

    def SDF_InternalSign_ECC(self, session: int, index: int, data: bytes) -> ECCSignature:
        """Over ``data``, the 32 octets of e, with the index's signing key; needs the access right."""
        return ECCSignature.of(self._call(session, "sign", index=index, e=data))

    def SDF_InternalVerify_ECC(self, session: int, index: int, data: bytes, signature: ECCSignature) -> None:
        """With the index's signing key. SDR_VERIFYERR."""
        verify(self.SDF_ExportSignPublicKey_ECC(session, index), data, signature)

    def SDF_ExternalEncrypt_ECC(self, session: int, algorithm: int, public: ECCrefPublicKey, data: bytes) -> ECCCipher:
        """``data`` for the holder of ``public``."""
        self._client(session)
        sm2_only(algorithm)
        return encrypt(public, data)

    def SDF_InternalEncrypt_ECC(self, session: int, index: int, algorithm: int, data: bytes) -> ECCCipher:
        """``data`` to the index's encryption key."""
        sm2_only(algorithm)
        return encrypt(self.SDF_ExportEncPublicKey_ECC(session, index), data)

    def SDF_InternalDecrypt_ECC(self, session: int, index: int, algorithm: int, data: ECCCipher) -> bytes:
        """With the index's encryption key; needs the access right. SDR_ENCDATAERR: made for another key, or changed."""
        sm2_only(algorithm)
        return bytes(self._call(session, "decrypt", index=index, cipher=to_der(data)))

    # --- 6.5 symmetric operations, hashes --------------------------------------------------------------------------

    def SDF_Encrypt(self, session: int, key: int, algorithm: int, iv: bytes, data: bytes) -> tuple[bytes, bytes]:
        """Whole blocks under a session key: what comes out, and the IV to go on with (in CBC mode the last block of it)."""
        made = self._cipher(session, key, algorithm, iv, data, encrypt=True)
        return made, (made or iv)[-16:] if algorithm == SGD_SM4_CBC else iv

    def SDF_Decrypt(self, session: int, key: int, algorithm: int, iv: bytes, data: bytes) -> tuple[bytes, bytes]:
        """The reverse of ``SDF_Encrypt``."""
        made = self._cipher(session, key, algorithm, iv, data, encrypt=False)
        return made, (data or iv)[-16:] if algorithm == SGD_SM4_CBC else iv

    def _cipher(self, session: int, key: int, algorithm: int, iv: bytes, data: bytes, *, encrypt: bool) -> bytes:
        vector = iv if algorithm == SGD_SM4_CBC else b""
        return bytes(self._call(session, "cipher", handle=key, algorithm=algorithm, iv=vector, data=data, encrypt=encrypt))

    def SDF_CalculateMAC(self, session: int, key: int, algorithm: int, iv: bytes, data: bytes) -> bytes:
        """CBC-MAC (SGD_SM4_MAC), 16 octets."""
        if algorithm != SGD_SM4_MAC:
            raise SdfError(Sdr.SDR_ALGNOTSUPPORT, "a MAC here is SGD_SM4_MAC")
        return bytes(self._call(session, "mac", handle=key, iv=iv, data=data))

    def SDF_HashInit(self, session: int, algorithm: int, public: ECCrefPublicKey | None = None, id: bytes = b"") -> None:
        """Begins a digest of the session's. With a public key (SGD_SM3): Z of key and ``id`` comes first, so that the digest is e."""
        self._client(session)
        if algorithm not in (SGD_SM3, SGD_SHA256) or (public is not None and algorithm != SGD_SM3):
            raise SdfError(Sdr.SDR_ALGNOTSUPPORT, "digests here are SGD_SM3, with a public key or without, and SGD_SHA256")
        state = hashes.Hash(hashes.SM3() if algorithm == SGD_SM3 else hashes.SHA256())
        if public is not None:
            with arguments():
                sm2.check_point(public.point())
                state.update(sm2.za(public.point(), id))
        self._hashes[session] = state

    def SDF_HashUpdate(self, session: int, data: bytes) -> None:
        """SDR_STEPERR: no digest was begun."""
        self._hash(session).update(data)

    def SDF_HashFinal(self, session: int) -> bytes:
        """The digest. SDR_STEPERR."""
        state = self._hash(session)
        del self._hashes[session]
        return state.finalize()

    # --- 6.6 files -------------------------------------------------------------------------------------------------

    def SDF_CreateFile(self, session: int, name: str, size: int) -> None:
        """A file of ``size`` zeros, at most 65536. SDR_FILEEXISTS, SDR_FILESIZEERR."""
        self._call(session, "create_file", {**FILE_CODES, Code.BAD_REQUEST: Sdr.SDR_FILESIZEERR}, name=name, size=size)

    def SDF_ReadFile(self, session: int, name: str, offset: int, length: int) -> bytes:
        """What there is of it. SDR_FILENOEXIST, SDR_FILEOFSERR."""
        return bytes(self._call(session, "read_file", FILE_CODES, name=name, offset=offset, length=length))

    def SDF_WriteFile(self, session: int, name: str, offset: int, data: bytes) -> None:
        """Within its size. SDR_FILENOEXIST, SDR_FILEOFSERR."""
        self._call(session, "write_file", FILE_CODES, name=name, offset=offset, data=data)

    def SDF_DeleteFile(self, session: int, name: str) -> None:
        """SDR_FILENOEXIST."""
        self._call(session, "delete_file", FILE_CODES, name=name)

    # --- what GM/T 0018 leaves to the vendor's tool ----------------------------------------------------------------

    def make_key_pair(self, session: int, index: int, password: str) -> tuple[ECCrefPublicKey, ECCrefPublicKey]:
        """Signing and encryption pair of a free index, 1 to 4096, and its password (8 to 64 characters); the officer's. The public keys."""
        points = self._call(session, "make_key_pair", index=index, password=password)
        return ECCrefPublicKey.of(points["sign"]), ECCrefPublicKey.of(points["enc"])

    def make_kek(self, session: int, index: int) -> None:
        """The KEK of a free index; the officer's."""
        self._call(session, "make_kek", index=index)

    def set_password(self, session: int, index: int, password: str) -> None:
        """A new password for an index, with all its tries; the officer's."""
        self._call(session, "set_password", index=index, password=password)

    # --- inside ----------------------------------------------------------------------------------------------------

    def _opened(self, device: int) -> None:
        if device not in self._devices:
            raise SdfError(Sdr.SDR_INARGERR, "there is no open device of this handle")

    def _client(self, session: int) -> Client:
        if session not in self._sessions:
            raise SdfError(Sdr.SDR_INARGERR, "there is no open session of this handle")
        return self._sessions[session][1]

    def _hash(self, session: int) -> hashes.Hash:
        self._client(session)
        if session not in self._hashes:
            raise SdfError(Sdr.SDR_STEPERR, "call SDF_HashInit first")
        return self._hashes[session]

    def _call(self, session: int, name: str, codes: Mapping[Code, Sdr] = NO_CODES, /, **arguments: object) -> Any:
        with coded(codes):
            return self._client(session).call("sdf", call=name, **arguments)

    @staticmethod
    def _with_handle(answer: dict[str, Any]) -> tuple[ECCCipher, int]:
        return ECCCipher.of(sm2_cipher.to_raw(answer["cipher"])), answer["handle"]
