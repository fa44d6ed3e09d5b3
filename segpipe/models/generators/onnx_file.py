"""A network in an .onnx file, run by onnxruntime. The only module that imports onnx and onnxruntime."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor, nn

from segpipe import storage
from segpipe.errors import ModelError, NotFoundError
from segpipe.models.generators.foreign import Channels, Found, Values
from segpipe.models.spec_fields import ClassName
from segpipe.validation import first_problem, parse_json

FILE = "model.onnx"
MAX_BYTES = 2_000_000_000  # as much as one protocol buffer can hold
MAX_TEXT_BYTES = 4_000_000
# Those that onnxruntime itself brings.
KNOWN_DOMAINS = ("", "ai.onnx", "ai.onnx.ml", "ai.onnx.training", "com.microsoft")
RANGES = {"0..1": (0.0, 1.0), "0..255": (0.0, 255.0), "-1..1": (-1.0, 1.0)}
Three = tuple[float, float, float]


class Description(BaseModel):
    """What an .onnx file does not say of itself: NAME.onnx.json beside it, or options.

    mean and deviation: of values in the range, in the order of the network's channels. classes: names of the
    outputs.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    channel_order: Channels = "rgb"
    mean: Three = (0.0, 0.0, 0.0)
    deviation: Three = (1.0, 1.0, 1.0)
    range: str = "0..1"
    output: Values | None = None
    classes: tuple[ClassName, ...] | None = None


class OnnxNetwork(nn.Module):
    """(B,3,H,W) -> outputs (B,C,h,w); one image at a time where the file takes no more."""

    def __init__(self, session: Any) -> None:
        super().__init__()
        self.session = session
        image = session.get_inputs()[0]
        self.name = image.name
        self.most = image.shape[0] if isinstance(image.shape[0], int) else None

    def forward(self, image: Tensor) -> Tensor:
        pixels = np.ascontiguousarray(image.detach().cpu().numpy(), np.float32)
        parts = np.split(pixels, len(pixels)) if self.most == 1 else [pixels]
        outputs = [self.session.run(None, {self.name: part})[0] for part in parts]
        return torch.from_numpy(np.concatenate(outputs)).to(image.device)


def read(url: str, given: Mapping[str, Any]) -> Found:
    """What a file at any URL says; given: what the user says of it, which goes before what lies beside it.

    Raises ModelError, StorageError.
    """
    try:
        content = storage.read(url, MAX_BYTES).data
    except NotFoundError as error:
        raise ModelError(f"no .onnx file at {url}: it is not there") from error
    session = _session(content, url)
    described = _description(url, given)
    if described.output is None:
        raise ModelError(
            f"{url} does not say what it gives: add --output logits or --output probabilities, or "
            f'"output" in {url}.json'
        )
    low, high = RANGES[described.range]
    mean, deviation = (
        [(value - shift) / (high - low) for value in values]
        for values, shift in ((described.mean, low), (described.deviation, 0.0))
    )
    return Found(
        files={FILE: content},
        classes=described.classes,
        first_class=0,
        values=described.output,
        channels=described.channel_order,
        mean=(mean[0], mean[1], mean[2]),
        standard_deviation=(deviation[0], deviation[1], deviation[2]),
        own_size=_own_size(session, url),
    )


def build(files: Mapping[str, bytes]) -> nn.Module:
    """The network in a session of onnxruntime. Raises ModelError."""
    return OnnxNetwork(_session(files[FILE], "the generator"))


def _modules() -> tuple[Any, Any]:
    try:
        import onnx
        import onnxruntime
    except ImportError:
        raise ModelError(
            "a generator from an .onnx file needs onnxruntime and onnx: pip install 'segpipe[onnx]'"
        ) from None
    return onnx, onnxruntime


