"""The EST client (RFC 7030, RFC 8951) over the standard library's HTTP and TLS.

Two ways to prove who asks, beside HTTP Basic with a one-time token: a TLS client certificate, and, where TLS cannot carry it (an SM2 key, a
certificate that has expired), the CSR inside a CMS SignedData made with that certificate's key, posted to the same path.
"""

from __future__ import annotations

import base64
import binascii
import http.client
import re
import ssl
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from urllib.parse import urlsplit

from enroll.device.clock import Clock
from enroll.device.credential import Credential
from enroll.device.failpoint import reached
from enroll.device.schedule import Renewal, parse_renewal
from pkix import cms, pem
from pkix.certificate import Certificate, parse_certificate
from pkix.errors import (
    Conflict,
    IronrootError,
    Limited,
    Malformed,
    NotFound,
    NotValid,
    OutcomeUnknown,
    Pending,
    Refused,
    TooLarge,
    Unauthenticated,
    Unavailable,
)

MAX_ANSWER = 256 * 1024
TIMEOUT = 20.0  # seconds without an octet
DEADLINE = 60.0  # seconds for a whole answer
GRACE = 3.0  # seconds until a certificate is shown again: a server looks every two whom it was told to trust
_NO_CHECK_TIME = 0x200000  # X509_V_FLAG_NO_CHECK_TIME
_NOT_YET_VALID = 9  # X509_V_ERR_CERT_NOT_YET_VALID

_ERRORS: dict[int, type[IronrootError]] = {
    401: Unauthenticated,
    403: Refused,
    404: NotFound,
    409: Conflict,
    413: TooLarge,
    429: Limited,
}

# What to do about a certificate at whose sight the server ends the connection: that of the manufacturer, the device's own, the new one.
_SHUNNED = {
    "simpleenroll": "The server ended the connection when it saw this certificate: it does not trust its issuer, or it has expired. Ask "
    "the administrator to trust the manufacturer (ironroot fleet trust {fleet} CA.pem), or use an invitation.",
    "simplereenroll": "The server ended the connection when it saw this device's certificate: it has expired or was revoked, or the server "
    "no longer trusts its issuer. Enrol again (ironroot-device up --replace) with an invitation or the manufacturer's certificate.",
    "csrattrs": "The server ended the connection when it saw the certificate that it has just issued; it is not used. Ask the "
    "administrator which issuers of client certificates the server, or the proxy before it, trusts, then repeat the command.",
}


@dataclass(frozen=True, slots=True)
class _Answer:
    status: int
    body: bytes
    retry_after: int | None
    date: datetime | None
    renew: str


@dataclass(frozen=True, slots=True)
class Proof:
    """Who asks: ``basic`` (user, password), or a credential shown in TLS, or one that signs the message. At most one of them."""

    basic: tuple[str, str] | None = None
    tls: Credential | None = None
    cms: Credential | None = None


NOBODY = Proof()


