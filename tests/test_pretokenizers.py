"""Splitting text for a tokenizer: what std::regex finds, without its recursion, in time that grows with the text."""

from __future__ import annotations

import re
import shutil
import subprocess
import time

import pytest

from llama_cpp import Llama
from llama_cpp.errors import MetadataOverrideError

_HARNESS = r"""
#include "unicode-regex.h"
#include <cstdio>
#include <random>
#include <regex>
#include <string>

static const std::vector<std::string> expressions = {EXPRESSIONS};

int main(int argc, char ** argv) {
    std::mt19937 random(std::atoi(argv[1]));
    const int n_texts = std::atoi(argv[2]);
    const std::vector<std::string> parts = {"a", "b", "s", "t", "re", "A", "Z", "1", "23", " ", "  ", "\n", "\r\n", "\t", "'",
        "!", ".", "-", "_", "/", "(",
        "|", "$", "\xD0", "\xD1", "\xD2", "\xD3", "\xD4", "\xD5", "\x0B", "<sentinel:", "IMGIMG", "\x01"};
    int wrong = 0;
    for (int i = 0; i < n_texts; i++) {
        std::vector<std::string> some;
        for (int j = random() % 6; j >= 0; j--) { some.push_back(parts[random() % parts.size()]); }
        std::string text;
        for (int j = random() % 60; j >= 0; j--) { text += some[random() % some.size()]; }
        for (const auto & expression : expressions) {
            std::vector<size_t> expected, found;
            std::regex old(expression, std::regex::optimize | std::regex::nosubs);
            size_t start = 0;
            for (std::sregex_iterator it(text.begin(), text.end(), old), end; it != end; ++it) {
                if ((size_t) it->position() > start) { expected.push_back(it->position() - start); }
                if (it->length() > 0) { expected.push_back(it->length()); }
                start = it->position() + it->length();
            }
            if (start < text.size()) { expected.push_back(text.size() - start); }
            std::vector<uint32_t> characters, pattern;
            for (unsigned char c : text) { characters.push_back(c); }
            for (unsigned char c : expression) { pattern.push_back(c); }
            unicode_regex(pattern).split(characters.data(), characters.size(), found);
            if (found != expected && wrong++ < 5) { std::printf("%s\non %s\n", expression.c_str(), text.c_str()); }
        }
    }
    std::printf("%d wrong\n", wrong);
    return wrong != 0;
}
"""

#: What the engine puts in place of categories, in bytes.
_CATEGORIES = {
    "N": r"\xD1\x30-\x39", "L": r"\xD2\x41-\x5A\x61-\x7A",
    "P": r"\xD3\x21-\x23\x25-\x2A\x2C-\x2F\x3A-\x3B\x3F-\x40\\\x5B-\\\x5D\x5F\\\x7B\\\x7D",
    "M": r"\xD4", "S": r"\xD5\\\x24\\\x2B\x3C-\x3E\x5E\x60\\\x7C\\\x7E",
}  # fmt: skip


def expressions(source: str) -> list[str]:
    """Those of the engine's pre-tokenizers, as literals of C++, with sets of bytes for categories."""
    found = []
    for group in re.findall(r"regex_exprs = \{(.*?)\n\s*\};", source, re.DOTALL):
        code = "\n".join(line for line in group.splitlines() if not line.strip().startswith("//"))
        found += re.findall(r'"((?:[^"\\]|\\.)*)"', code)
    made = []
    for expression in dict.fromkeys(found):
        if not expression.isascii() or "Han" in expression or "AFMoE" in expression or "\\\\b" in expression:
            continue  # these have code of their own (std::regex is wrong about \b behind "(?="), or alphabets that are not bytes
        out, inside, at = "", False, 0
        while at < len(expression):
            category = re.match(r"\\\\p\{(\w)\w*\}", expression[at:])
            if category:
                # a literal ends behind each, lest what follows be read as another digit
                inner = re.sub(r"(\\x[0-9A-F]{2})", r'\1""', _CATEGORIES[category[1]])
                out += inner if inside else f"[{inner}]"
                at += category.end()
                continue
            escaped = expression[at : at + 4] if expression.startswith("\\\\", at) else ""
            step = len(re.match(r"\\\\\\.|\\\\.|\\.|.", expression[at:], re.DOTALL)[0])
            piece = expression[at : at + step]
            if not escaped:
                inside = True if piece == "[" else False if piece == "]" else inside
            out += piece
            at += step
        made.append(f'std::string("{out}")')
    return made


