"""M-of-N shares of a 32-octet key (Shamir 1979, over GF(256)), in a form that people can write down, read out and type in.

    parts = split(key, 3, 5)
    print(parts[0].text)                       # four lines of four groups
    combine([Share.parse(text) for text in three_of_them]) == key

Fewer than M shares say nothing about the key. A mistyped line is found by its check characters, a share of another set by the set's number,
a share that was altered by the digests that the backup carries (``combine(shares, digests)``) or, without them, by the checksum inside of
what is shared. The arithmetic looks up tables with secret indices: it is not constant in time, and made for a quiet room, not a server.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import sha256

from pkix.errors import Malformed

MAX_SHARES = 16
_KEY, _CHECK = 32, 4  # octets of the key, and of its checksum that is shared with it
_VERSION = 1
_ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
"""Base32 as Crockford writes it: no I, L, O and U, which are taken for others. I, L and O are read as what they look like."""
_READ = {character: value for value, character in enumerate(_ALPHABET)} | {"O": 0, "I": 1, "L": 1}
_LINES, _PER_LINE = 4, 18  # characters of content in a line; two of check follow


@dataclass(frozen=True, slots=True)
class Share:
    """One share. ``repr`` does not show its value.

    Attributes:
        set: number of the sharing, random, the same in all its shares (40 bits).
        needed, total: M and N.
        index: which of the N this is, from 1.
        value: 36 octets: the polynomials at ``index``.
    """

    set: int
    needed: int
    total: int
    index: int
    value: bytes = field(repr=False)

    @property
    def name(self) -> str:
        """How it is called in messages and on its envelope: ``share 2 (of 5) of set 7K2M-Q9XD``."""
        return f"share {self.index} (of {self.total}) of set {set_name(self.set)}"

    @property
    def digest(self) -> bytes:
        """SHA-256 of the share: tells a genuine one from an altered one, and nothing about its value."""
        return sha256(b"ironroot hsm share 1\0" + self._octets()).digest()

    @property
    def text(self) -> str:
        """Four lines of four groups of five characters; the last two of each line check it and the lines before it."""
        number = int.from_bytes(self._octets())
        characters = "".join(_ALPHABET[number >> 5 * at & 31] for at in range(_LINES * _PER_LINE - 1, -1, -1))
        lines = []
        for end in range(_PER_LINE, len(characters) + 1, _PER_LINE):
            line = characters[end - _PER_LINE : end] + _check(characters[:end])
            lines.append(" ".join(line[at : at + 5] for at in range(0, len(line), 5)))
        return "\n".join(lines)

    @classmethod
    def parse(cls, text: str) -> Share:
        """Reads ``text`` back; spaces, line ends and hyphens do not matter, nor do lines that begin with ``#``.

        Raises Malformed, naming the first line that is wrong.
        """
        lines = (line for line in text.upper().splitlines() if not line.lstrip().startswith("#"))
        typed = "".join("".join(lines).replace("-", " ").split())
        if wrong := [character for character in typed if character not in _READ]:
            raise Malformed(f"a share has letters and digits only, but no U, and not {wrong[0]!r}")
        if len(typed) != _LINES * (_PER_LINE + 2):
            raise Malformed(f"a share has 4 lines of 4 groups of 5 characters, 80 in all; here are {len(typed)}")
        clean = "".join(_ALPHABET[_READ[character]] for character in typed)
        content = ""
        for line in range(_LINES):
            start = line * (_PER_LINE + 2)
            content += clean[start : start + _PER_LINE]
            if clean[start + _PER_LINE : start + _PER_LINE + 2] != _check(content):
                raise Malformed(f"line {line + 1} of the share is mistyped, or is a line of another share; compare it with the original")
        number = 0
        for character in content:
            number = number << 5 | _READ[character]
        octets = number.to_bytes(_LINES * _PER_LINE * 5 // 8)
        if octets[0] != _VERSION:
            raise Malformed(f"a share of version {octets[0]}; this program reads version {_VERSION}")
        share = cls(int.from_bytes(octets[1:6]), octets[6], octets[7], octets[8], octets[9:])
        if not (2 <= share.needed <= share.total <= MAX_SHARES and 1 <= share.index <= share.total):
            raise Malformed("a share whose numbers make no sense; it was not written by this program")
        return share

    def _octets(self) -> bytes:
        """45 octets: version, set (5), M, N, index, value (36)."""
        return bytes((_VERSION,)) + self.set.to_bytes(5) + bytes((self.needed, self.total, self.index)) + self.value


def set_name(number: int) -> str:
    """The number of a set as people read it: two groups of four characters."""
    characters = "".join(_ALPHABET[number >> 5 * at & 31] for at in range(7, -1, -1))
    return f"{characters[:4]}-{characters[4:]}"


def split(key: bytes, needed: int, total: int) -> list[Share]:
    """``total`` shares of which any ``needed`` give ``key`` back (32 octets). Raises Malformed for other lengths or numbers."""
    if len(key) != _KEY:
        raise Malformed(f"shares are made of a key of {_KEY} octets, not {len(key)}")
    if not 2 <= needed <= total <= MAX_SHARES:
        raise Malformed(f"{needed} of {total} shares: choose 2 ≤ M ≤ N ≤ {MAX_SHARES}")
    number = secrets.randbits(40)
    polynomials = [key + _checksum(key, number), *(secrets.token_bytes(_KEY + _CHECK) for _ in range(needed - 1))]
    return [Share(number, needed, total, index, _evaluate(polynomials, index)) for index in range(1, total + 1)]


def combine(shares: Sequence[Share], digests: Sequence[bytes] = ()) -> bytes:
    """The key that was shared.

    Args:
        shares: at least M different ones of one set; what is given twice counts once.
        digests: ``Share.digest`` of all N in order, if they are known: an altered share is then told by its name.
    Raises:
        Malformed: too few, of different sets, or one of them altered; with the names of those to blame, as far as that can be told.
    """
    if not shares:
        raise Malformed("no share was given")
    first = shares[0]
    strangers = [share for share in shares if (share.set, share.needed, share.total) != (first.set, first.needed, first.total)]
    if strangers:
        raise Malformed(f"{strangers[0].name} does not belong with {first.name}: give shares of one set")
    if digests:
        for share in shares:
            if share.index > len(digests) or share.digest != digests[share.index - 1]:
                raise Malformed(f"{share.name} is not one of this backup's, or was altered; the shares of set {set_name(first.set)} differ")
    points: dict[int, bytes] = {}
    for share in shares:
        if points.setdefault(share.index, share.value) != share.value:
            raise Malformed(f"{share.name} was given twice with different values: one of them was altered")
    if len(points) < first.needed:
        have = ", ".join(map(str, sorted(points)))
        raise Malformed(f"{first.needed} shares of set {set_name(first.set)} are needed, and here are only: {have}")
    return _joined(first, points)


def _joined(first: Share, points: dict[int, bytes]) -> bytes:
    used = dict(sorted(points.items())[: first.needed])
    secret = _interpolate(used, 0)
    key = secret[:_KEY]
    given = ", ".join(map(str, sorted(points)))
    if secret[_KEY:] != _checksum(key, first.set):
        raise Malformed(f"one of the shares {given} of set {set_name(first.set)} was altered; try others of the {first.total}")
    for index in points.keys() - used.keys():
        if _interpolate(used, index) != points[index]:
            raise Malformed(f"share {index} of set {set_name(first.set)} was altered; the others fit together without it")
    return key


def _checksum(key: bytes, number: int) -> bytes:
    return sha256(b"ironroot hsm shared key 1\0" + number.to_bytes(5) + key).digest()[:_CHECK]


def _check(characters: str) -> str:
    """Two characters over all lines so far: 10 bits, so one slip in a thousand is found only by the next line or the key's checksum."""
    number = int.from_bytes(sha256(b"ironroot hsm share line 1\0" + characters.encode()).digest()[:2])
    return _ALPHABET[number >> 5 & 31] + _ALPHABET[number & 31]


