"""From an installation to a platform: its trust list is published and followed, its devices judged, a revocation seen."""

from __future__ import annotations

import asyncio
import json
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterator
from datetime import timedelta

import pytest
from plant import Plant
from typer.testing import CliRunner
from validators import RunningValidator, validator

from ironroot.cli.main import app
from ironroot.settings import Settings
from ironroot.validator.publish import ensure_trust_list, publish, published
from ironroot.wire import installation
from pkix import pem
from validate.trust_limits import Limits
from validate.trustlist import read


@pytest.fixture(scope="module")
def list_pin(plant: Plant) -> str:
    """The pin of a list that is published now."""
    return str(plant.json("trust", "publish", "--days", "10")["pin"])


@pytest.fixture
def here(plant: Plant, list_pin: str) -> Iterator[RunningValidator]:
    with validator() as made:
        made.configure(recheck_seconds="0")
        made.follow(f"{plant.http_url}/trust/list.p7m", read(plant.get("/trust/list.p7m")).signer.hex(), "plant")
        made.start()
        yield made


def certificate(state) -> bytes:
    return pem.certificates((state / "device.pem").read_bytes())[0]


def within(plant: Plant, work):
    async def opened():
        async with installation(Settings.load(plant.home)) as found:
            return await work(found)

    return asyncio.run(opened())


@pytest.mark.parametrize("family", ["ecc", "sm2"])
def test_a_device_is_good_until_it_is_revoked(plant, here, family) -> None:
    serial = f"validator-{family}"
    chain = [certificate(plant.enrolled(f"{family}-devices", serial))]
    asked = {"purpose": "tls-client", "names": (f"device:{family}-devices/{serial}",)}
    verdict = here.ask(chain, **asked)
    assert (verdict.code, verdict.document["basis"][0]["source"]) == ("good", "ocsp")
    assert here.ask(chain, purpose="tls-client", names=(f"device:{family}-devices/other",)).code == "wrong_name"
    plant.run("cert", "revoke", serial, "--yes")
    here.until(lambda: here.ask(chain, **asked).code == "revoked")


def test_the_list_is_served_with_a_tag(plant, list_pin) -> None:
    with urllib.request.urlopen(f"{plant.http_url}/trust/list.p7m") as answer:
        raw, tag = answer.read(), answer.headers["ETag"]
        assert answer.headers["Content-Type"] == "application/pkcs7-mime; smime-type=signed-data"
    found = read(raw)
    assert found.signer.hex() == list_pin or found.list.introductions
    assert {a.certificate.subject.get("CN")[0] for a in found.list.anchors} == {"ecc-root", "sm2-root"}
    assert {c.subject.get("CN")[0] for c in found.list.intermediates} == {"ecc-issuing", "sm2-issuing"}
    again = urllib.request.Request(f"{plant.http_url}/trust/list.p7m", headers={"If-None-Match": tag})
    with pytest.raises(urllib.error.HTTPError, match="304"):
        urllib.request.urlopen(again)


def test_the_key_changes_and_followers_go_along(plant, here) -> None:
    before = read(plant.get("/trust/list.p7m"))
    made = plant.json("trust", "publish", "--rollover", "--algorithm", "sm2")
    assert (made["version"], made["pin"] != before.signer.hex()) == (before.list.version + 1, True)
    here.process.send_signal(1)
    stored = here.home / "lists" / "plant" / "list.p7m"
    here.until(lambda: read(stored.read_bytes()).signer.hex() == made["pin"])
    after = plant.json("trust", "publish")  # the new key goes on
    assert (after["version"], after["pin"]) == (made["version"] + 1, made["pin"])


