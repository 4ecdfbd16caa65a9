"""The main job, shown: ``scripts/quickstart [--once]``. Everything is done by the programs that a plant runs; this only calls them.

For ``ecc`` and for ``sm2``: a device enrols with a one-time token, another with its manufacturer's certificate; a platform validates the
first, an administrator revokes it, the platform validates again; the second renews. Then it keeps serving until Ctrl-C.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import json
import os
import signal
import subprocess  # drives our own programs
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from pkix import pem
from pkix.algorithms import SIGNATURES, KeyKind, PublicKey
from pkix.certificate import assemble, build_tbs
from pkix.extensions import Extension, authority_key_identifier, basic_constraints, key_usage, subject_key_identifier
from pkix.name import Name, name
from pkix.privatekey import PrivateKey, generate

KINDS = {"ecc": KeyKind.P_256, "sm2": KeyKind.SM2}
_UP = 30.0  # seconds that the service may take to come up


class Failed(Exception):
    """A step did not hold; the text says which and what was seen."""


def main() -> None:
    """Runs the steps. Exit code 0 only if all of them held."""
    parser = argparse.ArgumentParser(prog="scripts/quickstart", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--once", action="store_true", help="end after the steps")
    parser.add_argument("--home", type=Path, default=Path("quickstart-home"), help="folder of the installation (%(default)s)")
    parser.add_argument("--http-port", type=int, default=8080)
    parser.add_argument("--https-port", type=int, default=8443)
    arguments = parser.parse_args()
    tour = Tour(arguments.home.absolute(), arguments.http_port, arguments.https_port)
    try:
        tour.run(keep=not arguments.once)
    except Failed as error:
        print(f"FAILED  {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


class Tour:
    """One run through the main job on one installation."""

    def __init__(self, home: Path, http_port: int, https_port: int) -> None:
        self.home, self.http, self.https = home, http_port, https_port
        self._began = time.monotonic()
        self._print = threading.Lock()
        self._tag = datetime.now(UTC).strftime("%m%d%H%M%S")
        self._devices = home / "quickstart"

    def run(self, *, keep: bool) -> None:
        """All steps; then, if ``keep``, serves until Ctrl-C."""
        with self._step("all", "1 init: HSM, authorities with keys born in it, OCSP signers, CRLs, TLS certificate, profiles, fleets"):
            self._ironroot("init", "--http-port", str(self.http), "--https-port", str(self.https))
        self._devices.mkdir(mode=0o700, exist_ok=True)
        with self._serving():
            with concurrent.futures.ThreadPoolExecutor() as pool:
                for done in [pool.submit(self._family, family) for family in KINDS]:
                    done.result()
            self._summary()
            if keep:
                print("Serving until Ctrl-C.", flush=True)
                with contextlib.suppress(KeyboardInterrupt):
                    signal.pause()

    @contextmanager
    def _serving(self) -> Iterator[None]:
        log = self.home / "serve.log"
        with log.open("ab") as stream:
            started = time.monotonic()
            command = [sys.executable, "-m", "ironroot.cli.main", "serve", "--home", str(self.home)]
            service = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream, start_new_session=True)
        try:
            self._wait_ready(service, log)
            self._line("all", "2 services up: HSM, web worker, scheduler", started)
            yield
        finally:
            service.terminate()
            try:
                service.wait(15)
            except subprocess.TimeoutExpired:
                service.kill()

    def _wait_ready(self, service: subprocess.Popen[bytes], log: Path) -> None:
        deadline = time.monotonic() + _UP
        while time.monotonic() < deadline:
            if service.poll() is not None:
                break
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self.http}/readyz", timeout=2):
                    return
            except (urllib.error.URLError, OSError):
                time.sleep(0.05)
        raise Failed(f"the service did not become ready; see {log}")

    def _family(self, family: str) -> None:
        fleet = f"{family}-devices"
        first, second = f"{family.upper()}-{self._tag}-1", f"{family.upper()}-{self._tag}-2"
        with self._step(family, f"3 device {first} enrols with a one-time token that pins the CA"):
            invited = json.loads(self._ironroot("device", "invite", "--fleet", fleet, "--serial", first, "-o", "json"))
            token = self._devices / f"{first}.token"
            token.touch(mode=0o600)
            token.write_text(invited["token"])
            self._device("up", "--url", invited["url"], "--fleet", fleet, "--serial", first, "--token-file", str(token), state=first)
            token.unlink()
        with self._step(family, f"3 device {second} enrols with its manufacturer's certificate (IDevID)"):
            certificate, key, ca = self._manufacture(family, second)
            self._ironroot("fleet", "trust", fleet, str(ca))
            credential = ("--idevid", str(certificate), str(key), "--ca-sha256", invited["ca_sha256"])
            self._device("up", "--url", invited["url"], "--fleet", fleet, "--serial", second, *credential, state=second)
        with self._step(family, f"4 a platform validates {first}: good"):
            self._verdict(first, good=True)
        with self._step(family, f"5 the administrator revokes {first} (keyCompromise); OCSP says so"):
            self._ironroot("cert", "revoke", first, "--reason", "keyCompromise", "--yes", "--wait")
        with self._step(family, f"6 the platform validates {first} again") as say:
            say(self._verdict(first, good=False))
        with self._step(family, f"7 device {second} renews by its certificate, with a new key"):
            state = self._devices / second
            before = (state / "device.pem").read_bytes(), (state / "device.key").read_bytes()
            self._device("renew", state=second)
            after = (state / "device.pem").read_bytes(), (state / "device.key").read_bytes()
            if before[0] == after[0] or before[1] == after[1]:
                raise Failed(f"{second} has the same certificate or key as before")
            self._verdict(second, good=True)

    def _verdict(self, device: str, *, good: bool) -> str:
        state = self._devices / device
        command = ("verify", str(state / "device.pem"), "--chain", str(state / "chain.pem"), "--purpose", "client", "-o", "json")
        said = json.loads(self._ironroot(*command, expect=0 if good else 8))
        if said["good"] is not good:
            raise Failed(f"{device}: expected {'good' if good else 'not good'}, was told: {said['reason']}")
        return str(said["reason"])

    def _manufacture(self, family: str, device: str) -> tuple[Path, Path, Path]:
        """What a manufacturer does: its own CA (once per run), and a certificate for one device (IEEE 802.1AR)."""
        maker = Maker(KINDS[family], f"Quickstart {family.upper()} manufacturer")
        key = generate(KINDS[family])
        files = {suffix: self._devices / f"{device}.{suffix}" for suffix in ("idevid.pem", "idevid.key", "maker.pem")}
        files["idevid.key"].touch(mode=0o600)
        files["idevid.key"].write_bytes(key.to_pem())
        files["idevid.pem"].write_text(pem.encode("CERTIFICATE", maker.idevid(device, key.public_key)))
        files["maker.pem"].write_text(pem.encode("CERTIFICATE", maker.certificate))
        return files["idevid.pem"], files["idevid.key"], files["maker.pem"]

    def _summary(self) -> None:
        authorities = json.loads(self._ironroot("ca", "list", "-o", "json"))
        print(f"\nAll steps held, {time.monotonic() - self._began:.1f} s in all.")
        print(f"  OCSP    http://127.0.0.1:{self.http}/ocsp")
        print(f"  CRLs    http://127.0.0.1:{self.http}/crl/ecc-issuing.crl")
        print(f"  EST     https://127.0.0.1:{self.https}/.well-known/est/ecc-devices")
        for authority in authorities:
            print(f"  {authority['id']:12} SHA-256 {authority['sha256']}")
        home = os.path.relpath(self.home) if self.home.is_relative_to(Path.cwd()) else self.home
        print("Try next:")
        print(f"  .venv/bin/ironroot cert list --home {home}")
        print(f"  .venv/bin/ironroot device invite --fleet ecc-devices --serial SN-0001 --home {home}")
        print(f"  .venv/bin/ironroot audit verify --home {home}", flush=True)

    def _ironroot(self, *arguments: str, expect: int = 0) -> str:
        return self._call([sys.executable, "-m", "ironroot.cli.main", *arguments, "--home", str(self.home)], expect)

    def _device(self, *arguments: str, state: str) -> str:
        return self._call([sys.executable, "-m", "enroll.device", *arguments, "--state", str(self._devices / state)], 0)

    def _call(self, command: list[str], expect: int) -> str:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        if done.returncode != expect:
            raise Failed(
                f"{' '.join(command[2:5])} … ended with {done.returncode}, not {expect}: {done.stderr.strip() or done.stdout.strip()}"
            )
        return done.stdout

    @contextmanager
    def _step(self, family: str, text: str) -> Iterator[Any]:
        started, notes = time.monotonic(), list[str]()
        yield notes.append
        self._line(family, ": ".join([text, *notes]), started)

    def _line(self, family: str, text: str, started: float) -> None:
        with self._print:
            print(f"{time.monotonic() - started:6.2f} s  {family}  {text}", flush=True)


class Maker:
    """A device manufacturer's CA, in software, for the tour."""

    def __init__(self, kind: KeyKind, common_name: str) -> None:
        self._key: PrivateKey = generate(kind)
        self._name = name(("O", "Quickstart"), ("CN", common_name))
        extensions = [basic_constraints(True, 0), key_usage("keyCertSign"), subject_key_identifier(self._key.public_key)]
        self.certificate = self._sign(1, self._name, self._key.public_key, extensions)

    def idevid(self, device: str, public_key: PublicKey) -> bytes:
        """An IDevID: never expires, names the device in serialNumber (IEEE 802.1AR)."""
        from pkix.certificate import parse_certificate

        return self._sign(2, name(("serialNumber", device)), public_key, [authority_key_identifier(parse_certificate(self.certificate))])

    def _sign(self, serial: int, subject: Name, public_key: PublicKey, extensions: list[Extension]) -> bytes:
        signature = SIGNATURES[self._key.kind]
        tbs = build_tbs(
            serial=serial,
            issuer=self._name,
            subject=subject,
            not_before=datetime.now(UTC) - timedelta(hours=1),
            not_after=datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC),
            public_key=public_key,
            signature=signature,
            extensions=extensions,
        )
        return assemble(tbs, signature, self._key.sign(tbs))


if __name__ == "__main__":
    main()
