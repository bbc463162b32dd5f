// Batches in, tokens out: what one step of many requests costs is a call to decode and a call to sample.

#include "candidates.h"
#include "device_top_k.h"
#include "support.h"
#include "token_queue.h"
#include "worker_pool.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>

using namespace llama_common_c;

namespace {

struct deleter {
    void operator()(llama_sampler * sampler) const { llama_sampler_free(sampler); }
};

using sampler_ptr = std::unique_ptr<llama_sampler, deleter>;

// Fewer choices are made sooner than another thread is there to help.
constexpr int32_t ENOUGH_TO_SHARE = 4;

// The status of `body`, whatever it throws; `otherwise` is that of exceptions that carry none.
template <typename Body> int32_t quietly(llama_common_status otherwise, Body && body) {
    char *        message = nullptr;
    const int32_t status  = guarded(&message, otherwise, body);
    std::free(message);
    return status;
}

[[noreturn]] void not_possible() {
    throw failure(LLAMA_COMMON_GRAMMAR_ERROR, "no token is possible here");
}

}  // namespace

struct llama_common_top_k {
    device_top_k device;
};

// What one request samples with, in three parts so that only a few tokens have to be looked at: `before` changes
// logits, `grammar` forbids, `after` truncates and chooses.
struct llama_common_sampler {
    sampler_ptr before;
    sampler_ptr grammar;
    sampler_ptr after;
    size_t      n_needed;  // how many of the best tokens decide the choice; 0 when all do
    int64_t     n_stacks;  // that the grammar may look at for one token; 0 is no limit
    double      seconds;   // that this may take; 0 is no limit

    bool decided_by(const candidates & from) const {
        size_t n = 0;
        for (const auto & token : from.tokens) {
            n += token.logit >= from.bound;
        }
        return n >= n_needed;
    }

    llama_token choose(std::vector<llama_token_data> & from) const {
        llama_token_data_array array = {from.data(), from.size(), -1, false};
        llama_sampler_apply(after.get(), &array);
        // where nothing is allowed a sampler samples something all the same, and a grammar aborts on accepting it
        if (array.selected < 0 || (size_t) array.selected >= array.size ||
                !(array.data[array.selected].logit > -INFINITY)) {
            not_possible();
        }
        return array.data[array.selected].id;
    }

    void change(std::vector<llama_token_data> & tokens) const {
        if (before) {
            llama_token_data_array array = {tokens.data(), tokens.size(), -1, false};
            llama_sampler_apply(before.get(), &array);
        }
    }

    bool allows(llama_token token) const {
        if (!grammar) {
            return true;
        }
        llama_token_data       one   = {token, 1.0f, 0.0f};
        llama_token_data_array array = {&one, 1, -1, false};
        llama_sampler_apply(grammar.get(), &array);
        return one.logit > -INFINITY;
    }

    // Leaves those that the grammar allows.
    void forbid(std::vector<llama_token_data> & tokens) const {
        llama_token_data_array array = {tokens.data(), tokens.size(), -1, false};
        llama_sampler_apply(grammar.get(), &array);
        const auto forbidden = [](const auto & token) { return !(token.logit > -INFINITY); };
        tokens.erase(std::remove_if(tokens.begin(), tokens.end(), forbidden), tokens.end());
    }

    // From the whole vocabulary, `from`, as it came out of the model.
    llama_token choose_from_all(std::vector<llama_token_data> & from) const {
        change(from);
        // nothing to look a second time for when all tokens are at hand
        if (grammar) {
            llama_token_data_array array = {from.data(), from.size(), -1, false};
            llama_sampler_apply(grammar.get(), &array);
        }
        return choose(from);
    }

    void accept(llama_token token) const {
        for (const auto * part : {&before, &grammar, &after}) {
            if (*part) {
                llama_sampler_accept(part->get(), token);
            }
        }
    }
};

struct llama_common_decoder {
    llama_context * context;
    device_top_k *  device;  // NULL when logits are on the host
    size_t          n_vocab;

    std::vector<int32_t>        ones;
    std::vector<llama_seq_id *> sequences;
    std::vector<int32_t>        outputs;  // where in the last batch the rows of logits come from
    llama_batch                 batch   = {};
    bool                        waiting = false;
    std::vector<const float *>  host_rows;
    worker_pool                 others;

    int32_t decode(const llama_batch & next) {
        batch   = next;
        waiting = true;
        return llama_decode(context, batch);
    }