def test_limits_stay_until_they_are_lifted(plant, list_pin) -> None:
    plant.run("trust", "publish", "--permit", "dns:plant-a.example", "--purpose", "tls-client", "--path-length", "1", "--family", "ecc")
    for _ in range(2):
        (anchor,) = published(Settings.load(plant.home)).list.anchors
        assert (anchor.purposes, anchor.path_length, anchor.name_constraints is None) == (frozenset(("tls-client",)), 1, False)
        within(plant, lambda here: publish(here, actor="tests"))
    within(plant, lambda here: publish(here, actor="tests", limits=Limits()))
    found = published(Settings.load(plant.home)).list
    assert [(a.purposes, a.path_length, a.name_constraints) for a in found.anchors] == [(frozenset(), None, None)] * 2
    for wrong in (("--permit", "nonsense"), ("--algorithm", "rot13")):
        assert CliRunner().invoke(app, ["trust", "publish", *wrong, "--home", str(plant.home)]).exit_code == 2
    assert published(Settings.load(plant.home)).list == found
    assert "trust.published" in plant.run("audit", "tail", "-n", "50").stdout


class Ahead:
    """A clock that is ahead."""

    def __init__(self, clock, by) -> None:
        self._clock, self._by = clock, by

    def now(self):
        return self._clock.now() + self._by


def test_it_is_renewed_in_time(plant, list_pin) -> None:
    """What the scheduler does: nothing while two thirds of its life are not over."""

    async def work(here) -> list[int]:
        versions, clock = [], here.clock
        await publish(here, days=10, actor="tests")
        for days in (0, 6, 7):
            here.clock = Ahead(clock, timedelta(days=days))
            await ensure_trust_list(here)
            versions.append(published(here.settings).list.version)
        here.clock = clock
        await publish(here, actor="tests")  # the one before is from the future
        return versions

    first, second, third = within(plant, work)
    assert (second - first, third - second) == (0, 1)


def test_an_installation_judges_its_own(plant) -> None:
    """On the TLS door, for who shows a certificate of ours; what was revoked a moment ago is revoked."""
    asking, judged = (plant.enrolled("ecc-devices", f"validator-{name}") for name in ("asks", "judged"))
    context = ssl.create_default_context(cafile=str(asking / "tls-trust.pem"))
    nobody = ssl.create_default_context(cafile=str(asking / "tls-trust.pem"))
    context.load_cert_chain(asking / "device.pem", asking / "device.key")
    document = {"certificate": (judged / "device.pem").read_text(), "purpose": "tls-client", "explain": True}

    def post(tls: ssl.SSLContext, body: object = document) -> tuple[int, dict]:
        request = urllib.request.Request(
            f"{plant.https_url}/api/v1/validate", json.dumps(body).encode(), {"Content-Type": "application/json"}, method="POST"
        )
        try:
            with urllib.request.urlopen(request, context=tls) as answer:
                return answer.status, json.loads(answer.read())
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read())

    status, verdict = post(context)
    assert (status, verdict["code"], len(verdict["basis"])) == (200, "good", 2)
    assert post(nobody)[0] == 401
    assert post(context, {"certificate": "?"})[0] == 400
    assert plant.status("/api/v1/validate") == 404  # not on the plain door
    plant.run("cert", "hold", "validator-judged", "--yes")
    assert post(context)[1]["code"] == "on_hold"
    plant.run("cert", "revoke", "validator-asks", "--yes")
    assert post(context)[0] == 401
    with urllib.request.urlopen(f"{plant.https_url}/api/v1/openapi.json", context=nobody) as answer:
        assert json.loads(answer.read())["openapi"] == "3.1.0"


def test_a_list_that_was_tampered_with_is_not_gone_on_with(plant, list_pin) -> None:
    file = plant.home / "trust" / "list.p7m"
    before = file.read_bytes()
    version = read(before).list.version
    try:
        file.write_bytes(before.replace(b'"version": ', b'"version": 9'))
        assert "not what was published" in plant.run("trust", "publish", expect=1).stderr
        file.unlink()
        assert plant.status("/trust/list.p7m") == 404
        made = within(plant, lambda here: publish(here, actor="tests", version=version + 5))
        assert made.list.version == version + 5
    finally:
        file.write_bytes(before)


def test_a_live_server(plant, here) -> None:
    target = f"localhost:{plant.https}"
    assert here.run("verify", target).stdout.startswith("Good: CN=ironroot-service")
    assert "is not for dns:scada-1" in here.run("verify", target, "--name", "dns:scada-1", expect=8).stdout
