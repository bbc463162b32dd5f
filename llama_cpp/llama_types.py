"""The shapes of requests and responses, under the names llama-cpp-python's users import: OpenAI's forms, for type checkers."""

from __future__ import annotations

from typing import Any, Literal, TypedDict

from .completions.types import (
    ChatCompletionFunction,
    ChatCompletionLogprobs,
    ChatCompletionMessageToolCall,
    ChatCompletionResponseChoice,
    ChatCompletionResponseMessage,
    ChatCompletionStreamResponseChoice,
    ChatCompletionStreamResponseDelta,
    ChatCompletionTokenLogprob,
    ChatCompletionTopLogprob,
    CompletionChoice,
    CompletionLogprobs,
    CompletionUsage,
    CreateChatCompletionResponse,
    CreateChatCompletionStreamResponse,
    CreateCompletionResponse,
    CreateCompletionStreamResponse,
)

JsonType = None | int | float | str | bool | list[Any] | dict[str, Any]


# --- vectors ---


class EmbeddingUsage(TypedDict):
    """Token counts of texts."""

    prompt_tokens: int
    total_tokens: int


class Embedding(TypedDict):
    """The vector of a text; of its tokens, where nothing is pooled."""

    index: int
    object: str
    embedding: list[float] | list[list[float]]


class CreateEmbeddingResponse(TypedDict):
    """Vectors of texts."""

    object: Literal["list"]
    model: str
    data: list[Embedding]
    usage: EmbeddingUsage


# --- calls in answers ---


class ChatCompletionResponseFunctionCall(TypedDict):
    """A call in OpenAI's older form."""

    name: str
    arguments: str


class ChatCompletionMessageToolCallChunkFunction(TypedDict):
    """A piece of a call; the name comes with the first one."""

    name: str | None
    arguments: str


class ChatCompletionMessageToolCallChunk(TypedDict):
    """A piece of a call in a stream, of the call that ``index`` counts."""

    index: int
    id: str | None
    type: Literal["function"]
    function: ChatCompletionMessageToolCallChunkFunction


class ChatCompletionStreamResponseDeltaEmpty(TypedDict):
    """A delta that adds nothing."""


class ChatCompletionStreamResponseDeltaFunctionCall(TypedDict):
    """A piece of a call in OpenAI's older form."""

    name: str
    arguments: str


# --- what can be called ---


class ChatCompletionFunctions(TypedDict, total=False):
    """A function in OpenAI's older form."""

    name: str
    description: str
    parameters: dict[str, JsonType]


class ChatCompletionFunctionCallOption(TypedDict):
    """Which function is to be called."""

    name: str


ChatCompletionFunctionParameters = dict[str, JsonType]


class ChatCompletionToolFunction(TypedDict, total=False):
    """A function, with the JSON schema of its arguments."""

    name: str
    description: str
    parameters: ChatCompletionFunctionParameters


class ChatCompletionTool(TypedDict):
    """A tool."""

    type: Literal["function"]
    function: ChatCompletionToolFunction


class ChatCompletionNamedToolChoiceFunction(TypedDict):
    """The name of a function."""

    name: str


class ChatCompletionNamedToolChoice(TypedDict):
    """Which tool is to be called."""

    type: Literal["function"]
    function: ChatCompletionNamedToolChoiceFunction


ChatCompletionToolChoiceOption = Literal["none", "auto", "required"] | ChatCompletionNamedToolChoice


class ChatCompletionRequestResponseFormat(TypedDict, total=False):
    """What an answer is to be: text, JSON, or JSON that a schema describes."""

    type: Literal["text", "json_object", "json_schema"]
    schema: JsonType
    json_schema: JsonType


# --- messages of requests ---


class ChatCompletionRequestMessageContentPartText(TypedDict):
    """A part of a message that is text."""

    type: Literal["text"]
    text: str


class ChatCompletionRequestMessageContentPartImageImageUrl(TypedDict, total=False):
    """Where an image is, and how closely it is looked at."""

    url: str
    detail: Literal["auto", "low", "high"]


class ChatCompletionRequestMessageContentPartImage(TypedDict):
    """A part of a message that is an image."""

    type: Literal["image_url"]
    image_url: str | ChatCompletionRequestMessageContentPartImageImageUrl


ChatCompletionRequestMessageContentPart = (
    ChatCompletionRequestMessageContentPartText | ChatCompletionRequestMessageContentPartImage
)


class ChatCompletionRequestSystemMessage(TypedDict):
    """Instructions."""

    role: Literal["system"]
    content: str | None


class ChatCompletionRequestUserMessage(TypedDict):
    """What the user says."""

    role: Literal["user"]
    content: str | list[ChatCompletionRequestMessageContentPart] | None


