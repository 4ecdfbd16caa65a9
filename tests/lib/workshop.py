"""Devices that are nothing but openssl and curl, at a served installation."""

from __future__ import annotations

import base64
import sqlite3
from dataclasses import dataclass, field, replace
from pathlib import Path

from plant import Plant
from programs import SM2_ID, Answer, curl, openssl

KINDS = {
    "P-256": ("-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"),
    "P-521": ("-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-521"),
    "RSA": ("-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"),
    "RSA-1024": ("-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:1024"),
    "SM2": ("-algorithm", "SM2"),
}
PKCS10 = ("-H", "Content-Type: application/pkcs10")


@dataclass
class Device:
    """A key, a request, and in time a certificate, all in files of one folder."""

    plant: Plant
    folder: Path
    fleet: str
    serial: str
    token: str

    @property
    def key(self) -> Path:
        return self.folder / "key.pem"

    @property
    def certificate(self) -> Path:
        return self.folder / "device.pem"

    @property
    def der(self) -> bytes:
        """The certificate."""
        return der(self.certificate)

    @property
    def issuing(self) -> Path:
        """Certificate of the authority that issues to this fleet."""
        return self.folder.parent / f"{self.family}-issuing.pem"

    @property
    def root(self) -> Path:
        return self.folder.parent / f"{self.family}-root.pem"

    @property
    def chain(self) -> Path:
        """Own certificate, then the issuing authority's: what a TLS peer sends."""
        file = self.folder / "chain.pem"
        file.write_text(self.certificate.read_text() + self.issuing.read_text())
        return file

    @property
    def family(self) -> str:
        return self.fleet.partition("-")[0]

    @property
    def basic(self) -> tuple[str, str]:
        """curl's option for HTTP Basic with the one-time token."""
        return "-u", f"{self.serial}:{self.token}"

    def csr(self, *arguments: str, kind: str = "", subject: str | None = None, form: str = "DER", id: str | None = SM2_ID) -> bytes:
        """A request for a new key, made by openssl; ``id`` None leaves the SM2 identifier to it."""
        kind = kind or ("SM2" if self.family == "sm2" else "P-256")
        openssl("genpkey", *KINDS[kind], "-out", self.key)
        digest = ("-sha256",) if kind != "SM2" else ("-sm3",) if id is None else ("-sm3", "-sigopt", id)
        return self.csr_again(*digest, *arguments, subject=subject, form=form)

    def csr_again(self, *arguments: str, subject: str | None = None, form: str = "DER") -> bytes:
        """A request for the key that it has."""
        out = ("-subj", subject or f"/CN={self.serial}", "-outform", form, "-out", self.folder / "request")
        openssl("req", "-new", "-key", self.key, *out, *arguments)
        return (self.folder / "request").read_bytes()

    def est(self, operation: str, *arguments: str | Path, feed: bytes | None = None, fleet: str | None = None) -> Answer:
        """One EST request through curl."""
        url = f"{self.plant.https_url}/.well-known/est/{fleet or self.fleet}/{operation}"
        return curl(url, "--cacert", self.folder.parent / "ecc-root.pem", *arguments, feed=feed)

    def enroll(self, body: bytes, *arguments: str) -> Answer:
        """simpleenroll with the token."""
        return self.est("simpleenroll", *self.basic, *PKCS10, *arguments, feed=body)

    def next(self) -> Device:
        """The same device with a new key to be: what it renews to. No token."""
        folder = self.folder.with_name(self.folder.name + "+")
        folder.mkdir(mode=0o700)
        return replace(self, folder=folder, token="")

    def take(self, answer: Answer) -> None:
        """Keeps the one certificate of an answer."""
        assert answer.status == 200, (answer, answer.body)
        found = certificates(self.folder, answer)
        assert len(found) == 1
        self.certificate.write_text(found[0])

    def as_client(self) -> tuple[str | Path, ...]:
        """curl's options for this device's certificate."""
        return "--cert", self.certificate, "--key", self.key

    def recorded(self) -> list[str]:
        """States of the certificates in the database for this device: for what was refused there must be none."""
        return recorded(self.plant, self.serial)


