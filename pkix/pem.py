"""PEM, the textual encoding of RFC 7468: base64 between BEGIN and END lines.

    encode("CERTIFICATE", der)                # str, lines of 64 characters
    decode(text, "CERTIFICATE")               # [("CERTIFICATE", der), ...]
    certificates(data)                        # a bundle in PEM, or one certificate in DER

Text around the blocks is passed over. Nothing here looks inside what a block holds.
"""

from __future__ import annotations

import base64
import binascii

from pkix.errors import Malformed


def encode(label: str, der: bytes) -> str:
    """One block, newline at the end (RFC 7468 3)."""
    text = base64.b64encode(der).decode()
    lines = "\n".join(text[start : start + 64] for start in range(0, len(text), 64))
    return f"-----BEGIN {label}-----\n{lines}\n-----END {label}-----\n"


def decode(text: bytes | str, label: str | None = None) -> list[tuple[str, bytes]]:
    """The blocks in ``text``, as (label, contents), in order; text around and between blocks is passed over.

    Args:
        label: only blocks of this label; the others are passed over.
    Raises:
        Malformed: not ASCII inside a block, no END line to a BEGIN line, bad base64, or no block (of this label) at all.
    """
    octets = text.encode("utf-8", "replace") if isinstance(text, str) else text
    blocks: list[tuple[str, bytes]] = []
    current: str | None = None
    body: list[bytes] = []
    for line in octets.splitlines():
        line = line.strip()
        if current is None:
            if line.startswith(b"-----BEGIN ") and line.endswith(b"-----") and len(line) > 16:
                current, body = line[11:-5].decode("ascii", "replace"), []
        elif line.startswith(b"-----"):
            if line != f"-----END {current}-----".encode():
                raise Malformed(f"PEM: the block {current!r} is not closed by its END line")
            if label in (None, current):
                blocks.append((current, _contents(current, b"".join(body))))
            current = None
        else:
            body.append(line)
    if current is not None:
        raise Malformed(f"PEM: the block {current!r} has no END line; the text is cut off")
    if not blocks:
        raise Malformed(f"PEM: there is no block {label!r} in this text" if label else "PEM: there is no block in this text")
    return blocks


def _contents(label: str, body: bytes) -> bytes:
    if b":" in body:
        raise Malformed(f"PEM: the block {label!r} has header lines, it is probably encrypted; write it without a passphrase")
    try:
        return base64.b64decode(body, validate=True)
    except binascii.Error:
        raise Malformed(f"PEM: the block {label!r} is no base64") from None


def certificates(data: bytes) -> list[bytes]:
    """DER of the certificates in a PEM bundle, or of the one certificate that ``data`` is in DER. Raises Malformed if there is none."""
    if data[:1] == b"\x30":
        return [data]
    return [der for _, der in decode(data, "CERTIFICATE")]
