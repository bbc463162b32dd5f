"""Vectors: those of real weights against numpy, and together with others as alone for each kind of model."""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import random
import threading
import time

import numpy as np
import pytest

import gguf_writer
import minilm
import tiny_models
from closeness import are_vectors, skip_where_routes_flip
from llama_cpp import AsyncLlama, Llama, embeddings
from llama_cpp.capi import llama as capi
from llama_cpp.capi.backends import has_gpu
from llama_cpp.engine.embedder import Embedder, Job
from llama_cpp.errors import (
    ContextCreationError,
    ContextLengthError,
    DecodeError,
    ForkedProcessError,
    InvalidArgumentError,
    ModelBusyError,
    ModelClosedError,
)
from llama_cpp.gguf import read_gguf

NONE, MEAN, CLS, LAST, RANK = (
    capi.LLAMA_POOLING_TYPE_NONE, capi.LLAMA_POOLING_TYPE_MEAN, capi.LLAMA_POOLING_TYPE_CLS, capi.LLAMA_POOLING_TYPE_LAST,
    capi.LLAMA_POOLING_TYPE_RANK,
)  # fmt: skip


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kinds")
    return {kind: tiny_models.write(kind, folder / f"{number}.gguf") for number, kind in enumerate(tiny_models.KINDS)}


@pytest.fixture(scope="module")
def minilm_file(tmp_path_factory):
    """all-MiniLM-L6-v2."""
    return minilm.write(tmp_path_factory.mktemp("minilm") / "all-MiniLM-L6-v2.gguf")


@pytest.fixture(scope="module")
def odd(tmp_path_factory):
    folder = tmp_path_factory.mktemp("odd")
    return {kind: tiny_models.write(kind, folder / f"{number}.gguf") for number, kind in enumerate(tiny_models.ODD)}


def load(path, kind=Llama, **arguments):
    arguments = {"n_ctx": 256, "embedding": True, "n_threads": 1, "n_threads_batch": 1, **arguments}
    return kind(path, **arguments)


def texts_for(llm, seed=1, n=24):
    """Token ids of texts of 1 to 100 tokens."""
    numbers = random.Random(seed)
    return [numbers.choices(range(3, llm.n_vocab()), k=numbers.randrange(1, 101)) for _ in range(n)]


def cosine(a, b):
    return (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)


TEXT = "The quick brown fox's unbelievably tokenization."


def test_real_weights_give_what_the_paper_says(minilm_file):
    weights, words = minilm.weights(), minilm.vocabulary()
    with load(minilm_file, pooling_type=NONE) as llm:
        tokens = llm.tokenize(TEXT.encode())
        pieces = [
            "[CLS]", "the", "quick", "brown", "fox", "'", "s", "un", "##bel", "##ie", "##va", "##bly", "token",
            "##ization", ".", "[SEP]",
        ]  # fmt: skip
        assert [words[token] for token in tokens] == pieces
        found = np.array(llm.embed(TEXT))
    expected = minilm.reference(tokens, weights)
    assert found.shape == (16, 384)
    assert cosine(found, expected).min() > 0.99999
    with load(minilm_file) as llm:  # its file says mean
        assert (llm.pooling_type(), llm.n_embd()) == (MEAN, 384)
        assert cosine(np.array(llm.embed(TEXT)), expected.mean(axis=0)) > 0.99999
        bread, loaf, stocks = map(
            np.array, llm.embed(["How do I bake bread?", "What is the recipe for a loaf?", "Stocks fell today."])
        )
        assert cosine(bread, loaf) > 0.6 > 0.2 > cosine(bread, stocks)


@pytest.mark.parametrize("pooling", [NONE, MEAN, CLS, LAST])
@pytest.mark.parametrize("kind", tiny_models.KINDS)
def test_together_is_as_alone(models, kind, pooling):
    skip_where_routes_flip(kind)
    with load(models[kind], pooling_type=pooling) as llm, concurrent.futures.ThreadPoolExecutor(8) as pool:
        texts = texts_for(llm)
        alone = [llm.embed(text) for text in texts]
        assert len({str(vector) for vector in alone}) == len(texts)
        assert are_vectors(llm.embed(texts), alone)
        assert are_vectors(list(pool.map(llm.embed, texts)), alone)
        for i, found in enumerate(pool.map(llm.embed, [texts[i::3] for i in range(3)])):
            assert are_vectors(found, alone[i::3])


