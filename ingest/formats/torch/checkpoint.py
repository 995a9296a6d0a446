"""Weight files of PyTorch, read without PyTorch.

Five layouts, recognised by what is in them:

- a zip archive of ``torch.export.save`` (:mod:`~cnnfilterdb.ingest.formats.torch.exported`);
- a zip archive with ``data.pkl`` and one member per storage (``torch.save`` since PyTorch 1.6; also TorchScript, which
  adds ``code/`` and ``constants.pkl``);
- five pickles, then the bytes of the storages (``torch.save`` before, and still on request);
- a tar archive with ``storages``, ``tensors`` and ``pickle`` (before PyTorch 0.1.10);
- a plain pickle, of NumPy arrays or of tensors.

The layouts are those that ``torch/serialization.py`` of PyTorch 2.13 reads and writes. Pickles are read by
:mod:`cnnfilterdb.ingest.formats.pickle`, so that nothing of the file is executed and whole pickled modules need no
source code. A tensor is its place in the file until it is read: memory holds one tensor at a time.
"""

from __future__ import annotations

import io
import re
import tarfile
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from cnnfilterdb.core.errors import WeightFileError
from cnnfilterdb.ingest.formats import limits, register
from cnnfilterdb.ingest.formats.blob import Blob
from cnnfilterdb.ingest.formats.compression import compression_of, decompressed
from cnnfilterdb.ingest.formats.damage import undamaged
from cnnfilterdb.ingest.formats.pickle import load
from cnnfilterdb.ingest.formats.pickled_arrays import Array
from cnnfilterdb.ingest.formats.shards import is_index, shards
from cnnfilterdb.ingest.formats.torch.archive import ZIP, TorchArchive
from cnnfilterdb.ingest.formats.torch.distributed import METADATA, distributed_content
from cnnfilterdb.ingest.formats.torch.exported import exported_tensors
from cnnfilterdb.ingest.formats.torch.parallel import refuse_parts
from cnnfilterdb.ingest.formats.torch.script import Journey, first_kernel, follow
from cnnfilterdb.ingest.formats.torch.script_code import Code
from cnnfilterdb.ingest.formats.torch.tensors import (
    CONSTRUCTORS,
    MAX_DIMENSIONS,
    StoredTensor,
    TensorStorage,
    as_storage,
    byte_count,
    rebuilt,
    storage_type,
)
from cnnfilterdb.ingest.network.arrays import layers_from_arrays
from cnnfilterdb.ingest.network.extract import ConvFacts, conv_depths, conv_facts, weights_from_checkpoint
from cnnfilterdb.ingest.network.layers import Skipped, Tensor, Weights
from cnnfilterdb.ingest.network.objects import Global, Object

__all__ = ["TorchFormat"]

_PICKLES = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
# Protocols 0 and 1 have no mark: they begin with a container, or with the name of a class
_OLD_PICKLE = re.compile(rb"\(?[dl]p\d+\n|[}\]]q.|c[A-Za-z_][\w.]*\n[A-Za-z_]\w*\n")
_SUFFIXES = (".bin", ".pt", ".pth")
_TEXTS = (".txt", ".md", ".json", ".yaml", ".yml", ".toml", ".cfg", ".py", ".csv", ".log", ".html", ".pdf")
# The first object that torch.save writes, which identifies its files
_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY = b"\x80\x02\x8a\x0a" + _MAGIC.to_bytes(10, "little")


# ---------------------------------------------------------------------------------------------------------------------
# Containers


@dataclass(slots=True)
class _Checkpoint:
    """The content of a file.

    Attributes:
        format: Name of the layout.
        root: The tree of containers, tensors and modules.
        code: Code of its classes, if it has any.
        journey: Result of following the code.
        left_out: Tensors that are not part of the tree.
    """

    format: str
    root: Any
    code: Code | None = None
    journey: Journey = field(default_factory=Journey)
    left_out: tuple[Skipped, ...] = ()

    def facts(self, module: Object) -> ConvFacts:
        """What the stub of a module says about its convolution."""
        code, cls = self.code, str(module.cls)
        if code is None:
            return conv_facts(module.cls.name, module.attributes.get)
        return conv_facts(module.cls.name, lambda key: module.attributes.get(key, code.constant(cls, key)))


