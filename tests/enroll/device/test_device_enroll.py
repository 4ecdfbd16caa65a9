"""First certificate: by token and by IDevID, in both families, and everything a server can answer instead."""

from __future__ import annotations

import base64
import io
import stat

import pytest

from pkix import pem
from pkix.algorithms import KeyKind
from pkix.certificate import parse_certificate, verify_signed
from pkix.privatekey import generate


def options(server, token, serial="P-1", fleet="ecc-devices"):
    return "--url", server.url, "--fleet", fleet, "--serial", serial, "--token", token


@pytest.mark.parametrize(("fleet", "kind"), [("ecc-devices", "p-256"), ("sm2-devices", "sm2")])
def test_a_token_gives_a_complete_state_folder(server, device, world, fleet, kind):
    done = device("up", *options(server, server.token("P-1"), fleet=fleet))
    assert done.code == 0, done.text
    assert done.out["action"] == "enrolled"
    assert done.out["algorithm"] == kind
    certificate = device.current()
    assert certificate == server.issued[0]
    assert certificate.public_key.kind == kind
    chain = [parse_certificate(der) for der in pem.certificates(device.file("chain.pem").read_bytes())]
    trust = [parse_certificate(der) for der in pem.certificates(device.file("trust.pem").read_bytes())]
    family = fleet.split("-")[0]
    assert chain == [world.issuing[family].certificate]
    assert trust == [world.roots[family].certificate]
    verify_signed(certificate.der, chain[0].public_key)


def test_files_are_for_the_owner_alone_and_the_token_is_gone(server, device):
    token = server.token("P-1")
    assert device("up", *options(server, token)).code == 0
    assert stat.S_IMODE(device.state.stat().st_mode) == 0o700
    assert stat.S_IMODE(device.file("device.key").stat().st_mode) == 0o600
    assert not device.file("pending").exists()
    for path in device.state.rglob("*"):
        if path.is_file():
            assert token.split(".")[0] not in path.read_text(), path


def test_the_token_goes_only_to_the_verified_server_and_never_into_output(server, device):
    token = server.token("P-1")
    done = device("up", *options(server, token))
    assert token.split(".")[0] not in done.text
    carried = [seen.path for seen in server.seen if "authorization" in seen.headers]
    assert carried == ["/.well-known/est/ecc-devices/simpleenroll"]
    first = server.seen[0]
    assert first.path.startswith("/aia/")
    assert first.client is None


def test_the_new_certificate_is_shown_to_the_server_before_it_is_current(server, device):
    assert device("up", *options(server, server.token("P-1"))).code == 0
    assert [seen.client for seen in server.asked("csrattrs")] == [server.issued[0]]


@pytest.mark.parametrize("family", ["ecc", "sm2"])
def test_an_idevid_enrols_and_gives_the_serial(server, device, world, idevid, family):
    certificate, key = idevid(family, "M-77")
    done = device("up", "--url", server.url, "--fleet", f"{family}-devices", "--idevid", certificate, key, "--ca-sha256", world.pin)
    assert done.code == 0, done.text
    assert done.out["serial"] == "M-77"
    asked = server.asked("simpleenroll")[0]
    assert "authorization" not in asked.headers
    if family == "ecc":
        assert asked.client is not None
        assert asked.headers["content-type"] == "application/pkcs10"
    else:
        assert asked.client is None
        assert asked.headers["content-type"] == "application/pkcs7-mime; smime-type=signed-data"


def test_an_sm2_idevid_enrols_in_an_ecc_fleet(server, device, world, idevid):
    done = device("up", "--url", server.url, "--fleet", "ecc-devices", "--idevid", *idevid("sm2"), "--ca-sha256", world.pin)
    assert done.code == 0, done.text
    assert device.current().public_key.kind == "p-256"


def test_up_again_asks_nobody(server, device):
    token = server.token("P-1")
    assert device("up", *options(server, token)).code == 0
    before, key = len(server.seen), device.file("device.key").read_bytes()
    done = device("up", *options(server, token))
    assert (done.code, done.out["action"]) == (0, "none")
    assert len(server.seen) == before
    assert device.file("device.key").read_bytes() == key


