"""Which network addresses may be connected to: a name is resolved once, what it resolves to is judged, and just that is connected to.

    permitted("169.254.169.254", ())                 # False: never, unless a network says so
    permitted("10.1.2.3", PLANT)                     # True
    CheckedResolver(PLANT)                           # for aiohttp's TCPConnector

URLs come out of certificates and redirects; without this they could point at anything that listens behind the firewall.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from aiohttp.abc import AbstractResolver, ResolveResult

Network = IPv4Network | IPv6Network

PLANT: tuple[Network, ...] = tuple(ip_network(text) for text in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7"))
"""The private ranges of RFC 1918 and RFC 4193, where plants live."""
LOOPBACK: tuple[Network, ...] = (ip_network("127.0.0.0/8"), ip_network("::1/128"))

_NAT64 = IPv6Network("64:ff9b::/96")  # RFC 6052
_GLOBAL = IPv6Network("2000::/3")  # RFC 4291 2.4: what else there is of IPv6 is local, or stands for IPv4 in some way
_resolving = ThreadPoolExecutor(4, "dns")  # not the loop's own: a resolver that hangs must not hold up the end of the loop


class Inward(OSError):
    """A name that leads only to addresses that may not be connected to."""


def permitted(address: str, networks: Sequence[Network]) -> bool:
    """Whether an address (text, as resolved) is on the public internet or in one of ``networks``. An IPv4 address inside an IPv6 one
    (mapped, 6to4, Teredo, NAT64) has to be permitted itself."""
    try:
        found = ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if any(found in network for network in networks):
        return True
    if isinstance(found, IPv6Address):
        if found.ipv4_mapped is not None:
            return permitted(str(found.ipv4_mapped), networks)
        if not all(permitted(str(inner), networks) for inner in _carried(found)):
            return False
        if found not in _GLOBAL:
            return found in _NAT64
    return found.is_global and not found.is_multicast


def _carried(address: IPv6Address) -> list[IPv4Address]:
    carried = [address.sixtofour] if address.sixtofour is not None else []
    carried += address.teredo or ()
    return [*carried, IPv4Address(int(address) & 0xFFFFFFFF)] if address in _NAT64 else carried


class CheckedResolver(AbstractResolver):
    """Resolves by the system's resolver and passes on what is ``permitted``.

    Args:
        networks: ranges that may be connected to beside the public ones.
        proxy: a host that may be anywhere: the operator's own choice, not a certificate's.
    """

    def __init__(self, networks: Sequence[Network], proxy: str | None = None) -> None:
        self._networks = networks
        self._proxy = proxy

    async def resolve(self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET) -> list[ResolveResult]:
        """Raises OSError: no such name; Inward: it leads nowhere that is permitted."""
        loop = asyncio.get_running_loop()
        found = await loop.run_in_executor(_resolving, lambda: socket.getaddrinfo(host, port, family, socket.SOCK_STREAM))
        results = [
            ResolveResult(
                hostname=host, host=str(where[0]), port=port, family=kind, proto=proto, flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
            )
            for kind, _, proto, _, where in found
            if host == self._proxy or permitted(str(where[0]), self._networks)
        ]
        if not results:
            raise Inward(f"{host} leads only to addresses that may not be asked")
        return results

    async def close(self) -> None:
        """Nothing to let go of."""
