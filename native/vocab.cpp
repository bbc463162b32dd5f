// What the engine does with a vocabulary, and with which it throws when that is damaged.

#include "support.h"

using namespace llama_common_c;

extern "C" {

enum llama_common_status llama_common_tokenize(const struct llama_vocab * vocab, const char * text, int32_t n_text,
        llama_token * tokens, int32_t n_tokens_max, bool add_special, bool parse_special, int32_t * n, char ** error) {
    return guarded(error, LLAMA_COMMON_VOCAB_ERROR, [&] {
        *required(n, "n") = llama_tokenize(required(vocab, "vocab"), required(text, "text"), n_text, tokens,
                n_tokens_max, add_special, parse_special);
    });
}

enum llama_common_status llama_common_token_to_piece(const struct llama_vocab * vocab, llama_token token, char * piece,
        int32_t n_max, bool special, int32_t * n, char ** error) {
    return guarded(error, LLAMA_COMMON_VOCAB_ERROR, [&] {
        *required(n, "n") =
                llama_token_to_piece(required(vocab, "vocab"), token, piece, n_max, /* lstrip = */ 0, special);
    });
}

enum llama_common_status llama_common_dry_init(const struct llama_vocab * vocab, float multiplier, float base,
        int32_t allowed_length, int32_t penalty_last_n, const char ** breakers, size_t n_breakers,
        struct llama_sampler ** sampler, char ** error) {
    return guarded(error, LLAMA_COMMON_VOCAB_ERROR, [&] {
        required(sampler, "sampler");  // before there is something to put there
        *sampler = llama_sampler_init_dry(
                required(vocab, "vocab"), multiplier, base, allowed_length, penalty_last_n, breakers, n_breakers);
    });
}
}
