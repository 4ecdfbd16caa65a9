"""The rules of ``policies.lint``: an id, the clause it comes from, and a check that says what is wrong.

    for text in RULES["validity.lifetime"].check(case): ...

A rule sees a ``Case`` and yields a sentence for each breach. Most were a mistake that some CA made.
"""

from __future__ import annotations

import hashlib
import ipaddress
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache

from cryptography import x509

from pkix import der
from pkix.algorithms import SIGNATURES, KeyKind
from policies import lint_case as at
from policies.lint_case import Case, filled, text_of
from policies.model import IDENTITY, key_family

_OCSP, _CA_ISSUERS = "1.3.6.1.5.5.7.48.1", "1.3.6.1.5.5.7.48.2"
_OCSP_SIGNING = "1.3.6.1.5.5.7.3.9"
_LABEL = r"(?!-)[a-z0-9-]{1,63}(?<!-)"
_HOST = re.compile(rf"(?=.{{1,253}}\Z){_LABEL}(\.{_LABEL})*")
_HTTP = re.compile(r"uri:http://[A-Za-z0-9.:\[\]-]+(/[!-~]*)?")
_SIGNING = frozenset(("digitalSignature", "nonRepudiation"))
_ENCRYPTION = frozenset(("keyEncipherment", "dataEncipherment", "keyAgreement", "encipherOnly", "decipherOnly"))
_CANNOT_ENCIPHER = frozenset((KeyKind.P_256, KeyKind.P_384, KeyKind.ED25519, KeyKind.ML_DSA_65))
_SECOND = timedelta(seconds=1)

Check = Callable[[Case], Iterator[str]]


@dataclass(frozen=True, slots=True)
class LintRule:
    """One rule: id, the clause it comes from, and a check that yields a sentence for each breach."""

    id: str
    source: str
    check: Check


READING_RULES = {
    "tbs.form": "RFC 5280 4.1.2; X.690: another parser reads it",
    "tbs.version": "RFC 5280 4.1.2.1",
    "serial.form": "RFC 5280 4.1.2.2; 126 random bits in 16 octets, positive",
    "extensions.duplicate": "RFC 5280 4.2",
}
"""Rules that are judged while reading: what breaks one is not read further."""

RULES: dict[str, LintRule] = {}


def _rule(name: str, source: str) -> Callable[[Check], Check]:
    def register(check: Check) -> Check:
        RULES[name] = LintRule(name, source, check)
        return check

    return register


# --- signature, issuer, validity ---------------------------------------------------------------------------------------


@_rule("signature.algorithm", "RFC 5280 4.1.2.3: what the issuer's key signs with, and the families never mix")
def _signature(case: Case) -> Iterator[str]:
    signer = case.kind if case.issuer is None else case.issuer.public_key.kind
    if signer is None or case.algorithm != case.signature.der or case.algorithm != SIGNATURES[signer].der:
        yield f"the signature algorithm is not what a {signer} key signs with here"


@_rule("issuer.name", "RFC 5280 4.1.2.4: the issuer's subject, octet for octet")
def _issuer(case: Case) -> Iterator[str]:
    if case.issuer_name != (case.subject_name if case.issuer is None else case.issuer.subject.der):
        yield "the issuer is not the subject of the issuer's certificate"


@_rule("validity.form", "RFC 5280 4.1.2.5: UTCTime through 2049, GeneralizedTime from 2050")
def _time_form(case: Case) -> Iterator[str]:
    for tag, moment in zip(case.time_tags, (case.not_before, case.not_after), strict=True):
        if (tag == der.UTC_TIME) != (moment.year < 2050):
            yield f"{moment:%Y-%m-%d} is written in the type for other years"


@_rule("validity.order", "RFC 5280 4.1.2.5")
def _order(case: Case) -> Iterator[str]:
    if case.not_before > case.not_after:
        yield "it ends before it begins"


