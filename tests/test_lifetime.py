"""Who may free what, and when: close() beside threads that use the model, and use after fork()."""

from __future__ import annotations

import contextlib
import gc
import os
import subprocess
import threading

import pytest

from gguf_writer import tiny_model
from llama_cpp.capi.handle import NativeHandle
from llama_cpp.capi.loader import refuse_forked_gpu
from llama_cpp.errors import ForkedProcessError, ModelClosedError

ROUNDS = 60


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """A complete model that loads in milliseconds."""
    path = tmp_path_factory.mktemp("lifetime") / "tiny.gguf"
    path.write_bytes(tiny_model().build())
    return path


# --- close() in one thread, use in others ---

_BESIDE = """
import sys, threading
from llama_cpp import Llama
from llama_cpp.errors import ModelClosedError

hello = [{"role": "user", "content": "hello"}]
messages = [{"role": "user", "content": "hello there " * 50}]
text = b"the hello " * 300
uses = [
    lambda llm, templates: llm.tokenize(text),
    lambda llm, templates: llm.detokenize(tokens),
    lambda llm, templates: llm.metadata["general.name"],
    lambda llm, templates: (llm.loaded.model.description, llm.n_ctx(), llm.n_vocab(), llm.ctx),
    lambda llm, templates: llm.reset(),
    lambda llm, templates: templates.apply({"messages": messages}),
    lambda llm, templates: llm.create_chat_completion(hello, max_tokens=2),
    lambda llm, templates: list(llm.create_completion("the", max_tokens=9, stream=True, grammar='root ::= [a-z ]*')),
]
unexpected, refused, done = [], 0, 0

def run(use, llm, templates, begun):
    global refused, done
    try:
        while True:
            use(llm, templates)
            done += 1
            begun.release()
    except ModelClosedError:
        refused += 1
    except BaseException as error:
        unexpected.append(repr(error))
    finally:
        begun.release()

for round in range(int(sys.argv[2])):
    llm = Llama(sys.argv[1], n_ctx=256, n_threads=1, n_threads_batch=1)
    tokens = llm.tokenize(text)
    llm.create_chat_completion(hello, max_tokens=1)
    templates = llm.loaded.templates()
    begun = threading.Semaphore(0)
    threads = [threading.Thread(target=run, args=(use, llm, templates, begun)) for use in uses]
    for thread in threads:
        thread.start()
    for _ in range(len(uses) + round):
        begun.acquire()  # they are at it, at another place in every round
    closers = [threading.Thread(target=llm.close) for _ in range(2)]
    for thread in closers:
        thread.start()
    for thread in threads + closers:
        thread.join()
print(unexpected, refused == int(sys.argv[2]) * len(uses), done > 0)
"""


def test_close_beside_threads_that_use_the_model(run_python, tiny):
    """Every call succeeds or is refused. Memory that is freed is overwritten, so that reading it would show."""
    done = run_python(_BESIDE, str(tiny), str(ROUNDS), MALLOC_PERTURB_="165", GLIBC_TUNABLES="glibc.malloc.mmap_threshold=4096")
    said = [line for line in done.stderr.splitlines() if not line.startswith("resolve_fused_ops")]  # GPUs have no kernel for it
    assert (done.returncode, said) == (0, []), done.stderr[-3000:]
    assert done.stdout == "[] True True\n"


class _Native:
    """Stands for a native object: notes when it is freed, and by whom."""

    def __init__(self) -> None:
        self.freed: list[int] = []

    def free(self, pointer: object) -> None:
        assert pointer is self
        self.freed.append(threading.get_ident())


def test_the_last_user_frees():
    native = _Native()
    handle = NativeHandle(native, native.free)
    with handle as pointer:
        assert pointer is native
        with handle:
            handle.close()
            assert handle.closed and not native.freed
            with pytest.raises(ModelClosedError, match="closed"):
                handle.acquire()
            with pytest.raises(ModelClosedError):
                _ = handle.pointer
        assert not native.freed
    assert native.freed == [threading.get_ident()]
    handle.close()
    assert len(native.freed) == 1


def test_without_users_close_frees_at_once():
    native = _Native()
    NativeHandle(native, native.free).close()
    assert len(native.freed) == 1


def test_what_is_forgotten_is_freed():
    native = _Native()
    handle = NativeHandle(native, native.free)
    del handle
    assert len(native.freed) == 1


def test_a_parent_outlives_its_child():
    parent_native, child_native = _Native(), _Native()
    parent = NativeHandle(parent_native, parent_native.free)
    child = NativeHandle(child_native, child_native.free, parent=parent)
    parent.close()
    assert not parent_native.freed
    child.close()
    assert child_native.freed and parent_native.freed
    with pytest.raises(ModelClosedError):
        NativeHandle(child_native, child_native.free, parent=parent)


