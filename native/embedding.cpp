// Texts in, vectors out.

#include "support.h"

#include <algorithm>
#include <numeric>
#include <vector>

using namespace llama_common_c;

namespace {

// A batch of whole texts, each in a sequence of its own.
struct texts {
    std::vector<llama_token>    tokens;
    std::vector<llama_pos>      positions;
    std::vector<llama_seq_id>   numbers;
    std::vector<llama_seq_id *> sequences;
    std::vector<int32_t>        ones;
    std::vector<int8_t>         outputs;

    texts(int32_t n_texts, const int32_t * lengths, const llama_token * all) {
        const size_t n = std::accumulate(lengths, lengths + n_texts, (size_t) 0);
        tokens.assign(all, all + n);
        ones.assign(n, 1);
        outputs.assign(n, 1);
        for (int32_t text = 0; text < n_texts; text++) {
            for (int32_t i = 0; i < lengths[text]; i++) {
                positions.push_back(i);
                numbers.push_back(text);
            }
        }
        for (auto & number : numbers) {
            sequences.push_back(&number);
        }
    }

    llama_batch batch() {
        return {(int32_t) tokens.size(), tokens.data(), nullptr, positions.data(), ones.data(), sequences.data(),
                outputs.data()};
    }
};

size_t width_of(llama_context * context) {
    const llama_model * model = llama_get_model(context);
    return llama_pooling_type(context) == LLAMA_POOLING_TYPE_RANK ? llama_model_n_cls_out(model)
                                                                  : llama_model_n_embd_out(model);
}

}  // namespace

extern "C" {

bool llama_common_is_set(void * flag) {
    return __atomic_load_n((const int32_t *) flag, __ATOMIC_RELAXED) != 0;
}

enum llama_common_status llama_common_embed(struct llama_context * context, int32_t n_texts, const int32_t * lengths,
        const llama_token * tokens, float * vectors, size_t n_floats, int32_t * result, char ** error) {
    return guarded(error, LLAMA_COMMON_INTERNAL_ERROR, [&] {
        texts        all(n_texts, required(lengths, "lengths"), required(tokens, "tokens"));
        const bool   pooled = llama_pooling_type(required(context, "context")) != LLAMA_POOLING_TYPE_NONE;
        const size_t n_rows = pooled ? (size_t) n_texts : all.tokens.size();
        const size_t width  = width_of(context);
        if (n_floats != n_rows * width) {
            throw failure(
                    LLAMA_COMMON_INVALID_ARGUMENT, "the vectors have " + std::to_string(n_rows * width) + " floats");
        }
        // what texts before these have left
        if (llama_memory_t memory = llama_get_memory(context)) {
            llama_memory_clear(memory, false);
        }
        const bool    encoder = llama_model_has_encoder(llama_get_model(context));
        const int32_t status  = encoder ? llama_encode(context, all.batch()) : llama_decode(context, all.batch());
        if (status == 0) {
            llama_synchronize(context);
            for (size_t row = 0; row < n_rows; row++) {
                const float * from =
                        pooled ? llama_get_embeddings_seq(context, row) : llama_get_embeddings_ith(context, row);
                std::copy_n(
                        required(from, "what the engine computed"), width, required(vectors, "vectors") + row * width);
            }
        }
        *required(result, "result") = status;
    });
}
}
