"""Every exception and warning of the package.

Each one derives from :class:`LlamaCppError` and from the builtin a caller would expect; what a constructor raises is a
``ValueError``, too, because callers of llama-cpp-python catch that. Each says what was
wrong, and carries the way out in :attr:`LlamaCppError.remedy`.
"""

from __future__ import annotations

from typing import Any


class LlamaCppError(Exception):
    """Base of every exception raised by this package.

    Args:
        message: what was wrong, with the offending value.
        remedy: what the reader can do about it; appended to the text.
    """

    def __init__(self, message: str, *, remedy: str = "") -> None:
        super().__init__(f"{message} {remedy}".strip())
        self.remedy = remedy

    def __reduce__(self) -> Any:
        # subclasses have parameters of their own, and an exception travels between processes
        return _restore, (type(self), self.args, self.__dict__)


def _restore(kind: type[LlamaCppError], args: tuple[Any, ...], attributes: dict[str, Any]) -> LlamaCppError:
    error = kind.__new__(kind)
    error.args = args
    error.__dict__.update(attributes)
    return error


# --- the native libraries -------------------------------------------------------------------------


class LibraryNotFoundError(LlamaCppError, ImportError):
    """No folder with the native libraries was found, or a library in it cannot be opened."""


class LibraryMismatchError(LlamaCppError, ImportError):
    """The libraries found were built from other headers than these bindings."""


class MissingSymbolError(LlamaCppError, AttributeError):
    """A function of the bindings does not exist in the library that was loaded."""


class BackendLoadError(LlamaCppError, OSError):
    """A backend plugin (``libggml-*.so``) exists but could not be opened."""


class NoUsableDeviceError(LlamaCppError, RuntimeError, ValueError):
    """A GPU was asked for and no compiled backend can use one."""


class UnsupportedGPUError(LlamaCppError, RuntimeError, ValueError):
    """The GPU's compute capability is not among the architectures compiled into the CUDA backend."""


class NoDeviceWarning(UserWarning):
    """A CUDA build found no GPU it can use and runs on the CPU."""


# --- model files ----------------------------------------------------------------------------------


class ModelFileError(LlamaCppError):
    """Base of what can be wrong with a model file."""


class ModelNotFoundError(ModelFileError, FileNotFoundError, ValueError):
    """The model path does not exist."""


class ModelIsADirectoryError(ModelFileError, IsADirectoryError, ValueError):
    """The model path is a directory."""


class InvalidGGUFError(ModelFileError, ValueError):
    """The file is not a GGUF file the engine could load."""


class EmptyGGUFError(InvalidGGUFError):
    """The file has no bytes."""


class GGUFMagicError(InvalidGGUFError):
    """The file does not begin with the GGUF magic."""


class GGUFVersionError(InvalidGGUFError):
    """The file's GGUF version is not one the engine reads."""


class TruncatedGGUFError(InvalidGGUFError):
    """The file ends before what its header announces."""


class GGUFLimitError(InvalidGGUFError):
    """A count, length or size in the header is absurd: more than the file, or any file, can hold."""


class ModelLoadError(LlamaCppError, RuntimeError, ValueError):
    """The engine refused a model file that passed the file check."""


class AdapterLoadError(LlamaCppError, RuntimeError, ValueError):
    """The engine refused a LoRA adapter: most often it was made for another model."""


class RemoteDeviceError(LlamaCppError, ConnectionError, ValueError):
    """An RPC server cannot be reached, is busy, or is of another version."""


class CacheError(LlamaCppError, OSError):
    """A folder cannot be used as a cache."""


class ModelDownloadError(LlamaCppError, OSError):
    """A model could not be fetched, or what arrived has another hash."""


# --- arguments ------------------------------------------------------------------------------------


class InvalidArgumentError(LlamaCppError, ValueError):
    """An argument's value is outside what it can be."""


class MetadataOverrideError(InvalidArgumentError):
    """An entry of ``kv_overrides`` that the engine would ignore, misread or break on.

    Attributes:
        key: the metadata key.
    """

    def __init__(self, key: object, message: str, *, remedy: str = "") -> None:
        super().__init__(f"kv_overrides cannot replace {key!r}: {message}.", remedy=remedy or "Leave it out.")
        self.key = key


