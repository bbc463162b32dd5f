"""Grammars, tokenizers, drafts, caches and loggers as objects, as programs of llama-cpp-python use them."""

from __future__ import annotations

import copy
import ctypes
import json
import logging
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest

import llama_cpp
from llama_cpp import (
    BaseLlamaCache,
    Llama,
    LlamaDiskCache,
    LlamaDraftModel,
    LlamaGrammar,
    LlamaHFTokenizer,
    LlamaPromptLookupDecoding,
    LlamaRAMCache,
    LlamaTokenizer,
)
from llama_cpp.errors import GrammarError, InvalidArgumentError, LimitReachedError, LlamaCppError, UncopyableError
from llama_cpp.llama_grammar import ARITHMETIC_GBNF, JSON_ARR_GBNF, JSON_GBNF, LIST_GBNF, SchemaConverter, json_schema_to_gbnf

LONG = "The sea is blue and the sky is blue and the sea is blue and the sky is blue and the sea is"


# --- grammars ---


@pytest.mark.offers("LlamaGrammar.from_string", "LlamaGrammar.from_file", "LlamaGrammar.from_json_schema",
                    "grammar=", how="better", note="a grammar that does not parse is an error, with its line")  # fmt: skip
def test_grammars(real, tmp_path):
    file = tmp_path / "answer.gbnf"
    file.write_text('root ::= "yes" | "no"')
    schema = {"enum": ["yes", "no"]}
    for grammar, expected in (
        (LlamaGrammar.from_string('root ::= "yes" | "no"', verbose=False), ("yes", "no")),
        (LlamaGrammar.from_file(file), ("yes", "no")), (LlamaGrammar.from_file(str(file)), ("yes", "no")),
        (LlamaGrammar.from_json_schema(json.dumps(schema)), ('"yes"', '"no"')), ('root ::= "yes" | "no"', ("yes", "no")),
    ):  # fmt: skip
        answer = real("Is the sea blue?", grammar=grammar, max_tokens=10, temperature=0)
        assert answer["choices"][0]["text"].strip() in expected
        assert real.create_chat_completion(
            [{"role": "user", "content": "Is the sea blue?"}], grammar=grammar, max_tokens=10
        )["choices"][0]["message"]["content"].strip() in expected  # fmt: skip
    again = pickle.loads(pickle.dumps(LlamaGrammar.from_file(file)))
    assert again == LlamaGrammar.from_file(file) and hash(again) == hash(LlamaGrammar.from_file(file))


@pytest.mark.parametrize("grammar", [JSON_GBNF, JSON_ARR_GBNF, LIST_GBNF, ARITHMETIC_GBNF])
def test_well_known_grammars(real, grammar):
    answer = real("Answer: ", grammar=LlamaGrammar.from_string(grammar), max_tokens=60, temperature=0.8, seed=3)["choices"][0]
    if grammar in (JSON_GBNF, JSON_ARR_GBNF) and answer["finish_reason"] == "stop":
        assert isinstance(json.loads(answer["text"]), (dict, list))


@pytest.mark.parametrize(
    "wrong",
    [lambda: LlamaGrammar.from_string("root ::= ("), lambda: LlamaGrammar.from_string("x ::= y"),
     lambda: LlamaGrammar.from_string(""), lambda: LlamaGrammar.from_string(5),
     lambda: LlamaGrammar.from_string("root ::= root"), lambda: LlamaGrammar.from_file("no such"),
     lambda: LlamaGrammar.from_string("root ::= \0"), lambda: LlamaGrammar.from_json_schema("{"),
     lambda: LlamaGrammar.from_json_schema({"type": "nothing"}), lambda: LlamaGrammar.from_file(5)],
)  # fmt: skip
def test_grammars_that_are_none(wrong):
    with pytest.raises((GrammarError, InvalidArgumentError)):
        wrong()


def test_a_grammar_that_names_tokens_can_be_read_without_a_model(real):
    grammar = LlamaGrammar.from_string('root ::= <|im_start|> "yes" | "no"'.replace("<|im_start|>", "<|im_end|>"))
    assert real("x", grammar=grammar, max_tokens=2)


def test_a_grammar_that_costs_too_much():
    deep = "\n".join(f"r{i} ::= r{i + 1} r{i + 1}" for i in range(40)) + '\nr40 ::= "a"?\nroot ::= r0 "b"'
    with pytest.raises(LimitReachedError):
        LlamaGrammar.from_string(deep)


