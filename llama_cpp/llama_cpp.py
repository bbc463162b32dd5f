"""llama.cpp's C API under the names llama-cpp-python's users import from here."""

from .capi.ggml import *  # noqa: F403
from .capi.ggml_alloc import *  # noqa: F403
from .capi.ggml_backend import *  # noqa: F403
from .capi.ggml_cpu import *  # noqa: F403
from .capi.gguf import *  # noqa: F403
from .capi.llama import *  # noqa: F403
