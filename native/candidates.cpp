#include "candidates.h"

#include "support.h"

#include <algorithm>
#include <functional>

namespace llama_common_c {

namespace {

constexpr size_t GROUP = 64;
constexpr float  LARGE = 1e6f;

}  // namespace

void candidates::take_all(const float * logits, size_t n_vocab) {
    bound = -INFINITY;
    tokens.resize(n_vocab);
    bool numbers = true;
    for (size_t i = 0; i < n_vocab; i++) {
        // a function that forces a token may make it infinite: the difference of two of these is not a number, and what
        // sorts large vocabularies converts logits to integers
        tokens[i] = {(llama_token) i, std::min(logits[i], LARGE), 0.0f};
        numbers &= !(logits[i] != logits[i]);
    }
    if (!numbers) {
        // llama.cpp's samplers index with what they make of a NaN
        throw failure(LLAMA_COMMON_INTERNAL_ERROR, "the model's logits are not numbers");
    }
}

// The n-th greatest of the groups' maxima is a threshold that at least n tokens reach, and each of those stands in a
// group whose maximum reaches it: only these groups are read again.
void candidates::take_best(const float * logits, size_t n_vocab, size_t n) {
    const size_t n_groups = (n_vocab + GROUP - 1) / GROUP;
    if (n >= n_groups) {
        take_all(logits, n_vocab);
        return;
    }
    maxima.resize(n_groups);
    for (size_t g = 0; g < n_groups; g++) {
        maxima[g] = greatest(logits + g * GROUP, std::min(GROUP, n_vocab - g * GROUP));
    }
    order = maxima;
    std::nth_element(order.begin(), order.begin() + (n - 1), order.end(), std::greater<float>());
    bound = order[n - 1];
    tokens.clear();
    for (size_t g = 0; g < n_groups; g++) {
        if (maxima[g] < bound) {
            continue;
        }
        for (size_t i = g * GROUP; i < std::min(n_vocab, (g + 1) * GROUP); i++) {
            if (logits[i] >= bound) {
                tokens.push_back({(llama_token) i, logits[i], 0.0f});
            }
        }
    }
}

}  // namespace llama_common_c
