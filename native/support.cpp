#include "support.h"

#include "jinja/utils.h"

#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>

// of the engine, by way of vendor/llama.cpp/patches/0008-grammar-repetitions.patch
void llama_grammar_set_limit(uint64_t n_stacks, bool (*enough)(void *), void * data);

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
    *error            = static_cast<char *>(std::malloc(size));
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
constexpr auto   PATIENCE    = std::chrono::milliseconds(20);

std::chrono::steady_clock::time_point after(double seconds) {
    // further away there is none
    return std::chrono::steady_clock::now() + std::chrono::microseconds((int64_t) (std::min(seconds, 1e9) * 1e6));
}

bool is_past(void * end) {
    return std::chrono::steady_clock::now() > *static_cast<std::chrono::steady_clock::time_point *>(end);
}

struct call {
    const std::function<void()> & body;
    const llama_common_limits *   limits;
    std::exception_ptr            thrown;
    const char *                  exceeded = nullptr;
    std::atomic<bool>             stopped{false};
    bool                          ended = false;
    std::mutex                    mutex;
    std::condition_variable       end;

    // asked while a grammar is read
    static bool is_enough(void * own) {
        const auto & limits = *static_cast<const jinja::run_limits *>(own);
        return (limits.stopped != nullptr && limits.stopped->load()) ||
               std::chrono::steady_clock::now() > limits.deadline;
    }

    void run() {
        jinja::run_limits own;
        if (limits != nullptr) {
            if (limits->seconds > 0) {
                own.deadline = after(limits->seconds);
            }
            if (limits->n_bytes > 0) {
                own.bytes_left = limits->n_bytes;
            }
            if (limits->n_values > 0) {
                own.values_left = limits->n_values;
            }
            own.stopped                  = &stopped;
            jinja::run_limits::current() = &own;
        }
        try {
            const grammar_limit limited(limits == nullptr ? 0 : limits->n_stacks, is_enough, &own);
            body();
        } catch (...) {
            thrown = std::current_exception();
        }
        jinja::run_limits::current() = nullptr;
        exceeded                     = own.exceeded;
        const std::lock_guard<std::mutex> lock(mutex);
        ended = true;
        end.notify_all();
    }

    // Until it has ended; the caller's own thread is the one that hears of signals.
    void wait() {
        std::unique_lock<std::mutex> lock(mutex);
        while (!end.wait_for(lock, PATIENCE, [this] { return ended; })) {
            if (limits != nullptr && limits->stopped != nullptr) {
                lock.unlock();
                if (limits->stopped(limits->data)) {
                    stopped = true;
                }
                lock.lock();
            }
        }
    }
};

void * run(void * argument) {
    static_cast<call *>(argument)->run();
    return nullptr;
}

}  // namespace

void on_large_stack(const std::function<void()> & body, const llama_common_limits * limits) {
    call           self{body, limits};
    pthread_attr_t attributes;
    pthread_t      thread;
    pthread_attr_init(&attributes);
    const bool started = pthread_attr_setstacksize(&attributes, LARGE_STACK) == 0 &&
                         pthread_create(&thread, &attributes, run, &self) == 0;
    pthread_attr_destroy(&attributes);
    if (started) {
        self.wait();
        pthread_join(thread, nullptr);
    } else {
        self.run();  // under a tight address-space limit an ordinary stack is better than none
    }
    if (self.stopped) {
        throw failure(LLAMA_COMMON_STOPPED, "it was stopped");
    }
    if (self.exceeded != nullptr) {
        throw failure(LLAMA_COMMON_LIMIT_REACHED, std::string("the template ") + self.exceeded);
    }
    if (self.thrown) {
        std::rethrow_exception(self.thrown);
    }
}

grammar_limit::grammar_limit(int64_t n_stacks, double seconds)
    : grammar_limit(n_stacks, seconds > 0 ? is_past : nullptr, &end) {
    if (seconds > 0) {
        end = after(seconds);
    }
}

grammar_limit::grammar_limit(int64_t n_stacks, bool (*enough)(void *), void * data) {
    llama_grammar_set_limit(n_stacks > 0 ? (uint64_t) n_stacks : UINT64_MAX, enough, data);
}

grammar_limit::~grammar_limit() {
    llama_grammar_set_limit(UINT64_MAX, nullptr, nullptr);
}

}  // namespace llama_common_c

extern "C" {

const char * llama_common_commit(void) {
    return LLAMA_COMMON_C_COMMIT;
}

const char * llama_common_headers_sha256(void) {
    return LLAMA_COMMON_C_HEADERS_SHA256;
}

void llama_common_string_free(char * string) {
    std::free(string);
}
}
