#include "outbox.h"

#include "support.h"

#include <algorithm>
#include <chrono>

using namespace llama_common_c;

void llama_common_outbox::put(llama_token token) {
    {
        const std::lock_guard<std::mutex> lock(mutex);
        waiting.push_back(token);
    }
    there.notify_one();
}

int32_t llama_common_outbox::take(llama_token * tokens, int32_t capacity, int32_t milliseconds) {
    std::unique_lock<std::mutex> lock(mutex);
    there.wait_for(lock, std::chrono::milliseconds(milliseconds), [&] { return !waiting.empty(); });
    const size_t n = std::min(waiting.size(), (size_t) std::max(capacity, 0));
    std::copy(waiting.begin(), waiting.begin() + n, tokens);
    waiting.erase(waiting.begin(), waiting.begin() + n);
    return (int32_t) n;
}

extern "C" {

enum llama_common_status llama_common_outbox_init(struct llama_common_outbox ** outbox, char ** error) {
    return guarded(error, LLAMA_COMMON_INTERNAL_ERROR, [&] { *required(outbox, "outbox") = new llama_common_outbox; });
}

void llama_common_outbox_free(struct llama_common_outbox * outbox) { delete outbox; }

enum llama_common_status llama_common_outbox_put(struct llama_common_outbox * outbox, llama_token token, char ** error) {
    return guarded(error, LLAMA_COMMON_INTERNAL_ERROR, [&] { required(outbox, "outbox")->put(token); });
}

int32_t llama_common_outbox_take(
        struct llama_common_outbox * outbox, llama_token * tokens, int32_t capacity, int32_t milliseconds) {
    return outbox->take(tokens, capacity, milliseconds);
}

}
