"""Our C API from C, without Python: every function, its errors too, leaks nothing and touches no memory it may not."""

from __future__ import annotations

import os
import re
import shutil
import subprocess

import pytest

from gguf_writer import tiny_model

_DRIVER = r"""
#include "llama-common-c.h"
#include "ggml-backend.h"

#include <stdio.h>
#include <stdlib.h>
#include <math.h>
#include <string.h>

static char * error = NULL;

// what a call has to return; says where when it does not
#define EXPECT(status, call)                                                                     \
    do {                                                                                         \
        int got = (call);                                                                        \
        if (got != (status) || (got != 0) != (error != NULL)) {                                  \
            fprintf(stderr, "line %d: status %d, error %s\n", __LINE__, got, error ? error : "-"); \
            exit(1);                                                                             \
        }                                                                                        \
        llama_common_string_free(error);                                                         \
        error = NULL;                                                                            \
    } while (0)

#define OK LLAMA_COMMON_OK
#define BAD LLAMA_COMMON_INVALID_ARGUMENT

static const char * TOOLS =
    "\"tools\":[{\"type\":\"function\",\"function\":{\"name\":\"get_weather\",\"parameters\":{\"type\":\"object\","
    "\"properties\":{\"city\":{\"type\":\"string\"}},\"required\":[\"city\"]}}}]";
static const char * CALL = "<tool_call>\n{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Bern\"}}\n</tool_call>";

static void templates_of(const struct llama_model * model, const char * source) {
    struct llama_common_chat * chat = NULL;
    char * text = NULL;
    char request[4096];

    EXPECT(OK, llama_common_chat_init(model, source, "<s>", "</s>", NULL, &chat, &error));
    EXPECT(OK, llama_common_chat_describe(chat, &text, &error));
    llama_common_string_free(text);
    EXPECT(BAD, llama_common_chat_describe(NULL, &text, &error));
    EXPECT(BAD, llama_common_chat_describe(chat, NULL, &error));

    const char * wrong[] = {"", "{", "[]", "{}", "{\"messages\":5}", "{\"messages\":[{}]}",
        "{\"messages\":[{\"role\":\"user\"}]}",
        "{\"messages\":[],\"tools\":5}", "{\"messages\":[{\"role\":\"user\",\"content\":\"x\"}],\"tool_choice\":\"maybe\"}",
        "{\"messages\":[{\"role\":\"user\",\"content\":\"x\"}],\"now\":\"x\"}"};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        EXPECT(BAD, llama_common_chat_apply(chat, wrong[i], NULL, &text, &error));
    }
    EXPECT(BAD, llama_common_chat_apply(chat, NULL, NULL, &text, &error));
    EXPECT(BAD, llama_common_chat_apply(NULL, "{}", NULL, &text, &error));
    EXPECT(BAD, llama_common_chat_apply(chat, "{}", NULL, NULL, &error));
    llama_common_chat_apply(chat, "{}", NULL, NULL, NULL);  // an error nobody wants

    snprintf(request, sizeof request, "{\"messages\":[{\"role\":\"user\",\"content\":\"Weather?\"}],%s}", TOOLS);
    char * format = NULL;
    EXPECT(OK, llama_common_chat_apply(chat, request, NULL, &format, &error));

    struct llama_common_chat_parser * parser = NULL;
    EXPECT(OK, llama_common_chat_parser_init(format, &parser, &error));
    EXPECT(OK, llama_common_chat_parser_parse(parser, CALL, strlen(CALL), false, &text, &error));
    llama_common_string_free(text);
    for (size_t n = 0; n <= strlen(CALL); n += 7) {
        EXPECT(OK, llama_common_chat_parser_update(parser, CALL, n, true, &text, &error));
        llama_common_string_free(text);
    }
    EXPECT(BAD, llama_common_chat_parser_update(parser, NULL, 0, true, &text, &error));
    EXPECT(BAD, llama_common_chat_parser_update(NULL, "", 0, true, &text, &error));
    EXPECT(BAD, llama_common_chat_parser_update(parser, "", 0, true, NULL, &error));
    EXPECT(BAD, llama_common_chat_parser_parse(NULL, "", 0, true, &text, &error));
    EXPECT(BAD, llama_common_chat_parser_parse(parser, "", 0, true, NULL, &error));
    llama_common_chat_parser_free(parser);

    // a grammar that sleeps until its trigger
    if (model != NULL) {
        struct llama_sampler * sampler = NULL;
        EXPECT(OK, llama_common_grammar_init(llama_model_get_vocab(model), format, NULL, &sampler, &error));
        llama_sampler_free(sampler);
    }
    llama_common_string_free(format);
    llama_common_chat_free(chat);
}

static void broken_templates(void) {
    struct llama_common_chat * chat = NULL;
    char * text = NULL;
    const char * messages = "{\"messages\":[{\"role\":\"user\",\"content\":\"x\"}]}";

    EXPECT(LLAMA_COMMON_TEMPLATE_ERROR, llama_common_chat_init(NULL, "{% broken", NULL, NULL, NULL, &chat, &error));
    EXPECT(BAD, llama_common_chat_init(NULL, NULL, NULL, NULL, NULL, &chat, &error));
    EXPECT(BAD, llama_common_chat_init(NULL, "chatml", NULL, NULL, NULL, NULL, &error));

    const size_t size = 300000;
    char * large = malloc(size + 1);
    memset(large, 'x', size);
    large[size] = 0;
    EXPECT(LLAMA_COMMON_TEMPLATE_ERROR, llama_common_chat_init(NULL, large, NULL, NULL, NULL, &chat, &error));
    free(large);

    const char * refusing[] = {"{{ raise_exception('no') }}", "{{ nowhere() }}"};
    for (int i = 0; i < 2; i++) {
        EXPECT(OK, llama_common_chat_init(NULL, refusing[i], NULL, NULL, NULL, &chat, &error));
        EXPECT(LLAMA_COMMON_TEMPLATE_ERROR, llama_common_chat_apply(chat, messages, NULL, &text, &error));
        llama_common_chat_free(chat);
    }
    llama_common_chat_free(NULL);
}

static void parsers(void) {
    struct llama_common_chat_parser * parser = NULL;
    char * text = NULL;
    EXPECT(OK, llama_common_chat_parser_init("{}", &parser, &error));
    EXPECT(OK, llama_common_chat_parser_parse(parser, "hello", 5, false, &text, &error));
    llama_common_string_free(text);
    llama_common_chat_parser_free(parser);
    EXPECT(BAD, llama_common_chat_parser_init("{\"format\":999}", &parser, &error));
    EXPECT(BAD, llama_common_chat_parser_init("{\"parser\":\"junk\"}", &parser, &error));
    EXPECT(BAD, llama_common_chat_parser_init("{\"reasoning_format\":\"junk\"}", &parser, &error));
    EXPECT(BAD, llama_common_chat_parser_init("[", &parser, &error));
    EXPECT(BAD, llama_common_chat_parser_init(NULL, &parser, &error));
    EXPECT(BAD, llama_common_chat_parser_init("{}", NULL, &error));
    llama_common_chat_parser_free(NULL);
}

static void schemas(void) {
    struct llama_common_chat * chat = NULL;
    char * text = NULL;
    EXPECT(OK, llama_common_chat_init(NULL, "{% for m in messages %}{{ m.content }}{% endfor %}", "", "", NULL, &chat, &error));
    /* one that is read, and ones of which parts are not: a reference to nowhere in the middle, no type, nested deeply */
    const char * schemas[] = {
        "{\"type\":\"object\",\"properties\":{\"a\":{\"type\":\"string\"}}}",
        "{\"properties\":{\"a\":{\"$ref\":\"#/nowhere\"},\"b\":{\"anyOf\":[{\"$ref\":\"#\"},{\"$ref\":\"#/properties/c\"}]},\"c\":{\"type\":5},\"d\":false}}",
        "{\"$ref\":\"#\"}",
        "{\"allOf\":[{\"$ref\":\"#/$defs/a\"},{\"enum\":5}],\"$defs\":{\"a\":{\"allOf\":[{\"$ref\":\"#/$defs/a\"}]}}}",
    };
    for (size_t i = 0; i < sizeof(schemas) / sizeof(*schemas); i++) {
        char request[1000];
        snprintf(request, sizeof(request),
            "{\"messages\":[{\"role\":\"user\",\"content\":\"x\"}],\"collect_schemas\":true,\"json_schema\":%s}", schemas[i]);
        EXPECT(OK, llama_common_chat_apply(chat, request, NULL, &text, &error));
        if (strstr(text, "\"schemas\"") == NULL) { printf("no schemas\n"); exit(1); }
        llama_common_string_free(text);
    }
    /* without it llama.cpp's own conversion is as it was */
    EXPECT(LLAMA_COMMON_TEMPLATE_ERROR, llama_common_chat_apply(
        chat, "{\"messages\":[{\"role\":\"user\",\"content\":\"x\"}],\"json_schema\":{\"type\":\"nonsense\"}}", NULL, &text,
        &error));
    llama_common_chat_free(chat);
}

static bool stops(void * data) { return ++*(int *) data > 1; }

// What costs too much ends, with its memory given back.
static void limits_of(const struct llama_vocab * vocab) {
    struct llama_common_chat * chat = NULL;
    struct llama_sampler * sampler = NULL;
    char * text = NULL;
    const char * request = "{\"messages\":[{\"role\":\"user\",\"content\":\"x\"}]}";
    const char * loop = "{% for a in range(3000) %}{% for b in range(3000) %}{% for c in range(3000) %}x"
        "{% endfor %}{% endfor %}{% endfor %}";
    struct llama_common_limits bytes = {5, 1000, 0, 0, NULL, NULL};
    struct llama_common_limits values = {5, 0, 100, 0, NULL, NULL};
    struct llama_common_limits time = {0.05, 0, 0, 0, NULL, NULL};
    int asked = 0;
    struct llama_common_limits stop = {60, 0, 0, 0, stops, &asked};

    EXPECT(OK, llama_common_chat_init(NULL, "{{ 'x' * 100000 }}", NULL, NULL, NULL, &chat, &error));
    EXPECT(LLAMA_COMMON_LIMIT_REACHED, llama_common_chat_apply(chat, request, &bytes, &text, &error));
    EXPECT(OK, llama_common_chat_apply(chat, request, NULL, &text, &error));
    llama_common_string_free(text);
    llama_common_chat_free(chat);
    EXPECT(LLAMA_COMMON_LIMIT_REACHED, llama_common_chat_init(NULL, "{{ range(100000) | length }}", NULL, NULL, &values, &chat,
        &error));
    EXPECT(LLAMA_COMMON_LIMIT_REACHED, llama_common_chat_init(NULL, loop, NULL, NULL, &time, &chat, &error));
    EXPECT(LLAMA_COMMON_STOPPED, llama_common_chat_init(NULL, loop, NULL, NULL, &stop, &chat, &error));

    struct llama_common_limits stacks = {5, 0, 0, 40, NULL, NULL};
    const char * ambiguous =
        "{\"grammar\":\"root ::= a a a a a a a a a a a a a a a a a a a a\\na ::= \\\"x\\\"? \\\"x\\\"? \\\"x\\\"?\"}";
    EXPECT(LLAMA_COMMON_LIMIT_REACHED, llama_common_grammar_init(vocab, ambiguous, &stacks, &sampler, &error));
    EXPECT(OK, llama_common_grammar_init(vocab, "{\"grammar\":\"root ::= [a-z]{5000,6000}\"}", &stacks, &sampler, &error));
    llama_sampler_free(sampler);
    // the limit was this call's: the engine's own functions throw nothing at who calls them in the same thread
    sampler = llama_sampler_init_grammar(vocab, "root ::= a a a a a a a a a a a a a a a a a a a a\na ::= \"x\"? \"x\"? \"x\"?",
        "root");
    if (sampler == NULL) {
        exit(1);
    }
    llama_sampler_free(sampler);
    EXPECT(LLAMA_COMMON_GRAMMAR_ERROR, llama_common_grammar_init(vocab, "{\"grammar\":\"root ::= [a-z]{3,2}\"}", NULL, &sampler,
        &error));
}

static void vocabulary(const struct llama_vocab * vocab) {
    llama_token tokens[16];
    char piece[16];
    int32_t n = 0;
    struct llama_sampler * sampler = NULL;
    const char * breakers[] = {"a"};
    EXPECT(OK, llama_common_tokenize(vocab, "hello", 5, tokens, 16, true, false, &n, &error));
    EXPECT(BAD, llama_common_tokenize(NULL, "hello", 5, tokens, 16, true, false, &n, &error));
    EXPECT(BAD, llama_common_tokenize(vocab, NULL, 5, tokens, 16, true, false, &n, &error));
    EXPECT(BAD, llama_common_tokenize(vocab, "hello", 5, tokens, 16, true, false, NULL, &error));
    EXPECT(OK, llama_common_token_to_piece(vocab, tokens[0], piece, 16, true, &n, &error));
    EXPECT(BAD, llama_common_token_to_piece(NULL, 0, piece, 16, true, &n, &error));
    EXPECT(BAD, llama_common_token_to_piece(vocab, 0, piece, 16, true, NULL, &error));
    EXPECT(OK, llama_common_dry_init(vocab, 1, 1.75f, 2, 64, breakers, 1, &sampler, &error));
    llama_sampler_free(sampler);
    EXPECT(BAD, llama_common_dry_init(NULL, 1, 1.75f, 2, 64, breakers, 1, &sampler, &error));
    EXPECT(BAD, llama_common_dry_init(vocab, 1, 1.75f, 2, 64, breakers, 1, NULL, &error));
}

static struct llama_sampler * greedy(void) {
    struct llama_sampler * chain = llama_sampler_chain_init(llama_sampler_chain_default_params());
    llama_sampler_chain_add(chain, llama_sampler_init_greedy());
    return chain;
}

static struct llama_sampler * penalties(const struct llama_vocab * vocab) {
    struct llama_sampler * chain = llama_sampler_chain_init(llama_sampler_chain_default_params());
    llama_sampler_chain_add(chain, llama_sampler_init_penalties(llama_vocab_n_tokens(vocab), 8, 1.5f, 0.0f, 0.0f));
    return chain;
}

static void sampling(const struct llama_model * model, struct llama_context * context) {
    const struct llama_vocab * vocab = llama_model_get_vocab(model);
    struct llama_sampler * grammar = NULL;
    llama_token token = 0;

    limits_of(vocab);
    vocabulary(vocab);
    EXPECT(LLAMA_COMMON_GRAMMAR_ERROR, llama_common_grammar_init(vocab, "{\"grammar\":\"root ::= nowhere\"}", NULL, &grammar,
        &error));
    EXPECT(LLAMA_COMMON_GRAMMAR_ERROR, llama_common_grammar_init(vocab, "{\"grammar\":\"root ::= root\"}", NULL, &grammar,
        &error));
    EXPECT(BAD, llama_common_grammar_init(vocab, "{\"grammar\":5}", NULL, &grammar, &error));
    EXPECT(BAD, llama_common_grammar_init(vocab,
        "{\"grammar\":\"root ::= [a]\",\"grammar_lazy\":true,\"grammar_triggers\":[{\"type\":99}]}", NULL, &grammar, &error));
    EXPECT(BAD, llama_common_grammar_init(vocab, NULL, NULL, &grammar, &error));
    EXPECT(BAD, llama_common_grammar_init(NULL, "{\"grammar_lazy\":true}", NULL, &grammar, &error));
    EXPECT(BAD, llama_common_grammar_init(vocab, "{}", NULL, NULL, &error));
    EXPECT(OK, llama_common_grammar_init(NULL, "{\"grammar\":\"root ::= [a]\"}", NULL, &grammar, &error));
    llama_sampler_free(grammar);
    EXPECT(OK, llama_common_grammar_init(NULL, "{\"grammar\":\"root ::= <|a|>\"}", NULL, &grammar, &error));
    EXPECT(BAD, llama_common_thinking_init(vocab, "{}", 5, NULL, NULL, &grammar, &error));
    EXPECT(BAD, llama_common_thinking_init(vocab, "{}", 5, NULL, llama_sampler_init_greedy(), &grammar, &error));
    EXPECT(OK, llama_common_thinking_init(vocab,
        "{\"thinking_start_tag\":\"<think>\",\"thinking_end_tags\":[\"</think>\"],\"generation_prompt\":\"<think>\"}", 0,
        "enough", llama_sampler_init_greedy(), &grammar, &error));
    llama_sampler_free(grammar);

    struct llama_common_top_k * top_k = NULL;
    EXPECT(OK, llama_common_top_k_init(2, &top_k, &error));
    EXPECT(BAD, llama_common_top_k_init(2, NULL, &error));
    if (llama_common_top_k_configs(top_k)[1].seq_id != 1) {
        exit(1);
    }
    llama_common_top_k_free(top_k);
    llama_common_top_k_free(NULL);

    struct llama_common_decoder * decoder = NULL;
    EXPECT(OK, llama_common_decoder_init(context, NULL, 1, &decoder, &error));
    EXPECT(BAD, llama_common_decoder_init(NULL, NULL, 1, &decoder, &error));
    EXPECT(BAD, llama_common_decoder_init(context, NULL, 1, NULL, &error));

    struct llama_common_sampler * sampler = NULL;
    EXPECT(OK, llama_common_grammar_init(vocab, "{\"grammar\":\"root ::= [a-z]+\"}", NULL, &grammar, &error));
    EXPECT(BAD, llama_common_sampler_init(NULL, grammar, NULL, 1, 0, &sampler, &error));
    EXPECT(OK, llama_common_grammar_init(vocab, "{\"grammar\":\"root ::= [a-z]+\"}", NULL, &grammar, &error));
    EXPECT(OK, llama_common_sampler_init(penalties(vocab), grammar, greedy(), 1, 0, &sampler, &error));

    llama_token  prompt[]    = {1, 70, 80};
    llama_pos    positions[] = {0, 1, 2};
    llama_seq_id sequences[] = {0, 0, 0};
    int8_t       outputs[]   = {0, 0, 1};
    int32_t      row = 0, result = -1;
    EXPECT(OK, llama_common_decode(decoder, 3, prompt, positions, sequences, outputs, &result, &error));
    if (result != 0 || llama_common_decoder_on_device(decoder)) {
        exit(1);
    }
    EXPECT(OK, llama_common_sampler_accept(sampler, prompt, 3, &error));
    EXPECT(BAD, llama_common_sampler_accept(NULL, prompt, 3, &error));
    EXPECT(OK, llama_common_sample(decoder, 1, &row, &sampler, NULL, false, &token, &result, NULL, &error));
    if (result != OK) {
        exit(1);
    }
    int32_t beyond = 1;
    EXPECT(OK, llama_common_sample(decoder, 1, &beyond, &sampler, NULL, false, &token, &result, NULL, &error));
    if (result != BAD) {
        exit(1);
    }
    EXPECT(BAD, llama_common_sample(NULL, 1, &row, &sampler, NULL, false, &token, &result, NULL, &error));

    const int32_t n_vocab = llama_vocab_n_tokens(vocab);
    float * logits = malloc(n_vocab * sizeof(float));
    float   top_logits[3];
    llama_token top[3];
    EXPECT(OK, llama_common_get_logits(decoder, 0, logits, &error));
    EXPECT(BAD, llama_common_get_logits(decoder, 1, logits, &error));
    float * copies[] = {malloc(n_vocab * sizeof(float))};
    EXPECT(OK, llama_common_sample(decoder, 1, &row, &sampler, copies, false, &token, &result, NULL, &error));
    if (result != OK || memcmp(copies[0], logits, n_vocab * sizeof(float)) != 0) {
        exit(1);
    }
    free(copies[0]);
    EXPECT(BAD, llama_common_get_logits(decoder, 0, NULL, &error));
    EXPECT(OK, llama_common_sample_from(logits, n_vocab, sampler, &token, &error));
    EXPECT(BAD, llama_common_sample_from(NULL, n_vocab, sampler, &token, &error));
    EXPECT(OK, llama_common_top_logits(logits, n_vocab, 3, top, top_logits, &error));
    EXPECT(BAD, llama_common_top_logits(logits, n_vocab, n_vocab + 1, top, top_logits, &error));
    EXPECT(BAD, llama_common_top_logits(NULL, n_vocab, 3, top, top_logits, &error));
    for (int32_t i = 1; i < n_vocab; i++) {
        logits[i] = NAN;
    }
    EXPECT(LLAMA_COMMON_INTERNAL_ERROR, llama_common_top_logits(logits, n_vocab, 3, top, top_logits, &error));
    EXPECT(OK, llama_common_get_logits(decoder, 0, logits, &error));
    llama_common_sampler_free(sampler);

    // a grammar that is at its end cannot go on: what the sampler throws comes back as an error
    EXPECT(OK, llama_common_grammar_init(vocab, "{\"grammar\":\"root ::= \\\"\\u2603\\u2603\\\"\"}", NULL, &grammar, &error));
    EXPECT(OK, llama_common_sampler_init(NULL, grammar, greedy(), 1, 0, &sampler, &error));
    int status = OK;
    for (int i = 0; i < 20 && status == OK; i++) {
        status = llama_common_sample_from(logits, n_vocab, sampler, &token, &error);
    }
    EXPECT(status, status);
    llama_common_sampler_free(sampler);
    llama_common_sampler_free(NULL);
    free(logits);
    llama_common_decoder_free(decoder);
    llama_common_decoder_free(NULL);
    llama_memory_clear(llama_get_memory(context), true);
}

static void drafts(struct llama_context * context) {
    struct llama_common_speculator * speculator = NULL;
    EXPECT(OK, llama_common_speculator_init("{\"types\":[\"ngram-simple\"],\"n_max\":4,\"ngram_size\":2}", context, NULL, 2,
        &speculator, &error));
    struct llama_common_speculator * none = NULL;
    EXPECT(BAD, llama_common_speculator_init("{\"types\":[\"nothing\"]}", context, NULL, 2, &none, &error));
    EXPECT(BAD, llama_common_speculator_init("{}", context, NULL, 2, &none, &error));
    EXPECT(BAD, llama_common_speculator_init("{\"types\":[\"draft-simple\"]}", context, NULL, 2, &none, &error));
    EXPECT(BAD, llama_common_speculator_init("{\"types\":[\"ngram-simple\"]}", NULL, NULL, 2, &none, &error));

    llama_token tokens[] = {5, 6, 7, 8, 9, 10, 11, 5, 6, 7}, drafted[8];
    int32_t     sequences[] = {1, 0}, counts[2];
    EXPECT(OK, llama_common_speculator_begin(speculator, 1, tokens, 10, &error));
    EXPECT(OK, llama_common_speculator_begin(speculator, 0, tokens, 1, &error));
    EXPECT(BAD, llama_common_speculator_begin(speculator, 2, tokens, 1, &error));
    EXPECT(BAD, llama_common_speculator_begin(speculator, 0, NULL, 1, &error));
    EXPECT(OK, llama_common_speculator_draft(speculator, 2, sequences, 4, drafted, counts, &error));
    if (counts[0] != 4 || drafted[0] != 8 || counts[1] != 0) {
        exit(1);
    }
    EXPECT(OK, llama_common_speculator_accept(speculator, 1, drafted, 3, &error));
    EXPECT(OK, llama_common_speculator_accept(speculator, 1, drafted, 4, &error));
    EXPECT(BAD, llama_common_speculator_accept(speculator, -1, drafted, 4, &error));
    EXPECT(OK, llama_common_speculator_process(speculator, 1, tokens, tokens, sequences, &error));
    EXPECT(BAD, llama_common_speculator_process(NULL, 1, tokens, tokens, sequences, &error));
    EXPECT(BAD, llama_common_speculator_draft(NULL, 1, sequences, 4, drafted, counts, &error));
    llama_common_speculator_free(speculator);
    llama_common_speculator_free(NULL);
}

static void vectors_of(struct llama_model * model, struct llama_context_params settings) {
    const int32_t     lengths[] = {3, 1, 2};
    const llama_token tokens[]  = {5, 6, 7, 8, 9, 10};
    const size_t      width     = llama_model_n_embd_out(model);
    int32_t           status    = -99;
    const enum llama_pooling_type poolings[] = {LLAMA_POOLING_TYPE_NONE, LLAMA_POOLING_TYPE_MEAN, LLAMA_POOLING_TYPE_LAST};
    for (int i = 0; i < 3; i++) {
        settings.embeddings   = true;
        settings.pooling_type = poolings[i];
        settings.n_seq_max    = 3;
        settings.n_batch = settings.n_ubatch = 18;  // the engine wants a multiple of n_seq_max
        settings.kv_unified   = true;
        struct llama_context * context = llama_init_from_model(model, settings);
        const size_t n_floats = (i == 0 ? 6 : 3) * width;
        float *      vectors  = calloc(n_floats, sizeof(float));
        EXPECT(OK, llama_common_embed(context, 3, lengths, tokens, vectors, n_floats, &status, &error));
        if (status != 0 || vectors[n_floats - 1] == 0) {
            exit(1);
        }
        EXPECT(OK, llama_common_embed(context, 1, lengths, tokens, vectors, (i == 0 ? 3 : 1) * width, &status, &error));
        EXPECT(BAD, llama_common_embed(context, 3, lengths, tokens, vectors, n_floats - 1, &status, &error));
        EXPECT(BAD, llama_common_embed(context, 3, lengths, tokens, NULL, n_floats, &status, &error));
        EXPECT(BAD, llama_common_embed(context, 3, NULL, tokens, vectors, n_floats, &status, &error));
        EXPECT(BAD, llama_common_embed(context, 3, lengths, NULL, vectors, n_floats, &status, &error));
        EXPECT(BAD, llama_common_embed(NULL, 3, lengths, tokens, vectors, n_floats, &status, &error));
        // a token that does not exist is the engine's error
        EXPECT(OK, llama_common_embed(context, 1, lengths, (llama_token[]) {5, -7, 5}, vectors, (i == 0 ? 3 : 1) * width, &status,
            &error));
        if (status == 0) {
            exit(1);
        }
        free(vectors);
        llama_free(context);
    }
}

static void measuring(const char * path) {
    struct llama_model_params   of_model   = llama_model_default_params();
    struct llama_context_params of_context = llama_context_default_params();
    char * text = NULL;
    EXPECT(OK, llama_common_measure(path, &of_model, &of_context, &text, &error));
    if (!strstr(text, "\"context\"")) {
        exit(1);
    }
    llama_common_string_free(text);
    EXPECT(LLAMA_COMMON_INTERNAL_ERROR, llama_common_measure("/nowhere.gguf", &of_model, &of_context, &text, &error));
    EXPECT(BAD, llama_common_measure(path, NULL, &of_context, &text, &error));
}

int main(int argc, char ** argv) {
    (void) argc;
    llama_log_set(llama_common_log_discard, NULL);
    llama_common_log_set(llama_common_log_discard, NULL);
    if (!strlen(llama_common_commit()) || strlen(llama_common_headers_sha256()) != 64) {
        return 1;
    }
    llama_common_string_free(NULL);
    if (!ggml_backend_load(argv[2])) {
        return 2;
    }
    struct llama_model_params parameters = llama_model_default_params();
    struct llama_model * model = llama_model_load_from_file(argv[1], parameters);
    struct llama_context_params settings = llama_context_default_params();
    settings.n_ctx = 64;
    settings.n_batch = settings.n_ubatch = 16;
    settings.n_threads = settings.n_threads_batch = 1;
    struct llama_context * context = llama_init_from_model(model, settings);
    if (context == NULL) {
        return 3;
    }
    FILE * file = fopen(argv[3], "rb");
    static char source[1 << 16];
    source[fread(source, 1, sizeof source - 1, file)] = 0;
    fclose(file);

    for (int i = 0; i < atoi(argv[4]); i++) {
        templates_of(NULL, source);
        templates_of(model, source);
        broken_templates();
        parsers();
        schemas();
        sampling(model, context);
        drafts(context);
        vectors_of(model, settings);
        measuring(argv[1]);
    }
    llama_common_log_set(NULL, NULL);
    llama_free(context);
    llama_model_free(model);
#ifdef LEAK
    source[0] = *(char *) malloc(17);  // to see that leaks are seen
#endif
    puts("done");
    return 0;
}
"""


