"""LoRA adapters: what they do, each request with its own, and files that are none."""

import concurrent.futures
import random

import pytest

import tiny_models
from llama_cpp import Llama
from llama_cpp.capi.backends import has_gpu
from llama_cpp.errors import AdapterLoadError, InvalidArgumentError, InvalidGGUFError, ModelNotFoundError
from memory_kinds import answer, cached


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapters")
    return {
        "model": tiny_models.write("dense", folder / "model.gguf", seed=3),
        "a": tiny_models.write_adapter(folder / "a.gguf"),
        "b": tiny_models.write_adapter(folder / "b.gguf", seed=1),
        "exact": tiny_models.write("dense", folder / "exact.gguf", seed=3, merged=0.0),
        "merged": tiny_models.write("dense", folder / "merged.gguf", seed=3, merged=0.5),
    }


def load(files, name="model", **arguments):
    threads = {"n_threads": 1, "n_threads_batch": 1}
    return Llama(files[name], **threads, **{"n_ctx": 256, "n_parallel": 4, **arguments})


def prompts(n):
    numbers = random.Random(0)
    return [numbers.choices(range(3, 270), k=numbers.randrange(1, 100)) for _ in range(n)]


def logits(llm, prompt, **arguments):
    """Of the first token."""
    found = []
    llm.create_completion(prompt, max_tokens=1, logits_processor=lambda _, now: found.append(now) or now, **arguments)
    return found[0]


def test_an_adapter_is_what_it_adds_to_the_weights(files):
    with load(files, "merged") as merged, load(files, "exact", lora_path=files["a"], lora_scale=0.5) as llm:
        for prompt in prompts(8):
            expected = logits(merged, prompt)
            assert abs(logits(llm, prompt) - expected).max() < (0.05 if has_gpu() else 0.01)
            assert abs(logits(llm, prompt, lora={"a": 0.5}) - expected).max() < (0.05 if has_gpu() else 0.01)
            assert abs(logits(llm, prompt, lora={}) - expected).max() > 0.5


def test_every_request_has_its_own(files):
    sets = [{}, {"a": 1.0}, {"b": 1.0}, {"a": 0.5, "b": -0.3}]
    asked = [(prompt, sets[i % 4]) for i, prompt in enumerate(prompts(24))]
    with load(files, lora_adapters={"a": files["a"], "b": files["b"]}) as llm:
        alone = [(llm.reset(), answer(llm, prompt, lora=lora))[1] for prompt, lora in asked]
        assert len({tuple(tokens) for tokens in alone}) > 16
        llm.reset()
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            assert list(pool.map(lambda one: answer(llm, one[0], lora=one[1]), asked)) == alone
            assert list(pool.map(lambda one: answer(llm, one[0], lora=one[1]), asked)) == alone, "with what they left"


def test_what_one_adapter_computed_serves_no_other(files):
    with load(files, lora_adapters={"a": files["a"]}) as llm:
        prompt = prompts(3)[2] * 2
        assert cached(llm, prompt) == 0
        assert cached(llm, prompt, lora={"a": 1.0}) == 0
        assert cached(llm, prompt, lora={"a": 0.5}) == 0
        assert cached(llm, prompt, lora={"a": 1}) == len(prompt) - 1
        assert cached(llm, prompt, lora={"a": 0.0}) == len(prompt) - 1, "a scale of 0 is no adapter"


def test_nobody_waits_for_ever_for_another_adapter(files):
    """A request that never ends on its own shares the time."""
    with load(files, lora_adapters={"a": files["a"]}, n_ctx=512) as llm:
        endless = llm.create_completion(
            [9], max_tokens=None, context_full="shift", stream=True, logit_bias={llm.token_eos(): -1e9}
        )
        next(endless)
        assert len(answer(llm, [5, 6, 7], n=40, lora={"a": 1.0})) == 40
        endless.close()


def test_what_is_no_adapter_is_refused(files, tmp_path):
    with pytest.raises(ModelNotFoundError):
        load(files, lora_path=tmp_path / "missing.gguf")
    with pytest.raises(InvalidGGUFError, match="not an adapter"):
        load(files, lora_path=files["model"])
    for wrong, match in (({"architecture": "llama"}, "architecture 'llama'"), ({"wrong": 1}, "the model's is")):
        with pytest.raises(AdapterLoadError, match=match):
            load(files, lora_path=tiny_models.write_adapter(tmp_path / "wrong.gguf", **wrong))
    with pytest.raises(InvalidArgumentError, match="both name 'a'"):
        load(files, lora_path=files["a"], lora_adapters={"a": files["b"]})
    with load(files, lora_path=files["a"]) as llm:
        for lora in ({"b": 1.0}, {"a": float("nan")}, {"a": "1"}, ["a"]):
            with pytest.raises(InvalidArgumentError, match="lora"):
                llm.create_completion([5], lora=lora)
