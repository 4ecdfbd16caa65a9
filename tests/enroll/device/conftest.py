"""A small EST server on loopback that remembers what it was asked, and a device to run against it."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import secrets
import ssl
import subprocess
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from enroll.device.main import main
from pkix import cms, pem
from pkix.algorithms import SIGNATURES, KeyKind, PublicKey
from pkix.certificate import Certificate, assemble, build_tbs, parse_certificate
from pkix.csr import parse_csr
from pkix.errors import IronrootError
from pkix.extensions import (
    Extension,
    authority_key_identifier,
    basic_constraints,
    extended_key_usage,
    key_usage,
    subject_alternative_name,
    subject_key_identifier,
)
from pkix.name import name
from pkix.privatekey import PrivateKey, generate, load_private_key

ROOT = Path(__file__).parents[3]
DAY = timedelta(days=1)


@dataclass
class Ca:
    """A CA with its key in memory."""

    key: PrivateKey
    certificate: Certificate
    parent: Ca | None = None

    def issue(
        self,
        public_key: PublicKey,
        subject: tuple[tuple[str, str], ...],
        extensions: list[Extension],
        begins: timedelta = -DAY,
        ends: timedelta = 89 * DAY,
    ) -> Certificate:
        now = datetime.now(UTC).replace(microsecond=0)
        return signed(self.key, self.certificate, public_key, subject, extensions, now + begins, now + ends)

    def device(self, public_key: PublicKey, serial: str, fleet: str, **times: timedelta) -> Certificate:
        names = subject_alternative_name(f"uri:urn:ironroot:device:{fleet}:{serial}")
        usages = [key_usage("digitalSignature"), extended_key_usage("clientAuth"), names]
        return self.issue(public_key, (("CN", serial), ("serialNumber", serial)), usages, **times)


def signed(
    key: PrivateKey,
    issuer: Certificate | None,
    public_key: PublicKey,
    subject: tuple[tuple[str, str], ...],
    extensions: list[Extension],
    not_before: datetime,
    not_after: datetime,
) -> Certificate:
    algorithm = SIGNATURES[key.kind]
    identifiers = [subject_key_identifier(public_key)] + ([authority_key_identifier(issuer)] if issuer else [])
    tbs = build_tbs(
        serial=0x40 << 120 | secrets.randbits(118),
        issuer=issuer.subject if issuer else name(*subject),
        subject=name(*subject),
        not_before=not_before,
        not_after=not_after,
        public_key=public_key,
        signature=algorithm,
        extensions=[*extensions, *identifiers],
    )
    return parse_certificate(assemble(tbs, algorithm, key.sign(tbs)))


def new_ca(title: str, kind: KeyKind, parent: Ca | None = None) -> Ca:
    key = generate(kind)
    extensions = [basic_constraints(True, 0 if parent else None), key_usage("keyCertSign", "cRLSign")]
    now = datetime.now(UTC).replace(microsecond=0)
    signer, issuer = (parent.key, parent.certificate) if parent else (key, None)
    return Ca(key, signed(signer, issuer, key.public_key, (("CN", title),), extensions, now - 400 * DAY, now + 3650 * DAY), parent)


@dataclass(frozen=True)
class World:
    """All that is made once: CAs of both families, a manufacturer, the server's TLS pair."""

    roots: dict[str, Ca]
    issuing: dict[str, Ca]
    maker: dict[str, Ca]
    tls: Certificate
    tls_key: PrivateKey

    @property
    def pin(self) -> str:
        return self.roots["ecc"].certificate.sha256.hex()

    def family(self, fleet: str) -> str:
        return fleet.split("-")[0]


@pytest.fixture(scope="session")
def world() -> World:
    kinds = {"ecc": KeyKind.P_256, "sm2": KeyKind.SM2}
    roots = {family: new_ca(f"{family} root", kind) for family, kind in kinds.items()}
    issuing = {family: new_ca(f"{family} issuing", kind, roots[family]) for family, kind in kinds.items()}
    maker = {family: new_ca(f"{family} maker", kind) for family, kind in kinds.items()}
    key = generate(KeyKind.P_256)
    usages = [key_usage("digitalSignature"), extended_key_usage("serverAuth"), subject_alternative_name("dns:localhost", "ip:127.0.0.1")]
    return World(roots, issuing, maker, issuing["ecc"].issue(key.public_key, (("CN", "localhost"),), usages), key)


@dataclass
class Seen:
    """One request as the server saw it."""

    method: str
    path: str
    headers: dict[str, str]
    client: Certificate | None


Script = Callable[["Handler", "EstServer"], bool]


