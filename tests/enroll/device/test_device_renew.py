"""A new key and certificate for an enrolled device: when, how it proves itself; the old pair serves until the new one has worked."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from enroll.device import clock as device_clock
from enroll.device import commands
from enroll.device.clock import Clock
from enroll.device.folder import Folder
from enroll.device.log import Log
from pkix import pem
from pkix.certificate import parse_certificate

DAY = timedelta(days=1)
DUE = {"begins": -80 * DAY, "ends": 10 * DAY}


@pytest.mark.parametrize("family", ["ecc", "sm2"])
def test_renewal_gives_a_new_key_under_the_same_name(server, device, enrolled, family):
    old = enrolled(family)
    done = device("renew")
    assert (done.code, done.out["action"]) == (0, "renewed"), done.text
    new = device.current()
    assert new.public_key.spki != old.public_key.spki
    assert (new.subject.der, new.names) == (old.subject.der, old.names)


def test_an_ecc_device_shows_its_certificate_in_tls(server, enrolled, device):
    old = enrolled("ecc")
    assert device("renew").code == 0
    (asked,) = server.asked("simplereenroll")
    assert asked.client == old
    assert asked.headers["content-type"] == "application/pkcs10"


def test_an_sm2_device_signs_the_message(server, enrolled, device):
    enrolled("sm2")
    assert device("renew").code == 0
    (asked,) = server.asked("simplereenroll")
    assert asked.client is None
    assert asked.headers["content-type"] == "application/pkcs7-mime; smime-type=signed-data"


def test_an_expired_certificate_signs_the_message(server, enrolled, device, expire):
    enrolled("ecc")
    expire()
    assert device("status").code == 8
    done = device("renew")
    assert done.code == 0, done.text
    assert server.asked("simplereenroll")[0].client is None
    assert device("status").code == 0


def test_an_expired_certificate_that_is_refused_falls_back_on_the_idevid(server, device, world, idevid, expire):
    server.allow_expired = False
    options = "--url", server.url, "--fleet", "ecc-devices", "--idevid", *idevid("ecc"), "--ca-sha256", world.pin
    assert device("up", *options).code == 0
    expire()
    done = device("renew")
    assert done.code == 0, done.text
    assert any(line.get("event") == "renewal-refused" for line in done.err)
    assert server.asked("simpleenroll")[-1].client.subject.get("CN") == ["board"]


def test_if_needed_does_nothing_before_the_window_and_renews_in_it(server, device, enrolled):
    enrolled("ecc")
    done = device("renew", "--if-needed")
    assert (done.code, done.out["action"], server.seen) == (0, "none", [])


def test_if_needed_renews_after_the_window_began(server, device, enrolled):
    enrolled("ecc", **DUE)
    assert device("status").out["renewal_due"] is True
    done = device("renew", "--if-needed")
    assert (done.code, done.out["action"], done.out["renewal_due"]) == (0, "renewed", False)


def renewal(device):
    """Which part of its certificate's life has passed when the device renews."""
    certificate = device.current()
    due = datetime.fromisoformat(device("status").out["renew_at"])
    return (due - certificate.not_before) / (certificate.not_after - certificate.not_before)


def test_the_fleet_says_when_to_renew_with_every_certificate(server, device, enrolled):
    server.renew = "0.2 0.1"
    enrolled("ecc", begins=-40 * DAY, ends=60 * DAY)
    assert 0.2 - 1e-6 <= renewal(device) <= 0.3
    assert device("status").out["renewal_due"] is True
    server.renew = "0.8 0.1"
    assert device("renew", "--if-needed").out["action"] == "renewed"
    assert 0.8 - 1e-6 <= renewal(device) <= 0.9
    assert device("renew", "--if-needed").out["action"] == "none"


def test_what_the_fleet_says_changes_only_with_the_certificate(server, device, enrolled, scripts):
    server.renew = "0.2 0.1"
    old = enrolled("ecc", begins=timedelta(0))
    server.renew, server.refuse_trial = "0.8 0.1", True
    assert device("renew").code == 4
    assert device.current() == old
    assert renewal(device) < 0.31


