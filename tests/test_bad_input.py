"""What is wrong in files, arguments and the order of calls: each is an exception of its own, and none ends the process."""

from __future__ import annotations

import inspect
import os
import pickle
import struct
import warnings

import pytest

from llama_cpp import Llama, errors
from llama_cpp.errors import (
    EmptyGGUFError,
    GGUFLimitError,
    GGUFMagicError,
    GGUFVersionError,
    IgnoredArgumentWarning,
    InvalidArgumentError,
    InvalidGGUFError,
    LlamaCppError,
    ModelClosedError,
    ModelIsADirectoryError,
    ModelNotFoundError,
    TruncatedGGUFError,
    UnknownArgumentError,
)

# --- files ---


@pytest.fixture(scope="module")
def head(smollm2):
    """The first mebibyte of a real model: its metadata, and the beginning of its vocabulary."""
    with smollm2.open("rb") as file:
        return file.read(1 << 20)


def _write(path, data):
    path.write_bytes(data)
    return path


def test_a_missing_file(tmp_path):
    with pytest.raises(ModelNotFoundError, match=r"nowhere\.gguf") as caught:
        Llama(tmp_path / "nowhere.gguf")
    assert isinstance(caught.value, FileNotFoundError)
    assert caught.value.remedy


def test_a_directory(tmp_path):
    with pytest.raises(ModelIsADirectoryError, match=tmp_path.name) as caught:
        Llama(tmp_path)
    assert isinstance(caught.value, IsADirectoryError)


def test_an_empty_file(tmp_path):
    with pytest.raises(EmptyGGUFError, match="empty"):
        Llama(_write(tmp_path / "m.gguf", b""))


@pytest.mark.parametrize(
    "data", [b"GGUX" + bytes(100), b"PK\x03\x04" + bytes(100), b"#!/bin/sh\necho hello world, this is text\n"]
)
def test_another_kind_of_file(tmp_path, data):
    with pytest.raises(GGUFMagicError, match=r"m\.gguf") as caught:
        Llama(_write(tmp_path / "m.gguf", data))
    assert caught.value.remedy


@pytest.mark.parametrize("version", [0, 1, 4, 0x03000000, 0xFFFFFFFF])
def test_another_version(tmp_path, head, version):
    with pytest.raises(GGUFVersionError):
        Llama(_write(tmp_path / "m.gguf", head[:4] + struct.pack("<I", version) + head[8:]))


@pytest.mark.parametrize("size", [3, 4, 20, 24, 100, 5000, 1 << 20])
@pytest.mark.parametrize("vocab_only", [False, True])
def test_a_truncated_file(tmp_path, head, size, vocab_only):
    with pytest.raises(InvalidGGUFError) as caught:
        Llama(_write(tmp_path / "m.gguf", head[:size]), vocab_only=vocab_only)
    # what is left can also be too little for the counts its header announces
    assert isinstance(caught.value, (TruncatedGGUFError, GGUFLimitError))


def test_a_file_without_its_last_tensors(tmp_path, smollm2):
    path = tmp_path / "m.gguf"
    with smollm2.open("rb") as source, path.open("wb") as target:
        while block := source.read(1 << 24):
            target.write(block)
        target.truncate(target.tell() - (1 << 20))
    with pytest.raises(TruncatedGGUFError) as caught:
        Llama(path)
    assert "ownload" in caught.value.remedy


@pytest.mark.parametrize("offset", [8, 16], ids=["n_tensors", "n_kv"])
@pytest.mark.parametrize("count", [1 << 20, 1 << 40, (1 << 63) - 1, (1 << 64) - 1])
def test_an_absurd_count(tmp_path, head, offset, count):
    with pytest.raises(GGUFLimitError, match=str(count)):
        Llama(_write(tmp_path / "m.gguf", head[:offset] + struct.pack("<Q", count) + head[offset + 8 :]))


@pytest.mark.parametrize("length", [1 << 17, 1 << 40, (1 << 64) - 1])
def test_an_absurd_key_length(tmp_path, head, length):
    with pytest.raises((GGUFLimitError, TruncatedGGUFError)):
        Llama(_write(tmp_path / "m.gguf", head[:24] + struct.pack("<Q", length) + head[32:]))


def test_a_file_that_cannot_be_read(tmp_path):
    path = tmp_path / "fifo"
    os.mkfifo(path)
    with pytest.raises(InvalidGGUFError, match="regular"):
        Llama(path)