@pytest.fixture(scope="module")
def driver(tmp_path_factory, root, lib_dir, llama_source):
    """Compiles the driver, with compiler options to try."""
    folder = tmp_path_factory.mktemp("driver")
    (folder / "driver.c").write_text(_DRIVER)
    (folder / "tiny.gguf").write_bytes(tiny_model().build())
    template = llama_source / "models" / "templates" / "Qwen-Qwen2.5-7B-Instruct.jinja"

    def build(name: str, *options: str) -> list[str]:
        program = folder / name
        includes = [root / "native", llama_source / "include", llama_source / "ggml" / "include"]
        libraries = ["libllama-common-c.so.0", "libllama.so.0", "libggml.so.0", "libggml-base.so.0"]
        command = ["gcc", "-g", "-O1", "-Wall", "-Werror", *options, str(folder / "driver.c"), "-o", str(program)]
        command += [f"-I{include}" for include in includes] + [f"-L{lib_dir}", "-Xlinker", f"-rpath={lib_dir}"]
        command += ["-Wl,--allow-shlib-undefined"] + [f"-l:{library}" for library in libraries]
        subprocess.run(command, check=True)
        # the plainest CPU code: valgrind knows no AVX-512
        return [str(program), str(folder / "tiny.gguf"), str(lib_dir / "libggml-cpu-x64.so"), str(template)]

    return build


