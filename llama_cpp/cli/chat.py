"""``llama-cpp chat``."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from ..errors import ContextLengthError, InvalidArgumentError, LlamaCppError
from ..fit.devices import summary
from ..gguf import read_gguf
from ..llama import Llama
from ..models.download import NAME as SAMPLE
from ..models.download import sample_model
from . import for_command_line

_HELP = """\
/reset   forget the conversation
/stats   show or hide speed figures
/exit    leave (or Ctrl-D); Ctrl-C interrupts an answer"""


@dataclass
class ChatSettings:
    """The options of ``llama-cpp chat``, under the names of its flags."""

    model: str
    system: str | None
    n_ctx: int
    n_gpu_layers: int
    threads: int | None
    max_tokens: int | None
    temperature: float
    seed: int | None
    stats: bool
    verbose: bool


def run(settings: ChatSettings, prompt: str | None) -> None:
    """Answers ``prompt`` (or what is piped in) once, or holds a conversation on the terminal.

    The answer goes to stdout and everything else to stderr, so that a pipe carries the answer alone.
    """
    notes = Console(stderr=True, highlight=False)
    on_terminal = sys.stdin is not None and sys.stdin.isatty()
    piped = "" if on_terminal else _piped()
    once = "\n\n".join(text for text in (prompt, piped.strip()) if text)
    if not once and not on_terminal:
        notes.print("error: nothing was piped in and there is no --prompt.")
        raise SystemExit(2)
    path = sample_model() if settings.model == SAMPLE else Path(settings.model)
    if not settings.verbose:
        # the engine warns of much that is no concern of somebody who only wants to talk
        logging.getLogger("llama_cpp.native").setLevel(logging.ERROR)
    with notes.status(f"loading {path.name}"):
        llm = Llama(
            path,
            n_ctx=_context_length(path, settings.n_ctx),
            n_gpu_layers=settings.n_gpu_layers,
            n_threads=settings.threads,
            verbose=settings.verbose,
        )
    with llm:
        conversation = Conversation(llm, settings)
        if once:
            _print_answer(conversation.ask(once))
            if conversation.was_cut:
                notes.print(f"(cut: {conversation.n_tokens} tokens; --max-tokens and --n-ctx bound an answer)", style="dim")
            if settings.stats:
                notes.print(conversation.figures(), style="dim", soft_wrap=True)
        else:
            notes.print(f"{path.name} on {summary()}. /help lists the commands.", style="dim")
            _converse(conversation, settings, notes)


def _piped() -> str:
    """What was piped in; nothing where stdin is closed.

    Raises:
        InvalidArgumentError: it is not text in UTF-8.
    """
    if sys.stdin is None:
        return ""
    data = sys.stdin.buffer.read()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidArgumentError(
            f"What was piped in is not text in UTF-8: byte {error.start} is 0x{data[error.start]:02x}.",
            remedy="Convert it first: iconv -f LATIN1 -t UTF-8.",
        ) from None


class Conversation:
    """The messages so far, and the model that answers them.

    Attributes:
        was_cut: whether the last answer reached a limit.
    """

    def __init__(self, llm: Llama, settings: ChatSettings) -> None:
        self._llm = llm
        self._settings = settings
        self._timings: dict[str, Any] = {}
        self.was_cut = False
        self.reset()

    def reset(self) -> None:
        self.messages: list[dict[str, str]] = []
        if self._settings.system:
            self.messages.append({"role": "system", "content": self._settings.system})

    def ask(self, text: str) -> Iterator[str]:
        """Yields the answer as it comes. What was said stays in the history, also of an interrupted answer.

        Raises:
            ContextLengthError: the conversation no longer fits; the question is taken back.
        """
        self.messages.append({"role": "user", "content": text})
        answer = ""
        try:
            chunks: Any = self._llm.create_chat_completion(
                self.messages,
                stream=True,
                max_tokens=self._settings.max_tokens,
                temperature=self._settings.temperature,
                seed=self._settings.seed,
            )
            for chunk in chunks:
                self._timings = chunk.get("timings", self._timings)
                self.was_cut = chunk["choices"][0]["finish_reason"] == "length"
                delta = chunk["choices"][0]["delta"]
                piece = delta.get("reasoning_content") or delta.get("content") or ""
                answer += delta.get("content") or ""
                yield piece
        finally:
            if answer:
                self.messages.append({"role": "assistant", "content": answer})
            else:
                self.messages.pop()

    @property
    def n_tokens(self) -> int:
        """Tokens of the last answer."""
        return int(self._timings.get("predicted_n", 0))

    def figures(self) -> str:
        """Speed of the last answer."""
        t = self._timings
        if not t:
            return "interrupted"
        return (
            f"{t['predicted_n']} tokens, {t['predicted_per_second']:.1f} tokens/s; prompt {t['prompt_n']} tokens, "
            f"{t['prompt_per_second']:.1f} tokens/s, {t['cache_n']} cached; on {summary()}"
        )


def _print_answer(pieces: Iterator[str]) -> None:
    for piece in pieces:
        sys.stdout.write(piece)
        sys.stdout.flush()
    sys.stdout.write("\n")


def _converse(conversation: Conversation, settings: ChatSettings, notes: Console) -> None:
    with _line_history():
        while True:
            try:
                line = input("> ").strip()
            except (EOFError, KeyboardInterrupt):
                print()
                return
            if line == "/exit":
                return
            if line == "/reset":
                conversation.reset()
            elif line == "/stats":
                settings.stats = not settings.stats
            elif line.startswith("/"):
                notes.print(_HELP)
            elif line:
                _answer_line(conversation, line, settings, notes)


def _answer_line(conversation: Conversation, line: str, settings: ChatSettings, notes: Console) -> None:
    try:
        _print_answer(conversation.ask(line))
    except KeyboardInterrupt:
        print()
        return
    except ContextLengthError as error:
        notes.print(f"{for_command_line(str(error))} /reset forgets the conversation.", style="yellow")
        return
    except LlamaCppError as error:
        notes.print(f"error: {for_command_line(str(error))}", style="red")
        return
    if settings.stats:
        notes.print(conversation.figures(), style="dim", soft_wrap=True)


@contextlib.contextmanager
def _line_history() -> Iterator[None]:
    """Line editing with a history kept between sessions, where Python has readline."""
    try:
        import readline
    except ImportError:
        yield
        return
    state = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
    file = state / "llama-cpp" / "history"
    with contextlib.suppress(OSError):
        readline.read_history_file(file)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            file.parent.mkdir(parents=True, exist_ok=True)
            readline.set_history_length(1000)
            readline.write_history_file(file)


def _context_length(path: Path, wanted: int) -> int:
    """The length asked for, but no more than the model was trained with."""
    metadata = read_gguf(path).metadata
    trained = metadata.get(f"{metadata.get('general.architecture')}.context_length", 0)
    if wanted and isinstance(trained, int) and trained:
        return min(wanted, trained)
    return wanted
