"""The second tier: what has to leave the context comes back from memory or from disk."""

import os
import random

import diskcache
import pytest

import tiny_models
from closeness import are_answers, is_answer
from llama_cpp import LlamaDiskCache, LlamaRAMCache
from llama_cpp.errors import CacheError, InvalidArgumentError
from memory_kinds import GENERATIVE, answer, cached, load


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    return {kind: tiny_models.write(kind, folder / f"{number}.gguf") for number, kind in enumerate(tiny_models.KINDS)}


def texts(n, length=200):
    numbers = random.Random(5)
    return [numbers.choices(range(3, 270), k=length) for _ in range(n)]


@pytest.mark.parametrize("kind", [*GENERATIVE, "window, short"])
def test_what_had_to_leave_comes_back(models, kind):
    prompts = texts(4)
    with load(models, kind, n_parallel=1) as llm:
        expected = [answer(llm, prompt) for prompt in prompts]
        assert [cached(llm, prompt) for prompt in prompts] == [0] * 4
    with load(models, kind, n_parallel=1) as llm:
        llm.set_cache(LlamaRAMCache())
        assert are_answers(llm, prompts, [answer(llm, prompt) for prompt in prompts], expected)
        for prompt, following in zip(prompts, expected):
            # what was generated last is not computed yet
            assert cached(llm, [*prompt, *following[:16], 5, 6]) >= 200
            assert is_answer(llm, prompt, answer(llm, prompt), following)


def test_it_is_as_large_as_it_may_be(models):
    with load(models, "dense", n_parallel=1) as llm:
        cache = LlamaRAMCache(capacity_bytes=500_000)
        llm.set_cache(cache)
        for prompt in texts(6):
            answer(llm, prompt)
        assert 0 < cache.cache_size <= 500_000
        assert cached(llm, texts(6)[0]) == 0, "the first had to make room"
        assert cached(llm, texts(6)[4]) == 199
        llm.set_cache(None)
        n = len(list(cache.names()))
        answer(llm, [9] * 300)
        assert len(list(cache.names())) == n
    for wrong in (-1, 1.5, True):
        with pytest.raises(InvalidArgumentError):
            LlamaRAMCache(capacity_bytes=wrong)


@pytest.mark.parametrize("unified", [True, False])
def test_a_restart_keeps_a_system_prompt(models, tmp_path, unified):
    prompt = texts(1)[0]
    arguments = {"kv_unified": unified, "flash_attn": True}
    with load(models, "dense", **arguments) as llm:
        llm.set_cache(LlamaDiskCache(tmp_path / "cache"))
        expected = answer(llm, prompt)
    with load(models, "dense", **arguments) as llm:
        llm.set_cache(LlamaDiskCache(tmp_path / "cache"))
        assert cached(llm, [*prompt, 5, 6, 7]) == 200
        assert answer(llm, prompt) == expected
        llm.reset()
        assert cached(llm, prompt) == 199, "what is saved is not forgotten with what is in the context"
    with load(models, "dense", type_k=8, type_v=8, **arguments) as llm:  # GGML_TYPE_Q8_0
        llm.set_cache(LlamaDiskCache(tmp_path / "cache"))
        assert cached(llm, prompt) == 0, "other types, another memory"
    with load(models, "latent") as llm:
        llm.set_cache(LlamaDiskCache(tmp_path / "cache"))
        assert cached(llm, prompt) == 0, "another model"


@pytest.mark.cpu
def test_what_was_rounded_otherwise_is_not_taken(run_python, models, tmp_path):
    """A state that was computed without batch_invariant would make an answer depend on it."""
    script = """
import sys
from llama_cpp import Llama, LlamaDiskCache
with Llama(sys.argv[1], n_ctx=512, n_parallel=1, flash_attn=True, kv_unified=False, batch_invariant=sys.argv[3] == "True") as llm:
    llm.set_cache(LlamaDiskCache(sys.argv[2]))
    print(llm.create_completion(list(range(3, 203)), max_tokens=1)["usage"]["prompt_tokens_details"]["cached_tokens"])
"""
    ways = [False, False, True, True, False]
    found = [run_python(script, str(models["dense"]), str(tmp_path / "cache"), str(way)).stdout.split() for way in ways]
    assert found == [["0"], ["199"], ["0"], ["199"], ["199"]]


def test_what_comes_back_to_a_shared_cache_finds_room(models):
    first, second, third = texts(3, length=220)
    with load(models, "dense", n_parallel=1, kv_unified=True) as llm:
        llm.set_cache(LlamaRAMCache())
        expected = answer(llm, first)
        answer(llm, second)
        answer(llm, third)  # 512 tokens in all: the first had to leave, and there is no room for it beside the others
        assert cached(llm, [*first, 5, 6]) == 220
        assert answer(llm, first) == expected


def test_what_is_damaged_is_computed_anew(models, tmp_path):
    prompt = texts(1)[0]
    with load(models, "dense") as llm:
        llm.set_cache(LlamaDiskCache(tmp_path))
        expected = answer(llm, prompt)
    for damage in (
        lambda data: data[:-1],
        lambda data: data[:1000] + bytes([data[1000] ^ 1]) + data[1001:],
        lambda data: b"",
        lambda data: data[:20],
        None,
    ):
        files = list(tmp_path.rglob("*.val"))
        assert files
        for file in files:
            file.unlink() if damage is None else file.write_bytes(damage(file.read_bytes()))
        with load(models, "dense") as llm:
            llm.set_cache(LlamaDiskCache(tmp_path))
            assert cached(llm, prompt) == 0
            assert answer(llm, prompt) == expected
        with load(models, "dense") as llm:
            llm.set_cache(LlamaDiskCache(tmp_path))
            assert cached(llm, prompt) == 199, "saved anew"


def test_a_folder_others_can_write_to_is_refused(tmp_path):
    folder = tmp_path / "cache"
    LlamaDiskCache(folder).close()
    assert folder.stat().st_mode & 0o077 == 0
    folder.chmod(0o770)
    with pytest.raises(CacheError, match="others may write"):
        LlamaDiskCache(folder)
    folder.chmod(0o755)
    (folder / "cache.db").chmod(0o666)
    with pytest.raises(CacheError, match=r"cache\.db"):
        LlamaDiskCache(folder)
    folder.chmod(0o700)
    LlamaDiskCache(folder).close()
    (tmp_path / "file").write_text("")
    with pytest.raises(CacheError, match="another folder"):
        LlamaDiskCache(tmp_path / "file")


class Bomb:
    """Leaves a trace when it is unpickled."""

    def __init__(self, trace):
        self.trace = str(trace)

    def __reduce__(self):
        return os.mkdir, (self.trace,)


def test_nothing_is_unpickled(tmp_path):
    trace = tmp_path / "trace"
    with diskcache.Cache(str(tmp_path / "cache")) as cache:
        cache[b"value"] = Bomb(trace)
        cache[Bomb(trace)] = b"name"
        cache[b"text"] = "text"
    (tmp_path / "cache").chmod(0o700)
    cache = LlamaDiskCache(tmp_path / "cache")
    assert cache.get(b"value") is None and cache.get(b"text") is None
    list(cache.names())
    cache.put(b"mine", b"bytes")
    assert cache.get(b"mine") == b"bytes"
    with pytest.raises(TypeError, match="only bytes"):
        cache.put(b"mine", "text")
    assert not trace.exists()
    with diskcache.Cache(str(tmp_path / "cache")) as plain:
        assert plain[b"text"] == "text"
        plain[b"value"]
    assert trace.exists(), "the bomb was one"