    void wait(bool with_help = false) {
        if (!waiting) {
            return;
        }
        waiting = false;
        llama_synchronize(context);
        if (with_help) {
            others.wake();  // while the best tokens are fetched
        }
        if (device != nullptr && !outputs.empty()) {
            if (device->n_rows() != (int64_t) outputs.size()) {
                throw failure(
                        LLAMA_COMMON_INVALID_ARGUMENT, "the batch was too long, or too uneven, to be computed at once");
            }
            device->fetch();
        }
    }

    void check(int32_t row) const {
        if (row < 0 || (size_t) row >= outputs.size()) {
            throw failure(LLAMA_COMMON_INVALID_ARGUMENT, "the last batch has no output " + std::to_string(row));
        }
    }

    // Where a row's logits are; NULL when that is on a device. Not in several threads at once.
    const float * on_host(int32_t row) {
        check(row);
        if (device != nullptr) {
            return nullptr;
        }
        const float * logits = llama_get_logits_ith(context, outputs[row]);
        if (logits == nullptr) {
            throw failure(LLAMA_COMMON_INTERNAL_ERROR, "the context holds no logits");
        }
        return logits;
    }

    // Copies a row's logits; those that are on a device are there after its wait().
    void copy_logits(int32_t row, const float * host, float * to) const {
        if (host == nullptr) {
            device->copy_row(row, to);
        } else {
            std::copy(host, host + n_vocab, to);
        }
    }

    // A row's logits; what on_host() gave for it spares fetching them.
    const float * logits(int32_t row, const float * host) const {
        if (host != nullptr) {
            return host;
        }
        thread_local std::vector<float> fetched;
        fetched.resize(n_vocab);
        device->fetch_row(row, fetched.data());
        return fetched.data();
    }

    // Different rows and samplers in different threads.
    llama_token sample(int32_t row, const float * host, const llama_common_sampler & sampler, bool only_best) const {
        thread_local candidates found;
        const grammar_limit     limited(sampler.n_stacks, sampler.grammar ? sampler.seconds : 0);
        const auto              take = [&](size_t n) {
            if (host == nullptr) {
                device->take(row, (int64_t) n, found);
            } else {
                found.take_best(host, n_vocab, n);
            }
            sampler.change(found.tokens);
        };
        if (sampler.n_needed > 0) {
            // what lowers some of them must leave enough of the others
            take(sampler.before ? sampler.n_needed + 64 : sampler.n_needed);
            if (sampler.decided_by(found)) {
                llama_token token = sampler.choose(found.tokens);
                if (sampler.allows(token)) {
                    sampler.accept(token);
                    return token;
                }
                // a few more are looked at sooner than the whole vocabulary; where the grammar leaves too few, that is next
                take(sampler.n_needed + device_top_k::MINIMUM);
                sampler.forbid(found.tokens);
                if (sampler.decided_by(found)) {
                    token = sampler.choose(found.tokens);
                    sampler.accept(token);
                    return token;
                }
            }
        }
        if (only_best) {
            throw failure(LLAMA_COMMON_NEEDS_ALL, "the best tokens do not decide");
        }
        found.take_all(logits(row, host), n_vocab);
        const llama_token token = sampler.choose_from_all(found.tokens);
        sampler.accept(token);
        return token;
    }

    void sample_all(int32_t n_rows, const int32_t * rows, llama_common_sampler ** samplers, float * const * logits,
            bool only_best, llama_token * tokens, int32_t * results) {
        const bool with_help = n_rows >= ENOUGH_TO_SHARE;
        wait(with_help);
        host_rows.resize(n_rows);
        for (int32_t i = 0; i < n_rows; i++) {
            // one request's trouble is not the others'
            results[i] = quietly(LLAMA_COMMON_INTERNAL_ERROR, [&] {
                host_rows[i] = on_host(rows[i]);
                if (logits != nullptr && logits[i] != nullptr) {
                    copy_logits(rows[i], host_rows[i], logits[i]);
                }
            });
        }
        if (device != nullptr && logits != nullptr) {
            device->wait();
        }
        const auto one = [&](int32_t i) {
            if (results[i] == LLAMA_COMMON_OK) {
                results[i] = quietly(LLAMA_COMMON_GRAMMAR_ERROR,
                        [&] { tokens[i] = sample(rows[i], host_rows[i], *samplers[i], only_best); });
            }
        };
        if (with_help) {
            others.run(n_rows, one);
            return;
        }
        for (int32_t i = 0; i < n_rows; i++) {
            one(i);
        }
    }

