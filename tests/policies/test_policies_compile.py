"""What the default profiles issue, seen by OpenSSL and by cryptography; lifetimes to the second; hostile names."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pkix.algorithms import SIGNATURES, KeyKind
from pkix.certificate import Certificate, assemble, build_tbs, parse_certificate
from pkix.errors import IronrootError, Malformed, Refused, Unavailable
from pkix.extensions import basic_constraints, key_usage, subject_key_identifier
from pkix.name import name
from pkix.privatekey import generate
from policies.compile import Compiled, Urls
from policies.lint import lint
from policies.loader import DEFAULTS, load
from policies.model import DEVICE, Profile

PROFILES = load(DEFAULTS).profiles
ID = "distid:1234567812345678"
SECOND = timedelta(seconds=1)

# Extension as openssl x509 -text calls it: critical, what it says.
CRL = ("X509v3 CRL Distribution Points", False, "Full Name: URI:http://pki.test/crl/a.crl")
ACCESS = ("Authority Information Access", False, "OCSP - URI:http://pki.test/ocsp CA Issuers - URI:http://pki.test/aia/a.cer")
ISSUER_ONLY = ("Authority Information Access", False, "CA Issuers - URI:http://pki.test/aia/a.cer")
SKI, AKI = ("X509v3 Subject Key Identifier", False, None), ("X509v3 Authority Key Identifier", False, None)


def usage(text: str) -> tuple[str, bool, str]:
    return ("X509v3 Key Usage", True, text)


def purpose(text: str) -> tuple[str, bool, str]:
    return ("X509v3 Extended Key Usage", False, text)


def names(text: str) -> tuple[str, bool, str]:
    return ("X509v3 Subject Alternative Name", False, text)


def constraints(text: str) -> tuple[str, bool, str]:
    return ("X509v3 Basic Constraints", True, text)


CA = usage("Certificate Sign, CRL Sign")
BOTH = "TLS Web Server Authentication, TLS Web Client Authentication"
GOLDEN: dict[str, list[tuple[str, bool, str | None]]] = {
    "ecc-root": [constraints("CA:TRUE"), CA, SKI],
    "sm2-root": [constraints("CA:TRUE"), CA, SKI],
    "ecc-issuing": [constraints("CA:TRUE, pathlen:0"), CA, CRL, ACCESS, AKI, SKI],
    "sm2-issuing": [constraints("CA:TRUE, pathlen:0"), CA, CRL, ACCESS, AKI, SKI],
    "ecc-ocsp": [usage("Digital Signature"), purpose("OCSP Signing"), ("OCSP No Check", False, None), ISSUER_ONLY, AKI, SKI],
    "sm2-ocsp": [usage("Digital Signature"), purpose("OCSP Signing"), ("OCSP No Check", False, None), ISSUER_ONLY, AKI, SKI],
    "ecc-device": [usage("Digital Signature"), purpose("TLS Web Client Authentication"), CRL, ACCESS, AKI, SKI,
                   names("URI:urn:ironroot:device:ecc-devices:press-7")],
    "sm2-device": [usage("Digital Signature, Non Repudiation"), purpose("TLS Web Client Authentication"), CRL, ACCESS, AKI, SKI,
                   names("URI:urn:ironroot:device:sm2-devices:press-7")],
    "ecc-platform": [usage("Digital Signature"), purpose(BOTH), CRL, ACCESS, AKI, SKI,
                     names("DNS:press-7, URI:urn:ironroot:device:ecc-platforms:press-7, DNS:localhost, IP Address:127.0.0.1")],
    "sm2-platform": [usage("Digital Signature, Non Repudiation"), purpose(BOTH), CRL, ACCESS, AKI, SKI,
                     names("DNS:press-7, URI:urn:ironroot:device:sm2-platforms:press-7, DNS:localhost, IP Address:127.0.0.1")],
}  # fmt: skip


def issued(world: Callable[[str], Any], profile: str) -> Certificate:
    family, _, kind = profile.partition("-")
    hierarchy = world(family)
    if kind == "root":
        return hierarchy.root
    if kind == "issuing":
        return hierarchy.issuing
    return hierarchy.signed(kind, names=("dns:localhost", "ip:127.0.0.1") if kind == "platform" else ())


def openssl(*arguments: str) -> str:
    return subprocess.run(["openssl", *arguments], check=True, capture_output=True, text=True).stdout


def extensions_by_openssl(certificate: Certificate, tmp_path: Path) -> list[tuple[str, bool, str]]:
    path = tmp_path / "c.pem"
    path.write_text(certificate.pem)
    text = openssl("x509", "-in", str(path), "-noout", "-text")
    section = re.search(r"X509v3 extensions:\n(.*?)\n    Signature Algorithm", text, re.S)
    assert section
    found: list[list[str]] = []
    for line in section[1].splitlines():
        if line.startswith(" " * 16):
            found[-1].append(line.strip())
        elif line.strip():
            found.append([line.strip()])
    return [(head.partition(":")[0], head.endswith(": critical"), " ".join(filter(None, rest))) for head, *rest in found]


@pytest.mark.parametrize("profile", sorted(PROFILES))
def test_extensions_as_openssl_shows_them(world: Callable[[str], Any], profile: str, tmp_path: Path) -> None:
    found = extensions_by_openssl(issued(world, profile), tmp_path)
    assert [(name, critical) for name, critical, _ in found] == [(name, critical) for name, critical, _ in GOLDEN[profile]]
    for (name_, _, text), (_, _, wanted) in zip(found, GOLDEN[profile], strict=True):
        assert wanted is None or text == wanted, name_


@pytest.mark.parametrize("profile", sorted(PROFILES))
def test_fields_as_cryptography_reads_them(world: Callable[[str], Any], profile: str) -> None:
    certificate = issued(world, profile)
    read = x509.load_der_x509_certificate(certificate.der)
    chosen = PROFILES[profile]
    device = profile if chosen.is_ca else "press-7"
    wanted = [("2.5.4.6", "CN"), ("2.5.4.10", "Example Plant"), ("2.5.4.3", device)]
    if profile.endswith("-device"):
        wanted.append(("2.5.4.5", "press-7"))
    assert [(attribute.oid.dotted_string, attribute.value) for attribute in read.subject] == wanted
    assert read.version is x509.Version.v3
    assert 0x40 <= read.serial_number >> 120 <= 0x7F
    assert len(read.extensions) == len(GOLDEN[profile])
    length = read.not_valid_after_utc - read.not_valid_before_utc + SECOND
    hierarchy = world(profile[:3])
    assert length == chosen.validity
    assert read.not_valid_before_utc == max(hierarchy.now - chosen.backdate, hierarchy.root.not_before)
    if chosen.kind != "root":
        issuer = hierarchy.root if chosen.kind == "issuing" else hierarchy.issuing
        identifier = read.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value
        assert identifier == x509.AuthorityKeyIdentifier(issuer.ski, None, None)
        assert certificate.issuer == issuer.subject


@pytest.mark.parametrize("profile", sorted(PROFILES))
def test_lint_has_nothing_against_them(world: Callable[[str], Any], profile: str) -> None:
    certificate, hierarchy = issued(world, profile), world(profile[:3])
    issuer = {"root": None, "issuing": hierarchy.root}.get(PROFILES[profile].kind, hierarchy.issuing)
    assert lint(certificate.tbs, PROFILES[profile], issuer, hierarchy.signature) == []


@pytest.mark.parametrize(("leaf", "purpose"), [("device", "sslclient"), ("platform", "sslclient"), ("platform", "sslserver")])
def test_openssl_validates_the_ecc_chain(world: Callable[[str], Any], leaf: str, purpose: str, tmp_path: Path) -> None:
    hierarchy = world("ecc")
    for file, certificate in (("root", hierarchy.root), ("issuing", hierarchy.issuing), ("leaf", hierarchy.signed(leaf))):
        (tmp_path / file).write_text(certificate.pem)
    at = str(int(hierarchy.now.timestamp()))
    arguments = ["-x509_strict", "-purpose", purpose, "-attime", at, "-CAfile", f"{tmp_path}/root", "-untrusted", f"{tmp_path}/issuing"]
    assert "leaf: OK" in openssl("verify", *arguments, f"{tmp_path}/leaf")


def test_openssl_refuses_a_device_as_server(world: Callable[[str], Any], tmp_path: Path) -> None:
    hierarchy = world("ecc")
    for file, certificate in (("issuing", hierarchy.issuing), ("leaf", hierarchy.signed("device"))):
        (tmp_path / file).write_text(certificate.pem)
    at = str(int(hierarchy.now.timestamp()))
    arguments = ["-partial_chain", "-purpose", "sslserver", "-attime", at, "-CAfile", f"{tmp_path}/issuing"]
    with pytest.raises(subprocess.CalledProcessError):
        openssl("verify", *arguments, f"{tmp_path}/leaf")


@pytest.mark.parametrize("leaf", ["device", "platform"])
def test_openssl_validates_the_sm2_chain_link_by_link(world: Callable[[str], Any], leaf: str, tmp_path: Path) -> None:
    hierarchy = world("sm2")
    for file, certificate in (("root", hierarchy.root), ("issuing", hierarchy.issuing), ("leaf", hierarchy.signed(leaf))):
        (tmp_path / file).write_text(certificate.pem)
    at = str(int(hierarchy.now.timestamp()))
    for above, below in (("root", "issuing"), ("issuing", "leaf")):
        arguments = ["-vfyopt", ID, "-attime", at, "-partial_chain", "-CAfile", f"{tmp_path}/{above}", f"{tmp_path}/{below}"]
        assert f"{below}: OK" in openssl("verify", *arguments)


# --- lifetimes ----------------------------------------------------------------------------------------------------------

_key = generate(KeyKind.P_256)
_leaf_key = generate(KeyKind.P_256).public_key
_signature = SIGNATURES[KeyKind.P_256]
_urls = Urls("http://p/c", "http://p/o", "http://p/i")


def authority(
    not_before: datetime,
    not_after: datetime,
    *,
    path_length: int | None = None,
    usages: tuple[str, ...] = ("keyCertSign",),
    ca: bool = True,
) -> Any:
    """An issuer's certificate with these dates; nothing here looks at its signature."""
    subject = name(("CN", "issuer"))
    tbs = build_tbs(
        serial=1,
        issuer=subject,
        subject=subject,
        not_before=not_before,
        not_after=not_after,
        public_key=_key.public_key,
        signature=_signature,
        extensions=[basic_constraints(ca, path_length), key_usage(*usages), subject_key_identifier(_key.public_key)],
    )
    return parse_certificate(assemble(tbs, _signature, b"\0"))


