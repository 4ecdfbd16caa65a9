"""SM2 signatures (GB/T 32918.2, GM/T 0009) and the digest they are made over, by the system's libcrypto.

    key = Key(point)                                  # checks the point; Key(point, scalar) also signs
    e = key.digest(b"message", DEFAULT_ID)            # SM3(Z || message)
    key.verify_digest(signature, e)                   # True or False

The library is found and opened at first use, by ctypes; ``Unavailable`` says what to install if there is none. The identifier that goes
into Z is an argument everywhere: libraries disagree about its default. Signing and verifying release the GIL; the short calls around
them do not, so that a busy interpreter does not wait for the GIL once per call. Any number of threads may use one ``Key``.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import secrets
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any, NamedTuple

from cryptography.hazmat.primitives import hashes

from pkix.errors import Fatal, Malformed, Unavailable, Unsupported, WeakKey

DEFAULT_ID = b"1234567812345678"
"""The identifier of GM/T 0009 clause 10, for everything that is not agreed otherwise."""

P = 0xFFFFFFFEFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFF00000000FFFFFFFFFFFFFFFF
A = P - 3
B = 0x28E9FA9E9D9F5E344D5A9E4BCF6509A7F39789F515AB8F92DDBCBD414D940E93
N = 0xFFFFFFFEFFFFFFFFFFFFFFFFFFFFFFFF7203DF6B21C6052B53BBF40939D54123
G = bytes.fromhex(
    "0432C4AE2C1F1981195F9904466A39C9948FE30BBFF2660BE1715A4589334C74C7BC3736A2F4F6779C59BDCEE36B692153D0A9877CC62A474002DF32E52139F0A0"
)
_Z_CURVE = A.to_bytes(32) + B.to_bytes(32) + G[1:]
_NID_SM2 = 1172  # the number of both the curve and the key type (openssl/obj_mac.h)


class _Libcrypto(NamedTuple):
    """The functions of libcrypto that are used. ``sign``, ``verify``, ``encrypt`` and ``decrypt`` release the GIL, the others hold it."""

    ec_key_new: Callable[..., int]
    ec_key_free: Callable[..., None]
    ec_key_oct2key: Callable[..., int]
    ec_key_set_private: Callable[..., int]
    group: Callable[..., int]
    point_new: Callable[..., int]
    point_free: Callable[..., None]
    point_mul: Callable[..., int]
    point2oct: Callable[..., int]
    bn_bin2bn: Callable[..., int]
    bn_clear_free: Callable[..., None]
    pkey_new: Callable[..., int]
    pkey_free: Callable[..., None]
    pkey_assign: Callable[..., int]
    ctx_new: Callable[..., int]
    ctx_free: Callable[..., None]
    sign_init: Callable[..., int]
    verify_init: Callable[..., int]
    encrypt_init: Callable[..., int]
    decrypt_init: Callable[..., int]
    clear_errors: Callable[..., None]
    sign: Callable[..., int]
    verify: Callable[..., int]
    encrypt: Callable[..., int]
    decrypt: Callable[..., int]


def _candidates() -> Iterator[str]:
    # The libcrypto that Python itself is linked with comes first: its symbols are reached through the extension module, and the process
    # then has one copy. A Python that was linked statically hides them, and the system's own library is next.
    try:
        import _hashlib

        yield _hashlib.__file__
    except (ImportError, AttributeError):
        pass
    if found := ctypes.util.find_library("crypto"):
        yield found
    yield from ("libcrypto.so.3", "libcrypto.so.4", "libcrypto.3.dylib", "libcrypto-3-x64.dll")


def _usable(path: str) -> bool:
    try:
        library = ctypes.CDLL(path)
        version = library.OpenSSL_version_num
        version.restype = ctypes.c_ulong
        new, free = library.EC_KEY_new_by_curve_name, library.EC_KEY_free
    except (OSError, AttributeError):
        return False
    new.restype, free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
    if version() < 0x30000000 or not (key := new(_NID_SM2)):
        return False
    free(key)
    return True


@lru_cache(maxsize=1)
def _libcrypto() -> _Libcrypto:
    path = next((path for path in _candidates() if _usable(path)), None)
    if path is None:
        raise Unavailable(
            "SM2 needs the system's OpenSSL library, version 3 or later and built with SM2; install it (Debian, Ubuntu: libssl3; "
            "Alpine: libcrypto3; openEuler, Anolis: openssl-libs)"
        )
    holding, releasing = ctypes.PyDLL(path), ctypes.CDLL(path)
    void, size, octets, number = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p, ctypes.c_int

    def bind(library: ctypes.CDLL, name: str, result: Any, *arguments: Any) -> Any:
        function = library[name]
        function.restype, function.argtypes = result, arguments
        return function

    return _Libcrypto(
        ec_key_new=bind(holding, "EC_KEY_new_by_curve_name", void, number),
        ec_key_free=bind(holding, "EC_KEY_free", None, void),
        ec_key_oct2key=bind(holding, "EC_KEY_oct2key", number, void, octets, size, void),
        ec_key_set_private=bind(holding, "EC_KEY_set_private_key", number, void, void),
        group=bind(holding, "EC_KEY_get0_group", void, void),
        point_new=bind(holding, "EC_POINT_new", void, void),
        point_free=bind(holding, "EC_POINT_free", None, void),
        point_mul=bind(holding, "EC_POINT_mul", number, void, void, void, void, void, void),
        point2oct=bind(holding, "EC_POINT_point2oct", size, void, void, number, octets, size, void),
        bn_bin2bn=bind(holding, "BN_bin2bn", void, octets, number, void),
        bn_clear_free=bind(holding, "BN_clear_free", None, void),
        pkey_new=bind(holding, "EVP_PKEY_new", void),
        pkey_free=bind(holding, "EVP_PKEY_free", None, void),
        pkey_assign=bind(holding, "EVP_PKEY_assign", number, void, number, void),
        ctx_new=bind(holding, "EVP_PKEY_CTX_new", void, void, void),
        ctx_free=bind(holding, "EVP_PKEY_CTX_free", None, void),
        sign_init=bind(holding, "EVP_PKEY_sign_init", number, void),
        verify_init=bind(holding, "EVP_PKEY_verify_init", number, void),
        encrypt_init=bind(holding, "EVP_PKEY_encrypt_init", number, void),
        decrypt_init=bind(holding, "EVP_PKEY_decrypt_init", number, void),
        clear_errors=bind(holding, "ERR_clear_error", None),
        sign=bind(releasing, "EVP_PKEY_sign", number, void, octets, ctypes.POINTER(size), octets, size),
        verify=bind(releasing, "EVP_PKEY_verify", number, void, octets, size, octets, size),
        encrypt=bind(releasing, "EVP_PKEY_encrypt", number, void, octets, ctypes.POINTER(size), octets, size),
        decrypt=bind(releasing, "EVP_PKEY_decrypt", number, void, octets, ctypes.POINTER(size), octets, size),
    )


class Key:
    """A public key in libcrypto's hands, or a key pair.

    Args:
        point: 04 || X || Y, 65 octets; checked (``check_point``).
        scalar: the private key, 1 to n-2, or None. It must belong to ``point``.
    Raises:
        WeakKey, Malformed: a point or scalar that is none.  Unavailable: no libcrypto.
    """

    __slots__ = ("_free", "_handle", "_seed", "point", "scalar")

    def __init__(self, point: bytes, scalar: int | None = None) -> None:
        check_point(point)
        lib = _libcrypto()
        self.point, self.scalar = point, scalar
        self._seed: hashes.Hash | None = None
        self._free = lib.pkey_free
        self._handle = lib.pkey_new()
        key = lib.ec_key_new(_NID_SM2)
        made = lib.ec_key_oct2key(key, point, 65, None) == 1
        if made and scalar is not None:
            number = _bignum(lib, scalar)
            made = lib.ec_key_set_private(key, number) == 1
            lib.bn_clear_free(number)
        if not made or lib.pkey_assign(self._handle, _NID_SM2, key) != 1:
            lib.ec_key_free(key)
            lib.clear_errors()
            raise WeakKey("SM2: libcrypto does not take this key")
        if scalar is not None and point != public_point(scalar):
            raise Malformed("SM2: the private key does not belong to the public key beside it")

    def __del__(self) -> None:
        if handle := getattr(self, "_handle", None):
            self._free(handle)

    def digest(self, message: bytes, id: bytes) -> bytes:
        """e = SM3(Z || message), 32 octets: what is signed (GB/T 32918.2 6.1). Z of the default id is computed once per key."""
        if id != DEFAULT_ID:
            state = _sm3(za(self.point, id))
        else:
            if self._seed is None:
                self._seed = _sm3(za(self.point, id))
            state = self._seed.copy()
        state.update(message)
        return state.finalize()

    def verify_digest(self, signature: bytes, e: bytes) -> bool:
        """Whether ``signature`` (strict DER of SM2Signature) over ``e`` (32 octets) is this key's."""
        if len(e) != 32 or not _well_formed(signature):
            return False
        lib = _libcrypto()
        context = lib.ctx_new(self._handle, None)
        try:
            if lib.verify_init(context) != 1:
                lib.clear_errors()
                raise Fatal("SM2: libcrypto does not start a verification")
            if lib.verify(context, signature, len(signature), e, 32) == 1:
                return True
            # Python's ssl module shares the thread's error queue when it is linked with the same libcrypto, and would report ours.
            lib.clear_errors()
            return False
        finally:
            lib.ctx_free(context)

    def sign_digest(self, e: bytes) -> bytes:
        """Signature over ``e`` (32 octets), DER of SM2Signature, at most 72 octets. The key must be a pair."""
        if len(e) != 32:
            raise Malformed("SM2: a digest to sign has 32 octets")
        lib = _libcrypto()
        context = lib.ctx_new(self._handle, None)
        try:
            signature = ctypes.create_string_buffer(80)
            length = ctypes.c_size_t(80)
            if lib.sign_init(context) != 1 or lib.sign(context, signature, ctypes.byref(length), e, 32) != 1:
                lib.clear_errors()
                raise Fatal("SM2: libcrypto refuses to sign; the key has no private part, or the library is broken")
            return signature.raw[: length.value]
        finally:
            lib.ctx_free(context)

    def encrypt(self, plaintext: bytes) -> bytes:
        """DER of SM2Cipher as libcrypto makes it; ``pkix.sm2_cipher`` is what to call. Raises Fatal."""
        lib = _libcrypto()
        made = self._crypt(lib.encrypt_init, lib.encrypt, plaintext, len(plaintext) + 128)
        if made is None:
            raise Fatal("SM2: libcrypto refuses to encrypt; the library is broken")
        return made

    def decrypt(self, cipher: bytes) -> bytes | None:
        """The plaintext of an SM2Cipher (DER) if its C3 fits, else None; ``pkix.sm2_cipher`` is what to call. The key must be a pair."""
        lib = _libcrypto()
        return self._crypt(lib.decrypt_init, lib.decrypt, cipher, len(cipher) + 128)

    def _crypt(self, start: Callable[..., int], run: Callable[..., int], data: bytes, room: int) -> bytes | None:
        lib = _libcrypto()
        context = lib.ctx_new(self._handle, None)
        try:
            result, length = ctypes.create_string_buffer(room), ctypes.c_size_t(room)
            if start(context) != 1 or run(context, result, ctypes.byref(length), data, len(data)) != 1:
                lib.clear_errors()
                return None
            return result.raw[: length.value]
        finally:
            lib.ctx_free(context)


