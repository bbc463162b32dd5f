"""Documents sorted by how well they answer a query: by a classifier's scores, or by asking a model that generates."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .capi import llama as capi
from .chat.request import ChatRequest
from .completions.openai_format import new_id
from .completions.prepare import prepare
from .completions.requests import CompletionRequest
from .engine.requests import RequestStream
from .errors import ContextLengthError, InvalidArgumentError
from .values import integer, items, text

if TYPE_CHECKING:
    import numpy as np

    from .model_loading import LoadedModel
    from .models.model import Model

#: The file's own way to write a pair: text with {query} and {document}.
_TEMPLATE = "tokenizer.chat_template.rerank"
_QUESTION = (
    "Query: {query}\n\nDocument: {document}\n\nDoes the document answer the query? Say only yes or no."  # the words scored below
)
_YES, _NO = ("yes", "Yes", " yes", " Yes"), ("no", "No", " no", " No")


def run(loaded: LoadedModel, query: str, documents: Sequence[str], top_n: int | None, return_documents: bool) -> dict[str, Any]:
    """What :meth:`~llama_cpp.Llama.rerank` returns.

    Raises:
        InvalidArgumentError, ContextLengthError, and what computing raises.
    """
    query = text("query", query)
    listed = [text(f"documents[{at}]", document) for at, document in enumerate(items("documents", documents))]
    n = len(listed) if top_n is None else integer("top_n", top_n, 0)
    loaded.require_open()
    template = loaded.model.metadata().get(_TEMPLATE)
    if loaded.generates:
        scores, n_tokens = _by_asking(loaded, query, listed, template)
    else:
        scores, n_tokens = _by_classifying(loaded, query, listed, template)
    best = sorted(range(len(listed)), key=lambda at: -scores[at])[:n]
    results: list[dict[str, Any]] = [{"index": at, "relevance_score": scores[at]} for at in best]
    if return_documents:
        for result in results:
            result["document"] = {"text": listed[result["index"]]}
    usage = {"prompt_tokens": n_tokens, "total_tokens": n_tokens}
    return {"id": new_id("rerank"), "object": "list", "model": loaded.model_path, "results": results, "usage": usage}


def _by_classifying(loaded: LoadedModel, query: str, documents: Sequence[str], template: str | None) -> tuple[list[float], int]:
    embedder = loaded.embedder
    if embedder.pooling_type != capi.LLAMA_POOLING_TYPE_RANK:
        raise InvalidArgumentError(
            "This model computes vectors and does not classify.",
            remedy="Load a reranker, or a model that generates without embedding=True.",
        )
    pairs = [_pair(loaded.model, query, document, template) for document in documents]
    for pair in pairs:
        if len(pair) > embedder.n_ctx:
            raise ContextLengthError(len(pair), embedder.n_ctx, answered=False)
    vectors = embedder.submit(pairs, loaded.adapters.choose(None)).result()
    return [float(vector[0]) for vector in vectors], sum(map(len, pairs))


def _pair(model: Model, query: str, document: str, template: str | None) -> list[int]:
    """Token ids of a query with a document, as the model learnt to read them."""
    if template is not None:
        written = template.replace("{query}", query).replace("{document}", document)
        return model.tokenize(written.encode("utf-8", "replace"), add_special=False, parse_special=True)
    vocab = model.vocab_pointer
    eos = capi.llama_vocab_eos(vocab)
    if eos < 0:
        eos = capi.llama_vocab_sep(vocab)
    ends = [eos] if capi.llama_vocab_get_add_eos(vocab) else []
    between = [*ends, *([capi.llama_vocab_sep(vocab)] if capi.llama_vocab_get_add_sep(vocab) else [])]
    first, second = (
        model.tokenize(part.encode("utf-8", "replace"), add_special=False, parse_special=False) for part in (query, document)
    )
    begins = [model.token_bos] if capi.llama_vocab_get_add_bos(vocab) else []
    return [*begins, *first, *between, *second, *ends]


def _by_asking(loaded: LoadedModel, query: str, documents: Sequence[str], template: str | None) -> tuple[list[float], int]:
    """The probability of "yes" where the answer begins, against that of "no"."""
    model = loaded.model
    yes, no = (_single(model, words) for words in (_YES, _NO))
    if not yes or not no:
        raise InvalidArgumentError("This vocabulary has no tokens for yes and no.", remedy="Load a reranker with embedding=True.")
    logits: dict[int, np.ndarray] = {}
    streams, n_tokens = [], 0
    try:
        for at, document in enumerate(documents):
            prompt = _question(loaded, query, document) if template is None else _pair(model, query, document, template)

            def keep(_tokens: np.ndarray, found: np.ndarray, at: int = at) -> np.ndarray:
                logits[at] = found[[*yes, *no]].astype("float64")
                return found

            prepared = prepare(CompletionRequest(prompt, max_tokens=1, temperature=0.0, logits_processor=keep), loaded)
            streams.append(RequestStream(prepared.request))
            loaded.engine.submit(prepared.request)
            n_tokens += len(prompt)
        for stream in streams:
            stream.result()
    finally:
        for stream in streams:  # those that are still computed when another one has failed
            stream.cancel()
    return [_share(logits[at].tolist(), len(yes)) for at in range(len(documents))], n_tokens


def _question(loaded: LoadedModel, query: str, document: str) -> list[int]:
    content = _QUESTION.replace("{query}", query).replace("{document}", document)
    # a grammar of the caller's own is what ends thoughts that a template begins
    asked = ChatRequest([{"role": "user", "content": content}], user_grammar='root ::= "yes" | "no"')
    written = asked.render(loaded.templates()).text
    return loaded.model.tokenize(written.encode("utf-8", "replace"), add_special=True, parse_special=True)


def _single(model: Model, words: Sequence[str]) -> list[int]:
    """Those of the words that are one token."""
    found = (model.tokenize(word.encode(), add_special=False, parse_special=False) for word in words)
    return sorted({tokens[0] for tokens in found if len(tokens) == 1})


def _share(logits: Sequence[float], n_first: int) -> float:
    """The probability of the first ones among all."""
    most = max(logits)
    weights = [math.exp(logit - most) for logit in logits]
    return sum(weights[:n_first]) / sum(weights)
