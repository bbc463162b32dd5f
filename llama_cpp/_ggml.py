"""ggml's library, under the name that llama-cpp-python's users import it from."""

from .capi.ggml import *  # noqa: F403
from .capi.whole import lib as libggml  # noqa: F401
