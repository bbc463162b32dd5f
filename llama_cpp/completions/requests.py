"""What a completion or a chat completion is asked for: a frozen value, each parameter once, with its type and default."""

from __future__ import annotations

import dataclasses
import inspect
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar, cast

from ..arguments import (
    check_unknown,
    read_bias,
    read_callback,
    read_functions,
    read_grammar,
    read_model_name,
    read_seed,
    read_stop,
    read_suffix,
    usage_wanted,
)
from ..engine.logits_processors import LogitsProcessor, StoppingCriteria
from ..engine.requests import CONTEXT_FULL
from ..engine.sampling_params import SamplerOptions, SamplingParams
from ..errors import IgnoredArgumentWarning, InvalidArgumentError
from ..values import flag, integer, number, refused, text, token_ids

F = TypeVar("F", bound=Callable[..., Any])
R = TypeVar("R", bound="GenerationRequest")


@dataclass(frozen=True, kw_only=True)
class GenerationRequest(SamplerOptions):
    """What completions and chat completions have in common. Values are checked, and are Python's own, once it is made.

    The sampling parameters are those of :class:`~llama_cpp.engine.sampling_params.SamplerOptions`.

    Attributes:
        max_tokens: None or less than 1 runs until the model ends or the context is full.
        stop: strings before the earliest of which the text ends.
        stream: yield chunks as they come. ``stream_options={"include_usage": True}`` adds the token counts to a last chunk.
        seed: None takes the model's, or a random one; a negative one is random.
        logit_bias: added to the logits of tokens.
        grammar: GBNF that the text must follow.
        penalty_last_n: how many tokens back the penalties look; None is the model's ``last_n_tokens_size``.
        model: the name that the answer gives as its model's.
        logits_processor: functions of all tokens so far (int64) and the logits (float32, n_vocab) that return other logits. They
            run between the batches that all requests share.
        abort_callback: asked ten times a second while the answer is waited for; when it says True, the request ends there.
        context_full: what to do when the answer fills n_ctx: "truncate" it, raise an "error", or "shift", which forgets the
            older half of what was said.
        lora: scales of LoRA adapters by name, in place of lora_path's; ``{}`` is the model without any.
        speculate: whether a model loaded with draft_model may draft for this request.
        tfs_z: had a meaning once; another value than 1.0 gives an IgnoredArgumentWarning.

    Raises:
        InvalidArgumentError: a value of another kind.
    """

    #: The method of :class:`~llama_cpp.Llama` that takes these parameters.
    METHOD: ClassVar[str]
    #: Those that can be given by place, in llama-cpp-python's order.
    ORDER: ClassVar[tuple[str, ...]]

    max_tokens: int | None = None
    stop: str | Sequence[str] | None = None
    stream: bool = False
    stream_options: Mapping[str, Any] | None = None
    seed: int | None = None
    logit_bias: Mapping[int | str, float] | None = None
    grammar: str | None = None
    penalty_last_n: int | None = None
    model: str | None = None
    logits_processor: LogitsProcessor | Sequence[LogitsProcessor] | None = None
    abort_callback: Callable[[], bool] | None = None
    context_full: str = "truncate"
    lora: Mapping[str, float] | None = None
    speculate: bool = True
    tfs_z: float = 1.0

    def __post_init__(self) -> None:
        if not isinstance(self.context_full, str) or self.context_full not in CONTEXT_FULL:
            raise refused("context_full", self.context_full, f"one of {', '.join(CONTEXT_FULL)}")
        checked = [*_SAMPLERS, *(("penalty_last_n",) if self.penalty_last_n is not None else ())]
        self._set(
            max_tokens=None if self.max_tokens is None else integer("max_tokens", self.max_tokens),
            stop=read_stop(self.stop),
            stream=flag("stream", self.stream, none=False),
            seed=read_seed(self.seed),
            logit_bias=read_bias(self.logit_bias),
            grammar=read_grammar(self.grammar),
            model=read_model_name(self.model, "") or None,
            logits_processor=read_functions("logits_processor", self.logits_processor),
            abort_callback=read_callback(self.abort_callback),
            speculate=flag("speculate", self.speculate),
            tfs_z=_tail_free(self.tfs_z),
            **SamplingParams.checked({name: self.__dict__[name] for name in checked}),
        )

    @classmethod
    def read(cls: type[R], args: tuple[Any, ...], keywords: Mapping[str, Any]) -> R:
        """A request from what a method was called with.

        Raises:
            InvalidArgumentError: a value, or one that is given twice. UnknownArgumentError: as ``check_unknown()`` does.
        """
        parameters = _parameters(cls)
        if len(args) > 1:
            keywords = {**_by_place(cls, args[1:], keywords), **keywords}
            args = args[:1]
        if unknown := {name: value for name, value in keywords.items() if name not in parameters}:
            check_unknown(parameters, cls.METHOD, unknown, stacklevel=4)
            keywords = {name: value for name, value in keywords.items() if name in parameters}
        return cls(*args, **keywords)

    def _set(self, **values: Any) -> None:
        self.__dict__.update(values)  # a frozen dataclass keeps its fields there; setting them one by one takes much longer

    @property
    def include_usage(self) -> bool:
        """Whether a stream is to end with the token counts."""
        return usage_wanted(self.stream_options)

    @property
    def processors(self) -> tuple[LogitsProcessor, ...]:
        """The functions of ``logits_processor``."""
        return cast("tuple[LogitsProcessor, ...]", self.logits_processor)

    @property
    def stops(self) -> tuple[str, ...]:
        """The strings of ``stop``."""
        return cast("tuple[str, ...]", self.stop)

    def sampling(self, *, seed: int | None, penalty_last_n: int, grammar: Mapping[str, Any] | None) -> SamplingParams:
        """The parameters of its sampler chain.

        Args:
            seed, penalty_last_n: the model's, for requests that bring none.
            grammar: as :class:`~llama_cpp.engine.sampling_params.SamplingParams` has it.
        """
        seed = self.seed if self.seed is not None else seed
        return SamplingParams(
            **{name: self.__dict__[name] for name in _SAMPLERS},
            logit_bias=cast("dict[int, float]", self.logit_bias),
            seed=None if seed is None or seed < 0 else seed,
            penalty_last_n=penalty_last_n if self.penalty_last_n is None else self.penalty_last_n,
            grammar=grammar,
        )


