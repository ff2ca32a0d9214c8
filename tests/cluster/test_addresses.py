"""Addresses that people give for a cluster, and what they are told."""

import os
import socket
import subprocess
import sys
import threading

import pytest

from raydapt.cluster.addresses import check_address, given_address
from raydapt.cluster.joining import ensure_ray
from raydapt.cluster.nodes import address_of, may_stay
from raydapt.errors import UserError
from raydapt.settings.groups import RaySettings

_HEAD = """
import ray
ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False)
print(ray.get_runtime_context().gcs_address, flush=True)
input()
"""
_JOIN = """
import ray
from raydapt.cluster.joining import ensure_ray
from raydapt.errors import UserError
from raydapt.settings.groups import RaySettings
try:
    ensure_ray(RaySettings())
    print("joined", len(ray.nodes()))
except UserError as error:
    print(error)
"""


@pytest.fixture(autouse=True)
def _is_not_connected(monkeypatch):
    """Tests of other files may have left their cluster running."""
    monkeypatch.setattr("ray.is_initialized", lambda: False)


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
        ("file:///x", "RAY_ADDRESS='file:///x': no Ray cluster answers there"),
        (
            "ray://head:10001",
            "RAY_ADDRESS='ray://head:10001' is Ray Client's.*submit --address http://head:8265.*head:6379",
        ),
    ],
)
def test_an_address_in_the_environment_that_is_no_clusters(address, words, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(UserError, match=words):
        ensure_ray(RaySettings())


def test_a_stale_address_is_told_at_once_and_by_its_variable(monkeypatch):
    address = f"127.0.0.1:{_closed_port()}"
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(UserError, match=f"Variable RAY_ADDRESS='{address}': nothing answers there"):
        ensure_ray(RaySettings())
    with pytest.raises(UserError, match=f"Setting ray.address='{address}': nothing answers"):
        ensure_ray(RaySettings(address=address))


@pytest.mark.parametrize("answer", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"", None], ids=["web", "closes", "silent"])
def test_a_server_that_is_no_cluster_is_told_before_ray_waits_for_it(answer, monkeypatch):
    monkeypatch.setattr("raydapt.cluster.addresses._SIGN_OF_LIFE_S", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve():
            client, _ = server.accept()
            with client:
                client.recv(1000)
                client.sendall(answer or b"")
                if answer is None:
                    client.recv(1000)  # until the other side hangs up

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        address = f"127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(UserError, match=f"ray.address='{address}': what answers there is no Ray cluster"):
            ensure_ray(RaySettings(address=address))
        thread.join()


@pytest.mark.parametrize("address", [" local", "LOCAL ", "local"])
def test_spaces_and_capitals_are_no_other_address(address, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:1")
    assert address_of(RaySettings(address=address)) == "local"
    assert not may_stay(RaySettings(address=address))
    monkeypatch.setenv("RAY_ADDRESS", address)
    assert address_of(RaySettings(address=" Auto ")) == "local"
    assert may_stay(RaySettings())
    monkeypatch.setenv("RAY_ADDRESS", " 10.0.0.1:1 ")
    assert address_of(RaySettings()) == "10.0.0.1:1"


@pytest.mark.ray
def test_a_running_cluster_is_joined_and_one_that_wants_a_token_is_told(tmp_path):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "7" * 32, "RAY_TMPDIR": "/tmp"}

    def done(code, **variables):
        return subprocess.run(
            [sys.executable, "-c", code], env=environment | variables, capture_output=True, text=True, check=False
        )

    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    head = subprocess.Popen([sys.executable, "-c", _HEAD], env=environment, text=True, **pipes)
    try:
        address = head.stdout.readline().split()[-1]
        joined = done(_JOIN, RAY_ADDRESS=f" {address} ")
        assert "joined 1" in joined.stdout, joined.stdout + joined.stderr
        refused = done(_JOIN, RAY_ADDRESS=address, RAY_AUTH_MODE="disabled")
        assert f"RAY_ADDRESS='{address}': a server answers there" in refused.stdout, refused.stdout + refused.stderr
        assert "export RAY_AUTH_MODE=token" in refused.stdout
    finally:
        head.communicate("end\n")


def test_what_is_left_to_ray():
    for address in ("local", "auto", "anyscale://cluster"):
        check_address(address, "")
    assert given_address(RaySettings(address="local")) == "Setting ray.address='local'"
