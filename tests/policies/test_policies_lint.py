"""Lint: nothing against what is right, and for each rule at least one change of a good TBSCertificate that only it is made for."""

from __future__ import annotations

import hashlib
import random
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pkix import der, extensions
from pkix.algorithms import SIGNATURES, KeyKind
from pkix.extensions import Extension
from pkix.privatekey import generate
from policies.lint import READING_RULES, RULES, lint
from policies.model import Profile

SAN, KU, EKU, BC, SKI, AKI = "2.5.29.17", "2.5.29.15", "2.5.29.37", "2.5.29.19", "2.5.29.14", "2.5.29.35"
CRL, AIA, POLICIES, NOCHECK = "2.5.29.31", "1.3.6.1.5.5.7.1.1", "2.5.29.32", "1.3.6.1.5.5.7.48.1.5"
UTC_TIME = der.UTC_TIME


@dataclass
class Parts:
    """A good TBSCertificate in pieces, to spoil: its eight fields, its extensions, and what lint is told."""

    world: Any
    kind: str
    version: bytes = b""
    serial: bytes = b""
    algorithm: bytes = b""
    issuer: bytes = b""
    validity: bytes = b""
    subject: bytes = b""
    spki: bytes = b""
    extensions: dict[str, bytes] = field(default_factory=dict)
    more: list[bytes] = field(default_factory=list)  # extensions behind those
    behind: bytes = b""
    profile: Profile = None  # type: ignore[assignment]
    above: Any = None
    signature: Any = None
    told: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, world: Any, kind: str) -> Parts:
        names = ("dns:gw.plant", "ip:192.0.2.7") if kind == "platform" else ()
        tbs = world.build(kind, names=names).der
        fields = der.children(tbs, der.read(tbs))
        pieces = [tbs[piece.start : piece.end] for piece in fields]
        parts = cls(world, kind, *pieces[:7], profile=world.policies.profiles[f"{world.family}-{kind}"], above=world.issuing)
        parts.signature = world.signature
        parts.above = {"root": None, "issuing": world.root}.get(kind, world.issuing)
        listed = der.children(tbs, der.read(tbs, fields[7].body))
        parts.extensions = {
            der.decode_oid(tbs[piece.body + 2 : piece.body + 2 + tbs[piece.body + 1]]): tbs[piece.start : piece.end] for piece in listed
        }
        parts.told = {"fleet": f"{world.family}-{kind}s", "device": "press-7", "names": names, "keys": (world.kind,)}
        return parts

    @property
    def tbs(self) -> bytes:
        listed = der.context(3, der.sequence(*self.extensions.values(), *self.more))
        return der.sequence(
            self.version, self.serial, self.algorithm, self.issuer, self.validity, self.subject, self.spki, listed, self.behind
        )

    def put(self, *changed: Extension) -> None:
        """Replaces or adds extensions."""
        for extension in changed:
            self.extensions[extension.oid] = extension.der

    def san(self, *names: str) -> None:
        self.put(extensions.subject_alternative_name(*names))

    def raw_san(self, *names: bytes) -> None:
        self.put(Extension(SAN, False, der.sequence(*names)))

    def times(self, begin: datetime, end: datetime) -> None:
        self.validity = der.sequence(der.time(begin), der.time(end))

    def rdns(self, *attributes: tuple[str, int, bytes]) -> None:
        """The subject, each attribute with its string tag."""
        self.subject = der.sequence(*(der.tlv(der.SET, der.sequence(der.oid(oid), der.tlv(tag, value))) for oid, tag, value in attributes))

    def findings(self) -> set[str]:
        return {finding.rule for finding in lint(self.tbs, self.profile, self.above, self.signature, **self.told)}


DAYS = timedelta(days=90) - timedelta(seconds=1)
C, ORG, CN, SERIAL = "2.5.4.6", "2.5.4.10", "2.5.4.3", "2.5.4.5"
UTF8, PRINTABLE = der.UTF8_STRING, der.PRINTABLE_STRING
GOOD = [(C, PRINTABLE, b"CN"), (ORG, UTF8, b"Example Plant"), (CN, UTF8, b"press-7"), (SERIAL, PRINTABLE, b"press-7")]
URI = "uri:urn:ironroot:device:ecc-devices:press-7"
PLATFORM_URI = "uri:urn:ironroot:device:ecc-platforms:press-7"
OTHER = generate(KeyKind.P_256).public_key
X25519 = "1.3.101.110"
P384 = generate(KeyKind.P_384).public_key

