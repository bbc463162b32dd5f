"""Completions with a real model: what comes out, where it ends, and that requests do not disturb one another."""

from __future__ import annotations

import json
import math
import re
import subprocess
import threading

import pytest

from llama_cpp import Llama
from llama_cpp.capi.backends import has_gpu
from llama_cpp.engine.detokenizer import Detokenizer
from llama_cpp.errors import ContextLengthError, GrammarError, InvalidArgumentError
from llama_cpp.fit.threads import default_threads

FRANCE = "The capital of France is"
STORY = "Once upon a time, in a small village"


def complete(llm, prompt=FRANCE, **arguments):
    """The text of a completion, greedy and short unless said otherwise."""
    return llm.create_completion(prompt, **{"max_tokens": 12, "temperature": 0, **arguments})["choices"][0]["text"]


def stream(llm, prompt=FRANCE, **arguments):
    """The chunks' texts of a streamed completion."""
    chunks = llm.create_completion(prompt, stream=True, **{"max_tokens": 12, "temperature": 0, **arguments})
    return [chunk["choices"][0]["text"] for chunk in chunks]


@pytest.fixture(scope="module")
def paris(llm):
    """The greedy continuation of FRANCE; the tests of stop strings cut it."""
    text = complete(llm, max_tokens=20)
    assert text.startswith(" Paris.\n\nThe United States")
    return text


@pytest.fixture(scope="module")
def small(smollm2):
    """The same model with the smallest context there is."""
    with Llama(smollm2, n_ctx=256, flash_attn=True) as model:
        yield model


@pytest.fixture(scope="module")
def ends(llm):
    """A bias that forbids the model to end."""
    return {llm.token_eos(): -math.inf, **dict.fromkeys(range(17), -math.inf)}


# --- the same as the engine's own tool ---


@pytest.mark.parametrize("prompt", [FRANCE, STORY, "def fibonacci(n):\n    if n"])
def test_greedy_text_is_the_one_of_llama_completion(prompt, smollm2, engine_tool):
    command = [engine_tool("llama-completion"), "-m", smollm2, "-p", prompt, "-n", "64", "--temp", "0", "-fa", "on"]
    command += ["-no-cnv", "--no-display-prompt", "--simple-io", "--no-warmup", "--no-escape", "-lv", "0"]
    # more threads than processors would wait for each other most of the time
    threads = str(default_threads())
    command += ["-t", threads, "-tb", threads, "-c", "512", "-b", "512", "-ub", "512"]
    done = subprocess.run([str(part) for part in command], stdin=subprocess.DEVNULL, capture_output=True, check=True)
    with Llama(smollm2, n_ctx=512, n_threads=int(threads), n_threads_batch=int(threads), flash_attn=True) as llm:
        answer = llm.create_completion(prompt, max_tokens=64, temperature=0)
    assert answer["usage"]["completion_tokens"] == 64
    assert done.stdout.decode() == answer["choices"][0]["text"] + "\n\n"  # which the tool ends with


# --- seeds ---


def test_a_seed_makes_text_repeatable_and_another_gives_another(llm):
    def text(seed):
        return complete(llm, STORY, temperature=1.5, min_p=0, seed=seed)

    one, two, zero = text(1), text(2), text(0)
    assert text(1) == one
    assert text(0) == zero
    assert len({zero, one, two}) == 3


def test_the_model_s_seed_serves_requests_without_one(llm):
    try:
        llm.set_seed(0)
        default = complete(llm, STORY, temperature=1.5, min_p=0)
        assert default == complete(llm, STORY, temperature=1.5, min_p=0, seed=0)
        assert default != complete(llm, STORY, temperature=1.5, min_p=0, seed=1)
    finally:
        llm.set_seed(None)


def test_without_a_seed_texts_differ(llm):
    assert len({complete(llm, STORY, temperature=1.5, min_p=0) for _ in range(3)}) > 1