def _open(blob: Blob, name: str, depth: int = 0) -> _Checkpoint:
    """Read any of the layouts."""
    if depth > 2:
        raise WeightFileError(f"{name}: archives in archives; unpack the checkpoint and pass it itself")
    head = blob.part(0, min(512, blob.size)).read()
    if head.startswith(ZIP):
        return _open_zip(blob, name, depth)
    if _is_tar(head):
        return _open_tar(blob, name, depth)
    if (compression := compression_of(head)) is not None:
        inner = decompressed(blob)
        if not _is_readable(inner.part(0, min(512, inner.size)).read()):
            raise WeightFileError(
                f"{name}: a {compression} that contains neither a PyTorch file nor a pickle; unpack it and pass the "
                "weight file in it"
            )
        return _open(inner, name, depth + 1)
    return _open_pickle(blob, name, depth)


def _is_readable(head: bytes) -> bool:
    """Whether bytes begin like any of the layouts."""
    pickled = head.startswith(_PICKLES) or _OLD_PICKLE.match(head) is not None
    return head.startswith(ZIP) or pickled or _is_tar(head) or compression_of(head) is not None


def _is_tar(head: bytes) -> bool:
    return head[257:262] == b"ustar"


def _open_zip(blob: Blob, name: str, depth: int) -> _Checkpoint:
    archive = TorchArchive(blob)
    exported = _open_exported(archive, name, depth)
    if exported is not None:
        return exported
    roots = [member.removesuffix("data.pkl") for member in archive.infos if f"/{member}".endswith("/data.pkl")]
    if not roots:
        return _open_single(archive, name, depth)
    root = min(roots, key=len)
    byteorder = "little"
    if f"{root}byteorder" in archive:
        byteorder = archive.member(f"{root}byteorder").read().decode("ascii")
        if byteorder not in ("little", "big"):
            raise ValueError(f"an unknown byte order, {byteorder[:20]}")
    content = _load_zip_pickle(archive, name, root, "data.pkl", "data", byteorder)
    if f"{root}constants.pkl" not in archive:
        return _Checkpoint("torch-zip", content)
    constants = _load_zip_pickle(archive, name, root, "constants.pkl", "constants", byteorder)
    return _script(archive, root, content, constants)


def _open_exported(archive: TorchArchive, name: str, depth: int) -> _Checkpoint | None:
    """The weights of an archive of ``torch.export.save``; None for any other archive."""
    members = {member.rpartition("/")[2]: member for member in archive.infos}
    for state in ("serialized_state_dict.pt", "serialized_state_dict.json"):  # PyTorch 2.1 to 2.7
        if state in members and "serialized_exported_program.json" in members:
            return replace(_open(archive.member(members[state]), name, depth + 1), format="torch-export")
    if "model_weights_config.json" not in members:
        return None

    def unpickled(member: str) -> Any:
        return _open(archive.member(member), name, depth + 1).root

    return _Checkpoint("torch-export", exported_tensors(archive, members["model_weights_config.json"], unpickled))


def _script(archive: TorchArchive, root: str, content: Any, constants: Any) -> _Checkpoint:
    """Follow the code of a TorchScript archive, and name the weights that only the code identifies."""
    sources = {}
    for member in archive.infos:
        path = member.removeprefix(f"{root}code/")
        if path != member and path.endswith(".py"):
            sources[path.removesuffix(".py").replace("/", ".")] = archive.member(member).read().decode()
    try:
        code = Code(sources)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return _Checkpoint("torchscript", content)  # the weights are present in any case
    if not isinstance(content, Object) or not isinstance(constants, list | tuple):
        return _Checkpoint("torchscript", content, code)
    stored = _mark(content, code)
    journey = follow(code, content, constants, _is_kernel)
    # In a frozen network the weights are constants, and so are the packed weights of quantised layers
    kernels = [first_kernel(value.state if isinstance(value, Object) else value, _is_kernel) for value in constants]
    numbers = {id(kernel): number for number, kernel in enumerate(kernels) if kernel is not None}
    frozen: dict[str, Any] = {}
    for use in journey.uses:
        if use.weight.identity in stored:
            continue
        stored.add(use.weight.identity)
        if id(use.weight) in numbers:
            layer = Object(Global("__torch__", "Constant"), attributes={"weight": use.weight})
            frozen[f"c{numbers[id(use.weight)]}"] = layer
        else:  # of a layer that packs its weight, such as a quantised one
            use.owner.state = None
            use.owner.attributes.setdefault("weight", use.weight)
    if frozen:
        content.attributes["CONSTANTS"] = frozen
    # Where the code cannot be followed to its end, constants may be kernels whose use is not known
    lost = () if journey.complete else [kernels[n] for n in numbers.values() if kernels[n].identity not in stored]
    left_out = tuple(
        Skipped(f"CONSTANTS.c{numbers[id(kernel)]}", "a constant of four dimensions whose use in the code is not clear")
        for kernel in lost
    )
    return _Checkpoint("torchscript", content, code, journey, left_out)


