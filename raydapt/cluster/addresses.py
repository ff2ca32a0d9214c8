"""Addresses of clusters and servers: told from one another, and asked for a sign of life before a long wait."""

import os
import re
import socket
from urllib.parse import urlsplit
from urllib.request import getproxies

from raydapt.errors import UserError
from raydapt.settings.groups import RaySettings

LOOPBACK = ("127.0.0.1", "localhost", "::1")
_SIGN_OF_LIFE_S = 10.0
_PLACE = re.compile(r"^(?:ray://)?(?P<host>\[[0-9A-Fa-f:.]+\]|[^:/\[\]\s]+):(?P<port>\d{1,5})$")


def given_address(settings: RaySettings) -> str:
    """What gave the cluster's address, for sentences."""
    if settings.address == "auto" and (variable := os.environ.get("RAY_ADDRESS")):
        return f"Variable RAY_ADDRESS={variable!r}"
    return f"Setting ray.address={settings.address!r}"


def check_address(address: str, given: str) -> None:
    """Looks whether an address can be a cluster's and whether anything answers there; Ray would wait for minutes.

    Args:
        address: ``local``, ``auto``, HOST:PORT or ray://HOST:PORT; other schemes are left to Ray.
        given: What gave it, see `given_address`.

    Raises:
        UserError: For the address of a dashboard, one without a port, and one where nothing answers.
    """
    if address in ("local", "auto"):
        return
    if address.startswith(("http://", "https://")):
        raise UserError(
            f"{given} is the address of a dashboard, which takes submitted jobs: use 'raydapt submit --address "
            f"{address}', or give the cluster's own address, such as {urlsplit(address).hostname}:6379."
        )
    place = _PLACE.match(address)
    if place is None:
        if "://" in address:
            return
        host = address.strip("/").partition(":")[0] or "127.0.0.1"
        raise UserError(f"{given} is no address of a cluster: give HOST:PORT, such as {host}:6379.")
    try:
        with socket.create_connection((place["host"].strip("[]"), int(place["port"])), timeout=_SIGN_OF_LIFE_S):
            return
    except (OSError, OverflowError) as error:
        raise UserError(
            f"{given}: nothing answers there ({error}): start a cluster with 'ray start --head', give another address, "
            "or set ray.address=local."
        ) from None


def leave_loopback_alone() -> None:
    """Takes this machine out of what a proxy of the environment is asked for; a proxy would look on its own machine."""
    if not getproxies():
        return
    for variable in ("no_proxy", "NO_PROXY"):
        hosts = [host for host in os.environ.get(variable, "").split(",") if host.strip()]
        os.environ[variable] = ",".join([*hosts, *(host for host in LOOPBACK if host not in hosts)])


def through_proxy(url: str) -> str:
    """`` through the proxy …`` if the environment sends requests to that address through one; else empty."""
    from urllib.request import proxy_bypass

    parts = urlsplit(url)
    proxy = getproxies().get(parts.scheme) or getproxies().get("all")
    if not proxy or proxy_bypass(parts.hostname or ""):
        return ""
    shown = urlsplit(proxy)
    return f" through the proxy {shown.scheme}://{shown.hostname}:{shown.port or ''}".rstrip(":")
