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
# What every gRPC server answers with a frame of settings, and a web server with a page (RFC 9113, section 3.4).
_HTTP2_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
_SETTINGS_FRAME = 4
_PLACE = re.compile(r"^(?P<host>\[[0-9A-Fa-f:.]+\]|[^:/\[\]\s]+):(?P<port>\d{1,5})$")


def given_address(settings: RaySettings) -> str:
    """What gave the cluster's address, for sentences."""
    if plain_address(settings.address) == "auto" and (variable := os.environ.get("RAY_ADDRESS", "").strip()):
        return f"Variable RAY_ADDRESS={variable!r}"
    return f"Setting ray.address={settings.address!r}"


def plain_address(address: str) -> str:
    """An address without spaces around it; the words ``local`` and ``auto`` in any case."""
    address = address.strip()
    return address.lower() if address.lower() in ("local", "auto") else address


def has_place(address: str) -> bool:
    """Whether an address names a host and a port, of which `check_address` has had a sign of life."""
    return _PLACE.match(address) is not None


def check_address(address: str, given: str) -> None:
    """Looks whether an address can be a cluster's and whether anything answers there; Ray would wait for minutes.

    Args:
        address: ``local``, ``auto`` or HOST:PORT; other schemes are left to Ray.
        given: What gave it, see `given_address`.

    Raises:
        UserError: For the address of a dashboard or of Ray Client, one without a port, one where no cluster answers.
    """
    if address in ("local", "auto"):
        return
    if address.startswith(("http://", "https://")):
        raise UserError(
            f"{given} is the address of a dashboard, which takes submitted jobs: use 'raydapt submit --address "
            f"{address}', or give the cluster's own address, such as {urlsplit(address).hostname}:6379."
        )
    if address.startswith("ray://"):
        host = urlsplit(address).netloc.partition(":")[0] or "HOST"
        raise UserError(
            f"{given} is Ray Client's, which Ray Data does not run through: send the job with 'raydapt submit "
            f"--address http://{host}:8265', or run it on a machine of the cluster with ray.address={host}:6379."
        )
    place = _PLACE.match(address)
    if place is None:
        if "://" in address:
            return
        host = address.strip("/").partition(":")[0].strip() or "127.0.0.1"
        raise UserError(f"{given} is no address of a cluster: give HOST:PORT, such as {host}:6379, or 'local'.")
    try:
        speaks_grpc = _speaks_grpc(place["host"].strip("[]"), int(place["port"]))
    except (OSError, OverflowError) as error:
        raise UserError(
            f"{given}: nothing answers there ({error}): start a cluster with 'ray start --head', give another address, "
            "or set ray.address=local."
        ) from None
    if not speaks_grpc:
        raise UserError(
            f"{given}: what answers there is no Ray cluster, which is usually at port 6379; a dashboard (port 8265) "
            f"takes 'raydapt submit --address http://{address}'."
        )


def _speaks_grpc(host: str, port: int) -> bool:
    """Whether a server greets as gRPC does; one that wants TLS is believed."""
    with socket.create_connection((host, port), timeout=_SIGN_OF_LIFE_S) as server:
        if os.environ.get("RAY_USE_TLS", "0").lower() not in ("0", "false", ""):
            return True
        try:
            server.sendall(_HTTP2_PREFACE)
            head = server.recv(9, socket.MSG_WAITALL)
        except OSError:  # silent for ten seconds, or gone
            return False
    return len(head) == 9 and head[3] == _SETTINGS_FRAME


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