def _is_kernel(value: Any) -> bool:
    return isinstance(value, StoredTensor) and len(value.shape) == 4


def _mark(root: Object, code: Code) -> set[Any]:
    """Mark parameters and buffers as what the classes say that they are; identities of all tensors."""
    found: set[Any] = set()
    seen: set[int] = set()
    stack = [root]
    while stack:
        module = stack.pop()
        if id(module) in seen:
            continue
        seen.add(id(module))
        parameters, buffers = code.parameters(str(module.cls)), code.buffers(str(module.cls))
        for key, value in module.attributes.items():
            if isinstance(value, StoredTensor):
                found.add(value.identity)
                value.parameter = True if key in parameters else False if key in buffers else None
            elif isinstance(value, Object):
                stack.append(value)
    return found


def _load_zip_pickle(archive: TorchArchive, name: str, root: str, pickle: str, folder: str, byteorder: str) -> Any:
    storages: dict[Any, TensorStorage] = {}

    def persistent(identifier: Any) -> Any:
        kind, cls, key, _location, count = identifier
        if kind != "storage" or not isinstance(key, str):
            raise ValueError("an unknown persistent id")
        dtype = storage_type(cls)
        if (key, dtype) not in storages:
            member = f"{root}{folder}/{key}"
            size = byte_count(count, dtype)
            if archive.size(member) < size:
                raise ValueError(f"member {member} is shorter than the {size:,} bytes that are expected")
            storages[key, dtype] = TensorStorage(member, dtype, size, partial(archive.member, member), byteorder)
        return storages[key, dtype]

    with archive.member(root + pickle).stream() as stream:
        return load(stream, name, _constructors(name), persistent)


def _is_clutter(member: str) -> bool:
    """Whether a member was added by macOS, or is a text about the model beside it."""
    name = member.rpartition("/")[2].lower()
    return member.startswith("__MACOSX/") or name.startswith((".", "license", "readme")) or name.endswith(_TEXTS)


def _open_single(archive: TorchArchive, name: str, depth: int) -> _Checkpoint:
    members = [member for member in archive.infos if not _is_clutter(member)]
    manifest = next((member for member in archive.infos if f"/{member}".endswith("/model.json")), None)
    if manifest is not None:
        if b'"weightsManifest"' in archive.member(manifest).read():
            raise WeightFileError(f"{name}: a zip archive of a TensorFlow.js model; unpack it and pass its model.json")
        raise WeightFileError(
            f"{name}: TorchScript of PyTorch before 1.4; load it and save it again with a newer PyTorch"
        )
    if any("/data/aotinductor/" in f"/{member}" for member in archive.infos):
        raise WeightFileError(
            f"{name}: a package of AOTInductor, compiled for one machine; pass the program of torch.export.save that "
            "it was compiled from"
        )
    if len(members) != 1:
        raise WeightFileError(
            f"{name}: a zip archive of {len(archive.infos)} members without data.pkl, not a PyTorch file; "
            f"unpack it and pass the weight file in it{_named_members(members or archive.infos)}"
        )
    inner = archive.member(members[0])
    if not _is_readable(inner.part(0, min(512, inner.size)).read()):
        raise WeightFileError(
            f"{name}: a zip archive of {members[0]}, which is not a PyTorch file; unpack it and pass that file"
        )
    return _open(inner, name, depth + 1)


