"""Names, numbers and structures of GM/T 0018-2012 (cryptography device application interface, "SDF").

Structures are packed and little-endian, coordinates right-aligned in 64 octets, as the C headers of deployed devices have them.
"""

from __future__ import annotations

import ctypes
from enum import IntEnum
from functools import lru_cache
from typing import Any

ECCref_MAX_BITS = 512
ECCref_MAX_LEN = ECCref_MAX_BITS // 8

# --- algorithm identifiers (GM/T 0006) -----------------------------------------------------------------------------
SGD_SM4_ECB, SGD_SM4_CBC, SGD_SM4_CFB, SGD_SM4_OFB, SGD_SM4_MAC = 0x401, 0x402, 0x404, 0x408, 0x410
SGD_SM2, SGD_SM2_1, SGD_SM2_2, SGD_SM2_3 = 0x00020100, 0x00020200, 0x00020400, 0x00020800
SGD_SM3, SGD_SHA1, SGD_SHA256 = 0x1, 0x2, 0x4


class Sdr(IntEnum):
    """Return codes (GM/T 0018 annex A)."""

    SDR_OK = 0x0
    SDR_UNKNOWERR = 0x01000001
    SDR_NOTSUPPORT = 0x01000002
    SDR_COMMFAIL = 0x01000003
    SDR_HARDFAIL = 0x01000004
    SDR_OPENDEVICE = 0x01000005
    SDR_OPENSESSION = 0x01000006
    SDR_PARDENY = 0x01000007
    SDR_KEYNOTEXIST = 0x01000008
    SDR_ALGNOTSUPPORT = 0x01000009
    SDR_ALGMODNOTSUPPORT = 0x0100000A
    SDR_PKOPERR = 0x0100000B
    SDR_SKOPERR = 0x0100000C
    SDR_SIGNERR = 0x0100000D
    SDR_VERIFYERR = 0x0100000E
    SDR_SYMOPERR = 0x0100000F
    SDR_STEPERR = 0x01000010
    SDR_FILESIZEERR = 0x01000011
    SDR_FILENOEXIST = 0x01000012
    SDR_FILEOFSERR = 0x01000013
    SDR_KEYTYPEERR = 0x01000014
    SDR_KEYERR = 0x01000015
    SDR_ENCDATAERR = 0x01000016
    SDR_RANDERR = 0x01000017
    SDR_PRKRERR = 0x01000018
    SDR_MACERR = 0x01000019
    SDR_FILEEXISTS = 0x0100001A
    SDR_FILEWERR = 0x0100001B
    SDR_NOBUFFER = 0x0100001C
    SDR_INARGERR = 0x0100001D
    SDR_OUTARGERR = 0x0100001E


class SdfError(Exception):
    """A function's return code other than SDR_OK, and a sentence about it."""

    def __init__(self, code: Sdr, text: str) -> None:
        super().__init__(f"{code.name} (0x{code:08X}): {text}")
        self.code, self.text = code, text


# --- structures ----------------------------------------------------------------------------------------------------

_BYTE, _UINT = ctypes.c_ubyte, ctypes.c_uint32


class _Packed(ctypes.LittleEndianStructure):
    _pack_ = 1
    _layout_ = "ms"

    def octets(self, field: str) -> bytes:
        """The octets of an array member."""
        return bytes(getattr(self, field))


class DEVICEINFO(_Packed):
    """Device information (GM/T 0018 5.1)."""

    _fields_ = (
        ("IssuerName", _BYTE * 40),
        ("DeviceName", _BYTE * 16),
        ("DeviceSerial", _BYTE * 16),
        ("DeviceVersion", _UINT),
        ("StandardVersion", _UINT),
        ("AsymAlgAbility", _UINT * 2),
        ("SymAlgAbility", _UINT),
        ("HashAlgAbility", _UINT),
        ("BufferSize", _UINT),
    )


