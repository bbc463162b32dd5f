"""How often a lone caller gets the same answer again, and what repeatable=True costs in time to the first token.

    python benchmarks/repeatable.py MODEL [--cost-of MODEL] [--questions 16] [--tokens 96] [--n-ubatch 512 256 128]

Prints how many questions have the same answer at temperature 0, for each way of sharing the cache: asked twice more, after other
questions and after their own next turn, and after `reset()`. Then the milliseconds to the first token of a later turn of chats,
with and without repeatable=True, the sides taking turns. These are medians, with how many tokens of the prompt were read, as they
were not in the cache. `--cost-of` names another model for that; time does not depend on what it says.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np

from llama_cpp import Llama

CACHES: dict[str, dict[str, Any]] = {
    "shared by 8": {},
    "a stream for each of 8": {"n_parallel": 8},
    "one request": {"n_parallel": 1},
    "prompt-lookup": {"draft_model": "prompt-lookup"},
}


def words(numbers: random.Random, llm: Llama, n: int) -> list[int]:
    """Some tokens that are no special ones."""
    return [numbers.randrange(300, min(llm.n_vocab(), 30000)) for _ in range(n)]


def answer(llm: Llama, prompt: list[int], n: int) -> list[int]:
    """The tokens of an answer at temperature 0, which does not end early."""
    seen: list[int] = []

    def note(tokens: np.ndarray, logits: np.ndarray) -> np.ndarray:
        seen[:] = tokens[len(prompt) :]
        return logits

    llm.create_completion(prompt, max_tokens=n + 1, temperature=0, logits_processor=note, logit_bias={llm.token_eos(): -1e9})
    return seen


def text(llm: Llama, prompt: list[int], n: int) -> str:
    """As answer(), in the way that is quick."""
    asked = llm.create_completion(prompt, max_tokens=n, temperature=0, logit_bias={llm.token_eos(): -1e9})
    assert isinstance(asked, dict)
    return str(asked["choices"][0]["text"])


def same(model: Path, n_questions: int, n: int, **arguments: Any) -> tuple[int, int, int]:
    """How many answers are the first one again: asked twice, after others, and after a reset."""
    numbers = random.Random(1)
    with Llama(model, n_ctx=2048, **arguments) as llm:
        system = words(numbers, llm, 700)
        questions = []
        for _ in range(n_questions):
            shared = system if numbers.random() < 0.5 else []
            questions.append([*shared, *words(numbers, llm, numbers.randrange(10, 900))])
        first = []
        for question in questions:
            llm.reset()
            first.append(text(llm, question, n))
        pairs = list(zip(questions, first))
        twice = sum(text(llm, question, n) == text(llm, question, n) == expected for question, expected in pairs)
        after = 0
        for question, expected in pairs:
            text(llm, words(numbers, llm, numbers.randrange(10, 500)), 20)
            text(llm, [*question, *words(numbers, llm, 30)], 20)
            after += text(llm, question, n) == expected
        reset = 0
        for question, expected in pairs:
            llm.reset()
            reset += text(llm, question, n) == expected
    return twice, after, reset


def chats(
    model: Path, arguments: dict[str, dict[str, Any]], n_chats: int, n_turns: int, n_answer: int
) -> dict[str, tuple[list[float], list[int]]]:
    """Seconds to the first token of each chat's later turns, and how many tokens of their prompts were read for that."""
    numbers = random.Random(2)
    sides = {name: Llama(model, n_ctx=4096, n_parallel=1, **given) for name, given in arguments.items()}
    found: dict[str, tuple[list[float], list[int]]] = {name: ([], []) for name in sides}
    for chat in range(n_chats + 1):
        prompts: dict[str, list[int]] = {}
        for turn in range(n_turns):
            said = words(numbers, next(iter(sides.values())), numbers.randrange(50, 600) if turn == 0 else 40)
            for name, llm in sides.items():
                prompt = prompts[name] = [*prompts.get(name, []), *said]
                began = time.perf_counter()
                first = llm.create_completion(prompt, max_tokens=1, temperature=0)
                seconds = time.perf_counter() - began
                assert isinstance(first, dict)
                if turn and chat:  # the first chat warms up
                    found[name][0].append(seconds)
                    found[name][1].append(len(prompt) - first["usage"]["prompt_tokens_details"]["cached_tokens"])
                prompts[name] += answer(llm, prompt, n_answer)
    for llm in sides.values():
        llm.close()
    return found


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--cost-of", type=Path, metavar="MODEL")
    parser.add_argument("--questions", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--chats", type=int, default=6)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--answer", type=int, default=200, help="tokens of an answer in a chat")
    parser.add_argument("--n-ubatch", type=int, nargs="*", default=[512, 256, 128])
    options = parser.parse_args()
    print(f"the same answer again, of {options.questions}        asked twice  after others  after reset()")
    for repeatable in (False, True):
        for name, cache in CACHES.items():
            counted = same(options.model, options.questions, options.tokens, repeatable=repeatable, **cache)
            print(f"{'repeatable' if repeatable else '':10} {name:24}" + "".join(f"{n:13}" for n in counted), flush=True)
    sides: dict[str, dict[str, Any]] = {"as it is": {}}
    sides |= {f"repeatable, n_ubatch {n}": {"repeatable": True, "n_ubatch": n} for n in options.n_ubatch}
    print("\nlater turns of a chat              ms to the first token   tokens read")
    found = chats(options.cost_of or options.model, sides, options.chats, options.turns, options.answer)
    for name, (seconds, read) in found.items():
        print(f"{name:34} {1000 * statistics.median(seconds):21.1f} {statistics.median(read):13.0f}", flush=True)


if __name__ == "__main__":
    main()
