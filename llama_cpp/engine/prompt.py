"""A prompt: text and media in the order in which they are read.

The KV cache has a cell for each token of text and for each embedding of media. Cells are what everything here counts in.
Positions are another matter: with M-RoPE (Qwen2-VL, Wang et al. 2024) an image takes fewer positions than cells.
"""

from __future__ import annotations

import bisect
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class MediaChunk:
    """An image, or a piece of sound, as embeddings.

    Attributes:
        content_hash: of what it shows and how it was cut; equal ones are computed to the same embeddings.
        n_tokens: embeddings, so cells of the cache.
        n_positions: positions that it takes; None is as many as cells.
        payload: what libmtmd computes it from.
    """

    content_hash: bytes
    n_tokens: int
    n_positions: int | None = None
    payload: Any = field(default=None, compare=False, repr=False)

    @property
    def ids(self) -> list[int]:
        """An id for each cell, for the prefix cache: negative, so none is a token's, and made of the content's hash."""
        digest = hashlib.shake_128(self.content_hash).digest(4 * self.n_tokens)
        return [-1 - (int.from_bytes(digest[at : at + 4], "little") >> 1) for at in range(0, len(digest), 4)]


class Prompt:
    """Text and media. Of text alone it is a list of token ids and nothing else.

    Attributes:
        ids: an id for each cell: of text the token, of media what :attr:`MediaChunk.ids` says. Prompts that begin with the same
            ids begin with the same content.
        media: the media chunks, by the cell that each begins with, in order.
    """

    __slots__ = ("_positions", "_starts", "ids", "media")

    def __init__(self, tokens: Sequence[int]) -> None:
        self.ids: list[int] = list(tokens)
        self.media: dict[int, MediaChunk] = {}
        self._starts: list[int] = []
        self._positions: list[int] = []  # by how much a position behind each chunk differs from the cell's number

    @classmethod
    def of(cls, chunks: Iterable[Sequence[int] | MediaChunk]) -> Prompt:
        """A prompt of token ids and media chunks, one after the other."""
        prompt, skew = cls(()), 0
        for chunk in chunks:
            if isinstance(chunk, MediaChunk):
                prompt.media[len(prompt.ids)] = chunk
                prompt._starts.append(len(prompt.ids))
                skew += (chunk.n_tokens if chunk.n_positions is None else chunk.n_positions) - chunk.n_tokens
                prompt._positions.append(skew)
                prompt.ids += chunk.ids
            else:
                prompt.ids += chunk
        return prompt

    def __len__(self) -> int:
        return len(self.ids)

    def text(self) -> list[int]:
        """The tokens of its text, without what media takes."""
        return [token for token in self.ids if token >= 0]

    def next_media(self, n: int) -> int:
        """The first cell of the next media chunk that does not begin before cell ``n``; -1 if there is none."""
        at = bisect.bisect_left(self._starts, n)
        return self._starts[at] if at < len(self._starts) else -1

    def position(self, n: int) -> int:
        """The position of cell ``n``, which is one of text, or the first of a media chunk, or behind the end."""
        at = bisect.bisect_left(self._starts, n) - 1
        return n + (self._positions[at] if at >= 0 else 0)
