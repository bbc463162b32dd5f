"""What a context is made with, and which strategies go with it: decided once, from facts about the model and arguments alone."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


class Pool(enum.Enum):
    """Where sequences have their memory."""

    SHARED = "shared"
    """In one pool of cells: what a request leaves moves to a sequence of its own, by a second name for its cells."""
    PER_SEQUENCE = "per sequence"
    """Each its own: what a request leaves stays where it is."""


class Batches(enum.Enum):
    """Which tokens are computed together."""

    MIXED = "mixed"
    """Of sequences of any lengths."""
    EQUAL = "equal"
    """As many of each sequence, with one token of what lies between."""
    EQUAL_NEIGHBOURS = "equal neighbours"
    """As many of each sequence, of one run of neighbours at a time."""


@dataclass(frozen=True)
class ModelFacts:
    """What decides of a model.

    Attributes:
        pays_per_sequence: memory is set aside for each possible sequence, used or not.
        can_be_cut: any end of a sequence can be forgotten; else only states that were kept can be gone back to.
    """

    pays_per_sequence: bool
    can_be_cut: bool


@dataclass(frozen=True)
class ContextPlan:
    """How a context is made, and what goes with it.

    Attributes:
        params: fields of ``llama_context_params`` by name.
        n_kept: earlier requests that are kept, in sequences of their own.
        n_draft: tokens drafted at most; 0 is none.
        n_cells: cells that all requests share; None where each sequence has its own.
    """

    params: dict[str, Any]
    pool: Pool
    batches: Batches
    n_kept: int
    n_draft: int
    n_cells: int | None


def plan_context(
    facts: ModelFacts,
    params: Mapping[str, Any],
    n_parallel: int,
    *,
    n_draft: int = 0,
    n_kept: int | None = None,
    most_sequences: int = 256,
) -> ContextPlan:
    """Plans a context for so many requests at once.

    Args:
        params: fields of ``llama_context_params`` by name, without the numbers of sequences; ``kv_unified`` and ``n_ctx`` are
            among them.
        n_draft: tokens drafted at most; 0 is none.
        n_kept: earlier requests that are kept; None is n_parallel, at least 8.
        most_sequences: that the engine can have.
    """
    unified = bool(params["kv_unified"])
    if n_kept is None:
        n_kept = min(max(n_parallel, 8), most_sequences - n_parallel)
    pool = Pool.PER_SEQUENCE if not unified or facts.pays_per_sequence else Pool.SHARED
    if pool is Pool.PER_SEQUENCE:
        n_kept = 0
    # each of those that generate must find its place in a batch
    at_least = {name: max(params[name], n_parallel) for name in ("n_batch", "n_ubatch") if name in params}
    planned = {**params, **at_least, "n_seq_max": n_parallel + n_kept}
    if n_draft and not facts.can_be_cut:
        planned["n_rs_seq"] = n_draft  # states to go back to
        # what may be taken back is never split, and the engine asserts that a batch is larger
        planned.update({name: max(planned[name], n_draft + 2) for name in at_least})
    batches = Batches.MIXED
    if not unified and facts.can_be_cut:
        batches = Batches.EQUAL
    elif n_draft and not facts.can_be_cut:
        # one run at a time: the states of all others would have to be taken back, too
        batches = Batches.EQUAL_NEIGHBOURS
    return ContextPlan(planned, pool, batches, n_kept, n_draft, planned["n_ctx"] if unified else None)
