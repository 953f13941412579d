"""Random search trees with tokens, as the engine would leave them; and a tiny model to train on them."""

from __future__ import annotations

import random
from typing import Any

import torch
from not_none import not_none
from transformers import Qwen3Config, Qwen3ForCausalLM

from treewright.envs.types import Action, Observation, Task
from treewright.search.tree import Tree, TreeHeader
from treewright.search.types import Completion, Draft, Expansion, NodeStatus, Outcome, Spent

VOCAB = 24


def random_tree(seed: int, window: bool = False, expansions: int = 8, task: str = "t") -> Tree:
    """Every open node is closed; draws may coincide (merged with multiplicity); contexts append or are windowed."""
    rng = random.Random(f"tree {seed}")

    def tokens(n: int) -> tuple[int, ...]:
        return tuple(rng.randrange(VOCAB) for _ in range(n))

    root = Outcome(Observation("start", "f0"), NodeStatus.OPEN, delta=tokens(5))
    tree = Tree.start(
        TreeHeader(
            run="run", task=Task("s", task, "g"), attempt=seed, seed=seed, policy_version="v1", settings={}, root=root
        )
    )

    def outcome(base: int, last: bool) -> Outcome:
        if last:
            return Outcome(
                Observation("end", f"f{rng.random()}"), NodeStatus.TERMINAL, reward=float(rng.random() < 0.5)
            )
        keep = rng.randrange(2, base) if window else base
        return Outcome(Observation("seen", f"f{rng.random()}"), NodeStatus.OPEN, reward=0.0, keep=keep, delta=tokens(3))

    def draft(after: int, slot: int, mult: int, k: int, base: int, last: bool) -> Draft:
        ids = tokens(rng.randrange(1, 4))
        logprobs = tuple(-rng.random() - 0.1 for _ in ids)
        done = Completion("".join(chr(97 + i) for i in ids), ids, logprobs, finish_reason="stop", policy_version="v1")
        act = Action.of("a", n=rng.randrange(99))
        return Draft(
            after=after,
            slot=slot,
            mult=mult,
            share=mult / k,
            seed=rng.getrandbits(60),
            completion=done,
            action=act,
            outcome=outcome(base + len(ids), last),
        )

    for _ in range(expansions):
        open_nodes = [i for i in range(len(tree)) if tree.status[i] is NodeStatus.OPEN]
        if not open_nodes:
            break
        node = rng.choice(open_nodes)
        base = len(tree.context_ids(node))
        mults = rng.choice([[1, 1], [2, 1], [1, 1, 1], [1]])
        k = sum(mults)
        drafts = tuple(draft(0, s, m, k, base, rng.random() < 0.3) for s, m in enumerate(mults))
        tree.apply(
            Expansion(
                seq=len(tree.pops),
                node=node,
                closing=False,
                drawn=k,
                outcome=None,
                drafts=drafts,
                spent=Spent(expansions=1),
            )
        )
    for node in [i for i in range(len(tree)) if tree.status[i] is NodeStatus.OPEN]:
        chain, base, n = [], len(tree.context_ids(node)), rng.randrange(1, 3)
        for step in range(n):
            d = draft(step, 0, 1, 1, base, step == n - 1)
            base = not_none(d.outcome).keep + len(not_none(d.outcome).delta)
            chain.append(d)
        tree.apply(
            Expansion(
                seq=len(tree.pops), node=node, closing=True, drawn=1, outcome=None, drafts=tuple(chain), spent=Spent()
            )
        )
    tree.reveal()
    return tree


def tiny_model(seed: int = 0, dtype: torch.dtype = torch.float64) -> Any:
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=VOCAB, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, max_position_embeddings=256, tie_word_embeddings=True,
    )  # fmt: skip
    return Qwen3ForCausalLM(config).to(dtype).eval()
