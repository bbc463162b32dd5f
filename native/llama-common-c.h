// A C API over llama.cpp's C++ library `common`: chat templates, the parsers that go with them,
// and where its log goes; and decoding many sequences at once. Structured data crosses as JSON in UTF-8.
//
// Rules that hold for every function here:
//   - No C++ exception leaves. A function that can fail returns a llama_common_status; when that is not
//     LLAMA_COMMON_OK and `error` is not NULL, *error receives the message.
//   - A `char *` handed out (results and errors) belongs to the caller: llama_common_string_free().
//     A `const char *` handed out is static and must not be freed.
//   - Arguments are only borrowed for the length of the call, where nothing else is said.
//   - An output is only written on LLAMA_COMMON_OK, `error` only otherwise; llama_common_sample() writes what it comes to.

#ifndef LLAMA_COMMON_C_H
#define LLAMA_COMMON_C_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "llama.h"

#if defined(LLAMA_COMMON_C_BUILD)
#define LLAMA_COMMON_C_API __attribute__((visibility("default"))) extern
#else
#define LLAMA_COMMON_C_API extern
#endif

#ifdef __cplusplus
extern "C" {
#endif

enum llama_common_status {
    LLAMA_COMMON_OK               = 0,
    LLAMA_COMMON_INVALID_ARGUMENT = 1,  // malformed JSON, a missing or mistyped field
    LLAMA_COMMON_TEMPLATE_ERROR   = 2,  // the chat template does not parse, or refused the messages
    LLAMA_COMMON_PARSE_ERROR      = 3,  // the text does not follow the format announced
    LLAMA_COMMON_GRAMMAR_ERROR    = 4,  // not a grammar, or one that cannot go on
    LLAMA_COMMON_OUT_OF_MEMORY    = 5,
    LLAMA_COMMON_INTERNAL_ERROR   = 6,
    LLAMA_COMMON_NEEDS_ALL        = 7,   // no error: the best tokens alone do not decide
    LLAMA_COMMON_LIMIT_REACHED    = 8,   // a template or a grammar costs more than it may
    LLAMA_COMMON_STOPPED          = 9,   // it was to be stopped
    LLAMA_COMMON_VOCAB_ERROR      = 10,  // the vocabulary is damaged
};

// What templates and grammars may cost, which come from anywhere; 0 is no limit.
struct llama_common_limits {
    double  seconds;   // of each call
    int64_t n_bytes;   // of all text that a template makes
    int64_t n_values;  // that a template has at once
    int64_t n_stacks;  // ways to go on that are looked at while a grammar is read
    bool (*stopped)(
            void * data);  // asked fifty times a second, in the caller's thread, whether to stop; NULL for never
    void * data;
};

// What stands for the result of llama_decode() where it threw an exception instead.
#define LLAMA_COMMON_DECODE_THREW (-1000)

struct llama_common_chat;         // the chat templates of one model; const after creation, any thread may use it
struct llama_common_chat_parser;  // reads one answer; one thread at a time
struct llama_common_top_k;        // the best tokens of each sequence of one context, found on the device
struct llama_common_sampler;      // what one request samples with; one thread at a time
struct llama_common_speculator;   // drafts what follows in the sequences of one context; one thread at a time
struct llama_common_token_queue;  // tokens on their way from one thread to another; for any threads
struct llama_common_decoder;      // decodes the batches of one context; one thread at a time

// Multi-step: how llama_common_sample() decodes what it sampled, and samples again.
struct llama_common_multi_step {
    const int32_t * allowed;  // looked at after each batch: no further than that when it is zero; any thread may set it
    int32_t         n_most;   // so many batches at most, each of which is waited for
    bool            begin;    // and one more, which is not: a device computes it meanwhile
    struct llama_common_token_queue **
                  token_queues;  // where tokens are put that another batch was made of: one for each row, or NULL
    llama_token * tokens;  // the same tokens, batch by batch, n_most at most: room for that times the number of rows
    int32_t       n;       // result: how often it went on
    int32_t       status;  // result: what llama_decode() returned last, or LLAMA_COMMON_DECODE_THREW
    bool          begun;   // result: the last of these batches has failed, or is not waited for yet
};

// What this library was built from. Static strings.
LLAMA_COMMON_C_API const char * llama_common_commit(void);          // llama.cpp commit
LLAMA_COMMON_C_API const char * llama_common_headers_sha256(void);  // digest over the headers that are bound

LLAMA_COMMON_C_API void llama_common_string_free(char * string);  // NULL is allowed

// Where `common` logs to. NULL restores nothing but silence: it never writes to stdout from inside a library.
// Returns false when the engine was built without the log callback patch; then its messages are dropped.
LLAMA_COMMON_C_API bool llama_common_log_set(ggml_log_callback callback, void * user_data);

// A ggml_log_callback that does nothing: what a host sets before it can no longer be called back.
LLAMA_COMMON_C_API void llama_common_log_discard(enum ggml_log_level level, const char * text, void * user_data);

// Chat templates. `model` may be NULL when `chat_template` is given. `chat_template` may be NULL (the model's
// own, ChatML if it has none). `bos_token` and `eos_token` are used only without a model; NULL means none.
// The caller owns *chat and must free it before the model.
LLAMA_COMMON_C_API enum llama_common_status llama_common_chat_init(const struct llama_model * model,
        const char * chat_template, const char * bos_token, const char * eos_token,
        const struct llama_common_limits * limits, struct llama_common_chat ** chat, char ** error);

LLAMA_COMMON_C_API void llama_common_chat_free(struct llama_common_chat * chat);  // NULL is allowed

// {"source", "source_tool_use", "explicit", "supports_thinking", "capabilities": {name: bool}}
LLAMA_COMMON_C_API enum llama_common_status llama_common_chat_describe(
        const struct llama_common_chat * chat, char ** description, char ** error);

// Renders a conversation. `request` is an object with "messages" (OpenAI's form) and optionally "tools",
// "tool_choice", "parallel_tool_calls", "json_schema", "grammar", "add_generation_prompt",
// "continue_final_message", "reasoning_format", "enable_thinking", "chat_template_kwargs", "now" (Unix seconds), "collect_schemas".
// `result`: {"prompt", "format", "format_name", "grammar", "grammar_lazy", "grammar_triggers", "preserved_tokens",
// "additional_stops", "generation_prompt", "supports_thinking", "thinking_start_tag", "thinking_end_tags",
// "parser", "reasoning_format", "parse_tool_calls", "is_continuation"}. A BOS that tokenization will add is
// left out of the prompt.
//
// With "collect_schemas" JSON schemas are not converted: the grammar has a mark where a schema's rule goes, and the result
// "schemas": [{"mark", "document" (JSON text) or "same_as" (the index of the one that has it), "place" (a JSON pointer that begins
// with #), "how", "end", "with_end", "absent"}]. `how` is "json", or "string" or "mixed" for what is written raw until `end`
// (which belongs to it `with_end`) and without `absent`; "mixed" is JSON where it reads as such. "members", "items" and "union"
// have no mark: an object, an array or alternatives whose parts are written one by one.
LLAMA_COMMON_C_API enum llama_common_status llama_common_chat_apply(const struct llama_common_chat * chat,
        const char * request, const struct llama_common_limits * limits, char ** result, char ** error);

// A parser for the answer to a prompt: `format` is the result of llama_common_chat_apply(), or "{}" for plain
// content. The caller owns *parser.
LLAMA_COMMON_C_API enum llama_common_status llama_common_chat_parser_init(
        const char * format, struct llama_common_chat_parser ** parser, char ** error);

LLAMA_COMMON_C_API void llama_common_chat_parser_free(struct llama_common_chat_parser * parser);

// Reads the whole answer so far (`n_text` bytes). `is_partial` allows it to end anywhere.
// `message`: {"role", "content", "reasoning_content"?, "tool_calls"?} in OpenAI's form.
LLAMA_COMMON_C_API enum llama_common_status llama_common_chat_parser_parse(struct llama_common_chat_parser * parser,
        const char * text, size_t n_text, bool is_partial, char ** message, char ** error);

// The same, giving what is new since the previous call of this function: an array of OpenAI stream deltas,
// each {"content"} or {"reasoning_content"} or {"tool_calls": [{"index", "id"?, "type"?, "function"}]}.
LLAMA_COMMON_C_API enum llama_common_status llama_common_chat_parser_update(struct llama_common_chat_parser * parser,
        const char * text, size_t n_text, bool is_partial, char ** deltas, char ** error);

// llama_tokenize(), llama_token_to_piece() and llama_sampler_init_dry(), which let exceptions out where a vocabulary is damaged.
// *n is what the first two return; *sampler is the caller's.
LLAMA_COMMON_C_API enum llama_common_status llama_common_tokenize(const struct llama_vocab * vocab, const char * text,
        int32_t n_text, llama_token * tokens, int32_t n_tokens_max, bool add_special, bool parse_special, int32_t * n,
        char ** error);

LLAMA_COMMON_C_API enum llama_common_status llama_common_token_to_piece(const struct llama_vocab * vocab,
        llama_token token, char * piece, int32_t n_max, bool special, int32_t * n, char ** error);

LLAMA_COMMON_C_API enum llama_common_status llama_common_dry_init(const struct llama_vocab * vocab, float multiplier,
        float base, int32_t allowed_length, int32_t penalty_last_n, const char ** breakers, size_t n_breakers,
        struct llama_sampler ** sampler, char ** error);

// A sampler that holds the answer to a grammar, to be added to a chain (which then owns it). `format` is the result of
// llama_common_chat_apply(), or {"grammar": "..."}: a lazy grammar wakes at its triggers, another one first reads the
// "generation_prompt" that the prompt ends with. `vocab` may be NULL to see whether a grammar parses: it is not to be sampled with,
// and *sampler is NULL where it names tokens of a vocabulary.
LLAMA_COMMON_C_API enum llama_common_status llama_common_grammar_init(const struct llama_vocab * vocab,
        const char * format, const struct llama_common_limits * limits, struct llama_sampler ** sampler, char ** error);

// A sampler that ends what a model thinks before it answers after `budget` tokens (-1 is no limit): it writes `message` (NULL is
// nothing) and the tag that ends thoughts. In thoughts it keeps `grammar` (NULL allowed) from waking, if that is lazy. `format` is
// the result of llama_common_chat_apply(), with the tags around thoughts; there must be some. `grammar` belongs to *sampler from
// here on, also when this fails.
LLAMA_COMMON_C_API enum llama_common_status llama_common_thinking_init(const struct llama_vocab * vocab,
        const char * format, int32_t budget, const char * message, struct llama_sampler * grammar,
        struct llama_sampler ** sampler, char ** error);

// The best tokens of every sequence, found on the device that holds the logits, so that only they cross the bus.
// Made before a context: its params.samplers is llama_common_top_k_configs(), params.n_samplers is `n_seq`. The caller
// owns *top_k and must free it after the context.
LLAMA_COMMON_C_API enum llama_common_status llama_common_top_k_init(
        int32_t n_seq, struct llama_common_top_k ** top_k, char ** error);

LLAMA_COMMON_C_API void llama_common_top_k_free(struct llama_common_top_k * top_k);  // NULL is allowed

LLAMA_COMMON_C_API struct llama_sampler_seq_config * llama_common_top_k_configs(struct llama_common_top_k * top_k);

// What one request samples with: `before` (NULL allowed) changes logits (bias, penalties), `grammar` (NULL allowed)
// forbids, and the chain `after` truncates and chooses. When the choice depends only on the `n_needed` best tokens, as
// `before` left them, and `before` never raises a logit, no others are looked at; 0 looks at all. For each token the
// grammar may look at as many ways to go on as `limits` says (NULL for no limit), for as long. The three samplers belong to *sampler
// from here on, also when this fails.
LLAMA_COMMON_C_API enum llama_common_status llama_common_sampler_init(struct llama_sampler * before,
        struct llama_sampler * grammar, struct llama_sampler * after, int32_t n_needed,
        const struct llama_common_limits * limits, struct llama_common_sampler ** sampler, char ** error);

LLAMA_COMMON_C_API void llama_common_sampler_free(struct llama_common_sampler * sampler);  // NULL is allowed

// Lets the penalties see tokens of the prompt.
LLAMA_COMMON_C_API enum llama_common_status llama_common_sampler_accept(
        struct llama_common_sampler * sampler, const llama_token * tokens, int32_t n_tokens, char ** error);

// Tokens that one thread puts in and another takes out. The caller owns *token_queue.
LLAMA_COMMON_C_API enum llama_common_status llama_common_token_queue_init(
        struct llama_common_token_queue ** token_queue, char ** error);

LLAMA_COMMON_C_API void llama_common_token_queue_free(
        struct llama_common_token_queue * token_queue);  // NULL is allowed

LLAMA_COMMON_C_API enum llama_common_status llama_common_token_queue_put(
        struct llama_common_token_queue * token_queue, llama_token token, char ** error);

// Takes up to `capacity` tokens, in the order in which they were put in; returns how many. It waits for one, so many
// milliseconds at most.
LLAMA_COMMON_C_API int32_t llama_common_token_queue_take(
        struct llama_common_token_queue * token_queue, llama_token * tokens, int32_t capacity, int32_t milliseconds);

// A ggml_abort_callback: whether the int32_t at `flag` is not 0. Any thread may set it.
LLAMA_COMMON_C_API bool llama_common_is_set(void * flag);

// Vectors of `n_texts` texts, whose tokens follow each other, from a context made for that (`embeddings`): one for each text, or
// with LLAMA_POOLING_TYPE_NONE one for each token. `n_floats` is the room there, which must be just what they take: each has
// llama_model_n_embd_out() of them, with LLAMA_POOLING_TYPE_RANK llama_model_n_cls_out(). The context computes all of the
// tokens at once, so they must be no more than its ubatch. *result is what llama_decode() or llama_encode() returns; the
// vectors are there when it is 0. One thread at a time; what the context holds is forgotten.
LLAMA_COMMON_C_API enum llama_common_status llama_common_embed(struct llama_context * context, int32_t n_texts,
        const int32_t * lengths, const llama_token * tokens, float * vectors, size_t n_floats, int32_t * result,
        char ** error);

// Decodes batches in a context and samples the tokens that come out; one thread at a time. `top_k` is NULL or what the
// context was made with, for `n_seq` sequences. The caller owns *decoder and must free it before the context.
LLAMA_COMMON_C_API enum llama_common_status llama_common_decoder_init(struct llama_context * context,
        struct llama_common_top_k * top_k, int32_t n_seq, struct llama_common_decoder ** decoder, char ** error);

LLAMA_COMMON_C_API void llama_common_decoder_free(struct llama_common_decoder * decoder);  // NULL is allowed

// Whether the best tokens are found on a device.
LLAMA_COMMON_C_API bool llama_common_decoder_on_device(const struct llama_common_decoder * decoder);

// llama_decode() of `n_tokens` tokens, each of one sequence; *result is what it returns. On a device it does not wait.
// Where the best tokens are found on the device, the engine must be able to compute the batch at once (one ubatch).
// The arrays must stay until the next batch: llama_common_sample() changes them in multi-step decoding.
LLAMA_COMMON_C_API enum llama_common_status llama_common_decode(struct llama_common_decoder * decoder, int32_t n_tokens,
        llama_token * tokens, llama_pos * positions, llama_seq_id * sequences, int8_t * outputs, int32_t * result,
        char ** error);

// Waits for the last batch and samples a token for each of `n_rows` of its outputs, counted in the order of the batch;
// `results` are llama_common_status of their own, and only where one is LLAMA_COMMON_OK there is a token. With `only_best`
// one that takes a look at the whole vocabulary is left out: LLAMA_COMMON_NEEDS_ALL. `logits` (NULL allowed): where to put
// those of each row, n_vocab of them, as they come out of the model; NULL for none.
//
// With `multi_step` (NULL allowed): when each token of the batch had an output, for each a token was sampled, and none of them
// ends its sequence, the arrays of the batch are changed to hold these tokens, at the positions that follow, and decoded;
// and so on. `tokens` and `results` then are those of the last batch that was sampled from.
LLAMA_COMMON_C_API enum llama_common_status llama_common_sample(struct llama_common_decoder * decoder, int32_t n_rows,
        const int32_t * rows, struct llama_common_sampler ** samplers, float * const * logits, bool only_best,
        llama_token * tokens, int32_t * results, struct llama_common_multi_step * multi_step, char ** error);

// The same from a copy of an output's logits, which the caller may have changed. Any thread may do that.
LLAMA_COMMON_C_API enum llama_common_status llama_common_sample_from(const float * logits, int32_t n_vocab,
        struct llama_common_sampler * sampler, llama_token * token, char ** error);

// The logits of an output of the last batch, n_vocab of them.
LLAMA_COMMON_C_API enum llama_common_status llama_common_get_logits(
        struct llama_common_decoder * decoder, int32_t row, float * logits, char ** error);

// The `n_top` tokens with the greatest of `n_vocab` logits, best first. Any thread may do that.
LLAMA_COMMON_C_API enum llama_common_status llama_common_top_logits(
        const float * logits, int32_t n_vocab, int32_t n_top, llama_token * top, float * top_logits, char ** error);

// What a model and a context with these parameters would take, in bytes, measured without loading weights or allocating.
// `result`: {"devices": [{"name", "total", "free", "model", "context", "compute"}], "n_layer", "n_ctx_train"}; the last
// device is the host. Not for several threads at once: llama.cpp's log is redirected meanwhile, whoever writes to it.
LLAMA_COMMON_C_API enum llama_common_status llama_common_measure(const char * path,
        const struct llama_model_params * model_params, const struct llama_context_params * context_params,
        char ** result, char ** error);

// Drafts what follows in each of `n_seq` sequences, so that the model can check several tokens at once. `params`:
// {"types": [names as llama-server's --spec-type takes them], "n_max"?, "p_min"?, "ngram_size"?}. `draft` is the context
// that drafts (NULL when the types need none), with as many sequences as `context`; what is removed from or copied in
// the memory of `context` must be in its, too. The caller owns *speculator and must free it before the contexts.
LLAMA_COMMON_C_API enum llama_common_status llama_common_speculator_init(const char * params,
        struct llama_context * context, struct llama_context * draft, int32_t n_seq,
        struct llama_common_speculator ** speculator, char ** error);

LLAMA_COMMON_C_API void llama_common_speculator_free(struct llama_common_speculator * speculator);  // NULL is allowed

// A sequence starts anew with these tokens, the last of which may not be computed yet.
LLAMA_COMMON_C_API enum llama_common_status llama_common_speculator_begin(struct llama_common_speculator * speculator,
        int32_t sequence, const llama_token * tokens, int32_t n_tokens, char ** error);

// It goes on with these. After a draft: the tokens of it that were right, and the one that came after them.
LLAMA_COMMON_C_API enum llama_common_status llama_common_speculator_accept(struct llama_common_speculator * speculator,
        int32_t sequence, const llama_token * tokens, int32_t n_tokens, char ** error);

// Drafts up to `n_max` tokens for each of `n` sequences: `tokens` has room for n * n_max, `n_tokens` for n.
LLAMA_COMMON_C_API enum llama_common_status llama_common_speculator_draft(struct llama_common_speculator * speculator,
        int32_t n, const int32_t * sequences, int32_t n_max, llama_token * tokens, int32_t * n_tokens, char ** error);

// To be called with every batch that the context has computed; only some ways to draft need it.
LLAMA_COMMON_C_API enum llama_common_status llama_common_speculator_process(struct llama_common_speculator * speculator,
        int32_t n_tokens, const llama_token * tokens, const llama_pos * positions, const llama_seq_id * sequences,
        char ** error);

#ifdef __cplusplus
}
#endif

#endif  // LLAMA_COMMON_C_H
