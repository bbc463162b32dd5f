"""Which sequences begin like a request: a radix tree over tokens.

Each edge is labelled with a run of tokens, so that a prompt of thousands of tokens that many sequences share is one
edge. Source of the idea: Zheng et al. 2023, "SGLang: Efficient Execution of Structured Language Model Programs".
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence

import numpy as np


class _Node:
    __slots__ = ("children", "label", "owners", "parent")

    def __init__(self, label: np.ndarray, parent: _Node | None) -> None:
        self.label = label
        self.children: dict[int, _Node] = {}
        self.owners: set[int] = set()  # those whose tokens pass through here
        self.parent = parent


class PrefixTree:
    """Token sequences, each with an owner (a number) and under a key; sequences with different keys never match.

    Example:
        >>> tree = PrefixTree()
        >>> tree.insert(7, [1, 2, 3, 4])
        >>> dict(tree.matches([1, 2, 9]))
        {7: 2}
    """

    def __init__(self) -> None:
        self._roots: dict[Hashable, _Node] = {}
        self._ends: dict[int, tuple[_Node, Hashable]] = {}

    def insert(self, owner: int, tokens: Sequence[int] | np.ndarray, key: Hashable = None) -> None:
        """Notes what an owner holds, in place of what it held before."""
        self.remove(owner)
        node = self._roots.setdefault(key, _Node(np.empty(0, np.int32), None))
        rest = np.asarray(tokens, np.int32)
        node.owners.add(owner)
        while len(rest):
            child = node.children.get(int(rest[0]))
            if child is None:
                child = node.children[int(rest[0])] = _Node(rest, node)
            n = _common(child.label, rest)
            if n < len(child.label):
                child = self._split(child, n)
            child.owners.add(owner)
            node, rest = child, rest[n:]
        self._ends[owner] = node, key

    def remove(self, owner: int) -> None:
        """Forgets what an owner holds, if anything."""
        node, key = self._ends.pop(owner, (None, None))
        while node is not None:
            node.owners.discard(owner)
            parent = node.parent
            if not node.owners:
                if parent is None:
                    del self._roots[key]
                else:
                    del parent.children[int(node.label[0])]
            node = parent

    def matches(self, tokens: Sequence[int], key: Hashable = None) -> Iterator[tuple[int, int]]:
        """The owners that share a beginning with ``tokens``, and how many tokens of it: the longest first."""
        node = self._roots.get(key)
        rest = np.asarray(tokens, np.int32)
        path: list[tuple[int, _Node]] = []
        depth = 0
        while node is not None and len(rest):
            node = node.children.get(int(rest[0]))
            if node is None:
                break
            n = _common(node.label, rest)
            depth += n
            path.append((depth, node))
            if n < len(node.label):
                break
            rest = rest[n:]
        seen: set[int] = set()
        for depth, node in reversed(path):
            for owner in sorted(node.owners - seen):
                yield owner, depth
            seen |= node.owners

    def _split(self, node: _Node, n: int) -> _Node:
        """Cuts a node's label after n tokens; returns the upper part."""
        parent = node.parent
        assert parent is not None
        upper = _Node(node.label[:n], parent)
        upper.owners = set(node.owners)
        upper.children[int(node.label[n])] = node
        parent.children[int(node.label[0])] = upper
        node.label, node.parent = node.label[n:], upper
        return upper


def _common(a: np.ndarray, b: np.ndarray) -> int:
    """How many elements two arrays share from the start."""
    n = min(len(a), len(b))
    different = a[:n] != b[:n]
    at = int(different.argmax()) if n else 0
    return at if n and different[at] else n