    // Decodes the batch that follows the last one, of what was sampled from that.
    int32_t decode_following(int32_t n_rows, const int32_t * rows, const llama_token * tokens) {
        for (int32_t i = 0; i < n_rows; i++) {
            const int32_t at = outputs[rows[i]];
            batch.token[at]  = tokens[i];
            batch.pos[at]++;
        }
        return decode(batch);
    }

    // Whether each token of the last batch has a token that follows it, and does not end its sequence.
    bool goes_on(int32_t n_rows, const llama_token * tokens, const int32_t * results) const {
        if (n_rows != batch.n_tokens || (size_t) n_rows != outputs.size()) {
            return false;
        }
        const llama_vocab * vocab = llama_model_get_vocab(llama_get_model(context));
        return std::all_of(results, results + n_rows, [](int32_t result) { return result == LLAMA_COMMON_OK; }) &&
               std::none_of(
                       tokens, tokens + n_rows, [&](llama_token token) { return llama_vocab_is_eog(vocab, token); });
    }
};

extern "C" {

enum llama_common_status llama_common_top_k_init(int32_t n_seq, struct llama_common_top_k ** top_k, char ** error) {
    return guarded(error, LLAMA_COMMON_INTERNAL_ERROR, [&] {
        required(top_k, "top_k");
        *top_k = new llama_common_top_k{device_top_k(n_seq)};
    });
}

void llama_common_top_k_free(struct llama_common_top_k * top_k) {
    delete top_k;
}

struct llama_sampler_seq_config * llama_common_top_k_configs(struct llama_common_top_k * top_k) {
    return top_k->device.configs.data();
}

enum llama_common_status llama_common_sampler_init(struct llama_sampler * before, struct llama_sampler * grammar,
        struct llama_sampler * after, int32_t n_needed, const struct llama_common_limits * limits,
        struct llama_common_sampler ** sampler, char ** error) {
    // owned from here on, also when something is wrong
    sampler_ptr parts[] = {sampler_ptr(before), sampler_ptr(grammar), sampler_ptr(after)};
    return guarded(error, LLAMA_COMMON_INTERNAL_ERROR, [&] {
        required(after, "after");
        *required(sampler, "sampler") = new llama_common_sampler{std::move(parts[0]), std::move(parts[1]),
                std::move(parts[2]), (size_t) std::max(n_needed, 0), limits == nullptr ? 0 : limits->n_stacks,
                limits == nullptr ? 0 : limits->seconds};
    });
}

void llama_common_sampler_free(struct llama_common_sampler * sampler) {
    delete sampler;
}

enum llama_common_status llama_common_sampler_accept(
        struct llama_common_sampler * sampler, const llama_token * tokens, int32_t n_tokens, char ** error) {
    return guarded(error, LLAMA_COMMON_INTERNAL_ERROR, [&] {
        for (int32_t i = 0; required(sampler, "sampler")->before && i < n_tokens; i++) {
            llama_sampler_accept(sampler->before.get(), tokens[i]);
        }
    });
}

enum llama_common_status llama_common_decoder_init(struct llama_context * context, struct llama_common_top_k * top_k,
        int32_t n_seq, struct llama_common_decoder ** decoder, char ** error) {
    return guarded(error, LLAMA_COMMON_INTERNAL_ERROR, [&] {
        required(decoder, "decoder");
        auto result     = std::make_unique<llama_common_decoder>();
        result->context = required(context, "context");
        result->device  = top_k != nullptr && top_k->device.usable() ? &top_k->device : nullptr;
        result->n_vocab = (size_t) llama_vocab_n_tokens(llama_model_get_vocab(llama_get_model(context)));
        if (top_k != nullptr && !result->device) {
            // the output layer is on the host after all: logits are wanted there
            for (int32_t seq = 0; seq < n_seq; seq++) {
                llama_set_sampler(context, seq, nullptr);
            }
        }
        *decoder = result.release();
    });
}

void llama_common_decoder_free(struct llama_common_decoder * decoder) {
    delete decoder;
}

bool llama_common_decoder_on_device(const struct llama_common_decoder * decoder) {
    return decoder->device != nullptr;
}

enum llama_common_status llama_common_decode(struct llama_common_decoder * decoder, int32_t n_tokens,
        llama_token * tokens, llama_pos * positions, llama_seq_id * sequences, int8_t * outputs, int32_t * result,
        char ** error) {
    return guarded(error, LLAMA_COMMON_INTERNAL_ERROR, [&] {
        auto & self = *required(decoder, "decoder");
        self.ones.resize(n_tokens, 1);
        self.sequences.resize(n_tokens);
        self.outputs.clear();
        for (int32_t i = 0; i < n_tokens; i++) {
            self.sequences[i] = sequences + i;
            if (outputs[i] != 0) {
                self.outputs.push_back(i);
            }
        }
        *required(result, "result") =
                self.decode({n_tokens, tokens, nullptr, positions, self.ones.data(), self.sequences.data(), outputs});
    });
}

enum llama_common_status llama_common_sample(struct llama_common_decoder * decoder, int32_t n_rows,
        const int32_t * rows, struct llama_common_sampler ** samplers, float * const * logits, bool only_best,
        llama_token * tokens, int32_t * results, struct llama_common_multi_step * multi_step, char ** error) {
    return guarded(error, LLAMA_COMMON_INTERNAL_ERROR, [&] {
        auto & self = *required(decoder, "decoder");
        if (multi_step == nullptr) {
            self.sample_all(n_rows, rows, samplers, logits, only_best, tokens, results);
            return;
        }
        auto & on = *multi_step;
        on.n      = 0;
        on.status = 0;
        on.begun  = false;
        while (true) {
            self.sample_all(n_rows, rows, samplers, logits, only_best, tokens, results);
            const bool last = on.n == on.n_most;
            if ((last && !on.begin) || !self.goes_on(n_rows, tokens, results) ||
                    !__atomic_load_n(on.allowed, __ATOMIC_RELAXED)) {
                return;
            }
            for (int32_t i = 0; !last && i < n_rows; i++) {
                on.tokens[on.n * n_rows + i] = tokens[i];
                if (on.token_queues[i] != nullptr) {
                    on.token_queues[i]->put(tokens[i]);
                }
            }
            on.n++;
            // the tokens that went out before must be told of, so this does not end in an exception
            const int32_t result = quietly(
                    LLAMA_COMMON_INTERNAL_ERROR, [&] { on.status = self.decode_following(n_rows, rows, tokens); });
            if (result != LLAMA_COMMON_OK) {
                on.status = LLAMA_COMMON_DECODE_THREW;
            }
            on.begun = last || on.status != 0;
            if (on.begun) {
                return;
            }
        }
    });
}

enum llama_common_status llama_common_sample_from(const float * logits, int32_t n_vocab,
        struct llama_common_sampler * sampler, llama_token * token, char ** error) {
    return guarded(error, LLAMA_COMMON_GRAMMAR_ERROR, [&] {
        thread_local candidates all;
        all.take_all(required(logits, "logits"), (size_t) n_vocab);
        const grammar_limit limited(required(sampler, "sampler")->n_stacks, sampler->grammar ? sampler->seconds : 0);
        *required(token, "token") = sampler->choose_from_all(all.tokens);
        sampler->accept(*token);
    });
}

enum llama_common_status llama_common_get_logits(
        struct llama_common_decoder * decoder, int32_t row, float * logits, char ** error) {
    return guarded(error, LLAMA_COMMON_INTERNAL_ERROR, [&] {
        required(decoder, "decoder")->wait();
        required(logits, "logits");
        decoder->copy_logits(row, decoder->on_host(row), logits);
        if (decoder->device != nullptr) {
            decoder->device->wait();
        }
    });
}

enum llama_common_status llama_common_top_logits(
        const float * logits, int32_t n_vocab, int32_t n_top, llama_token * top, float * top_logits, char ** error) {
    return guarded(error, LLAMA_COMMON_INTERNAL_ERROR, [&] {
        required(logits, "logits");
        if (n_top < 1 || n_top > n_vocab) {
            throw failure(LLAMA_COMMON_INVALID_ARGUMENT, "there are not so many tokens");
        }
        thread_local candidates found;
        found.take_best(logits, n_vocab, n_top);
        auto & tokens = found.tokens;
        if (tokens.size() < (size_t) n_top) {
            throw failure(LLAMA_COMMON_INTERNAL_ERROR, "the model's logits are not numbers");
        }
        std::partial_sort(tokens.begin(), tokens.begin() + n_top, tokens.end(),
                [](const auto & a, const auto & b) { return a.logit != b.logit ? a.logit > b.logit : a.id < b.id; });
        for (int32_t i = 0; i < n_top; i++) {
            top[i]        = tokens[i].id;
            top_logits[i] = tokens[i].logit;
        }
    });
}
}
