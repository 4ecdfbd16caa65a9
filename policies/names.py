"""Names of a device beside its identity: what is a host name, and which names a certificate gets.

    choose(profile, vouched=("dns:plc-7.plant", "ip:192.0.2.7"), proposed=csr.names)

Nothing here is written because a CSR asks for it.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence

from pkix.errors import Malformed, Refused
from policies.model import Profile

_LABEL = r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
_HOST = re.compile(rf"({_LABEL}\.)*{_LABEL}")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")


def is_host(text: str) -> bool:
    """Whether ``text`` is a host name in canonical form: lower-case LDH labels (RFC 1123 2.1, RFC 5890), no wildcard, no trailing dot.

    A last label that is a number is refused: resolvers and browsers read such a name as an IPv4 address.
    """
    return len(text) <= 253 and _HOST.fullmatch(text) is not None and not _NUMBER.fullmatch(text.rpartition(".")[2])


def check(name: str) -> None:
    """Refuses a name that no certificate of ours carries.

    Raises:
        Malformed: not ``dns:<host>`` or ``ip:<address>`` in canonical form, a wildcard, an address that is no single host's.
    """
    kind, _, value = name.partition(":")
    if kind == "dns":
        if not is_host(value):
            raise Malformed(f"{name!r} is no host name; write lower-case letters, digits, '-' and '.', A-labels for IDNs, no wildcard")
    elif kind == "ip":
        try:
            address = ipaddress.ip_address(value)
        except ValueError:
            raise Malformed(f"{name!r} is no IP address; write it like ip:192.0.2.7 or ip:2001:db8::7") from None
        if str(address) != value or "%" in value or address.is_unspecified or address.is_multicast:
            raise Malformed(f"{name!r} is no address of one host in its usual form; write ip:{address} of the host itself")
    else:
        raise Malformed(f"{name!r} is no name to certify; write dns:<host> or ip:<address>")


def choose(profile: Profile, *, vouched: Sequence[str], proposed: Sequence[str]) -> tuple[str, ...]:
    """The names to certify beside the identity: those vouched for, in canonical text and order, each once.

    What the CSR proposes counts only if the profile says so, and then only to choose among the names vouched for.

    Args:
        vouched: names that the authenticator stands for (``Identity.names``).
        proposed: names in the CSR (``Csr.names``).
    Raises:
        Refused: a vouched name of a kind that the profile does not write; a proposed one, of a kind the CSR may choose, not vouched for.
        Malformed: a vouched name that is none.
    """
    for name in vouched:
        check(name)
        if name.partition(":")[0] not in profile.names:
            raise Refused(f"profile {profile.id} writes no {name.partition(':')[0]} names, and {name!r} is one; invite without it")
    wanted = {name for name in proposed if name.partition(":")[0] in profile.csr_names}
    if strange := sorted(wanted.difference(vouched)):
        raise Refused(f"the CSR asks for {', '.join(strange)}, which nobody vouched for; name it in the invitation, or leave it out")
    chosen = dict.fromkeys(vouched)
    if wanted:
        return tuple(name for name in chosen if name in wanted or name.partition(":")[0] not in profile.csr_names)
    return tuple(chosen)
