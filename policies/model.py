"""Profiles and fleets: what a certificate looks like, and who may have it. Data only; whether it is safe is judged in ``policies.rules``.

    profile = Profile(id="ecc-device", kind="leaf", family="ecc", validity="90d", ...)
    profile.hash                      # pins the exact profile in every intent

Both are read from TOML by ``policies.loader``. They are frozen, and a key that they do not know is an error.
"""

from __future__ import annotations

import hashlib
import json
import re
from datetime import timedelta
from functools import cached_property
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, PlainSerializer, StrictBool, StrictFloat, StrictInt, field_validator

from pkix.algorithms import KeyKind
from pkix.extensions import EXTENDED_KEY_USAGES, KEY_USAGES

IDENTITY = "uri:urn:ironroot:device:{fleet}:{device}"
"""The one SAN template that every leaf profile has: relying parties map a certificate to its device by this URI, never by CN."""

DEVICE = re.compile(r"[A-Za-z0-9][A-Za-z0-9.-]{0,63}")
"""A device's serial number: characters of a PrintableString (X.520 serialNumber) that stand in a URN as they are (RFC 8141 2)."""

SEGMENT = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
"""Ids of profiles, fleets and authorities: safe as a path segment, a file name and a part of a URN."""

PLACEHOLDER = re.compile(r"\{([a-z]+)\}")
"""A placeholder in a template: what stands there at issue is a value and is not read again."""

EXTENSION_NAMES = ("basicConstraints", "keyUsage", "extendedKeyUsage", "subjectAltName", "certificatePolicies")
"""Extensions whose criticality a profile decides. The rest are never critical (RFC 5280 4.2.1.1, 4.2.1.2, 4.2.1.13, 4.2.2.1)."""

_OID = re.compile(r"[0-2](\.(0|[1-9][0-9]*))+")
_DURATION = re.compile(r"([0-9]{1,6})(s|min|h|d|y)")
_UNITS = {
    "s": timedelta(seconds=1),
    "min": timedelta(minutes=1),
    "h": timedelta(hours=1),
    "d": timedelta(days=1),
    "y": timedelta(days=365),
}


def duration(text: object) -> timedelta:
    """A length of time from ``<number><unit>``: ``s``, ``min``, ``h``, ``d``, or ``y`` of 365 days. Raises ValueError."""
    if isinstance(text, timedelta):
        return text
    found = _DURATION.fullmatch(text) if isinstance(text, str) else None
    if found is None:
        raise ValueError('write a length of time as a number and a unit (s, min, h, d, y), like "90d" or "1h"')
    return int(found[1]) * _UNITS[found[2]]


def _attributes(value: object) -> object:
    """``[{ CN = "…" }, …]`` as TOML has it, to pairs."""
    if not isinstance(value, (list, tuple)):
        return value
    pairs: list[object] = []
    for item in value:
        if not isinstance(item, dict):
            pairs.append(item)
        elif len(item) == 1:
            pairs.extend(item.items())
        else:
            raise ValueError('write each attribute as a table of its own: [{ O = "{organization}" }, { CN = "{device}" }]')
    return pairs


Duration = Annotated[timedelta, BeforeValidator(duration), PlainSerializer(lambda value: int(value.total_seconds()), when_used="json")]
Subject = Annotated[tuple[tuple[str, str], ...], BeforeValidator(_attributes)]