@_rule("validity.issuer", "no certificate outlives its issuer, or was there before it")
def _within_issuer(case: Case) -> Iterator[str]:
    if case.issuer is not None and not case.issuer.not_before <= case.not_before <= case.not_after <= case.issuer.not_after:
        yield "it reaches beyond the issuer's own validity"


@_rule("validity.lifetime", "RFC 5280 4.1.2.5: both ends count, or 90 days are 90 days and a second")
def _lifetime(case: Case) -> Iterator[str]:
    length = case.not_after - case.not_before + _SECOND
    cut = case.issuer is not None and case.not_after == case.issuer.not_after and length < case.profile.validity
    if length != case.profile.validity and not cut:
        yield f"it is valid for {length}, the profile says {case.profile.validity}"


# --- subject -----------------------------------------------------------------------------------------------------------


@_rule("subject.empty", "RFC 5280 4.1.2.6")
def _empty(case: Case) -> Iterator[str]:
    san = case.extensions.get(at.SAN)
    if not case.subject and (san is None or not san.critical):
        yield "there is neither a subject nor a critical subjectAltName"


@_rule("subject.attributes", "the profile's attributes, in its order, each once")
def _attributes(case: Case) -> Iterator[str]:
    found = [oid for oid, _ in case.subject]
    if found != [oid for oid, _ in case.plan.subject] and found != [oid for oid, text in case.plan.subject if "{country}" not in text]:
        yield f"the subject has the attributes {found}, the profile says otherwise"


@_rule("subject.value", "the subject is the identity's, whatever the CSR says")
def _value(case: Case) -> Iterator[str]:
    found = dict(case.subject)
    for oid, template in case.plan.subject:
        wanted = filled(template, case)
        if wanted is not None and oid in found and found[oid] != wanted:
            yield f"{at.BOUNDS[oid][0]} is {found[oid]!r}, not {wanted!r}"


@_rule("subject.length", "RFC 5280 A.1: upper bounds")
def _length(case: Case) -> Iterator[str]:
    for oid, value in case.subject:
        short, bound, _ = at.BOUNDS.get(oid, (oid, 64, False))
        if not 0 < len(value) <= bound or (short == "C" and len(value) != 2):
            yield f"{short} has {len(value)} characters, allowed are 1 to {bound}"


@_rule("subject.characters", "no control, no character that hides or reorders text (fault case 52)")
def _characters(case: Case) -> Iterator[str]:
    for oid, value in case.subject:
        if isinstance(value, bytes) or not value.isprintable():
            yield f"{at.BOUNDS.get(oid, (oid,))[0]} holds what cannot be printed"


@_rule("subject.encoding", "RFC 5280 4.1.2.4: UTF8String; X.520: C and serialNumber PrintableString; one attribute to an RDN")
def _encoding(case: Case) -> Iterator[str]:
    if case.subject_name != der.tlv(der.SEQUENCE, *(_rdn(oid, value) for oid, value in case.subject)):
        yield "the subject is not encoded as one UTF8String or PrintableString for each attribute"


@lru_cache(maxsize=256)
def _rdn(oid: str, value: str | bytes) -> bytes:
    tag = der.PRINTABLE_STRING if at.BOUNDS.get(oid, (oid, 0, False))[2] else der.UTF8_STRING
    content = value if isinstance(value, bytes) else value.encode()
    return der.tlv(der.SET, der.tlv(der.SEQUENCE, der.oid(oid), der.tlv(tag, content)))


# --- subject alternative names -----------------------------------------------------------------------------------------


@_rule("san.identity", "the URI by which relying parties know the device: there, once, and its own")
def _identity(case: Case) -> Iterator[str]:
    claims = [name for name in case.alternatives if name.lower().startswith("uri:urn:ironroot:")]
    wanted = [] if case.profile.kind != "leaf" else [filled(IDENTITY, case)]
    if claims != wanted:
        yield f"it claims to be {', '.join(claims) or 'no device'}, not {wanted}"


