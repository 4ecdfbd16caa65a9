"""Mutual TLS with Python's ``ssl``: peers are judged when they are accepted, and the log says why one was not.

    context = server_context("server.pem", "server.key", authorities=cas, judge=judge)
    with context.wrap_socket(listener, server_side=True) as tls:
        connection, _ = tls.accept()         # ssl.SSLCertVerificationError, with the reason, where the judge says no

``ssl`` cannot leave the whole judgement to others: it wants to reach one of ``authorities`` first, which it does without looking at
revocation, names or anything else that it does not know. It knows no SM2: see ``validate.adapters.openssl``.

With asyncio, a handshake runs in the event loop: give a judge that does not wait (``validate`` with cached or pushed status), or judge
each request instead (``validate.adapters.web``).
"""

from __future__ import annotations

import logging
import ssl
from collections.abc import Iterable
from pathlib import Path

from validate.adapters import BlockingJudge

log = logging.getLogger("validate.tls")


def server_context(
    certificate: str | Path, key: str | Path | None, *, authorities: Iterable[bytes], judge: BlockingJudge
) -> ssl.SSLContext:
    """A context for servers whose clients must show a certificate that ``judge`` calls good.

    Args:
        certificate, key: PEM files of the server.  authorities: CA certificates in DER, anchors and intermediates.
    Raises:
        OSError, ssl.SSLError: a file cannot be read, or is no certificate and key.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(certificate, key)
    for authority in authorities:
        context.load_verify_locations(cadata=authority)
    context.verify_mode = ssl.CERT_REQUIRED
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    # A resumed session would bring back a peer that may have been revoked meanwhile, and without its chain.
    context.num_tickets = 0
    context.options |= ssl.OP_NO_TICKET
    return judged(context, judge)


def judged(context: ssl.SSLContext, judge: BlockingJudge) -> ssl.SSLContext:
    """``context``, whose peers ``judge`` looks at, too, before anything is read from them or sent to them."""

    class JudgedSocket(ssl.SSLSocket):
        def do_handshake(self, block: bool = False) -> None:
            super().do_handshake(block)
            _judge(self, judge)

    class JudgedObject(ssl.SSLObject):
        def do_handshake(self) -> None:
            super().do_handshake()
            _judge(self, judge)

    context.sslsocket_class, context.sslobject_class = JudgedSocket, JudgedObject
    return context


def presented(connection: ssl.SSLSocket | ssl.SSLObject) -> list[bytes]:
    """The certificates that the peer sent, its own first, in DER; empty if it sent none."""
    own = connection.getpeercert(binary_form=True)
    if own is None:
        return []
    # Public since Python 3.13; before that on the object inside, as certificates of a kind of its own; or nowhere.
    inner = getattr(connection, "_sslobj", None)
    chain = getattr(connection, "get_unverified_chain", None) or getattr(inner, "get_unverified_chain", None)
    sent = chain() if chain is not None else None
    ders = (one if isinstance(one, bytes) else ssl.PEM_cert_to_DER_cert(one.public_bytes()) for one in sent or ())
    return list(dict.fromkeys((own, *ders)))


def _judge(connection: ssl.SSLSocket | ssl.SSLObject, judge: BlockingJudge) -> None:
    chain = presented(connection)
    if not chain:
        raise ssl.SSLCertVerificationError("the peer showed no certificate")
    answer = judge(chain)
    if not answer.good:
        reason = answer.sentence("en")
        log.warning("peer refused (%s): %s", answer.code, reason)
        raise ssl.SSLCertVerificationError(reason)
