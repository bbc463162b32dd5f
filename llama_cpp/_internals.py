"""Objects around the C API, under names that llama-cpp-python's users reach for: models, contexts, batches, samplers."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .capi import llama as capi
from .engine.sampler_chain import Sampler
from .errors import ContextCreationError, DecodeError, InvalidArgumentError
from .models.model import Model
from .values import token_ids

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from .engine.private_sequence import PrivateSequence
    from .engine.sampling_params import SamplingParams
    from .model_loading import LoadedModel

_FLOAT = ctypes.POINTER(ctypes.c_float)


class LlamaModel:
    """A model of the C API.

    Args:
        path_model: a GGUF file. params: as ``llama_model_default_params()`` gives them.

    Raises:
        ModelFileError, ModelLoadError.
    """

    def __init__(self, *, path_model: str, params: capi.llama_model_params | None = None, verbose: bool = True) -> None:
        given = {}
        if params is not None:
            given = {
                name: getattr(params, name)
                for name in ("n_gpu_layers", "split_mode", "main_gpu", "vocab_only", "load_mode") if hasattr(params, name)
            }  # fmt: skip
        self._own = Model(path_model, params=given)
        self.path_model, self.verbose = path_model, verbose

    @classmethod
    def _of(cls, model: Model) -> LlamaModel:
        """Around a model that somebody else owns."""
        found = cls.__new__(cls)
        found._own = model
        found.path_model, found.verbose = str(model.path), False
        return found

    @property
    def model(self) -> Any:
        """The ``llama_model *``."""
        return self._own.pointer

    @property
    def vocab(self) -> Any:
        """The ``llama_vocab *``."""
        _ = self._own.pointer  # raises where it must not be used any more
        return self._own.vocab_pointer

    def close(self) -> None:
        """Does nothing to a model that a ``Llama`` owns; close that."""

    def vocab_type(self) -> int:
        return int(capi.llama_vocab_type(self.vocab))

    def n_vocab(self) -> int:
        return self._own.n_vocab

    def n_ctx_train(self) -> int:
        return self._own.n_ctx_train

    def n_embd(self) -> int:
        return self._own.n_embd

    def rope_freq_scale_train(self) -> float:
        return float(capi.llama_model_rope_freq_scale_train(self.model))

    def desc(self) -> str:
        return self._own.description

    def size(self) -> int:
        return int(capi.llama_model_size(self.model))

    def n_params(self) -> int:
        return int(capi.llama_model_n_params(self.model))

    def metadata(self) -> dict[str, str]:
        return self._own.metadata()

    def token_get_text(self, token: int) -> str:
        return self._text(token).decode("utf-8", "replace")

    def _text(self, token: int) -> bytes:
        self._own.check_tokens([token])
        found: bytes = capi.llama_vocab_get_text(self.vocab, token) or b""
        return found

    def token_get_score(self, token: int) -> float:
        self._own.check_tokens([token])
        return float(capi.llama_vocab_get_score(self.vocab, token))

    def token_get_attr(self, token: int) -> int:
        self._own.check_tokens([token])
        return int(capi.llama_vocab_get_attr(self.vocab, token))

    def token_bos(self) -> int:
        return self._own.token_bos

    def token_eos(self) -> int:
        return self._own.token_eos

    def token_nl(self) -> int:
        return self._own.token_nl

    def token_cls(self) -> int:
        return int(capi.llama_vocab_bos(self.vocab))

    def token_sep(self) -> int:
        return int(capi.llama_vocab_sep(self.vocab))

    def token_prefix(self) -> int:
        return int(capi.llama_vocab_fim_pre(self.vocab))

    def token_middle(self) -> int:
        return int(capi.llama_vocab_fim_mid(self.vocab))

    def token_suffix(self) -> int:
        return int(capi.llama_vocab_fim_suf(self.vocab))

    def token_eot(self) -> int:
        return int(capi.llama_vocab_eot(self.vocab))

    def add_bos_token(self) -> bool:
        return bool(capi.llama_vocab_get_add_bos(self.vocab))

    def add_eos_token(self) -> bool:
        return bool(capi.llama_vocab_get_add_eos(self.vocab))

    def tokenize(self, text: bytes, add_bos: bool, special: bool) -> list[int]:
        return self._own.tokenize(text, add_special=add_bos, parse_special=special)

    def token_to_piece(self, token: int, special: bool = False) -> bytes:
        return self._own.token_to_piece(token, special=special)

    def detokenize(self, tokens: Sequence[int], special: bool = False) -> bytes:
        return self._own.detokenize(token_ids("tokens", tokens), special=special)

    @staticmethod
    def default_params() -> capi.llama_model_params:
        found: capi.llama_model_params = capi.llama_model_default_params()
        return found


class LlamaContext:
    """A context of the C API with one sequence.

    Args:
        model: whose context. params: as ``llama_context_default_params()`` gives them.

    Raises:
        ContextCreationError.
    """

    def __init__(self, *, model: LlamaModel, params: capi.llama_context_params | None = None, verbose: bool = True) -> None:
        from .engine.private_sequence import PrivateSequence

        given: dict[str, Any] = {"n_ctx": 512}
        if params is not None:
            default = capi.llama_context_default_params()
            for name in (field[0] for field in capi.llama_context_params._fields_):
                value = getattr(params, name)
                if isinstance(value, (bool, int, float)) and value != getattr(default, name):
                    given[name] = value
        self._own: PrivateSequence = PrivateSequence(model._own, given)
        self.model, self.params, self.verbose = model, self._own.params, verbose

    @classmethod
    def _of(cls, model: LlamaModel, sequence: PrivateSequence) -> LlamaContext:
        """Around a context that somebody else owns."""
        found = cls.__new__(cls)
        found._own, found.model, found.params, found.verbose = sequence, model, sequence.params, False
        return found

    @property
    def ctx(self) -> Any:
        """The ``llama_context *``."""
        return self._own.pointer

    @property
    def _memory(self) -> Any:
        return capi.llama_get_memory(self.ctx)

    def close(self) -> None:
        """Frees the context."""
        self._own.close()

    def n_ctx(self) -> int:
        return self._own.n_ctx

    def pooling_type(self) -> int:
        return int(capi.llama_pooling_type(self.ctx))

    def memory_clear(self, data: bool = True) -> None:
        capi.llama_memory_clear(self._memory, data)

    def memory_seq_rm(self, seq_id: int, p0: int, p1: int) -> bool:
        self._check(seq_id, -1)
        return bool(capi.llama_memory_seq_rm(self._memory, seq_id, p0, p1))

    def memory_seq_cp(self, seq_id_src: int, seq_id_dst: int, p0: int, p1: int) -> None:
        self._check(seq_id_src)
        self._check(seq_id_dst)
        capi.llama_memory_seq_cp(self._memory, seq_id_src, seq_id_dst, p0, p1)

    def memory_seq_keep(self, seq_id: int) -> None:
        self._check(seq_id)
        capi.llama_memory_seq_keep(self._memory, seq_id)

    def memory_seq_add(self, seq_id: int, p0: int, p1: int, shift: int) -> None:
        self._check(seq_id)
        if not capi.llama_memory_can_shift(self._memory):
            raise InvalidArgumentError("This model's memory cannot be shifted.")
        capi.llama_memory_seq_add(self._memory, seq_id, p0, p1, shift)

    kv_cache_clear = memory_clear
    kv_cache_seq_rm = memory_seq_rm
    kv_cache_seq_cp = memory_seq_cp
    kv_cache_seq_keep = memory_seq_keep
    kv_cache_seq_shift = kv_cache_seq_add = memory_seq_add

    @staticmethod
    def _check(seq_id: int, least: int = 0) -> None:
        # the engine asserts
        if not least <= seq_id < 1:
            raise InvalidArgumentError(f"seq_id={seq_id}: this context has sequence 0 alone.")

    def get_state_size(self) -> int:
        return int(capi.llama_state_get_size(self.ctx))

    def decode(self, batch: LlamaBatch) -> None:
        """Decodes a batch.

        Raises:
            DecodeError: the engine failed. InvalidArgumentError: a token is none, or there are too many.
        """
        n = batch.n_tokens()
        if n > self._own.n_batch:
            raise InvalidArgumentError(f"The batch has {n} tokens; n_batch is {self._own.n_batch}.")
        if n:
            self.model._own.check_tokens(batch.batch.token[:n])
        result = capi.llama_decode(self.ctx, batch.batch)
        if result != 0:
            raise DecodeError(f"llama_decode returned {result}.", remedy="The log (llama_cpp.native) has more.")

    def encode(self, batch: LlamaBatch) -> None:
        """Encodes a batch; raises as :meth:`decode`."""
        result = capi.llama_encode(self.ctx, batch.batch)
        if result != 0:
            raise DecodeError(f"llama_encode returned {result}.", remedy="The log (llama_cpp.native) has more.")

    def set_n_threads(self, n_threads: int, n_threads_batch: int) -> None:
        capi.llama_set_n_threads(self.ctx, n_threads, n_threads_batch)

    def get_logits(self) -> Any:
        """The logits of the last batch (``float *``)."""
        return capi.llama_get_logits(self.ctx)

    def get_logits_ith(self, i: int) -> Any:
        """The logits of one output of the last batch (``float *``); -1 is the last one."""
        return capi.llama_get_logits_ith(self.ctx, i)

    def get_embeddings(self) -> Any:
        """The vectors of the last batch (``float *``)."""
        return capi.llama_get_embeddings(self.ctx)

    def get_embeddings_ith(self, i: int) -> Any:
        """The vector of one output of the last batch (``float *``)."""
        return capi.llama_get_embeddings_ith(self.ctx, i)

    def get_embeddings_seq(self, seq_id: int) -> Any:
        """The pooled vector of a sequence of the last batch (``float *``)."""
        return capi.llama_get_embeddings_seq(self.ctx, seq_id)

    def reset_timings(self) -> None:
        capi.llama_perf_context_reset(self.ctx)

    def print_timings(self) -> None:
        capi.llama_perf_context_print(self.ctx)

    @staticmethod
    def default_params() -> capi.llama_context_params:
        found: capi.llama_context_params = capi.llama_context_default_params()
        return found


class LlamaBatch:
    """A batch of the C API.

    Args:
        n_tokens: how many it can hold. embd: numbers of each vector, in place of tokens; 0 is tokens.
        n_seq_max: sequences that each of them can belong to.
    """

    def __init__(self, *, n_tokens: int, embd: int = 0, n_seq_max: int = 1, verbose: bool = True) -> None:
        self._n_tokens, self.embd, self.n_seq_max, self.verbose = n_tokens, embd, n_seq_max, verbose
        batch = capi.llama_batch_init(n_tokens, embd, n_seq_max)
        if batch is None:
            raise ContextCreationError("There is no memory for a batch.")
        self.batch: capi.llama_batch = batch

    def close(self) -> None:
        """Frees it. Closing twice is allowed."""
        if getattr(self, "batch", None) is not None:
            capi.llama_batch_free(self.batch)
            del self.batch

    def __del__(self) -> None:
        self.close()

    def n_tokens(self) -> int:
        return int(self.batch.n_tokens)

    def reset(self) -> None:
        """Empties it."""
        self.batch.n_tokens = 0

    def _room(self, n: int) -> None:
        if n > self._n_tokens:
            raise InvalidArgumentError(f"The batch has room for {self._n_tokens} tokens, not for {n}.")

    def set_batch(self, batch: Sequence[int], n_past: int, logits_all: bool) -> None:
        """Holds these tokens of sequence 0, from a position on; the last one has logits, or all."""
        self._room(len(batch))
        self.reset()
        self._add(batch, n_past, 0, logits_all)

    def add_sequence(self, batch: Sequence[int], seq_id: int, logits_all: bool) -> None:
        """Holds these tokens, too, as a sequence of its own from position 0 on."""
        self._room(self.n_tokens() + len(batch))
        self._add(batch, 0, seq_id, logits_all)

    def _add(self, tokens: Sequence[int], start: int, seq_id: int, logits_all: bool) -> None:
        at = self.n_tokens()
        for i, token in enumerate(tokens):
            self.batch.token[at + i] = token
            self.batch.pos[at + i] = start + i
            self.batch.seq_id[at + i][0] = seq_id
            self.batch.n_seq_id[at + i] = 1
            self.batch.logits[at + i] = logits_all
        self.batch.n_tokens = at + len(tokens)
        if tokens:
            self.batch.logits[at + len(tokens) - 1] = True


class LlamaTokenDataArray:
    """Candidates of a sampler: every token with its logit.

    Attributes:
        candidates_data: fields id, logit and p, (n_vocab,). candidates: the same as a ``llama_token_data_array``.
    """

    def __init__(self, *, n_vocab: int) -> None:
        import numpy as np

        kind = np.dtype([("id", np.intc), ("logit", np.single), ("p", np.single)], align=True)
        self.n_vocab = n_vocab
        self.candidates_data = np.recarray((n_vocab,), dtype=kind)
        self.default_candidates_data_id = np.arange(n_vocab, dtype=np.intc)
        self.default_candidates_data_p = np.zeros(n_vocab, np.single)
        pointer = self.candidates_data.ctypes.data_as(ctypes.POINTER(capi.llama_token_data))
        self.candidates = capi.llama_token_data_array(data=pointer, size=n_vocab, selected=-1, sorted=False)

    def copy_logits(self, logits: npt.NDArray[np.single]) -> None:
        """Takes logits, float32, (n_vocab,)."""
        self.candidates_data.id[:] = self.default_candidates_data_id
        self.candidates_data.logit[:] = logits
        self.candidates_data.p[:] = self.default_candidates_data_p
        self.candidates.sorted, self.candidates.size = False, self.n_vocab


class LlamaSampler:
    """A chain of the C API's samplers, or a request's sampler; for one thread at a time."""

    sampler: Any

    def __init__(self) -> None:
        self.sampler = capi.llama_sampler_chain_init(capi.llama_sampler_chain_default_params())
        self._owned = True

    @classmethod
    def _of(cls, loaded: LoadedModel, params: SamplingParams, n_ctx: int, tokens: Sequence[int]) -> LlamaSampler:
        """A request's own, which has seen these tokens."""
        found = cls.__new__(cls)
        found._owned = False
        found.sampler = Sampler(loaded.model, params, n_ctx, loaded.limits)
        found.sampler.accept_prompt(tokens)
        return found

    def _add(self, sampler: Any) -> None:
        capi.llama_sampler_chain_add(self.sampler, sampler)

    def add_greedy(self) -> None:
        self._add(capi.llama_sampler_init_greedy())

    def add_dist(self, seed: int) -> None:
        self._add(capi.llama_sampler_init_dist(seed & 0xFFFFFFFF))

    def add_top_k(self, k: int) -> None:
        self._add(capi.llama_sampler_init_top_k(k))

    def add_top_p(self, p: float, min_keep: int = 1) -> None:
        self._add(capi.llama_sampler_init_top_p(p, min_keep))

    def add_min_p(self, p: float, min_keep: int = 1) -> None:
        self._add(capi.llama_sampler_init_min_p(p, min_keep))

    def add_typical(self, p: float, min_keep: int = 1) -> None:
        self._add(capi.llama_sampler_init_typical(p, min_keep))

    def add_temp(self, temp: float) -> None:
        self._add(capi.llama_sampler_init_temp(temp))

    def add_penalties(
        self, n_vocab: int, penalty_last_n: int, penalty_repeat: float, penalty_freq: float, penalty_present: float
    ) -> None:
        self._add(capi.llama_sampler_init_penalties(n_vocab, penalty_last_n, penalty_repeat, penalty_freq, penalty_present))

    def get_seed(self) -> int:
        return int(capi.llama_sampler_get_seed(self.sampler))

    def sample(self, ctx: LlamaContext, idx: int) -> int:
        """A token from one output of a context's last batch."""
        return int(capi.llama_sampler_sample(self.sampler, ctx.ctx, idx))

    def close(self) -> None:
        """Frees it. Closing twice is allowed."""
        if getattr(self, "sampler", None) is not None:
            if self._owned:
                capi.llama_sampler_free(self.sampler)
            else:
                self.sampler.close()
            self.sampler = None

    def __del__(self) -> None:
        self.close()


__all__ = ["LlamaBatch", "LlamaContext", "LlamaModel", "LlamaSampler", "LlamaTokenDataArray"]
