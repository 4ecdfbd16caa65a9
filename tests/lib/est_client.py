"""EST over plain ``http.client``, for tests that need many requests or none that is whole."""

from __future__ import annotations

import base64
import hashlib
import http.client
import ssl
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.hazmat.primitives.serialization.pkcs7 import load_der_pkcs7_certificates
from plant import Plant

from pkix.algorithms import KeyKind
from pkix.csr import build_csr
from pkix.name import name
from pkix.privatekey import generate


@dataclass(frozen=True)
class Reply:
    """An HTTP answer."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def certificate(self) -> bytes:
        """DER of the one certificate in it, as cryptography takes it out."""
        (found,) = load_der_pkcs7_certificates(base64.b64decode(self.body))
        return found.public_bytes(Encoding.DER)


def trust(plant: Plant) -> ssl.SSLContext:
    """Trusts the installation's root."""
    return ssl.create_default_context(cadata=plant.get("/aia/ecc-root.cer"))


def p256_request(serial: str) -> bytes:
    """A PKCS#10 for a new P-256 key."""
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, serial)])
    key = ec.generate_private_key(ec.SECP256R1())
    return x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256()).public_bytes(Encoding.DER)


def sm2_request(serial: str) -> bytes:
    """A PKCS#10 for a new SM2 key."""
    return build_csr(generate(KeyKind.SM2), name(("CN", serial)))


class Door:
    """One keep-alive connection to the EST door."""

    def __init__(self, plant: Plant, context: ssl.SSLContext, *, timeout: float = 60) -> None:
        self.connection = http.client.HTTPSConnection("127.0.0.1", plant.https, context=context, timeout=timeout)

    def __enter__(self) -> Door:
        self.connection.connect()
        return self

    def __exit__(self, *_: object) -> None:
        self.connection.close()

    def ask(self, method: str, path: str, body: bytes | None = None, **headers: str) -> Reply:
        """One request. Raises OSError or http.client.HTTPException where the connection ends under it."""
        self.connection.request(method, path, body, {field.replace("_", "-"): value for field, value in headers.items()})
        answer = self.connection.getresponse()
        return Reply(answer.status, {field.lower(): value for field, value in answer.getheaders()}, answer.read())

    def enroll(self, fleet: str, serial: str, token: str, csr: bytes) -> Reply:
        """simpleenroll with a one-time token. The request has a name, so that it may be repeated when an answer is lost."""
        name = hashlib.sha256(csr).hexdigest()
        path = f"/.well-known/est/{fleet}/simpleenroll"
        return self.ask("POST", path, csr, Authorization=basic(serial, token), Idempotency_Key=name)


def basic(serial: str, token: str) -> str:
    """Value of an Authorization header."""
    return "Basic " + base64.b64encode(f"{serial}:{token}".encode()).decode()
