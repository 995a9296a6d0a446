"""Writes zarr.zip: a network as Orbax saves it, in each of its layouts, and as plain Zarr. Random weights.

pip install jax==0.10.2 orbax-checkpoint==0.12.8 zarr==3.1.6
python tests/data/make_zarr.py
"""

import tempfile
import zipfile
from pathlib import Path

import jax
import numcodecs
import numpy as np
import orbax.checkpoint
import zarr

OUT = Path(__file__).with_name("zarr.zip")
VARIANTS = {
    "ocdbt": {"use_ocdbt": True},
    "ocdbt3": {"use_ocdbt": True, "use_zarr3": True},
    "files": {"use_ocdbt": False},
    "files3": {"use_ocdbt": False, "use_zarr3": True},
}

rng = np.random.default_rng(0)
kernels = {"Conv_0": (3, 3, 3, 8), "Conv_1": (3, 5, 8, 16)}  # (h, w, in, out)
layers = {
    name: {"kernel": rng.standard_normal(shape).astype("f4"), "bias": rng.standard_normal(shape[3]).astype("f4")}
    for name, shape in kernels.items()
}
moments = {name: {"kernel": np.zeros(shape, "f4")} for name, shape in kernels.items()}
state = {"params": layers, "opt_state": {"mu": moments}, "step": np.int32(3)}

with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(OUT, "w", zipfile.ZIP_DEFLATED) as archive:
    for name, options in VARIANTS.items():
        writer = orbax.checkpoint.Checkpointer(orbax.checkpoint.PyTreeCheckpointHandler(**options))
        writer.save(f"{folder}/{name}", jax.tree.map(jax.numpy.asarray, state))
    manager = orbax.checkpoint.CheckpointManager(f"{folder}/steps")
    manager.save(7, args=orbax.checkpoint.args.StandardSave(jax.tree.map(jax.numpy.asarray, state)))
    manager.wait_until_finished()
    for version, codecs in ((2, [None, "gzip"]), (3, ["gzip", "zstd"])):
        group = zarr.open_group(f"{folder}/zarr{version}", mode="w", zarr_format=version)
        for (name, layer), codec in zip(layers.items(), codecs, strict=True):
            for part, array in layer.items():
                chunks = (2,) * array.ndim if part == "kernel" and name == "Conv_0" else array.shape
                if version == 2:
                    compressors = None if codec is None else numcodecs.GZip()
                else:
                    compressors = zarr.codecs.GzipCodec() if codec == "gzip" else zarr.codecs.ZstdCodec()
                group.create_array(f"{name}/{part}", data=array, chunks=chunks, compressors=compressors)
    # Each codec that is read, one for each part of a layer
    codecs = {
        "blosc": numcodecs.Blosc("lz4", shuffle=numcodecs.Blosc.BITSHUFFLE),
        "blosc_zstd": numcodecs.Blosc("zstd"),
        "lz4": numcodecs.LZ4(),
        "zlib": numcodecs.Zlib(),
        "bz2": numcodecs.BZ2(),
        "lzma": numcodecs.LZMA(),
    }
    for name, codec in codecs.items():
        group = zarr.open_group(f"{folder}/codecs/{name}", mode="w", zarr_format=2)
        for layer, parts in layers.items():
            filters = [numcodecs.Shuffle(4)] if name == "zlib" else None
            for part, array in parts.items():
                options = {"compressors": codec, "filters": filters, "chunks": array.shape}
                group.create_array(f"{layer}/{part}", data=array, **options)
    group = zarr.open_group(f"{folder}/codecs/blosc_3", mode="w", zarr_format=3)
    for layer, parts in layers.items():
        for part, array in parts.items():
            turn = [zarr.codecs.TransposeCodec(order=(3, 0, 2, 1))] if array.ndim == 4 else "auto"
            options = {"compressors": zarr.codecs.BloscCodec(), "filters": turn, "chunks": array.shape}
            group.create_array(f"{layer}/{part}", data=array, **options)
    np.savez(f"{folder}/net.npz", **{name: layer["kernel"].transpose(3, 2, 0, 1) for name, layer in layers.items()})
    for file in sorted(Path(folder).rglob("*")):
        if file.is_file():
            archive.write(file, file.relative_to(folder))
