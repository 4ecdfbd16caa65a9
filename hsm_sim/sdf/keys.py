"""Use of the keys: signing, decryption, session keys under SM2 or a KEK, and SM4 with them (GM/T 0018 6.3 to 6.5)."""

from __future__ import annotations

import asyncio
import secrets
from typing import Any

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from hsm_sim import cka
from hsm_sim.audit import Event
from hsm_sim.errors import Code, Rejected
from hsm_sim.keys import Key
from hsm_sim.mechanisms import signer
from hsm_sim.objects import Object
from hsm_sim.sdf.call import Call
from hsm_sim.sdf.types import SGD_SM4_CBC, SGD_SM4_ECB
from pkix import sm2_cipher
from pkix.errors import IronrootError

MAX_DATA = 1 << 20  # octets in one call


async def sign(call: Call) -> bytes:
    """``{index, e}``: r ‖ s over e, 32 octets."""
    obj, key = await call.private("sign")
    e, make = call.request.octets("e", 32, 32), signer(key, cka.CKM_ECDSA, None)
    made = await call.device.signing.one(call.caller, obj.label, "SDF_InternalSign_ECC", "sdf", make, e, fast=False)
    return call.device.after("sign", obj.label, call.caller, made)


async def decrypt(call: Call) -> bytes:
    """``{index, cipher}``: what the SM2Cipher (DER) holds."""
    obj, key = await call.private("enc")
    plain = await _open(call, obj, key, "SDF_InternalDecrypt_ECC")
    await _logged(call, "decrypt", obj, "SDF_InternalDecrypt_ECC")
    return plain


async def exchange(call: Call) -> bytes:
    """``{index, cipher, point}``: a digital envelope to the index's encryption key, made into one to ``point``."""
    obj, key = await call.private("enc")
    cipher = sm2_cipher.encrypt(call.public(), await _open(call, obj, key, "SDF_ExchangeDigitEnvelopeBaseOnECC"))
    await _logged(call, "decrypt", obj, "SDF_ExchangeDigitEnvelopeBaseOnECC")
    return cipher


# --- session keys --------------------------------------------------------------------------------------------------


async def generate_for_index(call: Call) -> dict[str, Any]:
    """``{index}``: a session key, 16 octets: its handle, and it encrypted to the index's encryption key."""
    obj, key = call.key(f"sdf.{call.index}.enc", cka.CKO_PUBLIC_KEY)
    made = secrets.token_bytes(16)
    answer = {"handle": call.session.keep(made), "cipher": sm2_cipher.encrypt(key.handle, made)}
    await _logged(call, "generate", obj, "SDF_GenerateKeyWithIPK_ECC")
    return answer


async def generate_for_point(call: Call) -> dict[str, Any]:
    """``{point}``: the same, encrypted to somebody else's key."""
    theirs, made = call.public(), secrets.token_bytes(16)
    answer = {"handle": call.session.keep(made), "cipher": sm2_cipher.encrypt(theirs, made)}
    await _logged(call, "generate", None, "SDF_GenerateKeyWithEPK_ECC")
    return answer


async def import_key(call: Call) -> dict[str, Any]:
    """``{index, cipher}``: the handle of a session key that came encrypted to the index's encryption key."""
    obj, key = await call.private("enc")
    plain = await _open(call, obj, key, "SDF_ImportKeyWithISK_ECC")
    if len(plain) != 16:
        raise Rejected(Code.WRAPPED_KEY_LEN_RANGE, "a session key here is an SM4 key, 16 octets")
    await _logged(call, "unwrap", obj, "SDF_ImportKeyWithISK_ECC")
    return {"handle": call.session.keep(plain)}


async def generate_under_kek(call: Call) -> dict[str, Any]:
    """``{index}`` of a KEK: a session key: its handle, and it under the KEK (SM4-ECB)."""
    obj, kek = await _kek(call)
    made = secrets.token_bytes(16)
    answer = {"handle": call.session.keep(made), "wrapped": sm4(kek.handle, SGD_SM4_ECB, b"", made, encrypt=True)}
    await _logged(call, "generate", obj, "SDF_GenerateKeyWithKEK")
    return answer


async def import_under_kek(call: Call) -> dict[str, Any]:
    """``{index, wrapped}``: the handle of a session key that came under a KEK."""
    obj, kek = await _kek(call)
    key = sm4(kek.handle, SGD_SM4_ECB, b"", call.request.octets("wrapped", 16, 16), encrypt=False)
    await _logged(call, "unwrap", obj, "SDF_ImportKeyWithKEK")
    return {"handle": call.session.keep(key)}


async def _kek(call: Call) -> tuple[Object, Key]:
    found = call.key(f"sdf.kek.{call.index}", cka.CKO_SECRET_KEY)
    await call.take(found[0], "encrypt")
    return found


async def destroy_key(call: Call) -> None:
    """``{handle}`` of a session key."""
    call.session_key()
    del call.session.keys[call.request.args["handle"]]


# --- SM4 -----------------------------------------------------------------------------------------------------------


async def cipher(call: Call) -> bytes:
    """``{handle, algorithm, iv, data, encrypt}``: SM4 in ECB or CBC mode over whole blocks."""
    algorithm = call.request.args.get("algorithm")
    if algorithm not in (SGD_SM4_ECB, SGD_SM4_CBC):
        raise Rejected(Code.MECHANISM_INVALID, "session keys here are used with SGD_SM4_ECB and SGD_SM4_CBC")
    encrypt = call.request.args.get("encrypt") is True
    return sm4(call.session_key(), algorithm, call.request.octets("iv", 0, 16), call.request.octets("data", 0, MAX_DATA), encrypt=encrypt)


async def mac(call: Call) -> bytes:
    """``{handle, iv, data}``: CBC-MAC, the last block (SGD_SM4_MAC)."""
    data, iv = call.request.octets("data", 16, MAX_DATA), call.request.octets("iv", 16, 16)
    return sm4(call.session_key(), SGD_SM4_CBC, iv, data, encrypt=True)[-16:]


def sm4(key: bytes, algorithm: int, iv: bytes, data: bytes, *, encrypt: bool) -> bytes:
    """Raises Rejected(DATA_LEN_RANGE): no whole blocks, or no IV of 16 octets in CBC mode."""
    if len(data) % 16 or (algorithm == SGD_SM4_CBC and len(iv) != 16):
        raise Rejected(Code.DATA_LEN_RANGE, "SM4 takes whole blocks of 16 octets, and in CBC mode an IV of 16")
    mode = modes.CBC(iv) if algorithm == SGD_SM4_CBC else modes.ECB()  # noqa: S305 - what GM/T 0018 names
    made = Cipher(algorithms.SM4(key), mode)
    context = made.encryptor() if encrypt else made.decryptor()
    return context.update(data) + context.finalize()


async def _open(call: Call, obj: Object, key: Key, name: str) -> bytes:
    """Decrypts the argument ``cipher``. That it failed is written down: many failures in a row are somebody's experiment."""
    try:
        return await asyncio.to_thread(sm2_cipher.decrypt, key.handle, call.request.octets("cipher", 1, 8192))
    except IronrootError as error:
        call.device.audit.write_soon(Event("decrypt", call.caller, key=obj.label, mech=name, result=Code.ENCRYPTED_DATA_INVALID))
        raise Rejected(Code.ENCRYPTED_DATA_INVALID, str(error)) from error


async def _logged(call: Call, op: str, obj: Object | None, name: str) -> None:
    await call.device.audit.write(Event(op, call.caller, key="" if obj is None else obj.label, mech=name, purpose="sdf"))
