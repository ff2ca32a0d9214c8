"""`raydapt doctor` on this machine and on broken ones."""

import os
import subprocess
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from raydapt.settings.config import Config
from raydapt.verbs import doctor
from raydapt.verbs.doctor import Finding, examine, format_findings


def named(findings: list[Finding], name: str) -> Finding:
    return next(finding for finding in findings if finding.name == name)


@pytest.mark.slow
def test_every_line_has_a_state_and_every_trouble_a_remedy(tmp_path: Path) -> None:
    findings = examine(Config(store=str(tmp_path / "store"), runs=str(tmp_path / "runs")))
    assert {"packages", "torchvision", "gpu", "store", "runs", "ray token"} <= {f.name.split(" 0")[0] for f in findings}
    assert all(finding.remedy for finding in findings if finding.state != "ok")
    lines = format_findings(findings).splitlines()
    assert all(line.split()[0] in ("ok", "warning", "failure", "->") for line in lines)


def test_a_token_that_others_can_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    token = tmp_path / "token"
    token.write_text("x")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(token))
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    token.chmod(0o644)
    assert [(f.state, f.remedy) for f in doctor._token()] == [("warning", f"chmod 600 {token}")]
    token.chmod(0o600)
    assert [f.state for f in doctor._token()] == ["ok"]
    token.unlink()
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    assert "get-auth-token" in next(iter(doctor._token())).remedy


@pytest.mark.parametrize(("host", "state"), [("127.0.0.1", "ok"), ("0.0.0.0", "failure")])
def test_a_dashboard_open_to_all(host: str, state: str, monkeypatch: pytest.MonkeyPatch) -> None:
    listening = SimpleNamespace(laddr=SimpleNamespace(ip=host, port=8265), status=psutil.CONN_LISTEN)
    monkeypatch.setattr(psutil, "net_connections", lambda kind: [listening])
    assert [f.state for f in doctor._dashboard()] == [state]


def test_storage_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    found = list(doctor._storage(Config(store=str(tmp_path / "file" / "store"), runs=str(tmp_path / "runs"))))
    assert [(f.name, f.state) for f in found] == [("store", "failure"), ("runs", "ok")]
    assert not any(name.name.startswith(".doctor") for name in (tmp_path / "runs").iterdir())


def test_a_torchvision_of_another_build(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = SimpleNamespace(returncode=1, stdout="", stderr="RuntimeError: operator torchvision::nms does not exist")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: broken)
    (found,) = doctor._torchvision()
    assert found.state == "failure"
    assert "nms" in found.text


def test_a_package_of_another_version(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = ["ray==1.0", "no-such-package>=1", "numpy", 'vllm==9; extra == "vllm"']
    monkeypatch.setattr(doctor.importlib.metadata, "requires", lambda _: wanted)
    (found,) = doctor._packages()
    assert found.state == "failure"
    assert "ray" in found.text
    assert "no-such-package is missing" in found.text
    assert "vllm" not in found.text


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: SimpleNamespace(free=2**20))
    assert {f.state for f in doctor._disk(Config(store=str(tmp_path), runs="s3://bucket/runs"))} == {"failure", "ok"}


@pytest.mark.slow
def test_a_check_that_breaks_does_not_stop_the_others(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def broken() -> list[Finding]:
        raise OSError("no such thing")

    monkeypatch.setattr(doctor, "_gpu", broken)
    findings = examine(Config(store=str(tmp_path / "s"), runs=str(tmp_path / "r")))
    assert named(findings, "broken").state == "failure"
    assert named(findings, "store").state == "ok"


def test_a_data_folder_that_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "RAYDAPT_DATA", "nowhere/at/all")
    assert [f.state for f in doctor._data()] == ["failure"]
