from __future__ import annotations

import random
from contextlib import closing

import pytest

from treewright.envs.types import digest
from treewright.search.store.summing import WAITING, Summing
from treewright.search.store.sums import Job, checksum, sums


def job_of(seed: int) -> Job:
    rng = random.Random(seed)
    sizes = [rng.randint(1, 4) for _ in range(20)]
    starts = [1 + sum(sizes[:i]) for i in range(20)]
    own = [
        (i, i // 2, rng.randint(1, 9), first, size) for i, (first, size) in enumerate(zip(starts, sizes, strict=True))
    ]
    n = sum(sizes)
    ids, texts = list(range(1, n + 1)), [rng.choice(["", "é", "a" * 300]) for _ in range(n)]
    return Job(own, (None, 1, 2.5), (None, 0, 0.0), [ids, texts, [rng.randbytes(800) for _ in ids], (True,), (None,)])


def test_a_checksum_is_the_digest_of_its_rows() -> None:
    import marshal

    rows = ((1, "a", None), (2, b"x", 0.5))
    assert checksum(*rows) == digest(marshal.dumps(rows, 2))


def test_sums_are_the_checksums_of_expansions_and_their_rows() -> None:
    job = job_of(0)
    size = sum(own[4] for own in job.expansions)
    full = [c if isinstance(c, list) else [*c] * size for c in job.columns]
    rows, at = list(zip(*full, strict=True)), 0
    for (seq, node, drawn, first, drafts), name in zip(job.expansions, sums(job), strict=True):
        row = (seq, node, False, drawn, first, drafts, *(job.rest if seq else job.first))
        assert name == checksum(row, *rows[at : at + drafts])
        at += drafts


def test_jobs_are_summed_up_beside_in_their_order() -> None:
    jobs = [job_of(seed) for seed in range(3 * WAITING)]
    with closing(Summing()) as summing:
        assert [f.result() for f in [summing.submit(job) for job in jobs]] == [sums(job) for job in jobs]


def test_a_job_that_cannot_be_summed_up_says_so_where_its_sums_are_asked_for() -> None:
    wrong = job_of(0)._replace(columns=[[object()] * sum(own[4] for own in job_of(0).expansions)])
    with closing(Summing()) as summing:
        first, *others = [summing.submit(wrong), *(summing.submit(job_of(seed)) for seed in range(2 * WAITING))]
        with pytest.raises(ValueError, match="unmarshallable"):
            first.result()
        assert all(len(f.result()) == 20 for f in others)
