#include "chat.h"

#include "common.h"
#include "json-schema.h"
#include "support.h"

#include <chrono>
#include <map>
#include <memory>
#include <random>

using namespace llama_common_c;

struct llama_common_chat {
    common_chat_templates_ptr templates;
};

struct llama_common_chat_parser {
    common_chat_parser_params params;
    common_chat_msg           previous;
    std::vector<std::string>  tool_call_ids;
};

namespace {

// Far above any template in use (the largest known is under 32 KiB); bounds what its parser can nest.
constexpr size_t MAX_TEMPLATE_SIZE = size_t(256) << 10;

// Turns what the OpenAI-format readers throw into the caller's mistake.
template <typename Read> auto from_request(Read && read) -> decltype(read()) {
    try {
        return read();
    } catch (const std::exception & e) {
        throw failure(LLAMA_COMMON_INVALID_ARGUMENT, e.what());
    }
}

common_chat_templates_inputs read_inputs(const common_json & request) {
    common_chat_templates_inputs inputs;
    if (!present(request, "messages")) {
        throw failure(LLAMA_COMMON_INVALID_ARGUMENT, "\"messages\" is required");
    }
    from_request([&] {
        inputs.messages = common_chat_msgs_parse_oaicompat(request.at("messages"));
        if (present(request, "tools")) {
            inputs.tools = common_chat_tools_parse_oaicompat(request.at("tools"));
        }
        inputs.tool_choice =
                common_chat_tool_choice_parse_oaicompat(field<std::string>(request, "tool_choice", "auto"));
        inputs.reasoning_format =
                common_reasoning_format_from_name(field<std::string>(request, "reasoning_format", "auto"));
        if (present(request, "continue_final_message")) {
            inputs.continue_final_message = common_chat_continuation_parse(request.at("continue_final_message"));
        }
    });
    if (present(request, "json_schema")) {
        inputs.json_schema = request.at("json_schema").dump();
    }
    inputs.grammar               = field<std::string>(request, "grammar", "");
    inputs.parallel_tool_calls   = field<bool>(request, "parallel_tool_calls", false);
    inputs.add_generation_prompt = field<bool>(request, "add_generation_prompt", true);
    inputs.enable_thinking       = field<bool>(request, "enable_thinking", true);
    if (present(request, "chat_template_kwargs")) {
        for (const auto & item : request.at("chat_template_kwargs").items()) {
            inputs.chat_template_kwargs[item.key()] = item.value().dump();
        }
    }
    if (present(request, "now")) {
        inputs.now = std::chrono::system_clock::time_point(std::chrono::seconds(field<int64_t>(request, "now", 0)));
    }
    return inputs;
}

common_json triggers_to_json(const std::vector<common_grammar_trigger> & triggers) {
    auto array = common_json::array();
    for (const auto & trigger : triggers) {
        array.push_back(common_json::object({
                {"type", (int32_t) trigger.type},
                {"value", trigger.value},
                {"token", (int32_t) trigger.token},
        }));
    }
    return array;
}

// Collects the schemas of this thread for as long as it lives.
struct collecting {
    explicit collecting(common_schema_collector * collector) { common_schema_collector::current() = collector; }
    ~collecting() { common_schema_collector::current() = nullptr; }
    collecting(const collecting &)             = delete;
    collecting & operator=(const collecting &) = delete;
};

std::string random_nonce() {
    std::random_device random;
    return std::to_string(random()) + std::to_string(random());
}

common_json schemas_to_json(const common_schema_collector & collector) {
    auto                           array = common_json::array();
    std::map<const void *, size_t> known;  // a document is written down once
    for (const auto & item : collector.items) {
        auto       entry = common_json::object({
                {"mark", item.mark},
                {"place", item.place},
                {"how", item.how},
                {"end", item.end},
                {"with_end", item.with_end},
                {"absent", item.absent},
        });
        const auto first = known.emplace(item.document.get(), array.size());
        if (first.second) {
            entry["document"] = item.document->dump();
        } else {
            entry["same_as"] = first.first->second;
        }
        array.push_back(entry);
    }
    return array;
}

common_json result_to_json(const common_chat_params & params, const common_chat_templates_inputs & inputs) {
    const bool parses_tools = !inputs.tools.empty() && inputs.tool_choice != COMMON_CHAT_TOOL_CHOICE_NONE;
    return common_json::object({
            {"prompt", params.prompt},
            {"format", (int32_t) params.format},
            {"format_name", std::string(common_chat_format_name(params.format))},
            {"grammar", params.grammar},
            {"grammar_lazy", params.grammar_lazy},
            {"grammar_triggers", triggers_to_json(params.grammar_triggers)},
            {"preserved_tokens", params.preserved_tokens},
            {"additional_stops", params.additional_stops},
            {"generation_prompt", params.generation_prompt},
            {"supports_thinking", params.supports_thinking},
            {"thinking_start_tag", params.thinking_start_tag},
            {"thinking_end_tags", params.thinking_end_tags},
            {"parser", params.parser},
            {"reasoning_format", std::string(common_reasoning_format_name(inputs.reasoning_format))},
            {"parse_tool_calls", parses_tools},
            {"is_continuation", inputs.continue_final_message != COMMON_CHAT_CONTINUATION_NONE},
    });
}

std::string random_tool_call_id() {
    static const char                     letters[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789";
    thread_local std::mt19937_64          random{std::random_device{}()};
    std::uniform_int_distribution<size_t> position(0, sizeof(letters) - 2);
    std::string                           id = "call_";
    for (int i = 0; i < 24; i++) {
        id += letters[position(random)];
    }
    return id;
}

common_chat_msg parse_answer(llama_common_chat_parser & parser, const char * text, size_t n_text, bool is_partial) {
    auto message = common_chat_parse(std::string(required(text, "text"), n_text), is_partial, parser.params);
    message.set_tool_call_ids(parser.tool_call_ids, random_tool_call_id);
    return message;
}

common_json delta_to_json(const common_chat_msg_diff & diff) {
    auto delta = common_json::object();
    if (!diff.reasoning_content_delta.empty()) {
        delta["reasoning_content"] = diff.reasoning_content_delta;
    }
    if (!diff.content_delta.empty()) {
        delta["content"] = diff.content_delta;
    }
    if (diff.tool_call_index != std::string::npos) {
        const auto & call     = diff.tool_call_delta;
        auto         function = common_json::object();
        if (!call.name.empty()) {
            function["name"] = call.name;
        }
        function["arguments"] = call.arguments;

        auto tool_call = common_json::object({{"index", diff.tool_call_index}});
        if (!call.id.empty()) {
            tool_call["id"]   = call.id;
            tool_call["type"] = "function";
        }
        tool_call["function"] = function;

        auto calls = common_json::array();
        calls.push_back(tool_call);
        delta["tool_calls"] = calls;
    }
    return delta;
}

}  // namespace

extern "C" {

enum llama_common_status llama_common_chat_init(const struct llama_model * model, const char * chat_template,
        const char * bos_token, const char * eos_token, const struct llama_common_limits * limits,
        struct llama_common_chat ** chat, char ** error) {
    return guarded(error, LLAMA_COMMON_TEMPLATE_ERROR, [&] {
        required(chat, "chat");
        const std::string source = chat_template ? chat_template : "";
        if (source.empty()) {
            required(model, "model (with no chat_template)");
        }
        const std::string bos    = bos_token ? bos_token : "";
        const std::string eos    = eos_token ? eos_token : "";
        auto              result = std::make_unique<llama_common_chat>();
        on_large_stack(
                [&] {
                    // llama.cpp slices the exception it rethrows here, and ignores a tool template that does not parse:
                    // parsing first keeps the message.
                    for (const char * name : {(const char *) nullptr, "tool_use"}) {
                        const char * text = !source.empty() ? source.c_str() : llama_model_chat_template(model, name);
                        if (text == nullptr) {
                            continue;
                        }
                        if (std::strlen(text) > MAX_TEMPLATE_SIZE) {
                            throw failure(LLAMA_COMMON_TEMPLATE_ERROR, "the chat template is larger than 256 KiB");
                        }
                        if (std::strcmp(text, "chatml") != 0) {
                            common_chat_template parsed(text, bos, eos);
                        }
                    }
                    result->templates = common_chat_templates_init(model, source, bos, eos);
                },
                limits);
        *chat = result.release();
    });
}

void llama_common_chat_free(struct llama_common_chat * chat) {
    guarded(nullptr, LLAMA_COMMON_INTERNAL_ERROR, [&] { on_large_stack([&] { delete chat; }); });
}

enum llama_common_status llama_common_chat_describe(
        const struct llama_common_chat * chat, char ** description, char ** error) {
    return guarded(error, LLAMA_COMMON_INTERNAL_ERROR, [&] {
        const auto * templates = required(chat, "chat")->templates.get();
        required(description, "description");
        *description = copy_string(common_json::object(
                {
                        {"source", common_chat_templates_source(templates)},
                        {"source_tool_use", common_chat_templates_source(templates, "tool_use")},
                        {"explicit", common_chat_templates_was_explicit(templates)},
                        {"supports_thinking", common_chat_templates_support_enable_thinking(templates)},
                        {"capabilities", common_json(common_chat_templates_get_caps(templates))},
                })
                        .dump_safe());
    });
}

enum llama_common_status llama_common_chat_apply(const struct llama_common_chat * chat, const char * request,
        const struct llama_common_limits * limits, char ** result, char ** error) {
    return guarded(error, LLAMA_COMMON_TEMPLATE_ERROR, [&] {
        required(chat, "chat");
        required(result, "result");
        on_large_stack(
                [&] {
                    const auto              json   = parse_object(request, "request");
                    const auto              inputs = read_inputs(json);
                    common_schema_collector collector{random_nonce(), {}};
                    const bool              collects = field<bool>(json, "collect_schemas", false);
                    const collecting        scope(collects ? &collector : nullptr);
                    const auto              params = common_chat_templates_apply(chat->templates.get(), inputs);
                    auto                    found  = result_to_json(params, inputs);
                    if (collects) {
                        found["schemas"] = schemas_to_json(collector);
                    }
                    *result = copy_string(found.dump_safe());
                },
                limits);
    });
}

enum llama_common_status llama_common_chat_parser_init(
        const char * format, struct llama_common_chat_parser ** parser, char ** error) {
    return guarded(error, LLAMA_COMMON_INVALID_ARGUMENT, [&] {
        required(parser, "parser");
        const auto json   = parse_object(format, "format");
        auto       result = std::make_unique<llama_common_chat_parser>();
        auto &     params = result->params;

        const auto kind = field<int32_t>(json, "format", COMMON_CHAT_FORMAT_CONTENT_ONLY);
        if (kind < 0 || kind >= COMMON_CHAT_FORMAT_COUNT) {
            throw failure(LLAMA_COMMON_INVALID_ARGUMENT, "\"format\" is not a chat format: " + std::to_string(kind));
        }
        params.format = (common_chat_format) kind;
        params.reasoning_format =
                common_reasoning_format_from_name(field<std::string>(json, "reasoning_format", "auto"));
        params.generation_prompt = field<std::string>(json, "generation_prompt", "");
        params.parse_tool_calls  = field<bool>(json, "parse_tool_calls", true);
        params.is_continuation   = field<bool>(json, "is_continuation", false);

        const auto arena = field<std::string>(json, "parser", "");
        if (!arena.empty()) {
            params.parser.load(arena);
        }
        if (params.is_continuation) {
            // what the prompt already holds of the answer is known, not new
            result->previous = common_chat_parse("", true, params);
        }
        *parser = result.release();
    });
}

void llama_common_chat_parser_free(struct llama_common_chat_parser * parser) {
    guarded(nullptr, LLAMA_COMMON_INTERNAL_ERROR, [&] { delete parser; });
}

enum llama_common_status llama_common_chat_parser_parse(struct llama_common_chat_parser * parser, const char * text,
        size_t n_text, bool is_partial, char ** message, char ** error) {
    return guarded(error, LLAMA_COMMON_PARSE_ERROR, [&] {
        required(parser, "parser");
        required(message, "message");
        *message = copy_string(parse_answer(*parser, text, n_text, is_partial).to_json_oaicompat().dump_safe());
    });
}

enum llama_common_status llama_common_chat_parser_update(struct llama_common_chat_parser * parser, const char * text,
        size_t n_text, bool is_partial, char ** deltas, char ** error) {
    return guarded(error, LLAMA_COMMON_PARSE_ERROR, [&] {
        required(parser, "parser");
        required(deltas, "deltas");
        auto message = parse_answer(*parser, text, n_text, is_partial);
        auto array   = common_json::array();
        // a partial answer from which nothing can be read yet takes nothing back
        if (!message.empty()) {
            for (const auto & diff : common_chat_msg_diff::compute_diffs(parser->previous, message)) {
                array.push_back(delta_to_json(diff));
            }
            *deltas          = copy_string(array.dump_safe());
            parser->previous = std::move(message);
        } else {
            *deltas = copy_string(array.dump_safe());
        }
    });
}
}
