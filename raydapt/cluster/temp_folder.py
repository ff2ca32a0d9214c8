"""The folder of a local cluster's sockets and logs: Ray takes what the environment says without a look.

Ray 2.60 puts them into ``<RAY_TMPDIR, else TMPDIR, else /tmp>/ray/session_<time>_<pid>/sockets/``. An empty, relative
or long folder ends in a traceback after up to two minutes.
"""

import logging
import os
import sys
import tempfile
from pathlib import Path

from raydapt.errors import UserError

_LOG = logging.getLogger(__name__)
# A process number has at most seven digits.
_SOCKET = "ray/session_2026-11-27_12-00-00_000000_1234567/sockets/plasma_store"
_LONGEST_SOCKET_BYTES = 103 if sys.platform == "darwin" else 107
LONGEST_BYTES = _LONGEST_SOCKET_BYTES - len(_SOCKET) - 1
_SHORT = Path("/tmp")


def temp_folder() -> Path:
    """The folder below which a local Ray puts sockets and logs; empty variables count as unset.

    Raises:
        UserError: When the folder that was asked for is too long for sockets or cannot be written.
    """
    for name in ("RAY_TMPDIR", "TMPDIR"):
        if not os.environ.get(name, "?").strip():
            del os.environ[name]  # Ray's workers inherit it, and would lock files below their working folders
    given = next((name for name in ("RAY_TMPDIR", "TMPDIR") if name in os.environ), None)
    if given is None:
        return _SHORT
    folder = Path(os.environ[given].strip()).expanduser().absolute()
    # Other libraries use TMPDIR too: it is no wish about Ray, and need not stop it.
    elsewhere = given == "TMPDIR" and _refusal(_SHORT) is None
    if length := _excess(folder):
        if elsewhere:
            _LOG.info(
                f"TMPDIR={str(folder)!r} has {length} bytes, and Ray's sockets leave room for {LONGEST_BYTES}: Ray "
                f"keeps its sockets and logs in {_SHORT}/ray (RAY_TMPDIR names another folder)."
            )
            return _SHORT
        raise UserError(
            f"Variable {given}={str(folder)!r} has {length} bytes, and the sockets that Ray puts below it leave room "
            f"for {LONGEST_BYTES}: name a shorter folder, such as export RAY_TMPDIR={_SHORT}."
        )
    if reason := _refusal(folder):
        raise UserError(
            f"Variable {given}={os.environ[given]!r}: Ray cannot put its sockets and logs there ({reason}): name a "
            f"folder that can be written, such as export RAY_TMPDIR={_SHORT}."
        )
    return folder


def _excess(folder: Path) -> int:
    """Length in bytes where it is too long, else 0."""
    length = len(os.fsencode(folder))
    return length if length > LONGEST_BYTES else 0


def _refusal(folder: Path) -> str | None:
    """Why nothing can be written below a folder, which Ray makes where it is missing; None where it can."""
    there = folder / "ray"
    while not os.path.lexists(there):
        there = there.parent
    try:
        Path(tempfile.mkdtemp(dir=there)).rmdir()
    except OSError as error:
        return f"{there}: {error.strerror}"
    return None