@pytest.mark.offers("json_schema_to_gbnf", "SchemaConverter", how="better", note="what it admits satisfies the schema")
def test_schemas():
    schema = {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "boolean"}}, "required": ["a", "b"]}
    assert "root ::=" in json_schema_to_gbnf(json.dumps(schema))
    assert json_schema_to_gbnf(schema).index('\\"a\\"') < json_schema_to_gbnf(schema).index('\\"b\\"')
    turned = json_schema_to_gbnf(schema, prop_order=["b"])
    assert turned.index('\\"b\\"') < turned.index('\\"a\\"')
    converter = SchemaConverter(prop_order={"b": 0})
    converter.visit(converter.resolve_refs(schema, "input"), "")
    assert converter.format_grammar() == turned


def test_pydantic_models(real):
    import pydantic

    class Point(pydantic.BaseModel):
        x: int = pydantic.Field(ge=0, le=9)
        y: bool

    answer = real("A point: ", grammar=LlamaGrammar.from_json_schema(Point), max_tokens=60, temperature=0)["choices"][0]
    assert Point.model_validate_json(answer["text"])
    message = real.create_chat_completion(
        [{"role": "user", "content": "A point"}], response_format=Point, max_tokens=60, temperature=0
    )["choices"][0]["message"]  # fmt: skip
    assert Point.model_validate_json(message["content"])


# --- tokenizers ---


@pytest.mark.offers("LlamaTokenizer", "Llama.tokenizer", "Llama.tokenizer_", how="same")
def test_tokenizers(real):
    tokenizer = real.tokenizer()
    assert isinstance(tokenizer, LlamaTokenizer) and real.tokenizer_ is None
    tokens = tokenizer.tokenize(b"Hello <|im_end|>", add_bos=False, special=True)
    assert tokens == real.tokenize(b"Hello <|im_end|>", add_bos=False, special=True)
    assert tokenizer.detokenize(tokens[:1]) == b"Hello" and tokenizer.decode(tokenizer.encode("Hello", add_bos=False)) == "Hello"
    assert tokenizer.detokenize(tokens[1:2], prev_tokens=tokens[:1]) == real.detokenize(tokens[1:2], prev_tokens=tokens[:1])
    own = LlamaTokenizer.from_ggml_file(real.model_path)
    assert own.encode("Hello") == tokenizer.encode("Hello")
    with pytest.raises(InvalidArgumentError):
        tokenizer.encode(b"bytes")


@pytest.mark.offers("LlamaHFTokenizer", "Llama(tokenizer=…)", how="same")
def test_a_tokenizer_of_ones_own(smollm2, real):
    class Words:
        """What transformers' tokenizers have of methods."""

        def encode(self, text, add_special_tokens=True, **_):
            return real.tokenize(text.encode(), add_bos=add_special_tokens)

        def decode(self, tokens, skip_special_tokens=True):
            return real.detokenize(tokens, special=not skip_special_tokens).decode()

    with Llama(smollm2, n_ctx=64, tokenizer=LlamaHFTokenizer(Words())) as llm:
        assert isinstance(llm.tokenizer_.hf_tokenizer, Words)
        tokens = llm.tokenize(b"Hello there", add_bos=False)
        assert tokens == real.tokenize(b"Hello there", add_bos=False) and llm.detokenize(tokens) == b"Hello there"
        assert llm.detokenize(tokens[1:], prev_tokens=tokens[:1]) == b" there"
    with pytest.raises(InvalidArgumentError, match="tokenize"):
        Llama(smollm2, tokenizer=5)


def test_what_an_async_model_takes_of_it(smollm2, real):
    import asyncio

    from llama_cpp import AsyncLlama

    class Reversed(llama_cpp.BaseLlamaTokenizer):
        def tokenize(self, text, add_bos=True, special=True):
            return [7, 8]

        def detokenize(self, tokens, prev_tokens=None, special=False):
            return b"own"

    async def use():
        async with AsyncLlama(smollm2, vocab_only=True, tokenizer=Reversed()) as llm:
            assert await llm.tokenize(b"x") == [7, 8] and await llm.detokenize([5]) == b"own"

    asyncio.run(use())
    with pytest.raises(InvalidArgumentError, match="chat_handler"):
        AsyncLlama(smollm2, chat_handler=print)


# --- drafts ---


class Repeats(LlamaDraftModel):
    """What came 14 tokens ago comes again."""

    def __init__(self):
        self.asked = []

    def __call__(self, input_ids, /, **kwargs):
        self.asked.append(input_ids.copy())
        return input_ids[-14:-6]


