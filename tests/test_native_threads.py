"""Our C API from many threads, watched by ThreadSanitizer: what the header allows at once shares nothing unguarded."""

from __future__ import annotations

import os
import subprocess

import pytest

from gguf_writer import tiny_model

_DRIVER = r"""
#include "llama-common-c.h"
#include "ggml-backend.h"

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

static void check(int status, const char * what) {
    if (status != LLAMA_COMMON_OK) {
        std::fprintf(stderr, "%s: status %d\n", what, status);
        std::exit(1);
    }
}

static llama_common_sampler * sampler_of(const llama_vocab * vocab, bool with_grammar, unsigned seed) {
    llama_sampler * grammar = nullptr;
    if (with_grammar) {
        check(llama_common_grammar_init(vocab, "{\"grammar\":\"root ::= [a-z]+\"}", nullptr, &grammar, nullptr), "grammar");
    }
    auto * after = llama_sampler_chain_init(llama_sampler_chain_default_params());
    llama_sampler_chain_add(after, llama_sampler_init_top_k(20));
    llama_sampler_chain_add(after, llama_sampler_init_dist(seed));
    llama_common_sampler * sampler = nullptr;
    check(llama_common_sampler_init(nullptr, grammar, after, 20, 0, &sampler, nullptr), "sampler");
    return sampler;
}

int main(int, char ** argv) {
    llama_log_set(llama_common_log_discard, nullptr);
    llama_common_log_set(llama_common_log_discard, nullptr);
    if (!ggml_backend_load(argv[2])) {
        return 2;
    }
    auto *       model    = llama_model_load_from_file(argv[1], llama_model_default_params());
    const auto * vocab    = llama_model_get_vocab(model);
    const int    n_vocab  = llama_vocab_n_tokens(vocab);
    auto         settings = llama_context_default_params();
    settings.n_ctx = 512, settings.n_seq_max = 4, settings.n_threads = settings.n_threads_batch = 1;
    auto *                    context = llama_init_from_model(model, settings);
    llama_common_decoder *    decoder = nullptr;
    llama_common_speculator * speculator = nullptr;
    check(llama_common_decoder_init(context, nullptr, 4, &decoder, nullptr), "decoder");
    check(llama_common_speculator_init("{\"types\":[\"ngram-simple\"],\"n_max\":4,\"ngram_size\":2}", context, nullptr, 4,
        &speculator, nullptr), "speculator");

    // what the engine's thread hands to helpers: copies of logits
    std::vector<std::vector<float>> copies(4, std::vector<float>(n_vocab, 0.5f));
    std::atomic<bool> done = false;
    std::vector<std::thread> others;
    for (int id = 0; id < 4; id++) {
        others.emplace_back([&, id] {
            auto * own = sampler_of(vocab, id % 2, id);
            while (!done) {
                llama_token token, top[3];
                float       values[3];
                if (argv[3][0] == 's') {
                    llama_common_get_logits(decoder, 0, copies[id].data(), nullptr);
                }
                int status = llama_common_sample_from(copies[id].data(), n_vocab, own, &token, nullptr);
                if (status == LLAMA_COMMON_OK) {
                    check(llama_common_top_logits(copies[id].data(), n_vocab, 3, top, values, nullptr), "top logits");
                }
            }
            llama_common_sampler_free(own);
        });
    }
    llama_common_chat * chat = nullptr;  // const after creation: any thread may use it
    check(llama_common_chat_init(nullptr, "{% for m in messages %}{{ m.role }}: {{ m.content }}{% endfor %}", "", "", nullptr,
        &chat, nullptr), "chat");
    for (int id = 0; id < 2; id++) {
        others.emplace_back([&, id] {
            while (!done) {
                char * text = nullptr;
                check(llama_common_chat_apply(chat, "{\"messages\":[{\"role\":\"user\",\"content\":\"hi\"}]}", nullptr, &text,
                    nullptr), "apply");
                llama_common_string_free(text);
                check(llama_common_chat_apply(chat,
                    "{\"messages\":[{\"role\":\"user\",\"content\":\"hi\"}],\"json_schema\":{\"type\":\"object\"},"
                                                    "\"collect_schemas\":true}", nullptr, &text, nullptr), "schema");
                llama_common_string_free(text);
                sampler_of(vocab, true, id), llama_common_commit();
            }
        });
    }

    std::vector<llama_common_sampler *> samplers;
    for (unsigned i = 0; i < 4; i++) {
        samplers.push_back(sampler_of(vocab, false, i));
    }
    std::atomic<int32_t> may_go_on = 1;  // another thread holds it back now and then
    others.emplace_back([&] {
        while (!done) {
            may_go_on = 1 - may_go_on;
            std::this_thread::yield();
        }
    });
    // a reader for each sequence, who is handed what the decoder goes on from
    llama_common_token_queue * token_queues[4];
    std::atomic<int>      n_read = 0, n_put = 0;
    for (auto & token_queue : token_queues) {
        check(llama_common_token_queue_init(&token_queue, nullptr), "token_queue");
        others.emplace_back([&] {
            llama_token tokens[8];
            while (!done || n_read < n_put) {
                n_read += llama_common_token_queue_take(token_queue, tokens, 8, 1);
            }
        });
    }
    llama_token           gone_on_from[3 * 4];
    llama_common_multi_step on = {(const int32_t *) &may_go_on, 3, false, token_queues, gone_on_from, 0, 0, false};
    for (int step = 0; step < std::atoi(argv[4]); step++) {
        llama_token  tokens[] = {10, 11, 12, 13}, sampled[4];
        llama_pos    positions[] = {step, step, step, step};
        llama_seq_id sequences[] = {0, 1, 2, 3};
        int8_t       outputs[] = {1, 1, 1, 1};
        int32_t      rows[] = {0, 1, 2, 3}, results[4], result = -1, counts[4];
        llama_token  drafted[16];
        check(llama_common_decode(decoder, 4, tokens, positions, sequences, outputs, &result, nullptr), "decode");
        on.begin = step % 2;
        check(llama_common_sample(decoder, 4, rows, samplers.data(), nullptr, false, sampled, results, &on, nullptr), "sample");
        n_put += 4 * std::min(on.n, on.n_most);
        const llama_token * last = on.begun || on.n == 0 ? sampled : gone_on_from + 4 * (on.n - 1);
        if (on.n > 0 && (std::memcmp(tokens, last, sizeof(tokens)) != 0 || positions[3] != step + on.n)) {
            std::puts("another batch");
        }
        if (on.begun) {
            check(llama_common_sample(decoder, 4, rows, samplers.data(), nullptr, false, sampled, results, nullptr, nullptr),
                "sample");
        }
        llama_memory_seq_rm(llama_get_memory(context), -1, step + 1, -1);
        check(llama_common_speculator_begin(speculator, step % 4, tokens, 4, nullptr), "begin");
        check(llama_common_speculator_draft(speculator, 4, sequences, 4, drafted, counts, nullptr), "draft");
    }
    done = true;
    for (auto & thread : others) {
        thread.join();
    }
    for (auto * sampler : samplers) {
        llama_common_sampler_free(sampler);
    }
    llama_common_chat_free(chat);
    llama_common_speculator_free(speculator);
    llama_common_decoder_free(decoder);
    llama_free(context);
    llama_model_free(model);
    for (auto * token_queue : token_queues) {
        llama_common_token_queue_free(token_queue);
    }
    std::puts(n_put > 0 && n_read == n_put ? "done" : "it never went on, or not all was read");
}
"""


