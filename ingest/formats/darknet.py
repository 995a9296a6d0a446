"""Darknet models: the numbers of all layers in a row (``.weights``), and the network that they belong to (``.cfg``).

The ``.weights`` has no names and no sizes. The ``.cfg`` beside it, a list of sections, says how many numbers each layer
takes, which depends on the channels that reach it (load_weights_upto in parser.c of Darknet).
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cnnfilterdb.core.errors import WeightFileError
from cnnfilterdb.ingest.formats import limits, register
from cnnfilterdb.ingest.formats.companions import companion
from cnnfilterdb.ingest.formats.damage import undamaged
from cnnfilterdb.ingest.formats.explicit import explicit_layer, explicit_weights
from cnnfilterdb.ingest.formats.mapping import mapped
from cnnfilterdb.ingest.network.layers import ConvLayer, Skipped, Tensor, Weights

__all__ = ["DarknetFormat"]

_WHAT = "Darknet model"
_BYTES_PER_SECTION = 1024  # of memory
# Sections without numbers, which do not change the number of channels
_PLAIN = frozenset({"maxpool", "avgpool", "upsample", "dropout", "sam", "scale_channels", "softmax", "cost", "lrn"}) | {
    *("yolo", "gaussian_yolo", "region", "detection", "activation", "logistic", "l2norm", "contrastive", "iseg"),
    *("crop", "normalization"),
}


@register
class DarknetFormat:
    """``.weights`` files with their ``.cfg``."""

    name = "darknet"
    suffixes = (".weights",)

    def matches(self, path: Path, head: bytes) -> bool:
        """Whether the suffix and the version, the only marks of the file, are those of Darknet."""
        if len(head) < 16 or not (path.suffix == ".weights" or ".conv." in path.name):
            return False
        major, minor, revision = struct.unpack_from("<3i", head)
        return major == 0 and minor in (1, 2) and 0 <= revision < 10

    def read(self, path: Path) -> Weights:
        """Read the network; the numbers when the layers are read.

        Raises:
            WeightFileError: The ``.cfg`` is missing, or not that of these weights.
        """
        with undamaged(str(path), _WHAT):
            data = mapped(path)
            network = _network(path)
            sections = list(_sections(network))
            found, stored, end = _layers(path, data, sections)
            size = len(data) - _header(data)
            skipped = [one for one, _ in found if isinstance(one, Skipped)]
            if end > size or end % 4:
                raise WeightFileError(
                    f"{path}: contains {size // 4:,} numbers, {network.name} needs {end // 4:,}; "
                    "put the matching .cfg beside it, under the same name"
                )
            if end < size and not skipped:
                raise WeightFileError(
                    f"{path}: contains {size // 4:,} numbers, but {network.name} describes {end // 4:,}; "
                    "put the matching .cfg beside it, under the same name"
                )
            if end < size:
                stored.append(Tensor(skipped[-1].name, ((size - end) // 4,), "float32", read=lambda: np.empty(0)))
            return explicit_weights("darknet", "darknet", stored, found)


def _network(path: Path) -> Path:
    """The ``.cfg`` of the same name, or the only one beside the weights."""
    same = path.with_suffix(".cfg")
    others = [one for one in path.parent.glob("*.cfg") if one.is_file()]
    if not same.is_file() and len(others) != 1:
        raise WeightFileError(
            f"{path}: Darknet weights, which have neither names nor sizes; put the network, {same.name}, beside it"
        )
    return companion(path, same.name if same.is_file() else others[0].name)


def _sections(path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    content = path.read_bytes()
    limits.current().opened(len(content))
    name: str | None = None
    values: dict[str, str] = {}
    for line in content.decode("utf-8", "replace").splitlines():
        limits.current().step()
        text = line.partition("#")[0].partition(";")[0].strip()
        if text.startswith("["):
            if name is not None:
                yield name, values
            limits.current().allocate(_BYTES_PER_SECTION)
            name, values = text.strip("[]").strip().lower(), {}
        elif "=" in text and name is not None:
            key, _, value = text.partition("=")
            values[key.strip()] = value.strip()
    if name is not None:
        yield name, values


def _header(data: memoryview) -> int:
    """Bytes before the numbers: the version, and how many images the network has seen."""
    major, minor = struct.unpack_from("<2i", data)
    return 20 if major * 10 + minor >= 2 else 16


def _layers(
    path: Path, data: memoryview, sections: list[tuple[str, dict[str, str]]]
) -> tuple[list[tuple[ConvLayer | Skipped, int | None]], list[Tensor], int]:
    """The layers and what was left out, with depths; the tensors; and where the numbers of the last layer end."""
    if not sections or sections[0][0] not in ("net", "network"):
        raise WeightFileError(f"{path}: its .cfg does not begin with [net]; put the matching one beside the weights")
    begin = _header(data)
    channels = [_number(sections[0][1], "channels", 3)]  # channels into each section, then out of it
    depths = [0]
    found: list[tuple[ConvLayer | Skipped, int | None]] = []
    stored: list[Tensor] = []
    place = 0
    for number, (kind, values) in enumerate(sections[1:]):
        name, taken, depth = f"{number}/{kind}", channels[-1], depths[-1]
        out = taken
        if kind in ("convolutional", "conv"):
            out, size = _number(values, "filters", 1), _number(values, "size", 1)
            groups, stride = _number(values, "groups", 1), _number(values, "stride", 1)
            if out < 1 or size < 1 or groups < 1 or taken % groups:
                raise WeightFileError(f"{path}: section {number} of its .cfg, [{kind}], is not a convolution")
            vectors = 4 if _number(values, "batch_normalize", 0) else 1
            shape = (out, taken // groups, size, size)
            start = begin + place + 4 * vectors * out
            place += 4 * (vectors * out + math.prod(shape))
            if begin + place > len(data) and _is_cut(path):
                found.append((Skipped(name, "a layer beyond the end of the file, which has only the first ones"), None))
                place -= 4 * (vectors * out + math.prod(shape))
                break
            weight = Tensor(f"{name}/weight", shape, "float32", _reader(path, data, start, shape))
            stored.append(weight)
            # Before it the bias; and scales, means and variances of a normalisation
            for vector in range(vectors):
                read = _reader(path, data, start - 4 * out * (vectors - vector), (out,))
                stored.append(Tensor(f"{name}/{vector}", (out,), "float32", read, parameter=vector < 2))
            one = explicit_layer(
                name,
                weight,
                groups=groups,
                stride=(_number(values, "stride_y", stride), _number(values, "stride_x", stride)),
                dilation=(_number(values, "dilation", 1),) * 2,
            )
            found.append((one, depth))
            depth += 1
        elif kind == "route":
            sources = [_place(part, number) for part in values.get("layers", "").split(",") if part.strip()]
            split = max(_number(values, "groups", 1), 1)
            out = sum(channels[source + 1] for source in sources) // split
            depth = max(depths[source + 1] for source in sources)
        elif kind == "shortcut":
            sources = [_place(part, number) for part in values.get("from", "").split(",") if part.strip()]
            depth = max([depth, *(depths[source + 1] for source in sources)])
        elif kind == "reorg":
            out = taken * _number(values, "stride", 1) ** 2
        elif kind not in _PLAIN:
            if any(one[0] in ("convolutional", "conv") for one in sections[number + 2 :]):
                why = "a layer of unknown size; the convolutions after it are left out"
            else:
                why = "a layer that is not a convolution, the last ones of the file"
            found.append((Skipped(name, why), None))
            break
        channels.append(out)
        depths.append(depth)
    return found, stored, place


def _is_cut(path: Path) -> bool:
    # darknet53.conv.74 has the first 74 layers of a network, for training others
    return ".conv." in path.name


def _number(values: Mapping[str, str], key: str, default: int) -> int:
    return int(values.get(key, default))


def _place(text: str, number: int) -> int:
    """The section that another one refers to, by its number or by its distance."""
    target = int(text)
    target = number + target if target < 0 else target
    if not 0 <= target < number:
        raise ValueError(f"section {number} refers to section {target}, which is not before it")
    return target


def _reader(path: Path, data: memoryview, start: int, shape: tuple[int, ...]) -> Callable[[], npt.NDArray[np.generic]]:
    def read() -> npt.NDArray[np.generic]:
        with undamaged(str(path), _WHAT):
            return np.frombuffer(data, "<f4", math.prod(shape), start).reshape(shape)

    return read
