"""One token through python-pkcs11: open it, find keys on it, make and use them. Blocking, for one thread; see ``ca.pkcs11_worker``.

    token = Token(parse("pkcs11:token=ironroot?module-path=…&pin-source=file:hsm.pin"), home)
    token.generate("ecc-root", None, "p-256")                  # SubjectPublicKeyInfo
    token.sign("ecc-root", None, "p-256", spki, digest)        # as X.509 has it

Raises python-pkcs11's own errors, ``Failure`` for what only we object to, and ``Unsupported``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar

import pkcs11
from pkcs11 import Attribute, KeyType, Mechanism, MechanismFlag, ObjectClass, TokenFlag
from pkcs11.attributes import AttributeMapper, handle_ulong

from ca import pkcs11_keys as keys
from ca.pkcs11_uri import Pkcs11Uri, one
from pkix.errors import NotFound, Unsupported

Number = TypeVar("Number", KeyType, Mechanism)

_LOCKED = "the PIN is locked after too many wrong ones; the token's security officer has to unlock it"
_LAST_TRY = "one more wrong PIN would lock the token, so it is not tried: log in with another program first, to be sure of it"
_PIN_FILE = "the PIN file cannot be read; put the PIN there, readable to this service alone"
_NO_CURVE = (pkcs11.DomainParamsInvalid, pkcs11.AttributeValueInvalid, pkcs11.TemplateInconsistent, pkcs11.MechanismParamInvalid)


class Failure(Exception):
    """What the token did not refuse, and we do: a code for ``ca.signer_pkcs11``, a sentence. ``spent``: this process is of no more use."""

    def __init__(self, code: str, text: str, *, spent: bool = False) -> None:
        super().__init__(text)
        self.code, self.spent = code, spent


class Token:
    """A token that is open and, where the URI names a PIN, logged in.

    ``asked`` is False as long as the token was not asked for anything that it could have done although it answered with an error.
    """

    def __init__(self, uri: Pkcs11Uri, home: Path) -> None:
        """Loads the library and finds the token; a PIN is tried once. ``home`` is where a relative path of the URI begins."""
        try:
            library = pkcs11.lib(str(uri.module_path))
        except pkcs11.PKCS11Error as error:
            if type(error) is not pkcs11.PKCS11Error:
                raise
            raise Failure("module", f"the PKCS#11 library cannot be used: {error}", spent=True) from error
        tokens = [slot.get_token() for slot in library.get_slots(token_present=True)]
        try:
            self._token = tokens[one([_described(token, library) for token in tokens], uri)]
        except NotFound as error:
            raise Failure("no_token", str(error), spent=True) from error
        self.mechanisms = frozenset(int(mechanism) for mechanism in self._token.slot.get_mechanisms())
        self.vendor = keys.vendor(self._token.manufacturer_id)
        self.asked = False
        self._uri, self._home = uri, home
        self._keys: dict[tuple[str | None, bytes | None, bytes], Any] = {}
        self.session = self._log_in()

    def reopen(self) -> None:
        """A new session; keys are looked for again."""
        self._keys.clear()
        with contextlib.suppress(pkcs11.PKCS11Error):
            self.session.close()
        self.session = self._log_in()

    def _log_in(self) -> pkcs11.Session:
        mapper = AttributeMapper()
        mapper.register_handler(Attribute.KEY_TYPE, *handle_ulong)  # vendors have numbers of their own
        open_session = partial(self._token.open, rw=True, attribute_mapper=mapper)
        if self._uri.pin_source is None:
            return open_session()
        flags = self._token.slot.get_token().flags
        if flags & TokenFlag.USER_PIN_LOCKED:
            raise Failure("pin_locked", _LOCKED, spent=True)
        if flags & TokenFlag.USER_PIN_FINAL_TRY:
            raise Failure("pin_incorrect", _LAST_TRY, spent=True)
        try:
            pin = (self._home / self._uri.pin_source).read_text("utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise Failure("pin_file", _PIN_FILE, spent=True) from error
        try:
            return open_session(user_pin=pin)
        except pkcs11.UserAlreadyLoggedIn:
            return open_session()

    # Keys. A name is CKA_LABEL and CKA_ID, as far as the reference says them

    def check(self) -> None:
        """Raises where the session is not good any more."""
        self.session.generate_random(64)

    def public_key(self, label: str | None, identifier: bytes | None) -> bytes:
        """SubjectPublicKeyInfo of a key."""
        return self._spki(self._private(label, identifier))

    def sign(self, label: str | None, identifier: bytes | None, kind: str, spki: bytes, data: bytes) -> bytes:
        """The signature over ``data`` (a ``PublicKey.signing_input``) by the key of that name, which has to be the one of ``spki``."""
        how = keys.plan(kind, self.mechanisms, self.vendor)
        key = self._keys.get((label, identifier, spki))
        if key is None:
            key = self.key(label, identifier, spki)
            if not hasattr(key, "sign"):
                raise Failure("rejected", "the token does not let this key sign (CKA_SIGN)")
            # python-pkcs11 makes a class for each object, and asks the token for this before every signature.
            type(key).key_type = how.key_type
            self._keys[label, identifier, spki] = key
        self.asked = True
        return keys.x509_signature(kind, key.sign(keys.token_input(kind, data), mechanism=_mechanism(how.sign)), self.vendor)

    def generate(self, label: str, identifier: bytes | None, kind: str) -> bytes:
        """A new pair, not extractable; its SubjectPublicKeyInfo. CKA_ID is made from the label, so that both halves find each other."""
        self.refuse_second(label)
        public, _ = self._pair(kind, label, identifier or identifier_of(label), store=True)
        return keys.subject_public_key_info(self._shown(public), self.vendor)

    def trial(self, kind: str, data: bytes) -> tuple[bytes, bytes]:
        """SubjectPublicKeyInfo of a pair that is gone at once, and its signature over ``data``: to see whether the token does this kind."""
        how = keys.plan(kind, self.mechanisms, self.vendor)
        public, private = self._pair(kind, "ironroot-trial", identifier_of("ironroot-trial"), store=False)
        try:
            signature = private.sign(keys.token_input(kind, data), mechanism=_mechanism(how.sign))
            return keys.subject_public_key_info(self._shown(public), self.vendor), keys.x509_signature(kind, signature, self.vendor)
        finally:
            for half in (public, private):
                half.destroy()

    def destroy(self, label: str | None, identifier: bytes | None) -> None:
        """Destroys a key; the private half last, since by it the rest is found if this is repeated."""
        private = self._private(label, identifier)
        halves = [*self._public_halves(private), private]
        self.asked = True
        for half in halves:
            half.destroy()
        self._keys.clear()

    # Looking

    def key(self, label: str | None, identifier: bytes | None, spki: bytes) -> Any:
        """The private key of that name, if it is the one whose public key is ``spki``."""
        found = self._private(label, identifier)
        if self._spki(found) != spki:
            raise Failure("swapped", "the token holds another key under this name")
        return found

    def refuse_second(self, label: str) -> None:
        """Raises Failure where there is a private key of that label."""
        if self.find(ObjectClass.PRIVATE_KEY, label, None):
            raise Failure("key_exists", f"the token holds a key {label!r} already")

    def find(self, object_class: ObjectClass, label: str | None, identifier: bytes | None) -> list[Any]:
        """The token's objects of a class with this label and id."""
        wanted: dict[Attribute, Any] = {Attribute.CLASS: object_class, Attribute.TOKEN: True}
        if label is not None:
            wanted[Attribute.LABEL] = label
        if identifier is not None:
            wanted[Attribute.ID] = identifier
        return list(self.session.get_objects(wanted))

    def _private(self, label: str | None, identifier: bytes | None) -> Any:
        found = self.find(ObjectClass.PRIVATE_KEY, label, identifier)
        shown = (repr(label) if label else "") + (f" id {identifier.hex()}" if identifier else "")
        if not found:
            raise Failure("key_not_found", f"the token has no private key {shown}")
        if len(found) > 1:
            raise Failure("ambiguous", f"the token has {len(found)} private keys {shown}; remove the others, or say id=… in the reference")
        return found[0]

    def _spki(self, private: Any) -> bytes:
        """From the public half, or from what the private one shows itself."""
        for half in (*self._public_halves(private), private):
            with contextlib.suppress(Unsupported):
                return keys.subject_public_key_info(self._shown(half), self.vendor)
        raise Unsupported("the token shows no public half of this key; it has to have a public key object with the same label and CKA_ID")

    def _public_halves(self, private: Any) -> list[Any]:
        label, identifier = (_attribute(private, attribute) for attribute in (Attribute.LABEL, Attribute.ID))
        return self.find(ObjectClass.PUBLIC_KEY, label, identifier or None)

    @staticmethod
    def _shown(half: Any) -> dict[str, object]:
        """The attributes that say what a key is; one by one, since tokens disagree on what to answer when one of several is missing."""
        names = ("KEY_TYPE", "EC_PARAMS", "EC_POINT", "MODULUS", "PUBLIC_EXPONENT")
        return {name.lower(): _attribute(half, Attribute[name]) for name in names}

    def _pair(self, kind: str, label: str, identifier: bytes, *, store: bool) -> tuple[Any, Any]:
        how = keys.plan(kind, self.mechanisms, self.vendor)
        make = partial(
            self.session.generate_keypair,
            key_type(how.key_type),
            how.bits,
            label=label,
            id=identifier,
            store=store,
            capabilities=MechanismFlag.SIGN | MechanismFlag.VERIFY,
            mechanism=_mechanism(how.generate),
            private_template={Attribute.EXTRACTABLE: False},
        )
        self.asked = store
        templates: Iterable[dict[Attribute, Any]] = [{Attribute.EC_PARAMS: curve} for curve in how.parameters] or [{}]
        for template in templates:
            try:
                return make(public_template=template)
            except pkcs11.PKCS11Error as error:
                if not isinstance(error, _NO_CURVE) and not _curve_not_supported(error):
                    raise
        raise Unsupported(f"the token makes no keys of kind {kind}")


