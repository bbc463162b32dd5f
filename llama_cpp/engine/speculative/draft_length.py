"""Whether drafting tokens pays, and how many at once: found out by doing it and looking at the clock."""

from __future__ import annotations


class DraftLength:
    """Chooses how many tokens to draft in each batch.

    What a draft costs depends on the model, the machine and the load, and what it brings on the text. So a number is kept for
    a window of batches, and the tokens that came out of them in a second are compared with those of a window without
    drafts. It begins without, and looks how often drafts would have been right, which costs next to nothing. It tries two
    when that promises something, then more for as long as more is faster. What does not pay is left alone, for a longer
    time each time.
    """

    #: Batches of a window, and those after a change that do not count: a GPU needs a new plan for a batch of another shape,
    #: and records its work again.
    N_WINDOW, N_WARM = 12, 4
    #: Batches without drafts until the next look or try.
    N_PATIENCE, N_MOST_PATIENCE = 16, 1024
    #: A try needs drafts that are right this often, and a number of drafts must be faster by this factor to be kept.
    PROMISING, BETTER = 0.3, 1.03

    def __init__(self) -> None:
        self._speeds: dict[int, float] = {}  # tokens a second by number of drafts
        self._load = 0
        self._patience = self.N_PATIENCE
        self._rest = 0
        self._begin(0)

    def _begin(self, n: int) -> None:
        self._n = n
        self._n_warm = self.N_WARM
        self._n_batches = self._n_tokens = 0
        self._seconds = 0.0

    def number(self, n_sequences: int) -> int:
        """How many tokens to draft for each of so many sequences in the next batch."""
        load = n_sequences.bit_length()
        if load != self._load:
            self._load = load
            self._speeds.clear()
            self._begin(0)
        return self._n

    def wants_probe(self) -> bool:
        """Whether to draft for once without having it checked."""
        if self._n or 0 not in self._speeds or self._rest > 0:
            return False
        self._rest = self._patience
        return True

    def probed(self, rate: float) -> None:
        """So many of the tokens drafted for a look were right."""
        if self._n == 0 and rate >= self.PROMISING:
            self._begin(2)
        elif self._n == 0:
            self._be_patient()

    def _be_patient(self) -> None:
        self._patience = min(2 * self._patience, self.N_MOST_PATIENCE)
        self._rest = self._patience

    def note(self, n_sequences: int, n_tokens: int, seconds: float, n_most: int) -> None:
        """A batch in which so many sequences generated gave so many tokens, in so many seconds.

        Args:
            n_most: tokens that could be drafted at once.
        """
        if n_sequences.bit_length() != self._load:
            return
        self._rest -= 1
        if self._n_warm:
            self._n_warm -= 1
            return
        self._n_batches += 1
        self._n_tokens += n_tokens
        self._seconds += seconds
        if self._n_batches < self.N_WINDOW:
            return
        n, speed = self._n, self._n_tokens / max(self._seconds, 1e-9)
        first = n not in self._speeds
        self._speeds[n] = speed
        if n == 0:
            self._begin(0)
            self._n_warm = 0
            return
        best = max(self._speeds, key=self._speeds.__getitem__)
        if speed < self._speeds[0] * self.BETTER:
            # not worth it, or not any more: texts change
            self._speeds = {0: self._speeds[0]}
            self._begin(0)
            self._be_patient()
        elif first and best == n and 2 * n <= n_most:
            self._begin(2 * n)
        else:
            self._patience = self.N_PATIENCE
            if best != n:
                self._begin(best)
            else:
                self._n_batches = self._n_tokens = 0
                self._seconds = 0.0

    def changed(self) -> None:
        """The shape of batches changed for other reasons: prompts were read, or requests came or went."""
        self._n_warm = max(self._n_warm, 2)
