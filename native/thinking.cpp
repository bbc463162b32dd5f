// What a model thinks before it answers: how much that may be, and that no grammar wakes in it.
//
// Tags are looked for in the text and not among tokens: where a tag is no token of its own, a vocabulary has several ways to
// write it.

#include "common.h"
#include "support.h"

#include <algorithm>
#include <cmath>
#include <memory>

using namespace llama_common_c;

namespace {

struct sampler_deleter {
    void operator()(llama_sampler * sampler) const { llama_sampler_free(sampler); }
};

using sampler_ptr = std::unique_ptr<llama_sampler, sampler_deleter>;

// Whether a text ends within a character.
bool is_torn(const std::string & text) {
    for (size_t n = 1; n <= std::min<size_t>(3, text.size()); n++) {
        const auto byte = (unsigned char) text[text.size() - n];
        if (byte >= 0xC0) {
            return n < (byte >= 0xF0 ? 4u : byte >= 0xE0 ? 3u : 2u);
        }
        if (byte < 0x80) {
            return false;
        }
    }
    return false;
}

struct thinking {
    enum {
        SPEAKING,
        THINKING,
        ENDING
    } state = SPEAKING;

    const llama_vocab *      vocab;
    std::vector<std::string> starts;  // tags
    std::vector<std::string> ends;
    size_t                   longest = 4;  // of them, in bytes; a character's if that is more
    llama_tokens             ending;       // what is written when the budget is used up
    int32_t                  budget;       // less than 0 is no limit
    sampler_ptr              grammar;
    bool                     lazy;

    int32_t     n_left    = 0;  // of the budget
    size_t      n_written = 0;  // of `ending`
    std::string text;           // the last of it, in which a tag may have begun

    // A lazy grammar waits for what begins a call, which may be spoken of in thoughts.
    bool grammar_listens() const { return grammar && (!lazy || state == SPEAKING); }

    void apply(llama_token_data_array * tokens) const {
        if (state == ENDING) {
            for (size_t i = 0; i < tokens->size; i++) {
                if (tokens->data[i].id != ending[n_written]) {
                    tokens->data[i].logit = -INFINITY;
                }
            }
        }
        if (grammar_listens()) {
            llama_sampler_apply(grammar.get(), tokens);
        }
    }

    void accept(llama_token token) {
        const bool        listened = grammar_listens();
        const std::string end      = follow(token);
        if (listened) {
            llama_sampler_accept(grammar.get(), token);
        } else if (grammar && !end.empty()) {
            // what ended the thoughts may be what the grammar waits for
            for (const llama_token part : common_tokenize(vocab, end, false, true)) {
                llama_sampler_accept(grammar.get(), part);
            }
        }
    }

    // Takes a further token of the text; returns the tag with which it ended thoughts.
    std::string follow(llama_token token) {
        const auto before = state;
        text += common_token_to_piece(vocab, token, true);
        std::string ended = look_for_tags();
        if (state == ENDING && ++n_written == ending.size()) {  // the tag did not come out of it
            state = SPEAKING;
            ended = ends.front();
            text.clear();
        } else if (state == THINKING) {
            n_left -= before == THINKING;  // the token that ends the tag is none of its
            end_if_used_up();
        }
        return ended;
    }

    std::string look_for_tags() {
        std::string ended;
        while (true) {
            const auto & tags = state == SPEAKING ? starts : ends;
            const auto   tag  = std::find_if(
                    tags.begin(), tags.end(), [&](const auto & one) { return text.find(one) != std::string::npos; });
            if (tag == tags.end()) {
                break;
            }
            text.erase(0, text.find(*tag) + tag->size());
            ended  = state == SPEAKING ? "" : *tag;
            n_left = budget;
            state  = state == SPEAKING ? THINKING : SPEAKING;
        }
        text.erase(0, text.size() - std::min(text.size(), longest));
        return ended;
    }

    void end_if_used_up() {
        if (state == THINKING && budget >= 0 && n_left <= 0 && !is_torn(text)) {
            state     = ENDING;
            n_written = 0;
        }
    }
};

thinking & owner(const llama_sampler * sampler) {
    return *static_cast<thinking *>(sampler->ctx);
}

llama_sampler_i interface() {
    llama_sampler_i i = {};
    i.name            = [](const llama_sampler *) { return "thinking"; };
    i.apply           = [](llama_sampler * sampler, llama_token_data_array * tokens) { owner(sampler).apply(tokens); };
    i.accept          = [](llama_sampler * sampler, llama_token token) { owner(sampler).accept(token); };
    i.free            = [](llama_sampler * sampler) { delete &owner(sampler); };
    return i;
}

llama_sampler_i INTERFACE = interface();

}  // namespace

extern "C" {

enum llama_common_status llama_common_thinking_init(const struct llama_vocab * vocab, const char * format,
        int32_t budget, const char * message, struct llama_sampler * grammar, struct llama_sampler ** sampler,
        char ** error) {
    sampler_ptr owned(grammar);
    return guarded(error, LLAMA_COMMON_INTERNAL_ERROR, [&] {
        required(vocab, "vocab");
        required(sampler, "sampler");
        const auto json   = parse_object(format, "format");
        auto       result = std::make_unique<thinking>();
        result->vocab     = vocab;
        result->starts    = {field<std::string>(json, "thinking_start_tag", "")};
        result->ends      = field<std::vector<std::string>>(json, "thinking_end_tags", {});
        for (auto * tags : {&result->starts, &result->ends}) {
            tags->erase(std::remove(tags->begin(), tags->end(), ""), tags->end());
            for (const auto & tag : *tags) {
                result->longest = std::max(result->longest, tag.size());
            }
            if (tags->empty()) {
                throw failure(LLAMA_COMMON_INVALID_ARGUMENT, "format has no tags around thoughts");
            }
        }
        result->budget  = budget;
        result->lazy    = field<bool>(json, "grammar_lazy", false);
        result->grammar = std::move(owned);
        result->ending =
                common_tokenize(vocab, (message == nullptr ? "" : message) + result->ends.front(), false, true);
        if (result->ending.empty()) {
            throw failure(LLAMA_COMMON_INVALID_ARGUMENT, "the vocabulary has no tokens for the tag that ends thoughts");
        }
        // thoughts may have begun in the prompt; its tokens are none of the budget's
        result->text = field<std::string>(json, "generation_prompt", "");
        result->look_for_tags();
        result->end_if_used_up();
        *sampler = llama_sampler_init(&INTERFACE, result.get());
        result.release();
    });
}
}
