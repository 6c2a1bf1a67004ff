"""By which names the studio is reached, and which pages may use it."""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit

from studio.settings import Settings


def is_loopback(name: str) -> bool:
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def host_name(host: str) -> str:
    """The name in a Host header, without its port; "" where there is none."""
    try:
        return (urlsplit(f"//{host}").hostname or "").lower()
    except ValueError:
        return ""


def is_own_name(settings: Settings, host: str) -> bool:
    name = host_name(host)
    return is_loopback(name) or name in settings.allowed_hosts or name == settings.space_host != ""


def is_own_origin(settings: Settings, origin: str, host: str) -> bool:
    """Whether a page of `origin` came from this studio, which was asked for as `host`."""
    try:
        parts = urlsplit(origin)
        default = {"http": 80, "https": 443}[parts.scheme]
        own = urlsplit(f"//{host}")
        is_same_port = (parts.port or default) == (own.port or default)
        if parts.hostname and parts.hostname == own.hostname and is_same_port:
            return True
    except (KeyError, ValueError):
        return False  # "null", or no origin at all
    return parts.hostname in settings.allowed_hosts or parts.hostname == settings.space_host
