"""A small hierarchy of today, in files, and a web server for its CRLs: for tests that start programs with a clock of their own."""

from __future__ import annotations

import http.server
import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from pkix import cms, extensions
from pkix.algorithms import SIGNATURES, KeyKind
from pkix.certificate import Certificate, assemble, build_tbs, parse_certificate
from pkix.crl import CrlEntry, build_tbs_crl
from pkix.name import name
from pkix.ocsp import Single, assemble_response, build_response_data, cert_id
from pkix.privatekey import PrivateKey, generate
from validate.model import Anchor
from validate.trustlist import StatusSource, TrustList, encode, pin

HOUR = timedelta(hours=1)


def now() -> datetime:
    """This moment, whole seconds."""
    return datetime.now(UTC).replace(microsecond=0)


@dataclass
class Owner:
    """Somebody with a key and a certificate; an authority also counts its CRLs."""

    key: PrivateKey
    certificate: Certificate
    numbers: int = 0
    revoked: list[CrlEntry] = field(default_factory=list)

    @property
    def der(self) -> bytes:
        return self.certificate.der

    def revoke(self, other: Owner) -> None:
        self.revoked.append(CrlEntry(other.certificate.serial, now() - timedelta(minutes=1), 1))

    def crl(self, *, life: timedelta = 24 * HOUR, issued: datetime | None = None) -> bytes:
        """The next CRL."""
        self.numbers += 1
        begin = issued or now()
        tbs = build_tbs_crl(
            issuer=self.certificate.subject,
            signature=SIGNATURES[self.key.kind],
            this_update=begin,
            next_update=begin + life,
            number=self.numbers,
            authority_key_identifier=extensions.authority_key_identifier(self.certificate),
            entries=self.revoked,
        )
        return assemble(tbs, SIGNATURES[self.key.kind], self.key.sign(tbs))

    def ocsp(self, about: Owner) -> bytes:
        """An OCSP response: good."""
        single = Single(cert_id("sha1", self.certificate, about.certificate.serial), "good", None, None, now(), now() + HOUR)
        tbs = build_response_data(responder_key=self.certificate.public_key, produced_at=now(), singles=[single], nonce=None)
        return assemble_response(tbs, SIGNATURES[self.key.kind], self.key.sign(tbs))

    def files(self, folder: Path, *chain: Owner) -> tuple[Path, Path]:
        """Certificate with ``chain``, and key, in PEM."""
        folder.mkdir(parents=True, exist_ok=True)
        certificate, key = folder / "certificate.pem", folder / "key.pem"
        certificate.write_text(self.certificate.pem + "".join(one.certificate.pem for one in chain))
        key.write_bytes(self.key.to_pem())
        return certificate, key


def issue(
    by: Owner | None,
    common_name: str,
    kind: KeyKind = KeyKind.P_256,
    *,
    ca: bool = False,
    path_length: int | None = None,
    purposes: tuple[str, ...] = ("clientAuth",),
    names: tuple[str, ...] = (),
    crl: tuple[str, ...] = (),
    organization: str = "Example Plant",
    key: PrivateKey | None = None,
    extra: tuple[extensions.Extension, ...] = (),
) -> Owner:
    """A certificate valid since an hour ago."""
    own = key or generate(kind)
    subject = name(("O", organization), ("CN", common_name))
    signer = own if by is None else by.key
    parts = [extensions.key_usage(*(("keyCertSign", "cRLSign") if ca else ("digitalSignature",)))]
    parts += [extensions.basic_constraints(True, path_length)] if ca else [extensions.extended_key_usage(*purposes)]
    parts += [extensions.subject_alternative_name(*names)] if names else []
    parts += [extensions.subject_key_identifier(own.public_key)]
    parts += [] if by is None else [extensions.authority_key_identifier(by.certificate)]
    parts += [extensions.crl_distribution_points(*crl)] if crl else []
    tbs = build_tbs(
        serial=1 << 126 | secrets.randbits(126),
        issuer=subject if by is None else by.certificate.subject,
        subject=subject,
        not_before=now() - HOUR,
        not_after=now() + 1000 * HOUR,
        public_key=own.public_key,
        signature=SIGNATURES[signer.kind],
        extensions=[*parts, *extra],
    )
    return Owner(own, parse_certificate(assemble(tbs, SIGNATURES[signer.kind], signer.sign(tbs))))


