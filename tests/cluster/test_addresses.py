"""Addresses that people give for a cluster, and what they are told."""

import socket

import pytest

from raydapt.cluster.addresses import check_address, given_address
from raydapt.cluster.joining import ensure_ray
from raydapt.errors import UserError
from raydapt.settings.groups import RaySettings


def _closed_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("http://127.0.0.1:8265", "RAY_ADDRESS='http://127.0.0.1:8265' is the address of a dashboard.*raydapt submit"),
        ("https://ray.example/x", "address of a dashboard.*ray.example:6379"),
        ("10.0.0.1", "RAY_ADDRESS='10.0.0.1' is no address of a cluster: give HOST:PORT, such as 10.0.0.1:6379"),
        ("head:port", "is no address of a cluster: give HOST:PORT, such as head:6379"),
        ("127.0.0.1:99999", "nothing answers there"),
    ],
)
def test_an_address_in_the_environment_that_is_no_clusters(address, words, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(UserError, match=words):
        ensure_ray(RaySettings())


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_a_stale_address_is_told_at_once_and_by_its_variable(scheme, monkeypatch):
    address = f"{scheme}127.0.0.1:{_closed_port()}"
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(UserError, match=f"Variable RAY_ADDRESS='{address}': nothing answers there"):
        ensure_ray(RaySettings())
    with pytest.raises(UserError, match=f"Setting ray.address='{address}': nothing answers"):
        ensure_ray(RaySettings(address=address))


def test_what_answers_and_what_is_left_to_ray():
    with socket.create_server(("127.0.0.1", 0)) as server:
        check_address(f"127.0.0.1:{server.getsockname()[1]}", "")
    for address in ("local", "auto", "anyscale://cluster"):
        check_address(address, "")
    assert given_address(RaySettings(address="local")) == "Setting ray.address='local'"


def test_a_folder_too_long_for_sockets_is_one_sentence(monkeypatch):
    def refuse(address, start):
        raise OSError("AF_UNIX path length cannot exceed 107 bytes: '/long/session/sockets/plasma_store'")

    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv("TMPDIR", "/long")
    monkeypatch.setattr("raydapt.cluster.joining._init", refuse)
    with pytest.raises(UserError, match=r"TMPDIR='/long'.*set RAY_TMPDIR"):
        ensure_ray(RaySettings(address="local"))
