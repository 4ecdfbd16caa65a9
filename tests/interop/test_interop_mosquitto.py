"""mosquitto with the CRL files that ``ironroot validator sync`` keeps fresh, configured as deploy/mosquitto.conf has it."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
from pathlib import Path

from plant import free_ports
from programs import need
from small_pki import issue, shelf, small_pki
from validators import validator

EXAMPLE = Path(__file__).parents[2] / "deploy/mosquitto.conf"


def test_a_revoked_device_is_refused_once_the_files_say_so() -> None:
    need("mosquitto", "mosquitto_pub")
    folder = Path(tempfile.mkdtemp(prefix="ir", dir="/tmp"))
    (port,) = free_ports(1)
    try:
        with shelf() as on, validator() as beside:
            pki = small_pki(on)
            other = issue(pki.issuing, "plc-8", crl=pki.device.certificate.crl_urls)
            beside.configure()
            beside.follow(pki.list_url, pki.pin)
            beside.sync(folder / "pki")
            certificate, key = pki.server.files(folder / "broker", pki.issuing)
            text = EXAMPLE.read_text()
            for old, new in (
                ("listener 8883", f"listener {port} 127.0.0.1"),
                ("/etc/mosquitto/certs/broker.pem", str(certificate)),
                ("/etc/mosquitto/certs/broker.key", str(key)),
                ("/etc/mosquitto/pki", str(folder / "pki")),
            ):
                assert old in text, f"{EXAMPLE.name} has no {old}"
                text = text.replace(old, new)
            (folder / "mosquitto.conf").write_text(f"{text}pid_file {folder}/pid\nuser root\n")
            (folder / "root.pem").write_text(pki.root.certificate.pem)

            def publish(owner) -> int:
                own, secret = owner.files(folder / owner.certificate.subject.get("CN")[0], pki.issuing)
                command = ["mosquitto_pub", "-h", "127.0.0.1", "-p", str(port), "-t", "x", "-m", "21.5", "-q", "1"]
                command += ["--cafile", str(folder / "root.pem"), "--cert", str(own), "--key", str(secret)]
                return subprocess.run(command, capture_output=True, check=False, timeout=20).returncode

            def until(condition) -> None:
                deadline = time.monotonic() + 20
                while not condition():
                    assert time.monotonic() < deadline, (folder / "log").read_text()
                    time.sleep(0.05)

            with (folder / "log").open("wb") as log:
                broker = subprocess.Popen(["mosquitto", "-v", "-c", str(folder / "mosquitto.conf")], stdout=log, stderr=log)
            try:
                until(lambda: (folder / "pid").exists() and publish(pki.device) == 0)
                assert publish(other) == 0
                assert publish(issue(issue(None, "Elsewhere", ca=True), "mallory")) != 0
                pki.issuing.revoke(pki.device)
                pki.publish()
                beside.run("validator", "sync", "--to", folder / "pki", "--reload", folder / "pid")
                until(lambda: publish(pki.device) != 0)
                assert publish(other) == 0
                assert "plc-8" in (folder / "log").read_text()  # the name in its certificate is who it is
            finally:
                broker.terminate()
                broker.wait(10)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
