"""The rules for attributes: which ones an object has, who may give them, what may change (PKCS#11 v3.1, 4.1 to 4.10).

    attributes = born(template, key, id, mechanism=CKM_EC_KEY_PAIR_GEN)     # a new key's: checked, and completed with defaults
    attributes = changed(obj, template)                                     # after C_SetAttributeValue
    matches(obj, {CKA_CLASS: CKO_PRIVATE_KEY, CKA_ID: b"\\1"})

Private and secret keys are sensitive and not extractable unless the template says otherwise, and always CKA_PRIVATE, whatever it says: they
are sealed under the partition's KEK, which a PIN opens. A template that names no use gets the uses that its type of key is made for.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from hsm_sim import cka
from hsm_sim.errors import Code, Rejected
from hsm_sim.keys import CURVES, Key
from hsm_sim.objects import Object, Template, Value

MAX_ATTRIBUTES = 16384  # octets of all attributes of an object
MAX_VALUE = 65536  # octets of a certificate or data object

_COMMON = frozenset(
    (cka.CKA_CLASS, cka.CKA_TOKEN, cka.CKA_PRIVATE, cka.CKA_LABEL, cka.CKA_MODIFIABLE, cka.CKA_COPYABLE, cka.CKA_DESTROYABLE)
)
_KEY = _COMMON | {cka.CKA_KEY_TYPE, cka.CKA_ID, cka.CKA_START_DATE, cka.CKA_END_DATE, cka.CKA_DERIVE, cka.CKA_ALLOWED_MECHANISMS}
_NUMBERS = frozenset(
    (cka.CKA_MODULUS, cka.CKA_MODULUS_BITS, cka.CKA_PUBLIC_EXPONENT, cka.CKA_EC_PARAMS, cka.CKA_EC_POINT, cka.CKA_PARAMETER_SET)
)
_GUARDED = frozenset((cka.CKA_SENSITIVE, cka.CKA_EXTRACTABLE, cka.CKA_WRAP_WITH_TRUSTED))
_PUBLIC_USES = frozenset((cka.CKA_ENCRYPT, cka.CKA_VERIFY, cka.CKA_VERIFY_RECOVER, cka.CKA_WRAP))
_PRIVATE_USES = frozenset((cka.CKA_DECRYPT, cka.CKA_SIGN, cka.CKA_SIGN_RECOVER, cka.CKA_UNWRAP))
USES = _PUBLIC_USES | _PRIVATE_USES | {cka.CKA_DERIVE}
_GIVEN: Mapping[int, frozenset[int]] = MappingProxyType(
    {
        cka.CKO_PUBLIC_KEY: _KEY | _PUBLIC_USES | _NUMBERS | {cka.CKA_SUBJECT, cka.CKA_TRUSTED, cka.CKA_PUBLIC_KEY_INFO, cka.CKA_VALUE},
        cka.CKO_PRIVATE_KEY: _KEY
        | _PRIVATE_USES
        | _NUMBERS
        | _GUARDED
        | {cka.CKA_SUBJECT, cka.CKA_ALWAYS_AUTHENTICATE, cka.CKA_PUBLIC_KEY_INFO},
        cka.CKO_SECRET_KEY: _KEY | _PUBLIC_USES | _PRIVATE_USES | _GUARDED | {cka.CKA_TRUSTED, cka.CKA_VALUE_LEN},
        cka.CKO_CERTIFICATE: _COMMON
        | {
            cka.CKA_CERTIFICATE_TYPE,
            cka.CKA_TRUSTED,
            cka.CKA_CERTIFICATE_CATEGORY,
            cka.CKA_CHECK_VALUE,
            cka.CKA_START_DATE,
            cka.CKA_END_DATE,
        }
        | {cka.CKA_SUBJECT, cka.CKA_ID, cka.CKA_ISSUER, cka.CKA_SERIAL_NUMBER, cka.CKA_VALUE, cka.CKA_URL, cka.CKA_PUBLIC_KEY_INFO}
        | {cka.CKA_HASH_OF_SUBJECT_PUBLIC_KEY, cka.CKA_HASH_OF_ISSUER_PUBLIC_KEY, cka.CKA_NAME_HASH_ALGORITHM}
        | {cka.CKA_JAVA_MIDP_SECURITY_DOMAIN},
        cka.CKO_DATA: _COMMON | {cka.CKA_APPLICATION, cka.CKA_OBJECT_ID, cka.CKA_VALUE},
    }
)
"""What a template may give, by class."""
_OURS = frozenset((cka.CKA_LOCAL, cka.CKA_NEVER_EXTRACTABLE, cka.CKA_ALWAYS_SENSITIVE, cka.CKA_KEY_GEN_MECHANISM, cka.CKA_UNIQUE_ID))
"""What only the device says."""
_LATER = USES | _GUARDED | {cka.CKA_LABEL, cka.CKA_ID, cka.CKA_SUBJECT, cka.CKA_START_DATE, cka.CKA_END_DATE, cka.CKA_TRUSTED}
"""What may change."""
_COPIED = _LATER | {cka.CKA_TOKEN, cka.CKA_PRIVATE, cka.CKA_MODIFIABLE, cka.CKA_COPYABLE, cka.CKA_DESTROYABLE}
"""What may differ in a copy."""
_ONE_WAY: Mapping[int, bool] = MappingProxyType(
    {
        cka.CKA_SENSITIVE: True,
        cka.CKA_EXTRACTABLE: False,
        cka.CKA_WRAP_WITH_TRUSTED: True,
        cka.CKA_PRIVATE: True,
        cka.CKA_COPYABLE: False,
    }
)
"""The value that does not change any more."""
_FITTING: Mapping[int, frozenset[int]] = MappingProxyType(
    {
        cka.CKK_RSA: frozenset((cka.CKA_SIGN, cka.CKA_VERIFY, cka.CKA_ENCRYPT, cka.CKA_DECRYPT)),
        cka.CKK_EC: frozenset((cka.CKA_SIGN, cka.CKA_VERIFY)),
        cka.CKK_EC_EDWARDS: frozenset((cka.CKA_SIGN, cka.CKA_VERIFY)),
        cka.CKK_ML_DSA: frozenset((cka.CKA_SIGN, cka.CKA_VERIFY)),
        cka.CKK_GENERIC_SECRET: frozenset((cka.CKA_SIGN, cka.CKA_VERIFY)),
    }
)
"""The uses of a key whose template names none; of the other types, ciphers: encrypt and decrypt."""


def checked(template: Template, cls: int) -> Template:
    """The template, if an object of this class may be given these attributes with values of these types.

    Raises Rejected: ATTRIBUTE_TYPE_INVALID, ATTRIBUTE_VALUE_INVALID, ATTRIBUTE_READ_ONLY, TEMPLATE_INCONSISTENT, DEVICE_MEMORY.
    """
    allowed = _GIVEN[cls]
    for attribute, value in template.items():
        if attribute not in allowed:
            raise _out_of_place(attribute)
        _typed(attribute, value)
    if template.get(cka.CKA_CLASS, cls) != cls:
        raise Rejected(Code.TEMPLATE_INCONSISTENT, "CKA_CLASS is not what this function makes")
    if template.get(cka.CKA_ALWAYS_AUTHENTICATE):
        raise Rejected(Code.ATTRIBUTE_VALUE_INVALID, "CKA_ALWAYS_AUTHENTICATE is not supported: log in once for each connection")
    _within({attribute: value for attribute, value in template.items() if attribute != cka.CKA_VALUE})
    value = template.get(cka.CKA_VALUE, b"")
    if isinstance(value, bytes) and len(value) > MAX_VALUE:
        raise Rejected(Code.DEVICE_MEMORY, f"a certificate or data object has at most {MAX_VALUE} octets")
    return template


def _out_of_place(attribute: int) -> Rejected:
    if attribute in _OURS:
        return Rejected(Code.ATTRIBUTE_READ_ONLY, f"attribute 0x{attribute:X} is the device's to say")
    if any(attribute in given for given in _GIVEN.values()) or attribute in cka.SECRETS:
        return Rejected(Code.TEMPLATE_INCONSISTENT, f"an object of this class is not given attribute 0x{attribute:X}")
    return Rejected(Code.ATTRIBUTE_TYPE_INVALID, f"attribute 0x{attribute:X} is not known here")


def _typed(attribute: int, value: Value) -> None:
    if attribute in cka.BOOLEANS:
        right = type(value) is bool
    elif attribute in cka.NUMBERS:
        right = type(value) is int
    elif attribute == cka.CKA_ALLOWED_MECHANISMS:
        right = type(value) is tuple and all(type(number) is int for number in value)
    elif attribute in (cka.CKA_START_DATE, cka.CKA_END_DATE):
        right = type(value) is bytes and (value == b"" or (len(value) == 8 and value.isdigit()))
    else:
        right = type(value) is bytes
    if not right:
        raise Rejected(Code.ATTRIBUTE_VALUE_INVALID, f"attribute 0x{attribute:X} cannot have this value")


def born(template: Template, key: Key, id: bytes, *, mechanism: int | None = None, base: Object | None = None) -> Template:
    """All attributes of a new key.

    Args:
        template: as ``checked``.
        key: its material.
        mechanism: what it was generated with here; None for a key that came from elsewhere or was derived.
        base: the key that it was derived from.
    Raises:
        Rejected: TEMPLATE_INCONSISTENT (the template says another thing than the key).
    """
    said = key.attributes()
    for attribute, value in said.items():
        if attribute in template and not _same(attribute, template[attribute], value):
            raise Rejected(Code.TEMPLATE_INCONSISTENT, f"attribute 0x{attribute:X} is not what this key has")
    attributes = _with_defaults({**template, **said, cka.CKA_CLASS: key.cls, cka.CKA_UNIQUE_ID: id.hex().encode()}, key)
    attributes[cka.CKA_LOCAL] = mechanism is not None
    attributes[cka.CKA_KEY_GEN_MECHANISM] = cka.UNAVAILABLE if mechanism is None else mechanism
    if key.cls != cka.CKO_PUBLIC_KEY:
        here = mechanism is not None
        sensitive = here if base is None else base.attributes.get(cka.CKA_ALWAYS_SENSITIVE) is True
        kept = here if base is None else base.attributes.get(cka.CKA_NEVER_EXTRACTABLE) is True
        attributes[cka.CKA_ALWAYS_SENSITIVE] = sensitive and attributes[cka.CKA_SENSITIVE] is True
        attributes[cka.CKA_NEVER_EXTRACTABLE] = kept and attributes[cka.CKA_EXTRACTABLE] is False
    return attributes


def _with_defaults(attributes: Template, key: Key) -> Template:
    secret = key.cls != cka.CKO_PUBLIC_KEY
    uses = USES & _GIVEN[key.cls]
    named = any(attribute in attributes for attribute in uses)
    fitting = _FITTING.get(key.key_type, frozenset((cka.CKA_ENCRYPT, cka.CKA_DECRYPT)))
    filled: Template = {use: not named and use in fitting for use in uses}
    filled |= {
        cka.CKA_TOKEN: False,
        cka.CKA_PRIVATE: False,
        cka.CKA_LABEL: b"",
        cka.CKA_ID: b"",
        cka.CKA_START_DATE: b"",
        cka.CKA_END_DATE: b"",
    }
    filled |= {cka.CKA_MODIFIABLE: True, cka.CKA_COPYABLE: True, cka.CKA_DESTROYABLE: True}
    if secret:
        filled |= {cka.CKA_SENSITIVE: True, cka.CKA_EXTRACTABLE: False, cka.CKA_WRAP_WITH_TRUSTED: False}
    if key.cls == cka.CKO_PRIVATE_KEY:
        filled |= {cka.CKA_ALWAYS_AUTHENTICATE: False}
    else:
        filled |= {cka.CKA_TRUSTED: False}
    if key.cls != cka.CKO_SECRET_KEY:
        filled |= {cka.CKA_SUBJECT: b""}
    filled |= attributes
    if secret:
        filled[cka.CKA_PRIVATE] = True
    return filled


def stored(template: Template, id: bytes) -> tuple[Template, bytes]:
    """Attributes and value of a new certificate or data object. Raises Rejected: TEMPLATE_INCOMPLETE."""
    filled: Template = {cka.CKA_TOKEN: False, cka.CKA_PRIVATE: False, cka.CKA_LABEL: b"", cka.CKA_UNIQUE_ID: id.hex().encode()}
    filled |= {cka.CKA_MODIFIABLE: True, cka.CKA_COPYABLE: True, cka.CKA_DESTROYABLE: True}
    if template[cka.CKA_CLASS] == cka.CKO_CERTIFICATE:
        if template.get(cka.CKA_CERTIFICATE_TYPE) != cka.CKC_X_509 or not template.get(cka.CKA_VALUE):
            raise Rejected(Code.TEMPLATE_INCOMPLETE, "a certificate has CKA_CERTIFICATE_TYPE CKC_X_509 and a CKA_VALUE")
        filled |= {cka.CKA_SUBJECT: b"", cka.CKA_ID: b"", cka.CKA_ISSUER: b"", cka.CKA_SERIAL_NUMBER: b"", cka.CKA_TRUSTED: False}
        filled |= {cka.CKA_CERTIFICATE_CATEGORY: 0, cka.CKA_START_DATE: b"", cka.CKA_END_DATE: b""}
    else:
        filled |= {cka.CKA_APPLICATION: b"", cka.CKA_OBJECT_ID: b""}
    filled |= template
    value = filled.pop(cka.CKA_VALUE, b"")
    return filled, value if isinstance(value, bytes) else b""


def changed(obj: Object, template: Template, *, copy: bool = False) -> Template:
    """The object's attributes after C_SetAttributeValue with ``template`` (or those of its copy).

    Raises Rejected: ACTION_PROHIBITED (not modifiable, not copyable), ATTRIBUTE_READ_ONLY, and as ``checked``.
    """
    if obj.attributes.get(cka.CKA_COPYABLE if copy else cka.CKA_MODIFIABLE) is False:
        raise Rejected(Code.ACTION_PROHIBITED, f"the object {obj.label} may not be {'copied' if copy else 'changed'}")
    for attribute, value in template.items():
        if attribute not in _GIVEN[obj.cls]:
            raise _out_of_place(attribute)
        _typed(attribute, value)
        now = obj.attributes.get(attribute)
        if value == now and copy:
            continue
        if attribute not in (_COPIED if copy else _LATER) or (now is not value and _ONE_WAY.get(attribute) is now):
            raise Rejected(Code.ATTRIBUTE_READ_ONLY, f"attribute 0x{attribute:X} of this object cannot be changed to this")
    return _within({**obj.attributes, **template})


def _within(attributes: Template) -> Template:
    if sum(len(value) for value in attributes.values() if isinstance(value, bytes)) > MAX_ATTRIBUTES:
        raise Rejected(Code.DEVICE_MEMORY, f"the attributes of an object take at most {MAX_ATTRIBUTES} octets")
    return attributes


def matches(obj: Object, template: Template) -> bool:
    """Whether C_FindObjects with this template finds the object. A secret value finds nothing."""
    for attribute, value in template.items():
        if attribute == cka.CKA_VALUE and obj.value is not None:
            if value != obj.value:
                return False
        elif attribute not in obj.attributes or not _same(attribute, value, obj.attributes[attribute]):
            return False
    return True


def _same(attribute: int, one: Value, other: Value) -> bool:
    """Equal, or the same thing written in two ways: a curve's name, a number with leading zeros."""
    if one == other and type(one) is type(other):
        return True
    if not (isinstance(one, bytes) and isinstance(other, bytes)):
        return False
    if attribute == cka.CKA_EC_PARAMS:
        return one in CURVES and CURVES[one] == CURVES.get(other)
    return attribute in (cka.CKA_MODULUS, cka.CKA_PUBLIC_EXPONENT) and one.lstrip(b"\0") == other.lstrip(b"\0")
