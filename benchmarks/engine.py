"""How fast the batching engine is, as ratios to llama.cpp's own tools, both sides in one run on one machine.

    python benchmarks/engine.py --model MODEL.gguf [--tools FOLDER] [--parallel 32] [--json FILE]

`--tools` is where llama-bench, llama-batched-bench and llama-server of the same build are. A row whose tool is not there
has no ratio. Where it matters, for streams and for many requests at once, the sides take turns `--repeat` times, and medians are
shown, that of the ratios of each turn, too: a machine's speed may drift. Every other row is the best of `--repeat` runs; so is
the other side.
`--upstream` is an interpreter that has llama-cpp-python from the index (see benchmarks/upstream.py).
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import http.client
import json
import os
import random
import resource
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from llama_cpp import Llama, LlamaRAMCache
from llama_cpp.capi.loader import library_folder
from llama_cpp.fit.devices import gpus

STREAMS: dict[str, dict[str, Any]] = {
    "stream": {"temperature": 0},
    "sampled": {"temperature": 0.8, "top_k": 40, "top_p": 0.95, "min_p": 0.05},
}
SERVERS: dict[str, tuple[str, tuple[str, ...]]] = {
    "server": ("llama-server", ()),
    "device-server": ("llama-server, device sampling", ("--backend-sampling",)),
}
LABELS = {
    "stream": "one stream, temperature 0",
    "sampled": "one stream, top-k, top-p, temperature",
    "chat": "one streamed chat, temperature 0",
}


class Tools:
    """llama.cpp's own programs."""

    def __init__(self, folder: str | None, model: str, threads: int | None) -> None:
        self._folder, self._model = folder, model
        self._threads = ["-t", str(threads)] if threads else []

    def find(self, name: str) -> str | None:
        return shutil.which(name, path=self._folder)

    def run(self, name: str, *arguments: str) -> str | None:
        """What a tool prints; None when it is not there."""
        program = self.find(name)
        if program is None:
            return None
        command = [program, "-m", self._model, *self._threads, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"{' '.join(command)}: {done.stderr[-2000:]}")
        return done.stdout

    def generating(self, n: int, depth: int = 0) -> float | None:
        """Tokens per second of llama-bench, generating after ``depth`` tokens."""
        printed = self.run(
            "llama-bench", "-p", "0", "-n", str(n), "-d", str(depth), "-r", "1", "-fa", "1", "-ngl", "99", "-o", "json"
        )
        return float(json.loads(printed)[0]["samples_ts"][0]) if printed else None

    def together(self, n_prompt: int, n: int, parallel: int, unified: bool, ubatch: int, repeat: int) -> float | None:
        """Tokens per second of llama-batched-bench, prompts and generation together."""
        arguments = [
            "-c",
            str((n_prompt + n) * parallel),
            "-b",
            "2048",
            "-ub",
            str(ubatch),
            "-npp",
            str(n_prompt),
            "-ntg",
            str(n),
        ]
        arguments += ["-npl", ",".join([str(parallel)] * repeat), "-fa", "on", "-ngl", "99", "--output-format", "jsonl"]
        printed = self.run("llama-batched-bench", *arguments, *(["-kvu"] if unified else []))
        if printed is None:
            return None
        return max(float(json.loads(line)["speed"]) for line in printed.splitlines() if line.startswith("{"))

    @contextlib.contextmanager
    def server(self, parallel: int, n_ctx: int, *arguments: str) -> Iterator[int]:
        """A running llama-server's port."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        command = [str(self.find("llama-server")), "-m", self._model, "--port", str(port), "-np", str(parallel), "-fa", "on"]
        command += ["-c", str(n_ctx * parallel), "-ngl", "99", "--no-webui", *self._threads, *arguments]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            for _ in range(1200):
                with contextlib.suppress(OSError):
                    if ask(port, "GET", "/health")[0] == 200:
                        break
                if process.poll() is not None:
                    sys.exit(f"{' '.join(command)} ended")
                time.sleep(0.1)
            yield port
        finally:
            process.terminate()
            process.wait()


def upstream(python: str, task: dict[str, Any]) -> tuple[str, dict[str, float]]:
    """llama-cpp-python's version, and its tokens per second by name, on the libraries that this process uses."""
    script = Path(__file__).with_name("upstream.py")
    with tempfile.TemporaryDirectory() as folder:
        for library in library_folder().glob("*.so*"):
            # it looks for names without a version
            for name in {library.name, library.name.partition(".so")[0] + ".so"}:
                Path(folder, name).symlink_to(library)
        environment = {**os.environ, "LLAMA_CPP_LIB_PATH": folder}
        command = [python, str(script)]
        done = subprocess.run(command, input=json.dumps(task), capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        sys.exit(f"{python} {script}: {done.stderr[-2000:]}")
    answer = json.loads(done.stdout)
    return answer["version"], answer["speeds"]


def ask(port: int, method: str, path: str, body: Any = None) -> tuple[int, Any]:
    """One HTTP request on loopback."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
    connection.request(method, path, json.dumps(body) if body else None, {"Content-Type": "application/json"})
    answer = connection.getresponse()
    return answer.status, json.loads(answer.read() or b"null")


def settings(i: int) -> dict[str, Any]:
    """The i-th request's own way of sampling."""
    return {"temperature": 0.5 + i / 64, "top_p": 0.8 + i / 200, "top_k": 40, "min_p": 0.05, "seed": i}


def prompts(n: int, length: int, n_vocab: int) -> list[list[int]]:
    """Prompts of random tokens that do not begin alike."""
    numbers = random.Random(0)
    return [[numbers.randrange(300, n_vocab - 300) for _ in range(length)] for _ in range(n)]


def staggered(n: int, seconds: float, run: Callable[[int], int], beside: int = 0) -> tuple[float, int]:
    """Runs n requests in threads that begin within some seconds, and others beside them.

    Returns:
        How long the n took, and the sum of their results.
    """
    results = [(0.0, 0)] * n

    def one(i: int) -> None:
        time.sleep(max(0.0, seconds * i / n))
        result = run(i)
        if i >= 0:
            results[i] = time.perf_counter(), result

    threads = [threading.Thread(target=one, args=(i,)) for i in range(-beside, n)]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return max(ended for ended, _ in results) - started, sum(result for _, result in results)


def one_stream(llm: Llama, n: int, **sampling: Any) -> float:
    """Tokens per second of one streamed completion, as its reader sees them; its prompt is cached, and nothing else."""
    prompt = prompts(1, 8, llm.n_vocab())[0]
    return timed_stream(llm, n, lambda n: llm.create_completion(prompt, max_tokens=n, stream=True, **sampling))


MESSAGES = [{"role": "user", "content": "Tell me a story."}]


def one_chat(llm: Llama, n: int) -> float:
    """As :func:`one_stream`, of an answer to a message."""
    how: dict[str, Any] = {"temperature": 0, "stream": True, "logit_bias": ends(llm)}
    return timed_stream(llm, n, lambda n: llm.create_chat_completion(MESSAGES, max_tokens=n, **how))


def ends(llm: Llama) -> dict[int | str, float]:
    """A logit_bias without which a stream could end early."""
    return {token: -1e9 for token in range(llm.n_vocab()) if llm.loaded.model.is_end(token)}


def timed_stream(llm: Llama, n: int, ask: Callable[[int], Any], keep: bool = False) -> float:
    """Tokens per second of a stream of n tokens; with ``keep``, what others left in the cache stays there."""
    for _ in range(10):
        if not keep:
            llm.reset()
        list(ask(1))
        started, reason = time.perf_counter(), None
        for chunk in ask(n):
            reason = chunk["choices"][0]["finish_reason"]
        if reason == "length":  # one that ended by itself says nothing
            return n / (time.perf_counter() - started)
    sys.exit(f"no stream went on for {n} tokens")


#: Requests beside the others, each with what it asks for in particular.
BESIDE: dict[str, list[dict[str, Any]]] = {
    "two more": [{}, {}],
    "one with a grammar and one with logprobs": [{"grammar": "root ::= [a-zA-Z ]+"}, {"logprobs": 5}],
}


def many(llm: Llama, n_requests: int, n_prompt: int, n: int, beside: Sequence[dict[str, Any]] = ()) -> tuple[float, float]:
    """Tokens per second of many requests at once, and the engine's seconds a step outside of the C library.

    Those ``beside`` them are not counted.
    """
    texts = prompts(n_requests + 2, n_prompt, llm.n_vocab())
    llm.reset()
    statistics = llm.loaded.engine.statistics
    n_steps, outside = statistics.n_steps, statistics.seconds - statistics.native_seconds

    def run(i: int) -> int:
        arguments: dict[str, Any] = {**settings(abs(i)), **(beside[-i - 1] if i < 0 else {})}
        return int(llm.create_completion(texts[i], max_tokens=n, **arguments)["usage"]["total_tokens"])

    seconds, n_tokens = staggered(n_requests, 0.1, run, beside=len(beside))
    outside = statistics.seconds - statistics.native_seconds - outside
    return n_tokens / seconds, outside / (statistics.n_steps - n_steps)


def many_beside(llm: Llama, n_requests: int, beside: Sequence[dict[str, Any]]) -> float:
    """Tokens per second as of :func:`many`."""
    return many(llm, n_requests, 128, 128, beside)[0]


def served(port: int, texts: Sequence[list[int]], n: int) -> float:
    """Tokens per second of llama-server with the same requests."""

    def run(i: int) -> int:
        body = {"prompt": texts[i], "n_predict": n, "ignore_eos": True, "cache_prompt": False, **settings(i)}
        status, answer = ask(port, "POST", "/completion", body)
        assert status == 200, answer
        return int(answer["tokens_evaluated"] + answer["tokens_predicted"])

    seconds, n_tokens = staggered(len(texts), 0.1, run)
    return n_tokens / seconds


def in_turns(sides: dict[str, Callable[[], float | None]], repeat: int) -> dict[str, list[float]]:
    """What each side reaches, turn by turn: a machine's speed changes within minutes, and its ratios do less."""
    reached: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(repeat):
        for name, run in sides.items():
            reached[name].append(run() or 0)
    return reached


def ratio_of(ours: Sequence[float], theirs: Sequence[float]) -> float | None:
    """The median of the turns' ratios, if there is another side."""
    ratios = [a / b for a, b in zip(ours, theirs) if b]
    return median(ratios) if ratios else None


def prefix(llm: Llama, n: int) -> tuple[float, float]:
    """Seconds to the first token of a prompt, and of another one that shares its first n tokens."""
    shared = prompts(1, n, llm.n_vocab())[0]
    first, second = (llm.create_completion([*shared, *end], max_tokens=1) for end in ([400, 500], [600, 700]))
    return first["timings"]["prompt_ms"] / 1e3, second["timings"]["prompt_ms"] / 1e3


def saved(llm: Llama, n: int) -> tuple[float, float]:
    """Seconds to read a prompt, and to get it back from the second tier after others took its place."""
    text = prompts(1, n, llm.n_vocab())[0]
    llm.set_cache(LlamaRAMCache(8 << 30))
    seconds = []
    for prompt in (text, [400] * 300, [600] * 300, text):
        started = time.perf_counter()
        llm.create_completion(prompt, max_tokens=1)
        seconds.append(time.perf_counter() - started)
    return seconds[0], seconds[-1]


def kept(llm: Llama, n: int, n_kept: int, repeat: int) -> tuple[float, float]:
    """Tokens per second of one stream with earlier prompts, of n_kept tokens together, still in the cache, and without them."""
    beside, alone = [], []
    for _ in range(repeat):
        alone.append(one_stream(llm, n, temperature=0))
        llm.reset()
        for text in prompts(4, n_kept // 4, llm.n_vocab()):
            llm.create_completion(text, max_tokens=1)
        beside.append(
            timed_stream(
                llm, n, lambda n: llm.create_completion([400, 500, 600], max_tokens=n, stream=True, temperature=0), keep=True
            )
        )
    return median(beside), median(alone)


def seen_logits(llm: Llama, prompt: list[int]) -> np.ndarray:
    """The logits (float32, n_vocab) that follow a prompt."""
    seen: list[np.ndarray] = []

    def look(_: np.ndarray, logits: np.ndarray) -> np.ndarray:
        seen.append(logits.copy())
        return logits

    llm.create_completion(prompt, max_tokens=1, temperature=0, logits_processor=look)
    return seen[0]


def differences(llm: Llama, n_requests: int) -> tuple[float, float]:
    """By how much logits of requests at once differ at most from those of each alone, and their standard deviation."""
    texts = prompts(n_requests, 100, llm.n_vocab())
    alone, together = [], [np.zeros(0)] * n_requests
    for text in texts:
        llm.reset()
        alone.append(seen_logits(llm, text))
    llm.reset()

    def run(i: int) -> int:
        together[i] = seen_logits(llm, texts[i])
        return 1

    staggered(n_requests, 0.0, run)
    return max(float(np.abs(a - b).max()) for a, b in zip(alone, together)), float(np.std(alone))


def agreement(llm: Llama, n_seeds: int, n: int) -> float:
    """The share of answers that are the same whether the device selects the tokens to sample from, or all are looked at."""

    def text(seed: int, **arguments: Any) -> str:
        sampling: dict[str, Any] = {"temperature": 0.9, "top_k": 40, "top_p": 0.95, "seed": seed}
        made = llm.create_completion(prompts(1, 64, llm.n_vocab())[0], max_tokens=n, **sampling, **arguments)
        return str(made["choices"][0]["text"])

    # with Python code to look at them, all logits are fetched
    return sum(text(i) == text(i, logits_processor=lambda _, logits: logits) for i in range(n_seeds)) / n_seeds


def used_memory() -> tuple[float, float]:
    """MiB that this process holds, and that are taken on the GPU."""
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return resident / 2**20, sum(gpu.memory_total - gpu.memory_free for gpu in gpus()) / 2**20


def drafting(model: str, source: str | None, n_requests: int, n: int, repeat: int, common: dict[str, Any]) -> tuple[float, str]:
    """Tokens per second of requests at temperature 0, and how many drafts were right."""
    best = 0.0
    with Llama(model, n_ctx=n + 128, n_parallel=n_requests, draft_model=source, **common) as llm:
        texts = prompts(n_requests, 64, llm.n_vocab())
        bias = ends(llm)

        def run(i: int) -> int:
            made = llm.create_completion(texts[i], max_tokens=n, temperature=0, logit_bias=bias)
            return int(made["usage"]["completion_tokens"])

        for _ in range(repeat + 1):
            seconds, n_tokens = staggered(n_requests, 0.0, run)
            best = max(best, n_tokens / seconds)
        done = llm.loaded.engine.statistics
        return best, f"{done.n_accepted / done.n_drafted:.0%} of drafts right" if done.n_drafted else "no drafts"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--tools", help="folder of llama.cpp's programs (default: PATH)")
    parser.add_argument("--upstream", metavar="PYTHON", help="an interpreter that has llama-cpp-python")
    parser.add_argument("--parallel", type=int, default=32)
    parser.add_argument("--n", type=int, default=256, help="tokens of a single stream")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument(
        "--rows",
        default="stream,sampled,many,extra,server,device-server,prefix",
        help="which to measure; there are chat, kept, differences, requests, saved and draft, too",
    )
    parser.add_argument("--drafts", default="prompt-lookup", help="what drafts in the row draft, separated by commas")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--ubatch", type=int, default=512, help="prompt tokens computed at once, on both sides")
    parser.add_argument("--unified", action="store_true", help="one KV cache for all requests")
    parser.add_argument("--prefix", type=int, default=4000, help="tokens that two requests share")
    parser.add_argument("--json", type=Path)
    o = parser.parse_args()
    tools, wanted = Tools(o.tools, o.model, o.threads), o.rows.split(",")
    rows: list[dict[str, Any]] = []

    def note(name: str, ours: float, other: str, theirs: float | None, unit: str = "tok/s", ratio: float | None = None) -> None:
        ratio = ratio or (ours / theirs if theirs else None)
        rows.append({"row": name, "ours": ours, "unit": unit, "against": other, "theirs": theirs, "ratio": ratio})
        numbers = f"{ours:10.2f} {unit:6} {other:34} {theirs or 0:10.2f}  {ratio or 0:6.3f}"
        print(f"{name:44} {numbers}", flush=True)
        if o.json:
            o.json.write_text(json.dumps(rows, indent=2) + "\n")

    common = {"flash_attn": True, "n_threads": o.threads}
    ours: dict[str, float] = {}  # what llama-cpp-python is asked, too
    streams = {name: sampling for name, sampling in STREAMS.items() if name in wanted}
    if streams or "chat" in wanted:
        with Llama(o.model, n_ctx=1024, **common) as llm:
            asked: dict[str, Callable[[int], float]] = {
                name: functools.partial(one_stream, llm, **sampling) for name, sampling in streams.items()
            }
            benches = {f"llama-bench tg{o.n}": 0}
            if "chat" in wanted:
                asked["chat"] = functools.partial(one_chat, llm)
                depth = llm.create_chat_completion(MESSAGES, max_tokens=1)["usage"]["prompt_tokens"]
                benches[f"llama-bench tg{o.n} @ d{depth}"] = depth
            for ask_for in asked.values():
                ask_for(32)
            sides: dict[str, Callable[[], float | None]] = {
                **{name: functools.partial(tools.generating, o.n, depth) for name, depth in benches.items()},
                **{name: functools.partial(ask_for, o.n) for name, ask_for in asked.items()},
            }
            reached = in_turns(sides, o.repeat)
        for name in asked:
            ours[name] = max(reached[name])
            for other, depth in benches.items():
                if name == "chat" or not depth:
                    ratio = ratio_of(reached[name], reached[other])
                    note(LABELS[name], median(reached[name]), other, median(reached[other]), ratio=ratio)
    if {"many", "extra", *SERVERS} & set(wanted):
        n = o.parallel
        layout = {"n_parallel": n + 2, "kv_unified": o.unified, "n_kv": 320 * (n + 2), "n_batch": o.ubatch, "n_ubatch": o.ubatch}
        with Llama(o.model, n_ctx=320, **layout, **common) as llm, contextlib.ExitStack() as running:
            outside: list[float] = []

            def alone() -> float:
                speed, seconds = many(llm, n, 128, 128)
                outside.append(seconds)
                return speed

            # the other side's best of two: its process has just been started
            sides = {"llama-batched-bench": lambda: tools.together(128, 128, n, o.unified, o.ubatch, 2), "alone": alone}
            if "extra" in wanted:
                sides |= {name: functools.partial(many_beside, llm, n, beside) for name, beside in BESIDE.items()}
            texts = prompts(n, 128, llm.n_vocab())
            servers = {
                name: arguments for row, (name, arguments) in SERVERS.items() if row in wanted and tools.find("llama-server")
            }
            for name, arguments in servers.items():
                port = running.enter_context(tools.server(n, 320, "-ub", str(o.ubatch), *arguments))
                served(port, texts, 16)
                sides[name] = functools.partial(served, port, texts, 128)
            many(llm, n, 128, 16)
            reached = in_turns(sides, o.repeat)
        ours["many"] = max(reached["alone"])
        row = f"{n} requests, 128 in and 128 out"
        for name in ("llama-batched-bench", *servers):
            theirs = reached[name]
            note(row, median(reached["alone"]), name, median(theirs), ratio=ratio_of(reached["alone"], theirs))
        note("engine's thread outside of the C library", median(outside) * 1e6, "", None, "µs")
        for name in BESIDE if "extra" in wanted else ():
            ratio = ratio_of(reached[name], reached["alone"])
            note(f"the same beside {name}", median(reached[name]), "without them", median(reached["alone"]), ratio=ratio)
    if o.upstream and ours:
        with Llama(o.model, vocab_only=True) as llm:
            n_vocab = llm.n_vocab()
        one_by_one = range(4 if "many" in ours else 0)  # a rate, however many
        task = {
            "model": o.model, "threads": o.threads, "repeat": o.repeat, "n": o.n, "prompt": prompts(1, 8, n_vocab)[0],
            "streams": streams, "prompts": [prompts(o.parallel + 2, 128, n_vocab)[i] for i in one_by_one],
            "settings": [settings(i) for i in one_by_one],
        }  # fmt: skip
        version, speeds = upstream(o.upstream, task)
        row = f"{o.parallel} requests, 128 in and 128 out"
        for name, speed in speeds.items():
            note(LABELS.get(name, row), ours[name], f"llama-cpp-python {version}", speed)
    if "prefix" in wanted:
        with Llama(o.model, n_ctx=o.prefix + 64, **common) as llm:
            first, second = prefix(llm, o.prefix)
            note(f"second request that shares {o.prefix} tokens", second, "the first: seconds to the first token", first, "s")
    if "kept" in wanted:
        with Llama(o.model, n_ctx=o.prefix + 1024, **common) as llm:
            with_others, without = kept(llm, o.n, o.prefix, o.repeat)
            note(f"one stream beside {o.prefix} tokens kept of others", with_others, "without them", without)
    if {"differences", "requests"} & set(wanted):
        n = o.parallel
        with Llama(o.model, n_ctx=320, n_parallel=n, **common) as llm:
            if "differences" in wanted:
                largest, deviation = differences(llm, n)
                note("largest difference of a logit, at once", largest, "their standard deviation", deviation, "")
                note("answers as from the whole vocabulary", agreement(llm, 16, 64), "all", 1.0, "")
            if "requests" in wanted:
                short = prompts(64, 8, llm.n_vocab())

                def ask_short(i: int, times: int) -> int:
                    for j in range(times):
                        llm.create_completion(short[(i + j) % 64], max_tokens=8)
                    return times

                staggered(n, 0.0, functools.partial(ask_short, times=50))
                before = used_memory()
                staggered(n, 0.0, functools.partial(ask_short, times=10_000 // n))
                for name, mib, earlier in zip(("resident", "GPU"), used_memory(), before):
                    note(f"{name} memory after 10,000 requests", mib, "before", earlier, "MiB")
    if "saved" in wanted:
        with Llama(o.model, n_ctx=o.prefix + 64, n_parallel=1, **common) as llm:
            first, second = saved(llm, o.prefix)
            note(f"{o.prefix} tokens from the second tier", second, "reading them", first, "s")
    if "draft" in wanted:
        for n_requests in (1, o.parallel):
            without, _ = drafting(o.model, None, n_requests, 512, o.repeat, common)
            for source in o.drafts.split(","):
                speed, right = drafting(o.model, source, n_requests, 512, o.repeat, common)
                note(f"{n_requests} requests, {Path(source).stem}, {right}", speed, "without drafts", without)
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB, {os.cpu_count()} processors")


if __name__ == "__main__":
    main()
