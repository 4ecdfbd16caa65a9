"""A certificate at whose sight the server's TLS ends the connection: the device is told so at once, and takes nothing else for it."""

from __future__ import annotations

import json
import ssl
from datetime import UTC, datetime, timedelta

import pytest

from enroll.device import clock as device_clock
from enroll.device import est
from pkix.algorithms import KeyKind
from pkix.privatekey import generate, load_private_key

DAY = timedelta(days=1)
VERSIONS = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]


@pytest.fixture
def no_grace(monkeypatch):
    """A certificate is shown again at once."""
    monkeypatch.setattr(est, "GRACE", 0.0)


@pytest.fixture
def foreign(scripts, tmp_path):
    """Makes an IDevID of a manufacturer that no server knows: files of certificate and key."""

    def make(serial="P-1"):
        key = generate(KeyKind.P_256)
        maker = scripts.new_ca("unknown maker", KeyKind.P_256)
        made = maker.issue(key.public_key, (("CN", "board"), ("serialNumber", serial)), [])
        (tmp_path / "foreign.pem").write_text(made.pem)
        (tmp_path / "foreign.key").write_bytes(key.to_pem())
        return tmp_path / "foreign.pem", tmp_path / "foreign.key"

    return make


@pytest.fixture
def by_idevid(server, device, world):
    """Enrols with certificate and key, one attempt."""

    def up(*pair):
        return device("up", "--url", server.url, "--fleet", "ecc-devices", "--idevid", *pair, "--ca-sha256", world.pin, "--wait", "0")

    return up


@pytest.mark.parametrize("version", VERSIONS)
def test_an_idevid_of_an_unknown_manufacturer_is_refused(server, device, world, foreign, by_idevid, no_grace, version):
    server.tls.minimum_version = server.tls.maximum_version = version
    pair = foreign()
    done = by_idevid(*pair)
    assert (done.code, done.err[-1]["error"]) == (4, "refused"), done.text
    assert "ironroot fleet trust ecc-devices CA.pem" in done.err[-1]["text"]
    assert [seen.path.rsplit("/")[-1] for seen in server.seen[1:]] == ["cacerts", "cacerts"]
    assert not any(seen.client for seen in server.seen)
    assert server.connections == 5  # root, cacerts, the request that died, cacerts without the certificate, and with it

    server.tls.load_verify_locations(cadata=pair[0].read_text())  # the administrator does what the sentence says
    server.tls.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    assert device("up").code == 0


@pytest.mark.parametrize("version", VERSIONS)
def test_the_devices_own_certificate_is_refused_in_other_words(server, device, enrolled, scripts, no_grace, version):
    server.tls.minimum_version = server.tls.maximum_version = version
    old = enrolled("ecc")
    stranger = scripts.new_ca("ecc issuing", KeyKind.P_256).device(old.public_key, "P-1", "ecc-devices")
    device.file("current/device.pem").write_text(stranger.pem)
    done = device("renew")
    assert done.code == 4, done.text
    assert "this device's certificate" in done.err[-1]["text"]
    assert "--replace" in done.err[-1]["text"]
    assert device.current() == stranger
    assert device("up", "--replace", "--token", server.token("P-1")).code == 0
    assert device.current() == server.issued[-1]


def test_a_device_that_does_not_know_that_its_certificate_ended_falls_back_on_the_idevid(
    server, device, idevid, by_idevid, expire, no_grace, monkeypatch
):
    assert by_idevid(*idevid("ecc")).code == 0
    ended = expire()
    before = ended.not_after - DAY

    class Behind(datetime):
        @classmethod
        def now(cls, tz=None):
            return before.astimezone(tz)

    state = json.loads(device.file("state.json").read_text())
    device.file("state.json").write_text(json.dumps(state | {"time": None}))
    monkeypatch.setattr(device_clock, "datetime", Behind)
    monkeypatch.setattr(device_clock, "package_date", lambda: before)
    server.seen.clear()
    done = device("renew")
    assert done.code == 0, done.text
    assert any(line.get("event") == "renewal-refused" for line in done.err)
    assert server.asked("simplereenroll") == []
    assert server.asked("simpleenroll")[0].client.subject.get("CN") == ["board"]
    assert device.current().not_after > datetime.now(UTC)


def test_a_new_certificate_that_the_server_shuns_is_not_used(server, device, world, enrolled, scripts, no_grace):
    old = enrolled("ecc")
    unheard = scripts.new_ca("ecc issuing 2", KeyKind.P_256, world.roots["ecc"])
    server.answer = lambda found: [unheard.device(found[0].public_key, "P-1", "ecc-devices"), unheard.certificate]
    done = device("renew")
    assert done.code == 4, done.text
    assert "just issued" in done.err[-1]["text"]
    assert device.current() == old
    assert device("status").out["unfinished"] is None


def test_a_lost_answer_is_not_taken_for_a_refusal(server, device, idevid, by_idevid, scripts, no_grace):
    """The server died over our request, which it had carried out: what a repetition finds, with the same key."""
    server.script.extend([scripts.lose_answer] * 2)
    done = by_idevid(*idevid("ecc"))
    assert (done.code, done.err[-1]["error"]) == (7, "outcome_unknown"), done.text
    assert device("up").code == 0
    assert device.current() == server.issued[0]
    assert len(server.issued) == 1


def test_a_server_that_ends_every_connection_is_away(server, device, idevid, by_idevid, no_grace):
    def turn_away(handler, est_server):
        est_server.tls.verify_mode = ssl.CERT_REQUIRED  # whoever comes without a certificate
        est_server.connections = 0
        handler.request.close()
        return True

    server.script.append(turn_away)
    done = by_idevid(*idevid("ecc"))
    assert done.code == 7, done.text
    assert server.connections == 1
    server.tls.verify_mode = ssl.CERT_OPTIONAL
    assert device("up").code == 0


def test_a_token_is_never_refused_for_a_connection(server, device, world, no_grace):
    def drop(handler, est_server):
        est_server.connections = 0
        handler.request.close()
        return True

    server.script.append(drop)
    token = server.token("P-1")
    done = device("up", "--url", server.url, "--fleet", "ecc-devices", "--serial", "P-1", "--token", token, "--wait", "0")
    assert (done.code, server.connections) == (7, 0)
    assert device("up").code == 0


# -- the served installation


def test_the_real_server_and_an_idevid_that_it_does_not_trust(plant, foreign):
    certificate, key = foreign("untrusted-1")
    pin = plant.invite("ecc-devices", "untrusted-1")["ca_sha256"]
    where = "--url", plant.https_url, "--fleet", "ecc-devices", "--ca-sha256", pin, "--state", str(plant.devices / "untrusted-1")
    done = plant.device("up", *where, "--idevid", str(certificate), str(key), expect=4)
    assert done.stderr.count("\n") == 1
    assert "ironroot fleet trust ecc-devices CA.pem" in done.stderr


def test_the_real_server_and_a_certificate_of_another_ca(plant, scripts):
    state = plant.enrolled("ecc-devices", "untrusted-2")
    public_key = load_private_key((state / "device.key").read_bytes()).public_key
    stranger = scripts.new_ca("another", KeyKind.P_256).device(public_key, "untrusted-2", "ecc-devices")
    (state / "current" / "device.pem").write_text(stranger.pem)
    done = plant.device("renew", "--state", str(state), expect=4)
    assert "this device's certificate" in done.stderr
    assert (state / "device.pem").read_text() == stranger.pem