@pytest.mark.parametrize("mode", [1, 2])
def test_mirostat_is_repeatable_and_not_greedy(llm, mode):
    arguments = {"temperature": 1.5, "mirostat_mode": mode, "mirostat_tau": 8.0, "seed": 3}
    text = complete(llm, STORY, **arguments)
    assert text == complete(llm, STORY, **arguments)
    assert text != complete(llm, STORY)


def test_truncating_samplers_to_one_token_is_greedy(llm):
    greedy = complete(llm, STORY, max_tokens=8)
    assert complete(llm, STORY, max_tokens=8, temperature=2.0, top_k=1, seed=1) == greedy
    assert complete(llm, STORY, max_tokens=8, temperature=2.0, top_k=0, min_p=1.0, seed=1) == greedy
    assert complete(llm, STORY, max_tokens=8, temperature=2.0, top_k=0, top_p=0.0, min_p=0, seed=1) == greedy


# --- stop strings ---


@pytest.mark.parametrize("stop", [["United", "The"], ["The", "United"], ["States", "he United", "The"]])
def test_text_ends_at_the_earliest_stop_whatever_their_order(llm, paris, stop):
    answer = llm.create_completion(FRANCE, max_tokens=20, temperature=0, stop=stop)
    assert answer["choices"][0]["text"] == paris[: paris.index("The")]
    assert answer["choices"][0]["finish_reason"] == "stop"


@pytest.mark.parametrize("stop", [".\n\nThe", "ris.\n", " United States h", "\n"])
def test_a_stop_string_is_found_across_tokens(llm, paris, stop):
    assert complete(llm, max_tokens=20, stop=stop) == paris[: paris.index(stop)]


@pytest.mark.parametrize("stop", ["Paris", "ris", ".\n\nThe Uni", "States has", "\n\n"])
def test_no_part_of_a_stop_string_leaks_into_a_stream(llm, paris, stop):
    assert "".join(stream(llm, max_tokens=20, stop=[stop, "nowhere"])) == paris[: paris.index(stop)]


def test_the_beginning_of_a_stop_string_is_held_back_until_it_is_none(llm):
    chunks = stream(llm, max_tokens=2, stop="Paris, no")
    assert chunks[0] == " "
    assert chunks[1] == "Paris."


def test_what_was_held_back_comes_when_generation_ends(llm):
    answer = llm.create_completion(FRANCE, max_tokens=1, temperature=0, stop="Paris, no")
    assert answer["choices"][0]["text"] == " Paris"
    assert answer["choices"][0]["finish_reason"] == "length"
    assert "".join(stream(llm, max_tokens=1, stop="Paris, no")) == " Paris"


def test_an_empty_stop_stops_nothing(llm, paris):
    assert complete(llm, max_tokens=4, stop=["", "nowhere"]) == complete(llm, max_tokens=4) != ""


def test_a_stop_that_is_no_string_is_refused(llm):
    with pytest.raises(InvalidArgumentError, match="stop"):
        complete(llm, stop=[5])


# --- lengths and counts ---


def test_max_tokens_and_usage(llm):
    answer = llm.create_completion(FRANCE, max_tokens=5, temperature=0)
    usage = answer["usage"]
    assert answer["choices"][0]["finish_reason"] == "length"
    assert usage["completion_tokens"] == 5
    assert usage["prompt_tokens"] == len(llm.tokenize(FRANCE.encode(), special=True))
    assert usage["total_tokens"] == usage["prompt_tokens"] + 5
    assert answer["object"] == "text_completion"
    assert answer["timings"]["predicted_n"] == 5


def test_the_model_s_own_end_is_a_stop(llm):
    answer = llm.create_completion(FRANCE, max_tokens=5, temperature=0, logit_bias={llm.token_eos(): 100})
    assert answer["choices"][0] == {"text": "", "index": 0, "logprobs": None, "finish_reason": "stop"}
    assert answer["usage"]["completion_tokens"] == 0


def test_usage_of_a_stream_comes_last_when_asked_for(llm):
    request = {"max_tokens": 3, "temperature": 0, "stream": True}
    *chunks, last = llm.create_completion(FRANCE, **request, stream_options={"include_usage": True})
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == 3
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks][-1] == "length"
    assert all(chunk["choices"][0]["finish_reason"] is None for chunk in chunks[:-1])
    assert not any("usage" in chunk for chunk in llm.create_completion(FRANCE, **request))


