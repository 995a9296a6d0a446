"""Error rates of tests and intervals of shifts, by simulation.

Groups of models are drawn from two populations whose shift is known, because a population is a finite set of models
with a probability each: all models of a database, or 400 made ones. The probabilities differ along a coordinate of the
models, the one along which they vary most or the third. `covers` is the share of 95 % intervals that contain the shift
of the populations; the interval lies above it in `above`, below it in `below`. `bootstrap` is what the percentile
bootstrap of `kl_shift_intervals` covers. `differ` is the share of permutation tests with p <= 0.05: the type I error
where the shift is 0, for which eight times as many groups are drawn, and power elsewhere. `equivalent` is the share of
tests of equivalence with p <= 0.05 and the shift itself as tolerance (type I error); `below 0.05` and `below 0.15` are
the shares of intervals that end there. Every row draws its own groups. What is within two standard errors, which the
last line gives, may be chance.

With ``--groups``, the populations are those that users compare: the models of two domains, tasks or families of the
database, for every pair of such groups with at least eight models, and the models of each group alone where the shift
is 0. A row has the means over the pairs, and the pairs that are covered least and most.

    python -m benchmarks.errors [--db DIR] [--groups] [--repetitions 1000] [--seed 0]
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

import numpy as np
import numpy.typing as npt

import cnnfilterdb
from cnnfilterdb import stats

SIZES = ((8, 8), (20, 20), (8, 30))
STRENGTHS = ((0, 0.0), (0, 0.2), (0, 0.4), (0, 0.8), (2, 0.8), (2, 4.0))
SAMPLES = 299
#: Type I errors of the permutation test are counted in this many times as many pairs of groups: it is fast.
MORE = 8
COLUMNS = (
    "observed", "unbiased", "covers", "above", "below", "bootstrap", "differ", "equivalent", "below 0.05", "below 0.15",
)  # fmt: skip
#: With --groups: sizes of the samples, what they are grouped by, and the fewest models of a group.
GROUP_SIZES = ((8, 8), (20, 20), (8, 30), (50, 50))
GROUPINGS = ("domain", "task", "family")
FEWEST = 8
GROUP_COLUMNS = ("covers", "least", "most", "above", "below", "differ", "equivalent")
Array = npt.NDArray[np.float64]


def made(seed: int = 0, models: int = 400, components: int = 9, bins: int = 70) -> tuple[Array, Array]:
    """Histograms of models whose coefficients differ in location, spread and tails, and the weights of components."""
    rng = np.random.default_rng(seed)
    place = np.linspace(-3, 3, bins)
    shared = rng.normal(size=(models, 3)) * [1.0, 0.6, 0.4]
    loadings = rng.normal(size=(3, components, 3)) * np.array([0.15, 0.2, 0.1])
    location, spread, tail = np.einsum("mf,fck->kmc", shared, loadings)[..., None]
    location = location + 0.1 * rng.normal(size=location.shape)
    z = (place - location) / np.exp(spread + 0.1 * rng.normal(size=spread.shape))
    counts = np.exp(-0.5 * np.abs(z) ** (1.8 * np.exp(tail)))
    probabilities: Array = counts / counts.sum(axis=-1, keepdims=True)
    weights: Array = 0.6 ** np.arange(components, dtype=np.float64) * 0.4
    return probabilities, weights


def stored(path: Path) -> tuple[Array, Array, list[Array]]:
    """The histograms of the models of a database, the weights of components, and the labels of each grouping."""
    with cnnfilterdb.reference() if str(path) == "reference" else cnnfilterdb.open(path) as db:
        groups = db.groups("model_id", balance="models")
        labels = db.models().set_index("model_id").loc[list(groups.labels)]
    groupings = [labels[name].to_numpy() for name in GROUPINGS]
    return groups.counts / groups.counts.sum(axis=-1, keepdims=True), groups.weights, groupings


def main() -> None:
    """Simulate, and print a row for each size and strength."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--db", type=Path, help="draw from the models of this database, such as reference")
    parser.add_argument("--repetitions", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0, help="of the draws, and of the made models")
    parser.add_argument("--groups", action="store_true", help="populations are the groups of the database")
    arguments = parser.parse_args()
    if arguments.groups and not arguments.db:
        parser.error("--groups needs --db, such as --db reference")
    counts, weights, groupings = stored(arguments.db) if arguments.db else (*made(arguments.seed), [])
    if arguments.groups:
        real(counts, weights, groupings, arguments.repetitions, arguments.seed)
    else:
        directions(counts, weights, arguments.repetitions, arguments.seed)


