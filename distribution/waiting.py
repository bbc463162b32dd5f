"""Calling py-rattler, which is asynchronous, from code that is not."""

from __future__ import annotations

import asyncio
import atexit
import time
from collections.abc import Coroutine, Iterable
from typing import TYPE_CHECKING, Any, TypeVar

from .errors import ChannelUnreachableError
from .interruption import Pending, deferred

if TYPE_CHECKING:
    from rattler import Client

T = TypeVar("T")
_A_MOMENT = 0.05

# The thread that hands over a result drops Python objects after that, and an interpreter that ends meanwhile crashes: 8
# of 60 programs did that ended right after a solve, none of 60 with this rest, in which it gets the lock it waits for.
atexit.register(time.sleep, 0.02)


def wait(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine of py-rattler; return or raise what it does. A signal that ends the run cancels it first."""
    with deferred() as pending:
        return asyncio.run(_cancelled_by(pending, coroutine))


async def _cancelled_by(pending: Pending, coroutine: Coroutine[Any, Any, T]) -> T:
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task
    pending.tell(lambda: loop.call_soon_threadsafe(task.cancel))
    try:
        return await coroutine
    except asyncio.CancelledError:
        # py-rattler's threads end a little later, and want this loop
        await asyncio.sleep(_A_MOMENT)
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
