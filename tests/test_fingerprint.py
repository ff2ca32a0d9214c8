import hashlib
import os
from pathlib import Path

import pytest

from raydapt.store.fingerprint import files_digest


def test_files_are_read_once_and_again_when_they_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, read = tmp_path / "weights", []
    digest = hashlib.file_digest
    monkeypatch.setattr(hashlib, "file_digest", lambda *given: read.append(given) or digest(*given))
    file.write_bytes(b"one")
    first = files_digest([file], tmp_path)
    assert files_digest([file], tmp_path) == first
    assert len(read) == 1
    file.write_bytes(b"two")  # of the same size
    os.utime(file, ns=(1, 1))
    assert files_digest([file], tmp_path) != first
    file.write_bytes(b"one")
    os.utime(file, ns=(2, 2))
    assert files_digest([file], tmp_path) == first  # the content counts, not the time