def leaf(compiled: Compiled, now: datetime, **identity: Any) -> Any:
    values = {"fleet": "ecc-devices", "device": "press-7"} | identity
    return compiled.tbs(serial=1 << 126, now=now, subject_key=_leaf_key, **values)


def profile_with(base: str = "ecc-device", **changes: Any) -> Profile:
    return Profile.model_validate(PROFILES[base].model_dump() | changes)


moments = st.datetimes(datetime(2000, 1, 1), datetime(2090, 1, 1)).map(lambda moment: moment.replace(tzinfo=UTC))


@settings(max_examples=300, deadline=None)
@given(
    now=moments,
    seconds=st.integers(600, 5 * 365 * 86400),
    backdate=st.integers(0, 86400),
    age=st.integers(0, 3 * 10**8),
    rest=st.integers(0, 3 * 10**8),
)
def test_lifetime_is_exact_or_cut_at_the_issuer(now: datetime, seconds: int, backdate: int, age: int, rest: int) -> None:
    assume(backdate * 2 <= seconds)
    whole = now.replace(microsecond=0)
    issuer = authority(whole - timedelta(seconds=age), whole + timedelta(seconds=rest))
    validity = timedelta(seconds=seconds)
    compiled = Compiled(profile_with(validity=validity, backdate=timedelta(seconds=backdate)), issuer, _signature, _urls, "P", None)
    built = leaf(compiled, now)
    read = x509.load_der_x509_certificate(assemble(built.der, _signature, b"\0"))
    begin, end = read.not_valid_before_utc, read.not_valid_after_utc
    assert (begin, end) == (built.not_before, built.not_after)
    assert begin == max(whole - timedelta(seconds=backdate), issuer.not_before)
    assert end - begin + SECOND == validity if begin + validity - SECOND <= issuer.not_after else end == issuer.not_after
    assert issuer.not_before <= begin <= whole <= end <= issuer.not_after
    assert lint(built.der, compiled.profile, issuer, _signature) == []