Spoil = Callable[[Parts], object]
CASES: list[tuple[str, str, str, Spoil]] = []  # rule, family, kind of certificate, what to spoil


def spoils(rule: str, family: str = "ecc", kind: str = "device") -> Callable[[Spoil], Spoil]:
    def register(spoil: Spoil) -> Spoil:
        CASES.append((rule, family, kind, spoil))
        return spoil

    return register


def case(rule: str, spoil: Spoil, family: str = "ecc", kind: str = "device") -> None:
    CASES.append((rule, family, kind, spoil))


def replaced(octets: bytes, old: bytes, new: bytes) -> bytes:
    assert octets.count(old) == 1
    return octets.replace(old, new)


def end_before_begin(parts: Parts) -> None:
    parts.times(parts.above.not_before + timedelta(seconds=1), parts.above.not_before)


def profile_of(parts: Parts, **changes: Any) -> None:
    parts.profile = Profile.model_validate(parts.profile.model_dump() | changes)


def set_spki(parts: Parts, spki: bytes, key_bits: bytes) -> None:
    parts.spki = spki
    parts.put(Extension(SKI, False, der.octet_string(hashlib.sha1(key_bits).digest())))  # noqa: S324


def set_key(parts: Parts, key: Any) -> None:
    set_spki(parts, key.spki, key.key_bits)


p384 = SIGNATURES[KeyKind.P_384]

# --- reading
case("tbs.form", lambda p: setattr(p, "behind", der.null()))
case("tbs.form", lambda p: setattr(p, "serial", b""))
case("tbs.form", lambda p: setattr(p, "validity", der.sequence(der.tlv(UTC_TIME, b"2611231200Z"), der.time(p.world.now + DAYS))))
case("tbs.form", lambda p: p.put(Extension(KU, True, b"\x30\x00")))
case("tbs.form", lambda p: p.raw_san(der.context(2, b"\xff\xfe", constructed=False)))
case("tbs.form", lambda p: setattr(p, "spki", der.sequence(der.sequence(der.oid("1.2.840.10045.2.1")), der.bit_string(p.spki[-65:]))))
case("tbs.form", lambda p: p.extensions.update({KU: der.sequence(der.oid(KU), der.boolean(True))}))
case("tbs.version", lambda p: setattr(p, "version", der.context(0, der.integer(1))))
case("tbs.version", lambda p: setattr(p, "version", der.context(0, der.integer(3))))
case("serial.form", lambda p: setattr(p, "serial", der.integer(1)))
case("serial.form", lambda p: setattr(p, "serial", der.integer(0)))
case("serial.form", lambda p: setattr(p, "serial", der.integer(-(1 << 126))))
case("serial.form", lambda p: setattr(p, "serial", der.integer(1 << 125)))
case("serial.form", lambda p: setattr(p, "serial", der.integer(1 << 127)))
case("serial.form", lambda p: setattr(p, "serial", der.integer(-(1 << 127))))
case("extensions.duplicate", lambda p: p.more.append(p.extensions[SKI]))

# --- signature, issuer, validity
case("signature.algorithm", lambda p: setattr(p, "algorithm", SIGNATURES[KeyKind.P_384].der))
case("signature.algorithm", lambda p: setattr(p, "algorithm", der.sequence(der.oid("1.2.156.10197.1.501"), der.null())), "sm2")
case("signature.algorithm", lambda p: setattr(p, "algorithm", SIGNATURES[KeyKind.P_256].der), "sm2")
case("signature.algorithm", lambda p: setattr(p, "signature", SIGNATURES[KeyKind.P_384]))
case("signature.algorithm", lambda p: (setattr(p, "algorithm", p384.der), setattr(p, "signature", p384)))
case(
    "signature.algorithm",
    lambda p: set_spki(p, der.sequence(der.sequence(der.oid(X25519)), der.bit_string(b"k" * 32)), b"k" * 32),
    kind="root",
)
case("issuer.name", lambda p: setattr(p, "issuer", p.world.root.subject.der))
case("issuer.name", lambda p: setattr(p, "issuer", replaced(p.issuer, b"\x0c\x0becc-issuing", b"\x13\x0becc-issuing")))
case("issuer.name", lambda p: setattr(p, "issuer", p.world.issuing.subject.der), kind="root")
case("validity.form", lambda p: setattr(p, "validity", der.sequence(der.generalized_time(p.world.now), der.time(p.world.now + DAYS))))
case("validity.order", end_before_begin)
case("validity.issuer", lambda p: p.times(p.above.not_before - timedelta(seconds=1), p.above.not_before - timedelta(seconds=1) + DAYS))
case("validity.issuer", lambda p: p.times(p.above.not_after - DAYS + timedelta(seconds=1), p.above.not_after + timedelta(seconds=1)))
case("validity.lifetime", lambda p: p.times(p.world.now, p.world.now + DAYS + timedelta(seconds=1)))
case("validity.lifetime", lambda p: p.times(p.world.now, p.world.now + DAYS - timedelta(seconds=1)))
case("validity.lifetime", lambda p: p.times(p.above.not_after - DAYS - timedelta(seconds=1), p.above.not_after))
case("validity.lifetime", lambda p: p.times(p.world.now, p.world.now + timedelta(days=1)), kind="root")


