// Drafts what follows in each sequence, for the model to check several tokens at once.

#include "speculative.h"
#include "support.h"

#include <algorithm>
#include <memory>
#include <vector>

using namespace llama_common_c;

struct llama_common_speculator {
    struct history {
        llama_tokens before;  // all tokens but the last one
        llama_token  last = LLAMA_TOKEN_NULL;
        llama_tokens draft;
        bool         waits = false;  // for what became of the draft
    };

    common_params_speculative params;
    common_speculative_ptr    common;
    llama_context *           draft;                  // NULL when nothing but the history is looked at
    bool                      reads_batches = false;  // it needs what the model computed, not only tokens
    common_batch              batch;
    std::vector<history>      histories;

    history & of(int32_t sequence) {
        if (sequence < 0 || (size_t) sequence >= histories.size()) {
            throw failure(LLAMA_COMMON_INVALID_ARGUMENT, "there is no sequence " + std::to_string(sequence));
        }
        return histories[sequence];
    }

    // Lets the draft's memory hold what came before the last token, of which it reads at most n_left tokens, and counts
    // them: a long prompt would make everybody wait. False when it does not hold all.
    bool catch_up(int32_t sequence, size_t & n_left) {
        auto *       memory = llama_get_memory(draft);
        const auto & tokens = of(sequence).before;
        size_t       at     = (size_t) (llama_memory_seq_pos_max(memory, sequence) + 1);
        if (at > tokens.size()) {
            llama_memory_seq_rm(memory, sequence, (llama_pos) tokens.size(), -1);
            at = tokens.size();
        }
        const size_t end = std::min(tokens.size(), at + n_left);
        if (at < end) {
            n_left -= end - at;
            batch.clear();
            for (; at < end; at++) {
                batch.add(tokens[at], (llama_pos) at, sequence, false);
            }
            if (llama_process(draft, LLAMA_PROCESS_TYPE_DECODE, batch.get()) != 0) {
                llama_memory_seq_rm(memory, sequence, -1, -1);
                return false;
            }
        }
        return at == tokens.size();
    }

    // Whether what drafts knows all that came before the last token.
    bool ready(int32_t sequence, size_t & n_left) {
        if (draft == nullptr) {
            return true;
        }
        if (!reads_batches) {
            return catch_up(sequence, n_left);
        }
        const auto n = (llama_pos) of(sequence).before.size();
        return llama_memory_seq_pos_max(llama_get_memory(draft), sequence) == n - 1;
    }

    void append(history & to, const llama_token * tokens, int32_t n) {
        for (int32_t i = 0; i < n; i++) {
            if (to.last != LLAMA_TOKEN_NULL) {
                to.before.push_back(to.last);
            }
            to.last = tokens[i];
        }
    }
};

