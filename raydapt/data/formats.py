"""Which image formats are read, by which suffixes they are found, and what is said of files that are left out."""

from collections.abc import Mapping
from pathlib import PurePosixPath

from PIL import features

_SUFFIXES = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".mpo"),
    "PNG": (".png", ".apng"),
    "WEBP": (".webp",),
    "GIF": (".gif",),
    "BMP": (".bmp", ".dib"),
    "TIFF": (".tif", ".tiff"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
    "JPEG2000": (".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx"),
    "AVIF": (".avif", ".avifs"),
    "HEIF": (".heic", ".heif", ".hif", ".heics", ".heifs"),
}
_WORDS = ["txt", "json", "jsonl", "csv", "tsv", "md", "rst", "xml", "yaml", "yml", "toml", "html", "htm", "ini", "cfg",
          "db", "log", "lock", "pdf", "doc", "docx", "xlsx", "tex", "bib", "py", "ipynb", "url", "lnk", "md5", "sha256",
          "crc", "arrow", "cls", "caption"]  # fmt: skip
_NO_IMAGES = {f".{word}" for word in _WORDS}
"""Suffixes of files that lie beside images and are nobody's images; of all others it is said that they are left out."""
_NAMES_ALONE = {"readme", "license", "licence", "copying", "notice", "citation", "makefile", "checksums", "authors"}
_MOST_NAMED = 6


def _readable() -> dict[str, tuple[str, ...]]:
    """The formats that the installed Pillow, with its plugins, can decode, and their suffixes."""
    there = dict(_SUFFIXES)
    if not features.check("jpg_2000"):
        del there["JPEG2000"]
    if not features.check("avif"):
        del there["AVIF"]
    if not _register_heif():
        del there["HEIF"]
    return there


def _register_heif() -> bool:
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        return False
    register_heif_opener()
    return True


_READABLE = _readable()
FORMATS = tuple(_READABLE)
IMAGE_SUFFIXES = tuple(suffix for suffixes in _READABLE.values() for suffix in suffixes)


def kind_left_out(name: str) -> str | None:
    """What a file that is not read is counted as: its suffix, ``"no suffix"``, or None if nobody would miss it."""
    path = PurePosixPath(name.lower())
    if path.name.startswith("~$") or path.name in ("thumbs.db", "desktop.ini"):
        return None
    suffix = path.suffix
    if not suffix or not suffix[1:].isalnum() or suffix[1:].isdigit():
        return None if path.stem in _NAMES_ALONE else "no suffix"
    return None if suffix in _NO_IMAGES else suffix


def say_left_out(counts: Mapping[str, int]) -> str:
    """A sentence for files that were left out, by kind; empty for none."""
    if not counts:
        return ""
    kinds = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    named = ", ".join(f"{count:,} {kind}" for kind, count in kinds[:_MOST_NAMED])
    more = f" and {len(kinds) - _MOST_NAMED} more kinds" if len(kinds) > _MOST_NAMED else ""
    heif = any(kind in _SUFFIXES["HEIF"] for kind in counts)
    way = "; install raydapt[heif] to read .heic" if heif else ""
    total = sum(counts.values())
    files = "1 file was" if total == 1 else f"{total:,} files were"
    return f"{files} left out, as no images that can be read here: {named}{more}{way}."