class ECCrefPublicKey(_Packed):
    """ECC public key (5.4): 132 octets."""

    _fields_ = (("bits", _UINT), ("x", _BYTE * ECCref_MAX_LEN), ("y", _BYTE * ECCref_MAX_LEN))

    @classmethod
    def of(cls, point: bytes) -> ECCrefPublicKey:
        """From 04 ‖ X ‖ Y of a curve of 256 bits."""
        return cls(256, _right(point[1:33]), _right(point[33:]))

    def point(self) -> bytes:
        """04 ‖ X ‖ Y. Raises SdfError(SDR_INARGERR): not 256 bits, or more in a coordinate."""
        return b"\x04" + _left(self.octets("x"), self.bits) + _left(self.octets("y"), self.bits)


class ECCrefPrivateKey(_Packed):
    """ECC private key (5.4): 68 octets. The HSM gives none out."""

    _fields_ = (("bits", _UINT), ("K", _BYTE * ECCref_MAX_LEN))

    @classmethod
    def of(cls, scalar: int) -> ECCrefPrivateKey:
        return cls(256, _right(scalar.to_bytes(32)))


class ECCSignature(_Packed):
    """ECC signature (5.6): 128 octets."""

    _fields_ = (("r", _BYTE * ECCref_MAX_LEN), ("s", _BYTE * ECCref_MAX_LEN))

    @classmethod
    def of(cls, raw: bytes) -> ECCSignature:
        """From r ‖ s, 64 octets."""
        return cls(_right(raw[:32]), _right(raw[32:]))

    def raw(self) -> bytes:
        """r ‖ s, 64 octets. Raises SdfError(SDR_INARGERR)."""
        return _left(self.octets("r"), 256) + _left(self.octets("s"), 256)


class ECCCipher(_Packed):
    """ECC ciphertext (5.5): what stands before ``C``, whose length varies; ``of`` and ``read`` give the whole structure."""

    _fields_ = (("x", _BYTE * ECCref_MAX_LEN), ("y", _BYTE * ECCref_MAX_LEN), ("M", _BYTE * 32), ("L", _UINT))

    @staticmethod
    def of(raw: bytes) -> ECCCipher:
        """From 04 ‖ X ‖ Y ‖ C3 ‖ C2."""
        text = raw[97:]
        parts = (_right(raw[1:33]), _right(raw[33:65]), (_BYTE * 32)(*raw[65:97]), len(text), (_BYTE * len(text))(*text))
        return _cipher_type(len(text))(*parts)

    @staticmethod
    def read(octets: bytes) -> ECCCipher:
        """From the octets of the structure. Raises SdfError(SDR_INARGERR): shorter than its own L says."""
        head = ctypes.sizeof(ECCCipher)
        length = int.from_bytes(octets[head - 4 : head], "little")
        if len(octets) < head or len(octets) < head + length:
            raise SdfError(Sdr.SDR_INARGERR, "an ECCCipher that is cut off")
        return _cipher_type(length).from_buffer_copy(octets)

    def raw(self) -> bytes:
        """04 ‖ X ‖ Y ‖ C3 ‖ C2. Raises SdfError(SDR_INARGERR)."""
        point = b"\x04" + _left(self.octets("x"), 256) + _left(self.octets("y"), 256)
        return point + self.octets("M") + self.octets("C")[: self.L]


@lru_cache(maxsize=256)
def _cipher_type(length: int) -> type[ECCCipher]:
    return type("ECCCipher", (ECCCipher,), {"_fields_": (("C", _BYTE * length),), "__doc__": ECCCipher.__doc__})


def _right(octets: bytes) -> Any:
    """32 octets in the right half of an array of 64."""
    return (_BYTE * ECCref_MAX_LEN)(*octets.rjust(ECCref_MAX_LEN, b"\0"))


def _left(octets: bytes, bits: int) -> bytes:
    if bits != 256 or any(octets[:32]):
        raise SdfError(Sdr.SDR_INARGERR, "keys and signatures here are of 256 bits, right-aligned in 64 octets")
    return octets[32:]
