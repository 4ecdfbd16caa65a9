"""Certificate requests, PKCS#10 (RFC 2986, GM/T 0092): read with everything checked that can be without knowing the sender; written.

    csr = parse_csr(raw)                 # strict DER, acceptable key, proof of possession: or an error of the Malformed family
    csr.public_key.kind, csr.names

    raw = build_csr(key, name(("CN", "press-7")), ["dns:press-7.plant"])

The subject and names of a ``Csr`` are what its sender wishes for. What the certificate says is decided elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from pkix import der, extensions
from pkix.algorithms import SIGNATURES, KeyKind, PublicKey, load_public_key, signature_algorithm
from pkix.errors import BadSignature, Malformed, Unsupported
from pkix.extensions import Extension
from pkix.name import Name, parse_name
from pkix.privatekey import PrivateKey

_CHALLENGE_PASSWORD, _EXTENSION_REQUEST = "1.2.840.113549.1.9.7", "1.2.840.113549.1.9.14"
_MICROSOFT_EXTENSION_REQUEST = "1.3.6.1.4.1.311.2.1.14"
_MAX_NAMES = 100
_MAX_CHALLENGE = 255  # characters (RFC 2985 A.1)
_VERSION = der.integer(0)


@dataclass(frozen=True, slots=True)
class Csr:
    """A request whose sender holds the private key of ``public_key``.

    Attributes:
        der: as received.
        subject: the name it proposes.
        names: the alternative names it proposes, canonical (``dns:``, ``ip:``, ``uri:``, ``email:``; ``dirname:`` and ``other:`` for
            the kinds that we do not write), each once.
        requests_ca: it asks for a CA certificate (basicConstraints cA, or keyUsage keyCertSign or cRLSign).
        challenge_password: RFC 2985 5.4.1. A secret in some protocols, hence not in ``repr``.
        signature_id: SM2 identifier under which possession was proved: ``default``, or ``empty`` (what OpenSSL before 4 does when it is
            not told); ``-`` for keys of other kinds.
    """

    der: bytes = field(repr=False)
    subject: Name
    public_key: PublicKey
    names: tuple[str, ...]
    requests_ca: bool
    challenge_password: str | None = field(repr=False)
    signature_id: str


def parse_csr(raw: bytes, *, max_size: int = 16384) -> Csr:
    """The request in ``raw`` (DER), its proof of possession verified.

    Raises:
        Malformed: not DER of a CertificationRequest, a name in it that is none, or more than ``max_size`` octets.
        Unsupported: an algorithm that is not taken.  WeakKey: a key that must not be certified.  BadSignature: no proof of possession.
        Unavailable: an SM2 key, and no libcrypto on this machine.
    """
    root = der.prescan(raw, max_size=max_size, max_elements=2000)
    info, algorithm, bits = _parts(raw, root, (der.SEQUENCE, der.SEQUENCE, der.BIT_STRING))
    version, subject, spki, attributes = _parts(raw, info, (der.INTEGER, der.SEQUENCE, der.SEQUENCE, 0xA0))
    if raw[version.start : version.end] != _VERSION:
        raise Unsupported("a certification request has version 1, written as 0 (RFC 2986 4.1)")
    if raw[bits.body]:
        raise Malformed("the signature of a certification request is a whole number of octets")
    proposed = parse_name(raw[subject.start : subject.end], strict=True)
    wishes, challenge = _attributes(raw, attributes)
    public_key = load_public_key(raw[spki.start : spki.end])
    signed, signature = raw[info.start : info.end], raw[bits.body + 1 : bits.end]
    signature_id = _prove_possession(public_key, signed, raw[algorithm.start : algorithm.end], signature)
    return Csr(raw, proposed, public_key, _names(wishes), _requests_ca(wishes), challenge, signature_id)


def build_csr(key: PrivateKey, subject: Name, names: Sequence[str] = (), challenge_password: str | None = None) -> bytes:
    """A request (DER) for a certificate of ``subject`` and ``names`` (canonical text), signed with ``key``; SM2 under the default id.

    Raises:
        Malformed: a name or challenge password that cannot be written.
    """
    attributes = []
    if names:
        wished = der.sequence(extensions.subject_alternative_name(*names).der)
        attributes.append(der.sequence(der.oid(_EXTENSION_REQUEST), der.set_of([wished])))
    if challenge_password is not None:
        if not 0 < len(challenge_password) <= _MAX_CHALLENGE:
            raise Malformed(f"a challenge password has 1 to {_MAX_CHALLENGE} characters")
        attributes.append(der.sequence(der.oid(_CHALLENGE_PASSWORD), der.set_of([der.utf8_string(challenge_password)])))
    info = der.sequence(_VERSION, subject.der, key.public_key.spki, der.context(0, *sorted(attributes)))
    return der.sequence(info, SIGNATURES[key.kind].der, der.bit_string(key.sign(info)))


def _parts(raw: bytes, element: der.Tlv, tags: tuple[int, ...]) -> list[der.Tlv]:
    parts = der.children(raw, element)
    if element.tag != der.SEQUENCE or tuple(part.tag for part in parts) != tags:
        raise Malformed("this is not a PKCS#10 certification request (RFC 2986); make one with openssl req -new or ironroot-device")
    return parts


def _prove_possession(public_key: PublicKey, signed: bytes, algorithm: bytes, signature: bytes) -> str:
    """Which SM2 identifier the signature is under, - for other keys. Raises BadSignature, or Unsupported for the algorithm."""
    is_sm2 = public_key.kind is KeyKind.SM2
    try:
        public_key.verify(signature, signed, signature_algorithm(algorithm))
    except BadSignature:
        # With an empty id, Z still binds the signature to this key: good enough to prove possession, and policy may yet refuse it.
        if is_sm2 and public_key.handle.verify_digest(signature, public_key.handle.digest(signed, b"")):
            return "empty"
        raise BadSignature("the request is not signed with the private key of the public key in it; make the request again") from None
    return "default" if is_sm2 else "-"


def _attributes(raw: bytes, element: der.Tlv) -> tuple[dict[str, Extension], str | None]:
    """The extensions asked for, and the challenge password; attributes of other types are passed over."""
    attributes = der.children(raw, element)
    encodings = [raw[attribute.start : attribute.end] for attribute in attributes]
    if any(first >= second for first, second in pairwise(encodings)):
        raise Malformed("the attributes of a request are a SET OF: each once, and in DER order (X.690 11.6)")
    wishes: dict[str, Extension] | None = None
    challenge: str | None = None
    for attribute in attributes:
        kind, values = _attribute(raw, attribute)
        if kind in (_EXTENSION_REQUEST, _MICROSOFT_EXTENSION_REQUEST) and wishes is None:
            wishes = extensions.read_extensions(raw, _only(values, kind))
        elif kind == _CHALLENGE_PASSWORD and challenge is None:
            challenge = der.decode_string(raw, _only(values, kind), "the challenge password")
            if not 0 < len(challenge) <= _MAX_CHALLENGE:
                raise Malformed(f"a challenge password has 1 to {_MAX_CHALLENGE} characters")
        elif kind in (_EXTENSION_REQUEST, _MICROSOFT_EXTENSION_REQUEST, _CHALLENGE_PASSWORD):
            raise Malformed("a request that asks for extensions, or gives a challenge password, more than once")
    return wishes or {}, challenge


def _attribute(raw: bytes, attribute: der.Tlv) -> tuple[str, list[der.Tlv]]:
    parts = der.children(raw, attribute) if attribute.tag == der.SEQUENCE else []
    if len(parts) != 2 or parts[0].tag != der.OID or parts[1].tag != der.SET:
        raise Malformed("an attribute of a request is a SEQUENCE of a type and a SET of values (RFC 2986 4.1)")
    return der.decode_oid(raw[parts[0].body : parts[0].end]), der.children(raw, parts[1])


def _only(values: list[der.Tlv], kind: str) -> der.Tlv:
    if len(values) != 1:
        raise Malformed(f"the attribute {kind} of a request has one value, not {len(values)}")
    return values[0]


def _names(wishes: dict[str, Extension]) -> tuple[str, ...]:
    wished = wishes.get(extensions.SUBJECT_ALT_NAME)
    if wished is None:
        return ()
    names = tuple(dict.fromkeys(extensions.read_general_names(wished.value)))
    if len(names) > _MAX_NAMES:
        raise Malformed(f"a request for {len(names)} names; at most {_MAX_NAMES} are taken")
    for name in names:
        kind, _, value = name.partition(":")
        if kind in ("dns", "uri", "email"):
            extensions.general_name(name)  # what we would not write, we do not read
        if kind == "dns":
            _check_host(value)
    return names


def _check_host(host: str) -> None:
    """Beyond the characters: no address posing as a host name, no A-label that is not the encoding of anything (RFC 5891 4.2)."""
    labels = host.split(".")
    if labels[-1].isdigit():
        raise Malformed(f"the name {host} ends in a number; an address is asked for as an iPAddress")
    for label in labels:
        if label.startswith("xn--"):
            try:
                plain = label[4:].encode().decode("punycode")
                valid = not plain.isascii() and plain.isprintable() and plain.encode("punycode").decode() == label[4:]
            except UnicodeError:
                valid = False
            if not valid:
                raise Malformed(f"the label {label} of a host name is not a valid A-label")


def _requests_ca(wishes: dict[str, Extension]) -> bool:
    constraints, usage = wishes.get(extensions.BASIC_CONSTRAINTS), wishes.get(extensions.KEY_USAGE)
    is_ca = constraints is not None and extensions.read_basic_constraints(constraints.value)[0]
    signs = usage is not None and not extensions.read_key_usage(usage.value).isdisjoint(("keyCertSign", "cRLSign"))
    return is_ca or signs