def test_a_stream_gives_the_same_text(llm, paris):
    chunks = stream(llm, max_tokens=20)
    assert "".join(chunks) == paris
    assert len(chunks) > 10


def test_echo_begins_with_the_prompt(llm):
    assert complete(llm, echo=True, max_tokens=2) == FRANCE + complete(llm, max_tokens=2)
    assert "".join(stream(llm, echo=True, max_tokens=2)) == FRANCE + complete(llm, max_tokens=2)


def test_echo_of_token_ids_is_their_text(llm):
    """Also of text that a tokenizer's "clean up spaces" would change."""
    text = "Is it , then ? It 's"
    assert complete(llm, llm.tokenize(text.encode()), echo=True, max_tokens=1).startswith(text)


def test_a_full_context_ends_with_length(small, ends):
    prompt = (small.tokenize(b"The cat sat on the mat. ") * 100)[: small.n_ctx() - 3]
    answer = small.create_completion(prompt, max_tokens=None, temperature=0, logit_bias=ends)
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["usage"]["total_tokens"] == small.n_ctx()
    assert answer["usage"]["completion_tokens"] == 3


@pytest.mark.parametrize("extra", [0, 1, 500])
@pytest.mark.parametrize("streamed", [False, True])
def test_a_prompt_that_does_not_fit_is_refused_at_once(small, extra, streamed):
    n_prompt = small.n_ctx() + extra
    with pytest.raises(ContextLengthError) as caught:
        small.create_completion([5000] * n_prompt, stream=streamed)
    assert (caught.value.n_prompt, caught.value.n_ctx) == (n_prompt, small.n_ctx())
    assert "n_ctx" in caught.value.remedy
    assert complete(small, max_tokens=1) == " Paris"


def test_a_repeated_prompt_is_not_computed_again(llm):
    def details(prompt):
        return llm.create_completion(prompt, max_tokens=2, temperature=0)["usage"]["prompt_tokens_details"]

    llm.reset()
    n_prompt = len(llm.tokenize(STORY.encode()))
    assert details(STORY)["cached_tokens"] == 0
    if not has_gpu():  # there this model reads short prompts anew, to be repeatable
        assert details(STORY)["cached_tokens"] == n_prompt - 1  # the last one gives the logits
        assert details(STORY + " by the sea")["cached_tokens"] == n_prompt
    llm.reset()
    assert details(STORY)["cached_tokens"] == 0


def test_a_cached_prompt_gives_the_same_text(llm):
    llm.reset()
    fresh = complete(llm, STORY)
    complete(llm, STORY + " by the sea", max_tokens=3)
    assert complete(llm, STORY) == fresh


# --- prompts ---


def test_a_prompt_of_token_ids_is_the_same_as_its_text(llm, paris):
    assert complete(llm, llm.tokenize(FRANCE.encode()), max_tokens=20) == paris


@pytest.mark.parametrize("prompt", [b"bytes", 5, None, {"a": 1}])
def test_a_prompt_of_another_kind_is_refused(llm, prompt):
    with pytest.raises(InvalidArgumentError, match="prompt"):
        llm.create_completion(prompt)


@pytest.mark.parametrize("token", [-1, 10**6, 2**40])
def test_a_prompt_with_a_token_that_does_not_exist_is_refused(llm, token):
    with pytest.raises(ValueError, match=str(token)):
        llm.create_completion([1, token], max_tokens=1)


def test_an_empty_prompt_begins_with_bos(llm):
    assert llm.create_completion("", max_tokens=1)["usage"]["prompt_tokens"] == 1


# --- sampling parameters ---


def test_logit_bias_forbids_and_forces(llm):
    (token,) = llm.tokenize(b" Paris", add_bos=False)
    assert complete(llm, max_tokens=1) == " Paris"
    for bias in (-100, -math.inf):
        assert "Paris" not in complete(llm, max_tokens=1, logit_bias={token: bias})
    (other,) = llm.tokenize(b" London", add_bos=False)
    assert complete(llm, max_tokens=3, logit_bias={other: 100}) == " London" * 3
    assert complete(llm, max_tokens=2, logit_bias={str(other): 100}) == " London" * 2


