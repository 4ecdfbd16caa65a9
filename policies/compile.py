"""A profile, an issuer and the settings, compiled once into a template that makes TBSCertificates.

    compiled = Compiled(profile, issuing.certificate, SIGNATURES[KeyKind.P_256], urls, "Example Plant", "CN")
    built = compiled.tbs(serial=serial, now=now, subject_key=csr.public_key, fleet="ecc-devices", device="press-7", names=())
    built.der, built.not_after

What goes in comes from the authenticated identity and the settings, never from a CSR but its key. Values are put in as values: a device
named ``{fleet}`` or ``a,O=Admin`` would be just that, if its syntax were allowed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

from pkix import extensions
from pkix.algorithms import SIGNATURES, PublicKey, SignatureAlgorithm
from pkix.certificate import Certificate, TbsTemplate, build_tbs
from pkix.errors import Malformed, Refused, Unavailable
from pkix.extensions import Extension
from pkix.name import Name, name
from policies.model import DEVICE, PLACEHOLDER, SEGMENT, Profile, key_family
from policies.names import check, is_host
from policies.rules import profile_breaches

_SECOND = timedelta(seconds=1)
_HTTP = re.compile(r"http://[^/?#]+")


@dataclass(frozen=True, slots=True)
class Urls:
    """Where the CRL, the OCSP responder and the certificate of one authority are found: plain http, reachable before trust exists."""

    crl: str
    ocsp: str
    issuer: str


@dataclass(frozen=True, slots=True)
class Built:
    """A TBSCertificate, and what the store wants to know of it without parsing it. Times are inclusive, UTC, whole seconds."""

    der: bytes
    subject: Name
    not_before: datetime
    not_after: datetime


class Compiled:
    """What one issuer makes of one profile.

    Args:
        profile: must pass every rule of ``policies.rules``.
        issuer: the issuing authority's certificate; None for a root, which issues to itself.
        signature: what the issuer signs with.
        urls: the issuer's; None where the profile has no pointers.
        organization, country: of the settings; fill ``{organization}`` and ``{country}``.
    Raises:
        Malformed: an unsafe profile, one that does not go with this issuer, or values that a name or URL cannot hold.
    """

    def __init__(
        self,
        profile: Profile,
        issuer: Certificate | None,
        signature: SignatureAlgorithm,
        urls: Urls | None,
        organization: str,
        country: str | None,
    ) -> None:
        _check(profile, issuer, signature)
        settings = {"organization": organization} | ({"country": country} if country else {})
        self.profile = profile
        self._issuer = issuer
        self._signature = signature
        self._static = _static_extensions(profile, issuer, urls)
        self._subject = [
            (attribute, _Template(text, settings)) for attribute, text in profile.subject if country or "{country}" not in text
        ]
        self._san = [_Template(text, settings) for text in profile.san]
        self._critical_san = "subjectAltName" in profile.critical
        self._lifetime = profile.validity - _SECOND
        self._template = TbsTemplate(issuer.subject, signature, self._static) if issuer is not None else None
        self._subject_of({"device": "a", "fleet": "a"})  # says now what is wrong with the settings, not at the first device

    def tbs(self, *, serial: int, now: datetime, subject_key: PublicKey, fleet: str, device: str, names: Sequence[str] = ()) -> Built:
        """The TBSCertificate for ``subject_key`` of ``device`` in ``fleet``.

        notBefore lies ``backdate`` before ``now``, but not before the issuer's; notAfter follows so that both ends included the validity is
        exactly the profile's, but is cut at the issuer's: near its end an authority's certificates grow shorter.

        Args:
            serial: as drawn.  names: further names vouched for (``policies.names.choose``); nothing else is written.
            fleet: of the identity; for authorities and OCSP signers anything.  device: its serial number, or the id of an authority.
        Raises:
            Malformed: a device, fleet or name whose syntax is not allowed.
            Refused: a key of the other family, a kind of name that the profile does not write.
            Unavailable: the issuer's certificate has ended or not begun.
        """
        if not DEVICE.fullmatch(device):
            raise Malformed(f"{device!r} is no serial number of a device; use letters, digits, '.' and '-', at most 64")
        if self._san and not SEGMENT.fullmatch(fleet):
            raise Malformed(f"{fleet!r} is no fleet; use lower-case letters, digits and '-'")
        self._check_key(subject_key)
        not_before, not_after = self._validity(now)
        values = {"device": device, "fleet": fleet}
        subject = self._subject_of(values)
        listed = self._alternative_names(values, names)
        if self._template is not None:
            der = self._template.fill(serial, not_before, not_after, subject, subject_key, listed)
        else:
            der = build_tbs(
                serial=serial,
                issuer=subject,
                subject=subject,
                not_before=not_before,
                not_after=not_after,
                public_key=subject_key,
                signature=self._signature,
                extensions=(*self._static, extensions.subject_key_identifier(subject_key), *listed),
            )
        return Built(der, subject, not_before, not_after)

    def _validity(self, now: datetime) -> tuple[datetime, datetime]:
        now = now.astimezone(UTC).replace(microsecond=0)
        not_before = now - self.profile.backdate
        if self._issuer is None:
            return not_before, not_before + self._lifetime
        if now > self._issuer.not_after:
            raise Unavailable(f"the issuing authority ended on {self._issuer.not_after:%Y-%m-%d}; an administrator must renew it")
        if now < self._issuer.not_before:
            raise Unavailable("the clock here is before the issuing authority's begin; an administrator must set it")
        not_before = max(not_before, self._issuer.not_before)
        return not_before, min(not_before + self._lifetime, self._issuer.not_after)

    def _check_key(self, key: PublicKey) -> None:
        if self._issuer is None:
            if SIGNATURES[key.kind] != self._signature:
                raise Malformed(f"a root signs itself, and a {key.kind.value} key does not sign with {self._signature.name}")
        elif key_family(key.kind) != key_family(self._issuer.public_key.kind):
            raise Refused(f"this authority certifies no {key.kind.value} keys; enrol in a fleet of the other algorithm family")

    def _subject_of(self, values: Mapping[str, str]) -> Name:
        return name(*[(attribute, template.fill(values)) for attribute, template in self._subject])

    def _alternative_names(self, values: Mapping[str, str], names: Sequence[str]) -> tuple[Extension, ...]:
        found = dict.fromkeys(filled for template in self._san if (filled := template.name(values)) is not None)
        for text in names:
            check(text)
            if text.partition(":")[0] not in self.profile.names:
                raise Refused(f"profile {self.profile.id} does not write the name {text!r}; ask without it")
            found[text] = None
        return (extensions.subject_alternative_name(*found, critical=self._critical_san),) if found else ()


class _Template:
    """Text with placeholders; those of the settings are filled in once."""

    def __init__(self, text: str, settings: Mapping[str, str]) -> None:
        self._optional = text.startswith("dns:") and text.endswith("?")
        self._lower = text.startswith("dns:")
        pieces = re.split(PLACEHOLDER, text.removesuffix("?") if self._optional else text)
        # re.split alternates: text, placeholder, text, … A setting becomes text and is never looked at again.
        self._pieces = [(settings.get(piece), piece) if at % 2 else (piece, "") for at, piece in enumerate(pieces)]

    def fill(self, values: Mapping[str, str]) -> str:
        return "".join([values[key] if text is None else text for text, key in self._pieces])

    def name(self, values: Mapping[str, str]) -> str | None:
        """As a subject alternative name: None if it was optional and is no host name."""
        text = self.fill(values)
        if self._lower:
            text = text.lower()
            if self._optional and not is_host(text[4:]):
                return None
        return text


def _check(profile: Profile, issuer: Certificate | None, signature: SignatureAlgorithm) -> None:
    if breaches := profile_breaches(profile):
        first = breaches[0]
        raise Malformed(f"profile {profile.id}: {first.key}: {first.text} [{first.rule}]")
    if (issuer is None) != (profile.kind == "root"):
        raise Malformed(f"profile {profile.id} is of kind {profile.kind}: a root issues to itself, everything else has an issuer above it")
    if issuer is not None:
        kind = issuer.public_key.kind
        if not issuer.is_ca or "keyCertSign" not in issuer.key_usage:
            raise Malformed(f"{issuer.subject.text} is no authority; issue with one")
        if profile.kind == "issuing" and issuer.path_length is not None and (profile.path_length or 0) >= issuer.path_length:
            raise Malformed(f"profile {profile.id}: the authority {issuer.subject.text} allows no such path length below it")
        if profile.family not in ("any", key_family(kind)):
            raise Malformed(f"profile {profile.id} is for {profile.family}, and {issuer.subject.text} has a {kind.value} key")
        if SIGNATURES[kind] != signature:
            raise Malformed(f"a {kind.value} key does not sign with {signature.name}")


def _static_extensions(profile: Profile, issuer: Certificate | None, urls: Urls | None) -> list[Extension]:
    """Those that are the same in all certificates of a profile and issuer; the SKI and the SAN follow for each."""
    listed: list[Extension] = []
    if profile.is_ca:
        listed.append(extensions.basic_constraints(True, profile.path_length))
    listed.append(extensions.key_usage(*profile.key_usage))
    if profile.extended_key_usage:
        listed.append(extensions.extended_key_usage(*profile.extended_key_usage, critical="extendedKeyUsage" in profile.critical))
    if profile.kind == "ocsp-signer":
        listed.append(extensions.ocsp_nocheck())
    if profile.policies:
        listed.append(replace(extensions.certificate_policies(*profile.policies), critical="certificatePolicies" in profile.critical))
    listed += _pointers(profile, urls)
    if issuer is not None:
        listed.append(extensions.authority_key_identifier(issuer))
    return listed


def _pointers(profile: Profile, urls: Urls | None) -> list[Extension]:
    wanted = profile.crl or profile.ocsp or profile.issuers
    if not wanted:
        return []
    if urls is None:
        raise Malformed(f"profile {profile.id} points to the issuer's CRL, OCSP or certificate, and there are no URLs for them")
    used = [url for url, used in ((urls.crl, profile.crl), (urls.ocsp, profile.ocsp), (urls.issuer, profile.issuers)) if used]
    for url in used:
        if not _HTTP.match(url):
            raise Malformed(
                f"{url!r} must begin with http:// and a host: whoever checks a TLS certificate cannot need TLS for it (RFC 5280 8)"
            )
    listed = [extensions.crl_distribution_points(urls.crl)] if profile.crl else []
    if profile.ocsp or profile.issuers:
        ocsp, issuers = ([urls.ocsp] if profile.ocsp else []), ([urls.issuer] if profile.issuers else [])
        listed.append(extensions.authority_information_access(ocsp=ocsp, issuers=issuers))
    return listed
