"""Calling py-rattler, which is asynchronous, from code that is not."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import errno
import os
import re
import resource
import time
from collections.abc import Coroutine, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from .errors import ChannelUnreachableError
from .interruption import Pending, deferred

if TYPE_CHECKING:
    from rattler import Client

T = TypeVar("T")
_A_MOMENT = 0.05
SOLVING = 1800
"""Seconds for reading the indexes of channels and solving: conda-forge's has some 50 MB."""
_INDEXER_STOPS = 0.2
"""Seconds. What it writes later than that, the next writer clears away."""

# The thread that hands over a result drops Python objects after that, and an interpreter that ends meanwhile crashes: 8
# of 60 programs did that ended right after a solve, none of 60 with this rest, in which it gets the lock it waits for.
atexit.register(time.sleep, 0.02)


def wait(coroutine: Coroutine[Any, Any, T], seconds: float | None = None) -> T:
    """Run a coroutine of py-rattler; return or raise what it does. A signal that ends the run cancels it first.

    Args:
        seconds: how long it may take: py-rattler itself waits for a server as long as that sends a byte now and then.

    Raises:
        ChannelUnreachableError: its time is over.
    """
    with deferred() as pending:
        return asyncio.run(_cancelled_by(pending, coroutine, seconds))


async def _cancelled_by(pending: Pending, coroutine: Coroutine[Any, Any, T], seconds: float | None) -> T:
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task
    pending.tell(lambda: loop.call_soon_threadsafe(task.cancel))
    try:
        return await within(seconds, coroutine)
    except asyncio.CancelledError:
        # py-rattler's threads end a little later, and want this loop
        await asyncio.sleep(_A_MOMENT)
        raise


async def within(seconds: float | None, coroutine: Coroutine[Any, Any, T], what: str = "the channels") -> T:
    """What a coroutine returns or raises.

    Raises:
        ChannelUnreachableError: it takes longer than ``seconds``; ``what`` did not answer.
    """
    # not wait_for(): a TimeoutError of what is waited for would look like its own
    task = asyncio.ensure_future(coroutine)
    try:
        done, _ = await asyncio.wait([task], timeout=seconds)
        if done:
            return task.result()
    finally:
        task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    raise ChannelUnreachableError(
        f"{what} did not answer completely within {seconds:.0f} s", "check the address and the network, and try again"
    )


@contextlib.contextmanager
def limited_files(size: int) -> Iterator[None]:
    """Keep files that this process writes meanwhile below ``size`` bytes.

    py-rattler unpacks an index onto the disk, to whatever it unpacks to. Writing more ends with an error of the operating system,
    "File too large", as Python ignores the signal.
    """
    before, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size if before == resource.RLIM_INFINITY else min(size, before), most))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (before, most))


def index_channel(channel: Path, **options: Any) -> None:
    """Write the index of a channel's folder, with py-rattler's indexer. Nothing writes there any more when it failed.

    Raises:
        OSError: the folder cannot be read or written.
    """
    from rattler.index import index_fs

    try:
        try:
            os.fspath(channel).encode()
        except UnicodeError:
            # it would say nothing and write no index
            raise OSError(errno.EINVAL, "the indexer takes no path that is not UTF-8", ascii(str(channel))) from None
        wait(index_fs(channel, **options))
    except BaseException as error:
        # its threads are at other files still, would make the folder anew if it were gone, and cannot be waited for
        time.sleep(_INDEXER_STOPS)
        # the indexer is Rust, and gives the operating system's error as text
        if found := re.search(r"os error (\d+)", str(error)):
            raise OSError(int(found[1]), os.strerror(int(found[1])), str(channel)) from error
        raise


async def all_of(coroutines: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """Run coroutines at once; return what they do, in their order. Where one fails, the others have ended before it is raised.

    ``asyncio.gather`` lets them run on, into folders that are gone by then, and tells about it with a traceback.
    """
    tasks = [asyncio.ensure_future(one) for one in coroutines]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def client() -> Client:
    """py-rattler's HTTP client, with the credentials that the user has stored.

    Raises:
        ChannelUnreachableError: they cannot be read.
    """
    from rattler import Client

    try:
        return Client.default_client()
    # an error that py-rattler does not export, where HOME is no folder, for one
    except Exception as error:
        raise ChannelUnreachableError(
            f"the stored credentials for channels cannot be read: {error}", "set HOME to a folder, or look at ~/.rattler in it"
        ) from None