def test_another_device_in_the_same_folder_is_a_conflict(server, device):
    assert device("up", *options(server, server.token("P-1"))).code == 0
    done = device("up", *options(server, server.token("P-2"), serial="P-2"))
    assert done.code == 5
    assert device.current().subject.get("CN") == ["P-1"]


def test_replace_enrols_anew(server, device):
    assert device("up", *options(server, server.token("P-1"))).code == 0
    done = device("up", *options(server, server.token("P-1")), "--replace")
    assert (done.code, done.out["action"]) == (0, "enrolled")
    assert device.current() == server.issued[1]
    assert not device.file("pending").exists()


def test_a_wrong_token_is_denied_with_the_servers_sentence_and_forgotten(server, device):
    server.token("P-1")
    wrong = server.token("P-other")
    done = device("up", *options(server, wrong))
    assert done.code == 4
    assert "ask for another invitation" in done.err[-1]["text"]
    assert "\x1b" not in done.err[-1]["text"]
    assert not device.file("pending").exists()
    assert device("status").code == 6


def test_after_a_wrong_serial_the_right_one_may_be_given(server, device):
    token = server.token("P-1")
    assert device("up", *options(server, token, serial="P-l")).code == 4
    assert device("up", *options(server, token)).code == 0


def test_pending_ends_with_6_and_up_carries_on_without_options(server, device, scripts):
    server.script.append(scripts.answering(202, b"waiting for an administrator", Retry_After="60"))
    done = device("up", *options(server, server.token("P-1")))
    assert done.code == 6
    assert stat.S_IMODE(device.file("pending/token").stat().st_mode) == 0o600
    waiting = device("status")
    assert (waiting.code, waiting.out["state"], waiting.out["unfinished"]) == (6, "pending", "enrolment")
    assert device("up").code == 0
    keys = {seen.headers["idempotency-key"] for seen in server.asked("simpleenroll")}
    assert len(keys) == 1


def test_wait_waits_for_approval(server, device, scripts):
    server.script.extend([scripts.answering(202, b"later", Retry_After="0")] * 2)
    done = device("up", *options(server, server.token("P-1")), "--wait", "30")
    assert done.code == 0
    assert [line["event"] for line in done.err].count("retry") == 2


def test_busy_is_tried_again_and_a_long_retry_after_ends_with_7(server, device, scripts):
    server.script.append(scripts.answering(503, b"the HSM is away", Retry_After="0"))
    assert device("up", *options(server, server.token("P-1"))).code == 0
    server.script.append(scripts.answering(503, b"the HSM is away", Retry_After="600"))
    done = device("renew")
    assert done.code == 7
    assert "HSM is away" in done.err[-1]["text"]


def test_a_request_that_is_being_worked_on_is_tried_again_with_the_same_key(server, device, scripts):
    server.script.append(scripts.answering(409, b"being worked on", Retry_After="0"))
    done = device("up", *options(server, server.token("P-1")))
    assert done.code == 0, done.text
    assert [line["code"] for line in done.err if line.get("event") == "retry"] == ["conflict"]
    assert len({seen.headers["idempotency-key"] for seen in server.asked("simpleenroll")}) == 1
    server.script.append(scripts.answering(409, b"being worked on", Retry_After="10"))
    assert device("renew", "--wait", "5").code == 5


def test_no_server_is_unavailable_and_nothing_is_lost(server, device):
    token = server.token("P-1")
    done = device("up", *options(server, token)[2:], "--url", "https://127.0.0.1:9", "--wait", "0")
    assert done.code == 7
    assert device("up", "--url", server.url).code == 0


def test_a_lost_answer_costs_nothing(server, device, scripts):
    server.script.extend([scripts.lose_answer] * 2)
    done = device("up", *options(server, server.token("P-1")))
    assert done.code == 0, done.text
    assert len(server.issued) == 1
    assert len(server.asked("simpleenroll")) == 2
    assert len({seen.headers["idempotency-key"] for seen in server.asked("simpleenroll")}) == 1