@dataclass
class Workshop:
    """Makes devices at an installation; ``folder`` holds one folder each and the authorities' certificates."""

    plant: Plant
    folder: Path
    made: int = field(default=0)
    PKCS10 = PKCS10
    curl = staticmethod(curl)

    def invited(self, fleet: str, serial: str = "", *, names: tuple[str, ...] = ()) -> Device:
        """A device with a token."""
        self.made += 1
        serial = serial or f"dev-{self.made}.{self.folder.name}"
        (self.folder / serial).mkdir(mode=0o700)
        return Device(self.plant, self.folder / serial, fleet, serial, self.plant.tokens(fleet, serial, names=names)[serial])

    def enrolled(self, fleet: str, serial: str = "", *, names: tuple[str, ...] = ()) -> Device:
        """A device with a certificate."""
        device = self.invited(fleet, serial, names=names)
        device.take(device.enroll(device.csr()))
        return device

    def again(self, device: Device) -> Device:
        """The same device with a new token, and no key yet."""
        new = device.next()
        return replace(new, token=self.plant.tokens(new.fleet, new.serial)[new.serial])

    def openssl_text(self, device: Device) -> str:
        """A device's certificate as openssl shows it."""
        return openssl("x509", "-in", device.certificate, "-noout", "-text")

    def subject(self, device: Device) -> str:
        return openssl("x509", "-in", device.certificate, "-noout", "-subject", "-ext", "subjectAltName")

    def asn1(self, octets: bytes) -> str:
        """What openssl sees in DER."""
        return openssl("asn1parse", "-inform", "DER", feed=octets)

    def certificates(self, answer: Answer) -> list[str]:
        """The certificates in a certs-only answer, PEM each."""
        return certificates(self.folder, answer)

    def cms_sign(self, device: Device, content: bytes) -> bytes:
        """CMS SignedData, DER, with the device's key and certificate."""
        (device.folder / "content").write_bytes(content)
        signer = ("-signer", device.certificate, "-inkey", device.key)
        openssl(
            "cms",
            "-sign",
            "-binary",
            "-nodetach",
            *signer,
            "-md",
            "sha256",
            "-in",
            "content",
            "-outform",
            "DER",
            "-out",
            "signed",
            folder=device.folder,
        )
        return (device.folder / "signed").read_bytes()

    def revoked(self, fleet: str, reason: str) -> Device:
        """A device whose certificate an administrator revoked; OCSP says so already, the CRL too."""
        device = self.enrolled(fleet)
        self.plant.run("cert", "revoke", device.serial, "--reason", reason, "--yes", "--wait")
        number = int(openssl("x509", "-in", device.certificate, "-noout", "-serial").partition("=")[2], 16)
        self.plant.until(lambda: f"{number:X}" in crl_text(self.plant, device.family), "the revocation to be on the CRL")
        return device


def crl_text(plant: Plant, family: str) -> str:
    """The issuing authority's CRL as openssl reads it."""
    return openssl("crl", "-inform", "DER", "-noout", "-text", feed=plant.get(f"/crl/{family}-issuing.crl"))


def certificates(folder: Path, answer: Answer) -> list[str]:
    """The certificates in a certs-only answer as openssl takes it apart, PEM each."""
    (folder / "answer.p7").write_bytes(base64.b64decode(answer.body, validate=True))
    text = openssl("pkcs7", "-inform", "DER", "-in", folder / "answer.p7", "-print_certs")
    begin, end = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"
    return [begin + part.partition(end)[0] + end + "\n" for part in text.split(begin)[1:]]


def der(file: Path) -> bytes:
    """The one certificate of a PEM file."""
    lines = file.read_text().splitlines()
    return base64.b64decode("".join(lines[lines.index("-----BEGIN CERTIFICATE-----") + 1 : lines.index("-----END CERTIFICATE-----")]))


def recorded(plant: Plant, serial: str) -> list[str]:
    """States of the certificates of a device, read past our own code."""
    with sqlite3.connect(f"file:{plant.home}/db/ironroot.db?mode=ro", uri=True) as connection:
        found = connection.execute("SELECT state FROM certificates WHERE device = ? ORDER BY id", (serial,)).fetchall()
    connection.close()
    return [state for (state,) in found]