class UnknownArgumentError(LlamaCppError, TypeError, ValueError):
    """A keyword argument that does not exist."""


class IgnoredArgumentWarning(UserWarning):
    """A keyword that there is not, or that has no effect. Python shows it once for each place in the caller's program."""


class ContextLengthError(LlamaCppError, ValueError):
    """A prompt, or a text whose vector is asked for, does not fit into the context.

    Attributes:
        n_prompt: tokens in the prompt.
        n_ctx: tokens the context can hold.
    """

    def __init__(self, n_prompt: int, n_ctx: int, *, answered: bool = True) -> None:
        what, rest = ("prompt", ", one of which is for the answer") if answered else ("text", "")
        super().__init__(
            f"The {what} has {n_prompt} tokens; the context holds {n_ctx}{rest}.",
            remedy=f"Shorten the {what}, or create the model with n_ctx={n_prompt + 256} or more (0 takes the "
            "length the model was trained with).",
        )
        self.n_prompt = n_prompt
        self.n_ctx = n_ctx


class ContextFullError(LlamaCppError, ValueError):
    """A request has filled its context, and asked for an error then, or for what its memory cannot do.

    Attributes:
        n_ctx: tokens the context can hold.
    """

    def __init__(self, n_ctx: int, *, can_shift: bool = True) -> None:
        super().__init__(
            f"The context of {n_ctx} tokens is full" + ("." if can_shift else ", and this model's memory cannot be shifted."),
            remedy='Raise n_ctx, or let the answer be cut (context_full="truncate")'
            + (' or its beginning forgotten ("shift").' if can_shift else "."),
        )
        self.n_ctx = n_ctx


class ChatTemplateError(LlamaCppError, ValueError):
    """A chat template cannot be parsed, or refused the messages."""


class ChatParseError(LlamaCppError, ValueError):
    """The model's answer does not follow the format its chat template announces."""


class GrammarError(LlamaCppError, ValueError):
    """A JSON schema or a GBNF grammar is not valid, or a schema is more than a grammar can hold an answer to."""


class SchemaViolationError(LlamaCppError, ValueError):
    """A finished answer breaks its JSON schema, which was given with ``strict=False``.

    Attributes:
        answer: the text that breaks it: the content, or a call's arguments.
        place: where in the answer, as a JSON pointer. schema_place: the keyword, as one into the schema.
        response: the whole response; None for a stream, which has given all of its chunks.
    """

    def __init__(self, what: str, answer: str, place: str, schema_place: str, why: str) -> None:
        super().__init__(
            f"{what} breaks its schema at {place or 'its root'}: {why} ({schema_place}).",
            remedy="Ask again; the text is in the exception's attribute `answer`.",
        )
        self.answer, self.place, self.schema_place = answer, place, schema_place
        self.response: Any = None


class MissingPackageError(LlamaCppError, ImportError):
    """A package is needed for what was asked, and is not installed."""


class RequestAbortedError(LlamaCppError, RuntimeError):
    """``abort_callback`` ended a request before it began, while a template, a schema or a grammar was read."""


class LimitReachedError(LlamaCppError, RuntimeError):
    """A chat template or a grammar costs more than it may (:class:`~llama_cpp.limits.Limits`)."""


# --- running --------------------------------------------------------------------------------------


class TokenizationError(LlamaCppError, ValueError):
    """The vocabulary cannot tokenize or detokenize this."""


class ContextCreationError(LlamaCppError, RuntimeError, ValueError):
    """The engine could not create a context, most often for lack of memory."""


class MediaNotSupportedError(LlamaCppError, NotImplementedError, ValueError):
    """A prompt holds an image or sound, which this version does not read yet."""


class DecodeError(LlamaCppError, RuntimeError):
    """The engine failed while computing a batch."""


class ModelClosedError(LlamaCppError, RuntimeError):
    """The model was used after ``close()``."""


class ModelBusyError(LlamaCppError, RuntimeError):
    """Too many requests wait for the model."""


class UncopyableError(LlamaCppError, TypeError):
    """What owns a native object was to be copied or pickled: two owners would free it twice."""


class ForkedProcessError(LlamaCppError, RuntimeError):
    """What was created before ``fork()`` (a model, or a GPU backend) was used after it in the child."""


class NativeError(LlamaCppError, RuntimeError):
    """A function of our C API failed in a way that has no name of its own."""
