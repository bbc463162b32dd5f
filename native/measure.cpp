// What a model and a context would take on each device, without taking it.

#include "fit.h"
#include "support.h"

#include "ggml-backend.h"

#include <vector>

using namespace llama_common_c;

extern "C" {

enum llama_common_status llama_common_measure(const char * path, const struct llama_model_params * model_params,
        const struct llama_context_params * context_params, char ** result, char ** error) {
    return guarded(error, LLAMA_COMMON_INTERNAL_ERROR, [&] {
        std::vector<ggml_backend_dev_t> devices;
        uint32_t                        n_layer = 0, n_ctx_train = 0, n_expert = 0;
        const auto found = common_get_device_memory_data(required(path, "path"), required(model_params, "model_params"),
                required(context_params, "context_params"), devices, n_layer, n_ctx_train, n_expert,
                GGML_LOG_LEVEL_ERROR);
        auto       array = common_json::array();
        for (size_t i = 0; i < found.size(); i++) {
            // the last one is the host
            const bool is_host = i >= devices.size();
            array.push_back(common_json::object({
                    {"name", is_host ? std::string("CPU") : std::string(ggml_backend_dev_name(devices[i]))},
                    {"total", found[i].total},
                    {"free", found[i].free},
                    {"model", (int64_t) found[i].model},
                    {"context", (int64_t) found[i].context},
                    {"compute", (int64_t) found[i].compute},
            }));
        }
        *required(result, "result") = copy_string(common_json::object({
                                                                              {"devices", array},
                                                                              {"n_layer", (int64_t) n_layer},
                                                                              {"n_ctx_train", (int64_t) n_ctx_train},
                                                                      })
                        .dump_safe());
    });
}
}
