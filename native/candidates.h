// The best tokens of a row of logits, found without sorting the vocabulary.

#pragma once

#include "llama.h"

#include <cmath>
#include <cstddef>
#include <vector>

namespace llama_common_c {

// The greatest of `n` numbers, passing over any that is not one; without a branch, so that it becomes vector instructions.
inline float greatest(const float * values, size_t n) {
    float best = -INFINITY;
    for (size_t i = 0; i < n; i++) {
        best = values[i] > best ? values[i] : best;
    }
    return best;
}

// Tokens with their logits, in no order, and what is certain about the others.
struct candidates {
    std::vector<llama_token_data> tokens;
    float                         bound;  // no token that is not among them has a greater logit

    // All of the vocabulary.
    void take_all(const float * logits, size_t n_vocab);

    // At least the `n` best, ties included.
    void take_best(const float * logits, size_t n_vocab, size_t n);

private:
    std::vector<float> maxima;
    std::vector<float> order;
};

}  // namespace llama_common_c