# --- subject
@spoils("subject.empty")
def _(p: Parts) -> None:
    p.rdns()
    profile_of(p, subject=(), critical=("keyUsage", "subjectAltName"))
    # Not critical, as the profile demands: that is another finding too.


case("subject.attributes", lambda p: p.rdns(*GOOD, ("2.5.4.11", UTF8, b"Admins")))
case("subject.attributes", lambda p: p.rdns(*GOOD[:3]))
case("subject.attributes", lambda p: p.rdns(*GOOD[:2], GOOD[3], GOOD[2]))
case("subject.attributes", lambda p: p.rdns(*GOOD[:3], *GOOD[2:]))
case("subject.value", lambda p: p.rdns(*GOOD[:2], (CN, UTF8, b"press-8"), GOOD[3]))
case("subject.value", lambda p: p.rdns(*GOOD[:3], (SERIAL, PRINTABLE, b"PRESS-7")))
case("subject.length", lambda p: p.rdns(GOOD[0], (ORG, UTF8, b"x" * 65), *GOOD[2:]))
case("subject.length", lambda p: p.rdns(GOOD[0], (ORG, UTF8, b""), *GOOD[2:]))
case("subject.length", lambda p: p.rdns((C, PRINTABLE, b"CHN"), *GOOD[1:]))
case("subject.characters", lambda p: p.rdns(GOOD[0], (ORG, UTF8, b"Plant\x00evil"), *GOOD[2:]))
case("subject.characters", lambda p: p.rdns(GOOD[0], (ORG, UTF8, b"a\nb"), *GOOD[2:]))
case("subject.characters", lambda p: p.rdns(GOOD[0], (ORG, UTF8, "a\u202eb".encode()), *GOOD[2:]))
case("subject.characters", lambda p: p.rdns(GOOD[0], (ORG, UTF8, "a\u200bb".encode()), *GOOD[2:]))
case("subject.encoding", lambda p: p.rdns(GOOD[0], (ORG, PRINTABLE, b"Example Plant"), *GOOD[2:]))
case("subject.encoding", lambda p: p.rdns((C, UTF8, b"CN"), *GOOD[1:]))
case("subject.encoding", lambda p: p.rdns(*GOOD[:3], (SERIAL, UTF8, b"press-7")))


@spoils("subject.encoding")
def _(p: Parts) -> None:  # O and CN in one RDN: cryptography lists them as if they were two
    flat = [der.sequence(der.oid(oid), der.tlv(tag, value)) for oid, tag, value in GOOD]
    p.subject = der.sequence(der.tlv(der.SET, flat[0]), der.tlv(der.SET, *sorted(flat[1:3])), der.tlv(der.SET, flat[3]))


