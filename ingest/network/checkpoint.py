"""Finds the weights of the network in a checkpoint.

People save a state dict, a module, or a dictionary that contains one of them together with an optimiser, an epoch and a
moving average, under any name. :func:`networks` finds the tensors of the network or networks in it. It works on
plain containers and on the :class:`~cnnfilterdb.ingest.formats.pickle.Object` trees of pickled modules.
"""

from __future__ import annotations

import math
import re
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from cnnfilterdb.core.errors import WeightFileError
from cnnfilterdb.ingest.network import choices
from cnnfilterdb.ingest.network.averages import names_of_average
from cnnfilterdb.ingest.network.copies import (
    WRAPPERS,
    replaced_modules,
    second_copies,
    suspects,
    underscored_copies,
)
from cnnfilterdb.ingest.network.layers import Skipped
from cnnfilterdb.ingest.network.objects import Object

__all__ = ["Entry", "Network", "all_tensors", "networks"]

# A hostile file may nest containers without end, or share one among so many that walking every path would not end.
_MAX_DEPTH = 100
_MAX_PARTS = 1_000
_MAX_MODULES = 200_000
# A training log may be long: anything with more containers is assumed to be one.
_MAX_SEARCH = 200_000
_MAX_SEARCHES = 2_000_000
# Levels of names among which copies of a network are looked for.
_COPY_LEVELS = 3

# Keys under which a checkpoint stores its only network, by preference.
_MAIN = (
    "state_dict",
    "model_state_dict",
    "model_state",
    "model",
    "net",
    "network",
    "net_state_dict",
    "params",
    "weights",
    "module",
    "blobs",
)
# What remains of the name of their moving average without the word for it
_AVERAGED = ("", *_MAIN, "state", "parameters", "fp32_params")
# What the weight of a layer is called
_WEIGHTS = ("weight", "weights", "kernel", "filters")
# Vectors into which FSDP and DeepSpeed join all weights of a process
_FLAT = re.compile(r"(?:^|[._])flat_param$|^(?:fp32_flat_groups|single_partition_of_fp32_groups)$")
_FLATTENED = (
    "weights that FSDP or DeepSpeed joined into one vector for each process; gather them (a full state dict of FSDP, "
    "zero_to_fp32.py of DeepSpeed)"
)
# State of the training, which may contain tensors of the shape of the weights.
_TRAINING = re.compile(
    r"optim|sched|scaler|callback|criterion|hyper_?param|hparams|history|(?:^|_)opt(?:_|$)|^(?:loss(?:es)?|amp)$"
)
# Parts of a network that only measure its quality, such as a VGG whose features are compared.
_LOSS = re.compile(r"(?:(?:perceptual_|lpips_)?loss(?:es)?|lpips|criterion)(?:_f(?:n|unc))?")
# What torch.compile, FSDP, activation checkpointing and DeepSpeed put before names or between them, and what LoRA
# appends to the name of the layer that it changes.
_TRANSPARENT = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module", "base_layer"}


@dataclass(frozen=True, slots=True)
class Entry:
    """A tensor of a network.

    Attributes:
        name: Its name in the network.
        value: The tensor, as the file's reader represents it.
        parameter: True for a parameter, False for a buffer, None if the file does not state it.
    """

    name: str
    value: Any
    parameter: bool | None = None


@dataclass(slots=True)
class Network:
    """The tensors of one network, in the order of the file.

    Attributes:
        entries: Its tensors.
        modules: Its modules by name, if the file contains modules.
    """

    entries: list[Entry] = field(default_factory=list)
    modules: dict[str, Object] = field(default_factory=dict)


