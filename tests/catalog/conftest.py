"""A small catalog that keeps the schema, to be broken by tests."""

from __future__ import annotations

import pytest

FILES = {
    "domains.csv": """name,origin,paper_models,description
natural,cvpr2022,557,photographs
medical ct,cvpr2022,4,computed tomography
games,extended,,boards
""",
    "tasks.csv": """name,origin,paper_models,description
Classification,cvpr2022,555,a class for the image
Tracking,extended,,the same object in the next image
""",
    "licenses.csv": """name,permissive,redistribution,conditions,hub,url,title
MIT,yes,yes,attribution,mit,,MIT License
GPL-3.0-only,no,yes,attribution; share-alike; source,gpl-3.0,,GNU General Public License v3.0 only
LicenseRef-House,no,no,research-only,,https://example.org/house,House rules
LicenseRef-Lost,no,unknown,,,,Lost
""",
    "datasets.csv": """name,domain,origin,title,url,license
Boards,games,extended,Photographs of boards,https://example.org/boards,MIT
Tiles,games,extended,Photographs of tiles,,
""",
    "sources.csv": """name,title,optional
here,files of this test,beside; mirror
""",
    "here.csv": f"""name,archive,archive_bytes,archive_sha256,format,status,architecture,family,task,domain,\
training_dataset,pretraining_dataset,license,paper,metrics,conv_layers,conv3x3_layers,conv3x3_filters,note
chess/one,one.whl,10,{"0a" * 32},onnx,trained,ResNet-18,ResNet,Classification,games,Boards; Tiles,Tiles,MIT,\
arXiv:1512.03385,top1=93.5; top5=99,20,16,300,"checked, twice"
chess/two,two.whl,11,{"0b" * 32},torch,unjudged,,,,,,,MIT AND GPL-3.0-only,,,,,,
lung/three,two.whl,11,{"0c" * 32},keras,weakly trained,U-Net,U-Net,Tracking,\
medical ct,,,GPL-3.0-only,doi:10.1000/182,,1,1,9,
""",
    "collections.toml": """[small]
title = "Two of them"
models = ["here/lung/three", "here/chess/t*", "here/*/three"]

[all]
title = "All of them"
models = ["here/*"]
""",
}


@pytest.fixture
def folder(tmp_path):
    """Folder of a valid catalog of three models."""
    for name, text in FILES.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    return tmp_path
