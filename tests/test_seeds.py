"""Seeds depend on the position in the run, and on nothing else."""

import subprocess
import sys

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from papsmear import seeds

positions = st.lists(st.integers(-5, 10_000) | st.sampled_from(["slide", "cell", "crop"]), max_size=4)


@given(st.integers(0, 2**31), positions)
def test_a_seed_fits_every_library(seed: int, position: list[int | str]) -> None:
    derived = seeds.derive(seed, *position)
    assert 0 <= derived < 2**63
    assert derived == seeds.derive(seed, *position)
    assert (seeds.rng(seed, *position).random(3) == np.random.default_rng(derived).random(3)).all()


@given(st.lists(st.tuples(st.integers(0, 100), positions.map(tuple)), unique=True, min_size=2, max_size=20))
def test_other_positions_get_other_seeds(places: list[tuple[int, tuple[int | str, ...]]]) -> None:
    assert len({seeds.derive(seed, *position) for seed, position in places}) == len(places)


def test_a_seed_is_the_same_in_every_process_and_version() -> None:
    code = "from papsmear.seeds import derive; print(derive(7, 'slide', 3))"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    # Cohorts and runs of earlier versions are made again by it: the value never changes.
    assert int(said.stdout) == seeds.derive(7, "slide", 3) == 3814769131496264509