@pytest.mark.offers(
    "LlamaDraftModel",
    "LlamaPromptLookupDecoding",
    how="better",
    note="for many requests at once, as long as it pays",
)
def test_drafts_by_objects(smollm2, real):
    expected = real.create_completion(LONG, max_tokens=40, temperature=0)["choices"][0]["text"]
    drafts = Repeats()
    for draft_model in (drafts, LlamaPromptLookupDecoding(num_pred_tokens=2), LlamaPromptLookupDecoding(max_ngram_size=3)):
        with Llama(smollm2, n_ctx=512, n_batch=16, draft_model=draft_model) as llm:
            assert llm.create_completion(LONG, max_tokens=40, temperature=0)["choices"][0]["text"] == expected
    assert (
        drafts.asked
        and drafts.asked[0].dtype == np.intc
        and drafts.asked[0][: len(LONG)].tolist()[:3] == real.tokenize(LONG.encode())[:3]
    )


@pytest.mark.parametrize("rubbish", [RuntimeError("no"), "text", [10**9], [[1, 2]], [1.5], None])
def test_drafts_that_fail_change_no_answer(smollm2, real, caplog, rubbish):
    class Fails(LlamaDraftModel):
        def __call__(self, input_ids, /, **kwargs):
            if isinstance(rubbish, Exception):
                raise rubbish
            return rubbish

    expected = real.create_completion(LONG, max_tokens=20, temperature=0)["choices"][0]["text"]
    with Llama(smollm2, n_ctx=512, draft_model=Fails()) as llm, caplog.at_level(logging.ERROR, "llama_cpp"):
        for _ in range(2):
            assert llm.create_completion(LONG, max_tokens=20, temperature=0)["choices"][0]["text"] == expected
    assert sum("cannot draft" in record.message for record in caplog.records) <= 1


def test_what_drafts_is_looked_at(smollm2):
    for wrong in (lambda ids: ids, 5):
        with pytest.raises(LlamaCppError):
            Llama(smollm2, draft_model=wrong)
    assert LlamaPromptLookupDecoding(2, 3)(np.array([1, 2, 3, 4, 1, 2])).tolist() == [3, 4, 1]
    assert LlamaPromptLookupDecoding(2, 3)(np.array([1, 2, 3])).tolist() == []
    with pytest.raises(InvalidArgumentError):
        LlamaPromptLookupDecoding(0)


# --- caches ---


class Dictionary(BaseLlamaCache):
    """A cache as programs write them for llama-cpp-python."""

    def __init__(self, capacity_bytes=1 << 30):
        super().__init__(capacity_bytes)
        self.states = {}

    @property
    def cache_size(self):
        return sum(state.llama_state_size for state in self.states.values())

    def _find_longest_prefix_key(self, key):
        found = [(Llama.longest_token_prefix(own, key), own) for own in self.states]
        return max(found)[1] if found and max(found)[0] else None

    def __getitem__(self, key):
        own = self._find_longest_prefix_key(tuple(key))
        if own is None:
            raise KeyError("Key not found")
        return self.states[own]

    def __contains__(self, key):
        return self._find_longest_prefix_key(tuple(key)) is not None

    def __setitem__(self, key, value):
        self.states[tuple(key)] = value


@pytest.mark.offers("BaseLlamaCache", "LlamaCache", "LlamaRAMCache", "LlamaDiskCache", "Llama.set_cache", how="better",
                    note="for all requests; bytes only, nothing is unpickled")  # fmt: skip
@pytest.mark.parametrize("kind", [Dictionary, LlamaRAMCache, LlamaDiskCache])
def test_caches(smollm2, tmp_path, kind):
    where = {"cache_dir": str(tmp_path / "cache")} if kind is LlamaDiskCache else {}
    cache = kind(capacity_bytes=1 << 30, **where)
    prompts = [f"{letter} " * 90 for letter in "abcdefghijkl"]  # more than the context has room for
    with Llama(smollm2, n_ctx=128, n_parallel=1) as llm:
        llm.set_cache(cache)
        assert llm.cache is cache
        first = [llm.create_completion(prompt, max_tokens=4, temperature=0) for prompt in prompts]
        again = llm.create_completion(prompts[0], max_tokens=4, temperature=0)
        assert again["choices"][0]["text"] == first[0]["choices"][0]["text"]
        assert again["usage"]["prompt_tokens_details"]["cached_tokens"] > 40
        assert 0 < cache.cache_size <= 1 << 30
        # what programs do with states of their own
        tokens = llm.tokenize(b"Once upon a time")
        llm.eval(tokens)
        cache[tokens] = llm.save_state()
        assert tokens in cache and [*tokens, 5] in cache
        llm.reset()
        llm.load_state(cache[[*tokens, 5]])
        assert list(llm.eval_tokens) == tokens
        llm.set_cache(None)
        with pytest.raises(InvalidArgumentError):
            llm.set_cache(5)
    with pytest.raises(KeyError):
        _ = kind(**({"cache_dir": str(tmp_path / "empty")} if kind is LlamaDiskCache else {}))[[1, 2, 3]]


