"""Simulate the variance entropy of random kernels, for the randomness threshold of every kernel size.

    python scripts/randomness.py [--check] [weights ...]     # writes cnnfilterdb/stats/randomness.csv

CNN Filter DB gives the threshold for 3x3 kernels only, as a logistic curve through the smallest entropies of sets of
random normal kernels. The paper does not state how many sets, and of which sizes; the smallest of 1,000 sets, at sizes
of powers of two, reproduces the published curve to 0.01 (``--check``), so the same is computed here for all other
sizes.

A logistic curve is not used for them. It misses the simulated values by up to 0.05 if the number of kernels is near the
number of weights, and for 5x5 and more its upper end is above log10 k, which no entropy can reach. The values
themselves are written, at full and half octaves, and are interpolated.

The entropy depends on the eigenvalues of a Wishart matrix alone, so no kernels are drawn: the eigenvalues of n centred
kernels of k weights are those of a bidiagonal matrix of chi variables (Dumitriu and Edelman, Matrix models for beta
ensembles, 2002), times its transpose.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.linalg import eigvalsh_tridiagonal
from scipy.optimize import curve_fit

from cnnfilterdb.stats.randomness import published_threshold

TARGET = Path(__file__).parents[1] / "cnnfilterdb" / "stats" / "randomness.csv"

#: The threshold is the smallest entropy of this many sets, on average.
SETS = 1000

#: Numbers of weights: of all sizes up to 11 x 11, lines up to 1 x 31, and larger squares in use.
LINES = (13, 15, 17, 19, 21, 23, 25, 27, 29, 31)
SQUARES = (13, 14, 15, 16, 17, 19, 21, 31, 32)
WEIGHTS = sorted(
    ({h * w for h in range(1, 12) for w in range(1, 12)} - {1}) | set(LINES) | {side * side for side in SQUARES}
)


def sizes(weights: int) -> list[int]:
    """Numbers of kernels: 3, 4, 6, 8, 12, ... until the rest falls as 1 / n, at 64 times the weights."""
    octaves = [1 << i for i in range(25)]
    grid = sorted([*octaves[2:], *(3 * octave for octave in octaves)])
    return grid[: next(place for place, size in enumerate(grid) if size >= 64 * weights) + 1]


def entropies(kernels: int, weights: int, draws: int, rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """Variance entropies, base 10, of ``draws`` sets of random normal kernels."""
    small, large = sorted((kernels - 1, weights))
    diagonal = np.sqrt(rng.chisquare(large - np.arange(small), (draws, small)))
    below = np.sqrt(rng.chisquare(np.arange(small - 1, 0, -1), (draws, small - 1)))
    main, side = diagonal**2, below * diagonal[:, :-1]
    main[:, 1:] += below**2
    if small < 24:
        matrices = np.zeros((draws, small, small))
        places = np.arange(small)
        matrices[:, places, places] = main
        matrices[:, places[1:], places[:-1]] = side
        values = np.linalg.eigvalsh(matrices)
    else:
        values = np.stack([eigvalsh_tridiagonal(d, e) for d, e in zip(main, side, strict=True)])
    shares = np.maximum(values, 1e-300) / values.sum(axis=1, keepdims=True)
    found: npt.NDArray[np.float64] = -(shares * np.log10(shares)).sum(axis=1)
    return found


def smallest(found: npt.NDArray[np.float64], sets: int) -> float:
    """Unbiased estimate of the smallest of ``sets`` values, on average, from more of them (a U-statistic)."""
    count, factor, total = len(found), sets / len(found), 0.0
    for place, value in enumerate(np.sort(found)):
        total += factor * float(value)
        factor *= max(0, count - place - sets) / (count - place - 1) if place < count - 1 else 0
    return total


def threshold(kernels: int, weights: int, draws: int | None = None) -> float:
    """Smallest variance entropy of 1,000 sets of random kernels, on average."""
    small = min(kernels - 1, weights)
    draws = draws or (20 if small < 24 else 4 if small <= 121 else 1) * SETS
    return smallest(entropies(kernels, weights, draws, np.random.default_rng((weights, kernels))), SETS)


def check() -> None:
    """Fit the authors' curve to simulated values of 3x3 kernels, and compare it with the published one."""
    grid = 2 ** np.arange(1, 17)
    values = [0.0 if n == 2 else threshold(int(n), 9) for n in grid]

    def logistic(n: npt.NDArray[np.int64], top: float, centre: float, slope: float, offset: float) -> Any:
        return top / (1 + np.exp(-slope * (np.log2(n) - centre))) + offset

    found, _ = curve_fit(logistic, grid, values, p0=(1.3, 2.3, 0.9, -0.3))
    published = np.array([published_threshold(int(n)) for n in grid])
    print("L, x0, k, b:", found.round(4), "published: 1.2618 2.3044 0.8877 -0.3105")
    print(f"largest difference of the curves: {np.abs(logistic(grid, *found) - published).max():.4f}")
    print(f"largest difference of the published curve to the simulation: {np.abs(values - published).max():.4f}")


def main() -> None:
    """Simulate all sizes, or those that are named, and write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", type=int, nargs="*", help="numbers of weights (default: all)")
    parser.add_argument("--check", action="store_true", help="only compare with the published curve")
    arguments = parser.parse_args()
    if arguments.check:
        return check()
    wanted = arguments.weights or WEIGHTS
    rows: dict[tuple[int, int], str] = {}
    if TARGET.exists():
        with TARGET.open(newline="") as file:
            rows = {(int(row["weights"]), int(row["kernels"])): row["entropy"] for row in csv.DictReader(file)}
    for weights in wanted:
        rows |= {(weights, kernels): f"{threshold(kernels, weights):.6f}" for kernels in sizes(weights)}
        with TARGET.open("w", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["weights", "kernels", "entropy"])
            writer.writerows([*key, rows[key]] for key in sorted(rows))
        print(f"{weights} weights: {len(sizes(weights))} values", flush=True)
    return None


if __name__ == "__main__":
    main()