def networks(root: Any, is_tensor: Callable[[Any], bool]) -> tuple[list[Network], list[Skipped]]:
    """Find the networks of a checkpoint.

    Of a network and its moving average (``state_dict`` and ``state_dict_ema``, ``g`` and ``g_ema``, ...) the average
    is imported, because it is the one meant for use, unless its tensors have lost their names and
    :mod:`~cnnfilterdb.ingest.network.averages` cannot find them; other copies follow the rule of
    :mod:`~cnnfilterdb.ingest.network.copies`. Several networks side by side (``netG`` and ``netD``) are all imported,
    with their names as prefixes. Names of wrappers (``module.``, ``_orig_mod.``, a ``model.`` before every name) are
    removed. Tensors used only in training are left out.

    A network that the user selects by its name (:mod:`~cnnfilterdb.ingest.network.choices`) is the only one that is
    read. Its name is that of a part of the checkpoint, or the first parts of the names of its tensors.

    Args:
        root: The content of the file.
        is_tensor: Whether a value is a tensor, which must have a ``shape``, not a container.

    Returns:
        The networks, and the parts with convolution-like tensors that were left out.

    Raises:
        WeightFileError: The containers are nested too deeply, or there is no network of the selected name.

    >>> import numpy as np
    >>> weight = np.zeros((8, 3, 3, 3))
    >>> checkpoint = {"epoch": 9, "state_dict": {"module.conv.weight": weight}, "optimizer": {"state": [weight]}}
    >>> found, left_out = networks(checkpoint, lambda value: isinstance(value, np.ndarray))
    >>> [entry.name for network in found for entry in network.entries], [(one.name, one.reason) for one in left_out]
    (['conv.weight'], [('optimizer', 'state of the training')])
    """
    finder = _Finder(is_tensor)
    if isinstance(root, Mapping) and root.keys() == {"state", "param_groups"}:
        finder.skip("the file", "the state of an optimiser, not a network")
        return [], finder.skipped
    wanted = choices.chosen().network
    found = finder.find(root, "") if wanted is None else finder.selected(root, wanted)
    finder.report_unread(root)
    return found, finder.skipped


def all_tensors(
    root: Any, is_tensor: Callable[[Any], bool], identity: Callable[[Any], Any] = id
) -> tuple[int, int] | None:
    """Number of different tensors in a checkpoint, and of their elements; None if it has too many parts to be counted.

    >>> import numpy as np
    >>> weight = np.zeros((8, 3))
    >>> all_tensors({"a": weight, "optimizer": [weight, np.zeros(2)]}, lambda value: isinstance(value, np.ndarray))
    (2, 26)
    """
    children = _Finder(is_tensor).children
    found: dict[Any, int] = {}
    seen: dict[int, Any] = {}  # by id; the object is kept, or its id would be used again
    queue = deque([root])
    while queue:
        node = queue.popleft()
        if is_tensor(node):
            found[identity(node)] = math.prod(_shape(node))
        elif id(node) not in seen and (_is_container(node) or node is root):
            seen[id(node)] = node
            if len(seen) > _MAX_SEARCH:
                return None
            queue.extend(child for _, child in children(node))
            queue.extend(node.args if isinstance(node, Object) else ())
    return len(found), sum(found.values())