def check_point(point: bytes) -> None:
    """Refuses what is no uncompressed point of the curve: done here, before any library sees it.

    Raises:
        Unsupported: compressed or hybrid form.  WeakKey: infinity, a coordinate not below p, off the curve.  Malformed: wrong length.
    """
    if point == b"\x00":
        raise WeakKey("SM2: the public key is the point at infinity")
    if point[:1] in (b"\x02", b"\x03", b"\x06", b"\x07"):
        raise Unsupported("SM2: a compressed or hybrid point; write the public key uncompressed, as 04 || X || Y")
    if len(point) != 65 or point[0] != 4:
        raise Malformed("SM2: a public key is 65 octets, 04 || X || Y")
    x, y = int.from_bytes(point[1:33]), int.from_bytes(point[33:])
    if x >= P or y >= P or (y * y - (x * x + A) * x - B) % P:
        raise WeakKey("SM2: the public key is not a point of the curve sm2p256v1")


def za(point: bytes, id: bytes) -> bytes:
    """Z, 32 octets: SM3 over the id with its length in bits, the curve and the signer's public key (GB/T 32918.2 5.5).

    Raises Malformed for an id of more than 8191 octets.
    """
    if len(id) > 8191:
        raise Malformed("SM2: an identifier has at most 8191 octets")
    return _sm3((8 * len(id)).to_bytes(2) + id + _Z_CURVE + point[1:]).finalize()


