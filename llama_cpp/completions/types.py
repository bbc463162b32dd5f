"""What completions return, and the keywords they take, for type checkers: OpenAI's shapes, with ``timings`` of llama.cpp's."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypedDict

if TYPE_CHECKING:
    from typing_extensions import NotRequired

    from ..engine.logits_processors import LogitsProcessor, StoppingCriteria


class PromptTokensDetails(TypedDict):
    """``cached_tokens`` of the prompt were in the cache already."""

    cached_tokens: int


class CompletionUsage(TypedDict):
    """Token counts of a request."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


class Timings(TypedDict):
    """How long a request took: milliseconds, and tokens per second."""

    cache_n: int
    prompt_n: int
    prompt_ms: float
    prompt_per_second: float
    predicted_n: int
    predicted_ms: float
    predicted_per_second: float


class CompletionLogprobs(TypedDict):
    """Natural logarithms of probabilities; the first token of an echoed prompt has none."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(TypedDict):
    """A text, or the piece of it that a chunk brings."""

    text: str
    index: int
    logprobs: CompletionLogprobs | None
    finish_reason: str | None


class CreateCompletionResponse(TypedDict):
    """A text completion, or a chunk of one: the last chunks have ``timings`` and, where it was asked for, ``usage``."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: NotRequired[CompletionUsage]
    timings: NotRequired[Timings]


CreateCompletionStreamResponse = CreateCompletionResponse


class ChatCompletionTopLogprob(TypedDict):
    """A token's text, its logarithm of a probability, and its bytes."""

    token: str
    logprob: float
    bytes: list[int]


class ChatCompletionTokenLogprob(ChatCompletionTopLogprob):
    """A token of the answer with the most probable ones in its place."""

    top_logprobs: list[ChatCompletionTopLogprob]


class ChatCompletionLogprobs(TypedDict):
    """Of each token of the answer."""

    content: list[ChatCompletionTokenLogprob]
    refusal: None


class ChatCompletionFunction(TypedDict):
    """A call: the function's name and its arguments, as JSON text."""

    name: str
    arguments: str


class ChatCompletionMessageToolCall(TypedDict):
    """A call of a tool."""

    id: str
    type: Literal["function"]
    function: ChatCompletionFunction


class ChatCompletionResponseMessage(TypedDict):
    """What the model answers."""

    role: Literal["assistant"]
    content: str | None
    reasoning_content: NotRequired[str]
    tool_calls: NotRequired[list[ChatCompletionMessageToolCall]]


class ChatCompletionResponseChoice(TypedDict):
    """An answer, and why it ended: "stop", "length", "tool_calls" or "abort"."""

    index: int
    message: ChatCompletionResponseMessage
    logprobs: ChatCompletionLogprobs | None
    finish_reason: str


class CreateChatCompletionResponse(TypedDict):
    """A whole chat completion."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatCompletionResponseChoice]
    usage: CompletionUsage
    timings: Timings


class ChatCompletionStreamResponseDelta(TypedDict, total=False):
    """What a chunk adds to the message."""

    role: Literal["assistant"]
    content: str | None
    reasoning_content: str
    tool_calls: list[dict[str, Any]]


class ChatCompletionStreamResponseChoice(TypedDict):
    """A piece of an answer; the last one says why it ended."""

    index: int
    delta: ChatCompletionStreamResponseDelta
    logprobs: ChatCompletionLogprobs | None
    finish_reason: str | None


class CreateChatCompletionStreamResponse(TypedDict):
    """A chunk of a chat completion; the last ones have ``timings`` and, where it was asked for, ``usage``."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChatCompletionStreamResponseChoice]
    usage: NotRequired[CompletionUsage]
    timings: NotRequired[Timings]


class SamplerKeywords(TypedDict, total=False):
    """The fields of :class:`~llama_cpp.engine.sampling_params.SamplerOptions`."""

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    typical_p: float
    repeat_penalty: float
    frequency_penalty: float
    presence_penalty: float
    top_n_sigma: float
    xtc_probability: float
    xtc_threshold: float
    dynatemp_range: float
    dynatemp_exponent: float
    dry_multiplier: float
    dry_base: float
    dry_allowed_length: int
    dry_penalty_last_n: int
    dry_sequence_breakers: Sequence[str]
    adaptive_target: float
    adaptive_decay: float
    mirostat_mode: int
    mirostat_tau: float
    mirostat_eta: float


class GenerationKeywords(SamplerKeywords, total=False):
    """The fields of :class:`~.requests.GenerationRequest`, without ``stream``."""

    max_tokens: int | None
    stop: str | Sequence[str] | None
    stream_options: Mapping[str, Any] | None
    seed: int | None
    logit_bias: Mapping[int | str, float] | None
    grammar: str | None
    penalty_last_n: int | None
    model: str | None
    logits_processor: LogitsProcessor | Sequence[LogitsProcessor] | None
    abort_callback: Callable[[], bool] | None
    context_full: str
    lora: Mapping[str, float] | None
    speculate: bool
    tfs_z: float


class CompletionKeywords(GenerationKeywords, total=False):
    """The fields of :class:`~.requests.CompletionRequest`, without ``prompt`` and ``stream``."""

    suffix: str | None
    echo: bool
    logprobs: int | None
    stopping_criteria: StoppingCriteria | Sequence[StoppingCriteria] | None


class ChatCompletionKeywords(GenerationKeywords, total=False):
    """The fields of :class:`~.requests.ChatCompletionRequest`, without ``messages`` and ``stream``."""

    functions: Sequence[Mapping[str, Any]] | None
    function_call: str | Mapping[str, Any] | None
    tools: Sequence[Mapping[str, Any]] | None
    tool_choice: str | bool | Mapping[str, Any] | None
    parallel_tool_calls: bool | None
    response_format: Mapping[str, Any] | None
    chat_template_kwargs: Mapping[str, Any] | None
    reasoning_effort: str | None
    reasoning_budget_tokens: int | None
    reasoning_budget_message: str | None
    logprobs: bool | None
    top_logprobs: int | None
