"""The templates that the engine's source ships, rendered by llama.cpp's own engine and by jinja2: the same prompts."""

from __future__ import annotations

from pathlib import Path

import pytest

from llama_cpp.chat.jinja_templates import JinjaTemplate
from llama_cpp.chat.request import ChatRequest
from llama_cpp.chat.templates import ChatTemplates
from llama_cpp.errors import ChatTemplateError, LlamaCppError

_SOURCE = Path(__file__).parents[1] / "vendor" / "llama.cpp" / "source"
TEMPLATES = {path.stem: path for path in sorted((_SOURCE / "models" / "templates").glob("*.jinja"))}
TALKS = {
    "one": [{"role": "user", "content": "Hi"}],
    "instructions": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}],
    "turns": [
        {"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": "More"},
    ],
    "thoughts": [
        {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello.", "reasoning_content": "Easy."},
        {"role": "user", "content": "More"},
    ],
    "twice": [{"role": "user", "content": "Hi"}, {"role": "user", "content": "There"}],
}  # fmt: skip
#: What llama.cpp does on purpose, and a template alone does not.
KNOWN = {
    ("fireworks-ai-llama-3-firefunction-v2", None): "it gives the variable functions, which the template cannot do without",
    ("google-gemma-2-2b-it", "instructions"): "it puts instructions into the user's message, which the template refuses",
    ("google-gemma-2-2b-it", "turns"): "the same",
    ("mistralai-Ministral-3-14B-Reasoning-2512", "thoughts"): "it writes thoughts as parts of the content",
    ("unsloth-mistral-Devstral-Small-2507", "thoughts"): "the same",
}


@pytest.fixture(scope="module")
def rendered():
    """Of each template, for both engines."""
    return {
        name: (
            ChatTemplates(None, path.read_text(), bos_token="<s>", eos_token="</s>"),
            JinjaTemplate(path.read_text(), "<s>", "</s>"),
        )
        for name, path in TEMPLATES.items()
    }


def test_there_are_templates():
    assert len(TEMPLATES) > 60


def _or_none(templates, talk):
    """The prompt; None where the template refuses the conversation."""
    try:
        if isinstance(templates, ChatTemplates):
            return templates.apply({"messages": TALKS[talk]}).text
        return templates.render(TALKS[talk], enable_thinking=True)
    except ChatTemplateError:
        return None


@pytest.mark.parametrize("talk", TALKS)
def test_both_engines_write_the_same(rendered, talk):
    other = []
    for name, (native, jinja) in rendered.items():
        texts = _or_none(native, talk), _or_none(jinja, talk)
        if texts[0] != texts[1] and (name, talk) not in KNOWN and (name, None) not in KNOWN:
            other.append((name, texts))
    assert not other, other[0]


@pytest.mark.parametrize("talk", TALKS)
def test_nothing_that_was_said_is_left_out(rendered, talk):
    """Also where llama.cpp takes thoughts for all that was said."""
    for name, (native, _) in rendered.items():
        try:
            text = ChatRequest(TALKS[talk]).render(native).text
        except LlamaCppError as error:
            assert "alternate" in str(error) or talk == "twice", (name, error)
            continue
        assert all(message["content"] in text for message in TALKS[talk]), (name, text)