@pytest.mark.parametrize("kind", ["dense", "encoder", "state"])
def test_poolings_are_of_the_tokens_vectors(models, kind):
    def of(pooling):
        with load(models[kind], pooling_type=pooling, batch_invariant=False) as llm:
            return [np.array(vector) for vector in llm.embed(texts_for(llm))]

    tokens = of(NONE)
    for first, own in zip(of(CLS), tokens):
        assert are_vectors([first.tolist()], [own[0].tolist()])
    for last, own in zip(of(LAST), tokens):
        assert are_vectors([last.tolist()], [own[-1].tolist()])
    for mean, own in zip(of(MEAN), tokens):
        np.testing.assert_allclose(mean, own.mean(axis=0), rtol=1e-4, atol=0.02 if has_gpu() else 1e-4)


def test_a_classifier_gives_scores(models):
    path = models["encoder"]
    file = read_gguf(path)
    data = path.read_bytes()

    def weights(name):
        tensor = next(tensor for tensor in file.tensors if tensor.name == name)
        n = int(np.prod(tensor.shape))
        if tensor.type_name == "F32":
            values = np.frombuffer(data, np.float32, n, file.data_offset + tensor.offset)
        else:
            assert tensor.type_name == "Q8_0"
            blocks = np.frombuffer(data, np.int8, n // 32 * 34, file.data_offset + tensor.offset).reshape(-1, 34)
            values = (blocks[:, :2].copy().view(np.float16).astype(np.float32) * blocks[:, 2:]).ravel()
        return values.reshape(tensor.shape[::-1])

    with load(path, pooling_type=NONE) as llm:
        texts = texts_for(llm)
        firsts = np.array([llm.embed(text)[0] for text in texts])
    inner = np.tanh(firsts @ weights("cls.weight").T + weights("cls.bias"))
    expected = (inner @ weights("cls.output.weight") + weights("cls.output.bias"))[:, None]
    with load(path, pooling_type=RANK) as llm:
        found = np.array(llm.embed(texts))
        assert found.shape == (len(texts), 1)
        np.testing.assert_allclose(
            found, expected, atol=0.1 if has_gpu() else 0.04
        )  # what is multiplied with weights of 8 bits has 8 bits, too
        assert np.corrcoef(found[:, 0], expected[:, 0])[0, 1] > 0.95
        assert are_vectors(llm.embed(texts, normalize=True), found.tolist())
    with pytest.raises(InvalidArgumentError, match="RANK needs a model that classifies"):
        load(models["state"], pooling_type=RANK)


def test_forms_of_input_and_output(minilm_file):
    with load(minilm_file) as llm:
        one = llm.embed(TEXT)
        assert isinstance(one, list) and isinstance(one[0], float) and len(one) == 384
        tokens = llm.tokenize(TEXT.encode())
        assert llm.embed(tokens) == one and are_vectors(llm.embed([tokens, TEXT]), [one, one]) and llm.embed([TEXT]) == [one]
        assert llm.embed(TEXT, return_count=True) == (one, 16) and llm.embed([TEXT] * 3, return_count=True)[1] == 48
        assert llm.embed([]) == []
        assert np.linalg.norm(llm.embed(TEXT, normalize=True)) == pytest.approx(1)
        np.testing.assert_allclose(llm.embed(TEXT, normalize=True), np.array(one) / np.linalg.norm(one), rtol=1e-5)
        answer = llm.create_embedding([TEXT, "Hi"], model="mini")
        assert (answer["object"], answer["model"], answer["usage"]) == ("list", "mini", {"prompt_tokens": 19, "total_tokens": 19})
        assert [(entry["object"], entry["index"]) for entry in answer["data"]] == [("embedding", 0), ("embedding", 1)]
        assert are_vectors([answer["data"][0]["embedding"]], [one])
        assert [entry["index"] for entry in llm.create_embedding(TEXT)["data"]] == [0] and llm.create_embedding(TEXT)[
            "model"
        ] == str(minilm_file)
    with load(minilm_file, pooling_type=NONE) as llm:
        for vector in llm.embed(TEXT, normalize=True):
            assert np.linalg.norm(vector) == pytest.approx(1)


def test_long_texts(minilm_file):
    with load(minilm_file, n_ctx=16, n_batch=16) as llm:
        tokens = llm.tokenize((TEXT * 3).encode())
        kept = [*tokens[:15], tokens[-1]]  # [SEP] ends a text
        assert llm.embed(TEXT * 3) == llm.embed(kept)
        assert llm.embed(TEXT * 3, return_count=True)[1] == 16
        with pytest.raises(ContextLengthError, match=r"The text has 44 tokens; the context holds 16[.]"):
            llm.embed([TEXT, TEXT * 3], truncate=False)
    with load(minilm_file, n_ctx=0) as llm:
        assert llm.n_ctx() == 512
    with load(minilm_file, n_ctx=4096) as llm:
        assert llm.n_ctx() == 512, "there are no positions beyond"
        assert len(llm.embed("word " * 4000)) == 384


@pytest.mark.parametrize(
    ("n_ctx", "n_batch", "n_parallel"), [(1, 1, None), (3, 16, 3), (100, 100, 7), (8, 512, 256), (64, 1, 1), (7, 9, 256)]
)
@pytest.mark.parametrize("kind", ["dense", "encoder", "state", "window"])
@pytest.mark.parametrize("pooling", [NONE, MEAN, LAST])
def test_sizes_of_all_kinds(models, kind, pooling, n_ctx, n_batch, n_parallel):
    """The engine asserts that some divide each other."""
    arguments = {"n_ctx": n_ctx, "n_batch": n_batch, "n_parallel": n_parallel, "pooling_type": pooling, "batch_invariant": False}
    with load(models[kind], **arguments) as llm:
        assert llm.n_ctx() == n_ctx
        texts = texts_for(llm)
        assert len(llm.embed(texts)) == len(texts)


def test_small_batches_and_many_texts(minilm_file):
    with load(minilm_file, n_ctx=8, n_batch=8) as llm:
        texts = [f"number {i}" for i in range(200)]
        assert llm.embed(texts) == [llm.embed(text) for text in texts]


@pytest.mark.parametrize("given", [None, 5, b"text", [b"text"], [1.5], [["a"]], [None], ["a", 5], [True]])
def test_what_is_no_text_is_refused(minilm_file, given):
    with load(minilm_file) as llm, pytest.raises(InvalidArgumentError, match="input"):
        llm.embed(given)


def test_tokens_that_do_not_exist_are_refused(minilm_file):
    with load(minilm_file) as llm:
        with pytest.raises(InvalidArgumentError, match="Token 30522 is not in the vocabulary"):
            llm.embed([101, 30522])
        with pytest.raises(InvalidArgumentError, match="has no tokens"):
            llm.embed(["Hi", []])


def test_each_kind_of_model_says_what_it_is_for(minilm_file, models):
    with Llama(models["dense"], n_ctx=256) as llm, pytest.raises(InvalidArgumentError, match="Load it with embedding=True"):
        llm.embed("Hi")
    with pytest.raises(ContextCreationError, match="Load it with embedding=True"):
        Llama(minilm_file, n_ctx=256)
    with load(minilm_file) as llm:
        with pytest.raises(ContextCreationError, match="encoder"):
            llm.create_completion("Hi")
        assert llm.embed("Hi")
    with pytest.raises(InvalidArgumentError, match="pooling_type=77 does not exist"):
        load(minilm_file, pooling_type=77)


def test_a_pooling_that_does_not_exist_in_the_file(tmp_path, minilm_file):
    name = b"bert.pooling_type" + (4).to_bytes(4, "little")
    data = minilm_file.read_bytes()
    assert data.count(name) == 1
    path = tmp_path / "odd.gguf"
    path.write_bytes(data.replace(name + (1).to_bytes(4, "little"), name + (77).to_bytes(4, "little")))
    with pytest.raises(InvalidArgumentError, match="pooling_type is 77"):
        load(path)
    with load(path, pooling_type=MEAN) as llm, load(minilm_file) as other:
        assert llm.embed(TEXT) == other.embed(TEXT)


def test_it_also_generates_when_asked_to(models):
    prompt = [5, 9, 11]
    with Llama(models["dense"], n_ctx=256) as llm:
        expected = llm.create_completion(prompt, max_tokens=8, temperature=0)["choices"]
    with load(models["dense"], pooling_type=MEAN) as llm, concurrent.futures.ThreadPoolExecutor(4) as pool:
        vector = llm.embed(prompt)
        answers = pool.map(lambda _: llm.create_completion(prompt, max_tokens=8, temperature=0)["choices"], range(4))
        assert all(answer == expected for answer in answers)
        llm.reset()
        assert llm.embed(prompt) == vector


def test_adapters_count(models, tmp_path):
    adapter = tiny_models.write_adapter(tmp_path / "adapter.gguf")
    merged = tiny_models.write("dense", tmp_path / "merged.gguf", merged=0.5)
    arguments = {"pooling_type": MEAN, "n_ctx": 64}
    with load(models["dense"], **arguments) as llm:
        without = np.array(llm.embed([5, 6, 7]))
    with load(models["dense"], lora_path=adapter, lora_scale=0.5, **arguments) as llm:
        with_it = np.array(llm.embed([5, 6, 7]))
    with load(merged, **arguments) as llm:
        expected = np.array(llm.embed([5, 6, 7]))
    assert cosine(with_it, expected) > 0.999 > 0.99 > cosine(without, expected)


def test_a_closed_model_ends_what_was_asked_for(minilm_file):
    llm = load(minilm_file)
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        asked = [pool.submit(llm.embed, ["word " * 200] * 200) for _ in range(2)]
        while llm.loaded.embedder._worker.is_alive and not llm.loaded.embedder._jobs:
            time.sleep(0.01)
        llm.close()
        for one in asked:
            with pytest.raises(ModelClosedError):
                one.result(60)
    with pytest.raises(ModelClosedError):
        llm.embed("Hi")


def test_nobody_waits_for_who_asked_for_more(minilm_file):
    """A few texts are computed between those of somebody who asks for thousands."""
    with load(minilm_file) as llm:
        many = llm.loaded.embedder.submit(embeddings.read(llm.loaded, ["word " * 200] * 1000, True).tokens)
        vector = llm.embed("Hi")
        assert vector and not many.future.done()
        assert sum(vector is not None for vector in many.vectors) < 100
        assert many.future.cancel()
        assert are_vectors([llm.embed("Hi")], [vector])
        assert not llm.loaded.embedder._jobs
        with pytest.raises(ModelBusyError, match="waiting"):
            llm.loaded.embedder.submit([[5]] * (Embedder.MAX_WAITING + 1))


def test_one_that_fails_fails_alone(minilm_file, monkeypatch):
    """As when there is no memory for all of them together."""
    compute = Embedder._compute

    def failing(self, pointer, texts):
        if any(len(text) == 5 for text in texts):
            raise MemoryError("no room")
        return compute(self, pointer, texts)

    with load(minilm_file) as llm, concurrent.futures.ThreadPoolExecutor(8) as pool:
        alone = llm.embed("one two three four")
        monkeypatch.setattr(Embedder, "_compute", failing)
        good = [pool.submit(llm.embed, "one two three four") for _ in range(20)]
        bad = [pool.submit(llm.embed, "one two three") for _ in range(20)]
        for one in bad:
            with pytest.raises(MemoryError, match="no room"):
                one.result(60)
        assert are_vectors([one.result(60) for one in good], [alone] * 20)


def test_coroutines(minilm_file):
    with load(minilm_file) as llm:
        expected = llm.embed([f"number {i}" for i in range(64)])

    async def main():
        async with load(minilm_file, kind=AsyncLlama) as llm:
            found = await asyncio.gather(*[llm.embed(f"number {i}") for i in range(64)])
            answer = await llm.create_embedding(["number 0", "number 1"])
            task = asyncio.create_task(llm.embed(["word " * 200] * 500))
            await asyncio.sleep(0.2)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await llm.embed("Hi")
            return found, answer, list(llm.loaded.embedder._jobs)

    found, answer, left = asyncio.run(main())
    assert are_vectors(found, expected) and not left
    assert are_vectors([entry["embedding"] for entry in answer["data"]], expected[:2])


def test_after_fork(minilm_file):
    with load(minilm_file) as llm:
        llm.embed("Hi")
        pid = os.fork()
        if pid == 0:
            try:
                llm.embed("Hi")
            except ForkedProcessError:
                os._exit(7)
            os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
        assert llm.embed("Hi")


def test_the_interpreter_ends_while_vectors_are_computed(run_python, minilm_file):
    script = """
import sys, threading, time
from llama_cpp import Llama
llm = Llama(sys.argv[1], n_ctx=256, embedding=True)
for _ in range(3):
    threading.Thread(target=lambda: llm.embed(["word " * 200] * 1000), daemon=True).start()
time.sleep(0.5)
print("end")
"""
    done = run_python(script, str(minilm_file))
    said = [line for line in done.stderr.splitlines() if not line.startswith("resolve_fused_ops")]  # GPUs have no kernel for it
    assert (done.returncode, done.stdout, said) == (0, "end\n", [])


def test_memory_stays_flat(minilm_file):
    def resident():
        return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    with load(minilm_file, n_ctx=64, n_batch=64) as llm:
        for _ in range(300):
            llm.embed("Hi")
        before = resident()
        for _ in range(2000):
            llm.embed("Hi")
        assert resident() - before < 4 << 20
    assert not [thread for thread in threading.enumerate() if thread.name == "llama-cpp-embedder"]


# --- models that the engine would end the process for ---


def check(path, pooling):
    with load(path, pooling_type=pooling) as llm:
        texts = texts_for(llm)
        assert are_vectors(llm.embed(texts), [llm.embed(text) for text in texts])


@pytest.mark.parametrize("pooling", [NONE, MEAN])
@pytest.mark.parametrize("kind", ["windows and all", "one layer", "encoder and decoder"])
def test_encoders_of_all_kinds(odd, kind, pooling):
    """An encoder of one layer has a mask that nothing looks at."""
    if has_gpu() and kind != "one layer":
        pytest.skip("random attention that is not scaled chooses among nearly equal tokens by rounding")
    check(odd[kind], pooling)


@pytest.mark.parametrize("kind", ["wide vectors", "narrow vectors"])
def test_vectors_of_another_width_than_the_layers(odd, kind):
    with pytest.raises(InvalidArgumentError, match="embedding_length_out"):
        load(odd[kind])
    with load(odd[kind], kv_overrides={"qwen3.embedding_length_out": 64}, pooling_type=MEAN) as llm:
        assert len(llm.embed([5, 6, 7])) == 64


@pytest.mark.parametrize("is_split", [False, True])
def test_a_table_of_positions_has_an_end(odd, tmp_path, is_split):
    path = odd["places"]
    if is_split:
        path = split(path, tmp_path)
    with load(path, pooling_type=LAST) as llm:
        assert llm.n_ctx() == 64
        assert len(llm.embed([5] * 200)) == 64
    with Llama(path, n_ctx=512) as llm:
        assert llm.n_ctx() == 64
        for context_full in ("truncate", "shift"):
            arguments = {"max_tokens": 100, "context_full": context_full, "logit_bias": {llm.token_eos(): -1e9}}
            usage = llm.create_completion([5] * 40, **arguments)["usage"]
            assert usage["completion_tokens"] == (24 if context_full == "truncate" else 100)
        with pytest.raises(ContextLengthError):
            llm.create_completion([5] * 64)


def split(path, folder):
    """The same model in two files, the first of which has no tensors, as llama-gguf-split can make them."""
    header = read_gguf(path)
    data = path.read_bytes()
    first, second = gguf_writer.GGUFBuilder(), gguf_writer.GGUFBuilder()
    for key, value in header.metadata.items():
        if header.types[key].name == "ARRAY":
            first.set(key, gguf_writer.ARR, gguf_writer.Array(value.element_type.value, list(value)))
        else:
            first.set(key, header.types[key].value, value)
    for tensor in header.tensors:
        kind = {"F32": gguf_writer.T_F32, "Q8_0": gguf_writer.T_Q8_0}[tensor.type_name]
        size = int(np.prod(tensor.shape)) // kind[1] * kind[2]
        second.tensors[tensor.name] = (tuple(tensor.shape), kind)
        second.weights[tensor.name] = data[header.data_offset + tensor.offset :][:size]
    for number, file in enumerate((first, second)):
        file.set("split.no", gguf_writer.U16, number).set("split.count", gguf_writer.U16, 2)
        file.set("split.tensors.count", gguf_writer.I32, len(header.tensors))
        (folder / f"split-{number + 1:05d}-of-00002.gguf").write_bytes(file.build())
    return folder / "split-00001-of-00002.gguf"


def test_a_draft_that_knows_fewer_positions_is_refused(odd, models):
    with pytest.raises(InvalidArgumentError, match="knows 64 positions"):
        Llama(models["dense"], n_ctx=512, draft_model=odd["places"])


def test_encoders_generate_nothing_however_many(odd):
    with pytest.raises(ContextCreationError, match="does not generate"):
        Llama(odd["encoder and decoder"], n_ctx=256, n_parallel=2)


@pytest.mark.parametrize("length", [0, 4294967295])
def test_a_length_that_cannot_be(models, length):
    with pytest.raises(InvalidArgumentError, match="Give n_ctx"):
        load(models["dense"], n_ctx=0, kv_overrides={"qwen3.context_length": length})


def test_kv_overrides_can_replace_the_pooling(minilm_file):
    with load(minilm_file, kv_overrides={"bert.pooling_type": 2}) as llm, load(minilm_file, pooling_type=CLS) as other:
        assert llm.pooling_type() == CLS
        assert llm.embed(TEXT) == other.embed(TEXT)


# --- ends in the middle ---


@pytest.mark.cpu
def test_closing_while_texts_are_tried_one_by_one(models, monkeypatch):
    compute, begun = Embedder._compute, threading.Event()

    def slow(self, pointer, texts):
        if len(texts) > 1:
            raise MemoryError("no room")
        begun.set()
        time.sleep(0.5)
        return compute(self, pointer, texts)

    monkeypatch.setattr(Embedder, "_compute", slow)
    llm = load(models["encoder"], pooling_type=MEAN)
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(llm.embed, [[5, 6, 7]] * 2) for _ in range(4)]
        assert begun.wait(60)
        llm.close()
        for one in asked:
            with pytest.raises(ModelClosedError):
                one.result(60)


