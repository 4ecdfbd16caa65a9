"""The rules that make a profile safe to load, each with an id, its source, and one check. ``policies.fleet_rules`` has the fleets'.

    for breach in profile_breaches(profile):
        breach.rule, breach.key, breach.text      # "profile.any-purpose", "extended_key_usage", what is wrong and what to write

A rule sees parsed data only. Most are a known way to lose a PKI: the ESC numbers are those of the AD CS misconfigurations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import NamedTuple

from pkix.extensions import EXTENDED_KEY_USAGES
from policies.model import IDENTITY, PLACEHOLDER, SEGMENT, Profile, duration

SIGNING = frozenset(("digitalSignature", "nonRepudiation"))
ENCRYPTION = frozenset(("keyEncipherment", "dataEncipherment", "keyAgreement", "encipherOnly", "decipherOnly"))
"""The two sets of key usages that GM/T 0015-2012 5.2.4.2.4 keeps in separate SM2 certificates."""

CERTIFYING = frozenset(("keyCertSign", "cRLSign"))
ANY_POLICY = "2.5.29.32.0"

_ANY_PURPOSE = EXTENDED_KEY_USAGES["anyExtendedKeyUsage"]
_OCSP_SIGNING = EXTENDED_KEY_USAGES["OCSPSigning"]
_AUTHENTICATION = frozenset(EXTENDED_KEY_USAGES[name] for name in ("serverAuth", "clientAuth"))
_CONTENT = {EXTENDED_KEY_USAGES[name]: name for name in ("codeSigning", "timeStamping", "emailProtection")}
_AGENTS = {
    "1.3.6.1.5.5.7.3.27": "cmcCA",
    "1.3.6.1.5.5.7.3.28": "cmcRA",
    "1.3.6.1.5.5.7.3.32": "cmKGA",
    "1.3.6.1.4.1.311.20.2.1": "certificate request agent",
}
_LONGEST = {"root": "30y", "issuing": "15y", "leaf": "5y", "ocsp-signer": "90d"}
_SHORT_LIVED = timedelta(days=7)
_SUBJECT_ATTRIBUTES = ("C", "ST", "L", "O", "OU", "CN", "serialNumber")
_PLACEHOLDERS = frozenset(("device", "fleet", "organization", "country"))


class Breach(NamedTuple):
    """A rule that is broken: its id, the key in the file, what is wrong and what to write instead."""

    rule: str
    key: str
    text: str


Findings = Iterator[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule: id, where it comes from, and a check that yields (key, text) for each breach."""

    id: str
    source: str
    check: Callable[[Profile], Findings]


PROFILE_RULES: dict[str, Rule] = {}


def profile_breaches(profile: Profile) -> list[Breach]:
    """Every rule that ``profile`` breaks by itself."""
    return [Breach(rule.id, key, text) for rule in PROFILE_RULES.values() for key, text in rule.check(profile)]


def _rule(name: str, source: str) -> Callable[[Callable[[Profile], Findings]], Callable[[Profile], Findings]]:
    def register(check: Callable[[Profile], Findings]) -> Callable[[Profile], Findings]:
        PROFILE_RULES[name] = Rule(name, source, check)
        return check

    return register


# --- names ---------------------------------------------------------------------------------------------------------


@_rule("profile.id", "ids stand in paths and file names")
def _id(profile: Profile) -> Findings:
    if not SEGMENT.fullmatch(profile.id):
        yield "id", f"{profile.id!r} is no id; name the file with lower-case letters, digits and '-', at most 63"


@_rule("profile.placeholder", "what is not a known placeholder would stand in the certificate as it is")
def _placeholder(profile: Profile) -> Findings:
    for key, template in [("subject", value) for _, value in profile.subject] + [("san", template) for template in profile.san]:
        rest = PLACEHOLDER.sub("", template)
        unknown = set(PLACEHOLDER.findall(template)) - _PLACEHOLDERS
        if unknown or "{" in rest or "}" in rest:
            yield key, f"{template!r} has a placeholder that is none; there are {{device}}, {{fleet}}, {{organization}}, {{country}}"
        if "{fleet}" in template and profile.kind != "leaf":
            yield key, f"{template!r}: a certificate of kind {profile.kind} belongs to no fleet; remove {{fleet}}"


