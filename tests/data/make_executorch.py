"""Writes executorch.zip with ExecuTorch itself: pip install executorch==1.5.1 torch==2.13.0, then run this file.

One network of random weights with every kind of convolution and a batch normalisation: on the portable kernels, with
weights in a file of their own, quantised, in the order of memory that ends with channels, and for XNNPACK, quantised
too. Beside the weights as ``net.npz``, those that the partitioner for XNNPACK and the quantiser made of them.
"""

import io
import json
import math
import tempfile
import zipfile
from pathlib import Path

import executorch.kernels.quantized  # noqa: F401 - registers operations
import numpy as np
import torch
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import XNNPACKQuantizer, get_symmetric_quantization_config
from executorch.exir import ExecutorchBackendConfig, to_edge, to_edge_transform_and_lower
from executorch.exir._serialize._program import deserialize_pte_binary
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = torch.nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False)
        self.norm = torch.nn.BatchNorm2d(8)
        self.dw = torch.nn.Conv2d(8, 16, (3, 5), groups=8, dilation=(1, 2), padding=(1, 4), bias=False)
        self.grouped = torch.nn.Conv2d(16, 12, 3, groups=2, padding=1)
        self.side = torch.nn.Conv2d(16, 12, 1)
        self.up = torch.nn.ConvTranspose2d(24, 6, 2, stride=2, groups=2)
        self.head = torch.nn.Conv2d(6, 4, 5, padding=2)
        self.fc = torch.nn.Linear(4, 2)

    def forward(self, x):
        x = self.dw(torch.relu(self.norm(self.stem(x))))
        x = torch.cat([self.grouped(x), self.side(x)], 1)
        return self.fc(self.head(self.up(x)).mean((2, 3)))


torch.manual_seed(0)
net = Net().eval()
with torch.no_grad():
    for values in (net.norm.weight, net.norm.running_mean):
        values.normal_()
    net.norm.running_var.uniform_(0.5, 2)
example = (torch.randn(1, 3, 16, 16),)
program = torch.export.export(net, example, strict=True)


def quantised():
    quantizer = XNNPACKQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=True))
    prepared = prepare_pt2e(torch.export.export(net, example, strict=True).module(), quantizer)
    prepared(*example)
    return torch.export.export(convert_pt2e(prepared), example, strict=True)


def dequantised(exported):
    """The weights of a quantised program by their shapes, as its own operations compute them."""
    sources = exported.graph_signature.inputs_to_parameters | exported.graph_signature.inputs_to_buffers
    found = {}
    for node in exported.graph.nodes:
        if "dequantize_per_channel" in str(node.target):
            arguments = [
                exported.state_dict[sources[one.name]] if one in node.all_input_nodes else one for one in node.args
            ]
            found["x".join(map(str, arguments[0].shape))] = node.target(*arguments).numpy()
    return found


stored = quantised()
weights = {name: value.detach().numpy() for name, value in net.state_dict().items()}
fused = torch.nn.utils.fusion.fuse_conv_bn_eval(net.stem, net.norm)
weights["fused"] = fused.weight.detach().numpy()
weights |= {f"int8/{name}": value for name, value in dequantised(stored).items() if value.ndim == 4}


def counted(path):
    """The constant tensors of a program on the portable kernels, and their numbers, as ExecuTorch reads it."""
    sizes = {}
    for plan in deserialize_pte_binary(path.read_bytes()).program.execution_plan:
        for value in (one.val for one in plan.values if type(one.val).__name__ == "Tensor"):
            extra = value.extra_tensor_info
            if value.data_buffer_idx and value.allocation_info is None:
                sizes[value.data_buffer_idx] = math.prod(value.sizes)
            elif extra is not None and extra.location.name == "EXTERNAL":
                sizes[extra.fully_qualified_name] = math.prod(value.sizes)
    return len(sizes), sum(sizes.values())


with tempfile.TemporaryDirectory() as name:
    folder = Path(name)

    def save(file, manager, **options):
        (folder / file).parent.mkdir(exist_ok=True)
        made = manager.to_executorch(ExecutorchBackendConfig(**options))
        made.save(str(folder / file))
        return made

    save("portable.pte", to_edge(program))
    stem = torch.export.export(torch.nn.Sequential(net.stem), example, strict=True)
    save("methods.pte", to_edge({"forward": program, "encode": stem}))
    save("segments.pte", to_edge(program), segment_alignment=64)
    save("apart/net.pte", to_edge(program), external_constants=True).write_tensor_data_to_file(str(folder / "apart"))
    save("int8.pte", to_edge(stored))
    save("xnnpack.pte", to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()]))
    save("xnnpack_int8.pte", to_edge_transform_and_lower(stored, partitioner=[XnnpackPartitioner()]))
    truth = io.BytesIO()
    np.savez(truth, **weights)
    with zipfile.ZipFile(Path(__file__).with_name("executorch.zip"), "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.rglob("*.pt[de]")):
            archive.write(file, file.relative_to(folder))
        archive.writestr("net.npz", truth.getvalue())
        portable = ("portable.pte", "methods.pte", "segments.pte", "int8.pte", "apart/net.pte")
        archive.writestr("counts.json", json.dumps({file: counted(folder / file) for file in portable}))
