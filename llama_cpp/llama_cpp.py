"""llama.cpp's C API under the names llama-cpp-python's users import from here."""

from .capi.ggml import *  # noqa: F403
from .capi.ggml import ggml_log_callback
from .capi.ggml_alloc import *  # noqa: F403
from .capi.ggml_backend import *  # noqa: F403
from .capi.ggml_cpu import *  # noqa: F403
from .capi.gguf import *  # noqa: F403

from .capi.llama import *  # noqa: F403  # isort: skip
from .capi.kept import *  # noqa: F403  # isort: skip  # in place of llama's
from .capi.removed import *  # noqa: F403
from .capi.whole import lib as _lib  # noqa: F401

#: The type of what ``llama_log_set()`` takes; it makes a decorator, too.
llama_log_callback = ggml_log_callback
#: Devices that a model can be spread over; ``llama_max_devices()`` says how many there are here.
LLAMA_MAX_DEVICES = 16
