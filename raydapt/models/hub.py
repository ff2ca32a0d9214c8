"""Files of the Hugging Face hub: from the cache where it has them, with a pinned revision where one is named."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from raydapt.errors import UserError

_UNREACHABLE = {"LocalEntryNotFoundError", "OfflineModeIsEnabled", "ConnectError", "ConnectTimeout", "ConnectionError",
                "ProxyError", "NameResolutionError", "MaxRetryError", "ReadTimeout"}  # fmt: skip


def split_revision(address: str) -> tuple[str, str | None]:
    """``ORG/NAME@REVISION`` to its parts; a revision is a branch, a tag or a commit."""
    repository, _, revision = address.partition("@")
    return repository, revision or None


def hub_cache() -> str:
    """Where files of the hub are kept on this machine."""
    from huggingface_hub import constants

    return str(constants.HF_HUB_CACHE)


def fetch_file(repository: str, name: str, *, revision: str | None = None) -> Path | None:
    """One file of a repository; None where there is none, or the hub cannot be reached and the cache lacks it."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return Path(hf_hub_download(repository, name, revision=revision))
    except (HfHubHTTPError, OSError, ValueError):
        return None


def fetch_folder(repository: str, patterns: Sequence[str], *, revision: str | None, setting: str) -> Path:
    """The folder with some files of a repository.

    Raises:
        UserError: If there is no such repository, or the hub cannot be reached and the cache lacks it.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return Path(snapshot_download(repository, allow_patterns=list(patterns), revision=revision))
    except (HfHubHTTPError, OSError, ValueError) as error:
        if is_unreachable(error):
            at = f" --revision {revision}" if revision else ""
            raise UserError(
                f"{setting} is not in the cache ({hub_cache()}), and the model hub cannot be reached: run "
                f"`hf download {repository}{at}` where it can, copy the cache here or point HF_HOME at it; or give the "
                "path of a folder."
            ) from None
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(
            f"{setting} is not on the model hub ({lines[0][:160]}): check the name and the revision."
        ) from None


def is_unreachable(error: BaseException | None) -> bool:
    """Whether a failure means that the hub could not be asked, or may not be."""
    while error is not None:
        names = {kind.__name__ for kind in type(error).__mro__}
        if names & _UNREACHABLE or "offline" in str(error).lower():
            return True
        error = error.__cause__ or error.__context__
    return False