def _run(command: list[str], **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=900, check=False, env={**os.environ, **env})


def test_the_header_is_c(driver):
    """Compiles as plain C11, without a warning."""
    driver("plain", "-std=c11", "-Wextra", "-Wpedantic")


def test_no_leaks_and_no_double_frees(driver):
    """LeakSanitizer and AddressSanitizer's allocator, over 20 rounds."""
    done = _run([*driver("sanitized", "-fsanitize=address"), "20"], ASAN_OPTIONS="detect_leaks=1:exitcode=99")
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr[-4000:]


def test_the_leak_check_sees_a_leak(driver):
    done = _run([*driver("leaking", "-fsanitize=address", "-DLEAK"), "1"], ASAN_OPTIONS="detect_leaks=1:exitcode=99")
    assert done.returncode == 99 and "17 byte(s)" in done.stderr


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("valgrind") is None, reason="valgrind is not installed; the sanitizer above sees leaks too")
def test_no_invalid_access(driver):
    """valgrind also watches the code of the libraries, which the sanitizer does not."""
    command = ["valgrind", "--leak-check=full", "--errors-for-leak-kinds=definite", "--error-exitcode=99", "--fair-sched=yes"]
    done = _run([*command, *driver("watched"), "1"])
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr[-6000:]
    assert re.search(r"definitely lost: 0 bytes|no leaks are possible", done.stderr)
