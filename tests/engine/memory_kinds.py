"""Small models of each kind of memory: loaded, asked for tokens, and for what was in their cache."""

import random

import tiny_models
from llama_cpp import Llama

GENERATIVE = sorted(set(tiny_models.KINDS) - {"encoder"})
CHECKPOINTED = ["window, short", "state", "rwkv", "hybrid", "short convolution"]


def load(models, kind, **arguments):
    kind, short, _ = kind.partition(", short")
    arguments = {"n_ctx": 512, "n_batch": 64, "n_parallel": 3, "n_threads": 1, "n_threads_batch": 1, **arguments}
    return Llama(models[kind], swa_full=not short, **arguments)


def answer(llm, prompt, n=16, **arguments):
    """The answer's tokens."""
    found = []

    def note(tokens, logits):
        found[:] = tokens[len(prompt) :]
        return logits

    arguments = {"logit_bias": {llm.token_eos(): -1e9}, **arguments}
    # a last token more, so that the processor sees all of them
    llm.create_completion(prompt, max_tokens=n + 1, temperature=0, logits_processor=note, **arguments)
    return list(map(int, found))


def cached(llm, prompt, **arguments):
    """How many tokens of a prompt were in the cache."""
    return llm.create_completion(prompt, max_tokens=1, **arguments)["usage"]["prompt_tokens_details"]["cached_tokens"]


def prompts(seed, n=12):
    """Prompts that part in different places, and one that goes on after each answer is for the test to make."""
    numbers = random.Random(seed)
    text = [numbers.randrange(3, 270) for _ in range(300)]
    return [text[: numbers.randrange(0, 250)] + numbers.choices(range(3, 270), k=numbers.randrange(1, 60)) for _ in range(n)]
