"""Message digests by name and by AlgorithmIdentifier, for OCSP CertIDs and CMS (RFC 5754, RFC 6960, GM/T 0006)."""

from __future__ import annotations

import hashlib

from cryptography.hazmat.primitives import hashes

from pkix import der
from pkix.errors import Unsupported

OIDS = {
    "sha1": "1.3.14.3.2.26",
    "sha256": "2.16.840.1.101.3.4.2.1",
    "sha384": "2.16.840.1.101.3.4.2.2",
    "sha512": "2.16.840.1.101.3.4.2.3",
    "sm3": "1.2.156.10197.1.401",
}
"""The digests that occur here. SHA-1 only ever names an issuer in a CertID (RFC 6960 4.1.1), where collisions gain nothing."""

_NAMES = {der.oid(oid): name for name, oid in OIDS.items()}


def compute(name: str, data: bytes) -> bytes:
    """The digest of ``data`` by one of ``OIDS``."""
    if name == "sm3":
        # hashlib has SM3 only where its OpenSSL does.
        state = hashes.Hash(hashes.SM3())
        state.update(data)
        return state.finalize()
    return hashlib.new(name, data, usedforsecurity=name != "sha1").digest()


def algorithm(name: str) -> bytes:
    """DER of the AlgorithmIdentifier, parameters absent (RFC 5754 2)."""
    return der.sequence(der.oid(OIDS[name]))


def read_algorithm(raw: bytes) -> str:
    """The name of a digest AlgorithmIdentifier, with NULL parameters or without. Raises Malformed, or Unsupported for other digests."""
    root = der.read(raw)
    body = der.expect(raw, root, der.SEQUENCE, "a digest algorithm")
    name = _NAMES.get(body.removesuffix(b"\x05\x00"))
    if name is None:
        raise Unsupported(f"a digest algorithm that is none of {', '.join(OIDS)}")
    return name
