"""Writes a selection of filters to one file, for tools that do not use this package.

=========== ===========================================================================================format      content of the file
=========== ===========================================================================================
Filters are read a few row groups at a time and written immediately, so memory does not grow with their number.
"""

from __future__ import annotations

import io
import os
import re
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from gzip import GzipFile
from importlib.util import find_spec
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import h5py
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from cnnfilterdb.errors import CorruptError, DatabaseError, MissingExtraError, SelectionError
from cnnfilterdb.exchange.papers_hdf5 import frame_image, released_frame
from cnnfilterdb.reports import Exported, Progress
from cnnfilterdb.scan.ordered import filters_of
from cnnfilterdb.schema import LAYERS, MODELS, filter_schema, kernel_shape, weight_columns
from cnnfilterdb.sql import literal
from cnnfilterdb.store.durable import replacing
from cnnfilterdb.store.writer import filter_settings, row_group_rows
from cnnfilterdb.version import package_version

if TYPE_CHECKING:
    from cnnfilterdb.reader import Reader

__all__ = ["FACTS", "FORMATS", "export"]

#: Formats of a file, and the file name extensions that select them.
FORMATS = {
    "parquet": (".parquet",),
    "arrow": (".arrow", ".feather"),
    "csv": (".csv", ".csv.gz"),
    "npz": (".npz",),
    "h5": (".h5", ".hdf5"),
}

_KEYS = ("model_id", "layer", "out_channel", "in_channel")

#: The columns beside the keys and the weights of each filter: facts about its model and its layer, by the names that
#: ``where`` and ``by`` use.
FACTS = (
    "domain", "task", "architecture", "family", "training_dataset", "pretraining_dataset", "license", "layer_name",
    "kind", "in_channels", "out_channels", "groups", "conv_depth", "conv_depth_norm", "dead", "bn_folded",
)  # fmt: skip


