"""Public keys that parse but must never be certified: what is looked for, and the arithmetic.

RSA: length, exponent, even modulus, factors below 2^14, two primes close together (Fermat), and the fingerprint of primes that
Infineon's library made (CVE-2017-15361). Ed25519: small order, off the curve, coordinate not reduced. Points of the other
curves are checked where they are loaded. Nothing here takes longer than a few milliseconds.
"""

from __future__ import annotations

import math
from functools import lru_cache

from pkix.errors import Unsupported, WeakKey

_FERMAT_ROUNDS = 100  # as CA/Browser Forum BR 6.1.1.6 asks


def check_rsa(modulus: int, exponent: int) -> None:
    """Returns for an RSA key of 2048 to 4096 bits without a known weakness.

    Raises:
        Unsupported: more than 4096 bits, or a length that is not a multiple of 8.  WeakKey: anything else wrong; the text says what.
    """
    bits = modulus.bit_length() if modulus > 0 else 0
    if bits < 2048:
        raise WeakKey(f"an RSA key of {bits} bits; at least 2048 are needed")
    if bits > 4096 or bits % 8:
        raise Unsupported(f"an RSA key of {bits} bits; 2048 to 4096 in steps of 8 are taken")
    if exponent % 2 == 0 or not 65537 <= exponent < 1 << 33:
        raise WeakKey("an RSA exponent that is even, below 65537 or above 2^33; make the key with 65537")
    if modulus % 2 == 0 or math.gcd(modulus, _small_primes()[1]) != 1:
        raise WeakKey("an RSA modulus with a small factor: it was not made from two primes")
    if _is_roca(modulus):
        raise WeakKey("an RSA key of a chip with the ROCA flaw (CVE-2017-15361): its private key can be computed; replace the key")
    if _primes_are_close(modulus):
        raise WeakKey("an RSA modulus whose primes are too close together: it can be factored; replace the key")


@lru_cache(maxsize=1)
def _small_primes() -> tuple[list[int], int]:
    """The odd primes below 2^14, and their product."""
    sieve = bytearray(b"\x01") * (1 << 14)
    for number in range(3, 128, 2):
        if sieve[number]:
            sieve[number * number :: 2 * number] = bytes(len(sieve[number * number :: 2 * number]))
    primes = [number for number in range(3, 1 << 14, 2) if sieve[number]]
    return primes, math.prod(primes)


@lru_cache(maxsize=1)
def _roca_residues() -> tuple[int, list[tuple[int, frozenset[int]]]]:
    """Product of the primes 3 to 167, and for each those residues that a power of 65537 has."""
    primes = [prime for prime in _small_primes()[0] if prime <= 167]
    return math.prod(primes), [(prime, frozenset(pow(65537, power, prime) for power in range(prime))) for prime in primes]


def _is_roca(modulus: int) -> bool:
    # The flawed library's primes are k·M + 65537^a mod M with M a primorial, so that N is a power of 65537 modulo every small prime
    # (Nemec et al., CCS 2017). A random modulus passes for one with a chance below 2^-27.
    product, residues = _roca_residues()
    rest = modulus % product
    return all(rest % prime in powers for prime, powers in residues)


def _primes_are_close(modulus: int) -> bool:
    mean = math.isqrt(modulus - 1) + 1
    square = mean * mean - modulus
    for _ in range(_FERMAT_ROUNDS):
        # A square is 0, 1, 4, 9, 16, 17, 25, 33, 36, 41, 49 or 57 modulo 64; the root is only taken for those.
        if square & 63 in _SQUARES_64 and math.isqrt(square) ** 2 == square:
            return True
        square += 2 * mean + 1
        mean += 1
    return False


_SQUARES_64 = frozenset(number * number % 64 for number in range(64))

_P25519 = 2**255 - 19
_D25519 = -121665 * pow(121666, -1, _P25519) % _P25519


def check_ed25519(encoded: bytes) -> None:
    """Returns for 32 octets that are a point of edwards25519 of large order, canonically encoded (RFC 8032 5.1.3). Raises WeakKey."""
    y = int.from_bytes(encoded, "little") & ~(1 << 255)
    if y >= _P25519:
        raise WeakKey("Ed25519: the coordinate of the public key is not reduced")
    numerator, denominator = (y * y - 1) % _P25519, (_D25519 * y * y + 1) % _P25519
    # x² = u/v has a root exactly if u·v has one; the denominator is never zero because d is no square.
    if numerator and pow(numerator * denominator, (_P25519 - 1) // 2, _P25519) != 1:
        raise WeakKey("Ed25519: the public key is not a point of the curve")
    # Order 1, 2: x = 0. Order 4: y = 0. Order 8: doubling gives order 4, that is 2·P has y = 0, which is x² = -y².
    if numerator == 0 or y == 0 or (numerator + denominator * y * y) % _P25519 == 0:
        raise WeakKey("Ed25519: the public key is a point of small order, which verifies forged signatures")
