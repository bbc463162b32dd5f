"""Functions that llama.cpp has removed, and callbacks that C calls later."""

from __future__ import annotations

import ctypes
import gc
import subprocess
import sys

import numpy as np
import pytest

import llama_cpp
from llama_cpp import Llama
from llama_cpp.capi import removed

MEMORY = ["clear", "seq_rm", "seq_cp", "seq_keep", "seq_add", "seq_div", "can_shift", "defrag", "update"]


@pytest.fixture
def llm(tiny):
    with Llama(tiny, n_ctx=64) as model:
        model.eval([1, 2, 3, 4])
        yield model


@pytest.mark.offers(*(f"llama_kv_{kind}_{name}" for kind in ("self", "cache") for name in MEMORY), "llama_get_kv_self",
                    how="same", note="with a DeprecationWarning")  # fmt: skip
@pytest.mark.parametrize("kind", ["self", "cache"])
def test_the_memory_of_a_context(llm, kind):
    def call(name, *args):
        with pytest.warns(DeprecationWarning, match="llama_"):
            return getattr(llama_cpp, f"llama_kv_{kind}_{name}")(llm.ctx, *args)

    last = llama_cpp.llama_kv_self_seq_pos_max
    with pytest.warns(DeprecationWarning):
        assert last(llm.ctx, 0) == 3 and llama_cpp.llama_get_kv_self(llm.ctx) and llama_cpp.llama_kv_self_n_tokens(llm.ctx) == 4
    assert call("can_shift") is True
    assert call("seq_rm", 0, 3, -1) is True
    call("seq_add", 0, 0, -1, 2)
    with pytest.warns(DeprecationWarning):
        assert last(llm.ctx, 0) == 4 and llama_cpp.llama_kv_self_seq_pos_min(llm.ctx, 0) == 2
    call("seq_div", 0, 0, -1, 2)
    call("seq_cp", 0, 0, 0, -1)
    call("seq_keep", 0)
    call("defrag")
    call("update")
    call("clear")
    with pytest.warns(DeprecationWarning):
        assert last(llm.ctx, 0) == -1


@pytest.mark.offers(
    "llama_set_adapter_lora", "llama_rm_adapter_lora", "llama_clear_adapter_lora", how="same", note="with a DeprecationWarning"
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_adapters(tmp_path):
    import tiny_models

    path = tiny_models.write("dense", tmp_path / "m.gguf")
    adapter_path = tiny_models.write_adapter(tmp_path / "a.gguf")
    with Llama(path, n_ctx=32, logits_all=True) as llm:

        def scores():
            llm._ctx.memory_clear()
            llm.n_tokens = 0
            llm.eval([5, 6, 7])
            return llm.scores[2].copy()

        plain = scores()
        adapter = llama_cpp.llama_adapter_lora_init(llm.model, str(adapter_path).encode())
        assert adapter and llama_cpp.llama_set_adapter_lora(llm.ctx, adapter, 1.0) == 0
        changed = scores()
        assert not np.allclose(changed, plain)
        assert llama_cpp.llama_rm_adapter_lora(llm.ctx, adapter) == 0 and llama_cpp.llama_rm_adapter_lora(llm.ctx, adapter) == -1
        assert np.allclose(scores(), plain, atol=1e-5)
        llama_cpp.llama_set_adapter_lora(llm.ctx, adapter, 1.0)
        assert np.allclose(scores(), changed, atol=1e-5)
        llama_cpp.llama_clear_adapter_lora(llm.ctx)
        assert np.allclose(scores(), plain, atol=1e-5)


@pytest.mark.offers("llama_print_timings", "llama_reset_timings", "llama_sample_token_greedy", "llama_get_model_n_params",
                    how="same", note="with a DeprecationWarning")  # fmt: skip
def test_the_rest(llm):
    candidates = llama_cpp._internals.LlamaTokenDataArray(n_vocab=llm.n_vocab())
    logits = np.zeros(llm.n_vocab(), np.single)
    logits[7] = 3
    candidates.copy_logits(logits)
    with pytest.warns(DeprecationWarning, match="llama_sampler_init_greedy"):
        assert llama_cpp.llama_sample_token_greedy(llm.ctx, ctypes.byref(candidates.candidates)) == 7
    with pytest.warns(DeprecationWarning):
        llama_cpp.llama_print_timings(llm.ctx)
        llama_cpp.llama_reset_timings(llm.ctx)
        assert llama_cpp.llama_get_model_n_params(llm.model) > 0


def test_each_of_them_says_what_took_its_place():
    for name in removed.__all__:
        assert callable(getattr(llama_cpp.llama_cpp, name)) and getattr(llama_cpp, name) is getattr(removed, name)


CALLBACKS = """
import ctypes, gc, sys
import llama_cpp

seen = []

def log():
    @llama_cpp.llama_log_callback
    def callback(level, text, data):
        seen.append(text)
    llama_cpp.llama_log_set(callback, None)

log()
gc.collect()
params = llama_cpp.llama_model_default_params()
model = llama_cpp.llama_load_model_from_file(sys.argv[1].encode(), params)
assert seen, "the engine logs while it loads"

def context():
    params = llama_cpp.llama_context_default_params()
    params.n_ctx = 32
    @llama_cpp.ggml_abort_callback
    def abort(data):
        seen.append("abort")
        return False
    params.abort_callback = abort
    return llama_cpp.llama_new_context_with_model(model, params)

ctx = context()
gc.collect()
junk = [bytes(100) for _ in range(10000)]
tokens = (llama_cpp.llama_token * 3)(1, 2, 3)
assert llama_cpp.llama_decode(ctx, llama_cpp.llama_batch_get_one(tokens, 3)) == 0
assert "abort" in seen

def set_abort():
    @llama_cpp.ggml_abort_callback
    def abort(data):
        seen.append("set later")
        return False
    llama_cpp.llama_set_abort_callback(ctx, abort, None)

set_abort()
gc.collect()
assert llama_cpp.llama_decode(ctx, llama_cpp.llama_batch_get_one(tokens, 3)) == 0
assert "set later" in seen
llama_cpp.llama_free(ctx)
llama_cpp.llama_free_model(model)
from llama_cpp.capi import kept
assert not kept._of_contexts
"""


@pytest.mark.offers(
    "llama_log_callback",
    "llama_log_set",
    "llama_set_abort_callback",
    how="better",
    note="callbacks are kept alive",
)
def test_callbacks_live_as_long_as_c_may_call_them(tiny):
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", CALLBACKS, str(tiny)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    gc.collect()
