"""Chat handlers of models that see and hear, under llama-cpp-python's names. Images and sound come in a later version."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .chat_handlers import Jinja2ChatFormatter, chat_formatter_to_chat_completion_handler
from .errors import InvalidArgumentError, MediaNotSupportedError, ModelNotFoundError
from .values import path

if TYPE_CHECKING:
    from .llama import Llama

_IMAGES = ("image_url", "image", "input_image")
_SOUND = ("input_audio", "audio_url", "audio")


class MTMDChatHandler:
    """Answers conversations with a projector's file beside the model. Text alone is answered; media are refused for now.

    Args:
        clip_model_path: the projector's GGUF file. verbose, use_gpu: as llama-cpp-python has them.

    Attributes:
        CHAT_FORMAT: a Jinja template, for subclasses to set; None is the model's own.
        DEFAULT_SYSTEM_MESSAGE: what is said first where a conversation has no instructions; None is nothing.

    Raises:
        ModelNotFoundError: there is no such file.
    """

    CHAT_FORMAT: str | None = None
    DEFAULT_SYSTEM_MESSAGE: str | None = None

    def __init__(self, clip_model_path: str, verbose: bool = True, use_gpu: bool = True, **kwargs: Any) -> None:
        self.clip_model_path = path("clip_model_path", clip_model_path)
        if not Path(self.clip_model_path).is_file():
            raise ModelNotFoundError(f"There is no file {self.clip_model_path}.", remedy="Give the projector's GGUF file.")
        self.verbose, self.use_gpu = verbose, use_gpu
        self._exit_stack = contextlib.ExitStack()

    def __call__(self, *, llama: Llama, messages: Sequence[Mapping[str, Any]], **kwargs: Any) -> Any:
        """Answers a conversation.

        Raises:
            MediaNotSupportedError: there are images or sound in it. As :meth:`Llama.create_chat_completion` does.
        """
        for url in self.get_image_urls(messages):
            self.load_image(url)
        for message in messages:
            for part in _parts(message):
                if part.get("type") in (*_IMAGES, *_SOUND):
                    raise _later()
        if self.DEFAULT_SYSTEM_MESSAGE is not None and (not messages or messages[0].get("role") != "system"):
            messages = [{"role": "system", "content": self.DEFAULT_SYSTEM_MESSAGE}, *messages]
        if self.CHAT_FORMAT is None:
            return llama._answer(messages, kwargs)
        model = llama._model
        bos, eos = (
            model._text(token).decode("utf-8", "replace") if token >= 0 else ""
            for token in (model.token_bos(), model.token_eos())
        )
        formatter = Jinja2ChatFormatter(self.CHAT_FORMAT, eos, bos)
        return chat_formatter_to_chat_completion_handler(formatter)(llama=llama, messages=messages, **kwargs)

    def load_image(self, image_url: str) -> bytes:
        """The bytes of an image.

        Raises:
            MediaNotSupportedError: always, until images are read.
        """
        raise _later()

    @staticmethod
    def get_image_urls(messages: Sequence[Mapping[str, Any]]) -> list[str]:
        """Where the images of a conversation are, in its order."""
        found = []
        for message in messages:
            for part in _parts(message):
                if part.get("type") in _IMAGES:
                    url = part.get("image_url", part.get("image"))
                    found.append(url["url"] if isinstance(url, Mapping) else str(url))
        return found

    @staticmethod
    def split_text_on_image_urls(text: str, image_urls: Sequence[str]) -> list[tuple[str, str]]:
        """A text in pieces: ``("text", …)`` and ``("image_url", …)``, in its order."""
        found: list[tuple[str, str]] = []
        rest = text
        while rest:
            places = [(rest.find(url), url) for url in image_urls if url and url in rest]
            if not places:
                found.append(("text", rest))
                break
            at, url = min(places)
            if at:
                found.append(("text", rest[:at]))
            found.append(("image_url", url))
            rest = rest[at + len(url) :]
        return found

    @classmethod
    def from_pretrained(
        cls, repo_id: str, filename: str | None, local_dir: str | os.PathLike[str] | None = None,
        local_dir_use_symlinks: bool | str = "auto", cache_dir: str | os.PathLike[str] | None = None, **kwargs: Any,
    ) -> MTMDChatHandler:  # fmt: skip
        """One with a projector of the Hugging Face hub. It comes in a later version, with models by name.

        Raises:
            InvalidArgumentError: always, until then.
        """
        raise InvalidArgumentError(
            f"from_pretrained() cannot download {repo_id!r} yet.",
            remedy="Download the file with huggingface_hub's hf_hub_download(), and give its path.",
        )


def _parts(message: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    content = message.get("content")
    return [part for part in content if isinstance(part, Mapping)] if isinstance(content, (list, tuple)) else []


def _later() -> MediaNotSupportedError:
    return MediaNotSupportedError("This version reads no images and no sound.", remedy="Leave them out of the messages.")


class Llava15ChatHandler(MTMDChatHandler):
    """LLaVA 1.5; the class that programs derive their own handlers from."""

    CHAT_FORMAT = (
        "{% for message in messages %}{% if message.role == 'system' %}{{ message.content }}\n"
        "{% elif message.role == 'assistant' %}ASSISTANT: {{ message.content }}\n"
        "{% elif message.content is string %}USER: {{ message.content }}\n"
        "{% else %}USER: {% for part in message.content %}{% if part.type == 'text' %}{{ part.text }}"
        "{% elif part.image_url is string %}{{ part.image_url }}\n{% else %}{{ part.image_url.url }}\n{% endif %}{% endfor %}\n"
        "{% endif %}{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
    )


def _handlers(names: str) -> dict[str, type[MTMDChatHandler]]:
    """Handlers whose models have templates of their own."""
    made = {}
    for name in names.split():
        made[f"{name}ChatHandler"] = type(
            f"{name}ChatHandler", (MTMDChatHandler,), {"__doc__": f"As MTMDChatHandler, for {name}.", "__module__": __name__}
        )
    return made


#: Those of llama-cpp-python, and those that forks of it have.
HANDLERS = {
    "MTMDChatHandler": MTMDChatHandler,
    "Llava15ChatHandler": Llava15ChatHandler,
    **_handlers(
        "Llava16 Obsidian Moondream NanoLlava Llama3VisionAlpha MiniCPMv26 MiniCPMv45 MiniCPMv46 Qwen25VL Qwen3VL Qwen35 "
        "Qwen3ASR Gemma3 Gemma4 GLM41V GLM46V LFM2VL LFM25VL GraniteDocling PaddleOCR Step3VL"
    ),
}
globals().update(HANDLERS)
HANDLERS["Llama3VisionAlpha"] = HANDLERS["Llama3VisionAlphaChatHandler"]
