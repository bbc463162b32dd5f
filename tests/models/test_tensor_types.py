"""Types of weights: what the engine computes with loads and generates, what it would end the process on is refused."""

from __future__ import annotations

import ctypes
import re
import subprocess
import sys
from pathlib import Path

import pytest

import tiny_models
from llama_cpp import gguf
from llama_cpp.capi import ggml_cpu
from llama_cpp.errors import AdapterLoadError, InvalidGGUFError
from llama_cpp.gguf.tensor_types import MATRIX_TYPES, allowed_types
from llama_cpp.gguf.types import TENSOR_TYPES

BY_NAME = {kind.name: type_id for type_id, kind in TENSOR_TYPES.items()}
TRIED = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q8_1", "Q8_K", "F64", "I32", "I8")
KINDS = [kind for kind in tiny_models.KINDS if kind != "encoder"]

_CHILD = """
import sys
from llama_cpp import Llama
from llama_cpp.errors import LlamaCppError
for path in sys.argv[1:]:
    try:
        with Llama(path, n_ctx=64, n_threads=1) as llm:
            llm.create_completion([3, 4, 5], max_tokens=2, temperature=0, logit_bias={2: -100})
        print(path, "fine", flush=True)
    except LlamaCppError as error:
        print(path, type(error).__name__, flush=True)
"""


def roles(path: Path) -> dict[str, str]:
    """A tensor of each role, by the role: its name without the layer's number."""
    return {re.sub(r"\d+", "N", tensor.name): tensor.name for tensor in gguf.read_gguf(path).tensors}


def variants(kind: str, folder: Path) -> dict[Path, tuple[str, str, bool]]:
    """Models of a kind in which one tensor has another type: its name, the type, and whether that is allowed."""
    made = {}
    plain = tiny_models.write(kind, folder / "plain.gguf")
    tensors = {tensor.name: tensor for tensor in gguf.read_gguf(plain).tensors}
    for _role, name in roles(plain).items():
        for type_name in TRIED:
            tensor = tensors[name]._replace(type_id=BY_NAME[type_name])
            if tensor.shape[0] % TENSOR_TYPES[tensor.type_id].block_size:
                continue
            path = folder / f"{len(made)}.gguf"
            tiny_models.write(kind, path, types={name: tensor.type_id})
            made[path] = name, type_name, tensor.type_id in allowed_types(tensor)
    return made


@pytest.mark.slow
@pytest.mark.generator
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_allowed_computes_and_the_rest_is_refused(kind, tmp_path):
    made = variants(kind, tmp_path)
    for path, (name, _type_name, allowed) in made.items():
        if not allowed:
            with pytest.raises(InvalidGGUFError, match=re.escape(name)):
                gguf.check_gguf(path)
    paths = [str(path) for path, (*_, allowed) in made.items() if allowed]
    done = subprocess.run([sys.executable, "-c", _CHILD, *paths], capture_output=True, text=True, timeout=900)
    ended = [line for line in done.stdout.splitlines() if Path(line.partition(" ")[0]) in made]  # no debugger's
    failed = [(*made[Path(line.split()[0])][:2], line.split()[1]) for line in ended if not line.endswith("fine")]
    if len(ended) < len(paths):
        failed.append((*made[Path(paths[len(ended)])][:2], f"ended the process: {done.returncode} {done.stderr[-300:]}"))
    assert failed == []


def test_the_table_is_ggml_s(lib_dir):
    """Types that a product of matrices is written for; no others, and none is left out."""
    plugins = sorted(lib_dir.glob("libggml-cpu*.so"))
    assert plugins
    for plugin in plugins:
        traits = ctypes.CDLL(str(plugin)).ggml_get_type_traits_cpu
        traits.restype = ctypes.POINTER(ggml_cpu.ggml_type_traits_cpu)
        found = {type_id for type_id in TENSOR_TYPES if traits(type_id).contents.vec_dot}
        assert found == MATRIX_TYPES, plugin.name
    names = {TENSOR_TYPES[type_id].name for type_id in MATRIX_TYPES}
    assert {"F32", "F16", "BF16", "Q8_0", "Q4_K", "IQ4_XS", "MXFP4", "TQ2_0"} <= names


