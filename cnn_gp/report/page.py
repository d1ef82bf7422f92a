"""A page of the report as blocks, and as Markdown."""

from collections.abc import Sequence
from typing import NamedTuple

from ..evaluation.tables import Table, to_markdown


class Heading(NamedTuple):
    """Of a section."""

    text: str


class Paragraph(NamedTuple):
    """A text, in which names of files are between backquotes."""

    text: str


class Picture(NamedTuple):
    """A figure of ``figures/NAME.png``."""

    name: str
    caption: str


class Thumbnail(NamedTuple):
    """An image as PNG, and what is said of it, line by line."""

    png: bytes
    lines: Sequence[str]


class Gallery(NamedTuple):
    """Images one by one, where the page can show what is said of each; elsewhere one picture of them all."""

    picture: Picture
    thumbnails: Sequence[Thumbnail]


Block = Heading | Paragraph | Picture | Gallery | Table


def as_markdown(title: str, blocks: Sequence[Block]) -> str:
    """The page as Markdown, which shows its figures from their files."""
    return "\n\n".join([f"# {title}", *map(_block, blocks)]) + "\n"


def _block(block: Block) -> str:
    match block:
        case Heading(text):
            return f"## {text}"
        case Paragraph(text):
            return text
        case Table():
            return to_markdown(*block)
        case Gallery(picture, _):
            return _block(picture)
        case Picture(name, caption):
            return f"![{caption}](figures/{name}.png)"