@pytest.mark.parametrize("bias", [{10**6: 1}, {-1: 1}, {0: math.nan}, {0: math.inf}, {"x": 1}, {0: "y"}, {0: None}])
def test_a_bias_that_means_nothing_is_refused(llm, bias):
    with pytest.raises(InvalidArgumentError, match="logit_bias"):
        complete(llm, logit_bias=bias)


@pytest.mark.parametrize(
    "penalty", [{"repeat_penalty": 1.8}, {"presence_penalty": 8.0}, {"frequency_penalty": 3.0}], ids=lambda p: next(iter(p))
)
def test_penalties_break_a_repetition(llm, penalty):
    prompt = "the dog the dog the dog the dog the dog the"
    plain = complete(llm, prompt, max_tokens=6)
    assert plain == " dog the dog the dog the"
    assert complete(llm, prompt, max_tokens=6, **penalty).count("dog") < 3


@pytest.mark.parametrize(
    "name, value",
    [("top_p", 1.5), ("min_p", -0.1), ("temperature", math.nan), ("temperature", "hot"), ("repeat_penalty", 0),
     ("mirostat_mode", 3), ("typical_p", 2), ("presence_penalty", math.inf)],
)  # fmt: skip
def test_values_the_samplers_would_misread_are_refused(llm, name, value):
    with pytest.raises(InvalidArgumentError, match=name):
        complete(llm, **{name: value})


# --- grammar ---


def test_a_grammar_is_obeyed_to_its_end(llm):
    answer = llm.create_completion(
        "Answer:", max_tokens=20, temperature=1.0, seed=5, grammar='root ::= ("yes" | "no") " " [0-9] [0-9] [0-9]'
    )
    assert re.fullmatch(r"(yes|no) \d\d\d", answer["choices"][0]["text"])
    assert answer["choices"][0]["finish_reason"] == "stop"


def test_one_grammar_serves_no_other_request(llm, paris):
    assert complete(llm, max_tokens=3, grammar='root ::= "x"+') == "x" * len(complete(llm, max_tokens=3, grammar='root ::= "x"+'))
    assert complete(llm, max_tokens=20) == paris


BAD_GRAMMARS = {
    "no operator": "root = 5",
    "undefined rule": "root ::= nowhere",
    "no root": 'start ::= "a"',
    "left recursion": 'root ::= root "a" | "b"',
    "open parenthesis": 'root ::= ("a"',
    "open quote": 'root ::= "a',
    "open class": "root ::= [a-",
    "deep": "root ::= " + "(" * 100_000,
    "repetition of nothing": "root ::= {5}",
    "NUL": 'root ::= "a"\0',
    "not UTF-8": 'root ::= "\udcff',
}


