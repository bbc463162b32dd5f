"""What answers say of their tokens, and how a request is ended from anywhere."""

from __future__ import annotations

import asyncio
import threading
import time

import numpy as np
import pytest

from gguf_writer import T_F32, tiny_model
from llama_cpp import AsyncLlama, Llama
from llama_cpp.capi.backends import has_gpu
from llama_cpp.engine.decoder import Decoder
from llama_cpp.errors import DecodeError, GrammarError, InvalidArgumentError

PROMPT = "Once upon a time"
# of log-probabilities; a GPU rounds values to 8 bits, and the first tokens' are large
ROUNDING = 2.0 if has_gpu() else 1e-4
LONG = "word " * 1500


def streamed(chunks):
    """Log-probabilities and text of all chunks."""
    found = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
    text = ""
    for chunk in chunks:
        choice = chunk["choices"][0]
        text += choice["text"]
        for name, values in (choice["logprobs"] or {}).items():
            found[name] += values
    return found, text


def bytes_of(token: str) -> bytes:
    if not token.startswith("bytes:"):
        return token.encode()
    return bytes(int(part, 16) for part in token.removeprefix("bytes:").split("\\x")[1:])


# --- log-probabilities ---


@pytest.mark.cpu
@pytest.mark.parametrize("echo", [False, True])
def test_offsets_are_places_in_the_text(llm, echo):
    """Also where a character has several tokens; they begin behind the prompt, as OpenAI's and llama-cpp-python's do."""
    wanted = "A😀é中!"
    how = {"max_tokens": 40, "temperature": 0, "grammar": f'root ::= "{wanted}"', "logprobs": 2, "echo": echo}
    choice = llm.create_completion(PROMPT, **how)["choices"][0]
    found = choice["logprobs"]
    whole = PROMPT + wanted
    assert choice["text"] == (whole if echo else wanted)
    n_prompt = len(llm.tokenize(PROMPT.encode())) if echo else 0
    answered = found["tokens"][n_prompt:]
    assert b"".join(map(bytes_of, answered)).decode() == wanted
    assert any(token.startswith("bytes:\\x") for token in answered)
    before = b""
    for token, offset in zip(answered, found["text_offset"][n_prompt:]):
        assert offset == len(PROMPT) + len(before.decode("utf-8", "ignore"))
        before += bytes_of(token)
    again, text = streamed(llm.create_completion(PROMPT, stream=True, **how))
    assert again == found and text == choice["text"]


def test_the_chosen_token_is_among_the_most_probable(llm):
    found = llm.create_completion(PROMPT, max_tokens=20, temperature=3, top_k=0, top_p=1, min_p=0, seed=1, logprobs=1)["choices"][
        0
    ]["logprobs"]
    assert any(len(top) == 2 for top in found["top_logprobs"]) and all(1 <= len(top) <= 2 for top in found["top_logprobs"])
    for token, value, top in zip(found["tokens"], found["token_logprobs"], found["top_logprobs"]):
        assert top[token] >= value
    none = llm.create_completion(PROMPT, max_tokens=3, temperature=0, logprobs=0)["choices"][0]["logprobs"]
    assert none["top_logprobs"] == [{token: value} for token, value in zip(none["tokens"], none["token_logprobs"])]


def test_tokens_that_are_parts_of_a_character_are_told_apart(llm):
    """Each of a hundred most probable tokens has a text of its own; none is U+FFFD."""
    found = llm.create_completion("😀" * 20, max_tokens=4, temperature=0, logprobs=100)["choices"][0]["logprobs"]
    assert all(99 <= len(top) <= 101 and not any("\ufffd" in token for token in top) for top in found["top_logprobs"])


@pytest.mark.parametrize("stop", [" there", "re", "zzz", "there lived"])
def test_what_a_stop_string_cuts_off_is_not_listed(llm, stop):
    how = {
        "max_tokens": 12,
        "temperature": 0,
        "grammar": 'root ::= " in a house there lived a man and so on and on"',
        "logprobs": 0,
        "stop": stop,
    }
    choice = llm.create_completion(PROMPT, **how)["choices"][0]
    found, text = streamed(llm.create_completion(PROMPT, stream=True, **how))
    assert found == choice["logprobs"] and text == choice["text"]
    listed = "".join(found["tokens"])
    assert listed.startswith(text) and all(offset - len(PROMPT) < len(text) for offset in found["text_offset"])
    if stop == "zzz":
        assert listed == text
    messages = [{"role": "user", "content": "Hi"}]
    chat = llm.create_chat_completion(messages, max_tokens=12, temperature=0, logprobs=True, grammar=how["grammar"], stop=stop)[
        "choices"
    ][0]
    assert "".join(entry["token"] for entry in chat["logprobs"]["content"]).startswith(chat["message"]["content"])