class _Data(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    @field_validator("*", mode="after")
    @classmethod
    def _no_repetition(cls, value: object) -> object:
        if isinstance(value, tuple) and len(set(value)) != len(value):
            raise ValueError("the same entry occurs twice; write it once")
        return value


class Profile(_Data):
    """What a certificate looks like. An extension is present if its key here has a value, and critical if ``critical`` names it.

    Attributes:
        id: its name; the name of its file.
        kind: ``root`` (self-signed), ``issuing`` (a CA under another), ``leaf``, ``ocsp-signer``. BasicConstraints follow from it.
        family: algorithm family of issuer and subject key; ``any`` for either, never mixed.
        validity: from notBefore to notAfter, both inclusive.  backdate: how far notBefore lies before the issuance.
        subject: attributes in order, of ``{device}``, ``{fleet}``, ``{organization}``, ``{country}`` and text. One of ``{country}`` is
            left out where the settings have no country.
        san: templates of subject alternative names; ``dns:{device}?`` is written only if the device's serial is a host name.
        names: kinds of further names that are written, if the authenticator vouches for them.
        csr_names: kinds of names among the vouched for that a CSR may choose from; without, it gets all of them.
        key_usage, extended_key_usage, policies: values of these extensions; RFC 5280 names, or dotted OIDs.
        path_length: pathLenConstraint of a CA.
        critical: which of ``EXTENSION_NAMES`` are.
        crl, ocsp, issuers: whether it points to the issuer's CRL, OCSP responder and certificate.
    """

    id: str
    kind: Literal["root", "issuing", "leaf", "ocsp-signer"]
    family: Literal["ecc", "sm2", "any"]
    validity: Duration
    backdate: Duration
    subject: Subject
    san: tuple[str, ...] = ()
    names: tuple[Literal["dns", "ip"], ...] = ()
    csr_names: tuple[Literal["dns", "ip"], ...] = ()
    key_usage: tuple[str, ...]
    extended_key_usage: tuple[str, ...] = ()
    policies: tuple[str, ...] = ()
    path_length: StrictInt | None = None
    critical: tuple[Literal["basicConstraints", "keyUsage", "extendedKeyUsage", "subjectAltName", "certificatePolicies"], ...]
    crl: StrictBool
    ocsp: StrictBool
    issuers: StrictBool

    @field_validator("key_usage")
    @classmethod
    def _known_usages(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if unknown := set(value) - set(KEY_USAGES):
            raise ValueError(f"no key usage {', '.join(sorted(unknown))}; there are {', '.join(KEY_USAGES)}")
        return value

    @field_validator("extended_key_usage")
    @classmethod
    def _known_purposes(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for purpose in value:
            if purpose not in EXTENDED_KEY_USAGES and not _OID.fullmatch(purpose):
                raise ValueError(f"no purpose {purpose!r}; write one of {', '.join(EXTENDED_KEY_USAGES)}, or a dotted OID")
        if len({EXTENDED_KEY_USAGES.get(purpose, purpose) for purpose in value}) != len(value):
            raise ValueError("the same purpose occurs as name and as OID; write it once")
        return value

    @field_validator("policies")
    @classmethod
    def _dotted(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for policy in value:
            if not _OID.fullmatch(policy):
                raise ValueError(f"{policy!r} is no dotted OID")
        return value

    @property
    def is_ca(self) -> bool:
        """Whether it certifies authorities."""
        return self.kind in ("root", "issuing")

    @cached_property
    def purposes(self) -> tuple[str, ...]:
        """``extended_key_usage`` as dotted OIDs."""
        return tuple(EXTENDED_KEY_USAGES.get(purpose, purpose) for purpose in self.extended_key_usage)

    @cached_property
    def hash(self) -> bytes:
        """SHA-256 of the canonical form (JSON, sorted keys): two profiles with one hash issue the same certificates."""
        return _digest(self)


class IdevidTrust(_Data):
    """Whose IDevIDs (IEEE 802.1AR) a fleet takes: PEM files of manufacturers' CAs, relative to the home folder.

    A file that is not there trusts nobody. ``serial_from`` says where in the IDevID the device's serial number stands.
    """

    trust: tuple[str, ...] = ()
    serial_from: Literal["subject.serialNumber"] = "subject.serialNumber"


class Renewal(_Data):
    """When a device renews: from ``after`` of its certificate's life on, spread over the next ``window`` of it. Both fractions."""

    after: StrictFloat = 0.667
    window: StrictFloat = 0.05


class Fleet(_Data):
    """Who may enrol, how they prove who they are, and what they get.

    Attributes:
        id: its name; the name of its file, and the label in the EST path.
        authority: who issues; its id begins with its family (``ecc-``, ``sm2-``).  profile: what it issues.
        keys: kinds of key that a device may bring.
        authenticators: ``token`` (a one-time token) and ``idevid`` (the manufacturer's certificate); either is enough.
        approval: whether an administrator decides on each first enrolment.
        token_lifetime: how long an invitation is good.
        policies: certificate policies of the profile that this fleet may hand out (AD CS ESC13: an OID that grants rights).
    """

    id: str
    authority: str
    profile: str
    keys: tuple[KeyKind, ...]
    authenticators: tuple[Literal["token", "idevid"], ...]
    approval: Literal["automatic", "manual"]
    token_lifetime: Duration = timedelta(hours=24)
    policies: tuple[str, ...] = ()
    idevid: IdevidTrust = IdevidTrust()
    renew: Renewal = Renewal()

    @property
    def family(self) -> str:
        """``sm2`` or ``ecc``, of its authority."""
        return family_of(self.authority)

    @cached_property
    def hash(self) -> bytes:
        """SHA-256 of the canonical form, as ``Profile.hash``."""
        return _digest(self)


def family_of(authority: str) -> str:
    """The algorithm family that an authority's id begins with."""
    return authority.partition("-")[0]


def key_family(kind: KeyKind) -> str:
    """The algorithm family of a kind of key: ``sm2``, ``pq`` (ML-DSA), or ``ecc`` for the other international ones.

    ``pq`` is a family without authorities: relying parties (``validate`` too) refuse a path that mixes ML-DSA with what it is to outlast.
    """
    return {KeyKind.SM2: "sm2", KeyKind.ML_DSA_65: "pq"}.get(kind, "ecc")


def _digest(data: _Data) -> bytes:
    canonical = json.dumps(data.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).digest()
