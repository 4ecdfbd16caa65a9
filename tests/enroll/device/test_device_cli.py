"""What a person and a script see: help, status, language, exit codes; and what is imported."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from enroll.device.main import main

ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def plain(monkeypatch):
    for name in ("IRONROOT_LANG", "LC_ALL", "LC_MESSAGES", "LANG"):
        monkeypatch.delenv(name, raising=False)


def python(code, **environment):
    line = [sys.executable, "-W", "error", "-c", code]
    return subprocess.run(line, cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("command", [[], ["up"], ["renew"], ["run"], ["status"]])
def test_help_has_examples_and_exit_codes(capsys, command):
    assert main([*command, "--help"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("usage: ")
    assert "examples:\n  ironroot-device " in text
    assert "6 pending approval" in text


@pytest.mark.parametrize(
    ("environment", "chinese"),
    [
        ({"LANG": "zh_CN.UTF-8"}, True),
        ({"LC_MESSAGES": "zh_TW"}, True),
        ({"LC_ALL": "en_US.UTF-8", "LANG": "zh_CN.UTF-8"}, False),
        ({"IRONROOT_LANG": "zh", "LC_ALL": "C"}, True),
        ({"LANG": "de_DE"}, False),
        ({}, False),
    ],
)
def test_the_language_follows_the_locale(capsys, monkeypatch, environment, chinese):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert main(["up", "--help"]) == 0
    text = capsys.readouterr().out
    assert ("用法：" in text) is chinese
    assert ("state folder" in text) is not chinese


def test_every_help_text_is_translated(capsys, monkeypatch):
    monkeypatch.setenv("IRONROOT_LANG", "zh")
    for command in ("up", "renew", "run", "status"):
        assert main([command, "--help"]) == 0
        options = capsys.readouterr().out.split("示例：")[0].split("选项")[1]
        for entry in options.replace("\n                        ", " ").splitlines()[1:]:
            assert not entry.strip() or any("\u4e00" <= character <= "\u9fff" for character in entry), entry


@pytest.mark.parametrize(
    "line",
    [
        [],
        ["up"],
        ["fly", "--state", "x"],
        ["status", "--state", "x", "-o", "xml"],
        ["up", "--state", "x", "--token", "a", "--token-file", "b"],
        ["up", "--state", "x", "--wait", "-1"],
        ["up", "--state", "x", "--wait", "nan"],
    ],
)
def test_wrong_usage_is_2(capsys, line, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(line) == 2
    assert "usage: " in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--url", "http://ca.example"),
        ("--url", "https://user:secret@ca.example"),
        ("--url", "https://ca.example/?x=1"),
        ("--url", "https://"),
        ("--url", "https://ca.example:99999"),
        ("--serial", "../../etc"),
        ("--serial", "x" * 65),
        ("--fleet", "a/b"),
        ("--algorithm", "rot13"),
        ("--ca-sha256", "abc"),
        ("--token", ""),
        ("--token", "hunter2"),
    ],
)
def test_a_bad_value_is_2_with_a_sentence_that_names_it(device, option, value):
    good = {"--url": "https://ca.example", "--fleet": "ecc-devices", "--serial": "P-1", "--token": f"{'A' * 43}.{'A' * 43}"}
    done = device("up", *(part for pair in (good | {option: value}).items() for part in pair))
    assert done.code == 2, done.text
    assert option.strip("-") in done.err[-1]["text"]
    assert "secret" not in done.text
    assert "hunter2" not in done.text


@pytest.mark.parametrize("options", [["--token-file", "missing"], ["--idevid", "missing.pem", "missing.key"]])
def test_a_missing_file_is_3(device, tmp_path, monkeypatch, options):
    monkeypatch.chdir(tmp_path)
    done = device("up", "--url", "https://ca.example", "--fleet", "ecc-devices", "--serial", "P-1", *options)
    assert done.code == 3
    assert "missing" in done.err[-1]["text"]


def test_an_idevid_key_that_is_not_the_certificates_is_told(device, idevid):
    (certificate, _), (_, key) = idevid("ecc"), idevid("sm2")
    done = device("up", "--url", "https://ca.example", "--fleet", "ecc-devices", "--serial", "P-1", "--idevid", certificate, key)
    assert done.code == 2
    assert "is not the key" in done.err[-1]["text"]


def test_status_of_nothing_is_3_and_leaves_no_trace(device):
    done = device("status")
    assert (done.code, done.out["state"]) == (3, "none")
    assert not device.state.exists()


def test_status_as_json(server, device, enrolled):
    certificate = enrolled("ecc")
    done = device("status")
    assert done.code == 0
    assert done.out["state"] == "enrolled"
    assert done.out["problem"] is None
    assert done.out["certificate"]["sha256"] == certificate.sha256.hex()
    assert int(done.out["certificate"]["serial"], 16) == certificate.serial
    assert done.out["certificate"]["names"] == ["uri:urn:ironroot:device:ecc-devices:P-1"]
    assert certificate.not_before.strftime("%FT%TZ") == done.out["certificate"]["not_before"]
    assert done.out["certificate"]["not_before"] < done.out["renew_at"] < done.out["certificate"]["not_after"]
    assert (done.out["renewal_due"], done.out["unfinished"], done.out["clock_behind"]) == (False, None, False)


def test_status_for_a_person_in_both_languages(server, device, enrolled, capsys, monkeypatch):
    enrolled("sm2")
    assert main(["status", "--state", str(device.state)]) == 0
    english = capsys.readouterr().out
    assert "state:       enrolled\n" in english
    assert "P-1 (sm2-devices, sm2)" in english
    monkeypatch.setenv("LANG", "zh_CN.UTF-8")
    assert main(["status", "--state", str(device.state)]) == 0
    assert "已注册" in capsys.readouterr().out


def test_status_says_what_is_wrong(server, device, enrolled, expire, scripts):
    enrolled("ecc")
    device.file("current/trust.pem").write_text(scripts.new_ca("other", "p-256").certificate.pem)
    done = device("status")
    assert (done.code, done.out["state"]) == (8, "invalid")
    assert "trusted root" in done.out["problem"]
    expire()
    assert "valid from" in device("status").out["problem"]


def test_a_damaged_state_is_told_and_can_be_given_anew(server, device, enrolled):
    enrolled("ecc")
    for damage in (b"{", b"[]", b"{}", b'{"version": 2}', b"\xff"):
        device.file("state.json").write_bytes(damage)
        for command in ("status", "renew", "run", "up"):
            done = device(command)
            assert done.code == 2, (damage, command, done.text)
            assert "state.json" in done.err[-1]["text"]
    done = device("up", "--url", server.url, "--fleet", "ecc-devices", "--serial", "P-1", "--token", server.token("P-1"))
    assert done.code == 0, done.text


def test_chinese_on_a_terminal_without_it_does_not_fail():
    code = "import sys; from enroll.device.main import main; sys.exit(main(['up', '--help']))"
    done = python(code, IRONROOT_LANG="zh", PYTHONIOENCODING="ascii", LC_ALL="C")
    assert (done.returncode, done.stderr) == (0, "")


def test_output_to_a_closed_pipe_is_no_traceback(server, device, enrolled):
    enrolled("ecc")
    line = f"{sys.executable} -m enroll.device status -o json --state {device.state} | true"
    done = subprocess.run(["bash", "-c", line], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert "Traceback" not in done.stderr
    assert "Exception" not in done.stderr


def test_help_imports_nothing_heavy():
    code = "import sys; from enroll.device.main import main; main(['--help']); print([m for m in sys.modules if m.split('.')[0] in %r])"
    done = python(code % (("pkix", "cryptography", "ssl", "http"),))
    assert done.stdout.splitlines()[-1] == "[]"


def test_the_agent_needs_only_the_standard_library_and_pkix():
    code = """
import json, sys
before = set(sys.modules)
import enroll.device.commands
print(json.dumps(sorted({name.split(".")[0] for name in set(sys.modules) - before} - set(sys.stdlib_module_names))))
"""
    loaded = {name for name in json.loads(python(code).stdout) if not name.startswith("_")}
    assert loaded == {"enroll", "pkix", "cryptography"}


def test_a_token_that_begins_with_a_dash_is_a_token(server, device):
    token = f"-{'A' * 42}.{server.token('P-1').split('.')[1]}"
    server.tokens["P-1"] = token
    done = device("up", "--url", server.url, "--fleet", "ecc-devices", "--serial", "P-1", "--token", token)
    assert done.code == 0, done.text
