"""The parts by themselves: renewal window, waits, settings, paths, timeouts."""

from __future__ import annotations

import socket
import threading
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enroll.device import est
from enroll.device.clock import Clock
from enroll.device.credential import find_path
from enroll.device.schedule import Backoff, Renewal, parse_renewal, persist, renew_at
from enroll.device.settings import SERIAL, Settings, default_algorithm, from_json
from pkix.algorithms import KeyKind
from pkix.errors import Conflict, Limited, Malformed, NotValid, Pending, Unavailable
from pkix.extensions import basic_constraints, key_usage
from pkix.privatekey import generate

DAY = timedelta(days=1)
SERIALS = st.from_regex(SERIAL, fullmatch=True)


@pytest.fixture(scope="module")
def certificate(world):
    return world.issuing["ecc"].device(generate(KeyKind.P_256).public_key, "P-1", "ecc-devices", begins=timedelta(0), ends=100 * DAY)


def test_renewal_falls_in_the_twentieth_after_two_thirds_and_is_spread(certificate):
    lifetime = certificate.not_after - certificate.not_before
    offsets = [(renew_at(certificate, f"P-{number}", Renewal()) - certificate.not_before) / lifetime for number in range(2000)]
    assert 2 / 3 - 1e-6 <= min(offsets) < 0.669
    assert 0.714 < max(offsets) <= 2 / 3 + 0.05
    buckets = [sum(2 / 3 + 0.005 * n <= offset < 2 / 3 + 0.005 * (n + 1) for offset in offsets) for n in range(10)]
    assert min(buckets) > 100
    assert renew_at(certificate, "P-1", Renewal()) == renew_at(certificate, "P-1", Renewal())


def test_the_fleets_window_moves_the_renewal(certificate):
    lifetime = certificate.not_after - certificate.not_before
    offsets = [(renew_at(certificate, f"P-{number}", Renewal(0.2, 0.4)) - certificate.not_before) / lifetime for number in range(500)]
    assert 0.2 - 1e-6 <= min(offsets) < 0.21
    assert 0.59 < max(offsets) <= 0.6


@pytest.mark.parametrize(
    ("text", "expected"),
    [("0.667 0.05", (0.667, 0.05)), ("0.1 0.5", (0.1, 0.5)), ("0.9 0.05", (0.9, 0.05)), (" 0.5  1e-05\n", (0.5, 0.00001))],
)
def test_a_sane_renewal_is_taken_and_written_as_it_is_read(text, expected):
    renewal = parse_renewal(text)
    assert (renewal.after, renewal.window) == expected
    assert parse_renewal(str(renewal)) == renewal


@pytest.mark.parametrize(
    "text",
    ["", "0.5", "0.5 0.1 0.1", "soon later", "0.09 0.1", "0.91 0.01", "0.5 0", "0.5 -0.1", "0.4 0.51", "0.8 0.2", "nan 0.1", "0.5 nan"],
)
def test_any_other_renewal_leaves_the_defaults(text):
    assert parse_renewal(text) == Renewal()


@given(st.text())
def test_no_renewal_text_fails_or_is_unsafe(text):
    renewal = parse_renewal(text)
    assert renewal.after + renewal.window < 0.951


def test_waits_grow_with_full_jitter_and_never_pass_an_hour():
    backoff = Backoff()
    waits = [backoff.next(None) for _ in range(200)]
    assert all(0.2 <= wait <= 3600 for wait in waits)
    assert max(waits[:3]) <= 4
    assert max(waits) > 1800
    assert len(set(waits[20:])) > 100


@given(st.integers(0, 10**9))
def test_retry_after_is_honoured_up_to_an_hour(seconds):
    wait = Backoff().next(seconds)
    assert min(seconds, 3600) <= wait <= min(3600, max(0.2, seconds * 1.1))


class Failing:
    """An action that fails with each of ``reasons`` in turn and then succeeds."""

    def __init__(self, *reasons):
        self.reasons = list(reasons)

    def __call__(self):
        if self.reasons:
            raise self.reasons.pop(0)
        return "done"


@pytest.mark.parametrize("reason", [Unavailable("x"), Limited("x", retry_after=3), Conflict("x", retry_after=10)])
def test_what_passes_is_tried_again(reason):
    slept = []
    assert persist(Failing(reason, reason), seconds=30, approval=False, tell=lambda *_: None, sleep=slept.append) == "done"
    assert len(slept) == 2


def test_approval_is_awaited_only_if_asked():
    with pytest.raises(Pending):
        persist(Failing(Pending("x", retry_after=0)), seconds=30, approval=False, tell=lambda *_: None, sleep=pytest.fail)
    assert persist(Failing(Pending("x", retry_after=0)), seconds=30, approval=True, tell=lambda *_: None, sleep=lambda _: None) == "done"


def test_final_errors_and_long_waits_end_it_at_once():
    for reason in (Conflict("x"), Conflict("x", retry_after=31), Unavailable("x", retry_after=31)):
        with pytest.raises(type(reason)):
            persist(Failing(reason), seconds=30, approval=True, tell=lambda *_: None, sleep=pytest.fail)


