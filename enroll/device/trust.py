"""First contact: which root must the server's TLS certificate lead to?

A token is ``secret.pin`` and the pin is the SHA-256 of that root, so the root can be fetched over a connection that nobody has verified
yet: it is public, it is checked by its hash, and nothing is sent. ``--ca-sha256`` and ``--trust`` say the same for a device with an
IDevID. With neither, the root that the server shows at first is believed and remembered, loudly (provisional trust, RFC 8995 5.1).
"""

from __future__ import annotations

import base64
import binascii
import hashlib

from enroll.device.credential import self_signed, to_pem
from enroll.device.est import fetch_public
from enroll.device.folder import Folder
from enroll.device.log import Log
from enroll.device.settings import TOKEN
from pkix import pem
from pkix.certificate import Certificate, parse_certificate
from pkix.errors import Malformed, NotFound, NotValid

FIRST_USE = "/aia/tls-root.cer"


def token_pin(token: str) -> str:
    """Hex SHA-256 of the root that a one-time token names. Raises Malformed; the token is not in the text."""
    text = "the token is not one of ours: two parts of 43 characters with a dot between them; copy all of it"
    if not TOKEN.fullmatch(token):
        raise Malformed(text)
    try:
        return base64.b64decode(token.split(".")[1] + "=", altchars=b"-_", validate=True).hex()
    except binascii.Error:
        raise Malformed(text) from None


def pinned_root(url: str, sha256: str) -> Certificate:
    """The root certificate with that fingerprint, from the server's ``/aia/``.

    Raises:
        NotValid: the server has no such root: it is not the one that was meant.
        Unavailable: it cannot be reached.
    """
    try:
        raw = fetch_public(url, f"/aia/{sha256}.cer")
    except NotFound:
        raise NotValid(
            "the server does not have the root certificate that the token or --ca-sha256 names; nothing was sent to it"
        ) from None
    root = _root(raw)
    if root.sha256.hex() != sha256:
        raise NotValid("the server's root certificate is not the one that the token or --ca-sha256 names; nothing was sent to it")
    return root


def first_root(url: str) -> Certificate:
    """The root that the server shows to somebody who knows nothing yet. Raises NotFound, NotValid, Unavailable."""
    return _root(fetch_public(url, FIRST_USE))


def _root(raw: bytes) -> Certificate:
    try:
        certificates = [parse_certificate(der) for der in pem.certificates(raw)]
    except Malformed as error:
        raise NotValid(f"the server's root certificate does not parse: {error}") from None
    if len(certificates) != 1 or not self_signed(certificates[0]):
        raise NotValid("what the server gave as its root is not a self-signed CA certificate")
    return certificates[0]


def establish(folder: Folder, url: str, sha256: str | None, log: Log) -> str:
    """The pinned root in PEM: the stored one, else fetched by its hash, else on first use. Stored from then on.

    Args:
        sha256: hex fingerprint from the token or ``--ca-sha256``. A stored root with another fingerprint is replaced.

    Raises:
        NotValid: the server's root has another fingerprint. Unavailable: it cannot be reached.
    """
    stored = folder.tls_trust
    if stored is not None and (sha256 is None or sha256 in {hashlib.sha256(der).hexdigest() for der in pem.certificates(stored)}):
        return stored.decode("ascii")
    root = pinned_root(url, sha256) if sha256 else first_root(url)
    if sha256 is None:
        log.event(
            "trust-on-first-use",
            f"nothing said which CA to trust, so the first one seen is remembered. Compare its SHA-256: {root.sha256.hex()}",
            ca_sha256=root.sha256.hex(),
        )
    folder.save_tls_trust(to_pem([root]))
    return to_pem([root])