@pytest.mark.parametrize("name", BAD_GRAMMARS)
def test_a_bad_grammar_is_an_exception_and_the_process_lives(name, smollm2, run_python):
    done = run_python(
        """
import json, sys
from llama_cpp import Llama
from llama_cpp.errors import GrammarError, InvalidArgumentError
with Llama(sys.argv[1], n_ctx=256) as llm:
    try:
        llm.create_completion("Hi", max_tokens=1, temperature=0, grammar=json.loads(sys.argv[2]))
    except (GrammarError, InvalidArgumentError) as error:
        print("refused", error)
    llm.create_completion("Hi", max_tokens=1)
    print("alive")
""",
        str(smollm2),
        json.dumps(BAD_GRAMMARS[name])[:120_000],
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.startswith("refused") and done.stdout.endswith("alive\n")


def test_a_bad_grammar_is_refused_before_the_stream_begins(llm):
    with pytest.raises(GrammarError):
        llm.create_completion("Hi", grammar="root ::= nowhere", stream=True)


# --- characters ---


def test_characters_split_over_tokens_arrive_whole(llm):
    """The model is held to text whose characters its vocabulary has in pieces only."""
    text = "🦙é世🧵"
    assert len(llm.tokenize(text.encode(), add_bos=False)) > len(text)
    request = {"max_tokens": 40, "temperature": 0, "grammar": f'root ::= "{text}"'}
    chunks = list(llm.create_completion("Emoji: ", stream=True, stream_options={"include_usage": True}, **request))
    pieces = [chunk["choices"][0]["text"] for chunk in chunks if chunk["choices"]]
    assert "".join(pieces) == text
    assert chunks[-1]["usage"]["completion_tokens"] > len([piece for piece in pieces if piece])
    for piece in pieces:
        assert "\ufffd" not in piece
        piece.encode()  # no lone surrogate
    assert complete(llm, "Emoji: ", **request) == text


@pytest.fixture(scope="module", params=["llama-spm", "gpt-2"])
def vocabulary(request, llama_source):
    """One vocabulary with tokens for single bytes, and one whose tokens are byte pairs."""
    with Llama(llama_source / "models" / f"ggml-vocab-{request.param}.gguf", vocab_only=True) as llm:
        yield llm


def pushed(vocabulary, text, **arguments):
    """What a Detokenizer gives for each token of a text, and at the end."""
    stream = Detokenizer(vocabulary.loaded.model, **arguments)
    tokens = vocabulary.tokenize(text.encode(), add_bos=False)
    return [stream.push(token) for token in tokens], stream.finish()


def test_text_stream_waits_for_the_last_byte(vocabulary):
    pieces, rest = pushed(vocabulary, "x🧵")
    assert "".join(pieces).strip() == "x🧵"
    assert pieces[-1] == "🧵"
    assert pieces[-3:-1] == ["", ""]
    assert rest == ""


def test_text_stream_shows_a_broken_character_at_the_end_only(vocabulary):
    stream = Detokenizer(vocabulary.loaded.model)
    *most, _ = vocabulary.tokenize("x🧵".encode(), add_bos=False)
    assert "".join(stream.push(token) for token in most).strip() == "x"
    assert stream.finish() == "\ufffd"


def test_text_stream_keeps_the_order_after_a_broken_character(vocabulary):
    """Also the second time, when the pieces are known already."""
    *broken, _ = vocabulary.tokenize("x🧵".encode(), add_bos=False)
    tokens = [*broken, *vocabulary.tokenize("yes 🧵 no".encode(), add_bos=False)]
    written = b"".join(map(vocabulary.loaded.model.token_to_piece, tokens)).decode("utf-8", "replace")
    for _ in range(2):
        stream = Detokenizer(vocabulary.loaded.model)
        assert "".join(map(stream.push, tokens)) + stream.finish() == written


def test_text_stream_finds_a_stop_inside_split_characters(vocabulary):
    pieces, rest = pushed(vocabulary, "a 🧵🦙 b", stop=["🦙"])
    assert ("".join(pieces) + rest).strip() == "a 🧵"
    pieces, rest = pushed(vocabulary, "a 🧵🦙 b", stop=["🧵🧵", "🦙x"])
    assert ("".join(pieces) + rest).strip() == "a 🧵🦙 b"


def test_text_stream_prefers_the_earliest_stop(vocabulary):
    pieces, rest = pushed(vocabulary, "one two three", stop=["three", "two", "e t"])
    assert ("".join(pieces) + rest).strip() == "on"


def test_text_stream_releases_what_can_no_longer_be_a_stop(vocabulary):
    """An end that begins a stop string is held; a second beginning inside it is not lost."""
    pieces, rest = pushed(vocabulary, "aabaabaac end", stop=["aabaac"])
    assert ("".join(pieces) + rest).strip() == "aab"


# --- several at once ---


@pytest.mark.cpu
def test_two_streams_in_one_thread_do_not_mix(llm):
    alone = [complete(llm, FRANCE, max_tokens=8), complete(llm, STORY, max_tokens=8)]
    streams = [llm.create_completion(p, stream=True, max_tokens=8, temperature=0) for p in (FRANCE, STORY)]
    texts = ["", ""]
    for chunks in zip(*streams):
        for index, chunk in enumerate(chunks):
            texts[index] += chunk["choices"][0]["text"]
    assert texts == alone


@pytest.mark.cpu
def test_two_threads_do_not_mix(llm):
    prompts = (FRANCE, STORY, "Water boils at", FRANCE)
    alone = [complete(llm, prompt, max_tokens=8) for prompt in prompts]
    texts: dict[int, str] = {}
    barrier = threading.Barrier(len(prompts))

    def run(index):
        barrier.wait()
        texts[index] = complete(llm, prompts[index], max_tokens=8)

    threads = [threading.Thread(target=run, args=(index,)) for index in range(len(prompts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [texts[index] for index in range(len(prompts))] == alone


def test_an_abandoned_stream_leaves_the_model_usable(llm, paris):
    abandoned = llm.create_completion(STORY, stream=True, max_tokens=50, temperature=0)
    next(abandoned)
    del abandoned
    never_started = llm.create_completion(STORY, stream=True)
    del never_started
    assert complete(llm, max_tokens=20) == paris


def test_a_closed_stream_gives_nothing_more(llm):
    chunks = llm.create_completion(STORY, stream=True, max_tokens=50, temperature=0)
    next(chunks)
    chunks.close()
    assert list(chunks) == []


def test_a_keyboard_interrupt_leaves_the_model_usable(smollm2, run_python):
    """At several moments: while the prompt is read, and while text is generated."""
    done = run_python(
        """
import os, signal, sys, threading
from llama_cpp import Llama
with Llama(sys.argv[1], n_ctx=1024, flash_attn=True, repeatable=True) as llm:
    bias = {token: -100 for token in range(17)}
    def answer():
        return llm.create_completion("The capital of France is", max_tokens=8, temperature=0)["choices"][0]["text"]
    fresh = answer()
    long = "All work and no play makes Jack a dull boy. " * 8
    interrupted = 0
    for delay in (0.05, 0.3, 1.0):
        llm.reset()
        timer = threading.Timer(delay, os.kill, (os.getpid(), signal.SIGINT))
        try:
            timer.start()
            llm.create_completion(long, max_tokens=None, temperature=0, logit_bias=bias)
        except KeyboardInterrupt:
            interrupted += 1
        timer.join()
        assert answer() == fresh, (delay, answer(), fresh)
        again = llm.create_completion(long, max_tokens=2, temperature=0)["choices"][0]["text"]
        llm.reset()
        assert llm.create_completion(long, max_tokens=2, temperature=0)["choices"][0]["text"] == again
    print("interrupted", interrupted)
""",
        str(smollm2),
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert re.fullmatch(r"interrupted [1-4]\n", done.stdout)


def test_an_answer_is_plain_data(llm):
    answer = llm.create_completion(FRANCE, max_tokens=1)
    assert json.loads(json.dumps(answer)) == answer


# --- between two texts ---


def test_a_suffix_makes_the_prompt_that_models_fill_in(smollm2):
    markers = dict(zip(("fim_pre", "fim_suf", "fim_mid"), (3, 4, 5)))
    overrides = {f"tokenizer.ggml.{name}_token_id": token for name, token in markers.items()}
    with Llama(smollm2, n_ctx=256, flash_attn=True, kv_overrides=overrides) as model:
        before, after = "def add(a, b):\n    return <|im_start|> ", "\n\nprint(add(1, 2))"
        first, second = (model.tokenize(text.encode(), add_bos=False) for text in (before, after))
        expected = complete(model, [3, *first, 4, *second, 5])
        assert complete(model, before, suffix=after) == expected
        assert complete(model, first, suffix=after) == expected
        answer = model.create_completion(before, suffix=after, max_tokens=1, echo=True)
        assert answer["usage"]["prompt_tokens"] == 3 + len(first) + len(second)
        assert answer["choices"][0]["text"].startswith(before)
    with Llama(smollm2, n_ctx=256, flash_attn=True, kv_overrides=overrides, spm_infill=True) as model:
        assert complete(model, before, suffix=after) == complete(model, [4, *second, 3, *first, 5])
