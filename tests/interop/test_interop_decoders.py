"""Other people's decoders and another SM2 read what we issued: asn1crypto, cryptography and gmssl agree on every certificate and CRL."""

from __future__ import annotations

from datetime import UTC

import pytest
from asn1crypto import core
from asn1crypto import crl as asn1_crl
from asn1crypto import x509 as asn1
from cryptography import x509
from gmssl import sm2, sm3

SM2_ID = b"1234567812345678"
A_AND_B = (
    "fffffffeffffffffffffffffffffffffffffffff00000000fffffffffffffffc28e9fa9e9d9f5e344d5a9e4bcf6509a7f39789f515ab8f92ddbcbd414d940e93"
    "32c4ae2c1f1981195f9904466a39c9948fe30bbff2660be1715a4589334c74c7bc3736a2f4f6779c59bdcee36b692153d0a9877cc62a474002df32e52139f0a0"
)


def point(certificate: bytes) -> bytes:
    """The public key as ``04 X Y``."""
    return bytes(asn1.Certificate.load(certificate, strict=True)["tbs_certificate"]["subject_public_key_info"]["public_key"].native)


def gmssl_verifies(signed: bytes, signer: bytes, *, identifier: bytes = SM2_ID) -> bool:
    """Whether gmssl finds the signature of a certificate or CRL right: e = SM3(Z || TBS), Z with ``identifier`` (GM/T 0009)."""
    tbs, _, signature = (core.Any.load(part.dump()) for part in core.SequenceOf.load(signed, spec=core.Any))
    numbers = core.SequenceOf.load(core.BitString.load(signature.dump()).as_octet_string_native(), spec=core.Integer)
    public = point(signer)[1:]
    entl = (8 * len(identifier)).to_bytes(2, "big")
    z = sm3.sm3_hash(list(entl + identifier + bytes.fromhex(A_AND_B) + public))
    digest = sm3.sm3_hash(list(bytes.fromhex(z) + tbs.dump()))
    key = sm2.CryptSM2(private_key="", public_key=public.hex())
    return bool(key.verify("".join(f"{number.native:064x}" for number in numbers), bytes.fromhex(digest)))
