"""The documents: their links, names and commands exist, their sentences are short, and what guides tell people to type runs."""

from __future__ import annotations

import argparse
import ast
import builtins
import dataclasses
import functools
import importlib
import inspect
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import llama_cpp.errors
from documents import anchors, code, count_words, inline_code, paragraphs, sentences, split
from test_structure import ALLOWED, NAMES

# these tests are about a checkout; where a wheel is tested there is no distribution
distribution = pytest.importorskip("distribution")
importlib.import_module("distribution.__main__")
importlib.import_module("distribution.errors")

ROOT = Path(__file__).parents[1]
GUIDES = sorted((ROOT / "docs" / "guides").glob("*.md"))
#: What people read; the limit of words holds for all of it.
DOCUMENTS = [
    *sorted((ROOT / "docs").rglob("*.md")),
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "vendor/llama.cpp/README.md")),
]
MOST_WORDS = 30


def name_of(path: Path) -> str:
    """A document's path in the repository, for messages and the names of tests."""
    return path.relative_to(ROOT).as_posix()


each_document = pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)


def tracked() -> list[str]:
    """The repository's files."""
    if not (shutil.which("git") and (ROOT / ".git").exists()):
        pytest.skip("needs git and a clone of the repository")
    command = ["git", "-c", "safe.directory=*", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
    return [name for name in done.stdout.decode().split("\0") if name and (ROOT / name).exists()]


# --- sentences ---


@each_document
def test_sentences_are_short(path):
    for paragraph in paragraphs(split(path.read_text(encoding="utf-8"))[0]):
        for sentence in sentences(paragraph):
            assert count_words(sentence) <= MOST_WORDS, f"{count_words(sentence)} words: {sentence}"


def test_sentences_are_counted_as_people_do():
    """What the test above relies on."""
    text = "# A heading\n\n- One `two three` [four](five six).\n  Seven eight!\n- Nine\n\n"
    text += "| a | table |\n\n```\na block. of code\n```\n"
    found = [sentence for paragraph in paragraphs(split(text)[0]) for sentence in sentences(paragraph)]
    assert [count_words(sentence) for sentence in found] == [2, 3, 2, 1]


# --- links, paths and names ---


@each_document
def test_links_lead_somewhere(path):
    for target in re.findall(r"\]\(([^)\s]+)\)", "\n".join(split(path.read_text(encoding="utf-8"))[0])):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        there = (path.parent / file).resolve() if file else path
        assert there.exists(), f"{target}: no such file"
        if anchor:
            assert anchor in anchors(there), f"{target}: no such heading; there are {sorted(anchors(there))}"


#: Made by builds and by the vendor command, or found on users' machines; no part of the repository.
MADE = ("build/", "dist/", "llama_cpp/lib", "vendor/llama.cpp/source", "llama_cpp/licenses")
_FOLDERS = "llama_cpp|distribution|native|recipe|tests|tools|benchmarks|vendor|docs|build|dist|.ci"
_PATH = re.compile(rf"(?<![\w/.~$}}-])(?:{_FOLDERS.replace('.', chr(92) + '.')})/[\w./*-]*")
_FILE = re.compile(r"[\w-]+\.(?:py|md|cmake|cpp|h|toml|patch|sh)")
#: Names of programs and packages, which look like files.
PROGRAMS = {"llama.cpp", "whisper.cpp", "stable-diffusion.cpp"}


@each_document
def test_files_that_are_named_exist(path):
    files = tracked()
    names = {file.rpartition("/")[2] for file in files}
    for text in inline_code(split(path.read_text(encoding="utf-8"))[0]):
        if "=" in text and "/" in text.partition("=")[0]:
            continue
        for named in _PATH.findall(text):
            if not named.startswith(MADE):
                pattern = re.sub(r"\b[A-Z]{3,}\b(?!\.md)", "*", named.rstrip("/"))  # what readers put something in place of
                assert list(ROOT.glob(pattern)), f"`{text}`: there is no {named}"
        if _FILE.fullmatch(text) and text not in PROGRAMS:
            assert text in names, f"`{text}`: no file of the repository has this name"


@each_document
def test_python_names_exist(path):
    for text in inline_code(split(path.read_text(encoding="utf-8"))[0]):
        for named in re.findall(r"(?<![\w/.-])llama_cpp(?:\.\w+)+(?![\w/])", text):
            assert resolves(named), f"`{text}`: there is no {named}"
        for named in re.findall(r"(?<!\w)[A-Z]\w+(?:Error|Warning)(?!\w)", text):
            places = (llama_cpp.errors, distribution.errors, builtins)
            assert any(hasattr(place, named) for place in places), f"`{text}`: there is no {named}"


def resolves(named: str) -> bool:
    """Whether a dotted name is a module, or something in one, or a logger's name."""
    if named in LOGGERS:
        return True
    parts = named.split(".")
    for at in range(len(parts), 0, -1):
        try:
            found: object = importlib.import_module(".".join(parts[:at]))
        except ModuleNotFoundError:
            continue
        try:
            for part in parts[at:]:
                found = getattr(found, part)
        except AttributeError:
            return False
        return True
    return False


def test_names_that_do_not_exist_are_found():
    assert resolves("llama_cpp.errors.GrammarError") and resolves("llama_cpp.limits")
    assert not resolves("llama_cpp.errors.NoSuchError") and not resolves("llama_cpp.no_such_module")


@each_document
def test_variables_that_are_named_exist(path):
    read = "\n".join((ROOT / file).read_text("utf-8", "replace") for file in tracked() if not file.endswith((".md", ".patch")))
    for named in set(re.findall(r"\bLLAMA_CPP_[A-Z_]+", path.read_text(encoding="utf-8"))):
        assert re.search(rf"\b{named}\b", read), f"nothing reads {named}"


def test_documents_that_code_names_exist():
    for file in tracked():
        if not file.endswith((".md", ".patch")) and file != "tests/test_docs.py":
            for named in re.findall(r"(?<![\w/])docs/[\w./-]+\.md", (ROOT / file).read_text("utf-8", "replace")):
                assert (ROOT / named).exists() or named == "docs/gguf.md", f"{file}: there is no {named}"  # the latter is ggml's


# --- commands ---


def words_after(line: str, start: re.Match[str]) -> list[str]:
    """The words of one command, up to what the shell gives a meaning of its own."""
    rest = re.split(r"\s#|\"?\$\(|[|;&<>)`]", line[start.end() :])[0]
    try:
        return shlex.split(rest)
    except ValueError:
        return rest.split()


def check_distribution(words: list[str]) -> None:
    """Fails where `python -m distribution WORDS` names a command or an option that there is not."""
    parser, takes_value = distribution.__main__._parser(words), False
    for word in words:
        actions = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
        if word.startswith("-"):
            assert word in parser._option_string_actions, f"no option {word}"
            takes_value = parser._option_string_actions[word].nargs is None
        elif takes_value or not re.fullmatch(r"[a-z][a-z-]*", word):
            takes_value = False  # a value, or what readers put one in place of
        elif actions:
            assert word in actions[0].choices, f"no command {word}"
            parser = actions[0].choices[word]


def check_whole(words: list[str]) -> None:
    """Fails where `python -m distribution WORDS` would be refused: something is missing, or a value is of another kind."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "error", lambda self, message: pytest.fail(message))
        distribution.__main__._parser(words).parse_args(words)


def check_llama_cpp(words: list[str]) -> None:
    """Fails where `llama-cpp WORDS` names a command or an option that there is not."""
    import typer

    from llama_cpp.cli.app import app

    command = typer.main.get_command(app)
    if words and not words[0].startswith("-"):
        assert words[0] in command.commands, f"no command {words[0]}"
        command = command.commands[words[0]]
    known = {"--help", *(option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts))}
    for word in words:
        if word.startswith("-"):
            assert word.partition("=")[0] in known, f"no option {word}"


@each_document
def test_commands_exist(path):
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))
    blocks = {line for block in split(path.read_text(encoding="utf-8"))[1] for line in block.text.splitlines()}
    for line in code(path):
        starts = [*re.finditer(r"(?<![^\s(])[\w./]*python3? -m distribution(?=\s|$)", line)]
        if not starts and re.match(r"(?:vendor|toolkit|seed|channel|env) [a-z-]", line):  # what stands in backquotes without it
            starts = [re.match("", line)]
        for start in starts:
            words = words_after(line, start)
            try:
                check_distribution(words)
                if line in blocks and words:
                    check_whole(words)
            except (AssertionError, pytest.fail.Exception) as error:
                pytest.fail(f"{line.strip()}: {error}")
        for start in re.finditer(r"(?<![\w/.-])llama-cpp(?= +[a-z-]|$)", line):
            try:
                check_llama_cpp(words_after(line, start))
            except AssertionError as error:
                pytest.fail(f"{line.strip()}: {error}")
        if target := re.match(r"(?:\$ )?make ([a-z-]+)(?=\s|$)", line):
            assert target[1] in targets, f"{line}: the Makefile has no {target[1]}"


@each_document
def test_scripts_that_are_named_exist(path):
    for line in code(path):
        for start in re.finditer(r"(?<!\S)python3? ((?:benchmarks|tools)/\w+\.py)", line):
            for word in words_after(line, start):
                assert not word.startswith("--") or word in usage_of(start[1]), f"{line.strip()}: {start[1]} has no {word}"


@functools.cache
def usage_of(script: str) -> list[str]:
    """The words that a script of the repository says with --help."""
    done = subprocess.run([sys.executable, script, "--help"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return re.findall(r"[\w-]+", done.stdout)


def test_figures_have_their_command_date_and_machine():
    text = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in text.splitlines() if line.startswith("|")]
    assert rows[0] == ["what", "figure", "command", "date", "machine"] and len(rows) > 30
    assert text.count("\n| --- |") == 1, "one table"
    machines = set(re.findall(r"^- \*\*([^*]+)\*\*", text, re.M))
    for what, figure, command, date, machine in rows[2:]:
        assert re.search(r"[\d,.]+ of [\d,.]+ \S+: [\d.]+", figure), what
        assert re.fullmatch(r"`python benchmarks/.*`", command), what
        assert re.fullmatch(r"(\d+ )?(\w{3}|\w+ber) \d{4}", date), what
        assert machine in machines, what


@pytest.mark.parametrize(
    "words",
    [
        "vendor statuses",
        "vendor --hard",
        "channel publish --no-such-option",
        "no-such-command",
        "env creates",
        "toolkit --path",
        "channel --key k list",
    ],
)
def test_commands_that_do_not_exist_are_found(words):
    with pytest.raises(AssertionError):
        check_distribution(words.split())


@pytest.mark.parametrize("words", ["vendor update", "channel publish", "channel serve --port x", "verify"])
def test_commands_that_are_not_whole_are_found(words):
    with pytest.raises(pytest.fail.Exception):
        check_whole(words.split())


@pytest.mark.parametrize("words", ["chats", "chat --no-such-option", "--no-such-option"])
def test_commands_of_llama_cpp_that_do_not_exist_are_found(words):
    with pytest.raises(AssertionError):
        check_llama_cpp(words.split())


# --- what the reference leaves out ---


def reference(name: str) -> set[str]:
    """The words in backquotes of a document of the reference."""
    return {word for text in code(ROOT / "docs" / "reference" / name) for word in re.findall(r"[\w.-]+", text)}


def arguments_of(function) -> set[str]:
    kinds = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    return {name for name, one in inspect.signature(function).parameters.items() if one.kind not in kinds} - {"self"}


def test_every_argument_is_in_the_reference():
    from llama_cpp.engine.sampling_params import SamplingParams
    from llama_cpp.limits import Limits

    assert arguments_of(llama_cpp.Llama.__init__) <= reference("llama.md")
    public = {name for name, _ in inspect.getmembers(llama_cpp.Llama) if not name.startswith("_")}
    assert public <= reference("llama.md")
    assert {name for name in vars(llama_cpp.AsyncLlama) if not name.startswith("_")} <= reference("llama.md")
    asked = arguments_of(llama_cpp.Llama.create_completion) | arguments_of(llama_cpp.Llama.create_chat_completion)
    sampled = {field.name for field in dataclasses.fields(SamplingParams)} - {"thinking"}  # a chat format's own
    limits = {field.name for field in dataclasses.fields(Limits)}
    assert asked | sampled | limits <= reference("completions.md")


def test_what_is_said_to_be_missing_says_so():
    text = (ROOT / "docs" / "guides" / "from-llama-cpp-python.md").read_text(encoding="utf-8")
    assert "`from_pretrained`" in text.partition("## What is not there yet")[2].partition("\n## ")[0]
    with pytest.raises(llama_cpp.errors.InvalidArgumentError):
        llama_cpp.Llama.from_pretrained("a/b", "c")


def test_every_exception_is_in_the_reference():
    own = {name for name, one in vars(llama_cpp.errors).items() if isinstance(one, type) and one.__module__ == "llama_cpp.errors"}
    other = {
        name for name, one in vars(distribution.errors).items()
        if isinstance(one, type) and one.__module__ == "distribution.errors"
    }  # fmt: skip
    assert own | other <= reference("errors.md")


def test_every_logger_is_in_the_reference():
    assert reference("logging.md") >= LOGGERS
    found = set()
    for path in sorted((ROOT / "llama_cpp").rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        if not re.search(r"\b(?:logger|_log)\.\w+\(", text):
            continue  # it has one and says nothing
        found |= set(re.findall(r'getLogger\("([\w.]+)"\)', text))
        if "getLogger(__name__)" in text:
            found.add(".".join(path.relative_to(ROOT).with_suffix("").parts))
    assert found <= LOGGERS


LOGGERS = {
    "llama_cpp", "llama_cpp.native", "llama_cpp.native.common", "llama_cpp.native.mtmd", "llama_cpp.json_schema.compiler",
}  # fmt: skip


def test_every_variable_is_in_the_reference():
    read = set()
    for file in tracked():
        if file.startswith(("llama_cpp/", "distribution/")) and file.endswith(".py"):
            for node in ast.walk(ast.parse((ROOT / file).read_text(encoding="utf-8"))):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    read |= set(re.findall(r"^LLAMA_(?:CPP|ATTN)_[A-Z_]+$", node.value))
    inside = {
        "LLAMA_CPP_LIB",
        "LLAMA_CPP_INPUTS",
        "LLAMA_CPP_PACKAGES",
        "LLAMA_CPP_PWD",
        "LLAMA_CPP_HOME",
        "LLAMA_CPP_COMMIT",
        "LLAMA_CPP_SOURCE",
    }
    assert read - inside <= reference("environment-variables.md")


def test_every_command_is_in_the_reference():
    import typer

    from llama_cpp.cli.app import app

    text = (ROOT / "docs" / "reference" / "command-line.md").read_text(encoding="utf-8")
    for name, command in typer.main.get_command(app).commands.items():
        assert f"llama-cpp {name}" in text
        for parameter in command.params:
            assert any(f"`{option}" in text for option in parameter.opts), f"llama-cpp {name}: {parameter.opts}"
    for name in distribution.__main__._COMMANDS:
        assert f"python -m distribution {name}" in text, name
        parser = distribution.__main__._parser([name])
        actions = next(action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
        assert options(actions.choices[name]) <= set(re.findall(r"(?<![\w-])-{1,2}[\w-]+", text)), name


def options(parser: argparse.ArgumentParser) -> set[str]:
    """The long options of a command and of the commands below it."""
    found = {option for option in parser._option_string_actions if option.startswith("--")} - {"--help"}
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            found |= {option for below in action.choices.values() for option in options(below)}
    return found


def test_every_function_of_the_c_api_is_in_the_reference():
    header = (ROOT / "native" / "llama-common-c.h").read_text(encoding="utf-8")
    exported = set(re.findall(r"\b(llama_common_\w+)\(", header)) & set(
        re.findall(r"LLAMA_COMMON_C_API[^;]*?\b(llama_common_\w+)\(", header)
    )
    assert len(exported) > 30
    assert exported <= reference("c-api.md")


def test_the_index_names_every_document():
    text = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    for path in sorted((ROOT / "docs").rglob("*.md")):
        if path.name != "README.md":
            assert f"({path.relative_to(ROOT / 'docs').as_posix()})" in text, name_of(path)


# --- the drawing ---


def drawn() -> list[tuple[str, str]]:
    """The arrows of the drawing in architecture.md, from top to bottom: who imports whom."""
    text = (ROOT / "docs" / "explanation" / "architecture.md").read_text(encoding="utf-8")
    drawing = next(block for block in split(text)[1] if "──▶" in block.text)
    arrows = []
    for line in drawing.text.splitlines():
        if "──▶" in line:
            left, _, right = line.partition("──▶")
            importers, imported = (re.findall(r"\w+", side) for side in (left, right.strip().partition("  ")[0]))
            assert importers and imported, line
            arrows += [(one, other) for one in importers for other in imported]
    return arrows


def test_the_drawing_agrees_with_the_imports_that_are_allowed():
    arrows = drawn()
    assert {part for arrow in arrows for part in arrow} == set(ALLOWED)
    for one, other in arrows:
        assert other in ALLOWED[one], f"the drawing has {one} import {other}, and test_structure.py does not allow it"
    below = {part: {other for one, other in arrows if one == part} for part in ALLOWED}
    for _ in ALLOWED:
        below = {part: others | {far for near in others for far in below[near]} for part, others in below.items()}
    for part, allowed in ALLOWED.items():
        allowed = {name for name in allowed if not name.startswith(NAMES) or name in ALLOWED}
        assert allowed - {part} <= below[part], (
            f"{part} may import {sorted(allowed - below[part])}, which the drawing does not show"
        )


def test_the_drawing_is_read_from_top_to_bottom():
    """What imports stands above what is imported, so that arrows go one way."""
    arrows = drawn()
    for at, (_, imported) in enumerate(arrows):
        assert imported not in {importer for importer, _ in arrows[:at]}, imported


# --- guides ---

#: Runs the blocks of a guide one after the other, and compares what one prints with the block of text after it.
DRIVER = """
import ast, contextlib, io, sys
blocks = ast.literal_eval(open(sys.argv[1], encoding="utf-8").read())
names = {"__name__": "__main__"}
for line, code, expected in blocks:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile("\\n" * line + code, sys.argv[2], "exec"), names)
    if expected is not None and printed.getvalue().strip() != expected.strip():
        sys.exit(f"line {line} prints\\n{printed.getvalue()}\\nand not\\n{expected}")
