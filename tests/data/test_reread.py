"""A few images are read again by their rows, whatever part they lie in."""

from pathlib import Path

import pytest
from PIL import Image

from raydapt.data import sources
from raydapt.data.reread import reread_images
from raydapt.data.sources import Source, read_parts, resolve_source
from raydapt.settings.groups import DataSettings

DATA = DataSettings()


@pytest.fixture(scope="module")
def source() -> Source:
    return resolve_source("digits", rows_per_part=25, limit=100)


def everything(source: Source) -> dict[int, tuple[str, bytes]]:
    return {
        row["row"]: (row["id"], row["image"])
        for _, table in read_parts(source.parts, DATA)
        for row in table.select(["row", "id", "image"]).to_pylist()
    }


def test_images_are_those_of_the_rows_in_any_order_and_number(source: Source) -> None:
    rows = [99, 3, 26, 3, 24, 25]
    found = dict(reread_images(source, rows, DATA))
    assert found == {position: everything(source)[row][1] for position, row in enumerate(rows)}
    assert not dict(reread_images(source, [], DATA))


def test_only_the_parts_that_hold_them_are_read(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []

    def watched(parts: list[sources.Part], data: DataSettings) -> object:
        read.extend(part.index for part in parts)
        return read_parts(parts, data)

    monkeypatch.setattr("raydapt.data.reread.read_parts", watched)
    assert len(list(reread_images(source, [80, 5, 79], DATA))) == 3
    assert read == [0, 3]


def test_an_image_whose_content_changed_or_went_is_left_out(tmp_path: Path) -> None:
    for name, grey in (("a", 10), ("b", 20), ("c", 30)):
        Image.new("L", (4, 4), grey).save(tmp_path / f"{name}.png")
    source = resolve_source(str(tmp_path), rows_per_part=2)
    before = everything(source)
    ids = [before[row][0] for row in range(3)]
    Image.new("L", (4, 4), 99).save(tmp_path / "b.png")
    (tmp_path / "c.png").unlink()
    assert dict(reread_images(source, [0, 1, 2], DATA, ids=ids)) == {0: before[0][1]}
    assert set(dict(reread_images(source, [0, 1, 2], DATA))) == {0, 1}
