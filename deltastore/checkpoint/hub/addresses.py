"""Where the hub is, and where it may send us."""

from __future__ import annotations

import ipaddress
from typing import Any, NamedTuple
from urllib.parse import urljoin, urlsplit

from deltastore.checkpoint.hub import limits
from deltastore.errors import shown

_PORTS = {"http": 80, "https": 443}


class MisbehavedError(Exception):
    """A server did what none may; the message says what, after "the server"."""


class NoPartsError(MisbehavedError):
    """A server sends a whole file where a part was asked for: no offence, but of no use."""


class Origin(NamedTuple):
    """What credentials are bound to."""

    scheme: str
    host: str
    port: int | None


def origin_of(url: Any) -> Origin:
    """The origin of a URL of the HTTP library: as it will be asked, not as we would read it."""
    return Origin(url.scheme, url.host, url.port or _PORTS.get(url.scheme))


def redirected(url: str, location: str | None) -> str:
    """The address to which ``url`` sends us.

    Raises:
        MisbehavedError: It is none that may be asked.
    """
    if not location or len(location) > limits.MAX_REDIRECT_CHARS or not location.isprintable():
        raise MisbehavedError(f"redirects to {shown(location)}; expected an address")
    try:
        target = urljoin(url, location)
        parts = urlsplit(target)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise MisbehavedError(f"redirects to {shown(location)}: {error}") from error
    if parts.scheme not in _PORTS or not host:
        raise MisbehavedError(f"redirects to {shown(location)}; expected http or https")
    if parts.scheme == "http" and urlsplit(url).scheme == "https":
        raise MisbehavedError(f"redirects from https to http: {shown(location)}")
    if "@" in parts.netloc or "\\" in target or " " in target:
        raise MisbehavedError(f"redirects to {shown(location)}; expected an address without a user")
    if _is_link_local(host):
        # Where clouds hand out the machine's own credentials; no file is there.
        raise MisbehavedError(f"redirects to {shown(host)}, an address of this machine's own link")
    return parts._replace(fragment="").geturl()


def _is_link_local(host: str) -> bool:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return bool((mapped or address).is_link_local)