def digest(point: bytes, message: bytes, id: bytes) -> bytes:
    """e = SM3(Z || message) for the public key ``point``."""
    return _sm3(za(point, id) + message).finalize()


def verify_digest(point: bytes, signature: bytes, e: bytes) -> bool:
    """``Key(point).verify_digest``: for one signature; keep a ``Key`` for more."""
    return Key(point).verify_digest(signature, e)


def verify(point: bytes, signature: bytes, message: bytes, *, id: bytes) -> bool:
    """Whether ``signature`` over ``message`` under the identifier ``id`` was made with the key of ``point``."""
    return Key(point).verify_digest(signature, digest(point, message, id))


def generate() -> tuple[int, bytes]:
    """A new key pair: scalar, 1 to n-2, and point."""
    scalar = secrets.randbelow(N - 2) + 1
    return scalar, public_point(scalar)


def public_point(scalar: int) -> bytes:
    """scalar · G as 04 || X || Y, in constant time. Raises WeakKey outside 1 to n-2 (GB/T 32918.1 6.1)."""
    if not 1 <= scalar <= N - 2:
        raise WeakKey("SM2: a private key lies between 1 and n-2")
    lib = _libcrypto()
    key = lib.ec_key_new(_NID_SM2)
    number = _bignum(lib, scalar)
    group = lib.group(key)
    point = lib.point_new(group)
    octets = ctypes.create_string_buffer(65)
    done = lib.point_mul(group, point, number, None, None, None) == 1 and lib.point2oct(group, point, 4, octets, 65, None) == 65
    lib.point_free(point)
    lib.bn_clear_free(number)
    lib.ec_key_free(key)
    if not done:
        lib.clear_errors()
        raise Fatal("SM2: libcrypto does not compute a public key")
    return octets.raw


