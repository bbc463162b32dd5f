"""What libraries do with this package, one function for each; run as ``python clients.py NAME MODEL``."""

from __future__ import annotations

import json
import sys


def langchain_completions(path: str) -> None:
    from langchain_community.llms import LlamaCpp

    from llama_cpp import LlamaGrammar

    llm = LlamaCpp(model_path=path, n_ctx=256, max_tokens=8, temperature=0, verbose=False)
    assert llm.invoke("The sea is") == "".join(llm.stream("The sea is")) != "" and llm.get_num_tokens("abc def") > 1
    held = LlamaCpp(
        model_path=path, n_ctx=256, max_tokens=8, verbose=False, grammar=LlamaGrammar.from_string('root ::= "yes" | "no"')
    )
    assert held.invoke("Is the sea blue?") in ("yes", "no")


def langchain_chats(path: str) -> None:
    from langchain_community.chat_models import ChatLlamaCpp
    from langchain_core.messages import HumanMessage
    from pydantic import BaseModel

    class Add(BaseModel):
        """Adds numbers."""

        a: int

    llm = ChatLlamaCpp(model_path=path, n_ctx=512, max_tokens=60, temperature=0, verbose=False)
    assert llm.invoke([HumanMessage("Hi")]).content == "".join(chunk.content for chunk in llm.stream("Hi")) != ""
    (call,) = llm.bind_tools([Add], tool_choice="Add").invoke("add 2").tool_calls
    assert call["name"] == "Add" and isinstance(call["args"]["a"], int)
    assert isinstance(llm.with_structured_output(Add).invoke("add 3"), Add)


def langchain_vectors(path: str) -> None:
    from langchain_community.embeddings import LlamaCppEmbeddings

    embeddings = LlamaCppEmbeddings(model_path=path, n_ctx=256, verbose=False)
    assert len(embeddings.embed_query("abc")) == len(embeddings.embed_documents(["a", "b"])[1]) > 100


def lm_format_enforcer(path: str) -> None:
    from lmformatenforcer import JsonSchemaParser
    from lmformatenforcer.integrations.llamacpp import build_llamacpp_logits_processor, build_token_enforcer_tokenizer_data

    from llama_cpp import Llama, LogitsProcessorList

    schema = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"]}
    with Llama(path, n_ctx=256) as llm:
        processor = build_llamacpp_logits_processor(build_token_enforcer_tokenizer_data(llm), JsonSchemaParser(schema))
        answer = llm("JSON: ", logits_processor=LogitsProcessorList([processor]), max_tokens=100, temperature=0)["choices"][0]
        assert answer["finish_reason"] == "length" or json.loads(answer["text"])["a"] in (1, 2)


def instructor(path: str) -> None:
    import instructor as library
    from pydantic import BaseModel

    from llama_cpp import Llama

    class User(BaseModel):
        name: str
        age: int

    with Llama(path, n_ctx=512) as llm:
        create = library.patch(create=llm.create_chat_completion_openai_v1, mode=library.Mode.JSON_SCHEMA)
        found = create(
            messages=[{"role": "user", "content": "Extract: Jason is 30 years old"}],
            response_model=User,
            max_tokens=100,
            temperature=0,
        )
        assert isinstance(found, User) and found.name


def llguidance(path: str) -> None:
    import llguidance.llamacpp as library

    import llama_cpp

    with llama_cpp.Llama(path, n_ctx=256) as llm:
        assert library.lltokenizer_from_vocab(llama_cpp.llama_model_get_vocab(llm.model))


if __name__ == "__main__":
    globals()[sys.argv[1]](sys.argv[2])