@_rule("profile.subject", "RFC 5280 4.1.2.4; X.520; one common name (fault case 53)")
def _subject(profile: Profile) -> Findings:
    attributes = [attribute for attribute, _ in profile.subject]
    for attribute in sorted(set(attributes)):
        if attribute not in _SUBJECT_ATTRIBUTES:
            yield "subject", f"no attribute {attribute!r}; there are {', '.join(_SUBJECT_ATTRIBUTES)}"
        if attributes.count(attribute) > 1 and attribute != "OU":
            yield "subject", f"{attribute} occurs twice and readers would pick one of them; write it once"
    if any(not value for _, value in profile.subject):
        yield "subject", "an attribute without a value; leave it out"
    if profile.subject and not any("{device}" in value for _, value in profile.subject):
        yield "subject", "all certificates would have the same subject; put {device} into CN"
    if not profile.subject and (profile.kind != "leaf" or "subjectAltName" not in profile.critical):
        yield "subject", "an empty subject is for leaves whose subjectAltName is critical (RFC 5280 4.1.2.6); add CN"


@_rule("profile.no-identity", "ESC9, ESC10, ESC14, ESC16: a stable identity that relying parties can map by")
def _identity(profile: Profile) -> Findings:
    if profile.kind == "leaf" and IDENTITY not in profile.san:
        yield "san", f"a leaf needs its device's identity; add {IDENTITY!r}"
    for template in profile.san:
        if template != IDENTITY and template.lower().startswith("uri:urn:ironroot:"):
            yield "san", f"{template!r} could be taken for another device's identity; only {IDENTITY!r} may begin like that"


@_rule("profile.san", "RFC 5280 4.2.1.6")
def _san(profile: Profile) -> Findings:
    if profile.kind != "leaf" and (profile.san or profile.names or profile.csr_names):
        yield "san", f"a certificate of kind {profile.kind} is no device and has no alternative names; remove san, names and csr_names"
    for template in profile.san:
        kind, _, value = template.partition(":")
        if kind not in ("dns", "ip", "uri", "email") or not value:
            yield "san", f"{template!r} is no name; begin with dns:, ip:, uri: or email:"
        if not {"device", "fleet"}.issuperset(set(PLACEHOLDER.findall(template)) & _PLACEHOLDERS):
            yield "san", f"{template!r} names an organization; a name is a device's: use {{device}} and {{fleet}}"


@_rule("profile.shared-name", "a name in every certificate of a fleet lets each device pose as all")
def _shared_name(profile: Profile) -> Findings:
    for template in profile.san:
        if "{device}" not in template:
            yield "san", f"{template!r} would be in every device's certificate; put {{device}} into it, or vouch for it in an invitation"


@_rule("profile.wildcard", "RFC 6125 7.2; one key must not stand for a whole domain")
def _wildcard(profile: Profile) -> Findings:
    for template in profile.san:
        if "*" in template:
            yield "san", f"{template!r} is a wildcard; write the names that are meant"


# --- purposes ------------------------------------------------------------------------------------------------------


@_rule("profile.no-eku", "ESC2: a certificate without purposes is good for all")
def _no_purpose(profile: Profile) -> Findings:
    if not profile.is_ca and not profile.purposes:
        yield "extended_key_usage", "without a purpose it is good for any; write those that are needed, like clientAuth"


@_rule("profile.any-purpose", "ESC2; RFC 5280 4.2.1.12")
def _any_purpose(profile: Profile) -> Findings:
    if _ANY_PURPOSE in profile.purposes:
        yield "extended_key_usage", "anyExtendedKeyUsage is every purpose at once; write those that are needed"


