"""Many threads with mixed requests for a long time: python tests/engine/stress.py [--seconds 600] [--threads 64] [--model GGUF]

Every answer at temperature 0, and every one with a seed, must be what it is alone; nothing may leak or hang. Without a model it
makes small ones of several kinds of memory, with adapters, drafts and a second tier, and two with multi-step decoding from
batch to batch, as on a GPU.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "models"))

import contextlib

import tiny_models
from llama_cpp import Llama, LlamaRAMCache


class Case:
    """A model and prompts with the answers they have alone."""

    def __init__(self, name: str, path: Path, n_prompts: int = 48, loras=({},), go_on: bool = False, **arguments) -> None:
        self.name = name
        threads = {"n_threads": 1, "n_threads_batch": 1, "n_batch": 128, **arguments}
        self.llm = Llama(path, n_ctx=512, n_parallel=threads.pop("n_parallel", 8), **threads)
        self.llm.set_cache(LlamaRAMCache(64 << 20))
        engine = self.llm.loaded.engine
        engine.scheduler.multi_step.begins = go_on and engine.scheduler.decoder.unlimited_cut
        numbers = random.Random(name)
        shared = [numbers.randrange(3, 250) for _ in range(150)]
        self.asked = []
        for _ in range(n_prompts):
            tokens = shared[: numbers.randrange(150)] * (numbers.random() < 0.6) + numbers.choices(
                range(3, 250), k=numbers.randrange(1, 90)
            )
            how = numbers.choice(
                [{"temperature": 0}, {"temperature": 0.9, "seed": numbers.randrange(1000), "presence_penalty": 0.4}]
            )
            self.asked.append((tokens, {**how, "max_tokens": numbers.randrange(1, 40), "lora": numbers.choice(loras)}))
        self.expected, self.numbers = [], []
        for tokens, how in self.asked:
            self.llm.reset()
            self.expected.append(self.text(tokens, **how))
            self.numbers.append(self.number(tokens, **how))

    def text(self, tokens, **how):
        return self.llm.create_completion(tokens, **how)["choices"][0]["text"]

    def number(self, tokens, **how):
        return self.text(tokens, grammar="root ::= [0-9]+", **{**how, "max_tokens": 3})


def fail(tokens, logits):
    if len(tokens) > 60:
        raise LookupError("this callback fails")
    return logits


def one(case: Case, numbers: random.Random) -> str:
    """One request; returns what kind it was."""
    which = numbers.randrange(len(case.asked))
    tokens, how = case.asked[which]
    kind = numbers.choice(
        ["same"] * 6 + ["left early", "cancelled while it waits", "stop", "grammar", "logprobs", "callback", "reset"]
    )
    if kind == "same":
        found = case.text(tokens, **how)
        assert found == case.expected[which], (case.name, which, how, found, case.expected[which])
    elif kind in ("left early", "cancelled while it waits"):
        stream = case.llm.create_completion(tokens, stream=True, **{**how, "max_tokens": 200})
        if kind == "left early":
            next(stream, None)
        stream.close()
    elif kind == "stop":
        expected, stop = case.expected[which], numbers.choice("aeiou ")
        assert case.text(tokens, stop=[stop], **how) == expected.partition(stop)[0]
    elif kind == "grammar":
        found = case.number(tokens, **how)
        assert found.isdigit() and found == case.numbers[which], (case.name, which, how, found, case.numbers[which])
    elif kind == "logprobs":
        answer = case.llm.create_completion(tokens, logprobs=2, **how)["choices"][0]
        assert answer["text"] == case.expected[which]
    elif kind == "callback":
        with contextlib.suppress(LookupError):
            case.text(tokens, logits_processor=fail, **how)
    elif numbers.random() < 0.1:
        case.llm.reset()
    return kind


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--threads", type=int, default=64)
    parser.add_argument("--model", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        if options.model:
            cases = [Case("model", options.model), Case("by itself", options.model, go_on=True)]
        else:
            model = {
                kind: tiny_models.write(kind, folder / f"{kind}.gguf") for kind in ("dense", "window", "own heads", "hybrid")
            }
            adapters = {name: tiny_models.write_adapter(folder / f"{name}.gguf", seed) for seed, name in enumerate("ab")}
            sets = [{}, {"a": 1.0}, {"b": 0.5}]
            cases = [
                Case("adapters", model["dense"], loras=sets, lora_adapters=adapters),
                Case("drafts", model["dense"], draft_model=model["dense"]),
                Case("shared cells", model["dense"], draft_model="prompt-lookup", n_parallel=3),
                Case("window", model["window"]),
                Case("by itself", model["dense"], go_on=True),
                Case("by itself, window", model["window"], go_on=True, n_parallel=3),
                Case("states", model["hybrid"], n_parallel=3),
                Case("own heads", model["own heads"], draft_model="mtp", n_parallel=3),
            ]
        done: dict[str, int] = {}
        faults: list[str] = []
        end = time.monotonic() + options.seconds

        def work(seed: int) -> None:
            numbers = random.Random(seed)
            while time.monotonic() < end and not faults:
                case = numbers.choice(cases)
                try:
                    kind = one(case, numbers)
                    done[f"{case.name}: {kind}"] = done.get(f"{case.name}: {kind}", 0) + 1
                except BaseException as error:
                    faults.append(f"{case.name}: {type(error).__name__}: {error}")

        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(options.threads)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(options.seconds + 120)
        hanging = sum(thread.is_alive() for thread in threads)
        for case in cases:
            engine = case.llm.loaded.engine
            deadline = time.monotonic() + 10
            while not engine.snapshot().is_idle and time.monotonic() < deadline:
                time.sleep(0.05)
            n_free, n_all = engine.snapshot().n_free, len(engine.scheduler.decoder.rows)
            if n_free != n_all:
                faults.append(f"{case.name}: {n_free} of {n_all} sequences are free")
            statistics = engine.statistics
            print(f"{case.name}: {statistics.n_steps} batches, {statistics.n_outputs} tokens sampled, "
                  f"{statistics.n_accepted} of {statistics.n_drafted} drafts right")  # fmt: skip
            case.llm.close()
        print(f"{sum(done.values())} requests in {options.seconds:.0f} s from {options.threads} threads: "
              + ", ".join(f"{kind} {n}" for kind, n in sorted(done.items())))  # fmt: skip
    for fault in faults:
        print("FAULT", fault)
    return int(bool(faults or hanging))


if __name__ == "__main__":
    sys.exit(main())