extern "C" {

enum llama_common_status llama_common_speculator_init(const char * params, struct llama_context * context,
        struct llama_context * draft, int32_t n_seq, struct llama_common_speculator ** speculator, char ** error) {
    return guarded(error, LLAMA_COMMON_INVALID_ARGUMENT, [&] {
        const auto object    = parse_object(params, "params");
        auto       result    = std::make_unique<llama_common_speculator>();
        auto &     wanted    = result->params;
        wanted.types         = common_speculative_types_from_names(field(object, "types", std::vector<std::string>()));
        wanted.draft.ctx_tgt = required(context, "context");
        wanted.draft.ctx_dft = draft;
        wanted.draft.n_max   = field(object, "n_max", wanted.draft.n_max);
        wanted.draft.p_min   = field(object, "p_min", wanted.draft.p_min);
        wanted.ngram_simple.size_n = (uint16_t) field<int32_t>(object, "ngram_size", wanted.ngram_simple.size_n);
        wanted.ngram_simple.size_m = (uint16_t) wanted.draft.n_max;
        result->common.reset(common_speculative_init(wanted, (uint32_t) n_seq));
        if (!result->common) {
            throw failure(LLAMA_COMMON_INVALID_ARGUMENT, "no way to draft was named");
        }
        result->draft = draft;
        if (draft != nullptr) {
            result->batch         = common_batch(draft);
            result->reads_batches = wanted.types[0] != COMMON_SPECULATIVE_TYPE_DRAFT_SIMPLE;
        }
        result->histories.resize(n_seq);
        *required(speculator, "speculator") = result.release();
    });
}

void llama_common_speculator_free(struct llama_common_speculator * speculator) {
    delete speculator;
}

enum llama_common_status llama_common_speculator_begin(struct llama_common_speculator * speculator, int32_t sequence,
        const llama_token * tokens, int32_t n_tokens, char ** error) {
    return guarded(error, LLAMA_COMMON_INTERNAL_ERROR, [&] {
        auto & history = required(speculator, "speculator")->of(sequence);
        history        = {};
        speculator->append(history, required(tokens, "tokens"), n_tokens);
        common_speculative_begin(speculator->common.get(), sequence, history.before);
    });
}

enum llama_common_status llama_common_speculator_accept(struct llama_common_speculator * speculator, int32_t sequence,
        const llama_token * tokens, int32_t n_tokens, char ** error) {
    return guarded(error, LLAMA_COMMON_INTERNAL_ERROR, [&] {
        auto & history = required(speculator, "speculator")->of(sequence);
        speculator->append(history, required(tokens, "tokens"), n_tokens);
        if (history.waits) {
            // the last of the tokens was not drafted
            const int32_t n_accepted = std::clamp<int32_t>(n_tokens - 1, 0, (int32_t) history.draft.size());
            common_speculative_accept(speculator->common.get(), sequence, (uint16_t) n_accepted);
            history.waits = false;
        }
    });
}

enum llama_common_status llama_common_speculator_draft(struct llama_common_speculator * speculator, int32_t n,
        const int32_t * sequences, int32_t n_max, llama_token * tokens, int32_t * n_tokens, char ** error) {
    return guarded(error, LLAMA_COMMON_INTERNAL_ERROR, [&] {
        auto * common = required(speculator, "speculator")->common.get();
        size_t n_left = speculator->draft == nullptr ? 0 : llama_n_batch(speculator->draft);
        for (int32_t i = 0; i < n; i++) {
            auto & history = speculator->of(sequences[i]);
            history.draft.clear();
            auto & wanted   = common_speculative_get_draft_params(common, sequences[i]);
            wanted.drafting = history.last != LLAMA_TOKEN_NULL && speculator->ready(sequences[i], n_left);
            wanted.n_max    = n_max;
            wanted.pos0     = (llama_pos) history.before.size();
            wanted.id_last  = history.last;
            wanted.prompt   = &history.before;
            wanted.result   = &history.draft;
        }
        common_speculative_draft(common);
        for (int32_t i = 0; i < n; i++) {
            auto & history = speculator->of(sequences[i]);
            n_tokens[i]    = (int32_t) std::min<size_t>(history.draft.size(), (size_t) std::max(n_max, 0));
            history.waits  = n_tokens[i] > 0;
            std::copy_n(history.draft.begin(), n_tokens[i], tokens + (size_t) i * n_max);
            if (speculator->reads_batches) {
                // what was drafted is computed again with what the model is shown
                llama_memory_seq_rm(
                        llama_get_memory(speculator->draft), sequences[i], (llama_pos) history.before.size(), -1);
            }
        }
    });
}

enum llama_common_status llama_common_speculator_process(struct llama_common_speculator * speculator, int32_t n_tokens,
        const llama_token * tokens, const llama_pos * positions, const llama_seq_id * sequences, char ** error) {
    return guarded(error, LLAMA_COMMON_INTERNAL_ERROR, [&] {
        if (!required(speculator, "speculator")->reads_batches) {
            return;
        }
        common_batch batch(speculator->params.draft.ctx_tgt);
        for (int32_t i = 0; i < n_tokens; i++) {
            batch.add(tokens[i], positions[i], sequences[i], false);
        }
        // where it fails the draft falls behind, and there is no draft for these sequences
        common_speculative_process(speculator->common.get(), batch);
    });
}
}
