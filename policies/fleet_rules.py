"""The rules that make a fleet safe to load, alone and together with the profile it uses.

    fleet_breaches(fleet, profiles)      # list of Breach
    unbound_names(profile, fleets)       # ESC1: names from a CSR that nobody stands for

``policies.rules`` has the profiles' rules and says how a rule is written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import PurePosixPath

from pkix.algorithms import KeyKind
from policies.model import SEGMENT, Fleet, Profile, key_family
from policies.rules import Breach, Findings

BINDING = frozenset(("token",))
"""Authenticators that stand for names: an invitation lists them. An IDevID says who built the device, not where it will live."""

CURVES = frozenset((KeyKind.P_256, KeyKind.P_384, KeyKind.ED25519, KeyKind.ML_DSA_65))
"""Kinds of key that cannot encipher (RFC 8813 3, RFC 8410 5, RFC 9881 3). An SM2 key can: GM/T 0003.4."""

ENCIPHERING = frozenset(("keyEncipherment", "dataEncipherment"))

_OPERATIONS = ("cacerts", "simpleenroll", "simplereenroll", "fullcmc", "serverkeygen", "csrattrs")
_LONGEST_TOKEN = timedelta(days=31)


@dataclass(frozen=True, slots=True)
class FleetRule:
    """One rule: id, where it comes from, and a check of a fleet and its profile (None if there is none of that id)."""

    id: str
    source: str
    check: Callable[[Fleet, Profile | None], Findings]


FLEET_RULES: dict[str, FleetRule] = {}

NAMES_FROM_CSR = "profile.names-from-csr"
"""The one rule that needs a profile and all fleets that use it: ``unbound_names``."""


def fleet_breaches(fleet: Fleet, profiles: Mapping[str, Profile]) -> list[Breach]:
    """Every rule that ``fleet`` breaks."""
    profile = profiles.get(fleet.profile)
    return [Breach(rule.id, key, text) for rule in FLEET_RULES.values() for key, text in rule.check(fleet, profile)]


def unbound_names(profile: Profile, fleets: Iterable[Fleet]) -> list[Breach]:
    """Whether a CSR could put names into certificates of ``profile`` that nobody stands for (AD CS ESC1, ESC17)."""
    if not profile.csr_names:
        return []
    users = [fleet for fleet in fleets if fleet.profile == profile.id]
    loose = [fleet.id for fleet in users if not fleet.authenticators or not BINDING.issuperset(fleet.authenticators)]
    if not set(profile.csr_names) <= set(profile.names):
        text = "a CSR may choose only among names that the profile writes; list their kinds in names too"
    elif loose:
        text = f"fleet {', '.join(loose)} lets devices in by what does not stand for names; only 'token' does"
    elif not users:
        text = "no fleet uses this profile, so nobody stands for the names; remove csr_names"
    else:
        return []
    return [Breach(NAMES_FROM_CSR, "csr_names", text)]


def _rule(name: str, source: str) -> Callable[[Callable[[Fleet, Profile | None], Findings]], Callable[[Fleet, Profile | None], Findings]]:
    def register(check: Callable[[Fleet, Profile | None], Findings]) -> Callable[[Fleet, Profile | None], Findings]:
        FLEET_RULES[name] = FleetRule(name, source, check)
        return check

    return register


@_rule("fleet.id", "a path segment; RFC 7030 3.2.2: no label is named like an operation")
def _id(fleet: Fleet, _profile: Profile | None) -> Findings:
    if not SEGMENT.fullmatch(fleet.id) or fleet.id in _OPERATIONS:
        yield "id", f"{fleet.id!r} cannot stand in a URL; name the file with lower-case letters, digits and '-', not like an EST operation"


@_rule("fleet.authority", "the algorithm families never mix: an authority's id says which is its")
def _authority(fleet: Fleet, _profile: Profile | None) -> Findings:
    if not SEGMENT.fullmatch(fleet.authority) or not fleet.authority.startswith(("ecc-", "sm2-")):
        yield "authority", f"{fleet.authority!r} is no authority; its id begins with ecc- or sm2-, like ecc-issuing"


@_rule("fleet.root-authority", "a root's key is used only to make authorities")
def _root_authority(fleet: Fleet, _profile: Profile | None) -> Findings:
    if fleet.authority.endswith("-root"):
        yield "authority", f"{fleet.authority} is a root and does not serve devices; name an issuing authority"


@_rule("fleet.unknown-profile", "fault case 68")
def _unknown_profile(fleet: Fleet, profile: Profile | None) -> Findings:
    if profile is None:
        yield "profile", f"there is no profile {fleet.profile!r}; add profiles/{fleet.profile}.toml, or name one that is there"


@_rule("fleet.ca-profile", "ESC1, ESC7: a device must not become an authority or speak for one")
def _ca_profile(_fleet: Fleet, profile: Profile | None) -> Findings:
    if profile is not None and profile.kind != "leaf":
        yield "profile", f"profile {profile.id} is of kind {profile.kind}; a fleet hands out leaves"


@_rule("fleet.family-mix", "GM/T 0015; no chain of one family certifies keys of another")
def _family_mix(fleet: Fleet, profile: Profile | None) -> Findings:
    if fleet.family not in ("ecc", "sm2"):
        return  # fleet.authority says it
    strange = [kind.value for kind in fleet.keys if key_family(kind) != fleet.family]
    if strange:
        yield "keys", f"{', '.join(strange)} is not of the family of authority {fleet.authority}; name keys of its family only"
    if profile is not None and profile.family not in ("any", fleet.family):
        yield "profile", f"profile {profile.id} is for {profile.family}, authority {fleet.authority} is not; name a profile of its family"


@_rule("fleet.no-keys", "a fleet takes the kinds of key that it names")
def _no_keys(fleet: Fleet, _profile: Profile | None) -> Findings:
    if not fleet.keys:
        yield "keys", 'it would take no key at all; write those that its devices have, like ["p-256"]'


@_rule("fleet.key-usage", "RFC 8813 3; RFC 8410 5; RFC 9881 3: these keys cannot encipher")
def _key_usage(fleet: Fleet, profile: Profile | None) -> Findings:
    kinds = [kind.value for kind in fleet.keys if kind in CURVES]
    if profile is not None and kinds and not ENCIPHERING.isdisjoint(profile.key_usage):
        yield "keys", f"{', '.join(kinds)} keys cannot encipher and profile {profile.id} says they do; use RSA keys or another profile"


@_rule("fleet.no-authenticator", "ESC1, ESC8: whoever can reach the door would get a certificate")
def _no_authenticator(fleet: Fleet, _profile: Profile | None) -> Findings:
    if not fleet.authenticators:
        yield "authenticators", 'nobody would have to prove who they are; write ["token"], ["idevid"] or both'


@_rule("fleet.idevid-trust", "IEEE 802.1AR: an IDevID is worth what its issuer is")
def _idevid_trust(fleet: Fleet, _profile: Profile | None) -> Findings:
    if ("idevid" in fleet.authenticators) != bool(fleet.idevid.trust):
        yield "idevid.trust", "the authenticator idevid and the manufacturers it trusts go together; name both, or neither"


@_rule("fleet.trust-path", "files of the home folder, and no others")
def _trust_path(fleet: Fleet, _profile: Profile | None) -> Findings:
    for text in fleet.idevid.trust:
        path = PurePosixPath(text)
        inside = text.isprintable() and "\\" not in text and not path.is_absolute() and ".." not in path.parts
        if not inside or path.suffix not in (".pem", ".crt", ".cer"):
            yield "idevid.trust", f"{text!r} is no file below the home folder; write a path like idevid/maker.pem"


@_rule("fleet.token-lifetime", "an invitation that is never used must not lie about for ever")
def _token_lifetime(fleet: Fleet, _profile: Profile | None) -> Findings:
    if not timedelta(minutes=1) <= fleet.token_lifetime <= _LONGEST_TOKEN:
        yield "token_lifetime", "write 1min to 31d"


@_rule("fleet.renew", "a device renews while its certificate is still good")
def _renew(fleet: Fleet, _profile: Profile | None) -> Findings:
    after, window = fleet.renew.after, fleet.renew.window
    if not (0.1 <= after <= 0.9 and 0.0 < window <= 0.5 and round(after + window, 6) <= 0.95):
        yield "renew", "write after from 0.1 to 0.9 and window above 0 to 0.5, both together at most 0.95 of the certificate's life"


@_rule("fleet.policy-grant", "ESC13: a policy OID can stand for rights, so fleet and profile both name it")
def _policy_grant(fleet: Fleet, profile: Profile | None) -> Findings:
    if profile is not None and set(fleet.policies) != set(profile.policies):
        yield "policies", f"profile {profile.id} writes the policies {list(profile.policies)}; list exactly these here to hand them out"
