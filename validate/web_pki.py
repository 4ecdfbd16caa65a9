"""Rules of the CA/Browser Forum's Baseline Requirements that RFC 5280 does not have, for peers out on the internet (``Policy.web_pki``).

    subscriber(certificate, public_suffixes)     # None, or the sentence of the first rule that the end entity breaks
    root(certificate)                            # the same for an anchor

Industrial certificates break them with good reason: a device's common name is its serial number.
"""

from __future__ import annotations

import ipaddress

from pkix import der, extensions
from pkix.certificate import Certificate
from validate.names import DNS, IP, general_names, self_issued, subject
from validate.purposes import ANY
from validate.text import Text, say


def subscriber(certificate: Certificate, public_suffixes: frozenset[str]) -> Text | None:
    """BR 7.1.2.7 (extended key usage, alternative names), 7.1.4.3 (common name), 3.2.2.6 (wildcards)."""
    usage = certificate.extensions.get(extensions.EXTENDED_KEY_USAGE)
    if usage is None or usage.critical or ANY in certificate.extended_key_usage:
        return say("web_usage", who=certificate)
    alternative = certificate.extensions.get(extensions.SUBJECT_ALT_NAME)
    if alternative is not None and alternative.critical and subject(certificate):
        return say("web_names_critical", who=certificate)
    for name in certificate.names:
        if name.startswith("dns:*.") and name[6:] in public_suffixes:
            return say("web_wildcard", who=certificate, name=name)
    copies = _copies(alternative.value) if alternative is not None else frozenset()
    odd = next((common for common in certificate.subject.get("CN") if common not in copies), None)
    return None if odd is None else say("web_common_name", who=certificate, name=odd)


def _copies(alternative: bytes) -> frozenset[str]:
    """What a common name may be: a dNSName character for character, or an address as RFC 5952 writes it."""
    found = set()
    for name in general_names(alternative):
        if name.kind == DNS:
            found.add(name.text)
        elif name.kind == IP:
            found.add(str(ipaddress.ip_address(name.value)))
    return frozenset(found)


def root(certificate: Certificate) -> Text | None:
    """BR 7.1.2.1.2 and 7.1.2.1.3: no extended key usage; an authority key identifier is the root's own, and nothing else."""
    if extensions.EXTENDED_KEY_USAGE in certificate.extensions:
        return say("web_root_usage", who=certificate)
    identifier = certificate.extensions.get(extensions.AUTHORITY_KEY_IDENTIFIER)
    if identifier is not None and self_issued(certificate):
        parts = der.children(identifier.value, der.prescan(identifier.value))
        if [part.tag for part in parts] != [0x80] or certificate.aki != certificate.ski:
            return say("web_root_identifier", who=certificate)
    return None
