"""First contact and every later one: which server is believed, and that nothing secret reaches any other."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from pkix.extensions import extended_key_usage, subject_alternative_name

DAY = timedelta(days=1)


def options(server, *rest):
    return "--url", server.url, "--fleet", "ecc-devices", "--serial", "P-1", *rest


def unharmed(server):
    """The server saw no credential and no request for a certificate."""
    assert not any("authorization" in seen.headers or seen.method == "POST" or seen.client for seen in server.seen)


@pytest.fixture
def stranger(scripts):
    return scripts.new_ca("stranger", "p-256")


def test_another_root_than_the_tokens_is_refused(server, device, stranger):
    server.tls_root = stranger.certificate.der
    done = device("up", *options(server, "--token", server.token("P-1")))
    assert done.code == 8
    unharmed(server)
    assert not device.file("tls-trust.pem").exists()


def test_a_server_that_does_not_have_the_root_is_refused(server, device, stranger):
    done = device("up", *options(server, "--token", server.token("P-1", pin=stranger.certificate.sha256.hex())))
    assert done.code == 8
    unharmed(server)


def test_a_server_that_relays_the_right_root_with_a_certificate_of_another_is_refused(world, device, stranger, tmp_path, scripts):
    names = subject_alternative_name("dns:localhost")
    forged = stranger.issue(world.tls.public_key, (("CN", "localhost"),), [extended_key_usage("serverAuth"), names])
    with scripts.serving(world, tmp_path, forged) as server:
        done = device("up", *options(server, "--token", server.token("P-1")))
        assert done.code == 8, done.text
        unharmed(server)


def test_a_certificate_for_another_host_is_refused(world, device, tmp_path, scripts):
    other = world.issuing["ecc"].issue(world.tls.public_key, (("CN", "localhost"),), [subject_alternative_name("dns:other.example")])
    with scripts.serving(world, tmp_path, other) as server:
        assert device("up", *options(server, "--token", server.token("P-1"))).code == 8
        unharmed(server)


@pytest.mark.parametrize("body", [b"", b"hello", b"\x30\x03\x02\x01\x01"])
def test_a_root_that_is_none_is_refused(server, device, body):
    server.tls_root = body
    assert device("up", *options(server, "--token", server.token("P-1"))).code == 8
    unharmed(server)


def test_a_wrong_ca_sha256_is_refused(server, device, idevid):
    done = device("up", *options(server, "--idevid", *idevid("ecc"), "--ca-sha256", "0" * 64))
    assert done.code == 8
    unharmed(server)


def test_a_trust_file_needs_no_fetch(server, device, world, idevid, tmp_path):
    (tmp_path / "root.pem").write_text(world.roots["ecc"].certificate.pem)
    assert device("up", *options(server, "--idevid", *idevid("ecc"), "--trust", tmp_path / "root.pem")).code == 0
    assert not any(seen.path.startswith("/aia/") for seen in server.seen)


def test_a_trust_file_that_contradicts_the_token_is_refused(server, device, stranger, tmp_path):
    (tmp_path / "root.pem").write_text(stranger.certificate.pem)
    assert device("up", *options(server, "--token", server.token("P-1"), "--trust", tmp_path / "root.pem")).code == 8
    assert server.seen == []


def test_a_ca_sha256_that_contradicts_the_token_is_a_usage_error(server, device):
    assert device("up", *options(server, "--token", server.token("P-1"), "--ca-sha256", "0" * 64)).code == 2
    assert server.seen == []


def test_an_idevid_without_a_pin_trusts_on_first_use_loudly_and_then_no_other(world, server, device, idevid, stranger, tmp_path, scripts):
    done = device("up", *options(server, "--idevid", *idevid("ecc")))
    assert done.code == 0, done.text
    (warning,) = [line for line in done.err if line.get("event") == "trust-on-first-use"]
    assert warning["ca_sha256"] == world.pin == done.out["ca_sha256"][0]
    forged = stranger.issue(world.tls.public_key, (("CN", "localhost"),), [subject_alternative_name("dns:localhost")])
    with scripts.serving(world, tmp_path, forged) as other:
        other.tls_root = stranger.certificate.der
        state = json.loads(device.file("state.json").read_text())
        device.file("state.json").write_text(json.dumps(state | {"url": other.url}))
        assert device("renew").code == 8
        unharmed(other)


def test_a_new_token_with_another_pin_replaces_the_stored_root(world, server, device, idevid, stranger, tmp_path):
    (tmp_path / "root.pem").write_text(stranger.certificate.pem)
    done = device("up", *options(server, "--idevid", *idevid("ecc"), "--trust", tmp_path / "root.pem"))
    assert done.code == 8
    assert device("up", *options(server, "--token", server.token("P-1"))).code == 0


# -- clocks


@pytest.fixture
def tomorrow(world, tmp_path, scripts):
    """A server whose own certificate begins tomorrow by our clock."""
    names = subject_alternative_name("dns:localhost")
    usages = [extended_key_usage("serverAuth"), names]
    certificate = world.issuing["ecc"].issue(world.tls.public_key, (("CN", "localhost"),), usages, begins=DAY, ends=5 * DAY)
    with scripts.serving(world, tmp_path, certificate) as server:
        server.begins, server.ends = DAY, 90 * DAY
        yield server


def test_a_clock_that_is_behind_is_set_right_by_the_verified_server(tomorrow, device):
    tomorrow.date = format_datetime(datetime.now(UTC) + 2 * DAY, usegmt=True)
    done = device("up", *options(tomorrow, "--token", tomorrow.token("P-1"), "--fleet", "sm2-devices"))
    assert done.code == 0, done.text
    assert device("status").out["clock_behind"] is True


def test_a_certificate_that_is_not_valid_yet_by_all_we_know_is_not_used(tomorrow, device):
    done = device("up", *options(tomorrow, "--token", tomorrow.token("P-1")))
    assert done.code == 8
    assert not device.file("device.pem").exists()


def test_time_that_was_seen_does_not_run_back(world, tomorrow, device):
    """A server certificate that is over by the last date seen is not taken, whatever the system clock says."""
    tomorrow.date = format_datetime(datetime.now(UTC) + 2 * DAY, usegmt=True)
    assert device("up", *options(tomorrow, "--token", tomorrow.token("P-1"), "--fleet", "sm2-devices")).code == 0
    state = json.loads(device.file("state.json").read_text())
    device.file("state.json").write_text(json.dumps(state | {"time": (datetime.now(UTC) + 6 * DAY).isoformat()}))
    tomorrow.seen.clear()
    assert device("renew").code == 8
    unharmed(tomorrow)


def test_an_expired_server_certificate_is_refused(world, device, tmp_path, scripts):
    names = subject_alternative_name("dns:localhost")
    old = world.issuing["ecc"].issue(world.tls.public_key, (("CN", "localhost"),), [names], begins=-5 * DAY, ends=-DAY)
    with scripts.serving(world, tmp_path, old) as server:
        done = device("up", *options(server, "--token", server.token("P-1")))
        assert done.code == 8
        unharmed(server)


def test_the_servers_date_does_not_move_a_right_clock(server, device):
    assert device("up", *options(server, "--token", server.token("P-1"))).code == 0
    assert device("status").out["clock_behind"] is False
