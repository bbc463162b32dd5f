"""How many threads a CPU gains from."""

from __future__ import annotations

import os
from pathlib import Path

_TOPOLOGY = Path("/sys/devices/system/cpu")


def usable_cpus() -> set[int]:
    """Logical processors this process may run on (an affinity mask or a container can leave fewer)."""
    return os.sched_getaffinity(0)


def physical_cores() -> int:
    """Cores among the usable processors, counting hyper-threads of one core once."""
    cores = set()
    for cpu in usable_cpus():
        siblings = _TOPOLOGY / f"cpu{cpu}" / "topology" / "thread_siblings_list"
        try:
            cores.add(siblings.read_text().strip())
        except OSError:
            cores.add(str(cpu))
    return len(cores)


def default_threads() -> int:
    """Threads for generation: one a core, since it is bound by memory bandwidth."""
    return physical_cores()


def default_batch_threads() -> int:
    """Threads for prompts, which are bound by arithmetic: every logical processor."""
    return len(usable_cpus())