@pytest.mark.parametrize("said", ["0.99 0.5", "0 1", "whenever"])
def test_a_renewal_that_makes_no_sense_is_not_followed(server, device, enrolled, said):
    server.renew = said
    enrolled("ecc", begins=timedelta(0))
    assert 2 / 3 - 1e-6 <= renewal(device) <= 2 / 3 + 0.05


@pytest.mark.parametrize("damage", [b"", b"\xff\x00", None])
def test_a_damaged_or_missing_note_of_when_to_renew_leaves_the_defaults(server, device, enrolled, damage):
    server.renew = "0.2 0.1"
    enrolled("ecc", begins=timedelta(0))
    note = device.file("current/renew")
    assert note.read_text() == "0.2 0.1\n"
    note.unlink() if damage is None else note.write_bytes(damage)
    assert 2 / 3 - 1e-6 <= renewal(device) <= 2 / 3 + 0.05


def test_the_old_pair_stays_if_the_server_does_not_take_the_new_one(server, device, enrolled):
    old = enrolled("ecc")
    server.refuse_trial = True
    assert device("renew").code == 4
    assert device.current() == old
    assert device("status").out["unfinished"] is None
    server.refuse_trial = False
    assert device("renew").code == 0
    assert device.current() != old


def test_the_old_pair_stays_if_the_answer_names_another(server, device, enrolled, world):
    old = enrolled("ecc")
    server.answer = lambda found: [world.issuing["ecc"].device(found[0].public_key, "P-1", "ecc-platforms")]
    done = device("renew")
    assert done.code == 8
    assert "current one names" in done.err[-1]["text"]
    assert device.current() == old


def test_the_old_ecc_key_is_removed_after_the_new_one_worked_an_sm2_one_a_renewal_later(server, device, enrolled):
    enrolled("ecc")
    assert device("renew").code == 0
    assert len(keys(device)) == 1


def test_an_sm2_pair_is_kept_as_previous(server, device, enrolled):
    old = enrolled("sm2")
    assert device("renew").code == 0
    assert parse_certificate(pem.certificates(device.file("previous/device.pem").read_bytes())[0]) == old
    assert device("renew").code == 0
    assert len(keys(device)) == 2


def test_a_lost_answer_is_given_again(server, device, enrolled, scripts):
    enrolled("sm2")
    server.script.extend([scripts.lose_answer] * 2)
    assert device("renew").code == 0
    assert len(server.issued) == 2
    assert len({seen.headers["idempotency-key"] for seen in server.asked("simplereenroll")}) == 1


def test_a_refusal_leaves_all_as_it_was(server, device, enrolled, scripts):
    old = enrolled("ecc")
    server.script.append(scripts.answering(403, b"this device was revoked; ask the administrator"))
    done = device("renew")
    assert done.code == 4
    assert "was revoked" in done.err[-1]["text"]
    assert device.current() == old


def test_a_new_root_is_taken_only_if_the_old_one_vouches_for_it(server, device, enrolled, world, scripts):
    enrolled("ecc")
    stranger = scripts.new_ca("stranger", "p-256")
    cacerts = [world.issuing["ecc"].certificate, world.roots["ecc"].certificate, stranger.certificate]
    server.cacerts = cacerts
    assert device("renew").code == 0
    assert trust(device) == [world.roots["ecc"].certificate]

    successor = scripts.new_ca("ecc root", "p-256")
    voucher = world.roots["ecc"].issue(
        successor.key.public_key, (("CN", "ecc root"),), [successor.certificate.extensions[oid] for oid in ("2.5.29.19", "2.5.29.15")]
    )
    server.cacerts = [*cacerts, successor.certificate, voucher]
    assert device("renew").code == 0
    assert trust(device) == [world.roots["ecc"].certificate, successor.certificate]


