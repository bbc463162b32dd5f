"""The low level of ``Llama``: one private sequence that the caller evaluates and samples from, step by step."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING, Any

from ._internals import LlamaBatch, LlamaContext, LlamaModel, LlamaSampler
from .arguments import read_bias, read_functions, read_grammar, read_seed
from .capi import llama as capi
from .engine.logits_processors import LogitsProcessor, StoppingCriteria
from .engine.sampling_params import SamplingParams
from .engine.state import LlamaState as LlamaState
from .errors import ContextFullError, InvalidArgumentError
from .model_front import ModelFront
from .values import flag, token_ids

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from .engine.private_sequence import PrivateSequence
    from .llama_grammar import LlamaGrammar

_MAGIC = b"llamast1"


class LowLevel(ModelFront):
    """What ``Llama`` offers to programs that do each step themselves. The sequence is made when it is first asked for."""

    _private: PrivateSequence | None = None
    _sampler: LlamaSampler | None = None

    # --- the sequence ---

    @property
    def _sequence(self) -> PrivateSequence:
        """The private sequence.

        Raises:
            InvalidArgumentError: the model was loaded with vocab_only=True. ContextCreationError.
            ModelClosedError, ForkedProcessError.
        """
        found = self._private
        if found is None:
            with self._making:
                found = self._private = self._private or self.loaded.private_sequence()
        _ = found.pointer  # raises where it must not be used any more
        return found

    @property
    def _making(self) -> threading.Lock:
        return self.loaded.making

    @property
    def ctx(self) -> Any:
        """The ``llama_context *`` of the private sequence, for the low-level API. Nobody else decodes in it."""
        return self._sequence.pointer

    @property
    def _ctx(self) -> LlamaContext:
        return LlamaContext._of(self._model, self._sequence)

    @property
    def _model(self) -> LlamaModel:
        return LlamaModel._of(self.loaded.model)

    @property
    def _batch(self) -> LlamaBatch:
        if not hasattr(self, "_own_batch"):
            self._own_batch = LlamaBatch(n_tokens=self._sequence.n_batch, embd=0, n_seq_max=1)
        return self._own_batch

    @property
    def context_params(self) -> capi.llama_context_params:
        """The parameters of the private sequence's context, as the C API has them."""
        params: capi.llama_context_params = self._sequence.params
        params.n_ctx = self._sequence.n_ctx
        return params

    @property
    def model_params(self) -> capi.llama_model_params:
        """The parameters that the model was loaded with, as the C API has them."""
        params: capi.llama_model_params = capi.llama_model_default_params()
        for name, value in self.loaded.model_params.items():
            if hasattr(params, name) and isinstance(value, (bool, int, float)):
                setattr(params, name, value)
        return params

    # --- what it holds ---

    @property
    def n_tokens(self) -> int:
        """How many tokens are held. Set to less, it forgets those behind with the next :meth:`eval`."""
        return 0 if self._private is None else self._private.n_tokens

    @n_tokens.setter
    def n_tokens(self, n: int) -> None:
        self._sequence.n_tokens = n

    @property
    def input_ids(self) -> npt.NDArray[np.intc]:
        """Token ids; int32, (n_ctx,); the first ``n_tokens`` are held. It is a view."""
        return self._sequence.input_ids

    @property
    def _input_ids(self) -> npt.NDArray[np.intc]:
        return self.input_ids[: self.n_tokens]

    @property
    def eval_tokens(self) -> Sequence[int]:
        """The token ids that are held."""
        tokens: list[int] = self._input_ids.tolist()
        return tokens

    @property
    def scores(self) -> npt.NDArray[np.single]:
        """Logits; float32, (n_ctx, n_vocab). It is a view.

        With ``logits_all=True`` each token that is held has its row; else the last one of each :meth:`eval`. Other rows are 0,
        and take no memory.
        """
        return self._sequence.scores

    @property
    def _scores(self) -> npt.NDArray[np.single]:
        return self.scores[: self.n_tokens]

    @property
    def eval_logits(self) -> Sequence[Sequence[float]]:
        """The rows of :attr:`scores` that are known: all with ``logits_all=True``, else the last one."""
        rows = self._scores if self.loaded.logits_all else self._scores[-1:]
        return [row.tolist() for row in rows]

    # --- steps ---

    def reset(self) -> None:
        """Forgets what the cache holds, and the private sequence's tokens."""
        self.loaded.reset()
        if self._private is not None:
            self._private.reset()

    def eval(self, tokens: Sequence[int]) -> None:
        """Evaluates further tokens of the private sequence.

        Raises:
            InvalidArgumentError: one is not of this vocabulary. ContextFullError: they do not fit. DecodeError.
        """
        found = token_ids("tokens", tokens)
        if found:
            self._sequence.eval(found)

    def sample(
        self,
        top_k: int = 40,
        top_p: float = 0.95,
        min_p: float = 0.05,
        typical_p: float = 1.0,
        temp: float = 0.80,
        repeat_penalty: float = 1.0,
        frequency_penalty: float = 0.0,
        presence_penalty: float = 0.0,
        tfs_z: float = 1.0,
        mirostat_mode: int = 0,
        mirostat_eta: float = 0.1,
        mirostat_tau: float = 5.0,
        penalize_nl: bool = True,
        logits_processor: LogitsProcessor | Sequence[LogitsProcessor] | None = None,
        grammar: LlamaGrammar | str | None = None,
        idx: int | None = None,
    ) -> int:
        """A token that may follow the private sequence.

        Args:
            temp: the temperature. idx: the token after which it comes; None is the last one. The others are those of
                :class:`~llama_cpp.completions.requests.CompletionRequest`; tfs_z and penalize_nl have no effect.

        Raises:
            InvalidArgumentError: an argument, or nothing was evaluated. GrammarError: nothing is allowed.
        """
        sequence = self._sequence
        logits = sequence.logits(-1 if idx is None else idx)
        for processor in read_functions("logits_processor", logits_processor):
            logits = processor(self._input_ids.astype("int64"), logits.copy())
        sampler = self._sampler or self._init_sampler(
            top_k=top_k, top_p=top_p, min_p=min_p, typical_p=typical_p, temp=temp, repeat_penalty=repeat_penalty,
            frequency_penalty=frequency_penalty, presence_penalty=presence_penalty, mirostat_mode=mirostat_mode,
            mirostat_eta=mirostat_eta, mirostat_tau=mirostat_tau, grammar=grammar,
        )  # fmt: skip
        return sequence.sample(sampler.sampler, logits)

    def _init_sampler(
        self,
        top_k: int = 40,
        top_p: float = 0.95,
        min_p: float = 0.05,
        typical_p: float = 1.0,
        temp: float = 0.80,
        repeat_penalty: float = 1.0,
        frequency_penalty: float = 0.0,
        presence_penalty: float = 0.0,
        tfs_z: float = 1.0,
        mirostat_mode: int = 0,
        mirostat_eta: float = 0.1,
        mirostat_tau: float = 5.0,
        penalize_nl: bool = True,
        logits_processor: LogitsProcessor | Sequence[LogitsProcessor] | None = None,
        grammar: LlamaGrammar | str | None = None,
        logit_bias: dict[int, float] | None = None,
    ) -> LlamaSampler:
        gbnf = read_grammar(grammar)
        wanted = SamplingParams.checked(
            {
                "temperature": temp, "top_k": top_k, "top_p": top_p, "min_p": min_p, "typical_p": typical_p,
                "repeat_penalty": repeat_penalty, "frequency_penalty": frequency_penalty, "presence_penalty": presence_penalty,
                "mirostat_mode": mirostat_mode, "mirostat_eta": mirostat_eta, "mirostat_tau": mirostat_tau,
            }
        )  # fmt: skip
        seed = self.loaded.seed
        params = SamplingParams(
            **wanted, seed=None if seed is None or seed < 0 else seed, penalty_last_n=self.loaded.penalty_last_n,
            grammar=None if gbnf is None else {"grammar": gbnf}, logit_bias=read_bias(logit_bias),
        )  # fmt: skip
        return LlamaSampler._of(self.loaded, params, self._sequence.n_ctx, self.eval_tokens)

    def generate(
        self,
        tokens: Sequence[int],
        top_k: int = 40,
        top_p: float = 0.95,
        min_p: float = 0.05,
        typical_p: float = 1.0,
        temp: float = 0.80,
        repeat_penalty: float = 1.0,
        reset: bool = True,
        frequency_penalty: float = 0.0,
        presence_penalty: float = 0.0,
        tfs_z: float = 1.0,
        mirostat_mode: int = 0,
        mirostat_tau: float = 5.0,
        mirostat_eta: float = 0.1,
        penalize_nl: bool = True,
        logits_processor: LogitsProcessor | Sequence[LogitsProcessor] | None = None,
        stopping_criteria: StoppingCriteria | Sequence[StoppingCriteria] | None = None,
        grammar: LlamaGrammar | str | None = None,
    ) -> Generator[int, Sequence[int] | None, None]:
        """Tokens that follow others, one by one, without end: it is for the caller to stop, at ``token_eos()`` for example.

        Each is evaluated when the next one is asked for. ``send(tokens)`` puts further ones behind it.

        Args:
            reset: begin with ``tokens``; what the private sequence holds of their beginning is not evaluated again. False goes on
                behind what is held.
            The others are those of :meth:`sample`.

        Raises:
            ContextFullError: the context is full. As :meth:`eval` and :meth:`sample` do.

        Example:
            >>> for token in llm.generate(llm.tokenize(b"Once"), temp=0.0):
            ...     if token == llm.token_eos() or llm.n_tokens == 100:
            ...         break
        """
        rest = token_ids("tokens", tokens)
        sequence = self._sequence
        if flag("reset", reset):
            held = self._input_ids.tolist()
            # the last one is evaluated again, because its logits are needed
            n_common = self.longest_token_prefix(held, rest[:-1])
            sequence.n_tokens = n_common
            rest = rest[n_common:]
        if not rest and not sequence.n_tokens:
            raise InvalidArgumentError("tokens is empty.", remedy="Give one at least: [llm.token_bos()].")
        processors = read_functions("logits_processor", logits_processor)
        criteria = read_functions("stopping_criteria", stopping_criteria)
        self.eval(rest)
        sampler = self._init_sampler(
            top_k=top_k, top_p=top_p, min_p=min_p, typical_p=typical_p, temp=temp, repeat_penalty=repeat_penalty,
            frequency_penalty=frequency_penalty, presence_penalty=presence_penalty, mirostat_mode=mirostat_mode,
            mirostat_eta=mirostat_eta, mirostat_tau=mirostat_tau, grammar=grammar,
        )  # fmt: skip
        while True:
            logits = sequence.logits(-1)
            if criteria or processors:
                ids = self._input_ids.astype("int64")
                if any(criterion(ids, logits) for criterion in criteria):
                    return
                for processor in processors:
                    logits = processor(ids, logits.copy() if logits.base is not None else logits)
            token = sequence.sample(sampler.sampler, logits)
            more = yield token
            if sequence.n_tokens + 1 + len(more or ()) > sequence.n_ctx:
                raise ContextFullError(sequence.n_ctx, can_shift=False)
            self.eval([token, *(more or ())])

    # --- saving ---

    def save_state(self) -> LlamaState:
        """What the private sequence holds, to go on from later. It is as large as its tokens' part of the KV cache."""
        import numpy as np

        sequence = self._sequence
        state = sequence.save()
        data = _MAGIC + hashlib.sha256(state).digest() + state
        scores = self._scores[-1:].copy()
        seed = self.loaded.seed
        return LlamaState(
            np.array(self._input_ids),
            scores,
            sequence.n_tokens,
            data,
            len(data),
            capi.LLAMA_DEFAULT_SEED if seed is None else seed,
        )

    def load_state(self, state: LlamaState) -> None:
        """Goes on from a state that was saved, of this model in a context of the same parameters.

        Raises:
            InvalidArgumentError: it is damaged, or of another model or context.
        """
        import numpy as np

        data = bytes(state.llama_state)
        head = len(_MAGIC) + 32
        if data[: len(_MAGIC)] != _MAGIC or hashlib.sha256(data[head:]).digest() != data[len(_MAGIC) : head]:
            raise InvalidArgumentError("The state is damaged, or was not saved by save_state().", remedy="Evaluate its tokens.")
        tokens = np.asarray(state.input_ids, np.intc)[: state.n_tokens]
        scores = np.asarray(state.scores, np.single)
        self._sequence.load(data[head:], tokens, scores[-1] if len(scores) else None)
        self.loaded.seed = read_seed(state.seed)

    # --- helpers ---

    @staticmethod
    def logits_to_logprobs(logits: npt.NDArray[np.single] | Sequence[float], axis: int = -1) -> npt.NDArray[np.single]:
        """Natural logarithms of the probabilities that logits stand for (log-softmax), along an axis."""
        import numpy as np

        given = np.asarray(logits, np.single)
        most = np.amax(given, axis=axis, keepdims=True)
        shifted = given - np.where(np.isfinite(most), most, 0)
        with np.errstate(divide="ignore"):
            found: npt.NDArray[np.single] = shifted - np.log(np.sum(np.exp(shifted), axis=axis, keepdims=True))
        return found

    @staticmethod
    def longest_token_prefix(a: Sequence[int], b: Sequence[int]) -> int:
        """How many tokens two sequences begin with in common."""
        n = 0
        for one, other in zip(a, b):
            if one != other:
                break
            n += 1
        return n

    def _free(self) -> None:
        private, self._private = self._private, None
        if private is not None:
            private.close()
        super()._free()
