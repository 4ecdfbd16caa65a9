"""Signing, verifying, encrypting, decrypting, digesting, in one part or many (PKCS#11 v3.0, 5.8 to 5.15).

Where an answer has a length, the caller may ask for that alone (room LENGTH_ONLY) or have too little room: then he is told the length and
the operation stays active (5.2). Every other error ends it.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from hsm_sim.cka import CKF_DECRYPT, CKF_DIGEST, CKF_ENCRYPT, CKF_SIGN, CKF_VERIFY, CKK_EC, CKO_SECRET_KEY
from hsm_sim.errors import Code, Rejected
from hsm_sim.keys import Key
from hsm_sim.mechanisms import Digested, Mechanism, output_length, signature_length, x962
from hsm_sim.pkcs11.rpc import LENGTH_ONLY
from hsm_sim.pkcs11.rpc import Mechanism as Asked
from hsm_sim.pkcs11.state import Application, Operation, Session

PURPOSE = "pkcs11"
Done = tuple[Any, ...]
Result = Done | Coroutine[Any, Any, Done]


def _begins(function: int) -> Any:
    def begin(application: Application, handle: int, asked: Asked, key: int) -> Done:
        application.begin(application.session(handle), function, asked, key)
        return ()

    return begin


def _updates(function: int) -> Any:
    """C_SignUpdate and C_VerifyUpdate."""

    def update(application: Application, handle: int, data: bytes | None) -> Done:
        session = application.session(handle)
        _add(application, session, function, data or b"")
        return ()

    return update


def _add(application: Application, session: Session, function: int, data: bytes) -> None:
    """One more part of the message."""
    operation = application.operation(session, function)
    try:
        if operation.hash is not None:
            operation.hash.update(data)
        elif operation.entry is not None and operation.entry.single and function in (CKF_SIGN, CKF_VERIFY):
            raise Rejected(Code.OPERATION_NOT_INITIALIZED, f"{operation.entry.name} takes its input in one part")
        else:
            application.retain(operation, len(data))
            operation.parts += data
    except Rejected:
        application.cancel(session, function)
        raise
    operation.started = True


def _whole(operation: Operation, data: bytes | None) -> bytes:
    """What is signed: the digest where the mechanism hashes first, else the message."""
    if data is not None:
        if operation.started:
            raise Rejected(Code.OPERATION_ACTIVE, "parts of a message have come; end with C_…Final")
        if operation.hash is not None:
            operation.hash.update(data)
    if operation.hash is not None:
        return Digested(operation.hash.digest())
    return bytes(operation.parts) if data is None else data


def sign(application: Application, handle: int, data: bytes | None, room: int) -> Result:
    """C_Sign."""
    return _sign(application, handle, data or b"", room)


def sign_final(application: Application, handle: int, room: int) -> Result:
    """C_SignFinal."""
    return _sign(application, handle, None, room)


def _sign(application: Application, handle: int, data: bytes | None, room: int) -> Result:
    session = application.session(handle)
    operation = application.operation(session, CKF_SIGN)
    entry, key = _of_key(operation)
    der = key.key_type == CKK_EC and application.device.personality.signatures == "der"
    length = _der_length(key) if der else signature_length(key, entry)
    if room < length:  # LENGTH_ONLY is less than any
        return (length,)
    whole = _whole(operation, data)
    application.cancel(session, CKF_SIGN)
    return _signed(session, operation, whole, der=der)


async def _signed(session: Session, operation: Operation, data: bytes, *, der: bool) -> Done:
    entry, _ = _of_key(operation)
    assert operation.obj is not None  # noqa: S101 - of_key has looked
    number = entry.number
    signature = await session.partition.sign(session.caller, operation.obj, number, operation.params, data, PURPOSE)
    return (x962(signature) if der else signature,)


def verify(application: Application, handle: int, data: bytes | None, signature: bytes | None) -> Done:
    """C_Verify."""
    return _verify(application, handle, data or b"", signature or b"")


def verify_final(application: Application, handle: int, signature: bytes | None) -> Done:
    """C_VerifyFinal."""
    return _verify(application, handle, None, signature or b"")


def _verify(application: Application, handle: int, data: bytes | None, signature: bytes) -> Done:
    session = application.session(handle)
    operation = application.operation(session, CKF_VERIFY)
    entry, key = _of_key(operation)
    whole = _whole(operation, data)
    application.cancel(session, CKF_VERIFY)
    assert operation.obj is not None  # noqa: S101 - of_key has looked
    if key.key_type == CKK_EC and application.device.personality.signatures == "der":
        signature = _raw(key, signature)
    session.partition.verify(session.caller, operation.obj, entry.number, operation.params, whole, signature)
    return ()


def _of_key(operation: Operation) -> tuple[Mechanism, Key]:
    if operation.entry is None or operation.obj is None or operation.obj.key is None:
        raise Rejected(Code.KEY_HANDLE_INVALID, "this object is no key")
    return operation.entry, operation.obj.key


def _der_length(key: Key) -> int:
    return key.bits() // 4 + 8


def _raw(key: Key, signature: bytes) -> bytes:
    half = key.bits() // 8
    try:
        return b"".join(number.to_bytes(half) for number in decode_dss_signature(signature))
    except (ValueError, OverflowError):
        raise Rejected(Code.SIGNATURE_INVALID, "the signature is no DER of two numbers") from None


def _ciphers(function: int) -> Any:
    """C_Encrypt and C_Decrypt."""

    def cipher(application: Application, handle: int, data: bytes | None, room: int) -> Result:
        session = application.session(handle)
        if application.operation(session, function).started:
            raise Rejected(Code.OPERATION_ACTIVE, "parts of a message have come; end with C_…Final")
        return _cipher(application, session, function, data or b"", room)

    return cipher


def _cipher_updates(function: int) -> Any:
    """C_EncryptUpdate and C_DecryptUpdate: what comes out comes out at the end."""

    def update(application: Application, handle: int, data: bytes | None, room: int) -> Done:
        session = application.session(handle)
        application.operation(session, function)
        if room == LENGTH_ONLY:
            return (0,)
        _add(application, session, function, data or b"")
        return (b"",)

    return update


def _cipher_finals(function: int) -> Any:
    """C_EncryptFinal and C_DecryptFinal."""

    def final(application: Application, handle: int, room: int) -> Result:
        session = application.session(handle)
        operation = application.operation(session, function)
        return _cipher(application, session, function, bytes(operation.parts), room)

    return final


def _cipher(application: Application, session: Session, function: int, data: bytes, room: int) -> Result:
    operation = application.operation(session, function)
    entry, key = _of_key(operation)
    if room == LENGTH_ONLY and operation.result is None:
        return (output_length(function, key, entry.number, operation.params, len(data)),)
    if operation.result is not None and operation.result[0] == data:
        return _handed_out(application, session, function, operation, room)
    return _worked(application, session, function, operation, data, room)


async def _worked(application: Application, session: Session, function: int, operation: Operation, data: bytes, room: int) -> Done:
    """Encrypts or decrypts. While that runs the operation is not active; if the result does not fit, it is again, and keeps the result."""
    entry, _ = _of_key(operation)
    application.cancel(session, function)
    work = session.partition.encrypt if function == CKF_ENCRYPT else session.partition.decrypt
    assert operation.obj is not None  # noqa: S101 - of_key has looked
    result = await work(session.caller, operation.obj, entry.number, operation.params, data)
    if len(result) <= room:
        return (result,)
    if session.open and function not in session.operations:
        application.retain(operation, len(data) + len(operation.parts) + len(result))
        operation.result = data, result
        session.operations[function] = operation
    return (len(result),)


def _handed_out(application: Application, session: Session, function: int, operation: Operation, room: int) -> Done:
    result = operation.result[1] if operation.result else b""
    if room < len(result):
        return (len(result),)
    application.cancel(session, function)
    return (result,)


def digest_init(application: Application, handle: int, asked: Asked) -> Done:
    """C_DigestInit."""
    application.begin_digest(application.session(handle), asked)
    return ()


def digest(application: Application, handle: int, data: bytes | None, room: int) -> Done:
    """C_Digest."""
    session = application.session(handle)
    if application.operation(session, CKF_DIGEST).started:
        raise Rejected(Code.OPERATION_ACTIVE, "parts of a message have come; end with C_DigestFinal")
    return _digested(application, session, data or b"", room)


def digest_update(application: Application, handle: int, data: bytes | None) -> Done:
    """C_DigestUpdate."""
    _add(application, application.session(handle), CKF_DIGEST, data or b"")
    return ()


def digest_key(application: Application, handle: int, key: int) -> Done:
    """C_DigestKey: the value of a secret key as a part; only of one that may be read, since a digest would tell of any other."""
    session = application.session(handle)
    application.operation(session, CKF_DIGEST)
    obj = application.object(session, key, Code.KEY_HANDLE_INVALID)
    if obj.cls != CKO_SECRET_KEY or obj.key is None or obj.closed:
        raise Rejected(Code.KEY_FUNCTION_NOT_PERMITTED, "only a secret key whose value may be read can be digested")
    _add(application, session, CKF_DIGEST, obj.key.secret())
    return ()


def digest_final(application: Application, handle: int, room: int) -> Done:
    """C_DigestFinal."""
    return _digested(application, application.session(handle), b"", room)


def _digested(application: Application, session: Session, data: bytes, room: int) -> Done:
    state = application.operation(session, CKF_DIGEST).hash
    if room < state.digest_size:
        return (state.digest_size,)
    state.update(data)
    application.cancel(session, CKF_DIGEST)
    return (state.digest(),)


HANDLERS: dict[str, Callable[..., Any]] = {
    "EncryptInit": _begins(CKF_ENCRYPT),
    "Encrypt": _ciphers(CKF_ENCRYPT),
    "EncryptUpdate": _cipher_updates(CKF_ENCRYPT),
    "EncryptFinal": _cipher_finals(CKF_ENCRYPT),
    "DecryptInit": _begins(CKF_DECRYPT),
    "Decrypt": _ciphers(CKF_DECRYPT),
    "DecryptUpdate": _cipher_updates(CKF_DECRYPT),
    "DecryptFinal": _cipher_finals(CKF_DECRYPT),
    "DigestInit": digest_init,
    "Digest": digest,
    "DigestUpdate": digest_update,
    "DigestKey": digest_key,
    "DigestFinal": digest_final,
    "SignInit": _begins(CKF_SIGN),
    "Sign": sign,
    "SignUpdate": _updates(CKF_SIGN),
    "SignFinal": sign_final,
    "VerifyInit": _begins(CKF_VERIFY),
    "Verify": verify,
    "VerifyUpdate": _updates(CKF_VERIFY),
    "VerifyFinal": verify_final,
}
