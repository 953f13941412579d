import os
import random
import signal
from contextlib import closing

import pytest

from treewright.envs.types import digest
from treewright.search.store.errors import StoreError
from treewright.search.store.summing import Summing
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


def test_a_checksum_is_the_digest_of_its_rows():
    import marshal

    rows = ((1, "a", None), (2, b"x", 0.5))
    assert checksum(*rows) == digest(marshal.dumps(rows, 2))


def test_sums_are_the_checksums_of_expansions_and_their_rows():
    job = job_of(0)
    size = sum(own[4] for own in job.expansions)
    full = [c if isinstance(c, list) else [*c] * size for c in job.columns]
    rows, at = list(zip(*full, strict=True)), 0
    for (seq, node, drawn, first, drafts), name in zip(job.expansions, sums(job), strict=True):
        row = (seq, node, False, drawn, first, drafts, *(job.rest if seq else job.first))
        assert name == checksum(row, *rows[at : at + drafts])
        at += drafts


def test_a_process_sums_up_as_a_thread_does():
    jobs = [job_of(seed) for seed in range(30)]
    with closing(Summing()) as summing:
        before = [summing.submit(job) for job in jobs]
        summing._process = None
        summing.hurry()
        if summing._process is None:
            pytest.skip("one processor")
        after = [summing.submit(job) for job in jobs]
        assert [f.result() for f in after] == [f.result() for f in before] == [sums(job) for job in jobs]


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="one processor")
def test_a_process_that_is_killed_is_an_error_that_says_so():
    with closing(Summing()) as summing:
        summing.hurry()
        assert summing._process is not None
        os.kill(summing._process._child.pid, signal.SIGKILL)
        with pytest.raises(StoreError, match="ended with -9; load the trees again"):
            for _ in range(1000):
                summing.submit(job_of(1)).result(30)
