"""A folder of the transformers library with a semantic-segmentation head; nothing of it is run as code.

The only module that imports transformers.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any

import safetensors
import torch
from torch import Tensor, nn

from segpipe import storage
from segpipe.errors import ModelError, NotFoundError
from segpipe.models.generators.foreign import Channels, Found
from segpipe.validation import parse_json


@dataclass(frozen=True)
class Head:
    """model_type: what goes with it in config.json. classifiers: its layers of one channel per class; the
    second, where there is one, is for training by transformers and gives no masks."""

    model_type: str
    classifiers: tuple[str, ...]


HEADS = {
    "SegformerForSemanticSegmentation": Head("segformer", ("decode_head.classifier",)),
    "UperNetForSemanticSegmentation": Head(
        "upernet", ("decode_head.classifier", "auxiliary_head.classifier")
    ),
    "BeitForSemanticSegmentation": Head("beit", ("decode_head.classifier", "auxiliary_head.classifier")),
    "MobileNetV2ForSemanticSegmentation": Head("mobilenet_v2", ("segmentation_head.classifier.convolution",)),
    "DPTForSemanticSegmentation": Head("dpt", ("head.head.4", "auxiliary_head.head.4")),
}
ONE_SIZE = ("dpt",)  # their position embeddings are of one grid
CONFIG, PROCESSOR, WEIGHTS, INDEX = (
    "config.json",
    "preprocessor_config.json",
    "model.safetensors",
    "model.safetensors.index.json",
)
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".h5", ".msgpack")
MAX_TEXT_BYTES = 4_000_000
# What transformers would fetch, import or run for a configuration.
REFUSED_KEYS = ("auto_map", "quantization_config", "custom_pipelines")
FETCHING_KEYS = ("use_timm_backbone", "use_pretrained_backbone")
ATTENTION_KEYS = ("attn_implementation", "_attn_implementation", "_attn_implementation_internal")
KNOWN_ATTENTION = (None, "eager", "sdpa")


class TransformersNetwork(nn.Module):
    """(B,3,H,W) as the folder's processor gives it -> logits (B,C,h,w)."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        return self.network(pixel_values=image).logits


def read(url: str, given: Mapping[str, Any]) -> Found:
    """What a folder at any fsspec URL says; given: what the user says of it, for which there is no room.

    Raises ModelError, StorageError.
    """
    if given:
        raise ModelError(
            f"{url} says by its {PROCESSOR} how it takes images: leave out {', '.join(sorted(given))}, which "
            "are for .onnx files"
        )
    names = _names(url)
    config = _read_json(url, CONFIG, "it is no transformers folder")
    _require_known(url, config)
    processor = _read_json(url, PROCESSOR, "save the image processor there too, with save_pretrained")
    _refuse_code(url, processor)
    files = {name: storage.read_bytes(storage.join(url, name)) for name in _weight_files(url, names)}
    files |= {name: storage.read_bytes(storage.join(url, name)) for name in (CONFIG, PROCESSOR)}
    mean, deviation = _normalisation(url, processor)
    return Found(
        files=files,
        classes=_classes(url, config),
        first_class=1 if processor.get("do_reduce_labels") or processor.get("reduce_labels") else 0,
        values="logits",
        channels=_channels(processor),
        mean=mean,
        standard_deviation=deviation,
        own_size=_own_size(config) if config["model_type"] in ONE_SIZE else None,
    )


def build(files: Mapping[str, bytes]) -> nn.Module:
    """The network, loaded by transformers from these files alone. Raises ModelError."""
    network, absent = load(files)
    require_all_weights(absent)
    return TransformersNetwork(network)


def load(files: Mapping[str, bytes]) -> tuple[nn.Module, list[str]]:
    """transformers' own network of these files, and the tensors that they lack, which are random in it.

    Raises ModelError.
    """
    transformers = _transformers()
    config = json.loads(files[CONFIG])
    _require_known("the generator", config)
    head = getattr(transformers, config["architectures"][0])
    with TemporaryDirectory() as folder:
        for name in loaded(files):
            (Path(folder) / name).write_bytes(files[name])
        try:
            network, told = head.from_pretrained(
                folder,
                local_files_only=True,
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
                dtype=torch.float32,
                attn_implementation="eager",
            )
        except (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError) as error:
            raise ModelError(_unfit(error)) from error
        except safetensors.SafetensorError as error:
            raise ModelError(_unfit(error)) from error
    return network, sorted(str(name) for name in told["missing_keys"])


def loaded(files: Mapping[str, bytes]) -> list[str]:
    """The names of what transformers is to find: it would also take up adapters and the like."""
    if INDEX in files and not set(json.loads(files[INDEX])["weight_map"].values()) <= set(files):
        raise ModelError(f"the generator's {INDEX} names files that are not there: copy them again")
    return [name for name in files if name in (CONFIG, INDEX) or name.endswith(".safetensors")]


def _transformers() -> ModuleType:
    try:
        import transformers
    except ImportError:
        raise ModelError(
            "a generator from a transformers folder needs the transformers library: "
            "pip install 'segpipe[transformers]'"
        ) from None
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    return transformers


def _unfit(error: Exception) -> str:
    said = " ".join(str(error).split())[:300]
    return f"transformers cannot load the generator ({said}): are its weights those of its config.json?"


def require_all_weights(absent: Iterable[str]) -> None:
    """Raises ModelError when tensors are absent from the files."""
    absent = list(absent)
    if absent:
        raise ModelError(
            f"the generator's weights lack {len(absent)} of its tensors ({absent[0]}), which would be "
            "random: save the trained network again, with its segmentation head"
        )


