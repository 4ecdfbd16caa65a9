"""What can be done with keys: the table of mechanisms, and each function of PKCS#11 over usable material.

    check(CKF_SIGN, CKM_ECDSA, None, obj.attributes)       # may this object, can this mechanism: Rejected with the right code
    sign(key, CKM_ECDSA, None, digest)                     # r || s, as PKCS#11 writes it
    make = signer(key, CKM_ECDSA, der=True)                # the same, checked once, for many; X9.62 DER on request
    verify(public, CKM_ECDSA, None, digest, signature)     # SIGNATURE_INVALID, SIGNATURE_LEN_RANGE
    key = generate_pair(CKM_EC_KEY_PAIR_GEN, None, {CKA_EC_PARAMS: P_256_PARAMS}, {})

Pure functions: no permission, no log, no object is looked at but by ``check``. Where it all comes together is ``Partition``.
"""

from hsm_sim.mechanisms.ciphers import decrypt, encrypt, output_length
from hsm_sim.mechanisms.making import derive, generate_pair, generate_secret, unwrap, wrap, wrapped_length
from hsm_sim.mechanisms.signatures import Digested, digest, hasher, sign, signature_length, signer, verify, x962
from hsm_sim.mechanisms.table import BY_NAME, TABLE, Ecdh1, Eddsa, Gcm, Mechanism, MlDsa, Oaep, Params, Pss, check, mechanism

__all__ = [
    "BY_NAME",
    "TABLE",
    "Digested",
    "Ecdh1",
    "Eddsa",
    "Gcm",
    "Mechanism",
    "MlDsa",
    "Oaep",
    "Params",
    "Pss",
    "check",
    "decrypt",
    "derive",
    "digest",
    "encrypt",
    "generate_pair",
    "generate_secret",
    "hasher",
    "mechanism",
    "output_length",
    "sign",
    "signature_length",
    "signer",
    "unwrap",
    "verify",
    "wrap",
    "wrapped_length",
    "x962",
]
