"""What a report shows, as data: a method's room makes sections, the page draws them and knows none of the methods.

Everything here is plain text, numbers and encoded images. The page escapes all text, and embeds an image only when its
bytes are a known format; so a section may hold whatever users call their classes, paths and captions.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, TypeAlias

Kind = Literal["text", "percent", "number", "count", "points", "rate", "duration", "bar", "images"]
"""How the cells of a column are shown. ``percent`` and ``number``: with the column's digits; ``points``: a difference
with its sign; ``rate``: a number of 2 digits or more; ``duration``: seconds; ``bar``: a share 0-1 as the length of a
bar; ``images``: a sequence of `Thumbnail`. None is shown as a dash."""
Place = Literal["after-rounds", "after-gallery"]


@dataclass(frozen=True, kw_only=True)
class Thumbnail:
    """An encoded image within a table; left out when its bytes are no known format."""

    image: bytes
    alt: str


Cell: TypeAlias = str | float | Sequence[Thumbnail] | None


@dataclass(frozen=True)
class Column:
    """One column. Its meaning is shown where it stands; it says what is counted, and of how many.

    Attributes:
        title: The head, with the unit if there is one, such as ``right %``.
        meaning: One sentence.
        kind: How its cells are shown.
        digits: After the point, for ``percent`` and ``number``.
    """

    title: str
    meaning: str
    kind: Kind = "text"
    digits: int = 1


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table; the first column names the row.

    Raises:
        ValueError: When a row has another number of cells than there are columns.
    """

    form: ClassVar[str] = "table"
    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]
    caption: str = ""
    note: str = ""

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(f"a row of {len(row)} cells in a table of {len(self.columns)} columns")

    def without_empty_columns(self) -> "Table":
        """The table without the columns in which every cell is None."""
        kept = [i for i in range(len(self.columns)) if any(row[i] is not None for row in self.rows)]
        return Table(
            columns=[self.columns[i] for i in kept],
            rows=[[row[i] for i in kept] for row in self.rows],
            caption=self.caption,
            note=self.note,
        )


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One drawing as two data: URIs, for light and dark screens, and the words for those who cannot see it."""

    form: ClassVar[str] = "picture"
    light: str
    dark: str
    alt: str


@dataclass(frozen=True, kw_only=True)
class Line:
    """A line below a card's image, such as ``group: two boats``; the label may be empty."""

    text: str
    label: str = ""


@dataclass(frozen=True, kw_only=True)
class Card:
    """An encoded image with a title and lines below it; left out when its bytes are no known format."""

    image: bytes
    alt: str
    title: str
    lines: Sequence[Line] = ()


@dataclass(frozen=True, kw_only=True)
class Cards:
    """Images beside each other."""

    form: ClassVar[str] = "cards"
    cards: Sequence[Card]
    caption: str = ""
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Facts:
    """Names and values, one pair a row."""

    form: ClassVar[str] = "facts"
    facts: Sequence[tuple[str, str]]
    caption: str = ""
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Text:
    """A paragraph."""

    form: ClassVar[str] = "text"
    text: str
    caption: str = ""


Block: TypeAlias = Table | Picture | Cards | Facts | Text


@dataclass(frozen=True, kw_only=True)
class Section:
    """One section of the page.

    Attributes:
        anchor: Its id within the page: small letters and hyphens.
        title: Its heading.
        blocks: From top to bottom.
        note: A sentence below the heading.
        place: Where it stands: after the rounds of pseudo-labels, or after the images.
    """

    anchor: str
    title: str
    blocks: Sequence[Block]
    note: str | None = None
    place: Place = "after-rounds"
