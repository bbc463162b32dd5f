// Tokens on their way from the thread that samples them to the one that waits for them.

#pragma once

#include "llama.h"

#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <vector>

struct llama_common_token_queue {
    void put(llama_token token);

    // Moves up to `capacity` tokens to `tokens`, in the order in which they were put; waits for one, but not longer than
    // `milliseconds`. Returns how many.
    int32_t take(llama_token * tokens, int32_t capacity, int32_t milliseconds);

private:
    std::mutex               mutex;
    std::condition_variable  there;
    std::vector<llama_token> waiting;
};