@dataclass
class Shelf:
    """A web server: what is on it by path, and what was asked. It knows ETags."""

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    asked: list[tuple[str, int]] = field(default_factory=list)


@contextmanager
def shelf() -> Iterator[Shelf]:
    """A web server on loopback."""
    made = Shelf()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = made.files.get(self.path)
            tag = f'"{hash(body):x}"'
            status = 404 if body is None else 304 if self.headers.get("If-None-Match") == tag else 200
            made.asked.append((self.path, status))
            self.send_response(status)
            self.send_header("ETag", tag)
            self.send_header("Cache-Control", "no-cache")
            self.send_header("Content-Length", str(len(body or b"") if status == 200 else 0))
            self.end_headers()
            if status == 200 and body is not None:
                self.wfile.write(body)

        def log_message(self, *_: object) -> None: ...

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield made
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@dataclass
class SmallPki:
    """Root, issuing authority, a device, a server, and who signs their trust list; CRLs and list on a ``Shelf``."""

    shelf: Shelf
    root: Owner
    issuing: Owner
    device: Owner
    server: Owner
    signer: Owner
    version: int = 0

    @property
    def pin(self) -> str:
        return pin(self.signer.certificate).hex()

    @property
    def list_url(self) -> str:
        return f"{self.shelf.url}/{self.root.certificate.subject.get('O')[0].lower().replace(' ', '-')}/list.p7m"

    def publish(self, *, life: timedelta = 24 * HOUR, anchors: tuple[Anchor, ...] | None = None) -> bytes:
        """Newest CRLs and the next version of the list."""
        base = self.list_url.removeprefix(self.shelf.url).removesuffix("list.p7m")
        self.version += 1
        for authority, file in ((self.root, "root.crl"), (self.issuing, "issuing.crl")):
            self.shelf.files[base + file] = authority.crl()
        said = TrustList(
            name="list",
            version=self.version,
            issued=now(),
            expires=now() + life,
            anchors=anchors or (Anchor(self.root.certificate),),
            intermediates=(self.issuing.certificate,),
            status=(
                StatusSource(self.root.certificate.sha256, (), (f"{self.shelf.url}{base}root.crl",)),
                StatusSource(self.issuing.certificate.sha256, (), (f"{self.shelf.url}{base}issuing.crl",)),
            ),
        )
        raw = cms.sign_data(encode(said), self.signer.key, self.signer.certificate, now=now())
        self.shelf.files[f"{base}list.p7m"] = raw
        return raw


def small_pki(on: Shelf, kind: KeyKind = KeyKind.P_256, organization: str = "Example Plant", **device: object) -> SmallPki:
    """Everything, published."""
    base = f"{on.url}/{organization.lower().replace(' ', '-')}"
    root = issue(None, "Root", kind, ca=True, organization=organization)
    issuing = issue(root, "Issuing", kind, ca=True, path_length=0, crl=(f"{base}/root.crl",), organization=organization)
    own = {"names": ("uri:urn:ironroot:device:x:plc-7",)} | device
    made = SmallPki(
        on,
        root,
        issuing,
        issue(issuing, "plc-7", kind, crl=(f"{base}/issuing.crl",), organization=organization, **own),  # type: ignore[arg-type]
        issue(
            issuing,
            "scada-1",
            kind,
            crl=(f"{base}/issuing.crl",),
            organization=organization,
            purposes=("serverAuth",),
            names=("dns:localhost", "ip:127.0.0.1"),
        ),
        issue(None, "Trust list", organization=organization),
    )
    made.publish()
    return made