def test_the_last_second_of_2049_and_the_first_of_2050() -> None:
    issuer = authority(datetime(2040, 1, 1, tzinfo=UTC), datetime(2060, 1, 1, tzinfo=UTC))
    compiled = Compiled(profile_with(validity=timedelta(days=1), backdate=timedelta(0)), issuer, _signature, _urls, "P", None)
    for second in range(2):
        built = leaf(compiled, datetime(2049, 12, 31, 0, 0, second, tzinfo=UTC))
        assert lint(built.der, compiled.profile, issuer, _signature) == []
    last = leaf(compiled, datetime(2049, 12, 31, 0, 0, 0, tzinfo=UTC)).der
    assert b"\x30\x1e\x17\x0d491231000000Z\x17\x0d491231235959Z" in last
    first = leaf(compiled, datetime(2049, 12, 31, 0, 0, 1, tzinfo=UTC)).der
    assert b"\x30\x20\x17\x0d491231000001Z\x18\x0f20500101000000Z" in first


def test_time_zone_of_now_does_not_matter() -> None:
    from zoneinfo import ZoneInfo

    issuer = authority(datetime(2026, 1, 1, tzinfo=UTC), datetime(2036, 1, 1, tzinfo=UTC))
    compiled = Compiled(PROFILES["ecc-device"], issuer, _signature, _urls, "P", None)
    moment = datetime(2026, 11, 23, 12, 0, 0, 999999, tzinfo=UTC)
    there = moment.astimezone(ZoneInfo("Asia/Shanghai"))
    assert leaf(compiled, there).der == leaf(compiled, moment).der == leaf(compiled, moment.replace(microsecond=0)).der


