// The calls into llama.cpp that let C++ exceptions out, each in a catch.
//
// An exception must not reach Rust: it would end the process. A call that threw returns false, with
// the exception's words in `what`. llama_model_load_from_file, llama_init_from_model,
// llama_get_logits_ith, llama_adapter_lora_init and llama_state_seq_* have a catch of their own; they
// report failure by their value and a line in the log.

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <exception>

#include "llama.h"

namespace {

template <typename Call>
bool caught(char * what, size_t room, Call call) noexcept {
    const auto say = [&](const char * text) {
        if (room > 0) {
            std::strncpy(what, text, room - 1);
            what[room - 1] = '\0';
        }
        return false;
    };
    try {
        call();
        return true;
    } catch (const std::exception & error) {
        return say(error.what());
    } catch (...) {
        return say("an exception without a text");
    }
}

} // namespace

extern "C" {

bool sluicegate_decode(llama_context * context, const llama_batch * batch, int32_t * status, char * what, size_t room) {
    return caught(what, room, [&] { *status = llama_decode(context, *batch); });
}

bool sluicegate_tokenize(const llama_model * model, const char * text, int32_t length, llama_token * tokens,
                         int32_t capacity, bool parse_special, int32_t * count, char * what, size_t room) {
    return caught(what, room, [&] {
        *count = llama_tokenize(llama_model_get_vocab(model), text, length, tokens, capacity, false, parse_special);
    });
}

} // extern "C"