@given(SERIALS, st.sampled_from(KeyKind), st.none() | st.tuples(st.text(), st.text()), st.none() | st.datetimes(timezones=st.just(UTC)))
def test_settings_are_read_as_they_were_written(serial, kind, idevid, time):
    settings = Settings("https://ca.example:8443/x", "ecc-devices", serial, kind, idevid, "0" * 64, time)
    assert from_json(settings.to_json().encode()) == settings


@given(st.binary() | st.from_regex(rb'\{"version": 1, "url": .*\}', fullmatch=True))
def test_any_other_state_is_malformed(data):
    with pytest.raises(Malformed):
        from_json(data)


@pytest.mark.parametrize(
    ("fleet", "kind"), [("sm2-devices", "sm2"), ("sm2-platforms", "sm2"), ("ecc-devices", "p-256"), ("line-7", "p-256")]
)
def test_the_fleet_says_which_key_by_default(fleet, kind):
    assert default_algorithm(fleet) == kind


def test_a_path_needs_real_cas(world):
    now, root = datetime.now(UTC), world.roots["ecc"]
    leaf_key, middle_key = generate(KeyKind.P_256), generate(KeyKind.P_256)

    def attempt(extensions, **times):
        middle = root.issue(middle_key.public_key, (("CN", "middle"),), extensions, **times)
        leaf = type(root)(middle_key, middle).device(leaf_key.public_key, "P-1", "ecc-devices")
        return find_path(leaf, [middle], [root.certificate], now) == [middle]

    assert attempt([basic_constraints(True), key_usage("keyCertSign")])
    for extensions, times in [
        ([], {}),
        ([basic_constraints(False), key_usage("keyCertSign")], {}),
        ([basic_constraints(True), key_usage("digitalSignature")], {}),
        ([basic_constraints(True), key_usage("keyCertSign")], {"ends": -DAY / 2}),
        ([basic_constraints(True), key_usage("keyCertSign")], {"begins": DAY}),
    ]:
        with pytest.raises(NotValid):
            attempt(extensions, **times)


def test_a_path_obeys_path_lengths_and_does_not_run_in_circles(world, scripts):
    issuing = world.issuing["ecc"]  # pathLenConstraint 0
    key = generate(KeyKind.P_256)
    below = issuing.issue(key.public_key, (("CN", "below"),), [basic_constraints(True), key_usage("keyCertSign")])
    leaf = type(issuing)(key, below).device(generate(KeyKind.P_256).public_key, "P-1", "ecc-devices")
    others = [below, issuing.certificate, world.roots["ecc"].certificate, world.maker["ecc"].certificate]
    with pytest.raises(NotValid):
        find_path(leaf, others, [world.roots["ecc"].certificate], datetime.now(UTC))
    circular = [scripts.new_ca("ring", "p-256").certificate for _ in range(4)]
    with pytest.raises(NotValid):
        find_path(leaf, circular, [], datetime.now(UTC))


def test_a_clock_learns_only_later_moments():
    clock, now = Clock(), datetime.now(UTC)
    assert not clock.behind
    clock.learn(now - 400 * DAY)
    assert abs(clock.now() - datetime.now(UTC)) < timedelta(minutes=1)
    clock.learn(now + 10 * DAY)
    assert clock.behind
    assert clock.now() >= now + 10 * DAY
    clock.learn(now + 5 * DAY)
    assert clock.now() >= now + 10 * DAY


@pytest.mark.parametrize("greeting", [b"", b"SSH-2.0-OpenSSH_9.2\r\n", b"\x15\x03\x01\x00\x02\x02\x28"])
def test_something_else_behind_the_port_is_unavailable(device, monkeypatch, greeting):
    monkeypatch.setattr(est, "TIMEOUT", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        held = []

        def accept():
            held.append(listener.accept()[0])
            held[0].sendall(greeting)

        thread = threading.Thread(target=accept)
        thread.start()
        url = f"https://127.0.0.1:{listener.getsockname()[1]}"
        token = f"{'A' * 43}.{'A' * 43}"
        done = device("up", "--url", url, "--fleet", "ecc-devices", "--serial", "P-1", "--token", token, "--wait", "0")
        thread.join()
        held[0].close()
    assert done.code == 7, done.text


def test_an_answer_that_drips_is_given_up(server, device, monkeypatch):
    monkeypatch.setattr(est, "DEADLINE", -1.0)
    done = device("up", "--url", server.url, "--fleet", "ecc-devices", "--serial", "P-1", "--token", server.token("P-1"), "--wait", "0")
    assert done.code == 7


def test_an_answer_that_is_cut_off_is_asked_for_again(server, device, monkeypatch):
    real, cut = est.http.client.HTTPResponse.read1, []

    def read1(self, n=-1):
        if not cut and self.length and self.length > 600:
            cut.append(real(self, 100))
            return b""
        return real(self, n)

    monkeypatch.setattr(est.http.client.HTTPResponse, "read1", read1)
    done = device("up", "--url", server.url, "--fleet", "ecc-devices", "--serial", "P-1", "--token", server.token("P-1"))
    assert done.code == 0, done.text
    assert cut
    assert len(server.issued) == 1