def test_whatever_goes_wrong_nobody_waits_for_ever(models, monkeypatch):
    take, failed = Job.take, []

    def failing(self, number, vector):
        if not failed:
            failed.append(True)
            raise RuntimeError("unforeseen")
        take(self, number, vector)

    monkeypatch.setattr(Job, "take", failing)
    with load(models["encoder"], pooling_type=MEAN) as llm:
        with pytest.raises(DecodeError, match="unforeseen"):
            llm.embed([[5, 6, 7]] * 2)
        assert len(llm.embed([5, 6, 7])) == 64


def test_the_bound_on_who_waits_holds_while_a_batch_is_computed(models, monkeypatch):
    monkeypatch.setattr(Embedder, "MAX_WAITING", 100)
    compute = Embedder._compute
    monkeypatch.setattr(Embedder, "_compute", lambda *given: (time.sleep(0.2), compute(*given))[1])
    with load(models["encoder"], pooling_type=MEAN) as llm:
        jobs = []
        with pytest.raises(ModelBusyError):
            for _ in range(1000):
                jobs.append(llm.loaded.embedder.submit([[5, 6, 7]] * 10))
        assert 10 <= len(jobs) <= 30
        for job in jobs[:-1]:
            job.future.cancel()
        jobs[-1].result()
        assert llm.loaded.embedder._n_waiting == 0


