"""What a TLS server shows to whoever connects: its certificates, and its staple.

With pyOpenSSL, whose OpenSSL knows SM2 and hands out the staple; without it with Python's ``ssl``, which does neither. The handshake proves
that the server has the key; nothing about its certificate is judged here.
"""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import ssl
import struct
from dataclasses import dataclass
from typing import Any

from pkix.errors import NotFound, Unavailable


@dataclass(frozen=True, slots=True)
class Shown:
    """Certificates in DER, the server's own first; OCSP responses; whether a staple could have been seen."""

    chain: list[bytes]
    staples: list[bytes]
    sees_staples: bool


def show(host: str, port: int, *, timeout: float = 5.0) -> Shown:
    """Connects and looks. Blocks.

    Raises:
        Unavailable: nobody there, no TLS, or no answer in time.
        NotFound: the server showed no certificate.
    """
    try:
        with socket.create_connection((host, port), timeout=timeout) as plain:
            plain.settimeout(timeout)
            try:
                from OpenSSL import SSL
            except ImportError:
                found = _with_ssl(plain, host)
            else:
                try:
                    found = _with_openssl(SSL, plain, host)
                except SSL.Error as error:
                    raise Unavailable(f"{host} port {port} does not finish a TLS handshake ({_first(error)})") from None
    except TimeoutError:
        raise Unavailable(f"{host} port {port} did not answer within {timeout:g} s") from None
    except OSError as error:  # ssl.SSLError is one
        raise Unavailable(f"{host} port {port} cannot be reached over TLS: {error.strerror or error}") from None
    if not found.chain:
        raise NotFound(f"{host} port {port} showed no certificate")
    return found


def _with_openssl(SSL: Any, plain: socket.socket, host: str) -> Shown:
    from validate.adapters.openssl import presented

    staples: list[bytes] = []

    def take(_connection: object, staple: bytes, _data: object) -> bool:
        if staple:
            staples.append(staple)
        return True

    context = SSL.Context(SSL.TLS_METHOD)
    context.set_verify(SSL.VERIFY_NONE)
    context.set_ocsp_client_callback(take)
    # A timeout would make the socket one that does not wait, which OpenSSL reports as such: the kernel keeps the time instead.
    seconds = int(plain.gettimeout() or 5)
    plain.setblocking(True)
    for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
        plain.setsockopt(socket.SOL_SOCKET, option, struct.pack("ll", seconds, 0))
    connection = SSL.Connection(context, plain)
    connection.set_connect_state()
    connection.request_ocsp()
    if not _is_address(host):
        connection.set_tlsext_host_name(host.encode("idna"))
    try:
        connection.do_handshake()
    except SSL.WantReadError:
        raise TimeoutError from None
    chain = presented(connection)
    with contextlib.suppress(SSL.Error):
        connection.shutdown()
    return Shown(chain, staples, sees_staples=True)


def _with_ssl(plain: socket.socket, host: str) -> Shown:
    from validate.adapters.tls import presented

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # it is judged afterwards, by more than this could
    with context.wrap_socket(plain, server_hostname=None if _is_address(host) else host) as connection:
        return Shown(presented(connection), [], sees_staples=False)


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _first(error: Exception) -> str:
    reasons = error.args[0] if error.args and isinstance(error.args[0], list) else []
    return reasons[0][2] if reasons else str(error) or "the connection ended"