class _Finder:
    def __init__(self, is_tensor: Callable[[Any], bool]) -> None:
        self.is_tensor = is_tensor
        self.skipped: list[Skipped] = []
        self.parts = 0
        self.modules = 0
        self.searched = 0
        self.without_kernels: set[int] = set()
        self.styles: dict[int, tuple[Any, str | None]] = {}  # by id; the object is kept, or its id would be used again

    def find(self, value: Any, prefix: str, depth: int = 0) -> list[Network]:
        """Descend through wrappers to the networks."""
        if self.is_tensor(value):
            return []
        self.parts += 1
        if depth > _MAX_DEPTH or self.parts > _MAX_PARTS:
            raise WeightFileError("the checkpoint is nested too deeply; save the state dict alone")
        children = list(self.children(value))
        parts = {
            key: child
            for key, child in children
            if _is_container(child) and not _is_training(key, child) and self.style(child)
        }
        # There may be other tensors beside the state dict, such as a sample image
        wrapped = any(key in _MAIN or _without_ema(key) is not None for key in parts)
        if _is_module(value) or (not wrapped and any(self.is_kernel(child) for _, child in children)):
            return [self.network(value, prefix)]
        self.name_averages(parts)
        chosen = self.choose(parts, prefix)
        if not wrapped and any(self.style(parts[key]) == "nested" for key in chosen):
            return [self.network(value, prefix, without=parts.keys() - set(chosen))]
        if len(chosen) == 1:
            return self.find(parts[chosen[0]], prefix, depth + 1)
        return [network for key in chosen for network in self.find(parts[key], f"{prefix}{key}.", depth + 1)]

    def selected(self, root: Any, wanted: str) -> list[Network]:
        """The network of a name; none if there is none, so that layers are selected by their names."""
        words = wanted.strip(".").split(".")
        part: Any = root
        for place, word in enumerate(words):
            children = dict(self.children(part)) if _is_container(part) else {}
            if word not in children:
                break
            part = children[word]
            if place == len(words) - 1 and self.style(part):
                choices.chosen().found = True
                return self.find(part, "")
        return self.find(root, "")

    def below_name(self, network: Network, wanted: str | None) -> Network | None:
        """The part of a network whose names begin with a name."""
        prefix = f"{(wanted or '').strip('.')}."
        below = [entry for entry in network.entries if entry.name.startswith(prefix)]
        if wanted is None or not any(self.is_kernel(entry.value) for entry in below):
            return None
        choices.chosen().found = True
        return Network(
            [replace(entry, name=entry.name.removeprefix(prefix)) for entry in below],
            {name.removeprefix(prefix): module for name, module in network.modules.items() if name.startswith(prefix)},
        )

    def name_averages(self, parts: dict[str, Any]) -> None:
        """Give averages among several parts the names of their networks, where they have lost them."""
        for average in [key for key in parts if _without_ema(key) is not None]:
            entries = self.entries(parts[average])
            for twin in _twins(average, parts):
                whole = Network()
                self.collect(parts[twin], "", whole, 0)
                # The average may be that of the network before or after it was wrapped
                for network in (_renamed(whole), whole):
                    names = names_of_average(_shapes(entries), _shapes(network.entries))
                    if names:
                        parts[average] = {names[one.name]: one.value for one in entries if one.name in names}
                        break

    def name_average(self, network: Network, average: str) -> None:
        """Give the tensors of an average beside its network the names that they have lost."""
        own = _below(network, average)
        beside = [entry for entry in network.entries if not entry.name.startswith(f"{average}.")]
        tops = dict.fromkeys(entry.name.partition(".")[0] for entry in beside)
        for others in (*(_below(network, twin) for twin in _twins(average, tops)), beside):
            names = names_of_average(_shapes(own), _shapes(others))
            if names:
                names = {f"{average}.{name}": f"{average}.{original}" for name, original in names.items()}
                network.entries = [replace(one, name=names.get(one.name, one.name)) for one in network.entries]
                return

    def choose(self, parts: Mapping[str, Any], prefix: str) -> list[str]:
        """Choose among several parts; the others are recorded with the reason."""
        chosen = list(parts)
        for average in [key for key in parts if _without_ema(key) is not None]:
            for key, reason in self.superseded(average, chosen, lambda key: self.entries(parts[key])):
                chosen.remove(key)
                self.skip(prefix + key, reason)
        kernels = {key: self.kernels(self.entries(parts[key])) for key in sorted(suspects(set(chosen)))}
        for key, reason in second_copies(kernels):
            chosen.remove(key)
            self.skip(prefix + key, reason)
        # An average of the main network replaces it
        main = [key for key in chosen if _without_ema(key) in _AVERAGED] or [key for key in _MAIN if key in chosen]
        for key in chosen if main else []:
            if key != main[0]:
                self.skip(prefix + key, f"another part of the checkpoint; {main[0]} was imported")
        return main[:1] or chosen

    def superseded(
        self, average: str, keys: Iterable[str], entries: Callable[[str], list[Entry]]
    ) -> Iterator[tuple[str, str]]:
        """What a moving average makes redundant, with the reason: its network, or itself if it has lost the names."""
        twins = _twins(average, keys)
        if not twins:
            return
        endings = {ending for entry in entries(average) for ending in _endings(entry.name)}
        same = [key for key in twins if all(e.name in endings for e in entries(key) if self.is_kernel(e.value))]
        for key in same:
            yield key, f"its moving average, {average}, was imported instead"
        if not same:
            yield average, f"a moving average whose tensors do not have the names of {twins[0]}"

    def skip(self, name: str, reason: str) -> None:
        self.skipped.append(Skipped(name, reason))

    def network(self, value: Any, prefix: str, without: Collection[str] = ()) -> Network:
        """The tensors of a container, except those used only in training."""
        network = Network()
        self.collect(value, "", network, 0, without)
        network = self.below_name(network, choices.chosen().network) or network
        network = _renamed(network)
        network = self.below_name(network, choices.chosen().network) or network
        tops = dict.fromkeys(entry.name.partition(".")[0] for entry in network.entries if self.is_kernel(entry.value))
        losses = [top for top in tops if _LOSS.fullmatch(top.lower())]
        left_out = [(top, "used only in training") for top in losses if len(losses) < len(tops)]
        for average in [top for top in tops if _without_ema(top) is not None]:
            self.name_average(network, average)
            # With different names it may be something else, such as a kind of attention
            own = any("." in entry.name for entry in _below(network, average))
            superseded = self.superseded(average, tops, partial(_below, network))
            left_out += [(key, reason) for key, reason in superseded if key != average or not own]
        left_out += replaced_modules([entry.name for entry in network.entries if self.is_kernel(entry.value)])
        averages = underscored_copies({entry.name for entry in network.entries})
        if averages:
            self.skip(f"{prefix}ema_*", f"a moving average of the network, {len(averages)} tensors, without its names")
            network.entries = [entry for entry in network.entries if entry.name not in averages]
        self.leave_out(network, prefix, left_out)
        for parent, parts in self.siblings(network).items():
            self.leave_out(network, prefix, [(parent + key, reason) for key, reason in second_copies(parts)])
        network = _renamed(network)
        return Network(
            [Entry(prefix + entry.name, entry.value, entry.parameter) for entry in network.entries],
            {(prefix + name).removesuffix("."): module for name, module in network.modules.items()},
        )

    def leave_out(self, network: Network, prefix: str, parts: Iterable[tuple[str, str]]) -> None:
        """Remove parts of a network, with their reasons."""
        for top, reason in parts:
            self.skip(prefix + top, reason)
            network.entries = [entry for entry in network.entries if not f"{entry.name}.".startswith(f"{top}.")]

    def siblings(self, network: Network) -> dict[str, dict[str, set[tuple[str, tuple[int, ...]]]]]:
        """The kernels below each name, for names on the upper levels: parent -> name -> kernels."""
        found: dict[str, dict[str, set[tuple[str, tuple[int, ...]]]]] = {}
        for name, shape in self.kernels(network.entries):
            path = name.split(".")
            for level in range(min(len(path) - 1, _COPY_LEVELS)):
                parent = "".join(f"{part}." for part in path[:level])
                below = found.setdefault(parent, {}).setdefault(path[level], set())
                below.add((".".join(path[level + 1 :]), shape))
        return found

    def kernels(self, entries: Iterable[Entry]) -> set[tuple[str, tuple[int, ...]]]:
        return {(entry.name, _shape(entry.value)) for entry in entries if self.is_kernel(entry.value)}

    def entries(self, value: Any) -> list[Entry]:
        network = Network()
        self.collect(value, "", network, 0)
        return _renamed(network).entries

    def collect(self, value: Any, prefix: str, network: Network, depth: int, without: Collection[str] = ()) -> None:
        """Collect every tensor below, named as in a state dict."""
        self.modules += 1
        if depth > _MAX_DEPTH or self.modules > _MAX_MODULES:
            raise WeightFileError("the network is nested too deeply; save the state dict alone")
        buffers: Collection[Any] = ()
        if isinstance(value, Object):
            network.modules.setdefault(prefix.removesuffix("."), value)
            if _is_torch_module(value) and isinstance(value.attributes.get("_buffers"), dict):
                buffers = value.attributes["_buffers"]
        for key, child in self.children(value):
            if self.is_tensor(child):
                parameter = getattr(child, "parameter", None)
                if _is_torch_module(value):
                    parameter = key not in buffers
                network.entries.append(Entry(f"{prefix}{key}", child, parameter))
            elif (unknown := self.unknown(key, child)) is not None:
                self.skip(f"{prefix}{key}", unknown)
            elif _is_container(child) and key not in without and (_is_module(value) or not _is_training(key, child)):
                self.collect(child, f"{prefix}{key}.", network, depth + 1)

    def report_unread(self, root: Any) -> None:
        """Record what holds kernels and belongs to the training, or is an argument of a class that is not known."""
        seen: set[int] = set()
        queue: deque[tuple[str, Any]] = deque([("", root)])
        while queue and len(seen) < _MAX_SEARCH:
            path, node = queue.popleft()
            if id(node) in seen or self.is_tensor(node):
                continue
            seen.add(id(node))
            arguments = list(node.args) if isinstance(node, Object) and not _is_module(node) else []
            if any(self.is_kernel(one) for argument in arguments for one in (argument, *(_objects(argument) or ()))):
                self.skip(path or "the file", f"tensors in an object of the class {node.cls}, which is not known")
            for key, child in (*self.children(node), *((path, part) for part in arguments)):
                name = f"{path}.{key}" if path else key
                if _FLAT.search(key) is not None and (self.is_tensor(child) or isinstance(child, list)):
                    self.skip(name, _FLATTENED)
                if not _is_container(child):
                    continue
                if not _is_training(key, child):
                    queue.append((name, child))
                elif not _is_module(node) and self.holds_kernel(child):
                    self.skip(name, "state of the training")

    def holds_kernel(self, value: Any) -> bool:
        """Whether there is a tensor of 3 to 5 dimensions anywhere below."""
        seen: set[int] = set()
        queue = deque([value])
        while queue and len(seen) < _MAX_SEARCH:
            node = queue.popleft()
            if id(node) in seen or id(node) in self.without_kernels:
                continue
            seen.add(id(node))
            self.searched += 1
            if self.is_kernel(node):
                return True
            if self.searched < _MAX_SEARCHES and not self.is_tensor(node):
                children = (child for _, child in self.children(node))
                queue.extend(child for child in children if _is_container(child) or self.is_kernel(child))
        self.without_kernels |= seen
        return False

    def style(self, value: Any) -> str | None:
        """How the kernels below, of 3 to 5 dimensions, are stored; None if there are none.

        ``module``, ``flat`` (a state dict: names with dots) or ``nested`` (a container for each layer).
        """
        if id(value) in self.styles:
            return self.styles[id(value)][1]
        # Level by level, and each container once: hostile files nest deeply and share parts
        seen: dict[int, tuple[Any, Any]] = {}  # containers with their parent
        queue = deque([(value, None)])
        style = None
        while queue and style is None and len(seen) < _MAX_SEARCH:
            node, above = queue.popleft()
            if id(node) in seen or self.is_tensor(node):
                continue
            seen[id(node)] = node, above
            self.searched += 1
            if self.searched > _MAX_SEARCHES:
                raise WeightFileError("the checkpoint has too many parts; save the state dict alone")
            for key, child in self.children(node):
                if self.is_kernel(child):
                    style = "module" if _is_module(node) else "flat" if "." in key else "nested"
                    break
                if _is_container(child) and not _is_training(key, child):
                    queue.append((child, node))
        self.styles[id(value)] = value, style
        # The result of the container applies to those between it and the kernel, or to all if there is none
        if style is None:
            self.styles |= {key: (part, None) for key, (part, _) in seen.items()} if not queue else {}
        else:
            while node is not value:
                self.styles[id(node)] = node, style
                node = seen[id(node)][1]
        return style

    def is_kernel(self, value: Any) -> bool:
        return self.is_tensor(value) and 3 <= len(_shape(value)) <= 5

    def unknown(self, key: str, value: Any) -> str | None:
        """What is stored instead of a weight, such as an unknown kind of tensor; None for anything else."""
        if key.rpartition(".")[2] not in _WEIGHTS or value is None or isinstance(value, Mapping):
            return None
        if isinstance(value, Object):
            if _is_module(value) or self.style(value) is not None:
                return None
            return f"an object of the class {value.cls}, not a tensor that can be read"
        if isinstance(value, list | tuple):
            first: Any = value
            for _ in range(3):
                first = first[0] if isinstance(first, list | tuple) and first else None
            # Rows of rows of numbers
            nested = isinstance(first, int | float | list | tuple)
            return "numbers in lists of Python; convert them with numpy.asarray" if nested else None
        if isinstance(value, str | int | float | bool):
            return None
        return f"an object of the type {type(value).__name__}, not a tensor that can be read"

    def children(self, value: Any) -> Iterator[tuple[str, Any]]:
        """Content of a container by name; of a module, what its state dict holds."""
        parts: Iterable[tuple[Any, Any]] = ()
        if isinstance(value, Object):
            if _is_torch_module(value):
                groups = [value.attributes.get(name) for name in ("_parameters", "_buffers", "_modules")]
                parts = [item for group in groups if isinstance(group, dict) for item in group.items()]
            else:
                state = {"state": value.state} if _is_container(value.state) else {}
                parts = [*value.attributes.items(), *value.items.items(), *enumerate(value.elements), *state.items()]
        elif isinstance(value, Mapping):
            parts = value.items()
        elif isinstance(value, Sequence) and not isinstance(value, str | bytes | bytearray):
            parts = enumerate(value)
        else:
            parts = enumerate(_objects(value) or ())
        for key, child in parts:
            if isinstance(key, bytes):
                key = key.decode("utf-8", "backslashreplace")
            if isinstance(key, tuple) and key and all(isinstance(part, str) for part in key):
                key = "/".join(key)  # flatten_dict of Flax
            if isinstance(key, str | int):
                # Paddle stores a parameter as a pair: its other name, and the array
                pair = isinstance(child, tuple) and len(child) == 2 and isinstance(child[0], str)
                yield str(key), child[1] if pair and self.is_tensor(child[1]) else child


