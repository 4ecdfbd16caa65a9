"""nginx asks the validator beside it who may come in (auth_request), configured as deploy/nginx-auth-request.conf has it."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import quote

import pytest
from plant import free_ports
from programs import curl, need
from small_pki import issue, shelf, small_pki
from validators import validator

EXAMPLE = Path(__file__).parents[2] / "deploy/nginx-auth-request.conf"


@pytest.fixture(scope="module")
def site() -> Iterator[SimpleNamespace]:
    """A plant, its validator on a Unix socket, an application, and nginx between the world and it."""
    need("nginx", "curl")
    folder = Path(tempfile.mkdtemp(prefix="ir", dir="/tmp"))
    seen: list[str | None] = []

    class Application(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append(self.headers.get("X-Peer-Names"))
            self.send_response(200)
            self.send_header("Content-Length", "5")
            self.end_headers()
            self.wfile.write(b"hello")

        def log_message(self, *_: object) -> None: ...

    application = ThreadingHTTPServer(("127.0.0.1", 0), Application)
    threading.Thread(target=application.serve_forever, args=(0.05,), daemon=True).start()
    (port,) = free_ports(1)
    with shelf() as on, validator() as beside:
        pki = small_pki(on)
        good, revoked = pki.device, issue(pki.issuing, "plc-8", crl=pki.device.certificate.crl_urls)
        pki.issuing.revoke(revoked)
        pki.publish()
        beside.configure(http='["unix:http.sock"]', proxies='["unix"]')
        beside.follow(pki.list_url, pki.pin)
        beside.start()
        certificate, key = pki.server.files(folder / "server", pki.issuing)
        text = EXAMPLE.read_text()
        for old, new in (
            ("/var/lib/ironroot-validator/http.sock", str(beside.home / "http.sock")),
            ("listen 443 ssl", f"listen 127.0.0.1:{port} ssl"),
            ("scada-1.plant.example", "localhost"),
            ("/etc/ssl/scada-1.pem", str(certificate)),
            ("/etc/ssl/private/scada-1.key", str(key)),
            ("http://127.0.0.1:3000", f"http://127.0.0.1:{application.server_address[1]}"),
        ):
            assert text.count(old) >= 1, f"{EXAMPLE.name} has no {old}"
            text = text.replace(old, new)
        temporary = "".join(f"{kind}_temp_path {folder}/{kind};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
        (folder / "nginx.conf").write_text(
            f"daemon off; pid {folder}/pid; error_log {folder}/error.log; user root;\nevents {{}}\n"
            f"http {{ access_log off;\n{temporary}{text}}}\n"
        )
        program = subprocess.Popen(["nginx", "-p", str(folder), "-c", str(folder / "nginx.conf")], stderr=subprocess.DEVNULL)
        (folder / "root.pem").write_text(pki.root.certificate.pem)

        def get(owner, *more: str, path: str = "/x"):
            shown = () if owner is None else owner.files(folder / owner.certificate.subject.get("CN")[0], pki.issuing)
            own = () if owner is None else ("--cert", shown[0], "--key", shown[1])
            retry = ("--retry", "20", "--retry-connrefused", "--retry-delay", "0", "--retry-max-time", "10")
            return curl(f"https://localhost:{port}{path}", "--cacert", folder / "root.pem", *own, *retry, *more)

        try:
            yield SimpleNamespace(pki=pki, beside=beside, get=get, good=good, revoked=revoked, seen=seen, folder=folder)
        finally:
            program.terminate()
            program.wait(10)
            application.shutdown()
            application.server_close()
            shutil.rmtree(folder)


def test_who_is_good_comes_in(site) -> None:
    answer = site.get(site.good)
    assert (answer.status, answer.text, site.seen[-1]) == (200, "hello", "uri:urn:ironroot:device:x:plc-7")


def test_who_is_not_does_not(site) -> None:
    before = len(site.seen)
    answer = site.get(site.revoked)
    assert (answer.status, "was revoked" in answer.headers["x-refused"]) == (403, True)
    stranger = issue(issue(None, "Elsewhere", ca=True), "mallory")
    assert site.get(stranger).status == 403
    assert site.get(site.pki.server).status == 400  # a server's certificate is not a client's, as nginx knows too
    assert site.get(None).status == 401
    assert len(site.seen) == before


def test_a_header_is_no_certificate(site) -> None:
    """Whoever sends a good device's certificate in the header, having no key for it, has shown nothing."""
    header = f"X-Client-Certificate: {quote(site.good.certificate.pem)}"
    assert site.get(None, "-H", header).status == 401
    assert site.get(site.revoked, "-H", header).status == 403
    assert site.get(site.good, "-H", "X-Peer-Names: dns:root").status == 200
    assert site.seen[-1] == "uri:urn:ironroot:device:x:plc-7"


def test_the_inner_door_is_closed(site) -> None:
    assert site.get(site.good, path="/_peer").status == 404
