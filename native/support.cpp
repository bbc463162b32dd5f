#include "support.h"

#include <pthread.h>

namespace llama_common_c {

char * copy_string(const std::string & string) {
    char * copy = static_cast<char *>(std::malloc(string.size() + 1));
    if (copy == nullptr) {
        throw std::bad_alloc();
    }
    std::memcpy(copy, string.data(), string.size());
    copy[string.size()] = '\0';
    return copy;
}

void store_error(char ** error, const char * message) noexcept {
    if (error == nullptr) {
        return;
    }
    const size_t size = std::strlen(message) + 1;
    *error = static_cast<char *>(std::malloc(size));
    if (*error != nullptr) {
        std::memcpy(*error, message, size);
    }
}

common_json parse_object(const char * text, const char * name) {
    common_json json;
    try {
        json = common_json::parse(required(text, name));
    } catch (const common_json_error & e) {
        throw failure(LLAMA_COMMON_INVALID_ARGUMENT, std::string(name) + " is not valid JSON: " + e.what());
    }
    if (!json.is_object()) {
        throw failure(LLAMA_COMMON_INVALID_ARGUMENT, std::string(name) + " must be a JSON object");
    }
    return json;
}

bool present(const common_json & object, const char * key) {
    return object.contains(key) && !object.at(key).is_null();
}

namespace {

constexpr size_t LARGE_STACK = size_t(1) << 30;  // reserved, not committed: pages are touched as they are used

struct call {
    const std::function<void()> & body;
    std::exception_ptr            thrown;
};

void * run(void * argument) {
    auto * self = static_cast<call *>(argument);
    try {
        self->body();
    } catch (...) {
        self->thrown = std::current_exception();
    }
    return nullptr;
}

}  // namespace

void on_large_stack(const std::function<void()> & body) {
    call           self{body, nullptr};
    pthread_attr_t attributes;
    pthread_t      thread;
    pthread_attr_init(&attributes);
    const bool started = pthread_attr_setstacksize(&attributes, LARGE_STACK) == 0 &&
                         pthread_create(&thread, &attributes, run, &self) == 0;
    pthread_attr_destroy(&attributes);
    if (started) {
        pthread_join(thread, nullptr);
    } else {
        run(&self);  // under a tight address-space limit an ordinary stack is better than none
    }
    if (self.thrown) {
        std::rethrow_exception(self.thrown);
    }
}

}  // namespace llama_common_c

extern "C" {

const char * llama_common_commit(void) { return LLAMA_COMMON_C_COMMIT; }

const char * llama_common_headers_sha256(void) { return LLAMA_COMMON_C_HEADERS_SHA256; }

void llama_common_string_free(char * string) { std::free(string); }

}
