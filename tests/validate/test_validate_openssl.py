"""A second opinion: ``openssl verify`` on the same certificates has to come to the same verdict."""

from __future__ import annotations

import subprocess
from datetime import timedelta

import pytest
from programs import need

from pkix import der, extensions
from pkix.algorithms import KeyKind
from pkix.crl import CrlEntry
from pkix.extensions import Extension
from pkix.name import name
from pkix.pem import encode
from validate.status import Revocation

GOLD, SILVER, ANY = "1.3.6.1.4.1.55738.1.1", "1.3.6.1.4.1.55738.1.2", "2.5.29.32.0"


def openssl(folder, leaf, chain, trust, now, *arguments, crls=()):
    """Whether ``openssl verify`` is content."""
    need("openssl")
    for file, parties in (("leaf.pem", [leaf]), ("chain.pem", chain), ("trust.pem", trust)):
        (folder / file).write_text("".join(party.certificate.pem for party in parties))
    command = ["openssl", "verify", "-attime", str(int(now.timestamp())), "-x509_strict", "-CAfile", "trust.pem", *arguments]
    if chain:
        command += ["-untrusted", "chain.pem"]
    if crls:
        (folder / "crls.pem").write_text("".join(encode("X509 CRL", crl) for crl in crls))
        command += ["-crl_check_all", "-CRLfile", "crls.pem"]
    done = subprocess.run([*command, "leaf.pem"], cwd=folder, capture_output=True, text=True, check=False)
    return done.returncode == 0 and "leaf.pem: OK" in done.stdout


def agree(pki, folder, leaf, chain, *arguments, now=None, crls=(), **asked):
    plant = pki.plant()
    now = now or pki.NOW
    result = plant.validate(leaf, chain=chain, now=now, more={"crls": crls, "status": Revocation()} if crls else None, **asked)
    assert openssl(folder, leaf, chain, [plant.root], now, *arguments, crls=crls) is result.good, result.sentence()
    return result.good


def test_time_purpose_and_names(pki, tmp_path):
    plant = pki.plant()
    both = [plant.issuing]
    assert agree(pki, tmp_path, plant.device, both, "-purpose", "sslclient", purpose="tls-client")
    assert not agree(pki, tmp_path, plant.device, both, "-purpose", "sslserver", purpose="tls-server")
    # At notAfter itself openssl says expired, RFC 5280 4.1.2.5 says valid.
    after, last = (plant.device.certificate.not_after + timedelta(seconds=step) for step in (1, -1))
    assert not agree(pki, tmp_path, plant.device, both, now=after)
    assert agree(pki, tmp_path, plant.device, both, now=last)
    assert not agree(pki, tmp_path, plant.device, [])
    host = pki.issue(plant.issuing, "host", names=("dns:*.plant.example", "ip:192.0.2.7"), purposes=("serverAuth",))
    for wanted in ("a.plant.example", "plant.example", "a.b.plant.example", "a.implant.example"):
        agree(pki, tmp_path, host, both, "-verify_hostname", wanted, names=(f"dns:{wanted}",))
    for wanted in ("192.0.2.7", "192.0.2.8"):
        agree(pki, tmp_path, host, both, "-verify_ip", wanted, names=(f"ip:{wanted}",))


def test_structure(pki, tmp_path):
    plant = pki.plant()
    forged = pki.issue(plant.issuing, "plc-7", signed_by=pki.issue(None, "mallory", ca=True))
    assert not agree(pki, tmp_path, forged, [plant.issuing])
    assert not agree(pki, tmp_path, pki.issue(plant.device, "rogue"), [plant.device, plant.issuing])
    lower = pki.issue(plant.issuing, "one too many", ca=True)
    assert not agree(pki, tmp_path, pki.issue(lower, "x"), [lower, plant.issuing])
    odd = Extension("1.3.6.1.4.1.55738.666.1", True, der.null())
    assert not agree(pki, tmp_path, pki.issue(plant.issuing, "x", extra=(odd,)), [plant.issuing])
    silent = pki.issue(plant.root, "crl only", ca=True, usage=("cRLSign",))
    assert not agree(pki, tmp_path, pki.issue(silent, "x"), [silent])


@pytest.mark.parametrize(
    ("permitted", "excluded", "names"),
    [
        (["dns:plant.example"], [], ["dns:plc-7.plant.example"]),
        (["dns:plant.example"], [], ["dns:implant.example"]),
        (["dns:plant.example"], ["dns:plc-7.plant.example"], ["dns:plc-7.plant.example"]),
        ([], ["dns:plant.example"], ["dns:elsewhere.example"]),
        (["dns:plant.example"], [], ["ip:192.0.2.7"]),
        (["net:c0000200ffffff00"], [], ["ip:192.0.2.7"]),
        (["net:c0000200ffffff00"], [], ["ip:192.0.3.7"]),
        (["email:plant.example"], [], ["email:op@plant.example"]),
        (["email:plant.example"], [], ["email:op@sub.plant.example"]),
        (["email:.plant.example"], [], ["email:op@sub.plant.example"]),
        (["uri:plant.example"], [], ["uri:https://plant.example/x"]),
        (["uri:.plant.example"], [], ["uri:https://plc-7.plant.example/"]),
        (["uri:.plant.example"], [], ["uri:urn:ironroot:device:x:plc-7"]),
        (["dir:example PLANT"], [], ["dns:a.example"]),
        (["dir:Other Plant"], [], ["dns:a.example"]),
        ([], ["dir:Example Plant"], ["dns:a.example"]),
    ],
)
def test_name_constraints(pki, tmp_path, permitted, excluded, names):
    def base(text: str) -> bytes:
        kind, _, value = text.partition(":")
        if kind == "dir":
            return der.context(4, name(("O", value)).der)
        number = {"email": 1, "dns": 2, "uri": 6, "net": 7}[kind]
        return der.context(number, bytes.fromhex(value) if kind == "net" else value.encode(), constructed=False)

    limits = pki.name_constraints(tuple(map(base, permitted)), tuple(map(base, excluded)))
    issuing = pki.issue(pki.plant().root, "limited", ca=True, extra=(limits,))
    agree(pki, tmp_path, pki.issue(issuing, "plc-7", names=tuple(names)), [issuing])


