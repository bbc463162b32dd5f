"""Calls as programs of llama-cpp-python send them."""

from __future__ import annotations

import warnings

import pytest

from llama_cpp import Llama
from llama_cpp.errors import (
    ContextCreationError,
    IgnoredArgumentWarning,
    InvalidArgumentError,
    ModelLoadError,
    ModelNotFoundError,
    UnknownArgumentError,
)

#: Constructor calls, literally, by who sends them.
CREATED = {
    "langchain": {
        "n_ctx": 512, "n_parts": -1, "seed": -1, "f16_kv": True, "logits_all": False, "vocab_only": False, "use_mlock": False,
        "n_threads": None, "n_batch": 8, "use_mmap": True, "last_n_tokens_size": 64, "lora_base": None, "lora_path": None,
        "rope_freq_base": 10000.0, "rope_freq_scale": 1.0, "verbose": False,
    },
    "langchain's vectors": {"n_parts": -1, "f16_kv": False, "device": None, "n_ctx": 512, "embedding": True, "vocab_only": True},
    "neutts": {"n_ctx": 512, "mlock": True, "verbose": False, "n_gpu_layers": 0, "flash_attn": False},
    "orpheus": {"n_ctx": 0, "verbose": False, "n_gpu_layers": 0, "n_threads": None, "batch_size": 1},
    "bertopic": {"n_gpu_layers": -1, "n_ctx": 256, "stop": ["Q:", "\n"], "chat_format": "ChatML"},
    "distilabel": {"n_ctx": 256, "seed": 4294967295, "kwargs": {}, "embedding": False, "verbose": False},
    "guidance": {"logits_all": True, "verbose": False, "n_ctx": 64},
    "autogen": {
        "n_gpu_layers": None, "split_mode": None, "main_gpu": None, "tensor_split": None, "vocab_only": None, "use_mmap": None,
        "kv_overrides": None, "seed": None, "rope_scaling_type": None, "pooling_type": None, "rope_freq_base": None,
        "rope_freq_scale": None, "yarn_ext_factor": None, "logits_all": None, "embedding": None, "lora_base": None,
        "lora_scale": None, "numa": None, "chat_handler": None, "draft_model": None, "tokenizer": None, "type_k": None,
        "spm_infill": None, "verbose": None,
    },
    "home-llm": {"n_ctx": 128, "n_batch": 64, "n_threads": 1, "n_threads_batch": 1, "flash_attn": True},
}  # fmt: skip


@pytest.mark.offers("n_parts=", "f16_kv=", "device=", "mlock=", "batch_size=", "stop= (of Llama)", how="better",
                    note="a warning names the nearest keyword; an error with LLAMA_CPP_STRICT=1")  # fmt: skip
@pytest.mark.parametrize("who", CREATED)
def test_constructor_calls(smollm2, who):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", IgnoredArgumentWarning)
        with Llama(model_path=str(smollm2), **CREATED[who]) as llm:
            assert CREATED[who].get("vocab_only") or llm("Once", max_tokens=1)["choices"][0]["text"] is not None


def test_what_is_unknown_warns_in_the_callers_program(tiny, monkeypatch):
    with pytest.warns(IgnoredArgumentWarning) as warned:
        Llama(tiny, n_ctx=32, n_parts=-1, f16_kv=True, n_bach=5).close()
    texts = [str(one.message) for one in warned]
    assert len(texts) == 3 and "type_k" in texts[1] and "'n_batch'" in texts[2]
    assert {one.filename for one in warned} == {__file__}
    monkeypatch.setenv("LLAMA_CPP_STRICT", "1")
    with pytest.raises(UnknownArgumentError, match="n_parts"):
        Llama(tiny, n_parts=-1)


@pytest.mark.offers("rope_freq_base=10000.0, rope_freq_scale=1.0", how="better", note="taken as the model's own")
def test_langchains_defaults_are_no_wish(smollm2, caplog):
    text = "The sea is"
    with Llama(smollm2, n_ctx=128) as llm:
        expected = llm(text, max_tokens=12, temperature=0)["choices"][0]["text"]
    with caplog.at_level("INFO", "llama_cpp"), Llama(smollm2, n_ctx=128, rope_freq_base=10000.0, rope_freq_scale=1.0) as llm:
        assert llm(text, max_tokens=12, temperature=0)["choices"][0]["text"] == expected
    assert sum("rope_freq_base" in record.message for record in caplog.records) == 1
    with Llama(smollm2, n_ctx=128, rope_freq_base=20000.0, rope_freq_scale=1.0) as llm:
        assert llm(text, max_tokens=12, temperature=0)["choices"][0]["text"] != expected


@pytest.mark.offers("exceptions of Llama(…)", how="better", note="each its own, and a ValueError as well")
def test_exceptions_are_of_the_builtin_kind_that_callers_catch(tmp_path, smollm2):
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(smollm2.read_bytes()[:100_000])
    for path, how, kinds in (
        ("no such file", {}, (ValueError, FileNotFoundError)), (tmp_path, {}, (ValueError, IsADirectoryError)),
        (broken, {}, (ValueError,)), (smollm2, {"n_ctx": 2**31 - 1}, (ValueError, RuntimeError)),
        (smollm2, {"n_ctx": -5}, (ValueError,)), (smollm2, {"chat_format": "no such"}, (ValueError,)),
        (smollm2, {"rpc_servers": "127.0.0.1:1"}, (ValueError, ConnectionError)),
    ):  # fmt: skip
        for kind in kinds:
            with pytest.raises(kind):
                Llama(path, **how)
    for kind in (ModelNotFoundError, ModelLoadError, ContextCreationError, InvalidArgumentError):
        assert issubclass(kind, ValueError)


@pytest.mark.offers("lora_base=", how="other", note="ignored there, an error here")
def test_what_was_ignored_is_an_error(tiny):
    with pytest.raises(InvalidArgumentError, match="lora_base"):
        Llama(tiny, lora_base="base.gguf")


@pytest.mark.offers("n_gpu_layers=", "verbose=", "flash_attn=", how="other",
                    note="-1, None and None here; 0, True and False there")  # fmt: skip
def test_defaults_that_were_faults(real):
    assert real.verbose is False and real.model_params.n_gpu_layers == -1


@pytest.mark.offers("create_completion(…) by place", "create_chat_completion(…) by place", how="same")
def test_arguments_by_place(real):
    by_name = real.create_completion("Once", max_tokens=5, temperature=0.0, echo=True, stop=["zzz"])
    by_place = real.create_completion("Once", None, 5, 0.0, 0.95, 0.05, 1.0, None, True, ["zzz"])
    assert by_place["choices"] == by_name["choices"] and by_name["choices"][0]["text"].startswith("Once")
    talk = [{"role": "user", "content": "Hi"}]
    chat = real.create_chat_completion(talk, None, None, None, None, 0.0, max_tokens=5)
    assert chat["choices"] == real.create_chat_completion(messages=talk, temperature=0.0, max_tokens=5)["choices"]
    for wrong in (lambda: real("x", None, 5, max_tokens=5), lambda: real(*["x"] * 40)):
        with pytest.raises(InvalidArgumentError):
            wrong()


@pytest.mark.offers("Llama.from_pretrained", how="later", note="says what to do instead")
def test_what_comes_later():
    with pytest.raises(InvalidArgumentError, match="hf_hub_download"):
        Llama.from_pretrained(repo_id="x/y", filename="*.gguf", verbose=False, n_ctx=512)
