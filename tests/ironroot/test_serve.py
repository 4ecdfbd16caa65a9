"""``ironroot serve`` as a process: it stops when told, starts again what dies, says when it cannot work, and loses nothing when killed."""

from __future__ import annotations

import base64
import contextlib
import os
import signal
import sqlite3
import ssl
import time
import urllib.error
import urllib.request

import pytest
from plant import free_ports

from pkix.cms import parse_certs_only
from pkix.csr import build_csr
from pkix.name import name
from pkix.privatekey import generate

SIGNING_AWAY = 503


def enrol(plant, invited, serial, csr, *, key: str | None = None) -> tuple[int, bytes, dict[str, str]]:
    """One simpleenroll with a token: status, body, headers."""
    request = urllib.request.Request(f"{plant.https_url}/.well-known/est/{invited['fleet']}/simpleenroll", data=base64.b64encode(csr))
    request.add_header("Content-Type", "application/pkcs10")
    request.add_header("Authorization", "Basic " + base64.b64encode(f"{serial}:{invited['token']}".encode()).decode())
    if key:
        request.add_header("Idempotency-Key", key)
    context = ssl.create_default_context(cadata=plant.run("ca", "export", "ecc-root").stdout)
    try:
        with urllib.request.urlopen(request, context=context, timeout=30) as answer:
            return answer.status, answer.read(), dict(answer.headers)
    except urllib.error.HTTPError as error:
        return error.code, error.read(), dict(error.headers)


def request_of(serial: str) -> bytes:
    return build_csr(generate("p-256"), name(("CN", serial)))


def test_sigterm_ends_it_with_0(own_plant):
    own_plant.start("--workers", "2")
    assert own_plant.status("/livez") == 200
    began = time.monotonic()
    assert own_plant.stop() == 0
    assert time.monotonic() - began < 10
    assert own_plant.status("/livez") is None
    for role in ("hsm", "worker", "scheduler"):
        assert own_plant.children(role) == []


def test_a_port_that_is_taken_is_said(plant, own_plant):
    text = (own_plant.home / "ironroot.toml").read_text()
    (own_plant.home / "ironroot.toml").write_text(text.replace(str(own_plant.http), str(plant.http)))
    refused = own_plant.run("serve", expect=5)
    assert str(plant.http) in refused.stderr


def test_one_service_a_home(own_plant):
    own_plant.start()
    text = (own_plant.home / "ironroot.toml").read_text()
    (own_plant.home / "ironroot.toml").write_text(text.replace(str(own_plant.http), str(free_ports(1)[0])))
    assert "Another ironroot serve" in own_plant.run("serve", expect=5).stderr
    (own_plant.home / "ironroot.toml").write_text(text)
    own_plant.run("init")  # which may be run while it serves, and uses its HSM
    assert own_plant.stop() == 0


def test_a_home_where_others_may_write_is_refused(own_plant):
    own_plant.home.chmod(0o777)
    assert "chmod 700" in own_plant.run("init", expect=4).stderr
    own_plant.home.chmod(0o700)


def test_init_does_not_change_what_certificates_carry(own_plant):
    own_plant.run("init", "--organization", "Another", expect=5)


def test_an_address_that_nobody_can_reach_is_refused(own_plant):
    file = own_plant.home / "ironroot.toml"
    file.write_text(file.read_text().replace('host = "127.0.0.1"', 'host = "0.0.0.0"', 1))
    assert "public_url" in own_plant.run("serve", expect=2).stderr


def test_unknown_settings_are_refused_and_named(own_plant):
    file = own_plant.home / "ironroot.toml"
    file.write_text(file.read_text() + "\ncrl_huors = 3\n")
    assert "crl_huors" in own_plant.run("serve", expect=2).stderr


def test_what_dies_is_started_again_and_nothing_is_lost(own_plant):
    own_plant.start()
    invited = own_plant.invite("ecc-devices", "phoenix")
    csr = request_of("phoenix")
    for role in ("worker", "scheduler"):
        (old,) = own_plant.children(role)
        os.kill(old, signal.SIGKILL)
        own_plant.until(lambda role=role, old=old: own_plant.children(role) not in ([], [old]), f"a new {role}")
    own_plant.wait_ready()
    # The HSM dies: issuing says 503 and when to come back, the status doors go on, and the token is not used up.
    (old,) = own_plant.children("hsm")
    os.kill(old, signal.SIGSTOP)
    try:
        os.kill(old, signal.SIGKILL)
        status, body, headers = enrol(own_plant, invited, "phoenix", csr)
        if status != 200:  # it may have been back already
            assert status == SIGNING_AWAY
            assert b"Traceback" not in body
            assert int(headers["Retry-After"]) > 0
    finally:
        own_plant.until(lambda: own_plant.children("hsm") not in ([], [old]), "a new HSM")
    own_plant.wait_ready()
    if status != 200:
        own_plant.until(lambda: enrol(own_plant, invited, "phoenix", csr)[0] == 200, "the token to be good again")
    assert own_plant.json("cert", "show", "phoenix")["status"] == "good"
    assert own_plant.stop() == 0