@pytest.fixture(scope="module")
def harness(tmp_path_factory, llama_source):
    if not shutil.which("c++"):
        pytest.skip("no C++ compiler")
    folder = tmp_path_factory.mktemp("regex")
    listed = expressions((llama_source / "src/llama-vocab.cpp").read_text())
    assert len(listed) > 25
    (folder / "harness.cpp").write_text(_HARNESS.replace("EXPRESSIONS", ",\n".join(listed)))
    command = ["c++", "-O1", "-std=c++17", f"-I{llama_source / 'src'}", "harness.cpp", "-o", "harness"]
    subprocess.run(command, cwd=folder, check=True)
    return folder / "harness"


@pytest.mark.parametrize("n", [60, pytest.param(20_000, marks=[pytest.mark.slow, pytest.mark.generator])])
def test_it_finds_what_std_regex_finds(harness, n):
    done = subprocess.run([harness, "1", str(n)], capture_output=True, text=True, errors="replace")
    assert done.returncode == 0 and done.stdout.strip() == "0 wrong", done.stdout


#: Pre-tokenizers whose expressions differ (tokenizer.ggml.pre).
PRE = [
    "default", "llama3", "jais-2", "dbrx", "deepseek-llm", "deepseek-v3", "deepseek-coder", "falcon", "starcoder",
    "gpt-2", "qwen2", "qwen35", "poro-chat", "chatglm-bpe", "viking", "tekken", "chameleon", "gpt-4o",
    "granite-embed-multi-97m", "tiny_aya", "kimi-k2", "superbpe", "bailingmoe", "seed-coder", "grok-2", "afmoe",
    "exaone-moe", "minicpm5", "youtu",
]  # fmt: skip
CHARACTERS = [
    " ", "\n", "\t", "A", "a", "1", "'", "!", "é", "É", "中", "か", "한", "\u00a0", "\u0301", "٣", "😀", "\u2028", "ไ",
    "_",
]  # fmt: skip


@pytest.mark.parametrize("pre", PRE)
def test_long_runs_of_one_kind_of_character(smollm2, run_with_stack, pre):
    """In a thread, whose stack is small; the time is that of the text's length."""
    at = PRE.index(pre)
    long_runs(smollm2, run_with_stack, pre, [" ", "A", CHARACTERS[at % len(CHARACTERS)]])


@pytest.mark.slow
@pytest.mark.generator
@pytest.mark.parametrize("pre", PRE)
def test_long_runs_of_every_kind_of_character(smollm2, run_with_stack, pre):
    long_runs(smollm2, run_with_stack, pre, CHARACTERS)


def long_runs(smollm2, run_with_stack, pre, characters):
    with Llama(smollm2, vocab_only=True, kv_overrides={"tokenizer.ggml.pre": pre}) as llm:
        trouble = []

        def work() -> None:
            for character in characters:
                for text in (character * 30_000, character * 30_000 + "x"):
                    before = time.monotonic()
                    tokens = llm.tokenize(text.encode(), add_bos=False)
                    if llm.detokenize(tokens).decode("utf-8", "replace").replace("\ufffd", "") not in (text, ""):
                        trouble.append(f"{character!r} comes back as something else")
                    if time.monotonic() - before > 20:
                        trouble.append(f"{character!r} takes {time.monotonic() - before:.1f} s")

        run_with_stack(256 * 1024, work)
        assert trouble == []


def test_whitespace_is_for_a_model_of_its_own(smollm2):
    """With another one the engine ends the process at the first space."""
    with pytest.raises(MetadataOverrideError, match="whitespace"):
        Llama(smollm2, vocab_only=True, kv_overrides={"tokenizer.ggml.pre": "whitespace"})