# --- names
case("san.identity", lambda p: p.san("uri:urn:ironroot:device:ecc-devices:press-8"))
case("san.identity", lambda p: p.san("uri:urn:ironroot:device:sm2-devices:press-7"))
case("san.identity", lambda p: p.san(URI, URI))
case("san.identity", lambda p: p.san(URI, "uri:URN:ironroot:device:ecc-devices:press-8"))
case("san.identity", lambda p: p.san("dns:press-7"))
case("san.identity", lambda p: p.san(URI), kind="ocsp")
case("san.host", lambda p: p.raw_san(der.context(2, b"a_b", constructed=False)), kind="platform")
case("san.host", lambda p: p.raw_san(der.context(2, "ü.plant".encode(), constructed=False)), kind="platform")
case("san.host", lambda p: p.raw_san(der.context(2, b"a\x00.evil", constructed=False)), kind="platform")
case("san.host", lambda p: p.raw_san(der.context(2, b"../../etc\n", constructed=False)), kind="platform")
case("san.host", lambda p: p.raw_san(der.context(2, b"gw.plant.", constructed=False)), kind="platform")
case("san.host", lambda p: p.raw_san(der.context(2, b"GW.plant", constructed=False)), kind="platform")
case("san.host", lambda p: p.raw_san(der.context(2, b"", constructed=False)), kind="platform")
case("san.host", lambda p: p.raw_san(der.context(2, b"a-.plant", constructed=False)), kind="platform")
case("san.host", lambda p: p.raw_san(der.context(2, b".".join([b"a" * 63] * 4), constructed=False)), kind="platform")
case("san.host", lambda p: p.raw_san(der.context(2, b"_a.plant", constructed=False)), kind="platform")
case("san.wildcard", lambda p: (p.san(PLATFORM_URI, "dns:*.plant"), p.told.update(names=("dns:*.plant",))), kind="platform")
case("san.address", lambda p: (p.san(PLATFORM_URI, "ip:0.0.0.0"), p.told.update(names=("ip:0.0.0.0",))), kind="platform")
case("san.address", lambda p: (p.san(PLATFORM_URI, "ip:ff02::1"), p.told.update(names=("ip:ff02::1",))), kind="platform")
case("san.unauthorised", lambda p: p.san(PLATFORM_URI, "dns:other.plant"), kind="platform")
case("san.unauthorised", lambda p: p.san(PLATFORM_URI, "ip:192.0.2.8"), kind="platform")
case("san.unauthorised", lambda p: p.san(PLATFORM_URI, "email:root@plant"), kind="platform")
case("san.unauthorised", lambda p: p.san(PLATFORM_URI, "uri:urn:other:press-7"), kind="platform")
case("san.unauthorised", lambda p: (p.san(URI, "dns:a.plant"), p.told.update(names=None)))
case("san.unauthorised", lambda p: p.raw_san(der.context(4, p.subject)))
case("san.unauthorised", lambda p: p.raw_san(der.context(0, der.oid("1.3.6.1.4.1.311.20.2.3"), der.context(0, der.utf8_string("admin")))))

# --- key and usage
case("key.kind", lambda p: set_key(p, P384))  # one of the family, but not of this fleet
case("key.kind", lambda p: set_spki(p, replaced(p.spki, b"\x03\x42\x00\x04", b"\x03\x42\x00\x06"), b"\x06" + p.spki[-64:]))
case(
    "key.kind", lambda p: set_spki(p, replaced(p.spki, bytes.fromhex("2a8648ce3d030107"), bytes.fromhex("2a8648ce3d030106")), p.spki[-65:])
)
case("key.kind", lambda p: set_spki(p, replaced(p.spki, b"\x03\x42\x00\x04", b"\x03\x42\x01\x04")[:-1] + b"\0", b""))
case("key.kind", lambda p: set_spki(p, der.sequence(der.sequence(der.oid(X25519)), der.bit_string(b"k" * 32)), b"k" * 32))
case(
    "key.kind",
    lambda p: (set_key(p, P384), set_spki(p, replaced(p.spki, b"\0\x04" + P384.key_bits[1:9], b"\0\x06" + P384.key_bits[1:9]), b"")),
)
case("key.family", lambda p: (set_key(p, OTHER), p.told.update(keys=None)), "sm2")
case("key.family", lambda p: (set_key(p, OTHER), profile_of(p, family="any"), p.told.update(keys=None)), "sm2")
case("key.family", lambda p: profile_of(p, family="sm2"))
case("key.issuers-own", lambda p: set_key(p, p.world.issuing.public_key))
case("key_usage.profile", lambda p: p.put(extensions.key_usage("digitalSignature", "nonRepudiation")))
case("key_usage.profile", lambda p: p.put(extensions.key_usage("digitalSignature", "keyCertSign")))
case("key_usage.profile", lambda p: p.put(extensions.key_usage("keyAgreement", "encipherOnly")))
case("key_usage.profile", lambda p: p.put(extensions.key_usage("digitalSignature")), "sm2")


