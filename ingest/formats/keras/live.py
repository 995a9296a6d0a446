"""Keras models in memory, of Keras 3 with any backend, of Keras 2 and of ``tf.keras``.

Keras is never imported: a model has its configuration and its layers, and a layer has its weights. What they mean is
then decided as for a file of Keras. Only a model in memory has the layers inside a layer of a user's class, and those
of a model with its own code.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from cnnfilterdb.core.errors import SelectionError
from cnnfilterdb.ingest.formats.keras.config import LayerNode, conv_class, leaves, parse
from cnnfilterdb.ingest.formats.keras.file import Stored, Variable
from cnnfilterdb.ingest.formats.keras.model import layers_of
from cnnfilterdb.ingest.network.layers import Weights
from cnnfilterdb.ingest.network.live import KERAS, named_tensor

__all__ = ["weights_from_keras"]

# Layers inside layers are looked for to this depth
_MAX_DEPTH = 50


def weights_from_keras(model: Any, method: str) -> Weights:
    """Read a model or a layer of Keras in memory.

    Args:
        model: A ``keras.Model`` or ``keras.Layer``. Its weights are read when a layer is, so they must not change
            before that.
        method: Name of the method for error messages.

    Returns:
        Layers in order of execution, with depths, if the model was built of layers (functional or sequential); else in
        the order in which it lists them.

    Raises:
        SelectionError: It has no weights because it has not been built.
    """
    if not model.weights:
        raise SelectionError(
            f"{method}: a {type(model).__name__} of Keras without weights was given; call it, or model.build(shape), "
            "before that"
        )
    config = _config(model)
    tree = parse(config)
    known = {} if tree is None else {leaf.full_name: leaf for leaf in leaves(tree)}
    walk = _Walk(known)
    stored = Stored(
        variables=tuple(walk.variables(model)),
        numbered=False,
        config=config if tree is not None else None,
        version=_text(config, "keras_version"),
        backend=_text(config, "backend"),
        parts=tuple(walk.parts),
    )
    layers, skipped, parameters, contents = layers_of(stored)
    version = stored.version or _version(model)
    producer = f"keras {version}" if version else None
    return Weights("module", "keras", layers, parameters, skipped, producer, contents=contents)


def _config(model: Any) -> Any:
    """The configuration of a model; None if it has none, as one with its own code."""
    try:
        return json.loads(model.to_json())
    except Exception:  # a layer, or a model that does not support it, each in another way
        return None


def _version(model: Any) -> str | None:
    """The version of the package that a model is of; Keras 3 does not state it in a configuration."""
    packages = (cls.__module__.partition(".")[0] for cls in type(model).__mro__)
    package = next((one for one in packages if one in ("keras", "tf_keras")), "")
    return getattr(sys.modules.get(package), "__version__", None)


def _text(config: Any, key: str) -> str | None:
    value = config.get(key) if isinstance(config, Mapping) else None
    return value if isinstance(value, str) else None


def _settings(layer: Any) -> Mapping[str, Any]:
    """The configuration of a layer; empty if it has none."""
    try:
        return dict(layer.get_config())
    except Exception:  # a user's class without get_config
        return {}


def _is_whole(layer: Any, node: LayerNode | None) -> bool:
    """Whether a layer is one of Keras, so that its configuration or its class says what its weights are."""
    if node is not None and (node.wrapper is not None or conv_class(node.class_name)):
        return True
    return (
        type(layer).__module__.partition(".")[0] in KERAS
        and not hasattr(layer, "layers")
        and (node is not None or not hasattr(layer, "layer"))
    )


@dataclass(slots=True)
class _Walk:
    """Finds the weights of a model.

    Attributes:
        known: The layers of the configuration, by their full names.
        parts: Layers that it does not have.
        seen: Weights that were found.
    """

    known: Mapping[str, LayerNode]
    parts: list[LayerNode] = field(default_factory=list)
    seen: set[int] = field(default_factory=set)

    def variables(self, layer: Any, group: tuple[str, ...] = ()) -> Iterator[Variable]:
        """The weights of a layer, those of the layers in it first."""
        full_name = "/".join(group)
        node = self.known.get(full_name)
        if len(group) < _MAX_DEPTH and not (group and _is_whole(layer, node)):
            names: dict[str, int] = {}
            for one in layer._flatten_layers(recursive=False, include_self=False):
                names[one.name] = names.get(one.name, -1) + 1
                name = f"{one.name}_{names[one.name]}" if names[one.name] else one.name
                if one is not layer:
                    yield from self.variables(one, (*group, name))
        own = [weight for weight in layer.weights if id(weight) not in self.seen]
        group = group or (layer.name,)
        if own and node is None:
            self.parts.append(LayerNode(group[-1], "/".join(group), type(layer).__name__, _settings(layer), ()))
        for weight in own:
            self.seen.add(id(weight))
            # Keras 2 calls it conv/kernel:0; in Keras 3 that is the path, and the name is kernel
            role = str(getattr(weight, "path", weight.name)).rpartition("/")[2].partition(":")[0]
            tensor = replace(named_tensor("/".join((*group, role)), weight, None), parts=(f"{len(self.seen)}",))
            yield Variable(group, None, role, tensor)
