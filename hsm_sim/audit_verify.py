"""Whether an audit log is whole, read without the HSM: the chain, the signatures of its checkpoints, and who made them.

    verdict = verify(home, trusted=[manufacturer.der])
    verdict.ok or print(verdict.flaw.file, verdict.flaw.line, verdict.flaw.text)

What is found: any change to any line up to the last checkpoint, also by somebody who computes the chain afresh; lines that are gone, put in
or in another order; an end that was cut off before the newest checkpoint (``audit.checkpoint`` says which that was). After the last
checkpoint only the chain speaks, so whoever can write the file can rewrite those lines.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from hsm_sim.chain import FIRST, chain_files, digester, read_line, signature_of
from pkix.algorithms import PublicKey
from pkix.certificate import Certificate, parse_certificate, verify_signed
from pkix.errors import BadSignature, IronrootError, NotFound

_SIGNED = ("start", "continue", "checkpoint", "stop")


class Flaw(NamedTuple):
    """What is wrong with a log, first of all: ``what`` is changed, missing, reordered, torn, truncated, signature or untrusted."""

    file: str
    line: int  # in that file, from 1
    seq: int | None
    what: str
    text: str  # a sentence


class Verdict(NamedTuple):
    """``ok`` is ``flaw is None``. ``unsigned``: lines after the last checkpoint, which only the chain holds together."""

    flaw: Flaw | None
    first: int
    last: int
    head: str
    checkpoints: int
    unsigned: int
    signed_by: str  # SHA-256 of the audit key's certificate, hex; empty without checkpoints

    @property
    def ok(self) -> bool:
        return self.flaw is None


class _Place(NamedTuple):
    """A line as it stands: where, its octets, and its members if it is one."""

    file: Path
    line: int
    octets: bytes
    members: dict[str, Any] | None
    whole: bool  # it ends with a line feed

    def flaw(self, what: str, text: str) -> Flaw:
        return Flaw(self.file.name, self.line, self.members["seq"] if self.members else None, what, text)


def verify(home: Path, trusted: Sequence[bytes] | None = None) -> Verdict:
    """Reads the whole log. ``trusted``: certificates (DER) of manufacturers; None: the audit key is believed as the log names it.

    Raises OSError, NotFound (no log in ``home``).
    """
    found = chain_files(home / "audit.log")
    if not found:
        raise NotFound(f"there is no audit log in {home}; give the folder that the HSM keeps its files in")
    reader = _Reader(home, trusted)
    flaw = reader.run(_places(found))
    seq, digest = reader.head
    return Verdict(flaw, reader.first, seq, digest, reader.checkpoints, seq - reader.signed, reader.signed_by)


def _places(found: Sequence[Path]) -> Iterator[_Place]:
    for path in found:
        with path.open("rb") as file:
            blank: _Place | None = None
            for number, octets in enumerate(file, 1):
                line = octets.removesuffix(b"\n")
                place = _Place(path, number, line, read_line(line), line != octets)
                if not line and path is found[-1]:
                    blank = blank or place  # room that the process took beforehand, unless something follows
                    continue
                if blank is not None:
                    yield blank
                yield place
        if path.suffix != ".log" and not path.stat().st_size:
            yield _Place(path, 1, b"", None, True)


class _Reader:
    """One reading: what is known at the line it has come to."""

    def __init__(self, home: Path, trusted: Sequence[bytes] | None) -> None:
        self._home, self._trusted = home, None if trusted is None else [parse_certificate(octets) for octets in trusted]
        self._digest = digester("sha256")
        self._key: PublicKey | None = None
        self._mark = _mark(home)
        self._before: _Place | None = None
        self.head = (0, FIRST)
        self.first = self.signed = self.checkpoints = 0
        self.signed_by = ""

    def run(self, places: Iterator[_Place]) -> Flaw | None:
        """The first flaw."""
        place = next(places, None)
        while place is not None:
            following = next(places, None)
            if following is None and place.members is None:
                break  # the process is writing it at this moment, or a crash tore it: nobody was answered on it
            if flaw := self._judge(place, following, places):
                return flaw
            place = following
        return self._end()

    def _judge(self, place: _Place, following: _Place | None, rest: Iterator[_Place]) -> Flaw | None:
        line = place.members
        if line is None:
            return place.flaw(
                "changed", "this is no line as the HSM writes them: it was changed, or a power cut tore it and no start mended it"
            )
        if not place.whole:
            return place.flaw("torn", "the last line does not end: something behind it was taken away")
        if place.line == 1 and (flaw := self._open(place, line)):
            return flaw
        if flaw := self._link(place, line, following, rest):
            return flaw
        if line.get("op") in ("start", "continue") and (flaw := self._name(place, line)):
            return flaw
        if ("signature" in line or (self._key and line.get("op") in _SIGNED)) and (flaw := self._checkpoint(place, line)):
            return flaw
        self.head = line["seq"], self._digest(place.octets)
        self._before = place
        if self._mark is not None and line["seq"] == self._mark["seq"] and line != self._mark:
            return place.flaw("changed", "another checkpoint was kept for this line than stands here: the log was put back and written on")
        return None

    def _open(self, place: _Place, line: dict[str, Any]) -> Flaw | None:
        """The first line of a file says how the lines are hashed; a file that was put aside is called by its number."""
        named = place.file.suffix[1:]
        if line.get("op") not in ("start", "continue") or line.get("hash") not in ("sha256", "sm3") or type(line.get("chain")) is not list:
            return place.flaw("missing", "a file of the log begins with a line start or continue: lines before this one were taken away")
        if named.isdecimal() and int(named) != line["seq"]:
            return place.flaw("missing", f"this file is named for line {named} and begins with line {line['seq']}")
        if self._before is None:
            # Older files may have been put elsewhere; the log is then whole from here on.
            self.first, self.head = line["seq"], (line["seq"] - 1, line["prev"])
            self.signed = self.first - 1
            if self.first == 1 and line["prev"] != FIRST:
                return place.flaw("changed", "line 1 has nothing before it, but names a digest of something")
        self._digest = digester(line["hash"])
        return None

    def _link(self, place: _Place, line: dict[str, Any], following: _Place | None, rest: Iterator[_Place]) -> Flaw | None:
        """Number and digest go on from the line before."""
        seq, digest = self.head
        number, linked = line["seq"], line["prev"] == digest
        if number == seq + 1 and linked:
            return None
        if linked:
            return place.flaw("changed", f"this line follows line {seq} and calls itself {number}")
        if number == seq + 1:
            # One of two lines was changed: if the next one still knows this one, it was the one before.
            known = following is not None and following.members is not None and following.members["prev"] == self._digest(place.octets)
            known = known or (following is None and self._signed_rightly(place))
            if known and self._before is not None:
                return self._before.flaw("changed", "the digest of this line is not the one that the chain has for it")
            return place.flaw("changed", "this line does not follow the one before it")
        if number > seq + 1:
            others = chain(() if following is None else (following,), rest)
            if any(other.members is not None and other.members["seq"] == seq + 1 for other in others):
                return place.flaw("reordered", f"line {number} stands where line {seq + 1} belongs, which comes later")
            return place.flaw("missing", f"lines {seq + 1} to {number - 1} are not here")
        return place.flaw("reordered", f"line {number} stands behind line {seq}")

    def _name(self, place: _Place, line: dict[str, Any]) -> Flaw | None:
        """Takes the audit key that a start or continue line names."""
        if not line.get("chain"):
            return None if self._trusted is None else place.flaw("untrusted", "no audit key is named, so nobody vouches for these lines")
        try:
            path = [parse_certificate(bytes.fromhex(octets)) for octets in line["chain"]]
            key = path[0].public_key
            if self._trusted is None:
                if self._key is not None and key != self._key:
                    return place.flaw("untrusted", "another audit key than before; give the manufacturer's certificate to tell whose it is")
            elif not _leads_to(path, self._trusted):
                return place.flaw("untrusted", "the audit key's certificate does not lead to a manufacturer's certificate that was given")
        except (IronrootError, ValueError, TypeError) as error:
            return place.flaw("changed", f"the certificates of the audit key cannot be read: {error}")
        self._key, self.signed_by = key, path[0].sha256.hex()
        return None

    def _checkpoint(self, place: _Place, line: dict[str, Any]) -> Flaw | None:
        if not self._signed_rightly(place):
            return place.flaw(
                "signature",
                f"the signature is not the audit key's: lines after {self.signed} were changed and the chain computed afresh",
            )
        self.checkpoints += 1
        self.signed = line["seq"]
        return None

    def _signed_rightly(self, place: _Place) -> bool:
        if self._key is None or place.members is None or "signature" not in place.members:
            return False
        try:
            message, signature = signature_of(place.octets)
            self._key.verify(signature, message)
        except (ValueError, BadSignature):
            return False
        return True

    def _end(self) -> Flaw | None:
        if self._mark is None or self._mark["seq"] <= self.head[0]:
            return None
        name, line = (self._before.file.name, self._before.line) if self._before else ("audit.log", 0)
        said = f"the log ends with line {self.head[0]}, but checkpoint {self._mark['seq']} was written: the end was cut off"
        return Flaw(name, line, self.head[0], "truncated", said)


def _mark(home: Path) -> dict[str, Any] | None:
    """The newest checkpoint that the HSM kept beside the log."""
    try:
        return read_line((home / "audit.checkpoint").read_bytes().removesuffix(b"\n"))
    except FileNotFoundError:
        return None


def _leads_to(path: Sequence[Certificate], trusted: Sequence[Certificate]) -> bool:
    """Whether each certificate is issued by the next until one is trusted, or issued by one that is. Times: the log is about the past."""
    for certificate, issuer in zip(path, [*path[1:], None], strict=True):
        if any(certificate == anchor or _issued(certificate, anchor) for anchor in trusted):
            return True
        if issuer is None or not issuer.is_ca or not _issued(certificate, issuer):
            return False
    return False


def _issued(certificate: Certificate, issuer: Certificate) -> bool:
    try:
        verify_signed(certificate.der, issuer.public_key)
    except IronrootError:
        return False
    return True