@_rule("profile.ca-purpose", "RFC 5280 4.2.1.12: for end entities")
def _ca_purpose(profile: Profile) -> Findings:
    if profile.is_ca and profile.purposes:
        yield "extended_key_usage", "in an authority's certificate it is read as a limit on all below, OCSP signers too; remove it"


@_rule("profile.ocsp-signing", "RFC 6960 4.2.2.2: whoever has it speaks for the CA")
def _ocsp_signing(profile: Profile) -> Findings:
    if profile.kind == "leaf" and _OCSP_SIGNING in profile.purposes:
        yield "extended_key_usage", "with OCSPSigning a device could declare any certificate good; remove it (kind ocsp-signer has it)"


@_rule("profile.ocsp-signer", "RFC 6960 4.2.2.2: nothing but signing responses")
def _ocsp_signer(profile: Profile) -> Findings:
    if profile.kind != "ocsp-signer":
        return
    if profile.purposes != (_OCSP_SIGNING,):
        yield "extended_key_usage", 'an OCSP signer does nothing else; write ["OCSPSigning"]'
    if profile.key_usage != ("digitalSignature",):
        yield "key_usage", 'an OCSP signer signs responses and nothing else; write ["digitalSignature"]'


@_rule("profile.agent-purpose", "ESC3; RFC 6402 2.10: enrolment on behalf of others")
def _agent_purpose(profile: Profile) -> Findings:
    for purpose in profile.purposes:
        if purpose in _AGENTS:
            yield "extended_key_usage", f"{_AGENTS[purpose]} lets its holder enrol for others; remove it"


@_rule("profile.mixed-purpose", "a key that is online to authenticate must not vouch for software, time or mail (RFC 3161 2.3)")
def _mixed_purpose(profile: Profile) -> Findings:
    content = [name for oid, name in _CONTENT.items() if oid in profile.purposes]
    if content and (len(content) > 1 or not _AUTHENTICATION.isdisjoint(profile.purposes)):
        yield "extended_key_usage", f"{' and '.join(content)} beside other purposes: one theft, two breaches; make a profile for each"


@_rule("profile.key-usage", "RFC 5280 4.2.1.3; GM/T 0015 C.1-C.5")
def _key_usage(profile: Profile) -> Findings:
    usage = set(profile.key_usage)
    if not usage:
        yield "key_usage", 'no key usage allows every usage; write those that are needed, like ["digitalSignature"]'
    if usage & {"encipherOnly", "decipherOnly"} and "keyAgreement" not in usage:
        yield "key_usage", "encipherOnly and decipherOnly mean something only beside keyAgreement; remove them or add it"


@_rule("profile.mixed-sm2-usage", "GM/T 0015-2012 5.2.4.2.4: signature certificate or encryption certificate")
def _mixed_sm2_usage(profile: Profile) -> Findings:
    if profile.family != "ecc" and not SIGNING.isdisjoint(profile.key_usage) and not ENCRYPTION.isdisjoint(profile.key_usage):
        yield "key_usage", "an SM2 certificate signs or encrypts, never both; leave digitalSignature and nonRepudiation, or the others"


# --- authorities ---------------------------------------------------------------------------------------------------


@_rule("profile.leaf-ca", "RFC 5280 4.2.1.9, 4.2.1.3: a leaf that can certify is a CA")
def _leaf_ca(profile: Profile) -> Findings:
    if profile.is_ca:
        return
    if not CERTIFYING.isdisjoint(profile.key_usage):
        yield "key_usage", f"a certificate of kind {profile.kind} must not certify; remove keyCertSign and cRLSign"
    if profile.path_length is not None or "basicConstraints" in profile.critical:
        yield "path_length", f"basic constraints are for authorities; remove them, or write kind = 'issuing' instead of '{profile.kind}'"