def test_nothing_in_a_folder_is_unpickled(tmp_path):
    import diskcache

    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    folder = tmp_path / "cache"
    folder.mkdir(mode=0o700)
    with diskcache.Cache(str(folder)) as theirs:
        theirs[Evil()] = Evil()
        theirs[b"state:" + bytes(4)] = Evil()
    cache = LlamaDiskCache(str(folder))
    assert [0] not in cache
    with pytest.raises(KeyError):
        _ = cache[[0]]
    assert not (tmp_path / "ran").exists()


# --- the rest ---


@pytest.mark.offers("pickle.dumps(Llama)", how="same")
def test_pickling(smollm2):
    with Llama(smollm2, n_ctx=96, seed=5, chat_format="vicuna", n_batch=32) as llm:
        again = pickle.loads(pickle.dumps(llm))
        with again:
            assert (again.n_ctx(), again.n_batch, again.chat_format, again.loaded.seed) == (96, 32, "vicuna", 5)
            for one in (llm, again):
                assert one("Once", max_tokens=4, temperature=0)["choices"][0]["text"]
        for how in (copy.copy, copy.deepcopy):
            with pytest.raises(UncopyableError):
                how(llm)


@pytest.mark.offers("_logger.logger", "_logger.set_verbose", how="same")
def test_the_logger():
    code = (
        "import logging, llama_cpp._logger as own\n"
        "logging.basicConfig(level=logging.DEBUG)\n"
        "own.logger.setLevel(logging.CRITICAL)\n"
        "assert own.logger.name == 'llama-cpp-python' and logging.getLogger('llama-cpp-python') is own.logger\n"
        "assert not logging.getLogger('llama_cpp.native').isEnabledFor(logging.ERROR)\n"
        "own.set_verbose(True); assert logging.getLogger('llama_cpp').isEnabledFor(logging.DEBUG)\n"
        "own.set_verbose(False); assert not logging.getLogger('llama_cpp').isEnabledFor(logging.INFO)\n"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.offers("_utils.suppress_stdout_stderr", "_utils.Singleton", how="same")
def test_small_things(capfd):
    with llama_cpp._utils.suppress_stdout_stderr(disable=False):
        os.write(1, b"out")
        os.write(2, b"err")
    with llama_cpp._utils.suppress_stdout_stderr(disable=True):
        os.write(1, b"seen")
    assert capfd.readouterr() == ("seen", "")
    with pytest.raises(ValueError), llama_cpp._utils.suppress_stdout_stderr(disable=False):
        raise ValueError
    os.write(1, b"back")
    assert capfd.readouterr().out == "back"

    class One(llama_cpp._utils.Singleton):
        pass

    assert One() is One()


@pytest.mark.offers("_ctypes_extensions", "_ggml.libggml", "_lib", how="same")
def test_the_library_itself():
    lib = llama_cpp.llama_cpp._lib
    assert ctypes.cast(lib.llama_tokenize, ctypes.c_void_p).value and os.path.exists(lib._name)  # as llguidance does it
    for name in ("llama_decode", "ggml_init", "ggml_backend_load", "ggml_time_us"):
        assert ctypes.cast(getattr(lib, name), ctypes.c_void_p).value
    with pytest.raises(AttributeError):
        _ = lib.llama_no_such_function
    from llama_cpp import _ctypes_extensions, _ggml

    assert _ggml.libggml is lib
    time_us = _ctypes_extensions.ctypes_function("llama_time_us", [], ctypes.c_int64)(lambda: 0)
    assert time_us() > 0
    assert _ctypes_extensions.load_shared_library("llama", ".")._name == lib._name
    with pytest.raises(ImportError):
        _ctypes_extensions.load_shared_library("nothing", ".")
    with pytest.raises(AttributeError, match="mtmd_cpp"):
        llama_cpp.llava_cpp.llava_image_embed_free(None)