def test_an_issuer_that_has_ended_or_not_begun() -> None:
    issuer = authority(datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 12, 31, 23, 59, 59, tzinfo=UTC))
    compiled = Compiled(PROFILES["ecc-device"], issuer, _signature, _urls, "P", None)
    assert leaf(compiled, datetime(2026, 12, 31, 23, 59, 59, tzinfo=UTC)).not_after == issuer.not_after
    with pytest.raises(Unavailable, match="ended on 2026-12-31"):
        leaf(compiled, datetime(2027, 1, 1, tzinfo=UTC))
    with pytest.raises(Unavailable, match="clock"):
        leaf(compiled, datetime(2025, 12, 31, 23, 59, 59, tzinfo=UTC))


# --- what goes in -------------------------------------------------------------------------------------------------------

ISSUER = authority(datetime(2026, 1, 1, tzinfo=UTC), datetime(2036, 1, 1, tzinfo=UTC))
NOW = datetime(2026, 11, 23, tzinfo=UTC)
HOSTILE = [
    "",
    "-a",
    ".a",
    "a/b",
    "../../etc",
    "a b",
    "a\n",
    "a\x00b",
    "é",
    "x" * 65,
    "{fleet}",
    "a{device}",
    "dev1,O=Admin",
    "a+CN=b",
    "%41",
    "a:b",
]


