#include "token_queue.h"

#include "support.h"

#include <algorithm>
#include <chrono>

using namespace llama_common_c;

void llama_common_token_queue::put(llama_token token) {
    {
        const std::lock_guard<std::mutex> lock(mutex);
        waiting.push_back(token);
    }
    there.notify_one();
}

int32_t llama_common_token_queue::take(llama_token * tokens, int32_t capacity, int32_t milliseconds) {
    std::unique_lock<std::mutex> lock(mutex);
    there.wait_for(lock, std::chrono::milliseconds(milliseconds), [&] { return !waiting.empty(); });
    const size_t n = std::min(waiting.size(), (size_t) std::max(capacity, 0));
    std::copy(waiting.begin(), waiting.begin() + n, tokens);
    waiting.erase(waiting.begin(), waiting.begin() + n);
    return (int32_t) n;
}

extern "C" {

enum llama_common_status llama_common_token_queue_init(struct llama_common_token_queue ** token_queue, char ** error) {
    return guarded(error, LLAMA_COMMON_INTERNAL_ERROR,
            [&] { *required(token_queue, "token_queue") = new llama_common_token_queue; });
}

void llama_common_token_queue_free(struct llama_common_token_queue * token_queue) {
    delete token_queue;
}

enum llama_common_status llama_common_token_queue_put(
        struct llama_common_token_queue * token_queue, llama_token token, char ** error) {
    return guarded(error, LLAMA_COMMON_INTERNAL_ERROR, [&] { required(token_queue, "token_queue")->put(token); });
}

int32_t llama_common_token_queue_take(
        struct llama_common_token_queue * token_queue, llama_token * tokens, int32_t capacity, int32_t milliseconds) {
    return token_queue->take(tokens, capacity, milliseconds);
}
}