def _named_members(members: Iterable[str]) -> str:
    """The names of some members of an archive, for a message."""
    names = sorted(members)[:3]
    return f" ({', '.join(names)}{', ...' if len(names) == 3 else ''})" if names else ""


def _constructors(name: str, depth: int = 0) -> Mapping[tuple[str, str], Callable[..., Any]]:
    def load_from_bytes(data: Any) -> Any:
        # Tensors written by pickle itself: each storage is a separate file
        if not isinstance(data, bytes | bytearray):
            raise ValueError("a storage without bytes")
        storage = _open(Blob.of(bytes(data)), name, depth + 1).root
        return as_storage(storage)

    return {**CONSTRUCTORS, ("torch.storage", "_load_from_bytes"): load_from_bytes}


def _open_pickle(blob: Blob, name: str, depth: int) -> _Checkpoint:
    with blob.stream() as stream:
        content = load(stream, name, _constructors(name, depth))
        if content != _MAGIC:
            return _Checkpoint("pickle", _unpacked(_followed(stream, content, name, depth), name, depth))
        if (version := load(stream, name)) != 1001:
            raise ValueError(f"version {version} of the format")
        load(stream, name)  # byte order and sizes of the machine; storages are always little-endian

        storages: dict[Any, TensorStorage] = {}
        views: dict[Any, TensorStorage] = {}  # of a part of a storage, or of it as another type

        def persistent(identifier: Any) -> Any:
            if identifier[0] == "module":
                return identifier[1]
            kind, cls, key, _location, count, view = identifier
            if kind != "storage" or not isinstance(key, str):
                raise ValueError("an unknown persistent id")
            dtype = storage_type(cls)
            storage = storages.setdefault(key, TensorStorage(key, dtype, byte_count(count, dtype)))
            if view is None and storage.dtype == dtype:
                return storage
            start, size = (0, storage.size) if view is None else (byte_count(number, dtype) for number in view[1:])
            if start + size > storage.size:
                raise ValueError("a view beyond its storage")
            return views.setdefault((key, dtype, start, size), TensorStorage(key, dtype, size, start=start))

        root = load(stream, name, _constructors(name, depth), persistent)
        keys = load(stream, name)
        place = stream.tell()
    if not isinstance(keys, list):
        raise ValueError("no list of storages")
    found: dict[Any, Callable[[], Blob]] = {}
    for key in keys:
        storage = storages[key]
        count = int.from_bytes(blob.part(place, 8).read(), "little")
        if byte_count(count, storage.dtype) != storage.size:
            raise ValueError(f"storage {key} has {count} elements where {storage.size} bytes are expected")
        blob.part(place + 8, storage.size)  # is there
        found[key] = partial(blob.part, place + 8, storage.size)
        place += 8 + storage.size
    for storage in (*storages.values(), *views.values()):
        if storage.key not in found:
            raise ValueError(f"storage {storage.key} is missing")
        storage.blob = found[storage.key]
    return _Checkpoint("torch-legacy", root)


def _followed(stream: BinaryIO, content: Any, name: str, depth: int) -> Any:
    """What is in a file of one pickle; the list of what is in several, which were written one after the other."""
    found = [content]
    while stream.read(2) in _PICKLES:
        limits.current().create()
        stream.seek(-2, io.SEEK_CUR)
        found.append(load(stream, name, _constructors(name, depth)))
    return found if len(found) > 1 else content


def _unpacked(content: Any, name: str, depth: int) -> Any:
    """The content of a pickle, in which files of torch.save, as skorch embeds them, take the place of their bytes."""
    seen: set[int] = set()
    queue = [content]
    while queue:
        node = queue.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        limits.current().step()
        if isinstance(node, Object) and node.cls.name == "BytesIO" and isinstance(node.state, tuple):
            node.state = list(node.state)
        groups = [node.attributes, node.items, node.elements, node.state] if isinstance(node, Object) else [node]
        for group in groups:
            if isinstance(group, tuple):
                queue += [value for value in group if isinstance(value, dict | list | tuple | Object)]
            if not isinstance(group, dict | list):
                continue
            for key, value in list(group.items() if isinstance(group, dict) else enumerate(group)):
                if isinstance(value, bytes) and value.startswith((ZIP, _LEGACY)):
                    with suppress(WeightFileError, ValueError, KeyError):  # other bytes, which are no concern here
                        group[key] = _open(Blob.of(value), name, depth + 1).root
                elif isinstance(value, dict | list | tuple | Object):
                    queue.append(value)
    return content