def _shape(value: Any) -> tuple[int, ...]:
    try:
        return tuple(value.shape)
    except Exception:  # a lazy tensor, which may become a kernel
        return (0, 0, 0, 0)


def _is_torch_module(value: Any) -> bool:
    return isinstance(value, Object) and isinstance(value.attributes.get("_modules"), dict)


def _is_module(value: Any) -> bool:
    return isinstance(value, Object) and (value.cls.module.startswith("__torch__") or _is_torch_module(value))


def _is_container(value: Any) -> bool:
    return isinstance(value, Object | Mapping | list | tuple) or _objects(value) is not None


def _objects(value: Any) -> list[Any] | None:
    """The elements of a stored array of Python objects, which may be arrays."""
    try:
        elements = getattr(value, "data", None)
    except Exception:  # no buffer of bfloat16 or of dates in NumPy, nor of what torch.func transforms
        return None
    return elements if isinstance(elements, list) else None


def _is_training(key: str, value: Any) -> bool:
    content = value.items if isinstance(value, Object) else value
    return _TRAINING.search(key.lower()) is not None or (
        isinstance(content, Mapping) and "state" in content and "param_groups" in content
    )


def _without_ema(key: str) -> str | None:
    """The key of the network that a moving average belongs to; None if the name is not that of an average.

    >>> _without_ema("state_dict_ema"), _without_ema("ema"), _without_ema("schema")
    ('state_dict', '', None)
    """
    words = re.split(r"[_\-.]", key.lower())
    return "_".join(word for word in words if word not in ("", "ema", "shadow")) if "ema" in words else None