"""


@pytest.mark.parametrize("path", GUIDES, ids=name_of)
def test_guides_begin_with_what_to_type(path):
    prose, blocks = split(path.read_text(encoding="utf-8"))
    assert blocks, "there is nothing to type"
    before = " ".join(line for line in prose[: blocks[0].line] if not line.startswith("#"))
    assert len(sentences(before.strip())) <= 2, "begin with what to type, and explain below"


@pytest.mark.model
@pytest.mark.parametrize("path", [path for path in GUIDES if "```python" in path.read_text(encoding="utf-8")], ids=name_of)
def test_what_guides_tell_people_to_type_runs(path, tmp_path, smollm2):
    """A guide's blocks of Python, in order, in a folder that has an adapter; each may use the names of those before."""
    blocks = split(path.read_text(encoding="utf-8"))[1]
    code = []
    for block, after in zip(blocks, [*blocks[1:], None]):
        if block.language == "python":
            follows = after is not None and after.language == "text" and after.line - block.line - block.text.count("\n") < 5
            code.append((block.line, block.text, after.text if follows else None))
    (tmp_path / "blocks").write_text(repr(code), encoding="utf-8")
    (tmp_path / "driver.py").write_text(DRIVER, encoding="utf-8")
    write_adapter(tmp_path / "adapter.gguf", smollm2)
    command = [sys.executable, "driver.py", "blocks", name_of(path)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=900, env={**os.environ})
    assert done.returncode == 0, done.stderr[-4000:]


def write_adapter(path: Path, model: Path) -> None:
    """A LoRA adapter of small random numbers for one matrix of the sample model."""
    import numpy as np
    from gguf import GGUFReader, GGUFWriter

    name = "blk.0.attn_q.weight"
    n_in, n_out = next(tensor.shape for tensor in GGUFReader(model).tensors if tensor.name == name)
    writer, numbers = GGUFWriter(path, "llama"), np.random.default_rng(0)
    writer.add_string("general.type", "adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", 4.0)
    for part, shape in ((".lora_a", (4, n_in)), (".lora_b", (n_out, 4))):
        writer.add_tensor(name + part, (numbers.standard_normal(shape) * 0.1).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