@dataclass
class EstServer:
    """What a test may set: ``script`` (one entry consumed by each enrolment request), ``begins``/``ends`` of what is issued,
    ``renew`` (the header of that name), ``refuse_trial``, ``answer`` (changes the certificates of an answer), ``tls_root`` (what /aia/
    gives), ``cacerts``, ``date``, ``tls`` (the context of connections to come). What it may look at: ``seen``, ``issued``,
    ``connections``."""

    world: World
    tls: ssl.SSLContext
    httpd: Any = None
    connections: int = 0
    tls_root: bytes = b""
    tokens: dict[str, str] = field(default_factory=dict)
    answers: dict[str, Certificate] = field(default_factory=dict)
    issued: list[Certificate] = field(default_factory=list)
    seen: list[Seen] = field(default_factory=list)
    script: deque[Script] = field(default_factory=deque)
    begins: timedelta = -DAY
    ends: timedelta = 89 * DAY
    renew: str | None = None
    refuse_trial: bool = False
    allow_expired: bool = True
    answer: Callable[[list[Certificate]], list[Certificate]] = lambda certificates: certificates
    wrap: Callable[[bytes], bytes] = base64.b64encode
    date: str | None = None
    cacerts: list[Certificate] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"https://localhost:{self.httpd.server_port}"

    def token(self, serial: str, pin: str | None = None) -> str:
        secret = base64.urlsafe_b64encode(secrets.token_bytes(32)).rstrip(b"=").decode()
        text = f"{secret}.{base64.urlsafe_b64encode(bytes.fromhex(pin or self.world.pin)).rstrip(b'=').decode()}"
        self.tokens[serial] = text
        return text

    def asked(self, operation: str) -> list[Seen]:
        return [request for request in self.seen if request.path.endswith("/" + operation)]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    est: EstServer

    def setup(self) -> None:
        self.est.connections += 1
        self.request.do_handshake()
        super().setup()

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def date_time_string(self, timestamp: float | None = None) -> str:
        return self.est.date or super().date_time_string(timestamp)

    def client(self) -> Certificate | None:
        der = self.request.getpeercert(binary_form=True)
        return parse_certificate(der) if der else None

    def reply(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def note(self) -> None:
        self.est.seen.append(Seen(self.command, self.path, {k.lower(): v for k, v in self.headers.items()}, self.client()))

    def do_GET(self) -> None:
        self.note()
        world = self.est.world
        if self.path in (f"/aia/{world.pin}.cer", "/aia/tls-root.cer"):
            return self.reply(200, self.est.tls_root)
        if self.path.endswith("/cacerts"):
            family = world.family(self.path.split("/")[-2])
            bundle = self.est.cacerts or [world.issuing[family].certificate, world.roots[family].certificate]
            return self.reply(200, self.est.wrap(cms.certs_only([certificate.der for certificate in bundle])))
        if self.path.endswith("/csrattrs"):
            return self.reply(401 if self.est.refuse_trial or self.client() is None else 204)
        return self.reply(404, b"no such thing here")

    def do_POST(self) -> None:
        self.note()
        body = base64.b64decode(self.rfile.read(int(self.headers["Content-Length"])))
        if self.est.script and self.est.script.popleft()(self, self.est):
            return
        _, fleet, operation = self.path.rsplit("/", 2)
        try:
            self._enroll(fleet, operation, body)
        except IronrootError as error:
            self.reply(error.status, str(error).encode())

    def _enroll(self, fleet: str, operation: str, body: bytes) -> None:
        est, key = self.est, self.headers["Idempotency-Key"]
        shown = self.client()
        if "pkcs7" in self.headers["Content-Type"]:
            message = cms.parse_signed_data(body)
            body, shown = message.content, message.certificate
        csr = parse_csr(body)
        serial = csr.subject.get("CN")[0]
        if key not in est.answers:
            if operation == "simpleenroll" and shown is None:
                user, password = base64.b64decode(self.headers["Authorization"].split()[1]).decode().split(":")
                if user != serial or est.tokens.pop(user, None) != password:
                    return self.reply(401, b"this token is wrong or was used; ask for another invitation\x1b[31m")
            elif shown is None or (operation == "simplereenroll" and shown.subject.der != csr.subject.der):
                return self.reply(401, b"show the current certificate")
            elif shown.not_after < datetime.now(UTC) and not est.allow_expired:
                return self.reply(403, b"this certificate has expired")
            ca = est.world.issuing[est.world.family(fleet)]
            est.answers[key] = ca.device(csr.public_key, serial, fleet, begins=est.begins, ends=est.ends)
            est.issued.append(est.answers[key])
        if est.script and est.script[0] is lose_answer:
            est.script.popleft()
            return self.request.close()
        certificates = est.answer([est.answers[key]])
        headers = {} if est.renew is None else {"Ironroot_Renew": est.renew}
        self.reply(200, est.wrap(cms.certs_only([certificate.der for certificate in certificates])), **headers)


def lose_answer(_handler: Handler, _est: EstServer) -> bool:
    """Issue, then drop the connection. Put it in ``script`` twice: the second is eaten after issuing."""
    return False


def answering(status: int, text: bytes = b"", **headers: str) -> Script:
    """Answer the next enrolment request with this instead."""

    def answer(handler: Handler, _est: EstServer) -> bool:
        handler.reply(status, text, **headers)
        return True

    return answer


class _Quiet(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), OSError | ValueError):
            super().handle_error(request, client_address)


