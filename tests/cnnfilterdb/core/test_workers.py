"""The threads of BLAS are limited while any block asks for it, and no longer."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

from hypothesis import given
from hypothesis import strategies as st
from threadpoolctl import threadpool_info, threadpool_limits

from cnnfilterdb.core.workers import one_blas_thread


def blas_threads():
    return {info["filepath"]: info["num_threads"] for info in threadpool_info() if info["user_api"] == "blas"}


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), max_size=12))
def test_blocks_that_overlap(steps):
    """Each step opens a block, or closes it if it is open, in one of several threads."""
    with threadpool_limits(2, user_api="blas"):
        pass  # that it ends gives up the control of the limit
    before = blas_threads()
    with ExitStack() as stack:
        threads = [stack.enter_context(ThreadPoolExecutor(1)) for _ in range(3)]
        opened = {}
        for block, number in steps:
            if block in opened:
                threads[number].submit(opened.pop(block).close).result()
            else:
                opened[block] = ExitStack()
                threads[number].submit(opened[block].enter_context, one_blas_thread()).result()
            found = threads[(number + 1) % 3].submit(blas_threads).result()
            assert set(found.values()) == {1} if opened else found == before
        for block in opened.values():
            block.close()
    assert blas_threads() == before