@pytest.mark.parametrize("device", HOSTILE)
@pytest.mark.parametrize("profile", ["ecc-device", "ecc-platform"])
def test_hostile_serials_are_refused(profile: str, device: str) -> None:
    with pytest.raises(Malformed, match="serial number"):
        leaf(Compiled(PROFILES[profile], ISSUER, _signature, _urls, "P", None), NOW, device=device)


@pytest.mark.parametrize("fleet", ["", "a/b", "a:b", "A", "{device}", "ecc-devices:x", "a\n"])
def test_hostile_fleets_are_refused(fleet: str) -> None:
    with pytest.raises(Malformed, match="no fleet"):
        leaf(Compiled(PROFILES["ecc-device"], ISSUER, _signature, _urls, "P", None), NOW, fleet=fleet)


@settings(max_examples=300, deadline=None)
@given(device=st.from_regex(r"[A-Za-z0-9._%:/{}*-]{1,70}", fullmatch=True) | st.text(max_size=70) | st.from_regex(DEVICE, fullmatch=True))
def test_a_serial_stays_itself_or_is_refused(device: str) -> None:
    compiled = Compiled(PROFILES["ecc-platform"], ISSUER, _signature, _urls, "P", None)
    try:
        built = leaf(compiled, NOW, fleet="ecc-platforms", device=device)
    except Malformed:
        assert not DEVICE.fullmatch(device)
        return
    assert DEVICE.fullmatch(device)
    read = parse_certificate(assemble(built.der, _signature, b"\0"))
    assert read.subject.get("CN") == [device]
    assert [text for text in read.names if text.startswith("uri:")] == [f"uri:urn:ironroot:device:ecc-platforms:{device}"]
    assert len(read.names) <= 2
    assert lint(built.der, compiled.profile, ISSUER, _signature, fleet="ecc-platforms", device=device, names=()) == []


@pytest.mark.parametrize(
    "organization", ["Plant, O=Admin", "Plant+CN=root", "{device}", "{fleet}{country}", 'quo"te\\', "工厂", "#3030", " lead"]
)
def test_an_organization_stays_one_value(organization: str) -> None:
    compiled = Compiled(PROFILES["ecc-device"], ISSUER, _signature, _urls, organization, "CN")
    read = x509.load_der_x509_certificate(assemble(leaf(compiled, NOW).der, _signature, b"\0"))
    assert [attribute.value for attribute in read.subject] == ["CN", organization, "press-7", "press-7"]
    assert all(len(rdn) == 1 for rdn in read.subject.rdns)


@pytest.mark.parametrize(
    ("organization", "country"), [("", "CN"), ("x" * 65, "CN"), ("a\nb", None), ("a\u202eb", None), ("P", "CHN"), ("P", "\u00e7n")]
)
def test_settings_that_no_name_holds_are_refused_at_once(organization: str, country: str | None) -> None:
    with pytest.raises(Malformed):
        Compiled(PROFILES["ecc-device"], ISSUER, _signature, _urls, organization, country)


def test_country_is_left_out_where_there_is_none() -> None:
    assert (
        leaf(Compiled(PROFILES["ecc-device"], ISSUER, _signature, _urls, "P", None), NOW).subject.text
        == "serialNumber=press-7,CN=press-7,O=P"
    )


@pytest.mark.parametrize(
    ("device", "wanted"),
    [
        ("localhost", "dns:localhost"),
        ("Gateway.Plant", "dns:gateway.plant"),
        ("10.0.0.1", None),
        ("0x7f", None),
        ("a..b", None),
        ("a.", None),
        ("a-.b", None),
    ],
)
def test_a_platforms_serial_is_a_dns_name_only_if_it_is_a_host_name(device: str, wanted: str | None) -> None:
    built = leaf(Compiled(PROFILES["ecc-platform"], ISSUER, _signature, _urls, "P", None), NOW, device=device)
    found = parse_certificate(assemble(built.der, _signature, b"\0")).names
    assert [text for text in found if text.startswith("dns:")] == ([wanted] if wanted else [])


