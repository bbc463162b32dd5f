"""Every kind of model in every role, with many options: it works, or ends in an exception of ours; never in a signal."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest

import tiny_models
from gguf_writer import F32, STR, T_F32, GGUFBuilder
from llama_cpp import gguf

KINDS = [*tiny_models.KINDS, *tiny_models.ODD]

#: What changes how a context is planned, one at a time.
OPTIONS = [
    {}, {"flash_attn": False}, {"type_k": 8}, {"flash_attn": True, "type_k": 8, "type_v": 8}, {"type_k": 30},
    {"kv_unified": True}, {"kv_unified": False}, {"swa_full": True}, {"n_parallel": 1}, {"n_batch": 1, "n_ubatch": 1},
    {"n_ctx": 1},
    {"attention_type": 0}, {"attention_type": 1}, {"pooling_type": 1}, {"pooling_type": 4}, {"batch_invariant": False},
    {"repeatable": True, "batch_invariant": False}, {"rope_scaling_type": 2, "rope_freq_scale": 0.5},
]  # fmt: skip
DRAFT_OPTIONS = [{}, {"type_k": 8}, {"n_batch": 1, "n_ubatch": 1}, {"kv_unified": False, "n_parallel": 1}, {"swa_full": True}]
ADAPTER_OPTIONS = [{}, {"n_parallel": 1, "flash_attn": False}, {"draft_model": "prompt-lookup"}, {"vocab_only": True}]

_CHILD = """
import json, sys
from llama_cpp import Llama
from llama_cpp.errors import LlamaCppError

for number, (path, asked) in list(enumerate(map(json.loads, open(sys.argv[1]))))[int(sys.argv[2]):]:
    print(json.dumps([number, None]), flush=True)
    try:
        with Llama(path, **{"n_ctx": 128, "n_batch": 32, "n_threads": 1, "n_threads_batch": 1, **asked}) as llm:
            llm.tokenize(b"abc")
            if asked.get("embedding"):
                llm.embed([[5, 6, 7], [8] * 40])
            if not asked.get("vocab_only"):
                how = {"temperature": 0, "logit_bias": {llm.token_eos(): -100} if llm.token_eos() >= 0 else {}}
                llm.create_completion([5, 6, 7, 8] * 9, max_tokens=8, **how)
                llm.create_completion([5, 6, 7, 8] * 9, max_tokens=120, context_full="shift", **how)
        end = "works"
    except LlamaCppError as error:
        end = f"{type(error).__name__}: {error}"
    print(json.dumps([number, end]), flush=True)
"""


def ends(cases, folder) -> list[str]:
    """How each ends; a process goes on until one of them ends it."""
    listed, found = folder / "cases", {}
    listed.write_text("".join(json.dumps(case) + "\n" for case in cases))
    start = 0
    while start < len(cases):
        done = subprocess.run(
            [sys.executable, "-c", _CHILD, str(listed), str(start)], capture_output=True, text=True, timeout=600, check=False,
            env={**os.environ, "GGML_NO_BACKTRACE": "1"},
        )  # fmt: skip
        lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]
        found.update({number: end for number, end in lines if end is not None})
        start = len(cases)
        if done.returncode:
            number = lines[-1][0]
            found[number] = f"ended the process ({done.returncode}): {done.stderr[-300:]}"
            start = number + 1
    return [found[number] for number in range(len(cases))]


def check(cases, folder, n_working):
    found = ends(cases, folder)
    bad = [(case, end) for case, end in zip(cases, found) if end.startswith("ended")]
    assert not bad, bad
    # were everything refused, nothing would have been tested
    assert found.count("works") >= n_working, found


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    folder = tmp_path_factory.mktemp("roles")
    return {kind: str(tiny_models.write(kind, folder / f"{number}.gguf")) for number, kind in enumerate(KINDS)}


def write_adapter(model: str, path) -> str:
    """An adapter of whatever in a model is a matrix, experts' too."""
    read, file = gguf.read_gguf(model), GGUFBuilder()
    file.set("general.architecture", STR, read.architecture).set("general.type", STR, "adapter")
    file.set("adapter.type", STR, "lora").set("adapter.lora.alpha", F32, 8.0)
    for tensor in read.tensors:
        if len(tensor.shape) < 2 or tensor.name.endswith("_norm.weight"):
            continue
        n_in, n_out, *more = tensor.shape
        halves = ((4, n_out), (4, n_in)) if tensor.name == "token_embd.weight" else ((n_in, 4, *more), (4, n_out, *more))
        for name, shape in zip(("lora_a", "lora_b"), halves):
            values = np.random.default_rng(0).normal(0, 0.01, int(np.prod(shape))).astype(np.float32)
            file.tensors[f"{tensor.name}.{name}"], file.weights[f"{tensor.name}.{name}"] = (shape, T_F32), values.tobytes()
    path.write_bytes(file.build())
    return str(path)


def test_every_kind_by_itself(paths, tmp_path):
    """To generate, for vectors, both with each option; with drafts from its own text and its own heads."""
    some = [{"draft_model": "prompt-lookup"}, {"draft_model": "mtp"}, {"draft_model": "mtp", "n_batch": 1, "n_ubatch": 1}]
    alone = [
        {"vocab_only": True},
        {"vocab_only": True, "draft_model": "prompt-lookup"},
        {"embedding": True, "draft_model": "mtp"},
    ]
    asked = [*OPTIONS, *({**option, "embedding": True} for option in OPTIONS), *some, *alone]
    check([(path, one) for path in paths.values() for one in asked], tmp_path, n_working=250)


def test_every_kind_drafts_for_every_kind(paths, tmp_path):
    """Also those that generate nothing, whose state cannot be taken back, or that have another vocabulary."""
    cases = [(main, {"draft_model": draft}) for main in paths.values() for draft in paths.values()]
    cases += [(paths["dense"], {"draft_model": draft, **option}) for draft in paths.values() for option in DRAFT_OPTIONS[1:]]
    check(cases, tmp_path, n_working=80)


def test_a_vocabulary_alone_drafts_nothing(paths, llama_source, tmp_path):
    vocabularies = sorted((llama_source / "models").glob("ggml-vocab-*.gguf"))[::3]
    assert len(vocabularies) > 3
    roles = [{"draft_model": str(one)} for one in vocabularies] + [{"lora_path": str(one)} for one in vocabularies]
    found = ends([(paths["dense"], role) for role in roles], tmp_path)
    assert all("Error" in end and not end.startswith("ended") for end in found), found


def test_an_adapter_of_every_kind(paths, tmp_path):
    """For every matrix of its own model, and of another one's."""
    adapters = {kind: write_adapter(path, tmp_path / f"{number}.lora") for number, (kind, path) in enumerate(paths.items())}
    cases = [
        (path, {"lora_path": adapters[kind], **how, **option})
        for kind, path in paths.items() for how in ({}, {"embedding": True}) for option in ADAPTER_OPTIONS
    ]  # fmt: skip
    cases += [(paths["dense"], {"lora_path": one}) for one in adapters.values()]
    check(cases, tmp_path, n_working=60)
