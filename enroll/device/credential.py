"""Certificates with their keys, and the checks that an answer must pass before it is believed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from pkix import pem
from pkix.algorithms import KeyKind, PublicKey
from pkix.certificate import Certificate, parse_certificate, verify_signed
from pkix.errors import Malformed, NotFound, NotValid, Unavailable
from pkix.privatekey import PrivateKey, load_private_key

MAX_PATH = 8
_SKEW = timedelta(minutes=5)
# What Python's ssl can present as a client certificate; the others prove themselves by a CMS signature.
_TLS_KINDS = frozenset((KeyKind.RSA_2048, KeyKind.RSA_3072, KeyKind.RSA_4096, KeyKind.P_256, KeyKind.P_384, KeyKind.ED25519))


@dataclass(frozen=True, slots=True)
class Credential:
    """A certificate, the certificates that came with it, and its private key, with the files that hold them."""

    certificate: Certificate
    chain: tuple[Certificate, ...]
    key: PrivateKey
    certificate_file: Path
    key_file: Path

    @property
    def tls_kind(self) -> bool:
        """Whether its kind of key can be used for a TLS client certificate here."""
        return self.certificate.public_key.kind in _TLS_KINDS

    def expired(self, now: datetime) -> bool:
        return now > self.certificate.not_after


def load_credential(certificate_file: Path, key_file: Path) -> Credential:
    """Read a certificate (PEM, its chain may follow) and its key (PKCS#8, not encrypted).

    Raises:
        NotFound: a file is missing.
        Malformed: a file does not parse, or the key is not the certificate's.
    """
    certificates = load_certificates(certificate_file)
    if not certificates:
        raise Malformed(f"{certificate_file} holds no certificate")
    key = load_private_key(_contents(key_file))
    if key.public_key.spki != certificates[0].public_key.spki:
        raise Malformed(f"{key_file} is not the key of the first certificate in {certificate_file}")
    return Credential(certificates[0], tuple(certificates[1:]), key, certificate_file, key_file)


def load_certificates(file: Path) -> list[Certificate]:
    """All certificates in a PEM file (or the one in a DER file); none in an empty one. Raises NotFound, Malformed."""
    data = _contents(file)
    return [parse_certificate(der) for der in pem.certificates(data)] if data else []


def _contents(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except FileNotFoundError:
        raise NotFound(f"there is no file {file}") from None
    except OSError as error:
        raise Unavailable(f"{file} cannot be read: {error.strerror}") from None


def self_signed(certificate: Certificate) -> bool:
    """Whether this is a CA certificate that its own key signed: a root."""
    if not certificate.is_ca or certificate.issuer.der != certificate.subject.der:
        return False
    return _signed_by(certificate, certificate)


def find_path(leaf: Certificate, others: Iterable[Certificate], roots: Iterable[Certificate], now: datetime) -> list[Certificate]:
    """The intermediate certificates from ``leaf`` up to one of ``roots`` (RFC 5280 6.1: names, signatures, validity, CA, path length).

    Revocation is not looked at: the answer is minutes old and comes from its issuer.

    Raises:
        NotValid: there is no such path at ``now``, or the leaf is not valid at ``now``.
    """
    if not leaf.not_before - _SKEW <= now <= leaf.not_after:
        raise NotValid(f"the certificate is valid from {leaf.not_before:%F %T} to {leaf.not_after:%F %T}, and it is {now:%F %T} UTC")
    anchors = [root for root in roots if _may_issue(root, now)]
    pool = [other for other in others if _may_issue(other, now) and other.der != leaf.der]
    path = _climb(leaf, [], pool, anchors)
    if path is None:
        raise NotValid("the certificate does not lead to a trusted root: no chain of valid CA certificates connects them")
    return path


def _climb(child: Certificate, below: list[Certificate], pool: list[Certificate], anchors: list[Certificate]) -> list[Certificate] | None:
    if any(_issued(anchor, child, len(below)) for anchor in anchors):
        return below
    if len(below) == MAX_PATH:
        return None
    for issuer in pool:
        if issuer not in below and _issued(issuer, child, len(below)):
            path = _climb(issuer, [*below, issuer], pool, anchors)
            if path is not None:
                return path
    return None


def _issued(issuer: Certificate, child: Certificate, intermediates_below: int) -> bool:
    named = issuer.subject.der == child.issuer.der and (None in (issuer.ski, child.aki) or issuer.ski == child.aki)
    short = issuer.path_length is None or intermediates_below <= issuer.path_length
    return named and short and _signed_by(child, issuer)


def _signed_by(child: Certificate, issuer: Certificate) -> bool:
    try:
        verify_signed(child.der, issuer.public_key)
    except Malformed:  # a bad signature, or an algorithm or key that we do not take
        return False
    return True


def _may_issue(certificate: Certificate, now: datetime) -> bool:
    usage = certificate.key_usage
    return certificate.is_ca and (not usage or "keyCertSign" in usage) and certificate.not_before - _SKEW <= now <= certificate.not_after


def check_answer(certificates: Sequence[Certificate], key: PublicKey, serial: str, replaces: Certificate | None) -> Certificate:
    """The certificate in an answer that is ours: for our key, under our name.

    Args:
        certificates: all that the server sent.
        key: the key that we asked for.
        serial: the device serial, which must be the subject's CN or serialNumber.
        replaces: on renewal the current certificate: subject and names must not change (RFC 7030 4.2.2).

    Raises:
        NotValid: no certificate for our key, or it names somebody else.
    """
    leaf = next((certificate for certificate in certificates if certificate.public_key.spki == key.spki), None)
    if leaf is None:
        raise NotValid("the server answered with a certificate for another key; it is not used")
    if replaces is not None and (leaf.subject.der != replaces.subject.der or set(leaf.names) != set(replaces.names)):
        raise NotValid(f"the renewed certificate names {leaf.subject.text}, not what the current one names; it is not used")
    if replaces is None and serial not in (*leaf.subject.get("CN"), *leaf.subject.get("serialNumber")):
        raise NotValid(f"the server answered with a certificate for {leaf.subject.text}, not for {serial}; it is not used")
    if leaf.is_ca:
        raise NotValid("the server answered with a CA certificate; it is not used")
    return leaf


def grown_trust(roots: Sequence[Certificate], offered: Sequence[Certificate], now: datetime) -> list[Certificate]:
    """``roots``, and the new ones in ``offered`` that an old one vouches for by NewWithOld (RFC 4210 4.4, RFC 7030 4.1.3)."""
    grown = list(roots)
    for root in offered:
        if root in grown or not self_signed(root):
            continue
        vouchers = [c for c in offered if c.subject.der == root.subject.der and c.public_key.spki == root.public_key.spki and c != root]
        if any(_leads(voucher, offered, roots, now) for voucher in vouchers):
            grown.append(root)
    return grown


def _leads(certificate: Certificate, others: Sequence[Certificate], roots: Sequence[Certificate], now: datetime) -> bool:
    try:
        find_path(certificate, others, roots, now)
    except NotValid:
        return False
    return True


def to_pem(certificates: Iterable[Certificate]) -> str:
    """PEM of each, one after the other."""
    return "".join(certificate.pem for certificate in certificates)
