"""pyOpenSSL: peers with SM2 certificates, which Python's ``ssl`` cannot verify.

    context = SSL.Context(SSL.TLS_METHOD)        # own certificate and key as usual
    ask_for_certificate(context)
    …
    connection.do_handshake()
    answer = check(connection, judge)            # before the first octet is read; pkix.errors.NotValid says why not

TLS still proves that the peer has the key of its certificate. Everything about the certificate itself is for the judge: OpenSSL is told to
ask for one and to take any.
"""

from __future__ import annotations

import contextlib
import logging

from cryptography.hazmat.primitives.serialization import Encoding
from OpenSSL import SSL

from pkix.errors import NotValid
from validate.adapters import Answer, BlockingJudge

log = logging.getLogger("validate.openssl")


def ask_for_certificate(context: SSL.Context) -> None:
    """Makes ``context`` demand a certificate and leave the judgement to ``check``. Sessions are not resumed: they skip certificates."""
    context.set_verify(SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT, lambda *_seen: True)
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    context.set_options(SSL.OP_NO_TICKET)


def presented(connection: SSL.Connection) -> list[bytes]:
    """The certificates that the peer sent, its own first, in DER; empty if it sent none."""
    own = connection.get_peer_certificate(as_cryptography=True)
    rest = connection.get_peer_cert_chain(as_cryptography=True) or []
    return [] if own is None else list(dict.fromkeys(one.public_bytes(Encoding.DER) for one in (own, *rest)))


def check(connection: SSL.Connection, judge: BlockingJudge) -> Answer:
    """The verdict on the peer of a finished handshake. Raises NotValid, the connection shut down, unless it is good."""
    chain = presented(connection)
    answer = judge(chain) if chain else None
    if answer is not None and answer.good:
        return answer
    reason = "the peer showed no certificate" if answer is None else answer.sentence("en")
    log.warning("peer refused (%s): %s", "none" if answer is None else answer.code, reason)
    with contextlib.suppress(SSL.Error):  # it has gone already
        connection.shutdown()
    raise NotValid(reason)
