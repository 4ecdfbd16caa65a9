"""From the HSM's refusals to SDF's return codes, and the checks that the functions share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType

from hsm_sim.errors import Code, Rejected
from hsm_sim.sdf.types import SGD_SM2, SGD_SM2_1, SGD_SM2_3, SGD_SM4_ECB, ECCCipher, ECCrefPublicKey, ECCSignature, SdfError, Sdr
from pkix import der, sm2, sm2_cipher
from pkix.errors import IronrootError, Unavailable

_CODES = {
    Code.FUNCTION_NOT_SUPPORTED: Sdr.SDR_NOTSUPPORT,
    Code.BAD_REQUEST: Sdr.SDR_INARGERR,
    Code.DATA_INVALID: Sdr.SDR_INARGERR,
    Code.DATA_LEN_RANGE: Sdr.SDR_INARGERR,
    Code.LOCKED: Sdr.SDR_PARDENY,
    Code.PERMISSION_DENIED: Sdr.SDR_PARDENY,
    Code.USER_NOT_LOGGED_IN: Sdr.SDR_PRKRERR,
    Code.USER_PIN_NOT_INITIALIZED: Sdr.SDR_PRKRERR,
    Code.PIN_INCORRECT: Sdr.SDR_PRKRERR,
    Code.PIN_LOCKED: Sdr.SDR_PRKRERR,
    Code.PIN_LEN_RANGE: Sdr.SDR_INARGERR,
    Code.KEY_NOT_FOUND: Sdr.SDR_KEYNOTEXIST,
    Code.KEY_HANDLE_INVALID: Sdr.SDR_KEYNOTEXIST,
    Code.KEY_EXISTS: Sdr.SDR_KEYERR,
    Code.KEY_DAMAGED: Sdr.SDR_KEYERR,
    Code.MECHANISM_INVALID: Sdr.SDR_ALGNOTSUPPORT,
    Code.ENCRYPTED_DATA_INVALID: Sdr.SDR_ENCDATAERR,
    Code.WRAPPED_KEY_LEN_RANGE: Sdr.SDR_KEYERR,
    Code.DEVICE_MEMORY: Sdr.SDR_NOBUFFER,
    Code.OBJECT_HANDLE_INVALID: Sdr.SDR_FILENOEXIST,
    Code.DEVICE_ERROR: Sdr.SDR_HARDFAIL,
    Code.DEVICE_REMOVED: Sdr.SDR_HARDFAIL,
    Code.STORAGE: Sdr.SDR_HARDFAIL,
    Code.TAMPERED: Sdr.SDR_HARDFAIL,
    Code.STOPPING: Sdr.SDR_COMMFAIL,
}
FILE_CODES = {Code.DATA_LEN_RANGE: Sdr.SDR_FILEOFSERR, Code.KEY_EXISTS: Sdr.SDR_FILEEXISTS}
NO_CODES: Mapping[Code, Sdr] = MappingProxyType({})


@contextmanager
def coded(codes: Mapping[Code, Sdr] = NO_CODES) -> Iterator[None]:
    """The HSM's refusals as return codes; ``codes`` are those of this function."""
    try:
        yield
    except Rejected as error:
        raise SdfError(codes.get(error.code) or _CODES.get(error.code, Sdr.SDR_UNKNOWERR), error.text) from error
    except Unavailable as error:
        raise SdfError(Sdr.SDR_COMMFAIL, str(error)) from error


@contextmanager
def arguments(code: Sdr = Sdr.SDR_INARGERR) -> Iterator[None]:
    """Refusals of ``pkix`` as a return code."""
    try:
        yield
    except IronrootError as error:
        raise SdfError(code, str(error)) from error


def verify(public: ECCrefPublicKey, e: bytes, signature: ECCSignature) -> None:
    """SDR_VERIFYERR: the signature over e, 32 octets, is not this key's."""
    raw = signature.raw()
    encoded = der.sequence(*(der.integer(int.from_bytes(half)) for half in (raw[:32], raw[32:])))
    with arguments(Sdr.SDR_PKOPERR):
        if not sm2.verify_digest(public.point(), encoded, e):
            raise SdfError(Sdr.SDR_VERIFYERR, "the signature is not this key's over this e")


def encrypt(public: ECCrefPublicKey, data: bytes) -> ECCCipher:
    """``data`` (1 to 4096 octets) for the holder of ``public``. SDR_INARGERR."""
    with arguments():
        return ECCCipher.of(sm2_cipher.to_raw(sm2_cipher.encrypt(sm2.Key(public.point()), data)))


def to_der(cipher: ECCCipher) -> bytes:
    """SM2Cipher of the structure. SDR_ENCDATAERR: its point is not on the curve."""
    with arguments(Sdr.SDR_ENCDATAERR):
        return sm2_cipher.from_raw(cipher.raw())


def key_bits(bits: int) -> None:
    """SDR_KEYTYPEERR: no SM4 key."""
    if bits != 128:
        raise SdfError(Sdr.SDR_KEYTYPEERR, "session keys here are SM4 keys, 128 bits")


def sm2_only(algorithm: int) -> None:
    """SDR_ALGNOTSUPPORT: another algorithm than SM2."""
    if algorithm not in (SGD_SM2, SGD_SM2_1, SGD_SM2_3):
        raise SdfError(Sdr.SDR_ALGNOTSUPPORT, "this function takes SGD_SM2, SGD_SM2_1 or SGD_SM2_3 here")


def ecb_only(algorithm: int) -> None:
    """SDR_ALGNOTSUPPORT: another way of wrapping under a KEK."""
    if algorithm != SGD_SM4_ECB:
        raise SdfError(Sdr.SDR_ALGNOTSUPPORT, "keys under a KEK are wrapped with SGD_SM4_ECB here")
