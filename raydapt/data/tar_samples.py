"""The samples of a WebDataset archive: which members belong together, and which of them are images.

WebDataset cuts a name at its first dot: ``a.png`` and ``a.cls`` are one sample, ``a.mask.png`` belongs to it. People
name images ``22.05.png`` and ``IMG_1.2.JPG``, which would all be parts of one sample. So an image whose name has more
dots is a sample by itself, unless the sample has an image of its own and the words between are letters alone.
"""

import json
import re
import tarfile
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from raydapt.data.formats import IMAGE_SUFFIXES, kind_left_out
from raydapt.data.parts import UNREADABLE

TAR_ERRORS = (tarfile.TarError, OSError, EOFError, zlib.error, ValueError)
_KEY = re.compile(r"^((?:.*/)?[^/.][^/.]*)\.([^/]*)$")
_LABEL_EXTENSIONS = ("cls", "json", "txt")
"""In the order in which they are believed."""
_JSON_LABELS = ("label", "label_name", "class_name", "class", "category", "class_id", "label_id", "cls")
"""In the order in which they are believed."""
_MOST_LABEL_BYTES = 1 << 20
_MOST_IMAGES_OF_A_KEY = 64
"""Images with one key that are held until the key ends; names such as ``v1.0001.png`` may all have one."""


@dataclass(kw_only=True)
class Sample:
    """An image with what belongs to it."""

    key: str
    offset: int
    """First byte of the header of the first member that is needed to read it."""
    path: str = ""
    image: bytes | None = None
    error: str | None = None
    label: str | None = None
    split: str | None = None
    label_rank: int = len(_LABEL_EXTENSIONS)
    caption: str | None = None
    """What its ``.json`` calls a caption."""

    @property
    def dotted(self) -> bool:
        """Whether WebDataset's own rule would not have found it."""
        return "." in self.key.rpartition("/")[2]


@dataclass(kw_only=True)
class _Group:
    """The members with one key that follow each other, by what stands before their last dot."""

    key: str
    offset: int
    stems: dict[str, Sample] = field(default_factory=dict)

    def of(self, stem: str, offset: int) -> Sample:
        return self.stems.setdefault(stem, Sample(key=stem, offset=offset))

    @property
    def n_images(self) -> int:
        return sum(bool(sample.path) for sample in self.stems.values())

    def close(self) -> list[Sample]:
        """The samples of the group, in the order of the archive."""
        own = self.stems.get(self.key)
        images = [sample for sample in self.stems.values() if sample.path]
        if own is not None and own.path:
            images = [sample for sample in images if sample is own or _is_numbered(sample.key, self.key)]
        shared = own is not None and (own.label is not None or own.split is not None) and len(images) > 1
        for sample in images:
            if own and sample is not own and sample.label is None and sample.split is None:
                sample.label, sample.split, sample.caption = own.label, own.split, own.caption
            sample.offset = self.offset if shared else sample.offset  # what they share must be read with each
            if sample.label_rank == _LABEL_EXTENSIONS.index("txt") and sample.caption is not None:
                sample.label = None  # a text beside a caption is one, too
        return images


def samples_of(tar: tarfile.TarFile, max_bytes: int, left_out: Counter[str] | None = None) -> Iterator[Sample]:
    """The samples that have an image; those at which an archive breaks off come before the exception.

    Args:
        tar: Gone through once, forwards.
        max_bytes: Larger images are an error, and are not read.
        left_out: Counts members that are not read, by kind (see `raydapt.data.formats`).
    """
    group: _Group | None = None
    try:
        for member in tar:
            tar.members = []  # type: ignore[attr-defined]  # tarfile would remember the header of every file
            match = _KEY.match(member.name)
            if match is None or not member.isfile() or match[1].startswith("__"):
                continue
            stem = member.name.rpartition(".")[0]
            if group is not None and (group.key != match[1] or _is_full(group, stem)):
                yield from group.close()
                group = None
            group = group or _Group(key=match[1], offset=member.offset)
            _take(group.of(stem, member.offset), tar, member, max_bytes, left_out)
    except TAR_ERRORS:
        yield from group.close() if group else ()
        raise
    yield from group.close() if group else ()


def _is_full(group: _Group, stem: str) -> bool:
    return stem not in group.stems and group.n_images >= _MOST_IMAGES_OF_A_KEY


def _is_numbered(stem: str, key: str) -> bool:
    """Whether what stands between a key and the last dot is no word, such as ``mask``, but a part of the name."""
    return any(character.isdigit() for character in stem[len(key) :])


def _take(
    sample: Sample, tar: tarfile.TarFile, member: tarfile.TarInfo, max_bytes: int, left_out: Counter[str] | None
) -> None:
    """Adds a member to its sample: an image that is not too large, or a label."""
    extension = member.name.rpartition(".")[2].lower()
    if f".{extension}" in IMAGE_SUFFIXES:
        if sample.path:
            return
        sample.path = member.name
        if member.size > max_bytes:
            sample.error = "too_many_bytes"
        else:
            sample.image, sample.error = _read_member(tar, member)
    elif extension in _LABEL_EXTENSIONS:
        if _LABEL_EXTENSIONS.index(extension) < sample.label_rank or extension == "json":
            data = _read_member(tar, member)[0] if member.size <= _MOST_LABEL_BYTES else None
            _take_label(sample, data or b"", extension)
    elif left_out is not None and (kind := kind_left_out(member.name)):
        left_out[kind] += 1


def _read_member(tar: tarfile.TarFile, member: tarfile.TarInfo) -> tuple[bytes | None, str | None]:
    try:
        file = tar.extractfile(member)
        return (file.read(), None) if file is not None else (None, UNREADABLE)
    except TAR_ERRORS:
        return None, UNREADABLE


def _take_label(sample: Sample, data: bytes, extension: str) -> None:
    """Label and split in a ``.cls`` or ``.txt`` (one line of text or a number) or a ``.json`` member."""
    text = data.decode("utf-8", "replace").strip()
    label: str | None = None
    if extension == "json":
        try:
            values = json.loads(text)
        except (ValueError, RecursionError):
            return
        if not isinstance(values, dict):
            return
        given = next((values[name] for name in _JSON_LABELS if values.get(name) is not None), None)
        split, caption = values.get("split"), values.get("caption")
        label = str(given) if isinstance(given, str | int) and not isinstance(given, bool) else None
        sample.split = sample.split or (split if isinstance(split, str) else None)
        sample.caption = caption.strip() if isinstance(caption, str) else None
    elif "\n" not in text:
        label = text or None
    rank = _LABEL_EXTENSIONS.index(extension)
    if label is not None and rank < sample.label_rank:
        sample.label, sample.label_rank = label, rank
