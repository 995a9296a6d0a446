"""The bases of several parts: one in common for each kernel size, in which the models of every part are counted.

For each kernel size, in this order:

1. If a part has the statistics of its models only, they can be counted in no new basis. Its own basis is used, and the
   other parts are projected on it.
2. If all parts use the same basis, because one was pulled or merged from the other, it is used as it is.
3. Otherwise a basis is fitted on all models. Moments add up, so it is the one that a merged database would get.

Histograms that a part has in the chosen basis are used where they are. The others are counted one part at a time, from
the filters where they are, a row group in memory at a time; only the rows of the histograms are kept, in
:class:`~cnnfilterdb.parts.derived.DerivedFolder`. The choice is made once for an object: models that are added while it
is open are counted in the basis that was chosen, as in a database folder.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cnnfilterdb.analysis.bases import Bases, FittedBasis
from cnnfilterdb.analysis.fitting import basis_key, fit, model_histograms
from cnnfilterdb.core import paths
from cnnfilterdb.core.recipes import RECIPES
from cnnfilterdb.core.reports import Progress
from cnnfilterdb.core.schema import HISTOGRAMS, indexable, kernel_order, papers_layers, storable
from cnnfilterdb.parts.parts import Counted, OpenPart, Parts
from cnnfilterdb.scan.steady import steady
from cnnfilterdb.store.index import Index

__all__ = ["CommonBases"]

#: Columns that say which layers there are, and which a basis is fitted on.
_IDENTITY = ("model_id", "layer", "kernel", "kind", "dead", "stored", "filters", "tensor_sha256")
_MOMENTS = (*_IDENTITY, "scaled_norm_max", "scaled_mean", "scaled_scatter")

#: Layers whose histograms are in one file, unless a model has more.
_CHUNK = 1024


@dataclass(frozen=True)
class _Counted:
    """A file of histograms: the models that it counts, each with a hash of the weights that were counted."""

    path: Path
    models: Mapping[str, str]


class CommonBases(Bases):
    """The bases in common of several parts.

    Args:
        parts: The parts.
    """

    def __init__(self, parts: Parts) -> None:
        self.location = parts.location
        self._parts = parts
        self._reset()

    def _reset(self) -> None:
        self._lock = threading.RLock()
        self._state: object = None  # of the parts, when everything was counted
        self._chosen: dict[str, FittedBasis] = {}
        self._files: dict[tuple[str, int], list[_Counted]] = {}  # by basis and part
        self._fingerprinted: dict[int, dict[str, Path]] = {}  # by part and model

    def __getstate__(self) -> dict[str, Any]:
        return {"location": self.location, "_parts": self._parts}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._reset()

    def bases(self) -> list[FittedBasis]:
        """The bases in common, one for each kernel size that can have one; what is missing is computed first."""
        with self._lock:
            self.prepare()
            return [self._chosen[kernel] for kernel in sorted(self._chosen, key=kernel_order)]

    def without_fingerprints(self) -> list[str]:
        """Models whose layers have no fingerprints, and for which none were computed."""
        return [model_id for number in range(len(self._parts.parts)) for model_id in self._without(number)]

    def _without(self, number: int) -> list[str]:
        owners = self._parts.owners()
        known = self._fingerprinted.get(number, {})
        missing = self._parts.parts[number].bases.without_fingerprints()
        return [one for one in missing if one not in known and owners.get(paths.slug(one)) == number]

    @property
    def renewal(self) -> str:
        """Why a basis is not of all models, and what to do where that can be changed."""
        without = [part.name for part in self._parts.parts if not part.has_filters]
        if without:
            return f"it is that of the part {without[0]}, which has no filters"
        return "the parts share it, or models were added since they were opened"

    def remedy(self, kernel: str, stored: bool) -> str:
        """Why there is no basis for a kernel size, and what to do."""
        without = [part.name for part in self._parts.parts if not part.has_filters]
        if not without:
            return super().remedy(kernel, stored)
        return f"the part {without[0]} has neither a basis nor filters of that size; leave it out"

    def prepare(self, progress: Progress | None = None, *, fingerprints: bool = False) -> None:
        """Choose or fit the bases, and count the histograms that are missing; compute fingerprints that are."""
        with self._lock:
            before = self._parts.snapshot()
            if before != self._state or not all(file.path.exists() for one in self._files.values() for file in one):
                self._state = None
                steady(self._parts.snapshot, lambda: self._count(progress))
                self._state = before
            if fingerprints:
                steady(self._parts.snapshot, lambda: self._fingerprint(progress))

    def _fingerprint(self, progress: Progress | None) -> None:
        """Compute the fingerprints of the models of folders that have none, each in a file."""
        self._fingerprinted = {}
        for number, part in enumerate(self._parts.parts):
            if not isinstance(part.bases, Index) or not (missing := self._without(number)):
                continue
            layers = part.storage.layers(missing, columns=_IDENTITY)
            digests: dict[str, list[str]] = {}
            for row in layers.filter(layers["stored"]).select(["model_id", "layer", "tensor_sha256"]).to_pylist():
                digests.setdefault(row["model_id"], []).append(f"{row['layer']} {row['tensor_sha256']}")
            names = {model_id: _digest([model_id, *lines]) for model_id, lines in digests.items()}
            known = {model_id: self._parts.derived.fingerprints(name) for model_id, name in names.items()}
            absent = [model_id for model_id, path in known.items() if path is None]
            for done, (model_id, table) in enumerate(part.bases.fingerprints.computed(absent), 1):
                known[model_id] = self._parts.derived.put_fingerprints(names[model_id], table)
                if progress:
                    progress(f"fingerprints in {part.name}", done, len(absent))
            self._fingerprinted[number] = {model_id: path for model_id, path in known.items() if path is not None}
        self._parts.counted.fingerprints = {
            number: list(map(str, files.values())) for number, files in self._fingerprinted.items()
        }

    def _count(self, progress: Progress | None) -> None:
        layers = self._parts.layers(columns=_IDENTITY)
        layers = layers.filter(layers["stored"])
        there = _by_kernel(layers)
        owners = self._parts.owners()
        own = {number: _own(part) for number, part in enumerate(self._parts.parts)}
        absent = {number: _absent(part) for number, part in enumerate(self._parts.parts)}
        counted = Counted()
        files: dict[tuple[str, int], list[_Counted]] = {}
        for kernel in sorted(there, key=kernel_order):
            if not (storable(kernel) and indexable(kernel)):
                continue
            holders: dict[int, list[str]] = {}
            for model_id in there[kernel]:
                if (slug := paths.slug(model_id)) in owners:  # it is not being removed at this moment
                    holders.setdefault(owners[slug], []).append(model_id)
            fitted = self._chosen.get(kernel) or self._choose(kernel, layers, own, list(holders), progress)
            if fitted is None:
                continue
            self._chosen[kernel] = fitted
            counted.bases.append(self._parts.derived.put_basis(fitted))
            for number, model_ids in holders.items():
                missing = model_ids
                if _same(own[number].get(fitted.basis_id), fitted):
                    missing = [one for one in model_ids if one in absent[number].get(fitted.basis_id, ())]
                    if len(missing) < len(model_ids):
                        counted.stored.setdefault(number, []).append(fitted.basis_id)
                if missing:
                    digests = {model_id: there[kernel][model_id] for model_id in missing}
                    found = self._counted(number, fitted, digests, layers, progress)
                    files[fitted.basis_id, number] = found
                    counted.derived.setdefault(number, []).extend(str(file.path) for file in found)
        self._files = files
        self._parts.counted = counted

    # -------------------------------------------------------------------------------------------- which basis

    def _choose(
        self,
        kernel: str,
        layers: pa.Table,
        own: Mapping[int, Mapping[str, FittedBasis]],
        holders: Sequence[int],
        progress: Progress | None,
    ) -> FittedBasis | None:
        """The basis of a kernel size; None if there can be none."""
        parts = self._parts.parts
        without = [number for number in holders if not parts[number].has_filters]
        used = [_last(own[number], kernel) for number in without or holders]
        first = used[0]
        if first is not None and all(_same(other, first) for other in used):
            return first
        return None if without else self._fit(kernel, layers, progress)

    def _fit(self, kernel: str, layers: pa.Table, progress: Progress | None) -> FittedBasis | None:
        chosen = papers_layers(layers.filter(pc.field("kernel") == kernel))
        if (pc.sum(chosen["filters"]).as_py() or 0) < 2:
            return None
        if known := self._parts.derived.fitted(basis_key(chosen, kernel)):
            return known
        rows = self._parts.layers(sorted(set(chosen["model_id"].to_pylist())), columns=_MOMENTS)
        rows = papers_layers(rows.filter((pc.field("kernel") == kernel) & pc.field("stored")))
        fitted = fit(self._parts, rows, kernel, sequence=1, progress=progress)
        if fitted is not None:
            self._parts.derived.put_fitted(fitted)
        return fitted

    # --------------------------------------------------------------------------------------- which histograms

    def _counted(
        self,
        number: int,
        fitted: FittedBasis,
        digests: Mapping[str, str],
        layers: pa.Table,
        progress: Progress | None,
    ) -> list[_Counted]:
        """Files with the histograms of models of a part, of which those that are missing are written.

        Args:
            number: Of the part.
            fitted: The basis.
            digests: A hash of the weights of each model.
            layers: The layers of all parts.
            progress: Called with the current step, the amount done and the total.
        """
        known = [
            file
            for file in self._files.get((fitted.basis_id, number), ())
            if file.path.exists() and all(digests.get(one) == digest for one, digest in file.models.items())
        ]
        done = {model_id for file in known for model_id in file.models}
        rows = layers.filter(pc.field("kernel") == fitted.basis.kernel)
        sizes = {pair["values"]: pair["counts"] for pair in rows["model_id"].value_counts().to_pylist()}
        storage, derived = self._parts.parts[number].storage, self._parts.derived
        for chunk in _chunks([model_id for model_id in sorted(digests) if model_id not in done], sizes):
            models = {model_id: digests[model_id] for model_id in chunk}
            name = _digest([_content(fitted), *(f"{model_id} {digest}" for model_id, digest in models.items())])
            path = derived.histograms(fitted.basis_id, name)
            if path is None:
                here = rows.filter(pc.is_in(rows["model_id"], pa.array(chunk, pa.string())))
                keys = zip(here["model_id"].to_pylist(), here["layer"].to_pylist(), strict=True)
                hashes = dict(zip(keys, here["tensor_sha256"].to_pylist(), strict=True))
                files = storage.filter_files(fitted.basis.kernel, chunk)
                tables = [table for _, table in model_histograms(files, fitted, hashes, self._parts.resources)]
                path = derived.put_histograms(fitted.basis_id, name, _by_recipe(tables))
            known.append(_Counted(path, models))
            done.update(chunk)
            if progress:
                what = f"histograms of {fitted.basis.kernel} in {self._parts.parts[number].name}"
                progress(what, len(done), len(digests))
        return known


def _by_kernel(layers: pa.Table) -> dict[str, dict[str, str]]:
    """For each kernel size its models, each with a hash of its weights of that size."""
    found: dict[str, dict[str, list[str]]] = {}
    columns = (layers[name].to_pylist() for name in ("model_id", "layer", "kernel", "tensor_sha256"))
    for model_id, layer, kernel, digest in zip(*columns, strict=True):
        found.setdefault(kernel, {}).setdefault(model_id, []).append(f"{layer} {digest}")
    return {kernel: {model_id: _digest(of) for model_id, of in models.items()} for kernel, models in found.items()}


def _own(part: OpenPart) -> dict[str, FittedBasis]:
    """The bases of a part by their keys; none of an index that is damaged, whose histograms are counted again."""
    if part.bases.unsound():
        return {}
    return {fitted.basis_id: fitted for fitted in part.bases.bases()}


def _absent(part: OpenPart) -> dict[str, set[str]]:
    """The models of a part whose histograms in its own bases are missing, by basis."""
    if not isinstance(part.bases, Index):
        return {}  # those of a release are complete, which is checked when they are read
    return {basis_id: set(model_ids) for basis_id, model_ids in part.bases.missing().items()}


def _last(bases: Mapping[str, FittedBasis], kernel: str) -> FittedBasis | None:
    """The basis in use for a kernel size."""
    known = [fitted for fitted in bases.values() if fitted.basis.kernel == kernel]
    return max(known, key=lambda fitted: (fitted.sequence, fitted.basis_id), default=None)


def _same(one: FittedBasis | None, other: FittedBasis) -> bool:
    """Whether two bases are the same, not only by their key, which a stranger can give to any basis."""
    return one is not None and one.basis_id == other.basis_id and _content(one) == _content(other)


def _content(fitted: FittedBasis) -> str:
    basis = fitted.basis
    arrays = np.concatenate([basis.mean, basis.components.ravel(), basis.explained_variance_ratio]).astype("<f8")
    return f"{hashlib.sha256(arrays.tobytes()).hexdigest()} {basis.low!r} {basis.high!r} {basis.bins}"


def _digest(lines: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:32]


def _chunks(model_ids: Sequence[str], sizes: Mapping[str, int]) -> Iterator[list[str]]:
    chunk: list[str] = []
    layers = 0
    for model_id in model_ids:
        if chunk and layers + sizes[model_id] > _CHUNK:
            yield chunk
            chunk, layers = [], 0
        chunk.append(model_id)
        layers += sizes[model_id]
    if chunk:
        yield chunk


def _by_recipe(tables: Sequence[pa.Table]) -> pa.Table:
    """Histograms of several models, those of a recipe together."""
    joined = pa.concat_tables([HISTOGRAMS.empty_table(), *tables])
    return pa.concat_tables([joined.filter(pc.field("recipe") == recipe) for recipe in RECIPES])
