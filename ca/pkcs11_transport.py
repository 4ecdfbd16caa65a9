"""Moving a private key from one token to another, never in the clear: on the tokens' side.

    private, numbers = begin(target)                              # an RSA pair, of the session: modulus and exponent go to the source
    wrapped = wrap(source, key, numbers)                          # an AES key under RSA-OAEP, the private key under AES-KWP
    unwrap(target, private, wrapped, spki, "ecc-issuing", None)   # a key of the target, not extractable there

The private key travels as PKCS#8 (PKCS#11 6.1.14) under a new AES-256 key (RFC 5649); that one under the RSA key of the target's session,
which never leaves it. OAEP is with SHA-1, the one that every token has; nothing here needs the hash to resist collisions.
"""

from __future__ import annotations

from typing import Any

from pkcs11 import MGF, Attribute, KeyType, Mechanism, MechanismFlag, ObjectClass
from pkcs11.constants import DEFAULT
from pkcs11.exceptions import KeyNotWrappable, KeyUnextractable

from ca import pkcs11_keys as keys
from ca.pkcs11_token import Failure, Token, identifier_of, key_type

BITS = 3072
_OAEP: dict[str, Any] = {"mechanism": Mechanism.RSA_PKCS_OAEP, "mechanism_param": (Mechanism.SHA_1, MGF.SHA1, None)}
_WRAPS = (Mechanism.AES_KEY_WRAP_KWP, Mechanism.AES_KEY_WRAP_PAD)  # PAD is what some, SoftHSM among them, call KWP


def begin(target: Token) -> tuple[Any, list[Any]]:
    """A pair of the session: its private half, and modulus, exponent and the key wraps of the target for ``wrap``. Raises Unsupported."""
    public, private = target.session.generate_keypair(
        KeyType.RSA, BITS, store=False, capabilities=MechanismFlag.WRAP | MechanismFlag.UNWRAP, mechanism=Mechanism.RSA_PKCS_KEY_PAIR_GEN
    )
    return private, [public[Attribute.MODULUS], public[Attribute.PUBLIC_EXPONENT], [int(one) for one in _WRAPS if one in target.mechanisms]]


def extractable(key: Any) -> bool:
    """Whether a private key may leave its token, wrapped."""
    return bool(key[Attribute.EXTRACTABLE])


def wrap(source: Token, key: Any, numbers: list[Any]) -> list[Any]:
    """``key`` for the pair of ``begin``: the key wrap taken, the wrapped AES key, the wrapped private key.

    Raises:
        Failure: the key is not extractable, or the tokens have no key wrap in common.
    """
    modulus, exponent, wraps = numbers
    if not extractable(key):
        raise Failure("not_extractable", "the key was made not to leave its token (CKA_EXTRACTABLE is false)")
    common = [one for one in _WRAPS if one in source.mechanisms and one in wraps]
    if not common:
        raise Failure("not_extractable", "the two tokens have no AES key wrap (CKM_AES_KEY_WRAP_KWP or _PAD) in common")
    transport = source.session.create_object(
        {
            Attribute.CLASS: ObjectClass.PUBLIC_KEY,
            Attribute.KEY_TYPE: KeyType.RSA,
            Attribute.TOKEN: False,
            Attribute.MODULUS: modulus,
            Attribute.PUBLIC_EXPONENT: exponent,
            Attribute.WRAP: True,
        }
    )
    aes = source.session.generate_key(
        KeyType.AES, 256, store=False, capabilities=MechanismFlag.WRAP, template={Attribute.EXTRACTABLE: True}
    )
    try:
        return [int(common[0]), transport.wrap_key(aes, **_OAEP), aes.wrap_key(key, mechanism=common[0])]  # type: ignore[attr-defined]
    except (KeyNotWrappable, KeyUnextractable) as error:
        raise Failure("not_extractable", f"the token does not wrap this key ({type(error).__name__})") from error


def unwrap(target: Token, private: Any, wrapped: list[Any], spki: bytes, label: str, identifier: bytes | None) -> None:
    """A key of the target from what ``wrap`` made, and its public half from ``spki``.

    The public half comes first: if we end between the two, this is repeated, and nothing that looks whole is there.
    """
    taken, wrapped_aes, wrapped_key = wrapped
    target.refuse_second(label)
    identifier = identifier or identifier_of(label)
    number, parameters, point = keys.ec_attributes(spki)
    usage = dict.fromkeys((Attribute.ENCRYPT, Attribute.WRAP, Attribute.VERIFY), DEFAULT)
    aes = private.unwrap_key(
        *(ObjectClass.SECRET_KEY, KeyType.AES, wrapped_aes),
        **_OAEP,
        capabilities=MechanismFlag.UNWRAP,
        template=usage | {Attribute.SENSITIVE: True, Attribute.EXTRACTABLE: False},
    )
    target.asked = True
    if not target.find(ObjectClass.PUBLIC_KEY, label, identifier):
        target.session.create_object(
            {
                Attribute.CLASS: ObjectClass.PUBLIC_KEY,
                Attribute.KEY_TYPE: number,
                Attribute.TOKEN: True,
                Attribute.PRIVATE: False,
                Attribute.LABEL: label,
                Attribute.ID: identifier,
                Attribute.EC_PARAMS: parameters,
                Attribute.EC_POINT: point,
                Attribute.VERIFY: True,
            }
        )
    aes.unwrap_key(
        *(ObjectClass.PRIVATE_KEY, key_type(number), wrapped_key),
        mechanism=Mechanism(taken),
        store=True,
        label=label,
        id=identifier,
        capabilities=MechanismFlag.SIGN,
        template=usage | {Attribute.PRIVATE: True, Attribute.SENSITIVE: True, Attribute.EXTRACTABLE: False},
    )
