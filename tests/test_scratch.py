"""Where decoded images are laid out that do not fit into memory."""

import errno
import os

import pytest
import torch

from raydapt.artefacts import pixels as pixels_
from raydapt.errors import UserError


class _Artefact:
    """Two images of 4 px, as the store would give them."""

    kind, fingerprint = "pixels", "f"

    class manifest:  # noqa: N801
        rows, settings = 2, {"image": {"size_px": 4}}


def test_every_user_has_a_folder_and_a_full_disk_is_one_sentence(tmp_path, monkeypatch):
    assert pixels_.SCRATCH.name == f"raydapt-pixels-{os.getuid()}"
    monkeypatch.setattr(pixels_, "_fill", lambda artefact, array: array.fill(7))
    filled = pixels_.load_pixels(_Artefact, tmp_path / "mine", largest_in_memory=1)
    assert torch.equal(filled, torch.full((2, 3, 4, 4), 7, dtype=torch.uint8))
    assert (tmp_path / "mine").stat().st_mode & 0o077 == 0

    def full(handle, start, size):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(UserError, match=r"cannot be laid out in .*No space left.*TMPDIR"):
        pixels_.load_pixels(_Artefact, tmp_path / "other", largest_in_memory=1)
    assert list((tmp_path / "other").iterdir()) == []