@pytest.mark.parametrize(
    "wrap",
    [
        base64.encodebytes,
        lambda der: der,
        lambda der: pem.encode("PKCS7", der).encode(),
        lambda der: base64.b64encode(der) + b"\r\n",
    ],
)
def test_answers_in_every_usual_wrapping_are_read(server, device, wrap):
    server.wrap = wrap
    assert device("up", *options(server, server.token("P-1"))).code == 0


@pytest.mark.parametrize("body", [b"", b"<html>hello</html>", b"\x30\x80\x00\x00", b"MAMCAQE=", b"A" * 300_000])
def test_an_answer_that_is_none_is_not_valid(server, device, scripts, body):
    server.script.append(scripts.answering(200, body))
    done = device("up", *options(server, server.token("P-1")))
    assert done.code == 8, done.text
    assert not device.file("device.pem").exists()


def spoil(certificate):
    return parse_certificate(certificate.der[:-1] + bytes([certificate.der[-1] ^ 1]))


def test_a_tampered_certificate_is_refused(server, device):
    server.answer = lambda certificates: [spoil(certificate) for certificate in certificates]
    done = device("up", *options(server, server.token("P-1")))
    assert done.code == 8
    assert not device.file("device.pem").exists()
    server.answer = lambda certificates: certificates
    assert device("up").code == 0  # the key was not lost, nor the certificate made for it
    assert len(server.issued) == 1


def test_a_certificate_for_another_key_is_refused(server, device, world):
    other = generate(KeyKind.P_256).public_key
    server.answer = lambda _: [world.issuing["ecc"].device(other, "P-1", "ecc-devices")]
    done = device("up", *options(server, server.token("P-1")))
    assert done.code == 8
    assert "another key" in done.err[-1]["text"]


def test_a_certificate_for_another_name_is_refused(server, device, world):
    server.answer = lambda found: [world.issuing["ecc"].device(found[0].public_key, "P-2", "ecc-devices")]
    assert device("up", *options(server, server.token("P-1"))).code == 8


def test_a_certificate_of_another_ca_is_refused(server, device, world):
    server.answer = lambda found: [world.maker["ecc"].device(found[0].public_key, "P-1", "ecc-devices")]
    done = device("up", *options(server, server.token("P-1")))
    assert done.code == 8
    assert "trusted root" in done.err[-1]["text"]


def test_the_chain_may_come_in_the_answer_itself(server, device, world):
    server.answer = lambda found: [world.issuing["ecc"].certificate, *found]
    assert device("up", *options(server, server.token("P-1"))).code == 0
    assert device.current() == server.issued[0]


@pytest.mark.parametrize(("status", "code"), [(400, 2), (403, 4), (404, 3), (409, 5), (413, 2), (302, 2)])
def test_final_answers_have_their_exit_codes(server, device, scripts, status, code):
    server.script.append(scripts.answering(status, b"the reason"))
    done = device("up", *options(server, server.token("P-1")))
    assert done.code == code
    assert "the reason" in done.err[-1]["text"]
    assert len(server.asked("simpleenroll")) == 1


def test_a_truncated_token_is_a_usage_error_that_does_not_show_it(server, device):
    token = server.token("P-1")[:-3]
    done = device("up", *options(server, token))
    assert done.code == 2
    assert token not in done.text
    assert server.seen == []


def test_token_file_and_stdin(server, device, tmp_path, monkeypatch):
    file = tmp_path / "token"
    file.write_text(server.token("P-1") + "\n")
    base = "--url", server.url, "--fleet", "ecc-devices", "--serial", "P-1"
    assert device("up", *base, "--token-file", file).code == 0
    monkeypatch.setattr("sys.stdin", io.StringIO(server.token("P-1") + "\n"))
    assert device("up", *base, "--token", "-", "--replace").code == 0
    assert len(server.issued) == 2


def test_a_foreign_folder_is_left_alone(server, device):
    device.state.mkdir(mode=0o755)
    (device.state / "precious").write_text("mine")
    assert device("up", *options(server, server.token("P-1"))).code == 5
    assert [path.name for path in device.state.iterdir()] == ["precious"]
    assert stat.S_IMODE(device.state.stat().st_mode) == 0o755


def test_without_anything_up_is_a_usage_error(device):
    assert device("up").code == 2
