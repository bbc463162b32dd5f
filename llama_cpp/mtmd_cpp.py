"""libmtmd's C API (images and audio) under the names llama-cpp-python's users import from here."""

from .capi.mtmd import *  # noqa: F403
from .capi.mtmd_helper import *  # noqa: F403