def test_vouched_names_once_each_in_order() -> None:
    compiled = Compiled(PROFILES["ecc-platform"], ISSUER, _signature, _urls, "P", None)
    built = leaf(compiled, NOW, device="gw", names=("dns:gw", "ip:::1", "dns:a.b", "ip:::1"))
    assert parse_certificate(assemble(built.der, _signature, b"\0")).names == (
        "dns:gw",
        "uri:urn:ironroot:device:ecc-devices:gw",
        "ip:::1",
        "dns:a.b",
    )


@pytest.mark.parametrize(
    "text", ["dns:*.plant", "dns:a_b", "dns:A", "dns:a.", "dns:", "ip:0.0.0.0", "ip:::", "ip:224.0.0.1", "ip:127.1", "a", "uri:urn:x"]
)
def test_names_that_none_may_have(text: str) -> None:
    with pytest.raises(Malformed):
        leaf(Compiled(PROFILES["ecc-platform"], ISSUER, _signature, _urls, "P", None), NOW, names=(text,))


def test_a_device_gets_no_names_from_anybody() -> None:
    with pytest.raises(Refused, match="ecc-device does not write"):
        leaf(Compiled(PROFILES["ecc-device"], ISSUER, _signature, _urls, "P", None), NOW, names=("dns:a",))


def test_keys_of_the_other_family(world: Callable[[str], Any]) -> None:
    values: dict[str, Any] = {"serial": 1 << 126, "now": world("sm2").now, "fleet": "f", "device": "d"}
    with pytest.raises(Refused, match="no sm2 keys"):
        world("ecc").compiled("device").tbs(subject_key=world("sm2").leaf_key.public_key, **values)
    with pytest.raises(Refused, match="no p-256 keys"):
        world("sm2").compiled("device").tbs(subject_key=world("ecc").leaf_key.public_key, **values)
    with pytest.raises(Malformed, match="signs itself"):
        world("ecc").compiled("root").tbs(subject_key=world("sm2").leaf_key.public_key, **values)


def made(w: Any, profile: Profile, issuer: Certificate | None, **changed: Any) -> Compiled:
    values = {"signature": w.signature, "urls": w.urls, "organization": "P", "country": None} | changed
    return Compiled(profile, issuer, **values)


def at(crl: str = "http://p/c", issuer: str = "http://p/i") -> Urls:
    return Urls(crl, "http://p/o", issuer)


@pytest.mark.parametrize(
    ("why", "make"),
    [
        ("any-purpose", lambda w: made(w, profile_with(extended_key_usage=["2.5.29.37.0"]), w.issuing)),
        ("issues to itself", lambda w: made(w, PROFILES["ecc-root"], w.root)),
        ("has an issuer", lambda w: made(w, PROFILES["ecc-device"], None)),
        ("no authority", lambda w: made(w, PROFILES["ecc-device"], w.signed("device"))),
        ("no authority", lambda w: made(w, PROFILES["ecc-device"], authority(NOW, NOW, usages=("cRLSign",)))),
        ("no authority", lambda w: made(w, PROFILES["ecc-device"], authority(NOW, NOW, ca=False))),
        ("path length", lambda w: made(w, profile_with("ecc-issuing", path_length=1), authority(NOW, NOW, path_length=1))),
        ("path length", lambda w: made(w, PROFILES["ecc-issuing"], w.issuing)),
        ("is for sm2", lambda w: made(w, PROFILES["sm2-device"], w.issuing)),
        ("does not sign with", lambda w: made(w, PROFILES["ecc-device"], w.issuing, signature=SIGNATURES[KeyKind.P_384])),
        ("no URLs", lambda w: made(w, PROFILES["ecc-device"], w.issuing, urls=None)),
        ("http://", lambda w: made(w, PROFILES["ecc-device"], w.issuing, urls=at(crl="https://p/c"))),
        ("and a host", lambda w: made(w, PROFILES["ecc-device"], w.issuing, urls=at(crl="http:///c"))),
        ("http://", lambda w: made(w, PROFILES["ecc-device"], w.issuing, urls=at(issuer="ldap://p/i"))),
        ("no name", lambda w: made(w, PROFILES["ecc-device"], w.issuing, urls=at(crl="http://p/c d"))),
    ],
)
def test_what_does_not_go_together_is_refused_when_compiled(world: Callable[[str], Any], why: str, make: Callable[[Any], Compiled]) -> None:
    with pytest.raises(Malformed, match=why):
        make(world("ecc"))


