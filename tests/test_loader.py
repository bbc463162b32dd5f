"""Which libraries are opened, in what order, and what is said when they are not the right ones."""

from __future__ import annotations

import logging
import subprocess
from pathlib import Path

import pytest

from llama_cpp.capi import backends, ggml
from llama_cpp.capi.loader import SONAMES
from llama_cpp.capi.logs import LineJoiner

_LOAD = "from llama_cpp.capi.loader import libraries; libraries()"


def _copy(lib_dir: Path, target: Path, leave_out: str = "") -> Path:
    """A folder with links to the libraries, so that one can be left out or replaced."""
    target.mkdir()
    for library in lib_dir.glob("lib*.so*"):
        if not leave_out or not library.name.startswith(leave_out):
            (target / library.name).symlink_to(library)
    return target


def _compile(source: str, target: Path) -> Path:
    subprocess.run(["gcc", "-shared", "-fPIC", "-x", "c", "-", "-o", str(target)], input=source, text=True, check=True)
    return target


@pytest.fixture
def attempt(run_python):
    """Loads the libraries of a folder in a fresh process and prints the exception; returns what was printed."""

    def run(folder: Path, script: str = _LOAD, **env: str) -> str:
        body = "\n    ".join(script.splitlines())
        done = run_python(
            "import traceback\nfrom llama_cpp.errors import LlamaCppError\n"
            f"try:\n    {body}\nexcept LlamaCppError as error:\n"
            "    print(type(error).__name__, error)\n    print('remedy:', error.remedy)\n",
            LLAMA_CPP_LIB_PATH=str(folder), **env,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


# --- the wrong folder ---


def test_an_empty_folder_is_named(attempt, tmp_path):
    said = attempt(tmp_path)
    assert said.startswith("LibraryNotFoundError")
    assert str(tmp_path) in said and "libllama.so.0" in said
    assert "LLAMA_CPP_LIB_PATH" in said.split("remedy:")[1]


def test_every_folder_searched_is_listed(run_python):
    """Without LLAMA_CPP_LIB_PATH, and with the places moved to where nothing is."""
    done = run_python(
        """
import os, sys
os.environ.pop("LLAMA_CPP_LIB_PATH", None)
import llama_cpp
from llama_cpp.capi import loader
from llama_cpp.errors import LibraryNotFoundError
llama_cpp.__path__ = ["/nowhere/one", "/nowhere/two"]
sys.prefix = "/nowhere/three"
try:
    loader.libraries()
except LibraryNotFoundError as error:
    print(error)
"""
    )
    for folder in ("one", "two", "three"):
        assert f"/nowhere/{folder}/lib" in done.stdout
    assert "pip install" in done.stdout


def test_a_stranger_s_llama_cpp_is_refused(attempt, lib_dir, tmp_path):
    said = attempt(_copy(lib_dir, tmp_path / "lib", leave_out="libllama-common-c"))
    assert said.startswith("LibraryMismatchError")
    assert str(tmp_path / "lib") in said and "libllama-common-c" in said


def test_an_incomplete_folder_names_what_cannot_be_opened(attempt, lib_dir, tmp_path):
    folder = _copy(lib_dir, tmp_path / "lib", leave_out="libmtmd")
    said = attempt(folder)
    assert said.startswith("LibraryNotFoundError")
    assert "libmtmd.so.0 cannot be opened" in said


def test_other_headers_are_refused_with_both_commits(attempt, lib_dir):
    from llama_cpp.capi import pinned

    said = attempt(
        lib_dir,
        "from llama_cpp.capi import pinned\npinned.HEADERS_SHA256 = '0' * 64\npinned.LLAMA_CPP_COMMIT = 'f' * 40\n" + _LOAD,
    )
    assert said.startswith("LibraryMismatchError")
    assert pinned.LLAMA_CPP_COMMIT[:12] in said and "f" * 12 in said
    assert "ebuild" in said.split("remedy:")[1]


def test_another_libggml_base_is_refused(attempt, lib_dir, tmp_path):
    """The one that another package would have brought into the process first."""
    folder = _copy(lib_dir, tmp_path / "lib")
    stranger = _compile('const char * ggml_commit(void) { return "stranger"; }', tmp_path / "libggml-base.so.0")
    said = attempt(
        folder,
        "from llama_cpp.capi import loader\nimport ctypes\nreal = loader._open\n"
        f"def replaced(folder):\n    opened = real(folder)\n    opened['ggml-base'] = ctypes.CDLL({str(stranger)!r})\n"
        "    return opened\n"
        "loader._open = replaced\n" + _LOAD,
    )
    assert said.startswith("LibraryMismatchError") and "stranger" in said


def test_a_failed_attempt_can_be_repeated(run_python, lib_dir, tmp_path):
    done = run_python(
        """
import os, sys
from llama_cpp.capi import loader
from llama_cpp.errors import LibraryNotFoundError
right = os.environ["LLAMA_CPP_LIB_PATH"]
os.environ["LLAMA_CPP_LIB_PATH"] = sys.argv[1]
try:
    loader.libraries()
except LibraryNotFoundError:
    print("refused")
os.environ["LLAMA_CPP_LIB_PATH"] = right
print(loader.libraries() is loader.libraries(), loader.library_folder())
""",
        str(tmp_path),
        LLAMA_CPP_LIB_PATH=str(lib_dir),
    )
    assert done.stdout == f"refused\nTrue {lib_dir}\n", done.stderr


# --- plugins ---


def test_a_corrupt_plugin_is_named_with_the_linker_s_reason(attempt, lib_dir, tmp_path):
    folder = _copy(lib_dir, tmp_path / "lib")
    (folder / "libggml-vulkan.so").write_bytes(b"not a library")
    said = attempt(folder)
    assert said.startswith("BackendLoadError")
    assert str(folder / "libggml-vulkan.so") in said
    assert "invalid ELF header" in said or "file too short" in said


def test_a_plugin_with_a_missing_dependency_says_which(attempt, lib_dir, tmp_path):
    folder = _copy(lib_dir, tmp_path / "lib")
    _compile("void needed(void) {}", tmp_path / "libneeded-by-nobody.so")
    subprocess.run(
        ["gcc", "-shared", "-fPIC", "-x", "c", "-", "-o", str(folder / "libggml-sycl.so"), "-L", str(tmp_path),
         "-Wl,--no-as-needed", "-lneeded-by-nobody"], input="void f(void) {}", text=True, check=True,
    )  # fmt: skip
    said = attempt(folder)
    assert said.startswith("BackendLoadError") and "libneeded-by-nobody.so" in said


def test_a_library_that_is_no_plugin_is_refused(attempt, lib_dir, tmp_path):
    folder = _copy(lib_dir, tmp_path / "lib")
    _compile("void f(void) {}", folder / "libggml-metal.so")
    said = attempt(folder)
    assert said.startswith("BackendLoadError") and "libggml-metal.so" in said


def test_no_cpu_plugin_at_all(attempt, lib_dir, tmp_path):
    folder = _copy(lib_dir, tmp_path / "lib", leave_out="libggml-cpu")
    said = attempt(folder)
    assert said.startswith("BackendLoadError")
    assert "none at all" in said and str(folder) in said


def test_only_broken_cpu_plugins(attempt, lib_dir, tmp_path):
    folder = _copy(lib_dir, tmp_path / "lib", leave_out="libggml-cpu")
    (folder / "libggml-cpu-zen4.so").write_bytes(b"\x7fELF")
    said = attempt(folder)
    assert said.startswith("BackendLoadError")
    assert "libggml-cpu-zen4.so" in said and "file too short" in said


def test_a_broken_cpu_plugin_beside_good_ones_is_done_without(attempt, lib_dir, tmp_path):
    folder = _copy(lib_dir, tmp_path / "lib")
    (folder / "libggml-cpu-next.so").write_bytes(b"\x7fELF")
    said = attempt(folder, _LOAD + "\nfrom llama_cpp.capi.backends import report\nprint(*(p.name for p in report.loaded))")
    assert said.count("libggml-cpu-") == 1 and "next" not in said


_EVIL = """
#include <stdio.h>
#include <stdlib.h>
__attribute__((constructor)) static void run(void) {
    FILE * file = fopen(getenv("EVIL_MARKER"), "a");
    fputs("ran\\n", file);
    fclose(file);
}
int ggml_backend_score(void) { return 1000000; }
void * ggml_backend_init(void) { return NULL; }
"""


def test_the_current_directory_is_not_searched(run_python, lib_dir, smollm2, tmp_path):
    """llama.cpp's own search looks there, so nothing may ever start it."""
    for name in (
        "libggml-cpu-evil.so",
        "libggml-blas.so",
        "libggml-cpu.so",
        "libggml-cuda.so",
        "libllama.so.0",
        "libggml-rpc.so",
    ):
        _compile(_EVIL, tmp_path / name)
    marker = tmp_path / "marker"
    done = run_python(
        """
import os, sys
os.chdir(sys.argv[2])
from llama_cpp import Llama
from llama_cpp.fit.devices import devices
with Llama(sys.argv[1], n_ctx=256) as llm:
    llm.create_chat_completion([{"role": "user", "content": "Hi"}], max_tokens=1)
print(len([d for d in devices() if d.kind == "cpu"]))
import llama_cpp.capi.ggml_cpu as cpu, llama_cpp.capi.ggml_backend as backend
print(backend.ggml_backend_reg_count())
""",
        str(smollm2),
        str(tmp_path),
        EVIL_MARKER=str(marker),
        LLAMA_CPP_LIB_PATH=str(lib_dir),
    )
    assert done.returncode == 0, done.stderr
    assert not marker.exists()
    assert done.stdout.splitlines()[0] == "1"


def test_the_evil_plugin_would_have_left_its_mark(run_python, tmp_path):
    """What the test above relies on."""
    plugin, marker = _compile(_EVIL, tmp_path / "libggml-cpu-evil.so"), tmp_path / "marker"
    run_python("import ctypes, sys; ctypes.CDLL(sys.argv[1])", str(plugin), EVIL_MARKER=str(marker))
    assert marker.read_text() == "ran\n"


def test_ggml_backend_path_is_not_followed(run_python, smollm2, lib_dir, tmp_path):
    plugin, marker = _compile(_EVIL, tmp_path / "libggml-evil.so"), tmp_path / "marker"
    done = run_python(
        "import sys\nfrom llama_cpp import Llama\nLlama(sys.argv[1], n_ctx=256).close()", str(smollm2),
        EVIL_MARKER=str(marker), GGML_BACKEND_PATH=str(plugin), LLAMA_CPP_LIB_PATH=str(lib_dir),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert not marker.exists()


def test_exactly_one_cpu_plugin_is_in_use(llm, lib_dir):
    cpu = [path for path in backends.report.loaded if path.name.startswith("libggml-cpu")]
    assert len(cpu) == 1 and cpu[0].parent == lib_dir
    others = set(lib_dir.glob("libggml-cpu*.so")) - set(cpu)
    assert others <= set(backends.report.skipped)
    for reason in (backends.report.skipped[path] for path in others):
        assert cpu[0].name in reason


# --- symbols ---


def test_a_missing_function_fails_when_called_by_name(attempt, lib_dir):
    said = attempt(
        lib_dir,
        """from llama_cpp.capi.binding import bind
@bind("llama", None)
def llama_no_such_function(): ...
print("defined")
llama_no_such_function()""",
    )
    assert said.startswith("defined\nMissingSymbolError")
    assert "llama_no_such_function" in said and "libllama.so.0" in said


def test_a_missing_plugin_function_names_its_plugin(attempt, lib_dir):
    said = attempt(lib_dir, "from llama_cpp.capi import ggml_rpc\nprint('imported')\nggml_rpc.ggml_backend_rpc_add_server(b'x')")
    assert said.startswith("imported\nMissingSymbolError")
    assert "ggml_backend_rpc_add_server" in said and "libggml-rpc" in said


_IMPORTS = """
import sys
import llama_cpp
from llama_cpp import Llama
import llama_cpp.llama_cpp, llama_cpp.mtmd_cpp, llama_cpp.chat.templates, llama_cpp.fit.devices, llama_cpp.capi.logs
llama_cpp.LLAMA_DEFAULT_SEED, llama_cpp.llama_decode
maps = open("/proc/self/maps").read()
print([line.split(maxsplit=5)[5] for line in maps.splitlines() if "libllama" in line or "libggml" in line or "libmtmd" in line])
print([name for name in ("numpy", "jinja2", "diskcache", "typer", "rich") if name in sys.modules])
"""


def test_importing_opens_no_library_and_no_heavy_module(run_python, tmp_path):
    """Also where there is no library at all."""
    done = run_python(_IMPORTS, LLAMA_CPP_LIB_PATH=str(tmp_path))
    assert done.stdout == "[]\n[]\n", done.stderr


# --- what is written ---

_NOISE = """
import logging, sys
from llama_cpp import Llama
from llama_cpp.chat.templates import ChatTemplates, json_schema_to_grammar
from llama_cpp.errors import LlamaCppError
tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
with Llama(sys.argv[1], n_ctx=256, **eval(sys.argv[2])) as llm:
    user = [{"role": "user", "content": "Hi"}]
    llm.create_chat_completion(user, max_tokens=2)
    list(llm.create_completion("Hi", max_tokens=2, stream=True))
    for wrong in (
        lambda: llm.create_completion("Hi", grammar="root ::= nowhere"),
        lambda: llm.create_completion([5] * 1000),
        lambda: ChatTemplates(None, template="{% broken"),
        lambda: ChatTemplates(None, template="{{ nowhere() }}").apply({"messages": user}),
        lambda: json_schema_to_grammar({"$ref": "#/nowhere"}),
        lambda: Llama("/nowhere.gguf"),
        lambda: llm.create_chat_completion(user * 500),
    ):
        try:
            wrong()
        except LlamaCppError:
            pass
        else:
            raise SystemExit("no error")
    llm.create_chat_completion(user, tools=tools, max_tokens=2)
"""


def test_nothing_is_ever_written_to_stdout(run_python, smollm2):
    """Neither by Python nor by the libraries: the child's descriptor 1 is a pipe that stays empty."""
    done = run_python(_NOISE, str(smollm2), "{}")
    assert (done.returncode, done.stdout) == (0, "")
    assert "Traceback" not in done.stderr


def test_verbose_writes_to_stderr_alone(run_python, smollm2):
    done = run_python(_NOISE, str(smollm2), "{'verbose': True}")
    assert (done.returncode, done.stdout) == (0, "")
    assert "llama_model_loader" in done.stderr or "llama_context" in done.stderr
    assert not any(line.startswith(" ") and not line.strip() for line in done.stderr.splitlines())


def test_verbose_leaves_a_program_s_own_logging_alone(run_python, smollm2):
    done = run_python(
        "import logging, sys\nlogging.basicConfig(level=logging.ERROR, format='mine %(message)s')\nfrom llama_cpp import Llama\n"
        "Llama(sys.argv[1], vocab_only=True, verbose=True).close()\nprint(logging.getLogger('llama_cpp').handlers)",
        str(smollm2),
    )
    assert done.stdout == "[]\n"
    assert all(line.startswith("mine ") for line in done.stderr.splitlines())


def test_native_messages_are_log_records(smollm2, caplog):
    from llama_cpp import Llama

    with caplog.at_level(logging.DEBUG, logger="llama_cpp"):
        Llama(smollm2, n_ctx=256).close()
    records = [record for record in caplog.records if record.name == "llama_cpp.native"]
    assert {logging.INFO} <= {record.levelno for record in records}
    assert any("SmolLM2" in record.getMessage() for record in records)
    for record in records:
        assert "\n" not in record.getMessage() and record.getMessage().strip()


def test_messages_of_common_are_log_records(caplog, llama_source):
    """With patches/0001-common-log-callback.patch, which the built libraries have."""
    from llama_cpp.chat.templates import ChatParser, ChatTemplates
    from llama_cpp.errors import ChatParseError

    source = (llama_source / "models" / "templates" / "openai-gpt-oss-120b.jinja").read_text(encoding="utf-8")
    prompt = ChatTemplates(None, template=source).apply({"messages": [{"role": "user", "content": "Hi"}]})
    with caplog.at_level(logging.DEBUG, logger="llama_cpp"), pytest.raises(ChatParseError):
        ChatParser(prompt.format).parse("no channel at all")
    records = [record for record in caplog.records if record.name.startswith("llama_cpp.native.common")]
    assert any(record.levelno == logging.WARNING for record in records)


@pytest.fixture
def lines(caplog):
    """A LineJoiner, and what it logged so far as (level, text)."""
    target = logging.getLogger("test_loader.lines")
    caplog.set_level(logging.DEBUG, logger=target.name)
    return LineJoiner(target), lambda: [(r.levelno, r.getMessage()) for r in caplog.records if r.name == target.name]


INFO, WARN, ERROR, CONT = (
    ggml.GGML_LOG_LEVEL_INFO, ggml.GGML_LOG_LEVEL_WARN, ggml.GGML_LOG_LEVEL_ERROR, ggml.GGML_LOG_LEVEL_CONT
)  # fmt: skip


def test_continuations_join_their_line_at_its_level(lines):
    joiner, logged = lines
    joiner.write(WARN, "one")
    joiner.write(CONT, " two")
    assert logged() == []
    joiner.write(CONT, " three\n")
    assert logged() == [(logging.WARNING, "one two three")]


def test_several_lines_at_once_are_several_records(lines):
    joiner, logged = lines
    joiner.write(INFO, "one\n\n  two  \nthr")
    joiner.write(CONT, "ee\n")
    assert logged() == [(logging.INFO, "one"), (logging.INFO, "  two"), (logging.INFO, "three")]


def test_a_new_message_ends_an_unfinished_one_at_its_own_level(lines):
    joiner, logged = lines
    joiner.write(ERROR, "unfinished")
    joiner.write(INFO, "next\n")
    assert logged() == [(logging.ERROR, "unfinished"), (logging.INFO, "next")]


def test_a_continuation_of_nothing_is_a_message(lines):
    joiner, logged = lines
    joiner.write(CONT, "alone\n")
    assert logged() == [(logging.INFO, "alone")]


def test_percent_signs_are_text(lines):
    joiner, logged = lines
    joiner.write(INFO, "100 %s %d\n")
    assert logged() == [(logging.INFO, "100 %s %d")]


def test_pieces_of_two_threads_do_not_mix(lines):
    import threading

    joiner, logged = lines
    joiner.write(INFO, "main ")
    thread = threading.Thread(target=lambda: (joiner.write(WARN, "other "), joiner.write(CONT, "thread\n")))
    thread.start()
    thread.join()
    joiner.write(CONT, "thread\n")
    assert logged() == [(logging.WARNING, "other thread"), (logging.INFO, "main thread")]


# --- CUDA, without one ---


@pytest.mark.parametrize(
    "architecture, capability, runs",
    [
        # machine code: the same major version, from its minor on
        ("80-real", (8, 0), True), ("80-real", (8, 9), True), ("86-real", (8, 0), False), ("80-real", (9, 0), False),
        ("90-real", (8, 9), False), ("120-real", (12, 0), True), ("120-real", (12, 1), True), ("100-real", (12, 0), False),
        # PTX: anything newer
        ("80-virtual", (8, 0), True), ("80-virtual", (12, 0), True), ("90-virtual", (8, 9), False), ("86", (12, 0), True),
        ("120", (9, 0), False),
        # architecture specific: nothing else
        ("120a-real", (12, 0), True), ("120a-real", (12, 1), False), ("90a-virtual", (10, 0), False), ("90a", (9, 0), True),
        # family specific
        ("120f-real", (12, 1), True), ("120f-virtual", (12, 0), True), ("100f-virtual", (12, 0), False),
        ("121f-real", (12, 0), False),
    ],
)  # fmt: skip
def test_which_code_runs_on_which_gpu(architecture, capability, runs):
    assert backends._runs_on(architecture, capability) is runs


def test_a_cuda_plugin_without_a_driver_warns_and_uses_the_cpu(run_python, lib_dir, smollm2, tmp_path):
    try:
        from llama_cpp.capi import cuda_driver

        if cuda_driver.gpus():
            pytest.skip("this machine has a GPU")
    except cuda_driver.DriverError:
        pass
    folder, marker = _copy(lib_dir, tmp_path / "lib", leave_out="libggml-cuda"), tmp_path / "marker"
    _compile(_EVIL, folder / "libggml-cuda.so")
    done = run_python(
        """
import sys, warnings
from llama_cpp import Llama
from llama_cpp.capi.backends import report
from llama_cpp.errors import NoDeviceWarning
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    with Llama(sys.argv[1], n_ctx=256) as llm:
        llm.create_completion("Hi", max_tokens=1)
print(*(w.category.__name__ for w in caught), "|", caught[0].message)
print(*(path.name for path in report.skipped if "cuda" in path.name))
""",
        str(smollm2),
        LLAMA_CPP_LIB_PATH=str(folder),
        EVIL_MARKER=str(marker),
    )
    assert done.returncode == 0, done.stderr
    warned, skipped = done.stdout.splitlines()
    assert warned.startswith("NoDeviceWarning |") and "CPU" in warned and "driver" in warned
    assert skipped == "libggml-cuda.so"
    assert not marker.exists(), "without a driver the plugin is not even opened"


def test_a_gpu_the_plugin_was_not_compiled_for_is_refused(tmp_path):
    from llama_cpp.capi.cuda_driver import GPU
    from llama_cpp.errors import UnsupportedGPUError

    plugin = tmp_path / "libggml-cuda.so"
    (tmp_path / "libggml-cuda.json").write_text('{"architectures": ["120a-real", "90-virtual"], "cuda": "13.0"}')
    backends._check_architectures(plugin, [GPU(0, "RTX 5090", (12, 0)), GPU(1, "H100", (9, 0))])
    with pytest.raises(UnsupportedGPUError, match=r"8\.6") as caught:
        backends._check_architectures(plugin, [GPU(0, "RTX 5090", (12, 0)), GPU(1, "RTX 3090", (8, 6))])
    assert "RTX 3090" in str(caught.value) and "120a-real" in str(caught.value)
    assert "CUDA_VISIBLE_DEVICES" in caught.value.remedy


def test_the_sonames_are_there(lib_dir):
    for name in SONAMES.values():
        assert (lib_dir / name).exists(), name


def test_several_threads_load_once(run_python, lib_dir):
    done = run_python(
        """
import threading
from llama_cpp.capi import loader
from llama_cpp.capi.backends import report
barrier, seen = threading.Barrier(8), []
def run():
    barrier.wait()
    seen.append(id(loader.libraries()))
threads = [threading.Thread(target=run) for _ in range(8)]
[t.start() for t in threads]; [t.join() for t in threads]
print(len(set(seen)), len(report.loaded))
""",
        LLAMA_CPP_LIB_PATH=str(lib_dir),
    )
    assert done.stdout.startswith("1 "), done.stderr
