// What every function of the C API shares: strings handed to C, JSON handed in, and exceptions kept inside.

#pragma once

#include "json.h"
#include "llama-common-c.h"

#include <chrono>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <functional>
#include <new>
#include <stdexcept>
#include <string>

namespace llama_common_c {

// An error that knows its status; anything else that is thrown is classified by its type.
struct failure : std::runtime_error {
    llama_common_status status;

    failure(llama_common_status status, const std::string & message) : std::runtime_error(message), status(status) {}
};

// malloc, so that the C side can be told "free it here" without ever meeting operator delete
char * copy_string(const std::string & string);

void store_error(char ** error, const char * message) noexcept;

// Runs `body`; `otherwise` is the status of exceptions that carry none.
template <typename Body>
llama_common_status guarded(char ** error, llama_common_status otherwise, Body && body) noexcept {
    try {
        body();
        return LLAMA_COMMON_OK;
    } catch (const failure & e) {
        store_error(error, e.what());
        return e.status;
    } catch (const std::length_error & e) {
        // the engine's, of a grammar that is too ambiguous
        store_error(error, e.what());
        return LLAMA_COMMON_LIMIT_REACHED;
    } catch (const std::bad_alloc &) {
        store_error(error, "out of memory");
        return LLAMA_COMMON_OUT_OF_MEMORY;
    } catch (const std::exception & e) {
        store_error(error, e.what());
        return otherwise;
    } catch (...) {
        store_error(error, "unknown C++ exception");
        return LLAMA_COMMON_INTERNAL_ERROR;
    }
}

template <typename Pointer> Pointer * required(Pointer * pointer, const char * name) {
    if (pointer == nullptr) {
        throw failure(LLAMA_COMMON_INVALID_ARGUMENT, std::string(name) + " must not be NULL");
    }
    return pointer;
}

common_json parse_object(const char * text, const char * name);

// A field that is absent or null takes its default; another type is the caller's mistake.
template <typename T> T field(const common_json & object, const char * key, T otherwise) {
    if (!object.contains(key) || object.at(key).is_null()) {
        return otherwise;
    }
    try {
        return object.at(key).get<T>();
    } catch (const std::exception & e) {
        throw failure(LLAMA_COMMON_INVALID_ARGUMENT, std::string("\"") + key + "\": " + e.what());
    }
}

bool present(const common_json & object, const char * key);

// Runs `body` on a thread whose stack is large enough for data nested as deep as its size allows, and rethrows. With `limits`, it
// ends with LLAMA_COMMON_LIMIT_REACHED or LLAMA_COMMON_STOPPED where it costs more.
void on_large_stack(const std::function<void()> & body, const llama_common_limits * limits = nullptr);

// For as long as it lives, grammars may look at so many ways to go on in this thread, for so long or until it is `enough`; 0 is no
// limit. Others who use the engine in this thread have none: what it throws would end the process there.
struct grammar_limit {
    grammar_limit(int64_t n_stacks, double seconds);
    grammar_limit(int64_t n_stacks, bool (*enough)(void *), void * data);
    ~grammar_limit();
    grammar_limit(const grammar_limit &)             = delete;
    grammar_limit & operator=(const grammar_limit &) = delete;

private:
    std::chrono::steady_clock::time_point end;
};

}  // namespace llama_common_c