def test_no_tokens_are_empty_lists(llm):
    choice = llm.create_completion(PROMPT, max_tokens=5, grammar='root ::= ""', logprobs=2)["choices"][0]
    assert choice["text"] == "" and choice["logprobs"] == {
        "tokens": [],
        "token_logprobs": [],
        "top_logprobs": [],
        "text_offset": [],
    }
    chat = llm.create_chat_completion([{"role": "user", "content": "Hi"}], max_tokens=5, grammar='root ::= ""', logprobs=True)[
        "choices"
    ][0]
    assert chat["logprobs"] == {"content": [], "refusal": None}
    assert llm.create_completion(PROMPT, max_tokens=2)["choices"][0]["logprobs"] is None


def test_logprobs_have_openai_s_shape(llm):
    answer = llm.create_completion("The capital of France is", max_tokens=3, temperature=0, logprobs=2)
    found = answer["choices"][0]["logprobs"]
    assert "".join(found["tokens"]) == answer["choices"][0]["text"]
    assert found["text_offset"] == [24, 30, 31]  # behind the prompt, as OpenAI counts
    assert all(len(top) == 2 and max(top.values()) == value for top, value in zip(found["top_logprobs"], found["token_logprobs"]))
    messages = [{"role": "user", "content": "Hi"}]
    whole = llm.create_chat_completion(messages, max_tokens=5, temperature=0, logprobs=True, top_logprobs=3)
    content = whole["choices"][0]["logprobs"]["content"]
    assert "".join(entry["token"] for entry in content) == whole["choices"][0]["message"]["content"]
    assert all(len(entry["top_logprobs"]) == 3 and bytes(entry["bytes"]).decode() == entry["token"] for entry in content)
    chunks = llm.create_chat_completion(messages, max_tokens=5, temperature=0, logprobs=True, top_logprobs=3, stream=True)
    streamed = [chunk["choices"][0]["logprobs"] for chunk in chunks]
    assert [entry for part in streamed if part for entry in part["content"]] == content
    for wrong in (-1, True, 1.5, 10**9):
        with pytest.raises(InvalidArgumentError, match="logprobs"):
            llm.create_completion("x", logprobs=wrong)


# --- ending a request ---


@pytest.fixture
def slow(smollm2):
    """A model that takes its time with a prompt."""
    with Llama(smollm2, n_ctx=2048, n_batch=2048, n_ubatch=2048, n_threads=1, n_threads_batch=1) as model:
        yield model


@pytest.mark.cpu
def test_a_stream_is_closed_by_another_thread_while_its_prompt_is_read(slow):
    stream = slow.create_completion(LONG, stream=True, max_tokens=5)
    read = []
    reader = threading.Thread(target=lambda: read.append(list(stream)))
    reader.start()
    time.sleep(0.2)
    began = time.monotonic()
    stream.close()
    reader.join(60)
    took = time.monotonic() - began
    assert read == [[]] and not reader.is_alive()
    began = time.monotonic()
    assert slow.create_completion(LONG, max_tokens=1, temperature=0)["usage"]["completion_tokens"] == 1
    assert took < max(time.monotonic() - began, 1.0)  # less than the prompt would have taken
    assert list(stream) == [] and stream.close() is None


@pytest.mark.cpu
def test_a_request_is_ended_by_a_callback(slow):
    ended = threading.Event()
    threading.Timer(0.2, ended.set).start()
    answer = slow.create_completion(LONG, max_tokens=5, abort_callback=ended.is_set)
    assert answer["choices"][0] == {"text": "", "index": 0, "logprobs": None, "finish_reason": "abort"}
    calls = []

    def third():
        calls.append(1)
        return len(calls) > 2

    text = ""
    for chunk in slow.create_completion(
        "x", max_tokens=None, logit_bias={slow.token_eos(): -100}, stream=True, abort_callback=third
    ):
        text += chunk["choices"][0]["text"]
        last = chunk["choices"][0]["finish_reason"]
    assert last == "abort" and len(calls) == 3


