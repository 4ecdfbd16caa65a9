"""How RFC 5280 section 4 wants a certificate to be built, as far as a relying party should mind.

    departure(certificate, anchor=False)      # None, or the sentence that says which rule it breaks
    unknown_critical(certificate)             # the same for critical extensions

A certificate that breaks one of these was made by a program that got something wrong; what else it got wrong nobody knows.
"""

from __future__ import annotations

from pkix import extensions
from pkix.certificate import Certificate
from pkix.constraints import INHIBIT_ANY_POLICY, NAME_CONSTRAINTS, POLICY_CONSTRAINTS, POLICY_MAPPINGS
from validate.names import self_issued, well_formed
from validate.text import Text, say

_FRESHEST_CRL, _SUBJECT_INFO_ACCESS, _SUBJECT_DIRECTORY = "2.5.29.46", "1.3.6.1.5.5.7.1.11", "2.5.29.9"

UNDERSTOOD = frozenset(
    (
        extensions.BASIC_CONSTRAINTS,
        extensions.KEY_USAGE,
        extensions.SUBJECT_ALT_NAME,
        extensions.EXTENDED_KEY_USAGE,
        extensions.CERTIFICATE_POLICIES,
        extensions.CRL_DISTRIBUTION_POINTS,
        NAME_CONSTRAINTS,
        POLICY_MAPPINGS,
        POLICY_CONSTRAINTS,
        INHIBIT_ANY_POLICY,
    )
)
"""Extensions that validation processes and that may therefore be critical (RFC 5280 6.1.4 (o), 6.1.5 (f))."""

_CRITICAL = (NAME_CONSTRAINTS, POLICY_CONSTRAINTS, INHIBIT_ANY_POLICY)
_NOT_CRITICAL = frozenset(
    (
        extensions.AUTHORITY_KEY_IDENTIFIER,
        extensions.SUBJECT_KEY_IDENTIFIER,
        extensions.AUTHORITY_INFO_ACCESS,
        _SUBJECT_INFO_ACCESS,
        _SUBJECT_DIRECTORY,
        _FRESHEST_CRL,
    )
)


def unknown_critical(certificate: Certificate) -> Text | None:
    """The first critical extension of ``certificate`` that is not processed here, as a sentence, or None."""
    for oid in certificate.critical:
        if oid not in UNDERSTOOD:
            return say("unknown_critical", who=certificate, oid=oid)
    return None


def departure(certificate: Certificate, *, anchor: bool, web_pki: bool = False) -> Text | None:
    """The first rule that ``certificate`` breaks, or None. Who issued an ``anchor``, and under which number, is nobody's business.

    ``web_pki``: name constraints may be not critical (CA/Browser Forum BR 7.1.2.10.8).
    """
    found = certificate.extensions
    if not found:
        return say("old_version", who=certificate)
    if certificate.serial <= 0 and not anchor:
        return say("bad_serial", who=certificate)
    for oid in certificate.critical:
        if oid in _NOT_CRITICAL:
            return say("must_not_be_critical", who=certificate, oid=oid)
    for oid in _CRITICAL:
        if oid in found and oid not in certificate.critical and not (web_pki and oid == NAME_CONSTRAINTS):
            return say("must_be_critical", who=certificate, oid=oid)
    return _naming(certificate) or _identifiers(certificate, anchor) or _authority(certificate)


def _naming(certificate: Certificate) -> Text | None:
    """RFC 5280 4.1.2.4, 4.1.2.6, 4.2.1.6."""
    if len(certificate.issuer.der) == 2:
        return say("empty_issuer", who=certificate)
    if len(certificate.subject.der) == 2:
        alternative = certificate.extensions.get(extensions.SUBJECT_ALT_NAME)
        if certificate.is_ca:
            return say("empty_subject")
        if alternative is None or not alternative.critical:
            return say("empty_subject_alternative", who=certificate)
    for name in certificate.names:
        if not well_formed(name):
            return say("bad_name", who=certificate, name=name)
    return None


def _identifiers(certificate: Certificate, anchor: bool) -> Text | None:
    """RFC 5280 4.2.1.1, 4.2.1.2: only a self-signed certificate may do without the issuer's key identifier."""
    if certificate.aki is None and not anchor and not self_issued(certificate):
        return say("no_authority_key", who=certificate)
    if certificate.ski is None and certificate.is_ca:
        return say("no_subject_key", who=certificate)
    return None


def _authority(certificate: Certificate) -> Text | None:
    """RFC 5280 4.2.1.3, 4.2.1.9, 4.2.1.10: what only CAs have, and have together."""
    found = certificate.extensions
    constraints = found.get(extensions.BASIC_CONSTRAINTS)
    signs = "keyCertSign" in certificate.key_usage
    if certificate.is_ca:
        if constraints is not None and not constraints.critical:
            return say("must_be_critical", who=certificate, oid=extensions.BASIC_CONSTRAINTS)
        if extensions.KEY_USAGE in found and not signs:
            return say("ca_usage", who=certificate)
        return None
    if signs or certificate.path_length is not None:
        return say("ca_usage", who=certificate)
    return say("constraints_in_leaf", who=certificate) if NAME_CONSTRAINTS in found else None
