#include "device_top_k.h"

#include "ggml-backend.h"
#include "ggml.h"

#include <algorithm>
#include <new>

namespace llama_common_c {

namespace {

device_top_k & owner(const llama_sampler * sampler) {
    return *static_cast<device_top_k *>(sampler->ctx);
}

llama_sampler_i interface() {
    llama_sampler_i i = {};
    i.name            = [](const llama_sampler *) { return "device-top-k"; };
    i.apply           = [](llama_sampler *, llama_token_data_array *) {};
    i.backend_init    = [](llama_sampler * sampler, ggml_backend_buffer_type_t buffer_type, uint32_t) {
        owner(sampler).prepare(buffer_type);
        return true;
    };
    i.backend_reset = [](llama_sampler * sampler) { owner(sampler).reset(); };
    i.backend_apply = [](llama_sampler * sampler, ggml_context * context, ggml_cgraph * graph,
                              llama_sampler_data * data) {
        owner(sampler).build(context, graph, data->logits);
        // nothing is left for the engine to copy to the host
        data->logits = nullptr;
    };
    return i;
}

llama_sampler_i INTERFACE = interface();

// The greatest power of two up to `limit` that divides n.
int64_t divisor(int64_t n, int64_t limit) {
    return std::min(limit, n & -n);
}

// The indices [n, n_rows] of the n greatest of each row.
ggml_tensor * best(ggml_context * context, ggml_tensor * rows, int64_t n) {
    ggml_tensor * sorted = ggml_argsort(context, rows, GGML_SORT_ORDER_DESC);
    return ggml_cont(context, ggml_view_2d(context, sorted, n, sorted->ne[1], sorted->nb[1], 0));
}

// Of [group, n_groups, n_rows] the `chosen` groups of each row.
ggml_tensor * gather(ggml_context * context, ggml_tensor * groups, ggml_tensor * chosen) {
    return ggml_get_rows(context, groups, chosen);
}

// Of [n, n_rows], cut into groups of `size`, their maxima [n / size, n_rows]. In two passes where groups are large: one
// thread of the device reads a whole group.
ggml_tensor * maxima(ggml_context * context, ggml_tensor * rows, int64_t size) {
    if (size > 16) {
        return maxima(context, maxima(context, rows, 16), size / 16);
    }
    return ggml_pool_1d(context, rows, GGML_OP_POOL_MAX, (int) size, (int) size, 0);
}

ggml_tensor * grouped(ggml_context * context, ggml_tensor * rows, int64_t size) {
    return ggml_reshape_3d(context, rows, size, rows->ne[0] / size, rows->ne[1]);
}

// Of a tensor that a `backend` can copy while others do so, or, should the engine have put it elsewhere, at once.
void copy(ggml_backend * backend, const ggml_tensor * tensor, void * host, size_t offset, size_t size) {
    ggml_backend_buffer * buffer = tensor->view_src ? tensor->view_src->buffer : tensor->buffer;
    if (ggml_backend_buffer_get_type(buffer) == ggml_backend_get_default_buffer_type(backend)) {
        ggml_backend_tensor_get_async(backend, tensor, host, offset, size);
    } else {
        ggml_backend_tensor_get(tensor, host, offset, size);
    }
}

}  // namespace

device_top_k::device_top_k(int32_t n_seq) {
    auto parameters    = llama_sampler_chain_default_params();
    parameters.no_perf = true;
    for (int32_t seq = 0; seq < n_seq; seq++) {
        chains.emplace_back(llama_sampler_chain_init(parameters));
        llama_sampler_chain_add(chains.back().get(), llama_sampler_init(&INTERFACE, this));
        configs.push_back({seq, chains.back().get()});
    }
}

device_top_k::~device_top_k() = default;

void device_top_k::prepare(ggml_backend_buffer_type * buffer_type) {
    ggml_backend_dev_t device = ggml_backend_buft_get_device(buffer_type);
    if (device == nullptr || ggml_backend_dev_type(device) == GGML_BACKEND_DEVICE_TYPE_CPU) {
        on_device = false;
        return;
    }
    if (!copier || ggml_backend_get_device(copier.get()) != device) {
        copier.reset(ggml_backend_dev_init(device, nullptr));
    }
    host_type = ggml_backend_dev_host_buffer_type(device);
    if (host_type == nullptr) {
        host_type = ggml_backend_cpu_buffer_type();
    }
    on_device = copier != nullptr;
}

void device_top_k::build(ggml_context * context, ggml_cgraph * graph, ggml_tensor * row_of_logits) {
    if (built) {
        return;
    }
    built = true;
    // the engine shows one row of the logits, behind which it padded another one: behind that are all rows
    ggml_tensor * padded = row_of_logits->view_src;
    logits               = padded != nullptr && padded->op == GGML_OP_PAD ? padded->src[0] : row_of_logits;
    values = groups = subgroups = nullptr;
    if (logits->ne[1] == 0) {
        return;
    }
    const int64_t n_vocab = logits->ne[0];
    const int64_t n       = std::min(MINIMUM, n_vocab);
    ggml_tensor * rows    = ggml_is_contiguous(logits) ? logits : ggml_cont(context, logits);
    group_size            = divisor(n_vocab, 128);
    if (group_size < 8 || n_vocab / group_size <= n) {
        // a vocabulary that cannot be cut into groups
        group_size = 1;
        groups     = best(context, rows, n);
        values     = gather(context, ggml_reshape_3d(context, rows, 1, n_vocab, rows->ne[1]), groups);
    } else {
        groups = best(context, maxima(context, rows, group_size), n);
        values = gather(context, grouped(context, rows, group_size), groups);
        // [group, n, n_rows] -> 1024 groups, so that one block of threads can sort their maxima
        // (a few rows are copied sooner than that is done)
        const int64_t size = std::max<int64_t>(group_size * n / 1024, 1);
        if (size > 1 && size < group_size && rows->ne[1] > 4) {
            ggml_tensor * chosen = ggml_reshape_2d(context, values, group_size * n, values->ne[2]);
            subgroups            = best(context, maxima(context, chosen, size), n);
            values               = gather(context, grouped(context, chosen, size), subgroups);
        }
    }
    for (ggml_tensor * output : {groups, subgroups, values}) {
        if (output != nullptr) {
            ggml_set_output(output);
            ggml_build_forward_expand(graph, output);
        }
    }
}

int64_t device_top_k::n_rows() const {
    return logits ? logits->ne[1] : 0;
}

// One wait for all three copies.
void device_top_k::fetch() {
    const ggml_tensor * tensors[] = {values, groups, subgroups};
    size_t              size      = 0;
    for (const auto * tensor : tensors) {
        size += tensor ? ggml_nbytes(tensor) : 0;
    }
    if (!host || ggml_backend_buffer_get_size(host.get()) < size) {
        host.reset(ggml_backend_buft_alloc_buffer(host_type, size));
        if (!host) {
            throw std::bad_alloc();
        }
    }
    auto *       base     = static_cast<char *>(ggml_backend_buffer_get_base(host.get()));
    const void * copies[] = {nullptr, nullptr, nullptr};
    for (int i = 0; i < 3; i++) {
        if (tensors[i] != nullptr) {
            copy(copier.get(), tensors[i], base, 0, ggml_nbytes(tensors[i]));
            copies[i] = base;
            base += ggml_nbytes(tensors[i]);
        }
    }
    wait();
    host_values    = static_cast<const float *>(copies[0]);
    host_groups    = static_cast<const int32_t *>(copies[1]);
    host_subgroups = static_cast<const int32_t *>(copies[2]);
}

void device_top_k::take(int64_t row, int64_t n, candidates & result) const {
    const int64_t size     = values->ne[0];
    const int64_t n_groups = values->ne[1];
    const float * value    = host_values + row * size * n_groups;
    // the groups with the greatest maxima come first
    n            = std::min(n, n_groups);
    result.bound = greatest(value + (n - 1) * size, size);
    result.tokens.clear();
    for (int64_t i = 0; i < size * n; i++) {
        if (!(value[i] >= result.bound)) {
            continue;
        }
        // where it was among the groups chosen first, then in the vocabulary
        int64_t place = subgroups ? host_subgroups[row * n_groups + i / size] * size + i % size : i;
        place         = host_groups[row * groups->ne[0] + place / group_size] * group_size + place % group_size;
        result.tokens.push_back({(llama_token) place, value[i], 0.0f});
    }
}

void device_top_k::fetch_row(int64_t row, float * to) const {
    ggml_backend_tensor_get(logits, to, row * logits->nb[1], logits->ne[0] * sizeof(float));
}

void device_top_k::copy_row(int64_t row, float * to) const {
    copy(copier.get(), logits, to, row * logits->nb[1], logits->ne[0] * sizeof(float));
}

void device_top_k::wait() const {
    ggml_backend_synchronize(copier.get());
}

}  // namespace llama_common_c