def fetch_public(url: str, path: str) -> bytes:
    """GET public data over TLS that nobody verified; the caller checks what it gets against a hash. Nothing secret is sent.

    Raises:
        NotFound, Unavailable, and as the server's status says.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    answer = _exchange(url, context, "GET", path, None, {})
    if answer.status != 200:
        raise _refusal(answer)
    return answer.body


class EstClient:
    """One fleet at one server, its TLS certificate verified against exactly ``roots`` (host name included).

    Args:
        url: ``https://host[:port][/prefix]``.
        fleet: the EST label (RFC 7030 3.2.2).
        roots: PEM of the trust anchors.
        clock: told the date of every verified answer.
    """

    def __init__(self, url: str, fleet: str, roots: str, clock: Clock) -> None:
        self._url, self._fleet, self._roots, self._clock = url, fleet, roots, clock

    def cacerts(self) -> list[Certificate]:
        """The CA certificates, roots among them (RFC 7030 4.1). Raises NotValid if the answer is unusable, and as ``enroll``."""
        return _certificates(self._ask("GET", "cacerts", None, {}, NOBODY).body)

    def enroll(self, operation: str, csr: bytes, idempotency_key: str, proof: Proof) -> tuple[list[Certificate], Renewal]:
        """Ask for a certificate (RFC 7030 4.2).

        Args:
            operation: ``simpleenroll`` or ``simplereenroll``.
            csr: DER PKCS#10.
            idempotency_key: 64 hex digits, the same on every attempt.

        Returns:
            All certificates of the answer, ours somewhere among them, and when the fleet renews.

        Raises:
            Pending: an administrator has to approve. Unauthenticated, Refused, NotFound, Malformed, Conflict: the server's final word;
                Refused also if its TLS ends every connection that shows this certificate, and no other.
            Limited, Unavailable, a Conflict with ``retry_after``: worth repeating; OutcomeUnknown: the same, and it may have been done.
            NotValid: the server is not the one that we trust, or its answer is unusable.
        """
        headers = {"Content-Type": "application/pkcs10", "Accept": "application/pkcs7-mime", "Idempotency-Key": idempotency_key}
        body = csr
        if proof.cms is not None:
            body = cms.sign_data(csr, proof.cms.key, proof.cms.certificate, now=self._clock.now(), chain=proof.cms.chain)
            headers["Content-Type"] = "application/pkcs7-mime; smime-type=signed-data"
        answer = self._ask("POST", operation, base64.b64encode(body), headers, proof)
        reached("asked")
        return _certificates(answer.body), parse_renewal(answer.renew)

    def try_out(self, credential: Credential) -> None:
        """Show a new certificate to the server in TLS. Raises Refused, Unauthenticated: it does not take it; Unavailable: it is away."""
        answer = self._send("GET", "csrattrs", None, {}, Proof(tls=credential))
        if answer.status in (401, 403) or answer.status >= 500:
            raise _refusal(answer)

    def _ask(self, method: str, operation: str, body: bytes | None, headers: dict[str, str], proof: Proof) -> _Answer:
        answer = self._send(method, operation, body, headers, proof)
        if answer.status != 200:
            raise _refusal(answer)
        return answer

    def _send(self, method: str, operation: str, body: bytes | None, headers: dict[str, str], proof: Proof) -> _Answer:
        try:
            return self._attempt(method, operation, body, headers, proof)
        except Unavailable as failure:
            if proof.tls is not None and _ended(failure) and self._shuns(proof.tls):
                raise Refused(_SHUNNED[operation].format(fleet=self._fleet)) from None
            raise

    def _shuns(self, credential: Credential) -> bool:
        """Whether the server answers whoever shows no certificate, and ends the connection when it sees this one.

        It need not say why, and in TLS 1.3 our side of the handshake is over by then. A server that died over our request looks the same,
        and what was asked for may have been done; and one that was told a moment ago to trust a manufacturer may not have noticed. So
        the certificate is refused only if, shortly after, a GET that shows it ends in that way, too.
        """
        try:
            self._attempt("GET", "cacerts", None, {}, NOBODY)
        except Unavailable:
            return False
        time.sleep(GRACE)
        try:
            self._attempt("GET", "cacerts", None, {}, Proof(tls=credential))
        except Unavailable as failure:
            return _ended(failure)
        return False

    def _attempt(self, method: str, operation: str, body: bytes | None, headers: dict[str, str], proof: Proof) -> _Answer:
        if proof.basic is not None:
            headers = {**headers, "Authorization": "Basic " + base64.b64encode(":".join(proof.basic).encode()).decode()}
        path = f"/.well-known/est/{self._fleet}/{operation}"
        try:
            answer = _exchange(self._url, self._context(proof.tls), method, path, body, headers)
        except _ClockBehind:
            # The server's certificate begins after our clock's time, which proves nothing on a device whose clock may be behind: its end
            # is checked against the best lower bound that we have, and the date of the answer then sets us right.
            context = self._context(proof.tls)
            context.verify_flags |= _NO_CHECK_TIME
            answer = _exchange(self._url, context, method, path, body, headers, not_before=self._clock.now())
        self._clock.learn(answer.date)
        return answer

    def _context(self, credential: Credential | None) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        try:
            context.load_verify_locations(cadata=self._roots)
            if credential is not None:
                context.load_cert_chain(credential.certificate_file, credential.key_file, password=b"")
        except (ssl.SSLError, ValueError):
            raise Malformed(
                "TLS cannot use this certificate, its key or the trusted root; give them in PEM, the key not encrypted"
            ) from None
        return context


class _ClockBehind(Exception):
    """TLS: the server's certificate is not yet valid by the system clock."""


