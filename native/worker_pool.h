// Threads that help with what one call does for many requests.

#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace llama_common_c {

// They sleep between calls, and are started with the first one that wants them. For one caller at a time.
class worker_pool {
public:
    worker_pool() = default;
    ~worker_pool();
    worker_pool(const worker_pool &)             = delete;
    worker_pool & operator=(const worker_pool &) = delete;

    // Wakes them for a run() that comes within microseconds: by then they are there.
    void wake();

    // Calls work(i), which must not throw, for each i below n, here and in those threads that have come.
    void run(int32_t n, const std::function<void(int32_t)> & work);

private:
    void start();
    void help();
    void do_some();

    std::vector<std::thread> threads;
    std::mutex               mutex;
    std::condition_variable  called;
    uint64_t                 n_calls = 0;  // written by the caller under the mutex, as is `closing`
    bool                     closing = false;

    // of the run that is going on; written before `open` becomes true
    const std::function<void(int32_t)> * work      = nullptr;
    int32_t                              n         = 0;
    std::atomic<int32_t>                 next      = 0;
    std::atomic<bool>                    open      = false;
    std::atomic<int32_t>                 n_helping = 0;
    std::atomic<uint64_t>                n_done = 0;  // calls whose work is done: who comes too late goes back to sleep
};

}  // namespace llama_common_c