def test_a_vocabulary_is_no_model(llama_source):
    """A file with metadata and no tensors, asked to generate."""
    with pytest.raises(LlamaCppError):
        Llama(llama_source / "models" / "ggml-vocab-gpt-2.gguf")


# --- arguments ---


def test_an_unknown_argument_comes_with_a_suggestion(smollm2, llm, monkeypatch):
    """A warning that says which one was meant; an error where the environment asks for that."""
    with pytest.warns(IgnoredArgumentWarning, match="'n_ctxx'.*no effect.*'n_ctx'"):
        Llama(smollm2, n_ctxx=512, vocab_only=True).close()
    with pytest.warns(IgnoredArgumentWarning, match="'max_token'.*'max_tokens'") as warned:
        llm.create_completion("x", max_token=5, max_tokens=1)
    assert warned[0].filename == __file__
    monkeypatch.setenv("LLAMA_CPP_STRICT", "1")
    with pytest.raises(UnknownArgumentError, match="n_ctxx") as caught:
        Llama(smollm2, n_ctxx=512)
    assert "'n_ctx'" in caught.value.remedy
    assert isinstance(caught.value, TypeError)
    with pytest.raises(UnknownArgumentError, match="max_token") as caught:
        llm.create_completion("x", max_token=5)
    assert "'max_tokens'" in caught.value.remedy
    with pytest.raises(UnknownArgumentError, match="zzz") as caught:
        llm.create_chat_completion([{"role": "user", "content": "x"}], zzz=5)
    assert "max_tokens" in caught.value.remedy


def test_what_has_no_effect_warns(smollm2, llm):
    with pytest.warns(IgnoredArgumentWarning, match="tfs_z"):
        llm.create_completion("x", max_tokens=1, tfs_z=0.5)


def test_the_warning_points_at_the_caller(llm):
    with pytest.warns(IgnoredArgumentWarning) as caught:
        llm.create_completion("x", max_tokens=1, tfs_z=0.5)
    assert caught[0].filename == __file__


def test_defaults_written_out_are_silent(smollm2, llm):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        llm.create_completion("x", max_tokens=1, tfs_z=1.0, suffix=None, logprobs=None, logits_processor=None)
        Llama(smollm2, vocab_only=True, embedding=False, lora_path=None, lora_base=None, numa=False).close()


@pytest.mark.parametrize("name", ["logits_processor", "stopping_criteria"])
def test_what_is_no_function_is_refused(llm, name):
    with pytest.raises(InvalidArgumentError, match=f"{name}=.*must be a function"):
        llm.create_completion("x", **{name: [print, 3]})


@pytest.mark.parametrize("suffix, match", [("end", "trained to fill in"), (["end"], "suffix=.*must be a str")])
def test_a_suffix_that_cannot_be(llm, suffix, match):
    with pytest.raises(InvalidArgumentError, match=match):
        llm.create_completion("x", suffix=suffix)


@pytest.mark.parametrize("value", [2, "yes"])
def test_embedding_is_yes_or_no(smollm2, value):
    with pytest.raises(InvalidArgumentError, match="embedding"):
        Llama(smollm2, embedding=value)


@pytest.mark.parametrize("name, value", [("lora_base", "base.gguf"), ("numa", 5), ("numa", "yes")])
def test_what_cannot_be_says_so_at_creation(smollm2, name, value):
    with pytest.raises(InvalidArgumentError, match=name):
        Llama(smollm2, **{name: value})


@pytest.mark.parametrize(
    "name", ["n_ctx", "n_batch", "n_ubatch", "n_threads", "n_threads_batch", "n_gpu_layers", "last_n_tokens_size"]
)
@pytest.mark.parametrize("value", [-5, 2.5, "512", True, 2**31, 2**64, [1]])
def test_a_number_that_cannot_be(smollm2, name, value):
    with pytest.raises(InvalidArgumentError, match=name):
        Llama(smollm2, **{name: value})


@pytest.mark.parametrize("name", ["n_batch", "n_ubatch", "n_threads"])
def test_zero_where_one_is_needed(smollm2, name):
    with pytest.raises(InvalidArgumentError, match=name):
        Llama(smollm2, **{name: 0})


