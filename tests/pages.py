"""README and the pages beside the notebooks: their fenced blocks."""

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
PAGES = ["README.md", *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "notebooks").glob("*.md"))]


class Block(NamedTuple):
    """A fenced block: the language after its fence (none: a shell's commands), its text, the page and its line."""

    language: str
    text: str
    page: str
    line: int


def blocks(page: str) -> list[Block]:
    """The fenced blocks of a page, in order."""
    text = (ROOT / page).read_text(encoding="utf-8")
    found = re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return [Block(match[1], match[2], page, text[: match.start()].count("\n") + 2) for match in found]