@spoils("key_usage.profile")
def _(p: Parts) -> None:
    profile_of(p, key_usage=("keyAgreement",))
    p.put(extensions.key_usage("keyAgreement", "encipherOnly"))


@spoils("key_usage.sm2", "sm2")
def _(p: Parts) -> None:
    profile_of(p, key_usage=("digitalSignature", "keyEncipherment"))
    p.put(extensions.key_usage("digitalSignature", "keyEncipherment"))


@spoils("key_usage.sm2", "sm2")
def _(p: Parts) -> None:
    profile_of(p, key_usage=("nonRepudiation", "keyAgreement", "decipherOnly"))
    p.put(extensions.key_usage("nonRepudiation", "keyAgreement", "decipherOnly"))


@spoils("key_usage.curve")
def _(p: Parts) -> None:
    profile_of(p, key_usage=("digitalSignature", "dataEncipherment"))
    p.put(extensions.key_usage("digitalSignature", "dataEncipherment"))


case("purpose.profile", lambda p: p.put(extensions.extended_key_usage("clientAuth", "serverAuth")))
case("purpose.profile", lambda p: p.put(extensions.extended_key_usage("anyExtendedKeyUsage")))
case("purpose.profile", lambda p: p.put(extensions.extended_key_usage("serverAuth")), kind="platform")
case("constraints.profile", lambda p: p.put(extensions.basic_constraints(True)))
case("constraints.profile", lambda p: p.put(extensions.basic_constraints(True, 1)), kind="issuing")
case("constraints.profile", lambda p: p.put(extensions.basic_constraints(False)), kind="issuing")
case("policies.profile", lambda p: p.put(extensions.certificate_policies("1.2.3")))
case("policies.profile", lambda p: (profile_of(p, policies=("1.2.3",)), p.put(extensions.certificate_policies("1.2.4"))))

# --- the other extensions
case("extensions.unexpected", lambda p: p.put(Extension("1.2.3.4", False, der.null())))
case("extensions.unexpected", lambda p: p.put(extensions.basic_constraints(False)))
case("extensions.unexpected", lambda p: p.put(extensions.certificate_policies("1.2.3")))
for _oid in (KU, EKU, SKI, AKI, CRL, AIA, SAN):
    case("extensions.missing", lambda p, oid=_oid: p.extensions.pop(oid))  # type: ignore[misc]
case("extensions.missing", lambda p: p.extensions.pop(BC), kind="issuing")
case("extensions.missing", lambda p: p.extensions.pop(NOCHECK), kind="ocsp")
for _oid in (KU, EKU, SKI, AKI, CRL, AIA, SAN):

    @spoils("extensions.criticality")
    def _(p: Parts, oid: str = _oid) -> None:
        old = p.extensions[oid]
        flag = der.boolean(True)
        name = der.oid(oid)
        value = old[old.index(b"\x04", old.index(name) + len(name)) :] if oid != KU else old[old.index(flag) + len(flag) :]
        p.extensions[oid] = der.sequence(name, b"" if oid == KU else flag, value)


case("ski.key", lambda p: p.put(extensions.subject_key_identifier(OTHER)))
case("ski.key", lambda p: setattr(p, "spki", OTHER.spki))
case("aki.issuer", lambda p: p.put(extensions.authority_key_identifier(p.world.root)))
case("aki.issuer", lambda p: p.put(Extension(AKI, False, der.sequence())))


case("aki.issuer", lambda p: p.put(Extension(AKI, False, der.sequence())), kind="root")


@spoils("aki.issuer")
def _(p: Parts) -> None:
    issuer, serial = der.context(1, der.context(4, p.issuer)), der.context(2, b"\x01", constructed=False)
    p.put(Extension(AKI, False, der.sequence(der.context(0, p.above.ski, constructed=False), issuer, serial)))


case("crl.url", lambda p: p.put(extensions.crl_distribution_points("https://pki.test/c")))
case("crl.url", lambda p: p.put(extensions.crl_distribution_points("http://pki.test/c", "ldap://pki.test/c")))
case("crl.url", lambda p: p.put(extensions.crl_distribution_points("http://")))
case("access.url", lambda p: p.put(extensions.authority_information_access(ocsp=["http:///o"], issuers=["http://a/i"])))


def crl_point(*parts: bytes) -> Extension:
    return Extension(CRL, False, der.sequence(der.sequence(*parts)))