@_rule("san.host", "RFC 5280 4.2.1.6; RFC 1123 2.1: LDH labels")
def _host(case: Case) -> Iterator[str]:
    for name in case.alternatives:
        if name.startswith("dns:") and not _HOST.fullmatch(name[4:].removeprefix("*.")):
            yield f"{name!r} is no host name"


@_rule("san.wildcard", "RFC 6125 7.2: one key for a whole domain")
def _wildcard(case: Case) -> Iterator[str]:
    for name in case.alternatives:
        if "*" in name:
            yield f"{name!r} is a wildcard"


@_rule("san.address", "RFC 5280 4.2.1.6: an address of one host")
def _address(case: Case) -> Iterator[str]:
    for name in case.alternatives:
        if name.startswith("ip:"):
            address = ipaddress.ip_address(name[3:])
            if address.is_unspecified or address.is_multicast:
                yield f"{address} is no address of one host"


@_rule("san.unauthorised", "ESC1, ESC6: no name but those of the profile and those that somebody vouched for")
def _unauthorised(case: Case) -> Iterator[str]:
    templates = {text for template in case.profile.san if (text := filled(template, case)) is not None}
    for name in case.alternatives:
        vouched = name in case.names if case.names is not None else name.partition(":")[0] in case.profile.names
        if not vouched and name not in templates:
            yield f"nobody vouched for {name!r}"


# --- key and usage -----------------------------------------------------------------------------------------------------


@_rule("key.kind", "the fleet's kinds of key, in the one encoding of each (RFC 5480 2.1.1, RFC 8410 3, GM/T 0009)")
def _key_kind(case: Case) -> Iterator[str]:
    if case.kind is None:
        yield "the key is of no kind or form that is certified here"
    elif case.keys is not None and case.kind not in case.keys:
        yield f"the fleet takes no {case.kind.value} keys"


@_rule("key.family", "GM/T 0015: SM2 certifies SM2; ML-DSA only itself; the others the others")
def _key_family(case: Case) -> Iterator[str]:
    if case.kind is not None:
        family = key_family(case.kind)
        if case.profile.family not in ("any", family):
            yield f"the profile is for {case.profile.family}, the key is {case.kind.value}"
        if case.issuer is not None and key_family(case.issuer.public_key.kind) != family:
            yield f"the key is {case.kind.value}, the issuer's is {case.issuer.public_key.kind.value}"


@_rule("key.issuers-own", "an authority's key serves no one else (fault case 51)")
def _issuers_own(case: Case) -> Iterator[str]:
    if case.issuer is not None and case.spki == case.issuer.public_key.spki:
        yield "the key is the issuer's own"


@_rule("key_usage.profile", "RFC 5280 4.2.1.3")
def _key_usage(case: Case) -> Iterator[str]:
    if case.usages != case.plan.key_usage:
        yield f"key usage {sorted(case.usages)}, the profile says {sorted(case.plan.key_usage)}"


@_rule("key_usage.sm2", "GM/T 0015-2012 5.2.4.2.4")
def _sm2_usage(case: Case) -> Iterator[str]:
    if case.kind is KeyKind.SM2 and not _SIGNING.isdisjoint(case.usages) and not _ENCRYPTION.isdisjoint(case.usages):
        yield "an SM2 certificate for signing and encryption at once"


@_rule("key_usage.curve", "RFC 8813 3; RFC 8410 5; RFC 9881 3")
def _curve_usage(case: Case) -> Iterator[str]:
    if case.kind in _CANNOT_ENCIPHER and case.usages & {"keyEncipherment", "dataEncipherment"}:
        yield f"a {case.kind} key cannot encipher"


@_rule("purpose.profile", "RFC 5280 4.2.1.12")
def _purpose(case: Case) -> Iterator[str]:
    if case.purposes != case.profile.purposes:
        yield f"the purposes are {case.purposes}, the profile says {case.profile.purposes}"