def test_what_a_callback_raises_ends_the_request(slow):
    def failing():
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        slow.create_chat_completion([{"role": "user", "content": LONG}], abort_callback=failing)
    assert slow.create_completion("x", max_tokens=1)["usage"]["completion_tokens"] == 1


@pytest.mark.cpu
def test_others_go_on_when_one_is_ended(smollm2):
    with Llama(smollm2, n_ctx=1024, n_parallel=2) as llm:
        alone = llm.create_completion("The capital of France is", max_tokens=30, temperature=0)["choices"][0]["text"]
        stream = llm.create_completion("word " * 900, stream=True, max_tokens=5)
        found = []
        thread = threading.Thread(
            target=lambda: found.append(llm.create_completion("The capital of France is", max_tokens=30, temperature=0))
        )
        thread.start()
        threading.Thread(target=lambda: next(stream, None)).start()
        time.sleep(0.1)
        stream.close()
        thread.join()
        assert found[0]["choices"][0]["text"] == alone


@pytest.mark.cpu
def test_an_asynchronous_stream_is_closed_by_another_task(smollm2):
    async def run():
        async with AsyncLlama(smollm2, n_ctx=2048) as llm:
            stream = await llm.create_completion(LONG, stream=True, max_tokens=5)
            reader = asyncio.ensure_future(read(stream))
            await asyncio.sleep(0.2)
            await stream.aclose()
            assert await asyncio.wait_for(reader, 60) == []
            with pytest.raises(InvalidArgumentError, match="abort_callback"):
                await llm.create_completion("x", abort_callback=lambda: True)

    async def read(stream):
        return [chunk async for chunk in stream]

    asyncio.run(run())


# --- nothing to choose from ---


@pytest.mark.parametrize("temperature", [0, 1])
@pytest.mark.parametrize(
    "returned, match",
    [(lambda x: np.full_like(x, -np.inf), "forbid every token"), (lambda x: np.full_like(x, np.nan), "NaN"),
     (lambda x: None, "shape"),
     (lambda x: x[:5], "shape"), (lambda x: [["a"]], "list")],
)  # fmt: skip
def test_a_processor_that_leaves_nothing(llm, returned, match, temperature):
    with pytest.raises(InvalidArgumentError, match=match):
        llm.create_completion(
            "x", max_tokens=2, temperature=temperature, logits_processor=lambda _tokens, logits: returned(logits)
        )


def test_a_bias_that_leaves_nothing(llm):
    with pytest.raises(InvalidArgumentError, match="logit_bias"):
        llm.create_completion("x", max_tokens=2, logit_bias={token: -float("inf") for token in range(llm.n_vocab())})


def test_a_grammar_that_leaves_nothing(llm):
    letters = {token: -float("inf") for token in range(llm.n_vocab()) if b"a" in llm.detokenize([token])}
    with pytest.raises(GrammarError, match="No token is possible"):
        llm.create_completion("x", max_tokens=2, temperature=0, grammar='root ::= "a"', logit_bias=letters)


@pytest.mark.parametrize("grammar", [None, 'root ::= "a"'])
def test_logits_that_are_not_numbers(tmp_path, grammar):
    """A model whose weights are NaN is told apart from a grammar that forbids."""
    file = tiny_model()
    shape, _ = file.tensors["output_norm.weight"]
    file.tensors["output_norm.weight"] = (shape, T_F32)
    file.weights["output_norm.weight"] = np.full(shape[0], np.nan, np.float32).tobytes()
    (tmp_path / "nan.gguf").write_bytes(file.build())
    with Llama(tmp_path / "nan.gguf", n_ctx=64) as llm:
        for temperature in (0, 1):
            with pytest.raises(DecodeError, match="not numbers"):
                llm.create_completion([5], max_tokens=2, temperature=temperature, grammar=grammar)


# --- the prompt's own ---


def scores_one_by_one(llm, tokens):
    """The log-probability of each token but the first, from the logits that a logits processor sees behind those before it."""
    found = []
    for i in range(1, len(tokens)):
        seen = []
        note = lambda _, logits, seen=seen: (seen.append(logits.astype(np.float64)), logits)[1]
        llm.create_completion(tokens[:i], max_tokens=1, logits_processor=note)
        values = seen[0] - seen[0].max()
        found.append(float(values[tokens[i]] - np.log(np.exp(values).sum())))
    return found