FULL_NAME = der.context(0, der.context(0, extensions.general_name("uri:http://pki.test/c")))
case("crl.url", lambda p: p.put(crl_point(der.context(2, der.context(4, p.issuer)))))
case("crl.url", lambda p: p.put(crl_point(FULL_NAME, der.context(2, der.context(4, p.issuer)))))
case("crl.url", lambda p: p.put(crl_point(FULL_NAME, der.context(1, b"\x01\x40", constructed=False))))
case("crl.url", lambda p: p.put(crl_point(der.context(0, der.context(1, der.sequence(der.oid(CN), der.utf8_string("c")))))))
case("access.url", lambda p: p.put(extensions.authority_information_access(ocsp=["https://a/o"], issuers=["http://a/i"])))
case("access.url", lambda p: p.put(extensions.authority_information_access(ocsp=["http://a/o"])))
case("access.url", lambda p: p.put(extensions.authority_information_access(ocsp=["http://a/o"], issuers=["http://a/i"])), kind="ocsp")
case("ocsp.nocheck", lambda p: p.put(extensions.ocsp_nocheck()))
case("ocsp.nocheck", lambda p: p.extensions.pop(NOCHECK), kind="ocsp")


@pytest.mark.parametrize(("rule", "family", "kind", "spoil"), CASES, ids=[f"{case[0]}-{at}" for at, case in enumerate(CASES)])
def test_spoilt_certificates_are_found(world: Callable[[str], Any], rule: str, family: str, kind: str, spoil: Spoil) -> None:
    parts = Parts.of(world(family), kind)
    if kind in ("root", "issuing"):
        parts.told = {}
    assert parts.findings() == set()
    spoil(parts)
    with warnings.catch_warnings():  # cryptography warns of a country of three letters, and goes on
        warnings.simplefilter("ignore")
        assert rule in parts.findings()


def test_a_warning_made_an_error_is_a_finding(world: Callable[[str], Any]) -> None:
    parts = Parts.of(world("ecc"), "device")
    parts.rdns((C, PRINTABLE, b"CHN"), *GOOD[1:])
    assert parts.findings() == {"tbs.form"}


def test_every_rule_has_a_spoilt_certificate() -> None:
    assert {case[0] for case in CASES} == {*RULES, *READING_RULES}