def _names(url: str) -> set[str]:
    try:
        return {found.key for found in storage.list_objects(url)}
    except NotFoundError as error:
        raise ModelError(f"no transformers folder at {url}: it is not there") from error


def _read_json(url: str, name: str, otherwise: str) -> dict[str, Any]:
    try:
        content = parse_json(storage.read(storage.join(url, name), MAX_TEXT_BYTES).data)
    except NotFoundError as error:
        raise ModelError(f"{url} holds no {name}: {otherwise}") from error
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{url}/{name} is no JSON that can be read ({error}): copy it again") from error
    if not isinstance(content, dict):
        raise ModelError(f"{url}/{name} is no JSON object: copy it again")
    return content


def _require_known(url: str, config: Mapping[str, Any]) -> None:
    _refuse_code(url, config)
    architectures = config.get("architectures")
    name = str(architectures[0]) if isinstance(architectures, list) and architectures else "nothing"
    if name not in HEADS:
        task = " (it classifies whole images)" if "ImageClassification" in name else ""
        raise ModelError(
            f"{url} is {name}{task}, not a network that segments: segpipe takes {', '.join(HEADS)}"
        )
    if config.get("model_type") != HEADS[name].model_type:
        raise ModelError(f"{url}: its config.json names {name} and model_type {config.get('model_type')!r}")
    if config.get("num_channels", 3) != 3:
        raise ModelError(f"{url} takes {config['num_channels']} channels: segpipe gives 3, RGB")


def _refuse_code(url: str, config: Mapping[str, Any]) -> None:
    """Raises ModelError for what would make transformers import, fetch or run something else."""
    for key, value in _items(config):
        if key in REFUSED_KEYS and value:
            raise ModelError(f"{url} asks for code of its own ({key}): segpipe runs none")
        if (key in FETCHING_KEYS and value) or (key == "backbone" and value is not None):
            raise ModelError(
                f"{url} has a backbone that would be downloaded ({key}): save the network whole, with its "
                "backbone_config"
            )
        if key in ATTENTION_KEYS and value not in KNOWN_ATTENTION:
            raise ModelError(f"{url} asks for an attention of its own ({key} {value!r}): remove the entry")


def _items(config: Any) -> Iterator[tuple[str, Any]]:
    """Every key with its value, at any depth."""
    waiting = [config]
    while waiting:
        node = waiting.pop()
        if isinstance(node, Mapping):
            yield from node.items()
            waiting += node.values()
        elif isinstance(node, list):
            waiting += node


def _weight_files(url: str, names: set[str]) -> list[str]:
    if WEIGHTS in names:
        return [WEIGHTS]
    if INDEX in names:
        weight_map = _read_json(url, INDEX, "copy it again").get("weight_map")
        if not isinstance(weight_map, dict):
            raise ModelError(f"{url}/{INDEX} has no weight_map: copy it again")
        shards = weight_map.values()
        return [INDEX, *sorted({Path(str(shard)).name for shard in shards})]
    pickled = sorted(name for name in names if name.endswith(PICKLED))
    if pickled:
        raise ModelError(
            f"{url} holds {pickled[0]} and no {WEIGHTS}: such files can run code as they are loaded; where "
            "you trust it, load it and save it again with save_pretrained, which writes safetensors"
        )
    raise ModelError(f"{url} holds no {WEIGHTS}: save the network there with save_pretrained")


def _classes(url: str, config: Mapping[str, Any]) -> tuple[str, ...] | None:
    """The names of the outputs; None where transformers made them up."""
    names = config.get("id2label")
    if not isinstance(names, Mapping):
        return ("LABEL_0", "LABEL_1")  # transformers' own default
    if sorted(names) != sorted(str(index) for index in range(len(names))):
        raise ModelError(f"{url}/config.json: id2label is not 0 to {len(names) - 1}: correct it")
    return tuple(str(names[str(index)]) for index in range(len(names)))


def _normalisation(
    url: str, processor: Mapping[str, Any]
) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Mean and deviation of values of 0 to 1."""
    if processor.get("do_center_crop") or processor.get("do_crop"):
        raise ModelError(
            f"{url}/{PROCESSOR} crops images (do_center_crop), so its masks would not cover them: set it to "
            "false if the network can do without"
        )
    if not processor.get("do_normalize", True):
        processor = {**processor, "image_mean": [0.0] * 3, "image_std": [1.0] * 3}
    factor = processor.get("rescale_factor", 1 / 255) if processor.get("do_rescale", True) else 1.0
    mean, deviation = (processor.get(name) for name in ("image_mean", "image_std"))
    if not (_are_numbers(mean) and _are_numbers(deviation) and _are_numbers([factor] * 3)):
        raise ModelError(
            f"{url}/{PROCESSOR} has no three numbers each as image_mean and image_std: correct it"
        )
    return _scaled(mean, 255 * factor), _scaled(deviation, 255 * factor)


def _are_numbers(values: Any) -> bool:
    return isinstance(values, list) and len(values) == 3 and all(type(one) in (int, float) for one in values)


def _scaled(values: Any, by: float) -> tuple[float, float, float]:
    first, second, third = (float(value) / by for value in values)
    return first, second, third


def _channels(processor: Mapping[str, Any]) -> Channels:
    return "bgr" if processor.get("do_flip_channel_order") else "rgb"


def _own_size(config: Mapping[str, Any]) -> tuple[int, int]:
    size = config.get("image_size", 384)
    height, width = size if isinstance(size, list | tuple) else (size, size)
    return int(height), int(width)