def test_the_garbage_collector_frees_children_first():
    """It may end the objects of a cycle in any order."""
    for children_first in (False, True):
        freed = []
        cycle: dict = {}
        parent = NativeHandle("parent", freed.append)
        child = NativeHandle("child", freed.append, parent=parent)
        handles = [child, parent] if children_first else [parent, child]
        for handle in handles:
            handle.cycle = cycle
        cycle["handles"] = handles
        del parent, child, handle, handles, cycle
        gc.collect()
        assert freed == ["child", "parent"]


def test_two_threads_close_once():
    for _ in range(300):
        native = _Native()
        handle = NativeHandle(native, native.free)
        barrier = threading.Barrier(4)

        def use(act, barrier=barrier):
            barrier.wait()
            with contextlib.suppress(ModelClosedError):
                act()

        def enter(handle=handle, native=native):
            with handle:
                assert not native.freed

        threads = [threading.Thread(target=use, args=(act,)) for act in (handle.close, handle.close, enter, enter)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(native.freed) == 1


# --- fork() ---


def test_a_forked_child_may_not_use_it_and_frees_nothing():
    native = _Native()
    handle = NativeHandle(native, native.free)
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            handle.acquire()
        except ForkedProcessError as error:
            handle.close()
            status = 0 if "spawn" in error.remedy and not native.freed else 2
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    with handle:
        pass
    handle.close()
    assert len(native.freed) == 1


def test_a_gpu_backend_belongs_to_the_process_that_loaded_it():
    refuse_forked_gpu(None, 5)  # no GPU
    refuse_forked_gpu(5, 5)
    with pytest.raises(ForkedProcessError, match=r"process 4.* in 5") as caught:
        refuse_forked_gpu(4, 5)
    assert "spawn" in caught.value.remedy


_IN_A_CHILD = """
import os, sys
from llama_cpp import Llama
from llama_cpp.capi.backends import has_gpu
from llama_cpp.errors import ForkedProcessError
from llama_cpp.fit.devices import devices

def answer(path):
    with Llama(path, n_ctx=256, n_gpu_layers=0) as llm:
        return llm.create_completion("the", max_tokens=3, temperature=0)["choices"][0]["text"]

kinds = {device.kind for device in devices()}
mine = None if "gpu" in kinds else answer(sys.argv[1])
pid = os.fork()
if pid == 0:
    status = 1
    try:
        status = 0 if answer(sys.argv[1]) == mine else 2
    except ForkedProcessError as error:
        try:
            devices()
        except ForkedProcessError:
            status = 3 if "spawn" in error.remedy else 4
    finally:
        os._exit(status)
print(has_gpu(), os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""


def test_on_the_cpu_a_forked_child_loads_a_model_of_its_own(run_python, tiny):
    done = run_python(_IN_A_CHILD, str(tiny), CUDA_VISIBLE_DEVICES="")
    assert (done.returncode, done.stdout) == (0, "False 0\n"), done.stderr


# What a GPU backend shows of itself before anything is computed.
_GPU = """
#include "ggml-backend-impl.h"
static const char * name(ggml_backend_dev_t d) { return "GPU0"; }
static const char * description(ggml_backend_dev_t d) { return "A GPU"; }
static void memory(ggml_backend_dev_t d, size_t * free, size_t * total) { *free = *total = 1 << 30; }
static enum ggml_backend_dev_type type(ggml_backend_dev_t d) { return GGML_BACKEND_DEVICE_TYPE_GPU; }
static const char * reg_name(ggml_backend_reg_t r) { return "GPU"; }
static size_t count(ggml_backend_reg_t r) { return 1; }
static struct ggml_backend_device device = {
    .iface = {.get_name = name, .get_description = description, .get_memory = memory, .get_type = type}};
static ggml_backend_dev_t get(ggml_backend_reg_t r, size_t i) { return &device; }
static struct ggml_backend_reg reg = {
    .api_version = GGML_BACKEND_API_VERSION, .iface = {.get_name = reg_name, .get_device_count = count, .get_device = get}};
ggml_backend_reg_t ggml_backend_init(void) { device.reg = &reg; return &reg; }
"""


def test_with_a_gpu_backend_loaded_a_forked_child_is_refused(run_python, lib_dir, llama_source, tiny, tmp_path):
    folder = tmp_path / "lib"
    folder.mkdir()
    for library in lib_dir.glob("lib*.so*"):
        if not library.name.startswith("libggml-cuda"):
            (folder / library.name).symlink_to(library)
    ggml = llama_source / "ggml"
    command = ["gcc", "-shared", "-fPIC", "-x", "c", "-", f"-I{ggml / 'src'}", f"-I{ggml / 'include'}"]
    subprocess.run([*command, "-o", str(folder / "libggml-gpu.so")], input=_GPU, text=True, check=True)
    done = run_python(_IN_A_CHILD, str(tiny), LLAMA_CPP_LIB_PATH=str(folder))
    assert (done.returncode, done.stdout) == (0, "True 3\n"), done.stderr