def self_test() -> None:
    """Known answers of GB/T 32918.5 A.2, and forgeries that must fail; for the start of a process.

    Raises:
        Fatal: an answer is wrong.  Unavailable: no libcrypto.
    """
    scalar = 0x3945208F7B2144B13F36E38AC6D39F95889393692860B51A42FB81EF4DF7C5B8
    r = 0xF5A03B0648D2C4630EEAC513E1BB81A15944DA3827D5B74143AC7EACEEE720B3
    s = 0xB1B6AA29DF212FD8763182BC0D421CA1BB9038FD1F7F42D4840B69C485BBC1AA
    key = Key(public_point(scalar), scalar)
    e = key.digest(b"message digest", DEFAULT_ID)
    right = (
        e.hex().startswith("f0b43e94ba45acca")
        and key.verify_digest(_signature(r, s), e)
        and key.verify_digest(key.sign_digest(e), e)
        and not any(key.verify_digest(_signature(*forged), e) for forged in ((r, N - s), (s, r), (r, N - r), (0, s), (r + N, s)))
        and not key.verify_digest(_signature(r, s), key.digest(b"message digest", b""))
    )
    if not right:
        raise Fatal("SM2: the self-test failed; the OpenSSL library of this system is broken or not what it says")


def _signature(r: int, s: int) -> bytes:
    values = b"".join(b"\x02" + bytes((len(octets),)) + octets for octets in (v.to_bytes(v.bit_length() // 8 + 1) for v in (r, s)))
    return b"\x30" + bytes((len(values),)) + values


def _well_formed(signature: bytes) -> bool:
    """Strict DER of two INTEGERs between 1 and n-1 and nothing else."""
    if not 8 <= len(signature) <= 72 or signature[0] != 0x30 or signature[1] != len(signature) - 2:
        return False
    position = 2
    for _ in "rs":
        if signature[position : position + 1] != b"\x02" or position + 2 > len(signature):
            return False
        end = position + 2 + signature[position + 1]
        octets = signature[position + 2 : end]
        if end > len(signature) or not octets or octets[0] & 0x80 or (octets[0] == 0 and octets[1:2] < b"\x80"):
            return False
        if not 0 < int.from_bytes(octets) < N:
            return False
        position = end
    return position == len(signature)


def _sm3(data: bytes) -> hashes.Hash:
    state = hashes.Hash(hashes.SM3())
    state.update(data)
    return state


def _bignum(lib: _Libcrypto, value: int) -> int:
    return lib.bn_bin2bn(value.to_bytes(32), 32, None)