@pytest.mark.parametrize(("above", "below"), [(None, 3), (1, 0), (2, 1)])
def test_path_lengths_that_fit(world: Callable[[str], Any], above: int | None, below: int) -> None:
    made(world("ecc"), profile_with("ecc-issuing", path_length=below), authority(NOW, NOW, path_length=above))


@pytest.mark.parametrize(("crl", "ocsp", "issuers"), [(a, b, c) for a in (True, False) for b in (True, False) for c in (True, False)])
def test_pointers_are_those_of_the_profile(crl: bool, ocsp: bool, issuers: bool) -> None:
    profile = profile_with(crl=crl, ocsp=ocsp, issuers=issuers, validity=timedelta(days=1))
    built = leaf(Compiled(profile, ISSUER, _signature, _urls if crl or ocsp or issuers else None, "P", None), NOW)
    read = parse_certificate(assemble(built.der, _signature, b"\0"))
    assert read.crl_urls == ((_urls.crl,) if crl else ())
    assert read.ocsp_urls == ((_urls.ocsp,) if ocsp else ())
    assert read.issuer_urls == ((_urls.issuer,) if issuers else ())
    assert lint(built.der, profile, ISSUER, _signature) == []


@pytest.mark.parametrize("critical", [(), ("extendedKeyUsage",), ("certificatePolicies",), ("extendedKeyUsage", "certificatePolicies")])
def test_policies_and_criticality_are_those_of_the_profile(critical: tuple[str, ...]) -> None:
    profile = profile_with(policies=("1.2.3", "1.2.4"), critical=("keyUsage", *critical))
    built = leaf(Compiled(profile, ISSUER, _signature, _urls, "P", None), NOW)
    read = x509.load_der_x509_certificate(assemble(built.der, _signature, b"\0"))
    found = read.extensions.get_extension_for_class(x509.CertificatePolicies)
    assert [policy.policy_identifier.dotted_string for policy in found.value] == ["1.2.3", "1.2.4"]
    assert found.critical is ("certificatePolicies" in critical)
    assert read.extensions.get_extension_for_class(x509.ExtendedKeyUsage).critical is ("extendedKeyUsage" in critical)
    assert lint(built.der, profile, ISSUER, _signature) == []


def test_only_dns_templates_are_optional_and_in_lower_case() -> None:
    identity = "uri:urn:ironroot:device:{fleet}:{device}"
    compiled = Compiled(profile_with(san=(identity, "uri:urn:x:{device}?", "dns:{device}.plant")), ISSUER, _signature, _urls, "P", None)
    built = leaf(compiled, NOW, device="Press-7")
    assert parse_certificate(assemble(built.der, _signature, b"\0")).names == (
        "uri:urn:ironroot:device:ecc-devices:Press-7",
        "uri:urn:x:Press-7?",
        "dns:press-7.plant",
    )
    assert lint(built.der, compiled.profile, ISSUER, _signature, fleet="ecc-devices", device="Press-7", names=()) == []
    with pytest.raises(Malformed):
        leaf(compiled, NOW, device="press.")


def test_no_underscore_in_a_serial_number() -> None:
    """X.520 serialNumber is a PrintableString, which has no underscore: refused before anything is signed."""
    with pytest.raises(IronrootError, match="serial number"):
        leaf(Compiled(PROFILES["ecc-device"], ISSUER, _signature, _urls, "P", None), NOW, device="a_b")
