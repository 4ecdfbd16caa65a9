"""What a certificate may be used for: key usage and extended key usage by purpose (RFC 5280 4.2.1.3, 4.2.1.12).

    why_not(certificate, "tls-server")      # None, or the sentence

The end entity has to allow the purpose, and so has every CA above it that names any (nested, as all implementations have it).
"""

from __future__ import annotations

from dataclasses import dataclass

from pkix import extensions
from pkix.algorithms import KeyKind
from pkix.certificate import Certificate
from pkix.errors import Malformed, Unavailable
from validate.model import Purpose
from validate.text import Text, say

_EKU = extensions.EXTENDED_KEY_USAGES
ANY = _EKU["anyExtendedKeyUsage"]
_DOCUMENTS = "1.3.6.1.5.5.7.3.36"  # id-kp-documentSigning, RFC 9336

_SIGNING = frozenset(("digitalSignature",))
_COMMITTING = frozenset(("digitalSignature", "nonRepudiation"))
_ENCRYPTION = frozenset(("keyEncipherment", "dataEncipherment", "keyAgreement"))


@dataclass(frozen=True, slots=True)
class _Use:
    """Extended key usages of which one is needed, key usages of which one is needed, and the clause.

    ``named``: the certificate must have the extension. ``nested``: CAs that have it must name the purpose too. ``sole``: it stands alone
    there, critical.
    """

    extended: frozenset[str]
    usages: frozenset[str]
    clause: str
    named: bool = False
    nested: bool = True
    sole: bool = False


USES: dict[Purpose, _Use] = {
    "tls-client": _Use(frozenset((_EKU["clientAuth"],)), _SIGNING | {"keyAgreement"}, "RFC 5280 4.2.1.3, 4.2.1.12; RFC 8446 4.4.2.4"),
    "tls-server": _Use(
        frozenset((_EKU["serverAuth"],)), _SIGNING | {"keyEncipherment", "keyAgreement"}, "RFC 5280 4.2.1.3, 4.2.1.12; RFC 8446 4.4.2.2"
    ),
    "code": _Use(frozenset((_EKU["codeSigning"],)), _SIGNING, "RFC 5280 4.2.1.3, 4.2.1.12", named=True),
    "data-signature": _Use(
        frozenset((_DOCUMENTS, _EKU["emailProtection"], ANY)), _COMMITTING, "RFC 5280 4.2.1.3; RFC 9336 3; GM/T 0015 5.2.4.2.4"
    ),
    "data-encryption": _Use(
        frozenset((_EKU["emailProtection"], _EKU["serverAuth"], _EKU["clientAuth"], ANY)),
        _ENCRYPTION,
        "RFC 5280 4.2.1.3; GM/T 0015 5.2.4.2.4",
    ),
    "ocsp-signer": _Use(frozenset((_EKU["OCSPSigning"],)), _COMMITTING, "RFC 6960 4.2.2.2", named=True, nested=False),
    "time-stamp": _Use(frozenset((_EKU["timeStamping"],)), _COMMITTING, "RFC 3161 2.3", named=True, sole=True),
}
"""Every purpose but ``any``."""


def why_not(certificate: Certificate, purpose: Purpose) -> Text | None:
    """Why the end entity ``certificate`` is not for ``purpose``, or None.

    anyExtendedKeyUsage is not enough where the purpose has a name of its own: an application may ask for that (RFC 5280 4.2.1.12).
    """
    if purpose == "any":
        return None
    use = USES[purpose]
    named = certificate.extended_key_usage
    if named:
        if use.extended.isdisjoint(named):
            return say("wrong_purpose", who=certificate, purpose=say(f"for_{purpose}"))
        if use.sole and not (len(named) == 1 and certificate.extensions[extensions.EXTENDED_KEY_USAGE].critical):
            return say("purpose_not_sole", who=certificate, purpose=say(f"for_{purpose}"))
    elif use.named:
        return say("purpose_unnamed", who=certificate, purpose=say(f"for_{purpose}"))
    usage = certificate.key_usage
    if extensions.KEY_USAGE not in certificate.extensions or "digitalSignature" in usage & use.usages:
        return None
    # Of a pair of SM2 certificates the one for encryption proves nobody's presence: its key is escrowed (GM/T 0015, GB/T 38636).
    if usage.isdisjoint(use.usages) or (purpose in ("tls-client", "tls-server") and _is_sm2(certificate)):
        return say("wrong_usage", who=certificate, purpose=say(f"for_{purpose}"), usage=", ".join(sorted(usage)) or "-")
    return None


def _is_sm2(certificate: Certificate) -> bool:
    try:
        return certificate.key_kind is KeyKind.SM2
    except (Malformed, Unavailable):
        return False  # the rule about keys says what is wrong with it


def why_not_below(authority: Certificate, purpose: Purpose) -> Text | None:
    """Why nothing below ``authority`` is for ``purpose``, or None."""
    named = authority.extended_key_usage
    if purpose == "any" or not named or ANY in named:
        return None
    use = USES[purpose]
    if not use.nested or not use.extended.isdisjoint(named):
        return None
    return say("wrong_purpose", who=authority, purpose=say(f"for_{purpose}"))