@pytest.mark.parametrize(
    "name, value",
    [("split_mode", "row"), ("main_gpu", "first"), ("type_k", "f16"), ("type_k", 9999), ("flash_attn", "yes"),
     ("rope_freq_base", "high"), ("pooling_type", "mean"), ("kv_overrides", {"general.name": object()}), ("kv_overrides", 5),
     ("kv_overrides", {"k" * 200: 1}), ("kv_overrides", {5: 1}), ("tensor_split", [1.0] * 1000), ("tensor_split", "half"),
     ("seed", "lucky"), ("chat_format", 5)],
)  # fmt: skip
def test_another_type_or_value_is_an_error_of_ours(smollm2, name, value):
    """Not a TypeError from inside ctypes, a KeyError, or an abort."""
    with pytest.raises(LlamaCppError):
        Llama(smollm2, **{"n_ctx": 256, name: value})


@pytest.mark.parametrize("path", [None, 5, b"\xff\0.gguf", "nul\0.gguf", ["a"]])
def test_a_path_that_is_none(path):
    with pytest.raises(LlamaCppError):
        Llama(path)


def test_a_context_of_zero_is_what_the_model_was_trained_with(smollm2):
    with Llama(smollm2, n_ctx=0) as llm:
        assert llm.n_ctx() == int(llm.metadata["llama.context_length"]) == 8192


def test_a_template_that_does_not_parse_is_told_when_it_is_used(smollm2):
    with Llama(smollm2, n_ctx=256, chat_format="{% broken") as llm:
        for _ in range(2):
            with pytest.raises(errors.ChatTemplateError):
                llm.create_chat_completion([{"role": "user", "content": "x"}])
        assert llm.create_completion("x", max_tokens=1)


def test_a_vocabulary_does_not_generate(smollm2):
    with Llama(smollm2, vocab_only=True) as llm:
        assert llm.tokenize(b"Hello")
        assert llm.metadata["general.architecture"] == "llama"
        for use in (
            lambda: llm.create_completion("x"),
            lambda: llm.create_completion("x", stream=True),
            lambda: llm.create_chat_completion([{"role": "user", "content": "x"}]),
            lambda: llm.ctx,
            llm.n_ctx,
            llm.reset,
        ):
            with pytest.raises(InvalidArgumentError, match="vocab_only"):
                use()


# --- after the end ---


def test_a_closed_model_refuses_everything(smollm2):
    llm = Llama(smollm2, n_ctx=256)
    llm.create_chat_completion([{"role": "user", "content": "x"}], max_tokens=1)
    stream = llm.create_completion("x", stream=True, max_tokens=None, logit_bias={llm.token_eos(): -100})
    next(stream)
    llm.close()
    llm.close()
    for use in (
        lambda: list(stream),  # what was computed before comes first
        lambda: llm.create_completion("x"),
        lambda: llm.create_completion([1, 2]),
        lambda: llm.create_chat_completion([{"role": "user", "content": "x"}]),
        lambda: llm.tokenize(b"x"),
        lambda: llm.detokenize([1]),
        lambda: llm.detokenize([]),
        lambda: llm.metadata,
        lambda: llm.ctx,
        lambda: llm.model,
        llm.n_ctx,
        llm.n_vocab,
        llm.n_embd,
        llm.token_bos,
        llm.token_eos,
        llm.token_nl,
        llm.reset,
    ):
        with pytest.raises(ModelClosedError, match="closed"):
            use()


def test_leaving_the_with_block_closes(smollm2):
    with pytest.raises(KeyError), Llama(smollm2, vocab_only=True) as llm:
        raise KeyError
    with pytest.raises(ModelClosedError):
        llm.tokenize(b"x")


def test_a_model_that_never_opened_can_be_closed(tmp_path):
    llm = Llama.__new__(Llama)
    with pytest.raises(ModelNotFoundError):
        llm.__init__(tmp_path / "nowhere.gguf")
    llm.close()


# --- processes ---

_FORK = """
import os, sys
from llama_cpp import Llama
from llama_cpp.errors import ForkedProcessError
llm = Llama(sys.argv[1], n_ctx=256)
stream = llm.create_completion("Once", stream=True, max_tokens=5, temperature=0)
next(stream)
pid = os.fork()
if pid == 0:
    status = 0
    for use in (lambda: llm.tokenize(b"x"), lambda: llm.create_completion("x"), llm.n_ctx, lambda: next(stream),
                lambda: llm.create_chat_completion([{"role": "user", "content": "x"}])):
        try:
            use()
            status |= 1
        except ForkedProcessError as error:
            status |= 0 if "spawn" in error.remedy else 2
    llm.close()
    llm.close()
    sys.exit(status)
child = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
assert child == 0, child
assert len(list(stream)) >= 1
assert llm.create_completion("x", max_tokens=2, temperature=0)["usage"]["completion_tokens"] == 2
"""


