"""Text into tokens and back, against the expectations that come with the engine's source."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from llama_cpp import Llama
from llama_cpp.errors import InvalidArgumentError, TokenizationError

_SOURCE = Path(os.environ.get("LLAMA_CPP_SOURCE_DIR") or Path(__file__).parents[1] / "vendor/llama.cpp/source")
_WITH_EXPECTATIONS = sorted(path.name.removesuffix(".out") for path in (_SOURCE / "models").glob("ggml-vocab-*.gguf.out"))
# these neither lower-case nor drop anything, so their text comes back byte for byte
_LOSSLESS = ("gpt-2", "llama-bpe", "qwen2", "deepseek-coder", "falcon", "gemma-4")


def _cases(vocabulary: Path) -> list[tuple[bytes, list[int]]]:
    """The pairs of a vocabulary, separated as in the engine's own tests/test-tokenizer-0.cpp."""
    texts = Path(f"{vocabulary}.inp").read_bytes().split(b"\n__ggml_vocab_test__\n")
    ids = Path(f"{vocabulary}.out").read_text().splitlines()
    if len(texts) == len(ids) + 1 and not texts[-1]:
        texts.pop()  # a separator at the very end begins no case
    assert len(texts) == len(ids) > 20
    return [(text, [int(token) for token in line.split()]) for text, line in zip(texts, ids)]


@pytest.fixture(scope="module")
def vocabulary(llama_source):
    """Loads a vocabulary by its short name, once."""
    loaded: dict[str, Llama] = {}

    def load(name: str) -> Llama:
        if name not in loaded:
            loaded[name] = Llama(llama_source / "models" / f"ggml-vocab-{name}.gguf", vocab_only=True)
        return loaded[name]

    yield load
    for llm in loaded.values():
        llm.close()


def test_the_source_brings_expectations():
    assert len(_WITH_EXPECTATIONS) >= 15


@pytest.mark.parametrize("name", _WITH_EXPECTATIONS)
def test_tokens_are_the_ones_the_engine_expects(name, llama_source):
    path = llama_source / "models" / name
    with Llama(path, vocab_only=True) as llm:
        for text, expected in _cases(path):
            assert llm.tokenize(text, add_bos=False, special=False) == expected, text


@pytest.mark.parametrize("name", _LOSSLESS)
def test_detokenize_gives_the_text_back(name, vocabulary, llama_source):
    llm = vocabulary(name)
    for text, _ in _cases(llama_source / "models" / f"ggml-vocab-{name}.gguf"):
        assert llm.detokenize(llm.tokenize(text, add_bos=False), special=True) == text


def test_detokenize_of_sentencepiece_gives_the_text_back(vocabulary, llama_source):
    """Its tokenizer puts a space before the text; as in llama-cpp-python, that goes where BOS begins the tokens."""
    llm = vocabulary("llama-spm")
    for text, _ in _cases(llama_source / "models" / "ggml-vocab-llama-spm.gguf"):
        assert llm.detokenize(llm.tokenize(text, add_bos=True)) == text
        assert llm.detokenize(llm.tokenize(text, add_bos=False)) in (text, b" " + text)


@pytest.mark.parametrize("name", ["llama-spm", "gpt-2", "llama-bpe", "qwen2"])
def test_detokenize_with_previous_tokens_gives_what_they_add(name, vocabulary):
    """Token by token it joins to the whole, also where "cleaning up spaces" would take some back."""
    llm = vocabulary(name)
    tokens = llm.tokenize("Is it , then ? It 's a café 🦙 . Don 't".encode())
    pieces = [llm.detokenize([token], prev_tokens=tokens[:index]) for index, token in enumerate(tokens)]
    assert b"".join(pieces) == llm.detokenize(tokens)