@pytest.mark.parametrize("one_by_one", [False, True])
@pytest.mark.parametrize("arguments", [{}, {"n_parallel": 1, "n_batch": 16}, {"kv_unified": False, "n_parallel": 3}], ids=str)
def test_an_echoed_prompt_is_scored(smollm2, arguments, one_by_one):
    """In batches of any size, with others beside it: as if each token had been asked for alone."""
    with Llama(smollm2, n_ctx=512, **arguments) as llm:
        if one_by_one:  # as on a GPU
            llm.loaded.engine.scheduler.decoder.n_outputs_for_one = 1
        text = "The quick brown fox jumps over the lazy dog. Ünïcode 🦊 too."
        tokens = llm.tokenize(text.encode())
        expected = scores_one_by_one(llm, tokens)
        how = {"max_tokens": 3, "temperature": 0, "logprobs": 2, "echo": True}
        beside = [threading.Thread(target=llm.create_completion, args=(f"{i} and",), kwargs={"max_tokens": 60}) for i in range(2)]
        for thread in beside:
            thread.start()
        choice = llm.create_completion(text, **how)["choices"][0]
        for thread in beside:
            thread.join()
        found = choice["logprobs"]
        n = len(tokens)
        assert choice["text"].startswith(text) and len(found["tokens"]) == n + 3 == len(found["top_logprobs"])
        assert found["token_logprobs"][0] is None and found["top_logprobs"][0] is None
        assert found["token_logprobs"][1:n] == pytest.approx(expected, abs=ROUNDING)
        assert all(
            len(top) in (2, 3) and max(top.values()) >= value
            for top, value in zip(found["top_logprobs"][1:], found["token_logprobs"][1:])
        )
        places = [
            text[offset:].startswith(token)
            for token, offset in zip(found["tokens"][:n], found["text_offset"])
            if "bytes:" not in token
        ]
        assert all(places) and found["text_offset"][0] == 0 and found["text_offset"][n] == len(text)
        # the same in a stream, from token ids, and with everything in the cache
        for prompt in (text, tokens):
            chunks = list(llm.create_completion(prompt, stream=True, **how))
            joined = {
                name: [value for c in chunks if (part := c["choices"][0]["logprobs"]) for value in part[name]] for name in found
            }
            assert has_gpu() or (joined == found and "".join(c["choices"][0]["text"] for c in chunks) == choice["text"])


def test_a_prompt_longer_than_a_batch_is_scored(smollm2):
    with Llama(smollm2, n_ctx=512, n_batch=32, n_parallel=2) as llm:
        tokens = [1000 + 7 * i % 900 for i in range(200)]
        whole = llm.create_completion(tokens, max_tokens=1, temperature=0, logprobs=1, echo=True)["choices"][0]["logprobs"]
        assert len(whole["token_logprobs"]) == 201
        assert whole["token_logprobs"][1:200] == pytest.approx(scores_one_by_one(llm, tokens), abs=ROUNDING)
        usage = llm.create_completion(tokens, max_tokens=1, logprobs=1, echo=True)["usage"]
        assert usage["prompt_tokens_details"]["cached_tokens"] == 0, "what is cached has no scores"
        plain = llm.create_completion(tokens, max_tokens=1, echo=True)["choices"][0]
        assert plain["logprobs"] is None


def test_a_prompt_that_cannot_be_scored_ends_alone(smollm2, monkeypatch):
    """Logits that cannot be read are one request's trouble; who is computed beside it goes on."""
    with Llama(smollm2, n_ctx=256, n_parallel=2) as llm:
        other = llm.create_completion("One, two,", max_tokens=150, stream=True)
        next(other)

        def broken(*_, **__):
            raise MemoryError("no room")

        with monkeypatch.context() as patch:
            patch.setattr(Decoder, "logits", broken)
            with pytest.raises(MemoryError):
                llm.create_completion(PROMPT, max_tokens=2, echo=True, logprobs=1)
        assert [chunk["choices"][0]["finish_reason"] for chunk in other][-1] in ("length", "stop")
        assert llm.create_completion(PROMPT, max_tokens=2, echo=True, logprobs=1)["choices"][0]["logprobs"]["tokens"]
