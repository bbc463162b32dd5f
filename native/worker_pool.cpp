#include "worker_pool.h"

#include <algorithm>
#include <chrono>
#include <system_error>

namespace llama_common_c {

namespace {

// More have nothing to do: thirty-two choices take a tenth of a millisecond.
constexpr unsigned MOST = 3;

// How long who was called looks out for work before it sleeps again.
constexpr auto PATIENCE = std::chrono::microseconds(200);

}  // namespace

worker_pool::~worker_pool() {
    {
        const std::lock_guard<std::mutex> lock(mutex);
        closing = true;
    }
    called.notify_all();
    for (auto & thread : threads) {
        thread.join();
    }
}

void worker_pool::start() {
    const unsigned n_threads = std::min(MOST, std::max(std::thread::hardware_concurrency(), 1u) - 1);
    try {
        while (threads.size() < n_threads) {
            threads.emplace_back([this] { help(); });
        }
    } catch (const std::system_error &) {
        // no more to be had: the caller does the work
    }
}

void worker_pool::wake() {
    if (threads.empty()) {
        start();
    }
    {
        const std::lock_guard<std::mutex> lock(mutex);
        n_calls++;
    }
    called.notify_all();
}

void worker_pool::run(int32_t n_wanted, const std::function<void(int32_t)> & wanted) {
    work = &wanted;
    n    = n_wanted;
    next = 0;
    open = true;
    do_some();
    // who comes now finds it closed; who came before is waited for, since `wanted` ends with this call
    open   = false;
    n_done = n_calls;
    while (n_helping > 0) {
        std::this_thread::yield();
    }
}

void worker_pool::do_some() {
    for (int32_t i; (i = next.fetch_add(1)) < n;) {
        (*work)(i);
    }
}

void worker_pool::help() {
    for (uint64_t seen = 0;;) {
        {
            std::unique_lock<std::mutex> lock(mutex);
            called.wait(lock, [&] { return closing || n_calls != seen; });
            if (closing) {
                return;
            }
            seen = n_calls;
        }
        const auto until  = std::chrono::steady_clock::now() + PATIENCE;
        bool       helped = false;
        while (!helped && n_done < seen && std::chrono::steady_clock::now() < until) {
            n_helping++;
            if (open) {
                do_some();
                helped = true;
            }
            n_helping--;
        }
    }
}

}  // namespace llama_common_c