def test_closing_stops_in_the_middle_of_a_batch(smollm2, caplog):
    caplog.set_level("DEBUG", "llama_cpp.native")
    llm = load(smollm2, n_ctx=4096, pooling_type=MEAN)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        asked = pool.submit(llm.embed, list(range(1000, 5000)))
        while not llm.loaded.embedder._computing:
            time.sleep(0.01)
        llm.close()
        with pytest.raises(ModelClosedError):
            asked.result(60)
    assert "failed to decode, ret = 2" in caplog.text, "it went on to the end"
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_closing_while_the_second_context_is_made(models, monkeypatch):
    opening, go_on, engines = threading.Event(), threading.Event(), []
    llm = load(models["dense"], pooling_type=MEAN)
    make_engine = llm.loaded._make_engine

    def slow():
        opening.set()
        assert go_on.wait(60)
        engines.append(make_engine())
        return engines[-1]

    monkeypatch.setattr(llm.loaded, "_make_engine", slow)
    handle = llm.loaded.model.in_use()
    with concurrent.futures.ThreadPoolExecutor(1) as pool, handle:  # as if it had just begun to use it
        asked = pool.submit(llm.create_completion, [5, 6, 7])
        assert opening.wait(60)
        llm.close()
        go_on.set()
        with pytest.raises(ModelClosedError):
            asked.result(60)
    assert not [engine for engine in engines if engine.scheduler.worker.is_alive]


def test_what_a_cancelled_task_asked_for_is_not_begun(minilm_file):
    async def main():
        async with load(minilm_file, kind=AsyncLlama) as llm:
            task = asyncio.create_task(llm.embed(["word " * 200] * 3000))
            await asyncio.sleep(0.05)  # it is tokenizing
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await asyncio.sleep(1.5)
            return list(llm.loaded.embedder._jobs)

    assert asyncio.run(main()) == []
