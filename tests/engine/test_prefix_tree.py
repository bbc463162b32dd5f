"""The radix tree against a search through all sequences."""

from __future__ import annotations

import random

import pytest

from llama_cpp.engine.prefix_cache.prefix_tree import PrefixTree


def common(a, b):
    n = 0
    while n < min(len(a), len(b)) and a[n] == b[n]:
        n += 1
    return n


@pytest.mark.parametrize("seed", range(20))
def test_it_finds_what_a_search_finds(seed):
    numbers = random.Random(seed)
    tree, held = PrefixTree(), {}
    for _ in range(400):
        owner, key = numbers.randrange(12), numbers.choice([None, "adapter"])
        tokens = [numbers.randrange(3) for _ in range(numbers.randrange(12))]
        action = numbers.random()
        if action < 0.6:
            tree.insert(owner, tokens, key)
            held[owner] = (tokens, key)
        elif action < 0.75:
            tree.remove(owner)
            held.pop(owner, None)
        wanted = {o: common(t, tokens) for o, (t, k) in held.items() if k == key and common(t, tokens)}
        found = list(tree.matches(tokens, key))
        assert dict(found) == wanted
        assert [n for _, n in found] == sorted((n for _, n in found), reverse=True)
        assert len(found) == len(dict(found))


def test_nothing_is_left_of_what_was_removed():
    tree = PrefixTree()
    for owner in range(50):
        tree.insert(owner, [1, 2, 3, owner, owner])
    for owner in range(50):
        tree.remove(owner)
    assert tree._roots == {} and tree._ends == {}
    assert list(tree.matches([1, 2, 3])) == []