ChatCompletionMessageToolCallFunction = ChatCompletionFunction
ChatCompletionMessageToolCalls = list[ChatCompletionMessageToolCall]


class ChatCompletionRequestAssistantMessageFunctionCall(TypedDict):
    """A call in OpenAI's older form."""

    name: str
    arguments: str


class ChatCompletionRequestAssistantMessage(TypedDict, total=False):
    """What the model said before."""

    role: Literal["assistant"]
    content: str | None
    tool_calls: ChatCompletionMessageToolCalls
    function_call: ChatCompletionRequestAssistantMessageFunctionCall


class ChatCompletionRequestToolMessage(TypedDict):
    """What a tool answered."""

    role: Literal["tool"]
    content: str | None
    tool_call_id: str


class ChatCompletionRequestFunctionMessage(TypedDict):
    """What a function answered, in OpenAI's older form."""

    role: Literal["function"]
    content: str | None
    name: str


ChatCompletionRequestMessage = (
    ChatCompletionRequestSystemMessage
    | ChatCompletionRequestUserMessage
    | ChatCompletionRequestAssistantMessage
    | ChatCompletionRequestToolMessage
    | ChatCompletionRequestFunctionMessage
)


class ChatCompletionRequestFunctionCallOption(TypedDict):
    """Which function is to be called."""

    name: str


ChatCompletionRequestFunctionCall = Literal["none", "auto"] | ChatCompletionRequestFunctionCallOption

# --- other names of the same ---

ChatCompletionTopLogprobToken = ChatCompletionTopLogprob
ChatCompletionLogprobToken = ChatCompletionTokenLogprob
EmbeddingData = Embedding
CompletionChunk = CreateCompletionStreamResponse
Completion = CreateCompletionResponse
ChatCompletionMessage = ChatCompletionResponseMessage
ChatCompletionChoice = ChatCompletionResponseChoice
ChatCompletion = CreateChatCompletionResponse
ChatCompletionChunkDelta = ChatCompletionStreamResponseDelta
ChatCompletionChunkChoice = ChatCompletionStreamResponseChoice
ChatCompletionChunk = CreateChatCompletionStreamResponse

__all__ = [
    "ChatCompletion", "ChatCompletionChoice", "ChatCompletionChunk", "ChatCompletionChunkChoice", "ChatCompletionChunkDelta",
    "ChatCompletionFunction", "ChatCompletionFunctionCallOption", "ChatCompletionFunctionParameters", "ChatCompletionFunctions",
    "ChatCompletionLogprobToken", "ChatCompletionLogprobs", "ChatCompletionMessage", "ChatCompletionMessageToolCall",
    "ChatCompletionMessageToolCallChunk", "ChatCompletionMessageToolCallChunkFunction", "ChatCompletionMessageToolCallFunction",
    "ChatCompletionMessageToolCalls", "ChatCompletionNamedToolChoice", "ChatCompletionNamedToolChoiceFunction",
    "ChatCompletionRequestAssistantMessage", "ChatCompletionRequestAssistantMessageFunctionCall",
    "ChatCompletionRequestFunctionCall", "ChatCompletionRequestFunctionCallOption", "ChatCompletionRequestFunctionMessage",
    "ChatCompletionRequestMessage", "ChatCompletionRequestMessageContentPart", "ChatCompletionRequestMessageContentPartImage",
    "ChatCompletionRequestMessageContentPartImageImageUrl", "ChatCompletionRequestMessageContentPartText",
    "ChatCompletionRequestResponseFormat", "ChatCompletionRequestSystemMessage", "ChatCompletionRequestToolMessage",
    "ChatCompletionRequestUserMessage", "ChatCompletionResponseChoice", "ChatCompletionResponseFunctionCall",
    "ChatCompletionResponseMessage", "ChatCompletionStreamResponseChoice", "ChatCompletionStreamResponseDelta",
    "ChatCompletionStreamResponseDeltaEmpty", "ChatCompletionStreamResponseDeltaFunctionCall", "ChatCompletionTool",
    "ChatCompletionToolChoiceOption", "ChatCompletionToolFunction", "ChatCompletionTopLogprobToken", "Completion",
    "CompletionChoice", "CompletionChunk", "CompletionLogprobs", "CompletionUsage", "CreateChatCompletionResponse",
    "CreateChatCompletionStreamResponse", "CreateCompletionResponse", "CreateCompletionStreamResponse",
    "CreateEmbeddingResponse", "Embedding", "EmbeddingData", "EmbeddingUsage", "JsonType",
]  # fmt: skip