@contextlib.contextmanager
def serving(world: World, folder: Path, tls: Certificate | None = None) -> Iterator[EstServer]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    est = EstServer(world, context, tls_root=world.roots["ecc"].certificate.der)
    handler = type("Bound", (Handler,), {"est": est})
    (folder / "server.pem").write_text((tls or world.tls).pem + world.issuing["ecc"].certificate.pem)
    (folder / "server.key").write_bytes(world.tls_key.to_pem())
    context.load_cert_chain(folder / "server.pem", folder / "server.key")
    context.load_verify_locations(cadata=world.roots["ecc"].certificate.pem + world.maker["ecc"].certificate.pem)
    context.load_verify_locations(cadata=world.issuing["ecc"].certificate.pem)
    context.verify_mode = ssl.CERT_OPTIONAL
    with _Quiet(("127.0.0.1", 0), handler) as httpd:
        est.httpd = httpd
        httpd.socket = context.wrap_socket(httpd.socket, server_side=True, do_handshake_on_connect=False)
        thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield est
        finally:
            httpd.shutdown()
            thread.join()


@pytest.fixture
def server(world: World, tmp_path: Path) -> Iterator[EstServer]:
    with serving(world, tmp_path) as est:
        yield est


@dataclass(frozen=True)
class Ran:
    code: int
    out: dict[str, Any]
    err: list[dict[str, Any]]
    text: str


class Device:
    """Runs ``ironroot-device`` for one state folder: here, or as a program of its own."""

    def __init__(self, state: Path, capture: pytest.CaptureFixture[str]) -> None:
        self.state, self._capture = state, capture

    def __call__(self, command: str, *options: object) -> Ran:
        self._capture.readouterr()
        code = main([command, "--state", str(self.state), "-o", "json", *map(str, options)])
        out, err = self._capture.readouterr()
        return _ran(code, out, err)

    def program(self, command: str, *options: object, **environment: str) -> Ran:
        line = [sys.executable, "-W", "error", "-m", "enroll.device", command, "--state", str(self.state), "-o", "json", *map(str, options)]
        done = subprocess.run(line, cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True, timeout=60, check=False)
        return _ran(done.returncode, done.stdout, done.stderr)

    def file(self, name: str) -> Path:
        return self.state / name

    def current(self) -> Certificate:
        """The pair in use, after checking that it is one."""
        certificate = parse_certificate(pem.certificates(self.file("device.pem").read_bytes())[0])
        assert load_private_key(self.file("device.key").read_bytes()).public_key.spki == certificate.public_key.spki
        return certificate


def _ran(code: int, out: str, err: str) -> Ran:
    assert "Traceback" not in err, err
    return Ran(code, json.loads(out) if out.strip() else {}, [json.loads(line) for line in err.splitlines() if line], out + err)


@pytest.fixture
def device(capsys: pytest.CaptureFixture[str]) -> Iterator[Device]:
    with tempfile.TemporaryDirectory(prefix="ir", dir="/tmp") as folder:
        yield Device(Path(folder) / "state", capsys)


@pytest.fixture
def idevid(world: World, tmp_path: Path) -> Callable[[str], tuple[Path, Path]]:
    """Makes the manufacturer's certificate and key for a family, as files."""

    def make(family: str, serial: str = "P-1") -> tuple[Path, Path]:
        key = generate(KeyKind.SM2 if family == "sm2" else KeyKind.P_256)
        made = world.maker[family].issue(key.public_key, (("CN", "board"), ("serialNumber", serial)), [])
        certificate_file, key_file = tmp_path / f"{family}.pem", tmp_path / f"{family}.key"
        certificate_file.write_text(made.pem)
        key_file.write_bytes(key.to_pem())
        return certificate_file, key_file

    return make


@pytest.fixture
def scripts() -> Any:
    """``answering(status, text, **headers)`` and ``lose_answer`` for ``server.script``; ``serving`` for another server; ``new_ca``."""
    return SimpleNamespace(answering=answering, lose_answer=lose_answer, serving=serving, new_ca=new_ca)


@pytest.fixture
def expire(world: World, device: Device) -> Callable[[], Certificate]:
    """Turns the certificate in the folder into one for the same key and name that ended a day ago, and returns it."""

    def expire() -> Certificate:
        old = device.current()
        family = "sm2" if old.public_key.kind == "sm2" else "ecc"
        ended = world.issuing[family].device(old.public_key, "P-1", f"{family}-devices", begins=-90 * DAY, ends=-DAY)
        device.file("current/device.pem").write_text(ended.pem)
        return ended

    return expire


@pytest.fixture
def enrolled(server: EstServer, device: Device) -> Callable[..., Certificate]:
    """Enrols ``device`` by token in a family's fleet, with a certificate of the given times, and returns it."""

    def enrol(family: str = "ecc", **times: timedelta) -> Certificate:
        server.begins, server.ends = times.get("begins", -DAY), times.get("ends", 89 * DAY)
        done = device("up", "--url", server.url, "--fleet", f"{family}-devices", "--serial", "P-1", "--token", server.token("P-1"))
        assert done.code == 0, done.text
        server.begins, server.ends = -DAY, 89 * DAY
        server.seen.clear()
        return device.current()

    return enrol