def _open_tar(blob: Blob, name: str, depth: int) -> _Checkpoint:
    with blob.stream() as stream, tarfile.open(fileobj=stream, mode="r:") as archive:
        members = {
            member.name.removeprefix("./"): blob.part(member.offset_data, member.size)
            for member in archive
            if member.isreg() and not member.issparse() and not _is_clutter(member.name)
        }
    if not {"storages", "tensors", "pickle"} <= set(members):
        if len(members) != 1:
            raise WeightFileError(
                f"{name}: a tar archive of {len(members)} files, not a PyTorch file; unpack it and pass the weight "
                f"file in it{_named_members(members)}"
            )
        return _open(next(iter(members.values())), name, depth + 1)

    known: dict[Any, Any] = {}

    def resolve(identifier: Any) -> Any:
        if isinstance(identifier, tuple):
            return identifier[0]
        return known[int(identifier)]

    with members["storages"].stream() as stream:
        for _ in range(_count(load(stream, name))):
            key, _location, cls = load(stream, name)
            dtype = storage_type(cls)
            size = byte_count(int.from_bytes(stream.read(8), "little"), dtype)
            members["storages"].part(stream.tell(), size)  # is there
            known[key] = TensorStorage(key, dtype, size, partial(members["storages"].part, stream.tell(), size))
            stream.seek(size, io.SEEK_CUR)
        for target, source, start, size in load(stream, name):
            root = as_storage(known[source])
            start, size = byte_count(start, root.dtype), byte_count(size, root.dtype)
            if start + size > root.size:
                raise ValueError("a view beyond its storage")
            known[target] = replace(root, start=root.start + start, size=size)
    with members["tensors"].stream() as stream:
        for _ in range(_count(load(stream, name))):
            key, source, _cls = load(stream, name)
            dimensions = int.from_bytes(stream.read(8)[:4], "little")
            if dimensions > MAX_DIMENSIONS:
                raise ValueError("a tensor of an impossible shape")
            numbers = [int.from_bytes(stream.read(8), "little") for _ in range(2 * dimensions + 1)]
            known[key] = rebuilt(known[source], numbers[-1], numbers[:dimensions], numbers[dimensions:-1])
    with members["pickle"].stream() as stream:
        return _Checkpoint("torch-legacy", load(stream, name, _constructors(name), resolve))


def _count(value: Any) -> int:
    if type(value) is not int:
        raise ValueError("no number of tensors")
    return value


# ---------------------------------------------------------------------------------------------------------------------
# The format


@register
class TorchFormat:
    """Files of torch.save and torch.jit.save, and plain pickles of arrays."""

    name = "torch"
    suffixes = (
        *(".pt", ".pth", ".bin", ".ckpt", ".pt2", ".jit", ".torchscript", ".tar"),
        *(".pkl", ".pickle", ".joblib", ".pdparams"),
    )

    def matches(self, path: Path, head: bytes) -> bool:
        """Zip, tar, a pickle, one of these compressed, or an index of shards."""
        return _is_readable(head) or is_index(head, _SUFFIXES)

    def read(self, path: Path) -> Weights:
        """Read the file; the tensors when the layers are read.

        Raises:
            WeightFileError: The file is damaged, or not a PyTorch file.
            UnsafeFileError: The file asks for code to be executed.
        """
        name = str(path)
        with undamaged(name, "PyTorch file"):
            checkpoint = _open_all(path)
            refuse_parts(checkpoint.root, path)
            stored: dict[str, Any] = {}
            used = {use.weight.identity: use.facts for use in checkpoint.journey.uses}

            def tensor(key: str, value: Any, parameter: bool | None) -> Tensor:
                stored[key] = value
                return _named(name, key, value, parameter)

            def facts(module: Object) -> ConvFacts:
                known = checkpoint.facts(module)
                called = (used.get(_identity(value)) for value in module.attributes.values() if _is_tensor(value))
                return next((replace(found, weight_norm=known.weight_norm) for found in called if found), known)

            try:
                weights = weights_from_checkpoint(
                    checkpoint.root,
                    format=checkpoint.format,
                    framework="pytorch",
                    is_tensor=_is_tensor,
                    tensor=tensor,
                    identity=_identity,
                    facts=facts,
                    arrays=partial(layers_from_arrays, ordered=True),
                    is_declared=lambda value: isinstance(value, StoredTensor),
                )
            except WeightFileError as error:
                raise WeightFileError(f"{name}: {error}") from error
            if not any(isinstance(value, StoredTensor) for value in stored.values()):
                weights = replace(weights, framework=None)  # arrays of NumPy, written by any framework
            weights = replace(weights, skipped=checkpoint.left_out + weights.skipped)
            return _placed(weights, stored, checkpoint.journey)