def _twins(average: str, keys: Iterable[str]) -> list[str]:
    """The networks that a moving average may belong to.

    >>> _twins("g_ema", ["g", "d", "g_ema"]), _twins("ema", ["ema", "model"])
    (['g'], ['model'])
    """
    plain = _without_ema(average)
    twins = _MAIN if plain in _AVERAGED else (plain,)
    # ema-pytorch calls the network itself the online model
    return [key for key in keys if key.lower().removeprefix("online_") in twins]


def _shapes(entries: Iterable[Entry]) -> list[tuple[str, tuple[int, ...]]]:
    return [(entry.name, _shape(entry.value)) for entry in entries]


def _endings(name: str) -> Iterator[str]:
    yield name
    while "." in name:
        name = name.partition(".")[2]
        yield name


def _below(network: Network, top: str) -> list[Entry]:
    """The entries under a name, without that name."""
    return [
        Entry(entry.name.removeprefix(f"{top}."), entry.value, entry.parameter)
        for entry in network.entries
        if entry.name.startswith(f"{top}.")
    ]


def _renamed(network: Network) -> Network:
    """Remove the names of wrappers, unless two tensors would then have one name."""
    paths = [_path(entry.name) for entry in network.entries]
    leading = 0
    # At least one tensor must keep the name of a layer
    while all(len(path) > leading + 1 for path in paths) and any(len(path) > leading + 2 for path in paths):
        first, *others = {path[leading] for path in paths}
        if others or (first not in WRAPPERS and _without_ema(first) not in ("", *WRAPPERS)):
            break
        leading += 1
    names = [".".join(path[leading:]) for path in paths]
    if len(set(names)) != len(names) or not all(names):
        return network
    return Network(
        [Entry(name, entry.value, entry.parameter) for name, entry in zip(names, network.entries, strict=True)],
        {".".join(_path(name)[leading:]): module for name, module in network.modules.items()},
    )


def _path(name: str) -> list[str]:
    return [part for part in name.split(".") if part not in _TRANSPARENT]
