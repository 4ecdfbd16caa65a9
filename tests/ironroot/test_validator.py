"""A validator beside a platform, as a process: no CA on its machine, lists that it follows, the CA away, files for mosquitto and nginx."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from small_pki import Shelf, SmallPki, issue, shelf, small_pki
from typer.testing import CliRunner
from validators import RunningValidator, validator

from ironroot.cli.main import app
from ironroot.clock import SystemClock
from ironroot.validator.follow import unfollow
from ironroot.validator.settings import ValidatorSettings
from ironroot.validator.trust import trusted
from pkix import pem
from pkix.algorithms import KeyKind
from pkix.errors import Conflict, Malformed, NotFound, NotValid, Unavailable
from validate.model import Anchor
from validate.trust_limits import Limits, narrow


@pytest.fixture
def on() -> Iterator[Shelf]:
    with shelf() as made:
        yield made


@pytest.fixture
def pki(on: Shelf) -> SmallPki:
    return small_pki(on)


@pytest.fixture
def here() -> Iterator[RunningValidator]:
    with validator() as made:
        yield made


@pytest.fixture
def following(here: RunningValidator, pki: SmallPki) -> RunningValidator:
    """Follows the list of ``pki``; not started yet."""
    here.configure()
    here.follow(pki.list_url, pki.pin, "plant")
    return here


def post(here: RunningValidator, document: object) -> tuple[int, dict]:
    request = urllib.request.Request(
        f"{here.url}/api/v1/validate", json.dumps(document).encode(), {"Content-Type": "application/json"}, method="POST"
    )
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def test_it_needs_no_ca() -> None:
    """Nothing of authorities, stores and HSMs is even loaded."""
    program = "import sys, ironroot.validator.service, ironroot.validator.sync; print(*{m.partition('.')[0] for m in sys.modules})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert {"validate", "pkix"} <= loaded
    assert not loaded & {"ca", "hsm_sim", "policies", "ocsp", "enroll", "sqlalchemy", "alembic"}


def test_a_platform_asks(following, pki) -> None:
    following.start()
    for verdict in (
        following.ask([pki.device.der], purpose="tls-client", names=("device:x/plc-7",)),
        following.ask([pki.device.der, pki.issuing.der]),
    ):
        assert (verdict.code, verdict.document["basis"][0]["source"]) == ("good", "crl")
    assert following.ask([pki.device.der], purpose="tls-server").code == "wrong_purpose"
    stranger = small_pki(pki.shelf, organization="Strangers")
    assert following.ask([stranger.device.der, stranger.issuing.der]).code in ("unknown_issuer", "untrusted_root")
    encoded = base64.b64encode(pki.device.der).decode()
    assert post(following, {"certificate": encoded})[1]["code"] == "good"
    assert post(following, {"certificate": "?"})[0] == 400
    mode = following.socket.stat().st_mode & 0o777
    assert (mode, following.stop()) == (0o600, 0)
    assert not following.socket.exists()


def test_the_ca_is_away(following, pki, on) -> None:
    """What was asked before is known, also after a restart; what was not is refused."""
    other = issue(pki.issuing, "plc-8", crl=pki.device.certificate.crl_urls)
    following.start()
    assert following.ask([pki.device.der]).good
    assert following.stop() == 0
    on.files.clear()
    following.start()
    assert "list_not_refreshed" in following.log
    assert following.ask([pki.device.der]).good
    assert following.ask([other.der]).good  # the same CRL speaks for it
    elsewhere = issue(pki.issuing, "plc-9", crl=(f"{on.url}/example-plant/other.crl",))
    assert following.ask([elsewhere.der]).code == "no_status"
    assert "status_from_disk" in following.log


def test_what_a_list_no_longer_trusts_is_not_trusted(following, pki) -> None:
    following.start()
    assert following.ask([pki.device.der]).good
    other = small_pki(pki.shelf, organization="Successor")
    pki.publish(anchors=(Anchor(other.root.certificate),))
    os.kill(following.process.pid, 1)  # SIGHUP: now, not in a quarter of an hour
    following.until(lambda: not following.ask([pki.device.der]).good)
    assert following.ask([other.device.der, other.issuing.der]).good
    # A list that went back, or came from somebody else, changes nothing.
    pki.version = 0
    pki.publish()
    following.process.send_signal(1)
    following.until(lambda: "no way back" in following.log)
    assert following.ask([other.device.der, other.issuing.der]).good


def test_lists_are_asked_for_by_their_tag(following, pki, on) -> None:
    following.start()
    following.process.send_signal(1)
    following.until(lambda: ("/example-plant/list.p7m", 304) in on.asked)


def test_a_list_that_is_over(here, pki) -> None:
    pki.publish(life=timedelta(hours=-1))
    here.configure()
    with pytest.raises(NotValid, match="was good until"):
        here.follow(pki.list_url, pki.pin)
    pki.publish()
    here.follow(pki.list_url, pki.pin)
    stored = here.home / "lists" / "list" / "list.p7m"
    stored.write_bytes(pki.publish(life=timedelta(hours=-1)))  # as if a month had passed
    assert "Nothing is trusted here" in here.run("validator", "serve", expect=3).stderr


def test_a_second_plant_under_limits(following, pki, on) -> None:
    """Its devices are good; its platforms, and names outside of what it was taken for, are not."""
    theirs = small_pki(on, organization="Plant B", names=("dns:plc-7.plant-b.example",))
    following.run(
        *("trust", "follow", theirs.list_url, "--pin", theirs.pin, "--name", "plant-b"),
        *("--permit", "dns:plant-b.example", "--purpose", "tls-client", "--family", "ecc"),
    )
    (limits,) = [row["limits"] for row in json.loads(following.run("trust", "show", "-o", "json").stdout) if row["name"] == "plant-b"]
    assert limits == {"permitted": ["dns:plant-b.example"], "families": ["ecc"], "purposes": ["tls-client"]}
    following.start()
    assert following.ask([theirs.device.der], purpose="tls-client", names=("dns:plc-7.plant-b.example",)).good
    spy = issue(theirs.issuing, "spy", names=("dns:scada.plant-a.example",), crl=theirs.device.certificate.crl_urls)
    assert following.ask([spy.der], purpose="tls-client").code == "name_constraint"
    assert not following.ask([theirs.server.der], purpose="tls-server").good
    assert following.ask([pki.server.der], purpose="tls-server").good  # ours are not limited
    following.run("trust", "unfollow", "plant-b")
    following.process.send_signal(1)
    following.until(lambda: not following.ask([theirs.device.der], purpose="tls-client").good)


def test_lists_are_shown(following, pki) -> None:
    (row,) = json.loads(following.run("trust", "show", "-o", "json").stdout)
    assert (row["name"], row["list"], row["version"], row["pin"]) == ("plant", "list", 1, pki.pin)
    stored = following.home / "lists" / "plant" / "list.p7m"
    shown = json.loads(following.run("trust", "show", stored, "-o", "json").stdout)
    assert shown["anchors"] == ["CN=Root,O=Example Plant"]
    assert shown["crl"] == [f"{pki.shelf.url}/example-plant/{name}.crl" for name in ("issuing", "root")]
    following.run("trust", "show", following.home / "validator.toml", expect=2)
    following.run("trust", "show", "no-such-file", expect=3)


def test_following_goes_wrong(here, pki) -> None:
    here.configure()
    url = pki.list_url
    assert "not the one pinned" in here.run("trust", "follow", url, "--pin", "0" * 64, expect=4).stderr
    for bad in ({"pin": "short"}, {"permitted": ["nonsense"]}, {"purposes": ["world-peace"]}, {"name": "../x"}, {"url": "file:///x"}):
        with pytest.raises(Malformed):
            here.follow(**({"url": url, "pin": pki.pin} | bad))
    with pytest.raises(Unavailable, match="HTTP status 404"):
        here.follow(f"{pki.shelf.url}/none.p7m", pki.pin)
    pki.shelf.files["/long.p7m"] = bytes((1 << 20) + 1)
    with pytest.raises(Unavailable, match="more than"):
        here.follow(f"{pki.shelf.url}/long.p7m", pki.pin)
    pki.shelf.files["/junk.p7m"] = b"junk"
    with pytest.raises(Malformed):
        here.follow(f"{pki.shelf.url}/junk.p7m", pki.pin)
    assert not (here.home / "lists" / "list").exists()
    here.follow(url, pki.pin)
    with pytest.raises(Conflict):
        here.follow(url, pki.pin)
    unfollow(here.home / "lists", "list")
    with pytest.raises(NotFound):
        unfollow(here.home / "lists", "list")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[listen]\nhttp = ['localhost:80']", "listen.http"),
        ("[listen]\nhttp = ['127.0.0.1:0']", "listen.http"),
        ("[policy]\nfamilies = ['rsa']", "policy.families"),
        ("[policy]\nfamilies = []", "policy.families"),
        ("[listen]\nsocket_mode = '0999'", "socket_mode"),
        ("[status]\nmode = 'maybe'", "status.mode"),
        ("[status]\nnetworks = ['everywhere']", "status.networks"),
        ("[nginx]\nproxies = ['nginx']", "nginx.proxies"),
        ("[trust]\nanchros = []", "anchros"),
        ("home = '/'", "is not a setting"),
        ("[", "validator.toml"),
        ("[trust]\nanchors = ['none.pem']", "none.pem"),
        ("[trust]\nanchors = ['validator.toml']", "validator.toml"),
    ],
)
def test_settings_that_are_wrong(here, text, said) -> None:
    (here.home / "validator.toml").write_text(text)
    with pytest.raises(NotFound if "none.pem" in text else Malformed, match=said):
        trusted(ValidatorSettings.load(here.home), [], SystemClock().now())


def test_two_of_one_folder(following) -> None:
    following.start()
    assert "Another validator serves" in following.run("validator", "serve", expect=5).stderr
    (following.home / "elsewhere").mkdir()
    config = following.home / "elsewhere" / "other.toml"
    config.write_text((following.home / "validator.toml").read_text().replace("anchors = []", f"anchors = ['{following.home}/a.pem']"))
    (following.home / "a.pem").write_text("nothing")
    command = [sys.executable, "-m", "ironroot.cli.main", "validator", "serve", "--config", str(config)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30, env=os.environ)
    assert (done.returncode, "a.pem" in done.stderr) == (2, True)


def test_anchors_by_hand(here, pki) -> None:
    (here.home / "anchors.pem").write_text(pki.root.certificate.pem)
    (here.home / "others.pem").write_text(pki.issuing.certificate.pem)
    here.configure(anchors='["anchors.pem"]', intermediates='["others.pem"]')
    here.start()
    assert here.ask([pki.device.der]).good
    here.stop()
    here.configure(allowed_hosts='["pki.elsewhere"]', networks="[]")
    here.start()
    verdict = here.ask([issue(pki.issuing, "new", crl=(f"{pki.shelf.url}/example-plant/new.crl",)).der])
    assert (verdict.code, "not among those that may be asked" in verdict.sentence()) == ("no_status", True)


def test_families_that_are_not_taken(following, pki) -> None:
    following.configure(families='["sm2"]')
    following.start()
    assert not following.ask([pki.device.der]).good


def test_sm2(here, on) -> None:
    pki = small_pki(on, KeyKind.SM2)
    here.configure()
    here.follow(pki.list_url, pki.pin)
    here.start()
    assert here.ask([pki.device.der], purpose="tls-client").good


# Files for others


def crls(folder: Path) -> list[bytes]:
    return [der for _, der in pem.decode((folder / "crl.pem").read_bytes(), "X509 CRL")]


def test_files_are_kept_fresh(following, pki, tmp_path) -> None:
    done = following.run("validator", "sync", "--to", tmp_path, "-o", "json")
    assert {row["issuer"] for row in json.loads(done.stdout)} == {"CN=Root,O=Example Plant", "CN=Issuing,O=Example Plant"}
    assert pem.certificates((tmp_path / "ca.pem").read_bytes()) == [pki.root.der, pki.issuing.der]
    first = crls(tmp_path)
    assert set(first) == {pki.shelf.files[f"/example-plant/{name}.crl"] for name in ("root", "issuing")}
    assert not following.sync(tmp_path).changed  # nothing new, nothing written
    pki.issuing.revoke(pki.device)
    newest = pki.shelf.files["/example-plant/issuing.crl"] = pki.issuing.crl()
    assert following.sync(tmp_path).changed
    assert newest in crls(tmp_path)
    pki.shelf.files.clear()
    report = following.sync(tmp_path)  # the CA is away, and what there is still holds
    assert (report.changed, report.problems, len(report.lists)) == (False, [], 2)


def test_what_is_no_newer_list_changes_no_file(following, pki, tmp_path) -> None:
    following.sync(tmp_path)
    first = crls(tmp_path)
    stranger = issue(None, "Issuing", ca=True, key=None)
    older = pki.issuing.crl(issued=pki.root.certificate.not_before)
    future = pki.issuing.crl(issued=pki.device.certificate.not_after)
    for said, octets in (
        ("", older),
        ("issuing.crl: ", b"junk"),
        ("not among the authorities", stranger.crl()),
        ("from the future", future),
    ):
        pki.shelf.files["/example-plant/issuing.crl"] = octets
        report = following.sync(tmp_path)
        assert (report.changed, crls(tmp_path)) == (False, first)
        assert said in " ".join(report.problems)
        assert bool(said) is bool(report.problems)


def test_a_list_that_cannot_be_renewed_is_said(following, pki, tmp_path) -> None:
    pki.shelf.files["/example-plant/issuing.crl"] = pki.issuing.crl(issued=pki.root.certificate.not_before, life=timedelta(minutes=1))
    said = following.run("validator", "sync", "--to", tmp_path, expect=7).stderr
    assert "no newer one can be had" in said


def test_a_program_is_told(following, pki, tmp_path) -> None:
    waiting = "import signal, sys; signal.signal(signal.SIGHUP, lambda *_: sys.exit(42)); print('x', flush=True); signal.pause()"
    with subprocess.Popen([sys.executable, "-c", waiting], stdout=subprocess.PIPE) as program:
        program.stdout.read(1)
        (tmp_path / "pid").write_text(f"{program.pid}\n")
        following.run("validator", "sync", "--to", tmp_path, "--reload", tmp_path / "pid")
        assert program.wait(10) == 42
    pki.publish()
    said = following.run("validator", "sync", "--to", tmp_path, "--reload", tmp_path / "pid").stderr
    assert "names no process" in said


# verify by what a validator trusts


def test_verify_by_the_validators_trust(following, pki, tmp_path) -> None:
    certificate, _ = pki.device.files(tmp_path)
    assert following.run("verify", certificate, "--name", "device:x/plc-7").stdout.startswith("Good: ")
    assert "plc-8" in following.run("verify", certificate, "--name", "device:x/plc-8", expect=8).stdout
    stranger, _ = small_pki(pki.shelf, organization="Strangers").device.files(tmp_path / "s")
    following.run("verify", stranger, expect=8)


def test_the_reasoning_as_a_tree(following, pki, tmp_path) -> None:
    certificate, _ = pki.device.files(tmp_path)
    lines = following.run("verify", certificate, "--explain", "--purpose", "client").stdout.splitlines()
    assert lines[0].startswith("Good: CN=plc-7")
    heads = [line.strip() for line in lines if line.startswith("  ") and line[2] != " "]
    assert heads[-3:] == ["CN=plc-7,O=Example Plant", "CN=Issuing,O=Example Plant", "CN=Root,O=Example Plant  (trust anchor)"]
    assert any("status: good (crl " in line and "until " in line for line in lines)
    chinese = following.run("verify", certificate, "--explain", env={"IRONROOT_LANG": "zh_CN", "PYTHONUTF8": "1"}).stdout
    assert chinese.startswith("有效：")
    assert "（信任锚）" in chinese or "(信任锚)" in chinese
    document = json.loads(following.run("verify", certificate, "--purpose", "server", "-o", "json", expect=8).stdout)
    assert (document["good"], document["code"]) == (False, "wrong_purpose")


def test_verify_goes_wrong(following, pki, tmp_path) -> None:
    certificate, _ = pki.device.files(tmp_path)
    (tmp_path / "staple").write_bytes(b"junk")
    for arguments, code in (
        ((certificate, "--purpose", "world-peace"), 2),
        ((certificate, "--name", "nonsense"), 2),
        ((tmp_path / "none.pem",), 3),
        ((following.home / "validator.toml",), 8),
        (("127.0.0.1:1",), 7),
        (("127.0.0.1:99999",), 2),
        ((certificate, "--staple", tmp_path / "staple"), 0),
    ):
        shown = CliRunner().invoke(app, ["verify", *map(str, arguments), "--home", str(following.home)])
        assert shown.exit_code == code, shown.output


def test_limits_of_a_publisher_and_of_a_follower_add_up(here, pki) -> None:
    """Its publisher says clients only; nobody can make servers of that."""
    narrowed = narrow(Anchor(pki.root.certificate), Limits(purposes=frozenset(("tls-client",))))
    pki.publish(anchors=(narrowed,))
    here.configure()
    here.follow(pki.list_url, pki.pin, purposes=["tls-server"])
    assert "Nothing is trusted" in here.run("validator", "serve", expect=3).stderr


def test_a_platform_without_its_validator(here, pki) -> None:
    with pytest.raises(Unavailable, match="cannot be asked"):
        here.ask([pki.device.der])
