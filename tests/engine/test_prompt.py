"""Prompts of text and media: what each cell is known by, where positions differ from cells, and how media is refused for now."""

from __future__ import annotations

import random

import pytest

from gguf_writer import tiny_model
from llama_cpp import Llama
from llama_cpp.engine.batches import BatchPart, write
from llama_cpp.engine.prefix_cache.prefix_tree import PrefixTree
from llama_cpp.engine.prompt import MediaChunk, Prompt
from llama_cpp.engine.requests import Request, RequestStream
from llama_cpp.engine.sampler_chain import Sampler
from llama_cpp.engine.sampling_params import SamplingParams
from llama_cpp.engine.slots import Slot, SlotState
from llama_cpp.errors import MediaNotSupportedError

CAT, DOG = MediaChunk(b"cat", 6, 3), MediaChunk(b"dog", 6, 3)


@pytest.fixture(scope="module")
def llm(tmp_path_factory):
    path = tmp_path_factory.mktemp("prompt") / "tiny.gguf"
    path.write_bytes(tiny_model().build())
    with Llama(path, n_ctx=256, n_parallel=2) as model:
        yield model


def request(llm, prompt, n: int = 4) -> Request:
    return Request(prompt, Sampler(llm.loaded.model, SamplingParams(temperature=0), 256), n)


def test_text_is_its_tokens():
    prompt = Prompt([5, 6, 7])
    assert (prompt.ids, prompt.media, prompt.next_media(0), prompt.position(3), len(prompt)) == ([5, 6, 7], {}, -1, 3, 3)
    assert Prompt.of([[5], [6, 7]]).ids == prompt.ids == prompt.text()


def test_media_takes_cells_and_fewer_positions():
    prompt = Prompt.of([[5, 6], CAT, [7], DOG, MediaChunk(b"sound", 2), [8, 9]])
    assert list(prompt.media) == [2, 9, 15] and len(prompt) == 19 and prompt.text() == [5, 6, 7, 8, 9]
    assert [prompt.next_media(n) for n in (0, 2, 3, 9, 10, 15, 16)] == [2, 2, 9, 9, 15, 15, -1]
    assert [prompt.position(n) for n in (0, 1, 2, 8, 9, 15, 17, 18, 19)] == [0, 1, 2, 5, 6, 9, 11, 12, 13]


def test_a_prompt_is_what_its_chunks_say_however_they_are_cut():
    """Against the plain way: a list of the position of every cell."""
    rng = random.Random(1)
    for _ in range(300):
        chunks, positions, at = [], [], 0
        for _ in range(rng.randint(1, 6)):
            if rng.random() < 0.5:
                n = rng.randint(1, 9)
                chunks.append(MediaChunk(bytes([rng.randint(0, 9)]), n, taken := rng.randint(1, 9)))
                positions += [at, *[None] * (n - 1)]
                at += taken
            else:
                chunks.append([rng.randint(0, 9) for _ in range(rng.randint(1, 5))])
                positions += range(at, at := at + len(chunks[-1]))
        prompt = Prompt.of(chunks)
        assert [prompt.position(n) for n, known in enumerate(positions) if known is not None] == [
            p for p in positions if p is not None
        ]
        assert prompt.position(len(prompt)) == at


def test_the_prefix_cache_knows_media_by_its_content():
    tree = PrefixTree()
    tree.insert(1, Prompt.of([[5], CAT, [7, 8]]).ids)

    def n_common(*chunks):
        return next((n for _, n in tree.matches(Prompt.of(chunks).ids)), 0)

    assert n_common([5], MediaChunk(b"cat", 6, 3, payload="another object"), [7, 9]) == 8
    assert n_common([5], DOG, [7, 8]) == 1
    assert n_common([5], [1, 2, 3, 4, 5, 6], [7, 8]) == 1, "text is never taken for media"
    assert all(-(1 << 31) <= one < 0 for one in CAT.ids) and len(set(CAT.ids)) == 6


def test_positions_of_text_behind_media(llm):
    slot = Slot(request(llm, Prompt.of([[5, 6], CAT, [7, 8, 9]])), 1, 0, [])
    assert slot.state is SlotState.PREFILLING and slot.n_next(100, 100) == 2, "a batch ends before media"
    slot.advance(2)
    assert slot.n_next(100, 100) == 0 and slot.next_media == slot.n_held
    slot.advance_media()
    assert (slot.n_held, slot.n_held + slot.n_skew, slot.n_next(100, 100)) == (8, 5, 3)
    decoder = llm.loaded.engine.scheduler.decoder
    assert write(decoder, [BatchPart.of(slot, 3)]) == 3
    assert (decoder.tokens[:3], decoder.positions[:3]) == ([7, 8, 9], [5, 6, 7])


def test_media_is_refused_by_name_and_nobody_else_suffers(llm):
    engine = llm.loaded.engine
    texts = [request(llm, [5, 6, 7 + i], 30) for i in range(4)]
    media = [request(llm, Prompt.of(chunks)) for chunks in ([CAT, [5]], [[5, 6, 7], DOG, [8]], [[5], CAT, DOG])]
    alone = RequestStream(request(llm, [5, 6, 7], 30))
    engine.submit(alone._request)
    expected = alone.result().tokens
    streams = [RequestStream(one) for pair in zip(texts, [*media, request(llm, [5, 6])]) for one in pair]
    for stream in streams:
        engine.submit(stream._request)
    for stream in streams:
        if stream._request.prompt.media:
            with pytest.raises(MediaNotSupportedError, match="6 embeddings"):
                stream.result()
        else:
            stream.result()
    assert streams[0].generation.tokens == expected and engine.snapshot().is_idle
