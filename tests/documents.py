"""Reading Markdown: what is prose, what is code, and where sentences end. For the tests of the documents."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple


class Block(NamedTuple):
    """A fenced block: its language, its text, and how many lines of the document are before it."""

    language: str
    text: str
    line: int


def split(text: str) -> tuple[list[str], list[Block]]:
    """Lines of prose, empty where code was, and the blocks of code."""
    prose: list[str] = []
    blocks: list[Block] = []
    fence, inside = "", []
    for line in text.splitlines():
        mark = re.match(r"\s*(`{3,})(\w*)", line)
        if not fence and mark:
            fence, language, inside = mark[1], mark[2], []
        elif fence and mark and mark[1] == fence and not mark[2]:
            blocks.append(Block(language, "\n".join(inside) + "\n", len(prose) - len(inside)))
            fence = ""
        elif fence:
            inside.append(line)
        prose.append(line if not fence and not mark else "")
    assert not fence, "a block of code does not end"
    return prose, blocks


def inline_code(prose: list[str]) -> list[str]:
    """What stands in backquotes, also over the end of a line."""
    return [" ".join(found.split()) for found in re.findall(r"`([^`]+)`", "\n".join(prose))]


def paragraphs(prose: list[str]) -> Iterator[str]:
    """Headings, items of lists and paragraphs, each as one line; no tables."""
    block: list[str] = []
    for line in [*prose, ""]:
        begins = re.match(r"\s*(?:[-*+]|\d+\.)\s+|#+\s+|>\s*", line)
        ends = not line.strip() or line.lstrip().startswith("|")
        if (begins or ends) and block:
            yield " ".join(block)
            block = []
        if not ends:
            block.append(line[begins.end() if begins else 0 :].strip())
            if line.startswith("#"):
                yield block.pop()


def sentences(paragraph: str) -> list[str]:
    """Sentences; code in backquotes is one word, and of a link its text counts."""
    plain = re.sub(r"`[^`]+`", "code", paragraph)
    plain = re.sub(r"!?\[([^]]*)\]\([^)]*\)", r"\1", plain)
    return [one for one in re.split(r"(?<=[.!?])[\"')*”]*\s+", plain) if one]


def count_words(sentence: str) -> int:
    """Words, and numbers; no dashes."""
    return sum(any(letter.isalnum() for letter in word) for word in sentence.split())


def anchors(path: Path) -> set[str]:
    """What can be linked to in a document: its headings, as GitHub writes them."""
    found: set[str] = set()
    for line in split(path.read_text(encoding="utf-8"))[0]:
        if heading := re.match(r"#+\s+(.*)", line):
            plain = re.sub(r"!?\[([^]]*)\]\([^)]*\)", r"\1", heading[1]).lower()
            found.add(re.sub(r"[^\w\- ]", "", plain).strip().replace(" ", "-"))
    return found


def code(path: Path) -> list[str]:
    """All code of a document: what stands in backquotes, and the lines of blocks."""
    prose, blocks = split(path.read_text(encoding="utf-8"))
    return inline_code(prose) + [line for block in blocks for line in block.text.splitlines()]