def test_renew_without_enrolment_is_not_found(device, server, scripts):
    assert device("renew").code == 3
    server.script.append(scripts.answering(202))
    device("up", "--url", server.url, "--fleet", "ecc-devices", "--serial", "P-1", "--token", server.token("P-1"))
    assert device("renew").code == 3


def test_run_renews_at_once_when_due_then_stops_on_sigterm(server, device, enrolled):
    old = enrolled("ecc", **DUE)
    lines = run_until(device, "renewed", "waiting")
    assert lines[0]["event"] == "started"
    assert lines[-1]["event"] == "stopped"
    assert device.current() != old


def test_run_carries_on_an_enrolment_that_waits_for_approval(server, device, scripts):
    server.script.extend([scripts.answering(status, Retry_After="0") for status in (202, 202, 409)])
    done = device("up", "--url", server.url, "--fleet", "sm2-devices", "--serial", "P-1", "--token", server.token("P-1"))
    assert done.code == 6
    lines = run_until(device, "enrolled")
    assert [line["code"] for line in lines if line["event"] == "retry"] == ["pending", "conflict"]
    assert device.current() == server.issued[0]


def test_run_keeps_trying_to_renew_while_the_server_refuses(server, device, enrolled, scripts):
    enrolled("ecc", **DUE)
    server.script.append(scripts.answering(403, b"no", Retry_After="0"))
    lines = run_until(device, "renewed")
    assert [line["code"] for line in lines if line["event"] == "retry"] == ["refused"]


def test_run_ends_when_an_enrolment_is_denied(server, device, scripts):
    server.script.extend([scripts.answering(202, Retry_After="0"), scripts.answering(403, b"denied")])
    assert device("up", "--url", server.url, "--fleet", "ecc-devices", "--serial", "P-1", "--token", server.token("P-1")).code == 6
    done = device.program("run")
    assert done.code == 4
    assert done.err[-1]["error"] == "refused"


def test_a_device_without_a_clock_renews_by_the_time_that_it_was_up(server, device, enrolled, monkeypatch):
    """``run`` counts on from the last authentic date, hour by hour, although the system clock stands still in the past."""
    old = enrolled("sm2")
    up = 0.0
    monkeypatch.setattr(device_clock, "_elapsed", lambda: up)
    clock, log, folder = Clock(), Log(as_json=True), Folder(device.state)
    assert commands._turn(folder, log, clock)[0] == 3600
    assert server.seen == []
    up += 40 * 86400
    commands._turn(folder, log, clock)
    assert device.current() == old
    clock = Clock()  # a reboot: it goes on from the time that was noted
    commands._turn(folder, log, clock)
    assert device.current() == old
    up += 30 * 86400
    server.begins, server.ends = 60 * DAY, 150 * DAY
    commands._turn(folder, log, clock)
    assert device.current() != old


def test_run_without_anything_set_up_is_not_found(device):
    assert device("run").code == 3


def test_two_at_once_are_a_conflict(server, device, enrolled):
    enrolled("ecc")
    with Folder(device.state).lock():
        assert device("renew").code == 5


def run_until(device, *events):
    """Start ``run`` as a program, read its log until all ``events`` were told, SIGTERM it; its lines."""
    line = [sys.executable, "-W", "error", "-m", "enroll.device", "run", "--state", str(device.state), "-o", "json"]
    wanted, lines = set(events), []
    with subprocess.Popen(line, cwd=Path(__file__).parents[3], stderr=subprocess.PIPE, text=True, env=dict(os.environ)) as process:
        try:
            while wanted:
                text = process.stderr.readline()
                assert text, f"run ended by itself: {lines}"
                lines.append(json.loads(text))
                wanted.discard(lines[-1].get("event"))
            process.send_signal(signal.SIGTERM)
            lines += [json.loads(text) for text in process.stderr]
            assert process.wait(30) == 0
        finally:
            process.kill()
    return lines


def keys(device):
    return list((device.state / "versions").glob("*/device.key"))


def trust(device):
    return [parse_certificate(der) for der in pem.certificates(device.file("trust.pem").read_bytes())]
