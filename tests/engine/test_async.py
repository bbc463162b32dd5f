"""``AsyncLlama``: coroutines and asynchronous generators over the same engine."""

from __future__ import annotations

import asyncio
import concurrent.futures

import pytest

from llama_cpp import AsyncLlama
from llama_cpp.errors import ContextLengthError, ModelClosedError
from llama_cpp.limits import Limits


@pytest.fixture(scope="module")
def run(smollm2):
    """Runs a coroutine function with a model."""

    def run(work, **arguments):
        async def main():
            async with AsyncLlama(smollm2, **{"n_ctx": 512, "n_parallel": 4, **arguments}) as llm:
                return await asyncio.wait_for(work(llm), 240)

        return asyncio.run(main())

    return run


@pytest.mark.cpu
def test_many_coroutines_get_their_own_answers(run, llm):
    questions = [f"Number {i} is" for i in range(12)]
    expected = [llm.create_completion(q, max_tokens=6, temperature=0)["choices"][0]["text"] for q in questions]

    async def work(model):
        answers = await asyncio.gather(*[model.create_completion(q, max_tokens=6, temperature=0) for q in questions])
        return [answer["choices"][0]["text"] for answer in answers]

    assert run(work) == expected


@pytest.mark.cpu
def test_streams_interleave(run, llm):
    messages = [{"role": "user", "content": "Hi"}]
    whole = llm.create_chat_completion(messages, max_tokens=8, temperature=0)["choices"][0]["message"]["content"]

    async def one(model):
        text = ""
        async for chunk in await model.create_chat_completion(messages, max_tokens=8, temperature=0, stream=True):
            text += chunk["choices"][0]["delta"].get("content", "")
        return text

    async def work(model):
        return await asyncio.gather(*[one(model) for _ in range(6)])

    assert run(work) == [whole] * 6


def test_leaving_a_stream_and_cancelling_a_task_end_the_request(run):
    async def work(model):
        engine = model.loaded.engine
        stream = await model.create_completion("Once upon a time", max_tokens=400, temperature=0, stream=True)
        async for _ in stream:
            break
        await stream.aclose()
        task = asyncio.create_task(model.create_completion("Once upon a time", max_tokens=400, temperature=0))
        await asyncio.sleep(0.5)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        for _ in range(200):
            if engine.snapshot().is_idle:
                return True
            await asyncio.sleep(0.05)
        return False

    assert run(work)


def test_a_stop_string_ends_a_stream(run):
    async def work(model):
        chunks = [
            c async for c in await model.create_completion("1 2 3 4 5", max_tokens=40, temperature=0, stop="9", stream=True)
        ]
        return chunks[-1]["choices"][0]["finish_reason"], "".join(c["choices"][0]["text"] for c in chunks)

    reason, text = run(work)
    assert reason == "stop" and "9" not in text


def test_errors_are_raised_where_they_are_awaited(run):
    async def work(model):
        with pytest.raises(ContextLengthError):
            await model.create_completion("x " * 2000)

        def fail(tokens, logits):
            raise LookupError("no")

        with pytest.raises(LookupError):
            await model.create_completion("x", logits_processor=fail)
        running = asyncio.create_task(model.create_completion("Once upon a time", max_tokens=400, temperature=0))
        await asyncio.sleep(0.3)
        await model.close()
        with pytest.raises(ModelClosedError):
            await running
        return model.model_path

    assert run(work)


def test_the_rest_of_the_interface_is_there(run):
    async def work(model):
        tokens = await model.tokenize(b"hello")
        return await model.detokenize(tokens), model.n_ctx(), model.token_eos() >= 0, await model.reset()

    assert run(work) == (b"hello", 512, True, None)
    with pytest.raises(AttributeError):
        AsyncLlama.__getattr__(object.__new__(AsyncLlama), "_nothing")


_LOOPS = "{% for a in range(100000) %}{% for b in range(100000) %}x{% endfor %}{% endfor %}"
_DEEP = "\n".join(f"r{i} ::= r{i + 1} r{i + 1}" for i in range(40)) + '\nr40 ::= "a"?\nroot ::= r0 "b"'
_RANGES = {f"k{i}": {"type": "integer", "minimum": i, "maximum": 10**18 + i} for i in range(40_000)}
_SCHEMA = {"type": "object", "properties": _RANGES}


@pytest.mark.parametrize("what", ["template", "grammar", "schema"])
def test_cancelling_a_task_ends_what_its_thread_works_at(smollm2, what):
    """It would keep one of the few threads for as long as the limits allow."""
    far = Limits(seconds=40, template_bytes=1 << 40, template_values=1 << 40, grammar_stacks=1 << 50, grammar_bytes=1 << 40)
    asked = {
        "template": {},
        "grammar": {"grammar": _DEEP},
        "schema": {"response_format": {"type": "json_object", "schema": _SCHEMA}},
    }[what]

    async def main():
        loop = asyncio.get_running_loop()
        loop.set_default_executor(concurrent.futures.ThreadPoolExecutor(1))
        async with AsyncLlama(smollm2, n_ctx=512, limits=far, chat_format=_LOOPS if what == "template" else None) as llm:
            task = asyncio.create_task(llm.create_chat_completion([{"role": "user", "content": "Hi"}], max_tokens=1, **asked))
            await asyncio.sleep(1)
            assert not task.done(), "it is to take long"
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            # the only thread is free again
            assert await asyncio.wait_for(llm.tokenize(b"hello"), 20)

    asyncio.run(main())