# --- GF(256) with the polynomial x^8 + x^4 + x^3 + x + 1 (that of AES) ----------------------------------------------

_EXP = [1]
for _ in range(254):
    _EXP.append(_EXP[-1] ^ (_EXP[-1] << 1) ^ (0x11B if _EXP[-1] & 0x80 else 0))  # times 3, a generator
_LOG = {value: power for power, value in enumerate(_EXP)}


def _times(a: int, b: int) -> int:
    return _EXP[(_LOG[a] + _LOG[b]) % 255] if a and b else 0


def _over(a: int, b: int) -> int:
    return _EXP[(_LOG[a] - _LOG[b]) % 255] if a else 0


def _evaluate(polynomials: Sequence[bytes], x: int) -> bytes:
    """One polynomial per octet, constant terms first, at ``x``."""
    result = bytes(len(polynomials[0]))
    for coefficients in reversed(polynomials):
        result = bytes(_times(value, x) ^ coefficient for value, coefficient in zip(result, coefficients, strict=True))
    return result


def _interpolate(points: dict[int, bytes], x: int) -> bytes:
    """The polynomials through ``points``, at ``x`` (Lagrange)."""
    result = bytes(_KEY + _CHECK)
    for index, value in points.items():
        weight = 1
        for other in points.keys() - {index}:
            weight = _times(weight, _over(x ^ other, index ^ other))
        result = bytes(total ^ _times(octet, weight) for total, octet in zip(result, value, strict=True))
    return result
