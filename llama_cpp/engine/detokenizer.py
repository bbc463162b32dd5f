"""From tokens to text as it grows: whole characters only, and nothing that may still become a stop string."""

from __future__ import annotations

import codecs
from collections.abc import Collection, Sequence

from ..models.model import Model


class Detokenizer:
    """Joins the bytes of tokens into text.

    A character whose bytes are spread over several tokens appears when it is complete; text that could be the
    beginning of a stop string is held back until it is not.

    Args:
        stop: the text ends before the earliest place where one of these begins.
        preserved: special tokens to write out (a chat format's own markers); others are empty.
    """

    def __init__(self, model: Model, stop: Sequence[str] = (), preserved: Collection[int] = ()) -> None:
        self._model = model
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._between = True  # characters: none has begun
        self._stop = [s for s in stop if s]
        self._longest_stop = max(map(len, self._stop), default=0)
        self._preserved = frozenset(preserved)
        self._held = ""
        self.stopped_by: str | None = None
        self.has_stop = bool(self._stop)

    def bytes_of(self, token: int) -> bytes:
        """What a token adds to the text."""
        special = token in self._preserved
        piece = None if special else self._model.pieces.get(token)
        return self._model.token_to_piece(token, special=special) if piece is None else piece

    def push(self, token: int) -> str:
        """The text that is certain after this token; empty when it completes nothing."""
        special = token in self._preserved
        piece = None if special else self._model.pieces.get(token)
        if piece is None:  # as in bytes_of(), whose call costs as much as the rest
            piece = self._model.token_to_piece(token, special=special)
        if self._between and piece.isascii():
            text = piece.decode("ascii")
        else:
            text = self._decoder.decode(piece)
            self._between = not self._decoder.getstate()[0]
        return self._release(text) if self._stop else text

    def finish(self) -> str:
        """What was held back, when no more tokens come. A broken character becomes U+FFFD."""
        text = self._decoder.decode(b"", final=True)
        if self._stop:
            text = self._release(text)
        text, self._held = text + self._held, ""
        return text

    def _release(self, text: str) -> str:
        if self.stopped_by is not None:
            return ""
        self._held += text
        places = [(at, s) for s in self._stop if (at := self._held.find(s)) >= 0]
        if places:
            at, self.stopped_by = min(places, key=lambda place: (place[0], -len(place[1])))
            certain, self._held = self._held[:at], ""
            return certain
        keep = self._possible_stop_length()
        certain, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return certain

    def _possible_stop_length(self) -> int:
        """Length of the longest end of the held text that begins a stop string."""
        for length in range(min(len(self._held), self._longest_stop - 1), 0, -1):
            if any(s.startswith(self._held[-length:]) for s in self._stop):
                return length
        return 0
