"""No C++ exception leaves a native function that Python calls: out of one, there is no handler, and the process ends.

Every function that the package calls is either one of ours that catches everything, or is in the table below with the reason why
it cannot throw, or why what it throws is caught. A new call fails here until somebody has looked at its source.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "llama_cpp"

#: Sets, reads or copies fields, or looks something up; nothing is allocated.
LOOKS_UP = [
    "ggml_backend_buffer_get_base",
    "ggml_backend_dev_backend_reg",
    "ggml_backend_dev_by_type",
    "ggml_backend_dev_count",
    "ggml_backend_dev_description",
    "ggml_backend_dev_get",
    "ggml_backend_dev_host_buffer_type",
    "ggml_backend_dev_memory",
    "ggml_backend_dev_name",
    "ggml_backend_dev_type",
    "ggml_backend_reg_by_name",
    "ggml_backend_reg_count",
    "ggml_backend_reg_dev_count",
    "ggml_backend_reg_dev_get",
    "ggml_backend_reg_get",
    "ggml_backend_reg_get_proc_address",
    "ggml_backend_reg_name",
    "ggml_backend_score",
    "ggml_commit",
    "ggml_cpu_set_batch_invariant",
    "ggml_is_quantized",
    "ggml_threadpool_params_default",
    "llama_attach_threadpool",
    "llama_context_default_params",
    "llama_get_memory",
    "llama_log_set",
    "llama_max_devices",
    "llama_max_parallel_sequences",
    "llama_memory_can_shift",
    "llama_memory_seq_pos_max",
    "llama_memory_seq_pos_min",
    "llama_model_default_params",
    "llama_model_get_vocab",
    "llama_model_has_encoder",
    "llama_model_is_hybrid",
    "llama_model_is_recurrent",
    "llama_model_meta_count",
    "llama_model_meta_key_by_index",
    "llama_model_meta_val_str_by_index",
    "llama_model_n_cls_out",
    "llama_model_n_ctx_train",
    "llama_model_n_embd",
    "llama_model_n_embd_out",
    "llama_model_n_layer",
    "llama_model_n_layer_nextn",
    "llama_model_n_swa",
    "llama_model_size",
    "llama_n_batch",
    "llama_n_ctx",
    "llama_n_ctx_seq",
    "llama_n_rs_seq",
    "llama_n_seq_max",
    "llama_n_threads",
    "llama_n_threads_batch",
    "llama_n_ubatch",
    "llama_sampler_chain_default_params",
    "llama_vocab_bos",
    "llama_vocab_eos",
    "llama_vocab_fim_mid",
    "llama_vocab_fim_pre",
    "llama_vocab_fim_suf",
    "llama_vocab_get_add_bos",
    "llama_vocab_get_add_eos",
    "llama_vocab_get_add_sep",
    "llama_vocab_is_eog",
    "llama_vocab_n_tokens",
    "llama_vocab_nl",
    "llama_vocab_sep",
    "llama_vocab_type",
    "mtmd_helper_log_set",
    "llama_common_commit",
    "llama_common_decoder_on_device",
    "llama_common_headers_sha256",
    "llama_common_is_set",
    "llama_common_log_set",
    "llama_common_log_discard",
    "llama_common_token_queue_take",
    "llama_common_top_k_configs",
]

#: Written in C, or calls what is.
IN_C = {
    "ggml_threadpool_new": "threads are at most GGML_MAX_N_THREADS, or it asserts: arguments.py refuses more",
    "llama_numa_init": "it asserts where there is no CPU backend, which the loader has seen to",
}

#: A destructor: those do not throw.
FREES = [
    "ggml_backend_buffer_free",
    "ggml_threadpool_free",
    "llama_free",
    "llama_model_free",
    "llama_sampler_free",
    "llama_common_chat_free",
    "llama_common_chat_parser_free",
    "llama_common_decoder_free",
    "llama_common_token_queue_free",
    "llama_common_sampler_free",
    "llama_common_speculator_free",
    "llama_common_string_free",
    "llama_common_top_k_free",
]

#: Could only throw std::bad_alloc, and is of a size that is not the caller's: it depends on the model's vocabulary or the
#: context, for which there was memory before, or is a few bytes.
ALLOCATES_LITTLE = [
    "llama_memory_clear",
    "llama_memory_seq_cp",
    "llama_memory_seq_rm",
    "llama_model_desc",
    "llama_set_adapters_lora",
    "llama_synchronize",
    "llama_sampler_chain_add",
    "llama_sampler_chain_init",
    "llama_sampler_init_adaptive_p",
    "llama_sampler_init_dist",
    "llama_sampler_init_greedy",
    "llama_sampler_init_min_p",
    "llama_sampler_init_mirostat",
    "llama_sampler_init_mirostat_v2",
    "llama_sampler_init_temp",
    "llama_sampler_init_temp_ext",
    "llama_sampler_init_top_k",
    "llama_sampler_init_top_n_sigma",
    "llama_sampler_init_top_p",
    "llama_sampler_init_typical",
    "llama_sampler_init_xtc",
]

#: As the last ones, after a check of what comes from a caller; where that is, and what it is.
CHECKED = {
    "llama_memory_seq_add": ("engine/decoder.py", "can_shift"),
    "llama_sampler_init_logit_bias": ("engine/sampling_params.py", "logit_bias names token"),
    "llama_sampler_init_penalties": ("engine/sampler_chain.py", "min(last_n, self._n_ctx)"),
    "ggml_backend_load": ("capi/backends.py", "ctypes.CDLL(str(plugin))"),
    "ggml_backend_buft_alloc_buffer": ("engine/decoder.py", "if not address:"),
    "ggml_backend_rpc_add_server": ("models/rpc.py", "create_connection"),
}

#: The engine catches what it throws itself: the function in which it does, and the file.
ENGINE_CATCHES = {
    "llama_adapter_lora_init": ("src/llama-adapter.cpp", "llama_adapter_lora * llama_adapter_lora_init_from_file_ptr("),
    "llama_init_from_model": ("src/llama-context.cpp", "llama_context * llama_init_from_model("),
    "llama_model_load_from_file": ("src/llama.cpp", "static std::pair<int, llama_model *> llama_model_load("),
    "llama_state_seq_get_data_ext": ("src/llama-context.cpp", "size_t llama_context::state_seq_get_data("),
    "llama_state_seq_get_size_ext": ("src/llama-context.cpp", "size_t llama_context::state_seq_get_size("),
    "llama_state_seq_set_data_ext": ("src/llama-context.cpp", "size_t llama_context::state_seq_set_data("),
}

_TABLES = (LOOKS_UP, IN_C, FREES, ALLOCATES_LITTLE, CHECKED, ENGINE_CATCHES)


def _generated(path: Path) -> bool:
    return "Generated by" in path.read_text(encoding="utf-8")[:2000]


def _bound() -> tuple[set[str], set[str]]:
    """Functions of the generated modules, and whatever else is defined there."""
    functions, others = set(), set()
    for path in sorted((PACKAGE / "capi").glob("*.py")):
        if not _generated(path):
            continue
        others.add(path.stem)
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef):
                functions.add(node.name)
            elif isinstance(node, ast.ClassDef):
                others.add(node.name)
            elif isinstance(node, (ast.Assign, ast.AnnAssign)):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                others |= {target.id for target in targets if isinstance(target, ast.Name)}
    return functions, others


def used(text: str, others: set[str]) -> set[str]:
    """Names of native functions that a module's text has: of bound ones, of a library's attributes, and in strings."""
    tree, found = ast.parse(text), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            found.add(node.attr)
        elif isinstance(node, ast.Name):
            found.add(node.id)
        elif isinstance(node, ast.ImportFrom):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.FunctionDef) and any("bind" in ast.unparse(one) for one in node.decorator_list):
            found.add(node.name)
        elif isinstance(node, ast.Constant) and isinstance(node.value, (str, bytes)):
            text = node.value if isinstance(node.value, str) else node.value.decode("ascii", "replace")
            found |= {text} if re.fullmatch(r"[a-z0-9_]+", text) else set()
    return {name for name in found if re.fullmatch(r"(llama|ggml|gguf|mtmd)_\w*[a-z0-9]", name)} - others


#: Files that hand the C API to whoever asks, under other names or with callbacks kept alive.
HANDED_OUT = {"_internals.py", "removed.py", "kept.py"}


@pytest.fixture(scope="module")
def called() -> set[str]:
    """Native functions that the package calls by itself; the low-level modules hand all of them to whoever asks."""
    functions, others = _bound()
    # of the package and its loader, not of the engine
    others |= {"llama_cpp", "llama_cpp_python", "llama_common_c"}
    # modules and attributes under llama-cpp-python's names
    others |= {"llama_cache", "llama_chat_format", "llama_grammar", "llama_log_callback", "llama_speculative", "llama_state"}
    others |= {"llama_state_size", "llama_tokenizer", "llama_types", "mtmd_cpp"}
    # asked for by its name, and not called
    others |= {"ggml_backend_split_buffer_type"}
    found = set()
    for path in sorted(PACKAGE.rglob("*.py")):
        if not _generated(path) and path.name not in HANDED_OUT:
            found |= used(path.read_text(encoding="utf-8"), others)
    assert len(found & functions) > 100, "were they not found, nothing would be tested"
    return found


def _ours() -> dict[str, str]:
    """The bodies of our own C functions, by name."""
    bodies = {}
    for path in sorted((ROOT / "native").glob("*.cpp")):
        pattern = r"^(?:[\w ]+[ *])\s*(llama_common_\w+)\s*\([^;{]*\)\s*\{(.*?)(?:^\}|\}$)"
        for found in re.finditer(pattern, path.read_text(encoding="utf-8"), re.M | re.S):
            bodies[found[1]] = found[2].strip()
    return bodies


def test_each_function_that_is_called_was_considered(called):
    tables = [name for table in _TABLES for name in table]
    assert len(tables) == len(set(tables)), "one is in two tables"
    guarded = {name for name, body in _ours().items() if "return guarded(" in body}  # the next test looks closer
    missing = called - guarded - set(tables)
    assert not missing, f"look at what these can throw, and say in a table why nothing does: {sorted(missing)}"
    gone = set(tables) - called - set(_ours())
    assert not gone, f"nobody calls these any more: {sorted(gone)}"


def test_a_new_call_would_be_seen():
    text = "def f(lib):\n    llama.llama_detokenize(1)\n    getattr(lib, 'llama_encode')\n    lib.llama_decode()\n"
    assert used(text, {"llama"}) == {"llama_detokenize", "llama_encode", "llama_decode"}


def test_ours_catch_everything():
    """What can fail has a status and catches; the others are in the tables, one by one."""
    header = (ROOT / "native" / "llama-common-c.h").read_text(encoding="utf-8")
    statuses = set(re.findall(r"LLAMA_COMMON_C_API enum llama_common_status\s+(llama_common_\w+)\(", header))
    names = set(re.findall(r"LLAMA_COMMON_C_API [^;(]*?(llama_common_\w+)\(", header))
    bodies = _ours()
    assert len(statuses) > 20 and statuses <= set(bodies), sorted(statuses - set(bodies))
    for name in statuses:
        # what comes before only puts pointers into owners
        assert re.match(r"(//.*\n\s*)?(sampler_ptr (parts\[\] = \{.*\}|owned\(\w+\));\s+)?return guarded\(", bodies[name]), name
    tables = {name for table in _TABLES for name in table}
    assert names - statuses <= tables, sorted(names - statuses - tables)


@pytest.mark.parametrize("name", ENGINE_CATCHES)
def test_the_engine_catches_these(llama_source, name):
    file, signature = ENGINE_CATCHES[name]
    text = (llama_source / file).read_text(encoding="utf-8")
    assert signature in text, f"{signature} is no more in {file}: look where {name} catches now"
    body = text[text.index(signature) :].partition("\n}\n")[0]
    assert re.search(r"\btry \{", body) and "catch (const std::exception & err)" in body


@pytest.mark.parametrize("name", CHECKED)
def test_the_check_is_there(name):
    file, text = CHECKED[name]
    assert text in (PACKAGE / file).read_text(encoding="utf-8"), f"what {name} relied on is gone"