_known: dict[str, dict[str, inspect.Parameter]] = {}


def _parameters(kind: type[GenerationRequest]) -> dict[str, inspect.Parameter]:
    """The parameters of a kind of request by name: those that can be given by place, and the others."""
    if kind.METHOD not in _known:
        own = dict(inspect.signature(kind).parameters)
        placed = {name: own.pop(name).replace(kind=inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in kind.ORDER}
        _known[kind.METHOD] = placed | own
    return _known[kind.METHOD]


def _by_place(kind: type[GenerationRequest], args: Sequence[Any], keywords: Mapping[str, Any]) -> dict[str, Any]:
    """What was given by place after the first one, by name."""
    names = kind.ORDER[1:]
    if len(args) > len(names):
        raise InvalidArgumentError(f"{kind.METHOD}() takes {len(names) + 1} arguments by place, and {len(args) + 1} were given.")
    placed = dict(zip(names, args))
    if twice := placed.keys() & keywords.keys():
        raise InvalidArgumentError(f"{kind.METHOD}() was given {min(twice)!r} by place and by name.")
    return placed


def _tail_free(value: Any) -> float:
    if (found := number("tfs_z", value)) != 1.0:
        warnings.warn("tfs_z has no effect: llama.cpp removed tail-free sampling.", IgnoredArgumentWarning, stacklevel=7)
    return found


def takes(kind: type[GenerationRequest]) -> Callable[[F], F]:
    """Gives a method the parameters of a kind of request, for ``inspect.signature()`` and ``help()``."""

    def decorate(method: F) -> F:
        own = inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)
        rest = inspect.Parameter("kwargs", inspect.Parameter.VAR_KEYWORD)
        signature = inspect.Signature([own, *_parameters(kind).values(), rest])
        method.__signature__ = signature  # type: ignore[attr-defined]  # what inspect looks for
        return method

    return decorate


_SAMPLERS = tuple(field.name for field in dataclasses.fields(SamplerOptions))


@dataclass(frozen=True)
class CompletionRequest(GenerationRequest):
    """A text to be continued.

    Attributes:
        prompt: text, or token ids.
        suffix: what comes after the text, for a model that was trained to fill in (the prompt is what comes before).
        echo: begin the text with the prompt; with ``logprobs``, its tokens are scored, too. None is then taken from the cache,
            and they are read more slowly.
        logprobs: log-probabilities of each token and of so many most probable ones.
        stopping_criteria: functions of all tokens so far and of the logits of the next one (as above, before any processor); when
            one of them says True, the text ends there, without that token.
    """

    METHOD = "create_completion"
    ORDER = (
        "prompt", "suffix", "max_tokens", "temperature", "top_p", "min_p", "typical_p", "logprobs", "echo", "stop",
        "frequency_penalty", "presence_penalty", "repeat_penalty", "top_k", "stream", "seed", "tfs_z", "mirostat_mode",
        "mirostat_tau", "mirostat_eta", "model", "stopping_criteria", "logits_processor", "grammar", "logit_bias",
    )  # fmt: skip

    prompt: str | Sequence[int]
    suffix: str | None = dataclasses.field(default=None, kw_only=True)
    max_tokens: int | None = dataclasses.field(default=16, kw_only=True)
    echo: bool = dataclasses.field(default=False, kw_only=True)
    logprobs: int | None = dataclasses.field(default=None, kw_only=True)
    stopping_criteria: StoppingCriteria | Sequence[StoppingCriteria] | None = dataclasses.field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        prompt: Any = self.prompt
        if not isinstance(prompt, str):
            if isinstance(prompt, (bytes, bytearray)) or not isinstance(prompt, Iterable):
                raise InvalidArgumentError(f"prompt is {type(prompt).__name__}.", remedy="Give a str or a list of tokens.")
            prompt = token_ids("prompt", prompt)
        self._set(
            prompt=prompt,
            suffix=read_suffix(self.suffix),
            echo=flag("echo", self.echo, none=False),
            stopping_criteria=read_functions("stopping_criteria", self.stopping_criteria),
        )