def test_pieces_longer_than_32_bytes_are_kept_whole(vocabulary):
    """llama-cpp-python drops them."""
    llm = vocabulary("deepseek-coder")
    lengths = []
    for token in range(llm.n_vocab()):
        lengths.append(len(llm.loaded.model.token_to_piece(token)))
    token = max(range(len(lengths)), key=lengths.__getitem__)
    assert lengths[token] > 64, "longer than the first buffer too"
    text = llm.detokenize([token])
    assert len(text) == lengths[token]
    assert llm.detokenize([token] * 50) == text * 50
    assert text.decode()


@pytest.mark.parametrize("token", [-1, -(2**31), 10**6, 2**31 - 1, 2**40])
def test_a_token_outside_the_vocabulary_is_refused(token, vocabulary):
    llm = vocabulary("gpt-2")
    with pytest.raises(TokenizationError, match=str(token)) as caught:
        llm.detokenize([0, token])
    assert str(llm.n_vocab() - 1) in caught.value.remedy
    with pytest.raises(TokenizationError):
        llm.detokenize([token], prev_tokens=[1])


def test_first_and_last_token_are_in_the_vocabulary(vocabulary):
    llm = vocabulary("gpt-2")
    assert llm.detokenize([0])
    llm.detokenize([llm.n_vocab() - 1])
    with pytest.raises(TokenizationError):
        llm.detokenize([llm.n_vocab()])


def test_empty_text_has_no_tokens_but_the_added_ones(vocabulary):
    assert vocabulary("gpt-2").tokenize(b"", add_bos=False) == []
    spm = vocabulary("llama-spm")
    assert spm.tokenize(b"", add_bos=True) == [spm.token_bos()]
    assert spm.tokenize(b"", add_bos=False) == []
    assert spm.detokenize([]) == b""


@pytest.mark.parametrize("name", ["gpt-2", "llama-bpe", "llama-spm", "bert-bge", "qwen2"])
@pytest.mark.parametrize("text", [b"\xff", b"\xc3", b"\xf0\x9f\xa6", b"ok \x80\x80 ok", bytes(range(128, 256)), b"a\0b"])
def test_bytes_that_are_not_utf8_are_survived(name, text, vocabulary):
    llm = vocabulary(name)
    tokens = llm.tokenize(text, add_bos=False)
    assert all(0 <= token < llm.n_vocab() for token in tokens)
    llm.detokenize(tokens)


def test_special_tokens_are_read_only_when_asked_for(vocabulary):
    llm = vocabulary("qwen2")
    text = b"<|im_start|>user"
    (start, *rest) = llm.tokenize(text, add_bos=False, special=True)
    assert len(rest) == 1
    as_text = llm.tokenize(text, add_bos=False, special=False)
    assert start not in as_text
    assert llm.detokenize(as_text) == text
    # and written only when asked for
    assert llm.detokenize([start, *rest]) == b"user"
    assert llm.detokenize([start, *rest], special=True) == text


def test_bos_is_added_only_when_asked_for(vocabulary):
    llm = vocabulary("llama-spm")
    assert llm.tokenize(b"Hello") == [llm.token_bos(), *llm.tokenize(b"Hello", add_bos=False)]


@pytest.mark.parametrize("text", ["text", None, 5, ["a"]])
def test_only_bytes_are_tokenized(text, vocabulary):
    with pytest.raises(InvalidArgumentError, match=type(text).__name__) as caught:
        vocabulary("gpt-2").tokenize(text)
    assert "encode" in caught.value.remedy


def test_a_bytearray_is_bytes(vocabulary):
    llm = vocabulary("gpt-2")
    assert llm.tokenize(bytearray(b"Hello world")) == llm.tokenize(b"Hello world")


def test_a_long_text_survives_the_round_trip(vocabulary):
    """Far more tokens than any buffer begins with."""
    llm = vocabulary("gpt-2")
    text = "Grüße, 世界! 🦙 ".encode() * 3000
    assert llm.detokenize(llm.tokenize(text, add_bos=False)) == text


def test_embedded_zero_bytes_do_not_end_the_text(vocabulary):
    llm = vocabulary("gpt-2")
    assert llm.detokenize(llm.tokenize(b"before\0after", add_bos=False)) == b"before\0after"
