#include "common.h"
#include "support.h"

#include <algorithm>
#include <memory>

// of the engine, by way of vendor/llama.cpp/patches/0008-grammar-repetitions.patch
const char * llama_grammar_last_error(void);

using namespace llama_common_c;

namespace {

// How the engine begins to say that a grammar names tokens of a vocabulary, and there is none.
const std::string NO_VOCAB = "no vocab";

struct sampler_deleter {
    void operator()(llama_sampler * sampler) const { llama_sampler_free(sampler); }
};

using sampler_ptr = std::unique_ptr<llama_sampler, sampler_deleter>;

struct triggers {
    std::vector<std::string> patterns;
    std::vector<llama_token> tokens;
};

std::string anchored(const std::string & pattern) {
    std::string result = pattern;
    if (result.empty() || result.front() != '^') {
        result.insert(result.begin(), '^');
    }
    if (result.back() != '$') {
        result += '$';
    }
    return result;
}

triggers read_triggers(const llama_vocab * vocab, const common_json & format) {
    triggers result;
    if (!present(format, "grammar_triggers")) {
        return result;
    }
    const auto preserved = field<std::vector<std::string>>(format, "preserved_tokens", {});
    for (auto & item : format.at("grammar_triggers")) {
        const auto type  = field<int32_t>(item, "type", -1);
        const auto value = field<std::string>(item, "value", "");
        switch (type) {
        case COMMON_GRAMMAR_TRIGGER_TYPE_TOKEN:
            result.tokens.push_back(field<int32_t>(item, "token", LLAMA_TOKEN_NULL));
            break;
        case COMMON_GRAMMAR_TRIGGER_TYPE_WORD: {
            // a marker that is one token is matched as that token, whatever text surrounds it
            const auto tokens = common_tokenize(vocab, value, false, true);
            if (tokens.size() == 1 && std::find(preserved.begin(), preserved.end(), value) != preserved.end()) {
                result.tokens.push_back(tokens[0]);
            } else {
                result.patterns.push_back(regex_escape(value));
            }
            break;
        }
        case COMMON_GRAMMAR_TRIGGER_TYPE_PATTERN:
            result.patterns.push_back(value);
            break;
        case COMMON_GRAMMAR_TRIGGER_TYPE_PATTERN_FULL:
            result.patterns.push_back(anchored(value));
            break;
        default:
            throw failure(LLAMA_COMMON_INVALID_ARGUMENT, "unknown grammar trigger type " + std::to_string(type));
        }
    }
    return result;
}

// The engine says where by what is left of the grammar; a line and a column are shorter.
std::string with_place(const std::string & grammar, const std::string & why) {
    static const std::string AT = " at ";
    for (size_t at = why.find(AT); at != std::string::npos; at = why.find(AT, at + 1)) {
        const auto rest = why.substr(at + AT.size());
        if (rest.size() > grammar.size() || grammar.compare(grammar.size() - rest.size(), rest.size(), rest) != 0) {
            continue;
        }
        const auto before = grammar.substr(0, grammar.size() - rest.size());
        const auto line   = std::count(before.begin(), before.end(), '\n') + 1;
        const auto start  = before.rfind('\n') + 1;  // 0 where there is none
        return why.substr(0, at) + " at line " + std::to_string(line) + ", column " +
               std::to_string(before.size() - start + 1);
    }
    return why;
}

// The grammar describes the whole answer; what the prompt already holds of it has to be read first.
void read_generation_prompt(llama_sampler * sampler, const llama_vocab * vocab, const std::string & prompt) {
    if (prompt.empty()) {
        return;
    }
    bool first = true;
    for (const llama_token token : common_tokenize(vocab, prompt, false, true)) {
        const auto piece       = common_token_to_piece(vocab, token, true);
        const bool added_space = first && !piece.empty() && std::isspace((unsigned char) piece[0]) &&
                                 !std::isspace((unsigned char) prompt[0]);
        first                  = false;
        if (llama_vocab_is_eog(vocab, token)) {
            throw failure(LLAMA_COMMON_GRAMMAR_ERROR, "the generation prompt ends the answer");
        }
        if (!added_space) {
            llama_sampler_accept(sampler, token);
        }
    }
}

}  // namespace

extern "C" {

enum llama_common_status llama_common_grammar_init(const struct llama_vocab * vocab, const char * format,
        const struct llama_common_limits * limits, struct llama_sampler ** sampler, char ** error) {
    return guarded(error, LLAMA_COMMON_GRAMMAR_ERROR, [&] {
        required(sampler, "sampler");
        const auto json    = parse_object(format, "format");
        const auto grammar = field<std::string>(json, "grammar", "");
        const bool lazy    = field<bool>(json, "grammar_lazy", false);
        const auto prompt  = field<std::string>(json, "generation_prompt", "");
        if (lazy || !prompt.empty()) {
            required(vocab, "vocab");
        }
        sampler_ptr result;
        std::string why;
        // the parser and its check for left recursion descend as deep as the grammar is nested
        on_large_stack(
                [&] {
                    if (!lazy) {
                        result.reset(llama_sampler_init_grammar(vocab, grammar.c_str(), "root"));
                        why = llama_grammar_last_error();
                        return;
                    }
                    const auto                wake = read_triggers(vocab, json);
                    std::vector<const char *> patterns;
                    for (const auto & pattern : wake.patterns) {
                        patterns.push_back(pattern.c_str());
                    }
                    result.reset(llama_sampler_init_grammar_lazy_patterns(vocab, grammar.c_str(), "root",
                            patterns.data(), patterns.size(), wake.tokens.data(), wake.tokens.size()));
                    why = llama_grammar_last_error();
                },
                limits);
        if (!result && vocab == nullptr && why.compare(0, NO_VOCAB.size(), NO_VOCAB) == 0) {
            *sampler = nullptr;
            return;
        }
        if (!result) {
            throw failure(LLAMA_COMMON_GRAMMAR_ERROR, "the grammar does not parse: " + with_place(grammar, why));
        }
        if (!lazy) {
            const grammar_limit limited(
                    limits == nullptr ? 0 : limits->n_stacks, limits == nullptr ? 0 : limits->seconds);
            read_generation_prompt(result.get(), vocab, prompt);
        }
        *sampler = result.release();
    });
}
}