def test_without_hsm_nothing_is_signed_and_the_token_stays_good(own_plant):
    """The PIN is wrong, so the HSM stays locked: 503, not ready, no certificate; with the right PIN the same token works."""
    pin = own_plant.home / "hsm" / "pin"
    right = pin.read_bytes()
    own_plant.start()
    invited = own_plant.invite("ecc-devices", "locked")
    csr = request_of("locked")
    pin.write_bytes(b"000000-wrong")
    (old,) = own_plant.children("hsm")
    os.kill(old, signal.SIGKILL)
    own_plant.until(lambda: own_plant.status("/readyz") == SIGNING_AWAY, "readiness to say no")
    status, body, headers = enrol(own_plant, invited, "locked", csr)
    assert status == SIGNING_AWAY
    assert int(headers["Retry-After"]) > 0
    assert b"PIN" in body or b"HSM" in body
    assert right.strip() not in body
    assert own_plant.get("/crl/ecc-issuing.crl")  # status doors go on
    pin.write_bytes(right)
    own_plant.wait_ready()
    assert enrol(own_plant, invited, "locked", csr)[0] == 200
    records = own_plant.json("device", "show", "locked")
    assert [record["status"] for record in records if record["status"] != "abandoned"] == ["good"]
    log = (own_plant.home / "serve.log").read_bytes()
    assert right.strip() not in log
    assert own_plant.stop() == 0


@pytest.mark.parametrize("point", ["issue.intended", "issue.signed", "issue.recorded", "store.intend.committed", "store.record.committing"])
def test_killed_at_any_point_the_request_once_more_gets_its_certificate(own_plant, point):
    """kill -9 in the middle of issuance; the supervisor starts the worker again; the same request gets one certificate, and only one."""
    own_plant.start(env={"IRONROOT_FAILPOINT": f"{point}:kill", "IRONROOT_FAILPOINT_ONCE": str(own_plant.home / "failed-once")})
    invited = own_plant.invite("ecc-devices", "crashed")
    csr, key = request_of("crashed"), os.urandom(32).hex()
    with pytest.raises((urllib.error.URLError, ConnectionError, OSError)):
        enrol(own_plant, invited, "crashed", csr, key=key)
    assert (own_plant.home / "failed-once").exists()
    answers: list[tuple[int, bytes, dict[str, str]]] = []

    def answered() -> bool:
        try:
            answers.append(enrol(own_plant, invited, "crashed", csr, key=key))
        except OSError:
            return False
        return answers[-1][0] == 200

    own_plant.until(answered, "the certificate", seconds=40)
    (der,) = parse_certs_only(base64.b64decode(answers[-1][1]))
    records = [record for record in own_plant.json("device", "show", "crashed") if record["status"] != "abandoned"]
    assert len(records) == 1
    assert der.hex() in base64.b64decode("".join(own_plant.json("cert", "show", "crashed")["certificate"].splitlines()[1:-1])).hex()
    # Another key with the same token gets nothing.
    assert enrol(own_plant, invited, "crashed", request_of("crashed"))[0] == 401
    own_plant.run("audit", "verify")
    assert own_plant.stop() == 0


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ("UPDATE audit SET actor = 'nobody' WHERE seq = 5", "entry 5"),
        ("DELETE FROM audit WHERE seq = 4", "entry 4"),
        ("DELETE FROM audit WHERE seq > (SELECT max(seq) - 2 FROM audit)", "missing"),
    ],
)
def test_a_damaged_audit_log_is_noticed(own_plant, damage, said):
    own_plant.start()
    own_plant.run("audit", "checkpoint")
    assert own_plant.stop() == 0
    own_plant.run("audit", "verify")
    with contextlib.closing(sqlite3.connect(own_plant.home / "db" / "ironroot.db")) as database:
        with pytest.raises(sqlite3.IntegrityError, match="append-only"):
            database.execute(damage)
        for act in ("update", "delete"):  # whoever owns the file can go that far
            database.execute(f"DROP TRIGGER audit_refuses_{act}")
        database.execute(damage)
        database.commit()
    assert said in own_plant.run("audit", "verify", expect=8).stderr