def _exchange(
    url: str,
    context: ssl.SSLContext,
    method: str,
    path: str,
    body: bytes | None,
    headers: dict[str, str],
    *,
    not_before: datetime | None = None,
) -> _Answer:
    """One request on one connection. ``not_before``: TLS did not look at times; refuse a server certificate that ended before this."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    connection = http.client.HTTPSConnection(host, parts.port, timeout=TIMEOUT, context=context)
    sent = False
    try:
        connection.connect()
        if not_before is not None:
            _check_end(connection, not_before)
        sent = True
        headers = {**headers, "User-Agent": "ironroot-device", "Connection": "close"}
        connection.request(method, parts.path.rstrip("/") + path, body=body, headers=headers)
        with connection.getresponse() as response:
            renew = response.headers.get("Ironroot-Renew") or ""
            return _Answer(response.status, _body(response), _retry_after(response), _date(response), renew)
    except ssl.SSLCertVerificationError as error:
        if error.verify_code == _NOT_YET_VALID:
            raise _ClockBehind from None
        raise NotValid(f"{host} is not the server that this device trusts ({error.verify_message}); nothing was sent to it") from None
    except (OSError, http.client.HTTPException) as error:
        reason = str(getattr(error, "reason", None) or getattr(error, "strerror", None) or type(error).__name__)
        if sent and method != "GET":
            raise OutcomeUnknown(f"{host} did not answer ({reason}); repeat the command, it asks for the same certificate again") from error
        raise Unavailable(f"{host} cannot be reached ({reason})") from error
    finally:
        connection.close()


def _ended(failure: Unavailable) -> bool:
    """Whether the other side ended a connection that stood: by an alert of TLS, by a reset, or by just closing it; not a timeout."""
    cause = failure.__cause__
    if isinstance(cause, ssl.SSLError):
        return isinstance(cause, ssl.SSLEOFError | ssl.SSLZeroReturnError) or "_ALERT_" in str(cause.reason)
    return isinstance(cause, ConnectionError) and not isinstance(cause, ConnectionRefusedError)


def _check_end(connection: http.client.HTTPSConnection, now: datetime) -> None:
    raw = connection.sock.getpeercert(binary_form=True) or b""
    certificate = parse_certificate(raw)
    if certificate.not_after < now:
        raise NotValid(f"the server's certificate ended at {certificate.not_after:%F %T} UTC; nothing was sent to it")


def _body(response: http.client.HTTPResponse) -> bytes:
    """At most MAX_ANSWER octets within DEADLINE seconds."""
    collected = bytearray()
    end = time.monotonic() + DEADLINE
    while part := response.read1(MAX_ANSWER + 1 - len(collected)):
        collected += part
        if len(collected) > MAX_ANSWER:
            raise NotValid(f"the server's answer is longer than {MAX_ANSWER} octets; it is not used")
        if time.monotonic() > end:
            raise TimeoutError("the answer came too slowly")
    if response.length:
        raise http.client.IncompleteRead(bytes(collected), response.length)
    return bytes(collected)


def _retry_after(response: http.client.HTTPResponse) -> int | None:
    """Seconds (RFC 9110 10.2.3), also from the date form; None if absent or nonsense."""
    text = (response.headers.get("Retry-After") or "").strip()
    if re.fullmatch(r"[0-9]{1,9}", text):
        return int(text)
    moment = _http_date(text)
    return None if moment is None else max(0, int((moment - (_date(response) or datetime.now(UTC))).total_seconds()))


def _date(response: http.client.HTTPResponse) -> datetime | None:
    return _http_date(response.headers.get("Date") or "")


def _http_date(text: str) -> datetime | None:
    try:
        return parsedate_to_datetime(text).astimezone(UTC)
    except (ValueError, TypeError, OverflowError):
        return None


def _refusal(answer: _Answer) -> IronrootError:
    """The error that a status means, with the server's own sentence."""
    sentence = _sentence(answer.body) or http.client.responses.get(answer.status, "no reason given")
    text = f"the server says ({answer.status}): {sentence}"
    if answer.status == 202:
        return Pending(f"an administrator has to approve this device first; {text}", retry_after=answer.retry_after)
    if answer.status >= 500:
        return Unavailable(text, retry_after=answer.retry_after)
    if 300 <= answer.status < 400:
        return Malformed(f"{text}; redirects are not followed, give the final address with --url")
    return _ERRORS.get(answer.status, Malformed)(text, retry_after=answer.retry_after)


def _sentence(body: bytes) -> str:
    """A text body made safe for a terminal and short."""
    text = body[:2000].decode("utf-8", "replace")
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())[:500]


def _certificates(body: bytes) -> list[Certificate]:
    """Certificates of a certs-only PKCS#7: base64 in lines or in one, PEM, or plain DER."""
    try:
        return [parse_certificate(der) for der in cms.parse_certs_only(_der(body))]
    except Malformed as error:
        raise NotValid(f"the server's answer is not used: {error}") from None


def _der(body: bytes) -> bytes:
    if body[:1] == b"\x30" and not body.isascii():
        return body
    if b"-----BEGIN" in body:
        return pem.decode(body)[0][1]
    try:
        return base64.b64decode(b"".join(body.split()), validate=True)
    except binascii.Error:
        raise Malformed("it is not base64") from None
