#include "log.h"
#include "support.h"

#include <mutex>

extern "C" bool llama_common_log_set(ggml_log_callback callback, void * user_data) {
    using namespace llama_common_c;
    bool       routed = false;
    const auto status = guarded(nullptr, LLAMA_COMMON_INTERNAL_ERROR, [&] {
#ifdef LLAMA_COMMON_C_LOG_CALLBACK
        common_log_set_callback(callback, user_data);
        routed = true;
#else
        (void) callback;
        (void) user_data;
#endif
        // The worker thread prints to stdout and has no business in somebody else's process.
        static std::once_flag paused;
        std::call_once(paused, [] { common_log_pause(common_log_main()); });
    });
    return routed && status == LLAMA_COMMON_OK;
}

extern "C" void llama_common_log_discard(enum ggml_log_level, const char *, void *) {}
