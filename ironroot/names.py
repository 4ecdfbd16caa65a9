"""Host names and addresses as people write them, to the canonical text of subject alternative names."""

from __future__ import annotations

import ipaddress

from policies.names import check


def canonical(text: str) -> str:
    """``scada-1.Plant`` → ``dns:scada-1.plant``, ``::1`` → ``ip:::1``. Raises Malformed on what is neither."""
    text = text.strip()
    try:
        name = f"ip:{ipaddress.ip_address(text.removeprefix('ip:'))}"
    except ValueError:
        name = f"dns:{text.removeprefix('dns:').lower()}"
    check(name)
    return name
