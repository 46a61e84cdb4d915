"""Freed memory that is kept: counted in fresh pages."""

import platform
import subprocess
import sys

import pytest

COUNT = """
import resource
{first}
def use(): b"x" * 2**26  # 64 MiB, written and freed
use()
use()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
use()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
KEEP = "from papsmear.memory import keep_freed_memory; keep_freed_memory()"


def fresh_pages(first: str) -> int:
    """Page faults of a block that a process has used and freed before; huge pages count as one."""
    code = COUNT.format(first=first)
    return int(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=60).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_a_block_that_was_freed_is_used_again_without_fresh_pages() -> None:
    assert fresh_pages(KEEP) < 10
    assert fresh_pages("") >= 32  # or the test counts nothing
