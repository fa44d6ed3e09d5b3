"""Networks of others, made on the spot: .onnx files that tell red from blue, a SegFormer that learns to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from labelled_sets import png, write_set
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from segpipe.datasets import list_samples, open_dataset, read_sample

RED, BLUE = (200, 60, 60), (60, 60, 200)
SIZE = (64, 96)
SPLITS = {"train": 6, "val": 12, "calibration": 12}


def coloured(pixels: np.ndarray) -> bytes:
    """The disc blue, the ground red, with a little of the noise."""
    bright = pixels.mean(axis=2, keepdims=True) > 125
    picture = np.where(bright, BLUE, RED) + (pixels.astype(int) % 7)
    return png(picture.astype(np.uint8))


def write_coloured_set(root: Path, classes: tuple[str, ...] = ("ground", "disc")) -> Path:
    """A labelled set of red ground with a blue disc."""
    return write_set(root, SPLITS, image=coloured, size=SIZE, classes=classes)


def write_onnx(
    path: Path,
    *,
    channels: int = 3,
    batch: int | str = "B",
    size: tuple[int | str, int | str] = ("H", "W"),
    gain: float = 40.0,
    bias: float = 0.0,
    kind: int = TensorProto.FLOAT,
    softmax: bool = False,
    outputs: int = 1,
    inputs: int = 1,
    domain: str = "",
    external: bool = False,
) -> Path:
    """Logits of red and blue: 0 and gain * (third channel - first channel) + bias."""
    weight = np.zeros((2, channels, 1, 1), np.float32)
    weight[1, 0], weight[1, 2] = -gain, gain
    image = [batch, channels, *size]
    nodes = [helper.make_node("Cast", ["image"], ["pixels"], to=TensorProto.FLOAT)]
    nodes.append(helper.make_node("Conv", ["pixels", "weight", "bias"], ["logits"]))
    nodes.append(
        helper.make_node(
            "Softmax" if softmax else "Identity", ["logits"], ["made"], **({"axis": 1} if softmax else {})
        )
    )
    nodes.append(helper.make_node("Identity", ["made"], ["output"], domain=domain))
    graph = helper.make_graph(
        [*nodes, *(helper.make_node("Identity", ["made"], [f"output{n}"]) for n in range(1, outputs))],
        "colours",
        [helper.make_tensor_value_info("image", kind, image)]
        + [helper.make_tensor_value_info(f"image{n}", kind, image) for n in range(1, inputs)],
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, 2, *size])
            for name in ("output", *(f"output{n}" for n in range(1, outputs)))
        ],
        [
            numpy_helper.from_array(weight, "weight"),
            numpy_helper.from_array(np.array([0, bias], np.float32), "bias"),
        ],
    )
    opsets = [helper.make_opsetid("", 17), *([helper.make_opsetid(domain, 1)] if domain else [])]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    if external:
        onnx.save(model, path, save_as_external_data=True, location="weights", size_threshold=0)
    else:
        onnx.save(model, path)
    return path


def segformer(**changes: Any) -> nn.Module:
    """An untrained SegFormer of two classes, disc and ground in this order."""
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

    names = {0: "disc", 1: "ground"}
    values = {
        "depths": [1, 1, 1, 1],
        "hidden_sizes": [16, 16, 16, 16],
        "num_attention_heads": [1, 1, 1, 1],
        "decoder_hidden_size": 16,
        "id2label": names,
        "label2id": {name: index for index, name in names.items()},
    }
    return SegformerForSemanticSegmentation(SegformerConfig(**(values | changes)))


def heads() -> dict[str, tuple[Any, int, bool]]:
    """Each head as small as it goes, its output stride, and whether it takes one size only."""
    import transformers as t

    transformer = {
        "hidden_size": 16,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "intermediate_size": 16,
    }
    backbone = t.ConvNextConfig(
        depths=[1] * 4, hidden_sizes=[8] * 4, out_features=[f"stage{stage}" for stage in (1, 2, 3, 4)]
    )
    swin = t.SwinConfig(
        embed_dim=8, depths=[1] * 4, num_heads=[1] * 4, out_features=[f"stage{n}" for n in (1, 2, 3, 4)]
    )
    upernet = {"hidden_size": 8, "auxiliary_channels": 8, "auxiliary_in_channels": 8}
    return {
        "upernet": (
            t.UperNetForSemanticSegmentation(t.UperNetConfig(backbone_config=backbone, **upernet)),
            1,
            False,
        ),
        "upernet-swin": (
            t.UperNetForSemanticSegmentation(
                t.UperNetConfig(backbone_config=swin, **(upernet | {"auxiliary_in_channels": 32}))
            ),
            1,
            False,
        ),
        "mobilenet": (
            t.MobileNetV2ForSemanticSegmentation(t.MobileNetV2Config(depth_multiplier=0.35, output_stride=8)),
            8,
            False,
        ),
        "beit": (
            t.BeitForSemanticSegmentation(
                t.BeitConfig(image_size=64, out_indices=[1, 2, 3, 4], **transformer)
            ),
            4,
            False,
        ),
        "dpt": (
            t.DPTForSemanticSegmentation(
                t.DPTConfig(
                    image_size=64,
                    backbone_out_indices=[0, 1, 2, 3],
                    neck_hidden_sizes=[8] * 4,
                    fusion_hidden_size=8,
                    is_hybrid=False,
                    **transformer,
                )
            ),
            1,
            True,
        ),
    }


def image_processor(**changes: Any) -> Any:
    """As the folder has it, on Pillow."""
    from transformers.models.segformer.image_processing_pil_segformer import SegformerImageProcessorPil

    return SegformerImageProcessorPil(do_reduce_labels=False, **changes)


def write_taught_segformer(folder: Path, data: str) -> Path:
    """A folder of a SegFormer taught by transformers' own loss, on split train of a data set."""
    dataset = open_dataset(data)
    pairs = [read_sample(dataset, sample) for sample in list_samples(dataset, "train")]
    images, masks = (np.stack(arrays) for arrays in zip(*pairs, strict=True))
    torch.manual_seed(0)
    network, processor = segformer(), image_processor(do_resize=False)
    given = processor(list(images), return_tensors="pt")["pixel_values"]
    labels = 1 - torch.from_numpy(masks).long()
    optimizer = torch.optim.AdamW(network.parameters(), lr=5e-3)
    network.train()
    for _ in range(25):
        loss = network(pixel_values=given, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    network.eval().save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