def identifier_of(label: str) -> bytes:
    """The CKA_ID that we give to a key of that label."""
    return sha256(label.encode()).digest()[:20]


def key_type(number: int) -> KeyType:
    """A CKK as python-pkcs11 takes it, also one of a vendor's."""
    return _member(KeyType, number)


def _mechanism(number: int) -> Mechanism:
    return _member(Mechanism, number)


def _member(enum: type[Number], number: int) -> Number:
    """python-pkcs11 takes members of its enumerations alone, and passes their numbers on."""
    try:
        return enum(number)
    except ValueError:
        made = int.__new__(enum, number)
        made._name_, made._value_ = f"VENDOR_{number:08X}", number
        return made


def _attribute(half: Any, attribute: Attribute) -> Any:
    try:
        return half[attribute]
    except (pkcs11.AttributeTypeInvalid, pkcs11.AttributeSensitive, pkcs11.FunctionFailed, UnicodeDecodeError):
        return None


def _curve_not_supported(error: pkcs11.PKCS11Error) -> bool:
    """CKR_CURVE_NOT_SUPPORTED (0x140), for which python-pkcs11 has no class."""
    return type(error) is pkcs11.PKCS11Error and "0x140" in str(error)


def _described(token: pkcs11.Token, library: Any) -> Pkcs11Uri:
    """A token as a URI that says everything about it."""
    return Pkcs11Uri(
        token=token.label,
        manufacturer=token.manufacturer_id,
        serial=token.serial.decode("utf-8", "replace"),
        model=token.model,
        library_manufacturer=library.manufacturer_id,
        library_description=library.library_description,
        library_version=library.library_version,
        slot_manufacturer=token.slot.manufacturer_id,
        slot_description=token.slot.slot_description,
        slot_id=token.slot.slot_id,
    )