def directions(counts: Array, weights: Array, repetitions: int, seed: int) -> None:
    """A row for each size, and for each direction and distance of the populations."""
    coordinates = stats.embedding(stats.kl_shift(counts, weights, -3, 3), 3).coordinates
    coordinates = np.clip(coordinates / coordinates.std(axis=0), -2, 2)
    header("models", "shift", *COLUMNS)
    rows = [(sizes, axis, strength) for sizes in SIZES for axis, strength in STRENGTHS]
    for number, (sizes, axis, strength) in enumerate(rows):
        chances = [np.exp(sign * strength * coordinates[:, axis]) for sign in (1, -1)]
        shares = [chance / chance.sum() for chance in chances]
        found = rates(counts, weights, sizes, shares, repetitions, np.random.default_rng([seed, number]))
        cells = [f"{value:.4f}" for value in found[:3]]
        cells += ["" if np.isnan(value) else f"{100 * value:.1f} %" for value in found[3:]]
        print(f"| {sizes[0]}, {sizes[1]} | " + " | ".join(cells) + " |", flush=True)
    errors = [100 * np.sqrt(0.05 * 0.95 / number) for number in (repetitions, MORE * repetitions)]
    print(f"\nStandard error of 5 % and 95 %: {errors[0]:.1f} %; of `differ` where the shift is 0: {errors[1]:.1f} %.")


def real(counts: Array, weights: Array, groupings: list[Array], repetitions: int, seed: int) -> None:
    """A row for each size: pairs of groups that differ, and each group beside itself."""
    header("models", "populations", "pairs", "shifts", *GROUP_COLUMNS)
    members = [list(groups(labels)) for labels in groupings]
    kinds = {
        "two groups": [pair for grouping in members for pair in combinations(grouping, 2)],
        "one group": [(group, group) for grouping in members for group in grouping],
    }
    for sizes in GROUP_SIZES:
        for kind, pairs in kinds.items():
            found = []
            for number, pair in enumerate(pairs):
                rng = np.random.default_rng([seed, *sizes, number])
                found.append(rates(counts, weights, sizes, [group / group.sum() for group in pair], repetitions, rng))
            shifts, _, _, covers, above, below, _, differ, equivalent, *_ = np.array(found).T
            shares = [covers.mean(), covers.min(), covers.max(), above.mean(), below.mean(), differ.mean()]
            cells = [f"{sizes[0]}, {sizes[1]}", kind, str(len(pairs)), ""]
            cells += [*(f"{100 * share:.1f} %" for share in shares), ""]
            if kind == "two groups":
                cells[3] = f"{np.quantile(shifts, 0.1):.3f} to {np.quantile(shifts, 0.9):.3f}"
                cells[-1] = f"{100 * equivalent.mean():.1f} %"
            print("| " + " | ".join(cells) + " |", flush=True)


def groups(labels: Array) -> Iterator[Array]:
    """For each label of enough models, which models have it: 1 or 0 for each."""
    known = [label for label in labels if isinstance(label, str)]
    for label in sorted(set(known)):
        if known.count(label) >= FEWEST:
            yield (labels == label).astype(np.float64)


def header(*names: str) -> None:
    """The first lines of a table."""
    print("| " + " | ".join(names) + " |\n|---|" + "--:|" * (len(names) - 1), flush=True)


def rates(
    counts: Array, weights: Array, sizes: tuple[int, int], chances: list[Array], repetitions: int,
    rng: np.random.Generator,
) -> Array:  # fmt: skip
    """The shift of two populations, and the means of COLUMNS over pairs of groups drawn from them."""
    means = [np.tensordot(chance, counts, 1)[None] for chance in chances]
    true = float(stats.paired_shift(means[0], means[1], weights, -3, 3)[0])
    labels = np.repeat([0, 1], sizes)

    def drawn() -> list[Array]:
        return [counts[rng.choice(len(counts), size, p=chance)] for size, chance in zip(sizes, chances, strict=True)]

    def differ(parts: list[Array], seed: int) -> bool:
        both = np.concatenate(parts)
        return bool(stats.shift_test(both, labels, weights, -3, 3, permutations=SAMPLES, seed=seed).p[0] <= 0.05)

    found = []
    for seed in range(repetitions):
        parts = drawn()
        one = stats.population_shift(
            parts[0], parts[1], weights, -3, 3, tolerance=true or None, samples=SAMPLES, seed=seed
        )
        plain = stats.bootstrap_shift(np.concatenate(parts), labels, weights, -3, 3, samples=SAMPLES, seed=seed)
        above = (one.low or 0) > true + 1e-12
        end = np.inf if one.high is None else one.high
        found.append(
            [
                one.shift,
                one.unbiased or 0.0,
                not above and end >= true,
                above,
                end < true,
                plain.low[0, 1] <= true <= plain.high[0, 1],
                differ(parts, seed),
                np.nan if one.p_equivalent is None else one.p_equivalent <= 0.05,
                end < 0.05,
                end < 0.15,
            ]
        )
    means_of = np.mean(np.array(found, float), axis=0)
    if true == 0:
        more = [differ(drawn(), seed) for seed in range(repetitions, MORE * repetitions)]
        means_of[6] = (means_of[6] + np.sum(more) / repetitions) / MORE
    return np.array([true, *means_of])


if __name__ == "__main__":
    main()
