"""The devices that a model is spread over: this machine's GPUs, and those of llama.cpp's RPC servers.

What goes to an RPC server (``rpc-server`` of the package llama.cpp) is neither encrypted nor authenticated, so only loopback
and private addresses are taken. The engine ends the process when it cannot connect, or when a server dies later; the
first can be found out before.
"""

from __future__ import annotations

import ipaddress
import logging
import socket
import struct
import weakref
from collections.abc import Sequence
from typing import Any

from ..capi import ggml_backend as backend
from ..capi import ggml_rpc, llama
from ..capi.handle import NativeHandle
from ..errors import InvalidArgumentError, RemoteDeviceError

logger = logging.getLogger("llama_cpp")

_HELLO = 14  # the command, and the sizes of what goes there and comes back
_REQUEST = struct.Struct("<BQ24x")
_RESPONSE = struct.Struct("<QBBB25x")
_TIMEOUT = 5.0  # seconds

#: Models with parts on a server. There can be one at a time: when a second one frees its memory there, the server forgets the
#: graph that the first believes to be stored, and the engine ends the process.
_users: weakref.WeakValueDictionary[str, NativeHandle] = weakref.WeakValueDictionary()


def remote_devices(servers: Sequence[str]) -> Any:
    """The devices of RPC servers and after them the GPUs of this machine, for ``llama_model_params.devices``.

    Args:
        servers: ``host:port`` of each.

    Returns:
        An array of ``ggml_backend_dev_t`` that ends with a null pointer.

    Raises:
        InvalidArgumentError: what is no such address, or a public one.
        RemoteDeviceError: a server does not answer, or not as one of this version does, or it has parts of another model.
        MissingSymbolError: libggml-rpc.so is not among the libraries; the conda package llama.cpp has it.
    """
    addresses = [_parse(server) for server in servers]
    devices = []
    for server, address in zip(servers, addresses):
        user = _users.get(server)
        if user is not None and not user.closed:
            raise RemoteDeviceError(
                f"The RPC server {server} has parts of another model of this process.", remedy="Close that one first."
            )
        _greet(server, address)
        logger.warning("what this model computes on %s goes there unencrypted", server)
        registry = ggml_rpc.ggml_backend_rpc_add_server(server.encode())
        if not registry:
            raise RemoteDeviceError(f"The RPC server {server} has no devices.", remedy="Look at what it printed.")
        n = backend.ggml_backend_reg_dev_count(registry)
        devices += [backend.ggml_backend_reg_dev_get(registry, index) for index in range(n)]
    own = _gpus()
    return (backend.ggml_backend_dev_t_ctypes * (len(devices) + len(own) + 1))(*devices, *own)


def check_split_mode(split_mode: int) -> None:
    """Raises InvalidArgumentError when this machine's GPUs cannot share single matrices by their rows."""
    if split_mode != llama.LLAMA_SPLIT_MODE_ROW:
        return
    for device in _gpus():
        registry = backend.ggml_backend_dev_backend_reg(device)
        if not backend.ggml_backend_reg_get_proc_address(registry, b"ggml_backend_split_buffer_type"):
            name = (backend.ggml_backend_reg_name(registry) or b"").decode()
            raise InvalidArgumentError(
                f"split_mode=LLAMA_SPLIT_MODE_ROW: this llama.cpp's {name} backend does not have it.",
                remedy="LLAMA_SPLIT_MODE_TENSOR splits matrices, LLAMA_SPLIT_MODE_LAYER whole layers.",
            )


def _gpus() -> list[backend.ggml_backend_dev_t]:
    every = map(backend.ggml_backend_dev_get, range(backend.ggml_backend_dev_count()))
    return [one for one in every if one and backend.ggml_backend_dev_type(one) == backend.GGML_BACKEND_DEVICE_TYPE_GPU]


def note_user(servers: Sequence[str], model: NativeHandle) -> None:
    """Remembers that these servers have parts of ``model``, until it is closed."""
    _users.update(dict.fromkeys(servers, model))


def _parse(server: str) -> tuple[str, int]:
    host, _, port = server.partition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 1 << 16:
        raise InvalidArgumentError(f"rpc_servers: {server!r} is not host:port.", remedy="Write 127.0.0.1:50052, say.")
    try:
        address = ipaddress.ip_address(socket.gethostbyname(host))
    except OSError as error:
        raise RemoteDeviceError(f"The RPC server {server} is not known: {error}.") from error
    if not (address.is_private or address.is_loopback or address.is_link_local):
        raise InvalidArgumentError(
            f"rpc_servers: {server} is a public address, and RPC is neither encrypted nor authenticated.",
            remedy="Use a private network or a tunnel.",
        )
    return str(address), int(port)


def _greet(server: str, address: tuple[str, int]) -> None:
    """Raises RemoteDeviceError unless a server of this version answers: the engine would end the process."""
    try:
        with socket.create_connection(address, timeout=_TIMEOUT) as connection:
            connection.sendall(_REQUEST.pack(_HELLO, 24))
            answer = b""
            while len(answer) < _RESPONSE.size and (more := connection.recv(_RESPONSE.size - len(answer))):
                answer += more
    except TimeoutError as error:
        raise RemoteDeviceError(
            f"{server} does not answer.", remedy="An RPC server serves one client at a time; is another one connected?"
        ) from error
    except OSError as error:
        raise RemoteDeviceError(
            f"The RPC server {server} cannot be reached: {error}.", remedy="Start rpc-server there, with --host and --port."
        ) from error
    ours = ggml_rpc.RPC_PROTO_MAJOR_VERSION, ggml_rpc.RPC_PROTO_MINOR_VERSION
    size, *version = _RESPONSE.unpack(answer) if len(answer) == _RESPONSE.size else (0, 0, 0, 0)
    if size != _RESPONSE.size - 8 or version[0] != ours[0] or version[1] > ours[1]:
        raise RemoteDeviceError(
            f"{server} is no RPC server of protocol {ours[0]}.{ours[1]}.", remedy="Start rpc-server of the same llama.cpp."
        )