@_rule("constraints.profile", "RFC 5280 4.2.1.9")
def _constraints(case: Case) -> Iterator[str]:
    found = case.value(at.BASIC_CONSTRAINTS, x509.BasicConstraints)
    if found is not None and (found.ca, found.path_length) != (case.profile.is_ca, case.profile.path_length):
        yield f"cA is {found.ca} and the path length {found.path_length}, the profile says otherwise"


@_rule("policies.profile", "RFC 5280 4.2.1.4; ESC13")
def _policies(case: Case) -> Iterator[str]:
    if (policies := case.value(at.POLICIES, x509.CertificatePolicies)) is not None:
        found = [(policy.policy_identifier.dotted_string, policy.policy_qualifiers) for policy in policies]
        if found != [(policy, None) for policy in case.profile.policies]:
            yield f"the policies are {found}, the profile says {case.profile.policies}"


# --- the other extensions ----------------------------------------------------------------------------------------------


@_rule("extensions.unexpected", "ESC6, ESC15: what the profile does not have is not there")
def _unexpected(case: Case) -> Iterator[str]:
    for oid in case.extensions:
        if oid not in case.plan.critical:
            yield f"extension {oid} is not in the profile"


@_rule("extensions.missing", "the profile")
def _missing(case: Case) -> Iterator[str]:
    for oid in case.plan.critical:
        if oid not in case.extensions:
            yield f"extension {oid} is missing"


@_rule("extensions.criticality", "the profile; RFC 5280 4.2.1")
def _criticality(case: Case) -> Iterator[str]:
    for oid, extension in case.extensions.items():
        if case.plan.critical.get(oid, extension.critical) != extension.critical:
            yield f"extension {oid} is {'' if extension.critical else 'not '}critical"


@_rule("ski.key", "RFC 5280 4.2.1.2 (1); GM/T 0015: SHA-1 of the key")
def _ski(case: Case) -> Iterator[str]:
    found = case.value(at.SKI, x509.SubjectKeyIdentifier)
    if found is not None and found.digest != hashlib.sha1(case.key_bits, usedforsecurity=False).digest():
        yield "the subject key identifier is not the SHA-1 of the key"


@_rule("aki.issuer", "RFC 5280 4.2.1.1: the issuer's at.SKI as it stands there, nothing else")
def _aki(case: Case) -> Iterator[str]:
    if (found := case.value(at.AKI, x509.AuthorityKeyIdentifier)) is not None:
        wanted = None if case.issuer is None else case.issuer.ski
        if wanted is None or found.key_identifier != wanted or found.authority_cert_serial_number is not None:
            yield "the authority key identifier is not the issuer's subject key identifier"


@_rule("crl.url", "RFC 5280 4.2.1.13, 8: http, complete CRL of the issuer's own")
def _crl_url(case: Case) -> Iterator[str]:
    for point in case.value(at.CRL_POINTS, x509.CRLDistributionPoints) or ():
        urls = [text_of(name) for name in point.full_name or ()]
        if not urls or not all(map(_HTTP.fullmatch, urls)) or point.reasons is not None or point.crl_issuer is not None:
            yield f"a distribution point is not an http URL of one whole CRL: {urls}"


@_rule("access.url", "RFC 5280 4.2.2.1, 8: http, for what the profile points to")
def _access_url(case: Case) -> Iterator[str]:
    if (listed := case.value(at.ACCESS, x509.AuthorityInformationAccess)) is not None:
        found = [(access.access_method.dotted_string, text_of(access.access_location)) for access in listed]
        wanted = [_OCSP] * case.profile.ocsp + [_CA_ISSUERS] * case.profile.issuers
        if [method for method, _ in found] != wanted or not all(_HTTP.fullmatch(url) for _, url in found):
            yield f"it points to {found}"


@_rule("ocsp.nocheck", "RFC 6960 4.2.2.2.1: whoever signs responses is not asked about, and nobody else is exempt")
def _nocheck(case: Case) -> Iterator[str]:
    if (_OCSP_SIGNING in case.purposes) != (at.NOCHECK in case.extensions):
        yield "OCSPSigning and id-pkix-ocsp-nocheck go together"