@pytest.mark.parametrize("rule", sorted(RULES))
def test_no_rule_is_idle(world: Callable[[str], Any], rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Taking a rule away makes at least one spoilt certificate lose that finding: the cases above do test it."""
    monkeypatch.delitem(RULES, rule)
    name, family, kind, spoil = next(case for case in CASES if case[0] == rule)
    parts = Parts.of(world(family), kind)
    spoil(parts)
    assert name not in parts.findings()


@pytest.mark.parametrize("family", ["ecc", "sm2"])
@pytest.mark.parametrize("kind", ["root", "issuing", "ocsp", "device", "platform"])
def test_nothing_against_what_is_right_told_or_not(world: Callable[[str], Any], family: str, kind: str) -> None:
    parts = Parts.of(world(family), kind)
    parts.told.pop("fleet" if kind in ("root", "issuing", "ocsp") else "keys")
    assert parts.findings() == set()
    parts.told = {}
    assert parts.findings() == set()


def test_another_devices_certificate_is_found_only_when_told(world: Callable[[str], Any]) -> None:
    parts = Parts.of(world("ecc"), "device")
    parts.told["device"] = "press-8"
    assert parts.findings() == {"subject.value", "san.identity", "san.unauthorised"}


@pytest.mark.parametrize(
    ("bits", "kind"),
    [(2047, None), (2048, "rsa-2048"), (3071, "rsa-2048"), (3072, "rsa-3072"), (4095, "rsa-3072"), (4096, "rsa-4096"), (4097, None)],
)
def test_rsa_keys_by_their_length(world: Callable[[str], Any], bits: int, kind: str | None) -> None:
    parts = Parts.of(world("ecc"), "device")
    key = der.sequence(der.integer(1 << bits - 1 | 12345), der.integer(65537))
    set_spki(parts, der.sequence(der.sequence(der.oid("1.2.840.113549.1.1.1"), der.null()), der.bit_string(key)), key)
    for told in ("rsa-2048", "rsa-3072", "rsa-4096"):
        parts.told["keys"] = (KeyKind(told),)
        assert parts.findings() == (set() if told == kind else {"key.kind"})


def test_an_rsa_key_may_encipher_and_an_sm2_key_if_it_does_nothing_else(world: Callable[[str], Any]) -> None:
    parts = Parts.of(world("ecc"), "device")
    key = der.sequence(der.integer(1 << 2047 | 1), der.integer(65537))
    set_spki(parts, der.sequence(der.sequence(der.oid("1.2.840.113549.1.1.1"), der.null()), der.bit_string(key)), key)
    parts.told["keys"] = (KeyKind.RSA_2048,)
    profile_of(parts, key_usage=("digitalSignature", "keyEncipherment"))
    parts.put(extensions.key_usage("digitalSignature", "keyEncipherment"))
    assert parts.findings() == set()
    parts = Parts.of(world("sm2"), "device")
    usages = ("keyEncipherment", "dataEncipherment", "keyAgreement")
    profile_of(parts, key_usage=usages)
    parts.put(extensions.key_usage(*usages))
    assert parts.findings() == set()


def test_policies_of_the_profile_are_right(world: Callable[[str], Any]) -> None:
    parts = Parts.of(world("sm2"), "device")
    profile_of(parts, policies=("1.2.3", "1.2.4"))
    parts.put(extensions.certificate_policies("1.2.3", "1.2.4"))
    assert parts.findings() == set()


@pytest.mark.parametrize(("short", "oid", "bound"), [("O", ORG, 64), ("OU", "2.5.4.11", 64), ("L", "2.5.4.7", 128), ("ST", "2.5.4.8", 128)])
def test_upper_bounds_of_the_subject(world: Callable[[str], Any], short: str, oid: str, bound: int) -> None:
    parts = Parts.of(world("ecc"), "device")
    profile_of(parts, subject=(("CN", "{device}"), (short, "{organization}")))
    for length, findings in ((1, set()), (bound, set()), (bound + 1, {"subject.length"})):
        parts.rdns((CN, UTF8, b"press-7"), (oid, UTF8, "工".encode() * length))
        assert parts.findings() == findings


@pytest.mark.parametrize(("kind", "findings"), [(KeyKind.P_384, set()), (KeyKind.ED25519, set()), (KeyKind.ML_DSA_65, {"key.family"})])
def test_other_kinds_of_key(world: Callable[[str], Any], kind: KeyKind, findings: set[str]) -> None:
    parts = Parts.of(world("ecc"), "device")
    set_key(parts, generate(kind).public_key)
    parts.told["keys"] = (kind,)
    assert parts.findings() == findings


@pytest.mark.parametrize("left", [timedelta(0), timedelta(seconds=1), timedelta(days=3)])
def test_a_certificate_cut_at_its_issuers_end_is_right(world: Callable[[str], Any], left: timedelta) -> None:
    parts = Parts.of(world("ecc"), "device")
    parts.times(parts.above.not_after - left, parts.above.not_after)
    assert parts.findings() == set()


def test_no_subject_beside_critical_names_is_right(world: Callable[[str], Any]) -> None:
    parts = Parts.of(world("ecc"), "device")
    parts.rdns()
    profile_of(parts, subject=(), critical=("keyUsage", "subjectAltName"))
    parts.put(extensions.subject_alternative_name(URI, critical=True))
    assert parts.findings() == set()


def test_no_country_where_the_settings_have_none(world: Callable[[str], Any]) -> None:
    parts = Parts.of(world("ecc"), "device")
    parts.rdns(*GOOD[1:])
    assert parts.findings() == set()


@settings(max_examples=400, deadline=None)
@given(seed=st.integers(0, 2**32), raw=st.binary(max_size=64))
def test_any_octets_give_findings_and_no_error(seed: int, raw: bytes, world: Callable[[str], Any]) -> None:
    hierarchy = world("ecc")
    profile = hierarchy.policies.profiles["ecc-device"]
    assert lint(raw, profile, hierarchy.issuing, hierarchy.signature) != []
    tbs = bytearray(hierarchy.build("device").der)
    draw = random.Random(seed)
    for _ in range(draw.randint(1, 3)):
        tbs[draw.randrange(len(tbs))] = draw.randrange(256)
    lint(
        bytes(tbs), profile, hierarchy.issuing, hierarchy.signature, fleet="ecc-devices", device="press-7", names=(), keys=(KeyKind.P_256,)
    )
