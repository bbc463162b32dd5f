"""From a request to what the engine runs and what assembles the answer. Preparing waits for nothing but reading."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ..arguments import read_logprobs
from ..chat.request import ChatRequest
from ..engine.detokenizer import Detokenizer
from ..engine.prompt import Prompt
from ..engine.requests import Request
from ..engine.sampler_chain import Sampler
from ..engine.sampling_params import SamplingParams
from ..limits import asking
from ..model_loading import LoadedModel
from .assembler import Assembler, ChatAssembler, TextAssembler
from .openai_format import new_id, now
from .requests import ChatCompletionRequest, CompletionRequest, GenerationRequest


@dataclass(frozen=True)
class Prepared:
    """A request ready to be run by a driver.

    Attributes:
        request: the engine's, not yet submitted.
        assembler: turns its tokens into chunks, or into the whole response.
        stream: whether chunks are wanted.
        abort: asked while somebody waits whether to end it; None is never.
    """

    request: Request
    assembler: Assembler
    stream: bool
    abort: Callable[[], bool] | None

    def cancel(self) -> None:
        """Ends the request with the next batch, or before it has begun. Any thread may call it."""
        self.request.cancel()


def prepare(wanted: CompletionRequest | ChatCompletionRequest, loaded: LoadedModel) -> Prepared:
    """Reads a request: its prompt or template, its grammar, its sampler chain.

    Raises:
        ContextLengthError: the prompt does not fit. InvalidArgumentError, GrammarError, LimitReachedError.
        ChatTemplateError: the template refused the messages. RequestAbortedError: ``abort_callback`` said so meanwhile.
        ModelClosedError, ForkedProcessError.
    """
    return _chat(wanted, loaded) if isinstance(wanted, ChatCompletionRequest) else _text(wanted, loaded)


def _text(wanted: CompletionRequest, loaded: LoadedModel) -> Prepared:
    text, tokens = _read_prompt(wanted, loaded)
    grammar = {"grammar": wanted.grammar} if wanted.grammar else None
    params = wanted.sampling(seed=loaded.seed, penalty_last_n=loaded.penalty_last_n, grammar=grammar)
    n_logprobs = read_logprobs(wanted.logprobs, loaded.model.n_vocab, "logprobs")
    request, detokenizer = _request(
        wanted, loaded, tokens, params, wanted.stops, n_logprobs=n_logprobs, criteria=wanted.stopping_criteria,
        scores_prompt=wanted.echo and not wanted.suffix,
    )  # fmt: skip
    head = (new_id("cmpl"), now(), wanted.model or loaded.model_path)
    assembler = TextAssembler(
        head, request.generation, detokenizer, wanted.include_usage, loaded.model, n_logprobs is not None,
        prompt=text, tokens=() if wanted.suffix else tokens, echo=wanted.echo,
    )  # fmt: skip
    return Prepared(request, assembler, wanted.stream, wanted.abort_callback)


def _chat(wanted: ChatCompletionRequest, loaded: LoadedModel) -> Prepared:
    templates = loaded.templates(wanted.abort_callback)
    loaded.require_engine()
    asked = ChatRequest(
        wanted.messages, wanted.tools, wanted.tool_choice, wanted.parallel_tool_calls, wanted.response_format, wanted.grammar,
        wanted.chat_template_kwargs, wanted.reasoning_effort, wanted.functions, wanted.function_call,
    )  # fmt: skip
    with asking(wanted.abort_callback):
        prompt = asked.render(templates)
    model = loaded.model
    tokens = model.tokenize(prompt.text.encode("utf-8", "replace"), add_special=True, parse_special=True)
    params = wanted.sampling(
        seed=loaded.seed, penalty_last_n=loaded.penalty_last_n, grammar=prompt.grammar, thinking=prompt.thinking
    )
    n_top = read_logprobs(wanted.top_logprobs, model.n_vocab, "top_logprobs")
    n_logprobs = (n_top or 0) if wanted.logprobs or n_top else None
    stops = (*wanted.stops, *prompt.stop)
    request, detokenizer = _request(wanted, loaded, tokens, params, stops, prompt.preserved, n_logprobs=n_logprobs)
    head = (new_id("chatcmpl"), now(), wanted.model or loaded.model_path)
    assembler = ChatAssembler(
        head, request.generation, detokenizer, wanted.include_usage, model, n_logprobs is not None,
        parser=prompt.response_parser(), legacy=wanted.functions is not None,
    )  # fmt: skip
    return Prepared(request, assembler, wanted.stream, wanted.abort_callback)


def _read_prompt(wanted: CompletionRequest, loaded: LoadedModel) -> tuple[str, list[int]]:
    """The prompt as text, and the tokens to begin with, those that ask to fill in before a suffix among them."""
    model = loaded.model
    loaded.require_engine()
    whole = wanted.suffix is None
    if isinstance(wanted.prompt, str):
        text = wanted.prompt
        tokens = model.tokenize(text.encode("utf-8", "replace"), add_special=whole, parse_special=whole)
        if not tokens and whole and model.token_bos >= 0:
            tokens = [model.token_bos]
    else:
        tokens = list(wanted.prompt)
        text = model.detokenize(tokens, special=True).decode("utf-8", "replace")
    if wanted.suffix is not None:
        tokens = model.infill(tokens, wanted.suffix, suffix_first=loaded.suffix_first)
    return text, tokens


def _request(
    wanted: GenerationRequest,
    loaded: LoadedModel,
    tokens: list[int],
    params: SamplingParams,
    stop: Sequence[str],
    preserved: Sequence[str] = (),
    **more: Any,
) -> tuple[Request, Detokenizer]:
    """A request of the engine, not yet submitted, and what turns its tokens into text."""
    model, engine = loaded.model, loaded.engine
    prompt = Prompt(tokens)
    engine.check_prompt(prompt)
    with asking(wanted.abort_callback):
        sampler = Sampler(model, params, engine.n_ctx, loaded.limits)
    sampler.accept_prompt(tokens)
    single = (model.tokenize(text.encode(), add_special=False, parse_special=True) for text in preserved)
    detokenizer = Detokenizer(model, stop, [ids[0] for ids in single if len(ids) == 1])
    request = Request(
        prompt, sampler, wanted.max_tokens, context_full=wanted.context_full, processors=wanted.processors,
        adapters=loaded.adapters.choose(wanted.lora), speculate=wanted.speculate, **more,
    )  # fmt: skip
    return request, detokenizer
