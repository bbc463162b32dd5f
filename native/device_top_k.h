// The best tokens of every sequence, found where the logits are: on the device. Only they cross the bus.

#pragma once

#include "candidates.h"
#include "ggml-cpp.h"
#include "llama.h"

#include <cstdint>
#include <memory>
#include <vector>

struct ggml_context;
struct ggml_cgraph;
struct ggml_tensor;

namespace llama_common_c {

// Attaches itself to the sequences of a context as their sampler, and adds to each graph what selects, for all rows of
// logits at once, groups of tokens that hold the `MINIMUM` best ones of each row.
//
// A group's greatest logit stands for it: the groups that hold the n best tokens are among the n groups with the
// greatest maxima. That is done twice, with large groups and again with smaller ones inside of them. What remains to be
// chosen from is small enough for the host, so the parameters of requests never enter the graph, and thirty-two
// requests with thirty-two settings share one.
class device_top_k {
public:
    static constexpr int64_t MINIMUM = 128;

    explicit device_top_k(int32_t n_seq);
    ~device_top_k();
    device_top_k(const device_top_k &)             = delete;
    device_top_k & operator=(const device_top_k &) = delete;

    // For llama_context_params.samplers.
    std::vector<llama_sampler_seq_config> configs;

    // Whether the logits are on a device that can do this; known after the context was created.
    bool usable() const { return on_device; }

    // How many rows the last graph had.
    int64_t n_rows() const;

    // Fetches what the last graph selected. The context must be synchronized.
    void fetch();

    // After fetch(): the `n` best tokens of a row, as far as they were selected, and those beside them that reach the bound.
    void take(int64_t row, int64_t n, candidates & result) const;

    // A whole row of logits, straight from the device, at once and in any thread; or in a while, after wait().
    void fetch_row(int64_t row, float * to) const;
    void copy_row(int64_t row, float * to) const;
    void wait() const;

    // What the engine calls through llama_sampler_i.
    void prepare(ggml_backend_buffer_type * buffer_type);
    void reset() { built = false; }
    void build(ggml_context * context, ggml_cgraph * graph, ggml_tensor * row_of_logits);

private:
    struct deleter {
        void operator()(llama_sampler * chain) const { llama_sampler_free(chain); }
    };

    std::vector<std::unique_ptr<llama_sampler, deleter>> chains;

    bool on_device = false;
    bool built     = false;

    // tensors of the graph that was built last
    ggml_tensor * logits     = nullptr;  // [n_vocab, n_rows]
    ggml_tensor * values     = nullptr;  // [size of a group, groups chosen last, n_rows]
    ggml_tensor * groups     = nullptr;  // [groups chosen first, n_rows]; NULL when `values` are single tokens
    ggml_tensor * subgroups  = nullptr;  // [groups chosen last, n_rows], counted inside of `groups`; may be NULL
    int64_t       group_size = 0;

    // what fetch() got, in memory that the device writes to by itself
    ggml_backend_ptr           copier;
    ggml_backend_buffer_type * host_type = nullptr;
    ggml_backend_buffer_ptr    host;
    const float *              host_values    = nullptr;
    const int32_t *            host_groups    = nullptr;
    const int32_t *            host_subgroups = nullptr;
};

}  // namespace llama_common_c
