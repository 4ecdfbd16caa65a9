"""The power goes: at every named point by SIGKILL, and at every single change of the disk; the disk fills up at every one, too.

What must hold: the pair in the folder is a pair at all times; the next command finishes; the server makes one certificate, for one key.
"""

from __future__ import annotations

import errno
import os
import threading

import pytest

from enroll.device.failpoint import POINTS, VARIABLE

ENROL = [point for point in POINTS if point != "previous-set"]
RENEW = ["key-made", "staged", "asked", "answer-half-stored", "answer-stored", "tried", "previous-set", "swapped"]
_CHANGES = ("rename", "symlink", "unlink", "mkdir", "rmdir", "fchmod")


def options(server, token, fleet):
    return "--url", server.url, "--fleet", fleet, "--serial", "P-1", "--token", token


@pytest.mark.parametrize(
    ("point", "fleet"), [(point, "ecc-devices") for point in ENROL] + [("asked", "sm2-devices"), ("tried", "sm2-devices")]
)
def test_killed_while_enrolling(server, device, point, fleet):
    asked = options(server, server.token("P-1"), fleet)
    assert device.program("up", *asked, **{VARIABLE: f"{point}:kill"}).code == -9
    if device.file("device.pem").exists():
        device.current()
    done = device("up", *asked)
    assert done.code == 0, done.text
    check(server, device, issued=1)
    assert not device.file("pending").exists()


@pytest.mark.parametrize("point", ["token-saved", "staged", "asked", "tried", "swapped"])
def test_killed_while_enrolling_then_run_carries_on(server, device, point):
    asked = options(server, server.token("P-1"), "ecc-devices")
    assert device.program("up", *asked, **{VARIABLE: f"{point}:kill"}).code == -9
    done = device("up")  # what ``run`` does first, without any option
    assert done.code == 0, done.text
    check(server, device, issued=1)


@pytest.mark.parametrize(("point", "family"), [(point, "ecc") for point in RENEW] + [("asked", "sm2"), ("swapped", "sm2")])
def test_killed_while_renewing(server, device, enrolled, point, family):
    old = enrolled(family)
    assert device.program("renew", **{VARIABLE: f"{point}:kill"}).code == -9
    held = device.current()
    assert (held == old) is (point != "swapped")
    assert device("status").code == 0
    done = device("renew")
    assert (done.code, done.out["action"]) == (0, "renewed"), done.text
    check(server, device, issued=2)
    assert device.current() != old


class PowerCut(BaseException):
    """Not an Exception: nothing but the end of the process comes after it."""


@pytest.fixture
def break_at(monkeypatch):
    """``break_at(n, error)``: the n-th change of the disk from now on raises ``error`` instead. Call what it returns to end this."""

    def arm(at, error):
        count = 0

        def counted(real):
            def change(*args, **kwargs):
                nonlocal count
                if threading.current_thread() is threading.main_thread():
                    count += 1
                    if count == at:
                        raise error
                return real(*args, **kwargs)

            return change

        with_patches = monkeypatch.context()
        patched = with_patches.__enter__()
        for name in _CHANGES:
            patched.setattr(os, name, counted(getattr(os, name)))

        def disarm():
            with_patches.__exit__(None, None, None)
            return count

        return disarm

    return arm


@pytest.mark.parametrize("family", ["ecc", "sm2"])
def test_the_power_goes_at_every_change_of_the_disk_while_renewing(server, device, enrolled, break_at, family):
    enrolled(family)
    for at in range(1, 200):
        before, issued = device.current(), len(server.issued)
        disarm = break_at(at, PowerCut())
        try:
            cut = False
            assert device("renew").code == 0
        except PowerCut:
            cut = True
        finally:
            disarm()
        held = device.current()
        assert held in (before, server.issued[-1])
        if cut:
            assert device("renew").code == 0
        check(server, device, issued=issued + 1)
        if not cut:
            break
    assert at > 15


def test_the_disk_fills_up_at_every_change_while_renewing(server, device, enrolled, break_at):
    enrolled("ecc")
    for at in range(1, 200):
        before, issued = device.current(), len(server.issued)
        disarm = break_at(at, OSError(errno.ENOSPC, "No space left on device"))
        try:
            done = device("renew", "--wait", "0")
        finally:
            made = disarm()
        assert device.current() in (before, server.issued[-1])
        if made < at:
            break
        if done.code:
            assert done.code == 7, done.text
            assert "No space left" in done.err[-1]["text"]
            assert device("renew").code == 0
        check(server, device, issued=issued + 1)
    assert at > 15


def test_the_power_goes_at_every_change_of_the_disk_while_enrolling(server, device, break_at):
    for at in range(1, 200):
        device.state = device.state.with_name(f"state{at}")
        server.issued.clear()
        asked = options(server, server.token("P-1"), "ecc-devices")
        disarm = break_at(at, PowerCut())
        try:
            cut = False
            assert device("up", *asked).code == 0
        except PowerCut:
            cut = True
        finally:
            disarm()
        if not cut:
            break
        done = device("up", *asked)
        assert done.code == 0, (at, done.text)
        check(server, device, issued=1)
        assert not device.file("pending").exists()
    assert at > 20


def check(server, device, issued):
    """The folder holds the one certificate that the server made last, nothing is half done, no key lies around."""
    assert device.current() == server.issued[-1]
    assert len(server.issued) == issued
    report = device("status")
    assert (report.code, report.out["unfinished"]) == (0, None)
    versions = {path.name for path in (device.state / "versions").iterdir()}
    named = {device.file(link).readlink().name for link in ("current", "previous") if device.file(link).is_symlink()}
    assert versions == named
    assert not device.file("current/request.json").exists()
