"""The train flow on a real Prefect server: a model, a promise, a page, and going on after a stop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from foreign_networks import image_processor, segformer, write_coloured_set, write_onnx
from prefect import State
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId

from flows import train as train_module
from flows.train import train
from segpipe import load_model, storage
from segpipe.config import CalibrateSettings, TrainSettings
from segpipe.errors import StorageError

pytestmark = pytest.mark.usefixtures("prefect_server")


@pytest.fixture(autouse=True)
def retry_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        train_module, "train_networks", train_module.train_networks.with_options(retry_delay_seconds=0)
    )


def settings(streets: str, model: Path, **changes: Any) -> TrainSettings:
    return TrainSettings(data=streets, model=str(model), epochs=2, batch_size=4, device="cpu", **changes)


def page(state: State) -> str:
    wanted = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[state.state_details.flow_run_id]))
    with get_client(sync_client=True) as client:
        artifacts = client.read_artifacts(artifact_filter=wanted)
    # Prefect's client sends once more what a busy server stored and did not answer in time.
    (data,) = {str(artifact.data) for artifact in artifacts}
    return data


def test_a_model_is_trained_and_its_threshold_certified(streets: str, tmp_path: Path) -> None:
    model = tmp_path / "model"
    promise = CalibrateSettings(
        model=str(model), data=streets, split="calibration", min_iou=0.1, max_bad_fraction=0.5
    )
    state = train(settings(streets, model), promise, return_state=True)

    assert state.is_completed()
    assert {"model.json", "policy.json"} <= {path.name for path in model.iterdir()}
    text = page(state)
    assert text.startswith(f"# Mean IoU {state.result()['mean_iou']:.3f} on the validation split")
    assert state.result()["model_id"] in text
    assert "IoU below 0.10" in text


def test_a_retry_goes_on_from_the_checkpoint(
    streets: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put, checkpoints = storage.put, []

    def fail_after_the_first_checkpoint(uri: str, data: bytes) -> None:
        put(uri, data)
        if uri.endswith("checkpoint.safetensors"):
            checkpoints.append(uri)
            if len(checkpoints) == 1:
                raise StorageError("the bucket was busy: try again")

    monkeypatch.setattr(storage, "put", fail_after_the_first_checkpoint)
    state = train(settings(streets, tmp_path / "model"), return_state=True)
    assert state.is_completed(), state.message
    assert state.result()["epochs"] == 2
    assert "Promise**: none" in page(state)


def test_a_network_of_others_is_adopted_by_the_same_flow(tmp_path: Path) -> None:
    data = str(write_coloured_set(tmp_path / "discs"))
    (tmp_path / "map.json").write_text('{"classes": {"0": "ground", "1": "disc"}}')
    network = {"path": str(write_onnx(tmp_path / "net.onnx")), "class_map": str(tmp_path / "map.json")}
    others = {"data": data, "split": "val", "output": "logits", "epochs": 1, "device": "cpu"}
    model = str(tmp_path / "model")
    promise = CalibrateSettings(
        model=model, data=data, split="calibration", min_iou=0.1, max_bad_fraction=0.5
    )
    state = train({**network, **others, "model": model}, promise, return_state=True)  # as a form sends it
    assert state.is_completed(), state.message
    assert state.result()["images"] == 12
    assert "the judge has learnt on 12 images" in page(state)
    assert f"id `{load_model(model, 'cpu').model_id}`" in page(state)


def test_a_network_of_others_is_trained_on_by_the_same_flow(streets: str, tmp_path: Path) -> None:
    segformer().save_pretrained(tmp_path / "network")
    image_processor().save_pretrained(tmp_path / "network")
    sent = settings(streets, tmp_path / "model", generator=str(tmp_path / "network")).model_dump(mode="json")
    state = train(sent | {"epochs": 1}, return_state=True)  # as a form sends it, with every default
    assert state.is_completed(), state.message
    assert load_model(str(tmp_path / "model"), "cpu").bundle.spec.architecture == "transformers"
    assert "on the validation split" in page(state)


def test_a_finished_model_fails_the_run_at_once_with_one_line(streets: str, trained_model: str) -> None:
    state = train(settings(streets, Path(trained_model)), return_state=True)
    assert state.is_failed()
    assert state.message.endswith("holds a finished model: train into another folder")


def test_a_promise_for_another_model_is_refused_before_training(streets: str, tmp_path: Path) -> None:
    other = CalibrateSettings(
        model=str(tmp_path / "other"), data=streets, split="calibration", max_mean_loss=0.5
    )
    state = train(settings(streets, tmp_path / "model"), other, return_state=True)
    assert state.is_failed()
    assert "calibration names model" in state.message
    assert not (tmp_path / "model").exists()