@pytest.fixture(scope="module")
def driver(tmp_path_factory, root, lib_dir, llama_source):
    """Compiles all of native/ and the driver with ThreadSanitizer."""
    folder = tmp_path_factory.mktemp("threads")
    (folder / "driver.cpp").write_text(_DRIVER)
    (folder / "tiny.gguf").write_bytes(tiny_model().build())
    includes = ["native", *(llama_source / part for part in ("include", "ggml/include", "common", "vendor"))]
    libraries = ["libllama-common.so.0", "libllama.so.0", "libggml.so.0", "libggml-base.so.0"]
    command = ["g++", "-std=c++17", "-g", "-O1", "-fsanitize=thread", "-pthread", "-DLLAMA_COMMON_C_BUILD"]
    command += ['-DLLAMA_COMMON_C_COMMIT="x"', '-DLLAMA_COMMON_C_HEADERS_SHA256="x"', "-DLLAMA_COMMON_C_LOG_CALLBACK"]
    command += [str(path) for path in sorted((root / "native").glob("*.cpp"))] + [str(folder / "driver.cpp")]
    command += [f"-I{include}" for include in includes] + [f"-L{lib_dir}", "-Xlinker", f"-rpath={lib_dir}"]
    command += ["-Wl,--allow-shlib-undefined"] + [f"-l:{library}" for library in libraries]
    subprocess.run([*command, "-o", str(folder / "driver")], check=True, cwd=root)
    return [str(folder / "driver"), str(folder / "tiny.gguf"), str(lib_dir / "libggml-cpu-x64.so")]


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    options = {"TSAN_OPTIONS": "exitcode=99 halt_on_error=0 ignore_noninstrumented_modules=1", "GGML_NO_BACKTRACE": "1"}
    return subprocess.run(command, capture_output=True, text=True, timeout=600, check=False, env={**os.environ, **options})


@pytest.mark.slow
def test_no_data_races(driver):
    done = run([*driver, "own", "300"])
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr[-6000:]


@pytest.mark.slow
def test_a_decoder_in_two_threads_would_be_seen(driver):
    """The header allows one thread at a time."""
    done = run([*driver, "shared", "300"])
    assert "data race" in done.stderr and done.returncode != 0