def test_a_forked_child_is_refused_and_the_parent_goes_on(run_python, smollm2):
    done = run_python(_FORK, str(smollm2))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", ""), done.stderr


_EXITS = {
    "without close": "",
    "suspended stream": "stream = llm.create_completion('Once', stream=True, max_tokens=50); next(stream)",
    "stream never started": "stream = llm.create_completion('Once', stream=True)",
    "chat": "llm.create_chat_completion([{'role': 'user', 'content': 'Hi'}], max_tokens=2)",
    "suspended chat": (
        "chat = llm.create_chat_completion([{'role': 'user', 'content': 'Hi'}], stream=True); next(chat); next(chat)"
    ),
    "in a cycle": "llm.me = llm; llm.stream = llm.create_completion('Once', stream=True); next(llm.stream)",
    "in a module": "import types, sys; m = types.ModuleType('m'); m.llm = llm; sys.modules['m'] = m",
    "daemon thread": """
import threading, time
started = threading.Event()
def run():
    while True:
        for chunk in llm.create_completion('Once upon a time', stream=True, max_tokens=200, temperature=0):
            started.set()
threading.Thread(target=run, daemon=True).start()
started.wait()
""",
    "thread": "import threading; threading.Thread(target=lambda: llm.create_completion('Once', max_tokens=5)).start()",
    "closed at exit": "import atexit; atexit.register(llm.close)",
    "verbose": "llm.create_completion('x', max_tokens=1)",
    "system exit": "raise SystemExit(0)",
}


@pytest.mark.parametrize("name", _EXITS)
def test_the_interpreter_exits_in_peace(name, run_python, smollm2):
    script = f"import sys\nfrom llama_cpp import Llama\nllm = Llama(sys.argv[1], n_ctx=256)\n{_EXITS[name]}\n"
    done = run_python(script, str(smollm2))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


# --- the exceptions themselves ---

_EXCEPTIONS = [
    c for c in vars(errors).values() if inspect.isclass(c) and issubclass(c, Exception) and c.__module__ == errors.__name__
]


@pytest.mark.parametrize("kind", _EXCEPTIONS, ids=lambda kind: kind.__name__)
def test_every_exception_is_ours_and_also_a_builtin(kind):
    assert kind.__doc__
    if issubclass(kind, Warning):
        assert issubclass(kind, UserWarning)
        return
    assert issubclass(kind, LlamaCppError)
    if kind not in (LlamaCppError, errors.ModelFileError):
        builtins = [c for c in kind.__mro__ if c.__module__ == "builtins" and c not in (Exception, BaseException, object)]
        assert builtins


def test_the_builtins_a_caller_expects():
    expected = {
        "ModelNotFoundError": FileNotFoundError, "ModelIsADirectoryError": IsADirectoryError, "TruncatedGGUFError": ValueError,
        "UnknownArgumentError": TypeError, "InvalidArgumentError": ValueError, "ContextLengthError": ValueError,
        "LibraryNotFoundError": ImportError, "BackendLoadError": OSError, "MissingSymbolError": AttributeError,
        "ModelClosedError": RuntimeError, "GrammarError": ValueError, "ModelDownloadError": OSError,
    }  # fmt: skip
    for name, builtin in expected.items():
        assert issubclass(getattr(errors, name), builtin), name


def test_a_message_ends_with_its_remedy():
    error = LlamaCppError("Broken.", remedy="Mend it.")
    assert str(error) == "Broken. Mend it."
    assert error.remedy == "Mend it."
    assert str(LlamaCppError("Broken.")) == "Broken."
    assert str(errors.ModelNotFoundError("No file.", remedy="Look.")) == "No file. Look."
    assert str(errors.BackendLoadError("No file.", remedy="Look.")) == "No file. Look."


def test_exceptions_survive_pickling():
    """They cross process borders in multiprocessing and concurrent.futures."""
    error = pickle.loads(pickle.dumps(errors.ContextLengthError(10, 5)))
    assert (error.n_prompt, error.n_ctx) == (10, 5)
    error = pickle.loads(pickle.dumps(LlamaCppError("Broken.", remedy="Mend it.")))
    assert (str(error), error.remedy) == ("Broken. Mend it.", "Mend it.")