def _open_all(path: Path) -> _Checkpoint:
    """A file, or all files of the model that it belongs to."""
    if path.name == METADATA:
        return _open_distributed(path)
    files = shards(path, _SUFFIXES)
    opened = []
    for file in files:
        size = file.stat().st_size
        if file != path:
            limits.current().opened(size)
        opened.append(_open(Blob.of_file(file), str(file)))
    if len(opened) == 1:
        return opened[0]
    root: dict[Any, Any] = {}
    for file, shard in zip(files, opened, strict=True):
        if not isinstance(shard.root, dict):
            raise WeightFileError(f"{file}: a shard of a model should be a state dict; save the model in one file")
        root |= shard.root
    return _Checkpoint(opened[0].format, root)


def _open_distributed(path: Path) -> _Checkpoint:
    """A checkpoint of torch.distributed, by its metadata."""

    def unpickled(blob: Blob, name: str) -> Any:
        return _open(blob, name, 1).root

    metadata = _open(Blob.of_file(path), str(path)).root
    return _Checkpoint("torch-distributed", distributed_content(metadata, path, unpickled))


def _is_tensor(value: Any) -> bool:
    return isinstance(value, StoredTensor) or (isinstance(value, Array) and isinstance(value.data, bytes))


def _identity(value: Any) -> Any:
    return value.identity if isinstance(value, StoredTensor) else id(value)


def _placed(weights: Weights, stored: Mapping[str, Any], journey: Journey) -> Weights:
    """Layers in the order and at the depths at which the code uses them, if that is known; those not used last."""
    if not journey.complete:
        return weights
    rank: dict[Any, int] = {}
    depths: dict[Any, int] = {}
    for use in journey.uses:
        key = use.weight.identity
        rank.setdefault(key, len(rank))
        depths[key] = min(use.depth, depths.get(key, use.depth))
    names = {layer.name for layer in weights.layers}
    keys = {}
    for name, value in stored.items():
        if len(value.shape) == 4:
            owner = name.rpartition(".")[0].removesuffix(".parametrizations.weight")
            keys[name if name in names else owner] = _identity(value)
    layers = sorted(weights.layers, key=lambda layer: rank.get(keys.get(layer.name), len(rank)))
    places = conv_depths([depths.get(keys.get(layer.name)) for layer in layers])
    return replace(
        weights,
        layers=tuple(
            replace(layer, conv_depth=depth, conv_depth_norm=norm, depth_source="graph", dead=False)
            if depth is not None
            else layer
            for layer, (depth, norm) in zip(layers, places, strict=True)
        ),
    )


def _named(file: str, name: str, value: Any, parameter: bool | None) -> Tensor:
    def read() -> npt.NDArray[np.generic]:
        with undamaged(f"{file}: {name}", "PyTorch file"):
            array: npt.NDArray[np.generic] = value.read()
            return array.astype(np.float32, copy=False) if array.dtype.kind == "f" else array

    dtype = value.dtype if isinstance(value, StoredTensor) else value.dtype.name
    unreadable = value.unreadable if isinstance(value, StoredTensor) else None
    return Tensor(name, value.shape, dtype, read, parameter, unreadable)