def policies(*oids: str) -> Extension:
    return extensions.certificate_policies(*oids)


def mappings(*pairs: tuple[str, str]) -> Extension:
    return Extension("2.5.29.33", True, der.sequence(*(der.sequence(der.oid(a), der.oid(b)) for a, b in pairs)))


def limits(explicit: int | None = None, mapping: int | None = None) -> Extension:
    parts = [der.context(at, bytes((value,)), constructed=False) for at, value in ((0, explicit), (1, mapping)) if value is not None]
    return Extension("2.5.29.36", True, der.sequence(*parts))


NO_ANY = Extension("2.5.29.54", True, der.integer(0))
ONE_ANY = Extension("2.5.29.54", True, der.integer(1))


@pytest.mark.parametrize("explicit", [True, False])
@pytest.mark.parametrize("wanted", [GOLD, SILVER])
@pytest.mark.parametrize(
    "levels",
    [
        [(policies(GOLD),), (policies(GOLD),)],
        [(policies(GOLD),), (policies(SILVER),)],
        [(policies(ANY),), (policies(GOLD),)],
        [(policies(GOLD),), (policies(ANY),)],
        [(), (policies(GOLD),)],
        [(policies(GOLD, SILVER),), (policies(SILVER),)],
        [(policies(GOLD), mappings((GOLD, SILVER))), (policies(SILVER),)],
        [(policies(GOLD), mappings((GOLD, SILVER))), (policies(GOLD),)],
        [(policies(ANY), mappings((GOLD, SILVER))), (policies(SILVER),)],
        [(policies(GOLD), limits(mapping=0)), (policies(GOLD), mappings((GOLD, SILVER))), (policies(SILVER),)],
        [(policies(GOLD), limits(mapping=0)), (policies(GOLD), mappings((GOLD, SILVER))), (policies(GOLD),)],
        [(policies(GOLD), limits(mapping=1)), (policies(GOLD), mappings((GOLD, SILVER))), (policies(SILVER),)],
        [(policies(GOLD), limits(explicit=1)), ()],
        [(policies(GOLD), NO_ANY), (policies(ANY),)],
        [(policies(GOLD), ONE_ANY), (policies(ANY),), (policies(GOLD),)],
        [(policies(GOLD), ONE_ANY), (policies(ANY),), (policies(ANY),)],
        [(limits(explicit=0),), ()],
        [(policies(GOLD), limits(explicit=0)), (policies(GOLD),)],
        [(policies(GOLD), limits(explicit=2)), ()],
        [(policies(GOLD), limits(explicit=1)), (policies(GOLD),), ()],
        [(policies(GOLD, SILVER), mappings((GOLD, SILVER), (SILVER, GOLD))), (policies(GOLD),)],
    ],
)
def test_certificate_policies(pki, tmp_path, levels, wanted, explicit):
    party, chain = pki.plant().root, []
    for number, extra in enumerate(levels[:-1]):
        party = pki.issue(party, f"policy ca {number}", ca=True, extra=extra)
        chain.append(party)
    leaf = pki.issue(party, "x", extra=levels[-1])
    arguments = ["-policy_check", "-policy", wanted, *(["-explicit_policy"] if explicit else [])]
    agree(pki, tmp_path, leaf, chain, *arguments, certificate_policies=frozenset((wanted,)), explicit_policy=explicit)


def test_crls(pki, tmp_path):
    plant = pki.plant()
    serial = plant.device.certificate.serial
    good = [plant.root.crl(), plant.issuing.crl(CrlEntry(1, pki.NOW, 1))]
    assert agree(pki, tmp_path, plant.device, [plant.issuing], status="offline", crls=good)
    for second in (
        plant.issuing.crl(CrlEntry(serial, pki.NOW - pki.DAY, 1)),
        plant.issuing.crl(CrlEntry(serial, pki.NOW - pki.DAY, 6)),
        plant.issuing.crl(this_update=pki.NOW - 2 * pki.DAY, next_update=pki.NOW - pki.DAY),
        plant.issuing.crl(signer=plant.root),
    ):
        assert not agree(pki, tmp_path, plant.device, [plant.issuing], status="offline", crls=[plant.root.crl(), second])
    assert not agree(pki, tmp_path, plant.device, [plant.issuing], status="offline", crls=good[:1])


def test_sm2_link_by_link(pki, tmp_path):
    """The distinguishing id that ``openssl verify`` is told reaches the first certificate of a chain only."""
    plant = pki.plant(KeyKind.SM2)
    sm2 = ("-partial_chain", "-vfyopt", "distid:1234567812345678")
    assert plant.validate().good
    assert openssl(tmp_path, plant.device, [], [plant.issuing], pki.NOW, *sm2)
    assert openssl(tmp_path, plant.issuing, [], [plant.root], pki.NOW, *sm2)
    forged = pki.issue(plant.issuing, "plc-7", KeyKind.SM2, signed_by=plant.root)
    assert not openssl(tmp_path, forged, [], [plant.issuing], pki.NOW, *sm2)
    assert plant.validate(forged).code == "bad_signature"