@_rule("profile.ca-usage", "RFC 5280 4.2.1.3; GM/T 0015 C.1, C.2")
def _ca_usage(profile: Profile) -> Findings:
    if profile.is_ca and set(profile.key_usage) != CERTIFYING:
        yield "key_usage", 'an authority certifies and signs CRLs and does nothing else; write ["keyCertSign", "cRLSign"]'


@_rule("profile.path-length", "RFC 5280 4.2.1.9: how many authorities may follow")
def _path_length(profile: Profile) -> Findings:
    if profile.kind == "issuing" and profile.path_length is None:
        yield "path_length", "without it an issuing authority could make authorities without end; write 0"
    if profile.path_length is not None and not 0 <= profile.path_length <= 5:
        yield "path_length", "write a number from 0 to 5"


@_rule("profile.any-policy", "ESC13; RFC 5280 4.2.1.4: anyPolicy stands for every policy there is")
def _any_policy(profile: Profile) -> Findings:
    if ANY_POLICY in profile.policies:
        yield "policies", "anyPolicy stands for every policy there is; write the policies that were followed"


# --- time and status -----------------------------------------------------------------------------------------------


@_rule("profile.lifetime", "longer than its key, its algorithm or its owner can be relied on")
def _lifetime(profile: Profile) -> Findings:
    longest = _LONGEST[profile.kind]
    if not timedelta(minutes=5) <= profile.validity <= duration(longest):
        yield "validity", f"write 5min to {longest} for a certificate of kind {profile.kind}"


@_rule("profile.backdate", "RFC 5280 4.1.2.5; devices whose clocks are behind (fault case 43)")
def _backdate(profile: Profile) -> Findings:
    if not timedelta(0) <= profile.backdate <= timedelta(hours=24):
        yield "backdate", "write 0s to 24h"
    elif profile.backdate * 2 > profile.validity:
        yield "backdate", "it takes more than half of the validity away; shorten it"


@_rule("profile.criticality", "RFC 5280 4.2.1.3, 4.2.1.6, 4.2.1.9; GM/T 0015 5.2.4.2")
def _criticality(profile: Profile) -> Findings:
    present = {
        "basicConstraints": profile.is_ca,
        "keyUsage": bool(profile.key_usage),
        "extendedKeyUsage": bool(profile.extended_key_usage),
        "subjectAltName": bool(profile.san),
        "certificatePolicies": bool(profile.policies),
    }
    for name in ("basicConstraints", "keyUsage"):
        if present[name] and name not in profile.critical:
            yield "critical", f"{name} must be critical, or old software ignores it; add it"
    for name in profile.critical:
        if not present[name] and name != "basicConstraints":
            yield "critical", f"{name} is named and not there; remove it, or give it a value"
    if "subjectAltName" in profile.critical and profile.subject:
        yield "critical", "subjectAltName is critical only beside an empty subject; remove it"


@_rule("profile.no-status", "a certificate that cannot be taken back must end soon (CA/B BR short-lived: 7 d)")
def _no_status(profile: Profile) -> Findings:
    if profile.kind in ("leaf", "issuing") and not (profile.crl or profile.ocsp) and profile.validity > _SHORT_LIVED:
        yield "crl", "nobody could learn of its revocation; set crl or ocsp to true, or validity to at most 7d"


@_rule("profile.ocsp-loop", "RFC 6960 4.2.2.2.1: an OCSP signer with nocheck is not asked about")
def _ocsp_loop(profile: Profile) -> Findings:
    if profile.kind == "ocsp-signer" and (profile.ocsp or profile.crl):
        yield "ocsp", "it would send its readers to itself; an OCSP signer is short-lived instead: set ocsp and crl to false"


@_rule("profile.root-pointers", "RFC 5280 4.2.1.13, 4.2.2.1: a root's status comes with the root")
def _root_pointers(profile: Profile) -> Findings:
    if profile.kind == "root" and (profile.crl or profile.ocsp or profile.issuers):
        yield "crl", "nobody stands above a root to say that it is revoked; set crl, ocsp and issuers to false"