def _session(content: bytes, url: str) -> Any:
    onnx, onnxruntime = _modules()
    _require_closed(onnx, content, url)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # labelling computes a batch on each core
    options.log_severity_level = 4
    wanted = ("CUDAExecutionProvider", "CPUExecutionProvider")
    providers = [name for name in wanted if name in onnxruntime.get_available_providers()]
    try:
        session = onnxruntime.InferenceSession(content, options, providers)
    except Exception as error:  # onnxruntime's errors have no common base of their own
        said = " ".join(str(error).split())[:300]
        raise ModelError(f"onnxruntime cannot load {url} ({said}): export it anew") from error
    _require_image_to_map(session, url)
    return session


def _require_closed(onnx: Any, content: bytes, url: str) -> None:
    """Raises ModelError for a file that needs others, or operators that onnxruntime does not bring."""
    try:
        model = onnx.load_model_from_string(content)
    except Exception as error:  # of protobuf, which is onnx's business
        raise ModelError(f"{url} is no .onnx file that can be read: export it anew") from error
    if any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in _tensors(onnx, model)):
        raise ModelError(f"{url} keeps weights in other files: export it with external_data=False")
    own = {function.domain for function in model.functions}
    foreign = sorted({entry.domain for entry in model.opset_import} - set(KNOWN_DOMAINS) - own)
    if foreign:
        raise ModelError(
            f"{url} needs operators of {foreign[0]}, which onnxruntime does not bring: export it anew"
        )


def _tensors(onnx: Any, message: Any) -> Iterator[Any]:
    """Every tensor in a model, wherever it is."""
    if isinstance(message, onnx.TensorProto):
        yield message
        return
    for field, value in message.ListFields():
        if field.message_type is not None:
            for one in [value] if hasattr(value, "ListFields") else value:
                yield from _tensors(onnx, one)


def _require_image_to_map(session: Any, url: str) -> None:
    inputs, outputs = session.get_inputs(), session.get_outputs()
    for found, what in ((inputs, "inputs"), (outputs, "outputs")):
        if len(found) != 1:
            named = ", ".join(one.name for one in found)
            raise ModelError(f"{url} has {len(found)} {what} ({named}): export it with one")
    image, outcome = inputs[0], outputs[0]
    if image.type != "tensor(float)" or len(image.shape) != 4 or image.shape[1] not in (3, None):
        raise ModelError(
            f"{url} takes {image.type} of shape {_shape(image)}: segpipe gives float32 images (B, 3, H, W)"
        )
    if isinstance(image.shape[0], int) and image.shape[0] != 1:
        raise ModelError(f"{url} takes {image.shape[0]} images at once, always: export it with a free batch")
    if len(outcome.shape) not in (0, 4):
        raise ModelError(f"{url} gives shape {_shape(outcome)}, not one map per class (B, C, h, w)")


def _shape(entry: Any) -> str:
    return "(" + ", ".join(str(side) for side in entry.shape) + ")"


def _own_size(session: Any, url: str) -> tuple[int, int] | None:
    height, width = session.get_inputs()[0].shape[2:]
    fixed = [isinstance(side, int) for side in (height, width)]
    if any(fixed) and not all(fixed):
        raise ModelError(f"{url} fixes one side of its images: export it with both free, or both fixed")
    return (height, width) if all(fixed) else None


def _description(url: str, given: Mapping[str, Any]) -> Description:
    beside = f"{url}.json"
    try:
        told = parse_json(storage.read(beside, MAX_TEXT_BYTES).data)
    except NotFoundError:
        told = {}
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{beside} is no JSON that can be read ({error}): correct it") from error
    try:
        described = Description(**({**told, **given}))
    except ValidationError as error:
        raise ModelError(f"{beside}: {first_problem(error)}") from error
    except TypeError as error:
        raise ModelError(f"{beside}: it is no JSON object: correct it") from error
    if described.range not in RANGES or min(described.deviation) <= 0:
        raise ModelError(f"{beside}: range is one of {', '.join(RANGES)}, and each deviation above 0")
    return described
