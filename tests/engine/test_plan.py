"""What a context is made with follows from facts about the model and arguments; no model is needed to look at that."""

from __future__ import annotations

import itertools

import pytest

from llama_cpp.engine.plan import Batches, ModelFacts, Pool, plan_context

FULL = ModelFacts(pays_per_sequence=False, can_be_cut=True)
WINDOW = ModelFacts(pays_per_sequence=True, can_be_cut=True)
RECURRENT = ModelFacts(pays_per_sequence=True, can_be_cut=False)
SHARED = {"n_ctx": 4096, "kv_unified": True, "n_batch": 512, "n_ubatch": 256}
STREAMS = {**SHARED, "kv_unified": False}


def test_a_shared_pool_keeps_earlier_requests_in_sequences_of_their_own():
    plan = plan_context(FULL, SHARED, 4)
    assert (plan.pool, plan.batches, plan.n_cells) == (Pool.SHARED, Batches.MIXED, 4096)
    assert plan.n_kept == 8 and plan.params["n_seq_max"] == 12
    assert plan_context(FULL, SHARED, 20).n_kept == 20
    assert plan_context(FULL, SHARED, 4, n_kept=0).params["n_seq_max"] == 4


def test_no_more_sequences_than_the_engine_can_have():
    for n in (1, 100, 128, 200, 255, 256):
        plan = plan_context(FULL, SHARED, n)
        assert plan.params["n_seq_max"] <= 256 and plan.n_kept >= 0


@pytest.mark.parametrize(("facts", "params"), [(FULL, STREAMS), (WINDOW, SHARED), (RECURRENT, SHARED), (WINDOW, STREAMS)])
def test_where_a_sequence_has_memory_of_its_own_none_is_kept_beside(facts, params):
    plan = plan_context(facts, params, 4, n_kept=9)
    assert (plan.pool, plan.n_kept, plan.params["n_seq_max"]) == (Pool.PER_SEQUENCE, 0, 4)
    assert plan.n_cells == (4096 if params["kv_unified"] else None)


def test_streams_are_computed_in_equal_parts_and_states_with_drafts_by_neighbours():
    assert plan_context(FULL, STREAMS, 4).batches is Batches.EQUAL
    assert plan_context(FULL, STREAMS, 4, n_draft=8).batches is Batches.EQUAL
    assert plan_context(RECURRENT, STREAMS, 4).batches is Batches.MIXED
    assert plan_context(RECURRENT, SHARED, 4, n_draft=8).batches is Batches.EQUAL_NEIGHBOURS


def test_a_state_that_cannot_be_cut_is_kept_to_go_back_to():
    plan = plan_context(RECURRENT, {**SHARED, "n_batch": 4, "n_ubatch": 4}, 2, n_draft=8)
    assert plan.params["n_rs_seq"] == 8 and plan.params["n_batch"] == plan.params["n_ubatch"] == 10
    assert "n_rs_seq" not in plan_context(FULL, SHARED, 2, n_draft=8).params


def test_whatever_is_asked_each_request_has_its_place():
    """What the engine asserts on: sequences, and a batch for one token of each."""
    for facts, params, n_parallel, n_draft, n_batch in itertools.product(
        (FULL, WINDOW, RECURRENT), (SHARED, STREAMS), (1, 3, 64, 256), (0, 1, 8, 64), (1, 16, 4096)
    ):
        plan = plan_context(facts, {**params, "n_batch": n_batch, "n_ubatch": n_batch}, n_parallel, n_draft=n_draft)
        assert plan.params["n_batch"] >= n_parallel and plan.params["n_ubatch"] >= n_parallel
        assert n_parallel <= plan.params["n_seq_max"] <= 256
        assert plan.n_draft == n_draft and params.get("n_seq_max") is None, "what was given is not changed"
        if n_draft and not facts.can_be_cut:
            assert plan.params["n_ubatch"] > n_draft + 1