@dataclass(frozen=True)
class ChatCompletionRequest(GenerationRequest):
    """A conversation to be answered, with the model's own chat template.

    Attributes:
        messages: in OpenAI's form.
        tools, tool_choice, parallel_tool_calls: functions the model may call, read by the parser that belongs to its template;
            ``tool_choice`` is "auto", "required" (or True), "none" (or False), or names one as the tool itself does.
        functions, function_call: the same in OpenAI's older form, which the answer then has, too.
        response_format: ``{"type": "json_object"}`` or ``{"type": "json_schema", "json_schema": {"schema": …}}``.
        chat_template_kwargs: variables for the template; ``{"enable_thinking": False}`` switches reasoning off where the template
            can.
        reasoning_effort: how much the model is to think, for templates that know it; "none" is not at all.
        reasoning_budget_tokens: tokens that the model may think before it answers; None or less than 0 is no limit, 0 ends its
            thoughts at once. reasoning_budget_message: what is written in its place before they end.
        logprobs, top_logprobs: log-probabilities of each token, and of so many most probable ones.
    """

    METHOD = "create_chat_completion"
    ORDER = (
        "messages", "functions", "function_call", "tools", "tool_choice", "temperature", "top_p", "top_k", "min_p", "typical_p",
        "stream", "stop", "seed", "response_format", "max_tokens", "presence_penalty", "frequency_penalty", "repeat_penalty",
        "tfs_z", "mirostat_mode", "mirostat_tau", "mirostat_eta", "model", "logits_processor", "grammar", "logit_bias",
        "logprobs", "top_logprobs",
    )  # fmt: skip

    messages: Sequence[Mapping[str, Any]]
    functions: Sequence[Mapping[str, Any]] | None = dataclasses.field(default=None, kw_only=True)
    function_call: str | Mapping[str, Any] | None = dataclasses.field(default=None, kw_only=True)
    tools: Sequence[Mapping[str, Any]] | None = dataclasses.field(default=None, kw_only=True)
    tool_choice: str | bool | Mapping[str, Any] | None = dataclasses.field(default=None, kw_only=True)
    parallel_tool_calls: bool | None = dataclasses.field(default=None, kw_only=True)
    response_format: Mapping[str, Any] | None = dataclasses.field(default=None, kw_only=True)
    chat_template_kwargs: Mapping[str, Any] | None = dataclasses.field(default=None, kw_only=True)
    reasoning_effort: str | None = dataclasses.field(default=None, kw_only=True)
    reasoning_budget_tokens: int | None = dataclasses.field(default=None, kw_only=True)
    reasoning_budget_message: str | None = dataclasses.field(default=None, kw_only=True)
    temperature: float = dataclasses.field(default=0.2, kw_only=True)
    logprobs: bool | None = dataclasses.field(default=None, kw_only=True)
    top_logprobs: int | None = dataclasses.field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._set(
            logprobs=flag("logprobs", self.logprobs, none=False),
            reasoning_budget_tokens=_budget(self.reasoning_budget_tokens),
            reasoning_budget_message=_optional_text("reasoning_budget_message", self.reasoning_budget_message),
        )
        if self.tools is not None and self.functions is not None:
            raise InvalidArgumentError(
                "tools and functions cannot both be given.", remedy="functions is the older form of tools."
            )

    def sampling(
        self,
        *,
        seed: int | None,
        penalty_last_n: int,
        grammar: Mapping[str, Any] | None,
        thinking: Mapping[str, Any] | None = None,
    ) -> SamplingParams:
        """As above; ``thinking`` is what :class:`~llama_cpp.engine.sampling_params.SamplingParams` has."""
        params = super().sampling(seed=seed, penalty_last_n=penalty_last_n, grammar=grammar)
        return dataclasses.replace(
            params,
            thinking=thinking,
            reasoning_budget_tokens=self.reasoning_budget_tokens,
            reasoning_budget_message=self.reasoning_budget_message or "",
        )


def _optional_text(name: str, value: Any) -> str:
    found = "" if value is None else text(name, value)
    if "\0" in found:
        raise refused(name, value, "a str without a NUL character")
    return found


def _budget(value: Any) -> int | None:
    if value is None or (found := integer("reasoning_budget_tokens", value, None, 0x7FFFFFFF)) < 0:
        return None
    return found
