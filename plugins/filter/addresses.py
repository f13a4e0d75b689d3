"""The addresses from which a host reaches a server."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


def client_addresses(facts: Mapping[str, Any]) -> list[str]:
    """Return every address of a host that another host may see: which one it takes, its routes decide."""
    found = [*facts.get("all_ipv4_addresses", []), *facts.get("all_ipv6_addresses", [])]
    addresses = {ipaddress.ip_address(str(text).partition("%")[0]) for text in found}
    seen = [address for address in addresses if not address.is_loopback and not address.is_link_local]
    return [str(address) for address in sorted(seen, key=lambda address: (address.version, int(address)))]


class FilterModule:
    """The filter."""

    def filters(self) -> dict[str, Callable[..., list[str]]]:
        """Return it by name."""
        return {"client_addresses": client_addresses}