@pytest.mark.parametrize("type_name", ["F16", "BF16"])
def test_norms_and_biases_in_half_precision(tmp_path, type_name, run_python):
    """As home-made conversions have them: what is generated is what it is with the same numbers in single precision."""
    plain = tiny_models.write("dense", tmp_path / "plain.gguf")
    norms = [tensor.name for tensor in gguf.read_gguf(plain).tensors if "norm" in tensor.name]
    assert norms
    path = tiny_models.write("dense", tmp_path / "half.gguf", types=dict.fromkeys(norms, BY_NAME[type_name]))
    done = run_python(_CHILD, str(path))
    assert done.stdout.endswith("fine\n") and done.returncode == 0, done.stderr


@pytest.mark.parametrize("type_name", ["I32", "F64", "Q8_1", "I8"])
def test_a_matrix_that_cannot_be_multiplied_with(tmp_path, type_name):
    path = tiny_models.write("dense", tmp_path / "m.gguf", types={"blk.0.attn_q.weight": BY_NAME[type_name]})
    with pytest.raises(InvalidGGUFError, match=f"attn_q.*{type_name}"):
        gguf.check_gguf(path)


# --- adapters ---


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    from llama_cpp.models.model import Model

    model = Model(tiny_models.write("dense", tmp_path_factory.mktemp("dense") / "m.gguf"))
    yield model
    model.close()


def adapter(path: Path, **changes) -> Path:
    """An adapter of the dense model with other metadata, as (type, value), or other types of tensors."""
    tiny_models.write_adapter(path, types=changes.pop("types", None), metadata=changes)
    return path


@pytest.mark.parametrize(
    "changes",
    [{"adapter.lora.alpha": (tiny_models.U32, 8)}, {"adapter.lora.alpha": (tiny_models.STR, "8")},
     {"adapter.type": (tiny_models.U32, 1)},
     {"adapter.type": (tiny_models.STR, "control_vector")}, {"general.type": (tiny_models.U32, 1)},
     {"general.type": (tiny_models.STR, "model")}, {"general.architecture": (tiny_models.U32, 1)}],
)  # fmt: skip
def test_metadata_of_an_adapter(dense, tmp_path, changes):
    from llama_cpp.models.adapter import Adapter

    with pytest.raises(InvalidGGUFError, match=next(iter(changes))):
        Adapter(dense, adapter(tmp_path / "a.gguf", **changes))


@pytest.mark.parametrize("type_name", ["Q8_1", "I8", "F64", "I32"])
def test_an_adapter_that_cannot_be_multiplied_with(dense, tmp_path, type_name):
    from llama_cpp.models.adapter import Adapter

    path = adapter(tmp_path / "a.gguf", types={"blk.0.attn_q.weight.lora_a": BY_NAME[type_name]})
    with pytest.raises(InvalidGGUFError, match=f"lora_a.*{type_name}"):
        Adapter(dense, path)


@pytest.mark.parametrize("type_name", ["F16", "BF16", "Q8_0"])
def test_an_adapter_of_another_type_computes(tmp_path, type_name, run_python):
    model = tiny_models.write("dense", tmp_path / "m.gguf")
    path = adapter(tmp_path / "a.gguf", types={"blk.0.attn_q.weight.lora_a": BY_NAME[type_name]})
    script = (
        "import sys; from llama_cpp import Llama; llm = Llama(sys.argv[1], n_ctx=64, lora_path=sys.argv[2]); "
        "print(llm.create_completion([3, 4], max_tokens=2)['usage']['prompt_tokens'])"
    )
    done = run_python(script, str(model), str(path))
    assert (done.returncode, done.stdout) == (0, "2\n"), done.stderr


def test_an_adapter_of_another_architecture(dense, tmp_path):
    from llama_cpp.models.adapter import Adapter

    with pytest.raises(AdapterLoadError, match=r"llama.*qwen3"):
        Adapter(dense, adapter(tmp_path / "a.gguf", **{"general.architecture": (tiny_models.STR, "llama")}))
