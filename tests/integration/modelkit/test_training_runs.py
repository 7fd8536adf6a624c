"""What a training does by its plan, on a model of a few thousand random weights."""

import base64
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FluxPipeline, FluxTransformer2DModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from modelkit.adapters import inspect
from modelkit.card import read_card
from modelkit.device import Device
from modelkit.errors import ModelErrorKind
from modelkit.requests import AdapterFile
from modelkit.residency import Models
from modelkit.training import network as networks
from modelkit.training.adapterfile import tensor_hash
from modelkit.training.dataset import Dataset, Example
from modelkit.training.errors import TrainingFailed, TrainingStopped
from modelkit.training.network import TrainedNetwork
from modelkit.training.plan import TrainingPlan
from modelkit.training.trainer import train
from modelkit.training.watching import Stop
from tests.integration.modelkit.test_flux import NATIVE, make, request
from tests.integration.modelkit.trainings import Heard, draw_dataset, equal, run


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return draw_dataset(tmp_path_factory.mktemp("pictures"))


@pytest.fixture
def plan(tiny: Path) -> TrainingPlan:
    return TrainingPlan(
        str(tiny), "zorblax", rank=4, steps=3, learning_rate=1e-2, sample_steps=1, validate_every=3, caption_dropout=0
    )


@pytest.fixture(scope="module")
def guided(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = shutil.copytree(tiny, tmp_path_factory.mktemp("guided") / "model")
    torch.manual_seed(3)
    config = json.loads((tiny / "transformer" / "config.json").read_text())
    names = {name: value for name, value in config.items() if not name.startswith("_")}
    FluxTransformer2DModel(**{**names, "guidance_embeds": True}).save_pretrained(folder / "transformer")
    return folder


def draw(models: Models, *adapters: AdapterFile) -> Any:
    return make(models, replace(NATIVE, steps=2, adapters=adapters), [request("a zorblax", 3)])[0]


def test_the_adapter_draws_in_serving_and_carries_what_other_tools_read(
    plan: TrainingPlan, dataset: Dataset, models: Models, tmp_path: Path
) -> None:
    plan = replace(plan, sample_prompts=("a [trigger]",), learning_rate=0.1, rank=6)
    ended = run(plan, dataset, tmp_path, Heard())
    base = draw(models)
    with_it, at_half = draw(models, AdapterFile(ended.file, 1.0)), draw(models, AdapterFile(ended.file, 0.5))
    assert 0 < np.abs(at_half - base).mean() < np.abs(with_it - base).mean()
    assert (draw(models) == base).all()

    assert inspect(ended.file) > 0
    assert ended.size == ended.file.stat().st_size
    with safe_open(ended.file, "pt") as file:
        metadata = file.metadata()
        layers = {key.rpartition(".lora_")[0] for key in file.keys()}  # noqa: SIM118 -- it is no dictionary
    assert metadata == ended.metadata
    assert metadata["modelspec.sai_model_spec"] == "1.0.1"
    assert metadata["modelspec.trigger_phrase"] == "zorblax"
    assert metadata["modelspec.architecture"] == "flux-1/lora"
    assert metadata["modelspec.resolution"] == "64x64"
    assert metadata["modelspec.hash_sha256"] == f"0x{tensor_hash(ended.file.read_bytes())}"
    assert (metadata["ss_network_dim"], metadata["ss_network_alpha"]) == ("6", "6")
    assert metadata["modelspec.thumbnail"].startswith("data:image/jpeg;base64,")
    assert base64.b64decode(metadata["modelspec.thumbnail"].partition(",")[2]) == ended.thumbnail.read_bytes()
    config = json.loads(metadata["lora_adapter_metadata"])
    assert (config["transformer.r"], config["transformer.lora_alpha"]) == (6, 6)
    assert {f"transformer.{name}" for name in config["transformer.target_modules"]} == layers
    # Attention and feed-forward of both kinds of blocks; never the network's own last layer.
    assert "transformer.single_transformer_blocks.0.proj_out" in layers
    assert "transformer.single_transformer_blocks.0.proj_mlp" in layers
    assert "transformer.transformer_blocks.0.ff_context.net.2" in layers
    assert "transformer.proj_out" not in layers


def test_diffusers_loads_the_adapter_by_itself(
    plan: TrainingPlan, dataset: Dataset, tiny: Path, tmp_path: Path
) -> None:
    ended = run(plan, dataset, tmp_path, Heard())
    pipe = FluxPipeline.from_pretrained(str(tiny), local_files_only=True, dtype=torch.float32)
    pipe.load_lora_weights(str(ended.file.parent), weight_name=ended.file.name, adapter_name="a")
    state = load_file(ended.file)
    own = {name: value for name, value in pipe.transformer.named_parameters() if ".lora_" in name}
    assert len(own) == len(state)
    for name, value in own.items():
        assert torch.equal(value, state[f"transformer.{name.replace('.a.', '.')}"])
    layer = pipe.transformer.transformer_blocks[0].attn.to_q
    assert layer.scaling["a"] == 1.0


def test_a_training_computes_by_the_threads_of_its_device(plan: TrainingPlan, dataset: Dataset, tmp_path: Path) -> None:
    before = torch.get_num_threads()
    try:
        train(
            replace(plan, steps=1),
            dataset,
            folder=tmp_path,
            resume=None,
            watcher=Heard(),
            device=Device("cpu", before + 1),
        )
        assert torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)


def test_without_prompts_the_trigger_word_gives_the_thumbnail(
    plan: TrainingPlan, dataset: Dataset, tmp_path: Path
) -> None:
    heard = Heard()
    ended = run(plan, dataset, tmp_path, heard)
    assert heard.samples == []
    assert ended.thumbnail.read_bytes().startswith(b"\xff\xd8")


def test_a_cancelled_run_keeps_nothing_and_stops_after_its_step(
    plan: TrainingPlan, dataset: Dataset, tmp_path: Path
) -> None:
    heard = Heard(stop_after=1, stop=Stop.CANCEL)
    with pytest.raises(TrainingStopped) as stopped:
        run(plan, dataset, tmp_path, heard)
    assert stopped.value.stop == Stop.CANCEL
    assert len(heard.steps) == 1
    assert not heard.states
    assert not (tmp_path / "adapter.safetensors").exists()


def test_a_drain_while_pictures_are_drawn_keeps_the_step_and_draws_them_again(
    plan: TrainingPlan, dataset: Dataset, tmp_path: Path
) -> None:
    plan = replace(plan, sample_prompts=("a", "b", "c"), sample_every=2)

    class StopsInSamples(Heard):
        def stopping(self) -> Stop | None:
            return Stop.DRAIN if [sample.step for sample in self.samples].count(2) == 2 else None

    first, second = StopsInSamples(), Heard()
    with pytest.raises(TrainingStopped):
        run(plan, dataset, tmp_path / "first", first)
    assert list(first.states) == [2]
    run(plan, dataset, tmp_path / "second", second, first.states[2])
    assert [(sample.step, sample.index) for sample in second.samples] == [(s, i) for s in (2, 3) for i in range(3)]


def test_a_loss_that_is_no_number_ends_the_run_with_the_state_before_it(
    plan: TrainingPlan, dataset: Dataset, tmp_path: Path
) -> None:
    heard = Heard()
    with pytest.raises(TrainingFailed, match=r"loss of step 2 .* lower learning_rate") as failed:
        run(replace(plan, learning_rate=1e30), dataset, tmp_path, heard)
    assert failed.value.category == ModelErrorKind.VALIDATION
    assert list(heard.states) == [1]
    kept = load_file(heard.states[1] / "tensors.safetensors")
    weights = [tensor for name, tensor in kept.items() if name.startswith("weights.")]
    assert weights
    assert all(bool(tensor.isfinite().all()) for tensor in weights)


def test_all_weights_of_the_layers_are_trained_and_written_as_low_rank_layers_of_the_same_effect(
    plan: TrainingPlan, dataset: Dataset, models: Models, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = replace(plan, training_type="FULL", preservation="output", learning_rate=1e-3)
    unbroken, first = Heard(), Heard(stop_after=2)
    ended = run(plan, dataset, tmp_path / "unbroken", unbroken)
    with pytest.raises(TrainingStopped):
        run(plan, dataset, tmp_path / "first", first)
    assert equal(run(plan, dataset, tmp_path / "second", Heard(), first.states[2]).file, ended.file)
    layers = load_file(ended.file)
    before = FluxTransformer2DModel.from_pretrained(tiny, subfolder="transformer")
    trained = load_file(unbroken.states[3] / "tensors.safetensors")
    for name, weight in trained.items():
        if name.startswith("weights."):
            layer = name.removeprefix("weights.").removesuffix(".weight")
            made = layers[f"transformer.{layer}.lora_B.weight"] @ layers[f"transformer.{layer}.lora_A.weight"]
            assert torch.allclose(before.get_submodule(layer).weight + made, weight, atol=1e-6)
    assert np.abs(draw(models, AdapterFile(ended.file, 1.0)) - draw(models)).mean() > 0


@pytest.mark.parametrize("training_type", ["LORA", "FULL"])
def test_a_run_starts_from_an_adapter(
    training_type: Any, plan: TrainingPlan, dataset: Dataset, tiny: Path, tmp_path: Path
) -> None:
    first = run(plan, dataset, tmp_path / "first", Heard())
    again = replace(plan, rank=6, steps=1, learning_rate=1e-12, start_from=first.file, training_type=training_type)
    second = run(again, dataset, tmp_path / "second", Heard())
    old, new = load_file(first.file), load_file(second.file)
    for key in old:
        if ".lora_A." in key:
            up = key.replace(".lora_A.", ".lora_B.")
            assert torch.allclose(new[up] @ new[key], old[up] @ old[key], atol=1e-6)


def test_a_run_starts_from_an_adapter_of_another_tool(plan: TrainingPlan, dataset: Dataset, tmp_path: Path) -> None:
    file, layer = tmp_path / "kohya.safetensors", "lora_unet_double_blocks_0_img_attn_proj"
    down, up = torch.randn(2, 32), torch.randn(32, 2)
    halves = {f"{layer}.lora_down.weight": down, f"{layer}.lora_up.weight": up, f"{layer}.alpha": torch.tensor(1.0)}
    save_file(halves, file)
    ended = run(replace(plan, steps=1, learning_rate=1e-12, start_from=file), dataset, tmp_path / "run", Heard())
    layers, name = load_file(ended.file), "transformer.transformer_blocks.0.attn.to_out.0"
    made = layers[f"{name}.lora_B.weight"] @ layers[f"{name}.lora_A.weight"]
    assert torch.allclose(made, up @ down / 2, atol=1e-5)


def test_an_adapter_that_cannot_be_started_from_is_refused(
    plan: TrainingPlan, dataset: Dataset, tmp_path: Path, make_lora: Callable[..., Path]
) -> None:
    (tmp_path / "junk.safetensors").write_bytes(b"junk")
    modulation = tmp_path / "modulation.safetensors"
    layer = "transformer.transformer_blocks.0.norm1.linear"
    save_file({f"{layer}.lora_A.weight": torch.ones(4, 32), f"{layer}.lora_B.weight": torch.ones(192, 4)}, modulation)
    refused = {
        tmp_path / "junk.safetensors": "is not a safetensors file",
        modulation: "layers that this training does not adapt",
        make_lora("wide", width=31): "made for another model",
    }
    for file, why in refused.items():
        with pytest.raises(TrainingFailed, match=why):
            run(replace(plan, start_from=file), dataset, tmp_path / "run", Heard())
    with pytest.raises(TrainingFailed, match="has rank 4, and this training has 2"):
        run(replace(plan, start_from=make_lora("four"), rank=2), dataset, tmp_path / "run", Heard())


def test_batches_masks_accumulation_dropout_and_preservation_each_change_what_is_learnt(
    plan: TrainingPlan, tmp_path: Path
) -> None:
    (tmp_path / "pictures").mkdir()
    masked = draw_dataset(tmp_path / "pictures", masks=True)
    plans = {
        "plain": plan,
        "batches": replace(plan, batch_size=2),
        "accumulation": replace(plan, gradient_accumulation=2),
        "masks": replace(plan, masked_loss=True),
        "dropout": replace(plan, caption_dropout=0.9),
        "preservation": replace(plan, preservation="output"),
        "prompts": replace(plan, preservation="output", preservation_prompts=("a hat", "a bag")),
        "seed": replace(plan, seed=7),
        "again": plan,
    }
    learnt = {
        name: load_file(run(replace(each, steps=2), masked, tmp_path, Heard()).file) for name, each in plans.items()
    }
    for name, layers in learnt.items():
        same = all(torch.equal(tensor, learnt["plain"][key]) for key, tensor in layers.items())
        assert same == (name in ("plain", "again")), name


def test_a_step_of_several_passes_takes_their_mean(plan: TrainingPlan, dataset: Dataset, tmp_path: Path) -> None:
    several, single = Heard(), Heard()
    run(replace(plan, gradient_accumulation=3, steps=1), dataset, tmp_path, several)
    run(replace(plan, steps=3, learning_rate=1e-30), dataset, tmp_path, single)
    assert [report.step for report in several.steps] == [1]
    # The same three draws: a step of three passes against three steps that change nothing.
    assert several.steps[0].loss == pytest.approx(np.mean([report.loss for report in single.steps]), rel=1e-5)
    assert several.steps[0].gradient <= max(report.gradient for report in single.steps) * 1.001


def test_what_the_model_draws_to_be_kept_is_counted_with_what_is_encoded(
    plan: TrainingPlan, dataset: Dataset, tmp_path: Path
) -> None:
    heard = Heard()
    run(
        replace(plan, preservation="output", preservation_prompts=("a hat", "a bag"), steps=1),
        dataset,
        tmp_path,
        heard,
    )
    counts, [total] = [done for done, _ in heard.encoded], {total for _, total in heard.encoded}
    assert counts == sorted(counts)
    assert counts[-1] == total
    assert total > 16 + len(dataset.examples), "sixteen pictures at least are drawn"


def test_preservation_keeps_other_prompts_near_what_they_were(
    plan: TrainingPlan, dataset: Dataset, tmp_path: Path
) -> None:
    far = replace(plan, steps=30, rank=8)
    kept = replace(far, preservation="output", preservation_weight=10.0)
    ended = {name: Heard() for name in ("free", "kept")}
    run(replace(far, preservation="output", preservation_weight=1e-9), dataset, tmp_path / "free", ended["free"])
    run(kept, dataset, tmp_path / "kept", ended["kept"])
    moved = {
        name: np.mean([report.preservation for report in heard.steps[10:] if report.preservation is not None])
        for name, heard in ended.items()
    }
    assert moved["kept"] < 0.5 * moved["free"]


def test_the_guidance_embedding_is_bypassed_in_training_alone(
    guided: Path, plan: TrainingPlan, dataset: Dataset, tmp_path: Path
) -> None:
    plan = replace(plan, model=str(guided))
    network = TrainedNetwork(guided, read_card(guided), replace(plan, bypass_guidance=True), Device("cpu"))
    inputs = (torch.randn(1, 4, 8, 8), torch.tensor([0.5]), torch.randn(1, 16), torch.randn(1, 16, 16))
    with torch.no_grad():
        usual = network.predict(*inputs)
        with network.training():
            bypassed = network.predict(*inputs)
        assert not torch.equal(usual, bypassed)
        assert torch.equal(network.predict(*inputs), usual)
    plain = run(plan, dataset, tmp_path / "plain", Heard())
    other = run(replace(plan, bypass_guidance=True), dataset, tmp_path / "other", Heard())
    assert not equal(plain.file, other.file)


def test_a_model_without_that_embedding_says_so_and_trains(
    plan: TrainingPlan, dataset: Dataset, tmp_path: Path
) -> None:
    heard = Heard()
    bypassed = run(replace(plan, bypass_guidance=True), dataset, tmp_path / "bypassed", heard)
    assert any("no embedding of a guidance scale" in line for line in heard.lines)
    assert equal(bypassed.file, run(plan, dataset, tmp_path / "plain", Heard()).file)


def test_a_large_network_computes_activations_twice_and_learns_the_same(
    plan: TrainingPlan, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = replace(plan, preservation="output")
    small = run(plan, dataset, tmp_path / "small", Heard())
    monkeypatch.setattr(networks, "_LARGE_BYTES", 0)
    large = load_file(run(plan, dataset, tmp_path / "large", Heard()).file)
    for key, tensor in load_file(small.file).items():
        assert torch.allclose(tensor, large[key], atol=1e-4)


def test_blocks_of_a_large_network_stay_compiled_when_activations_are_computed_again(
    plan: TrainingPlan, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def compiles_to_itself(self: Any, **_: Any) -> None:
        for block in self.transformer_blocks:
            block._compiled_call_impl = block._call_impl

    # Activations that are computed again stop, by an exception, at the last one that is asked for.
    monkeypatch.setattr(networks, "_LARGE_BYTES", 0)
    monkeypatch.setattr(FluxTransformer2DModel, "compile_repeated_blocks", compiles_to_itself)
    monkeypatch.setattr("modelkit.training.trainer.compiles", lambda _device: True)
    heard = Heard()
    run(plan, dataset, tmp_path, heard)
    assert not [line for line in heard.lines if "could not be compiled" in line]


class _FailsOnTheWayBack(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        raise ZeroDivisionError


@pytest.mark.parametrize("way", ["forward", "backward"])
def test_blocks_that_do_not_compile_run_as_they_are(
    way: str, plan: TrainingPlan, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks(self: Any, **_: Any) -> None:
        def call(*positional: Any, **named: Any) -> Any:
            if way == "forward":
                raise ZeroDivisionError
            text, image = block._call_impl(*positional, **named)
            return text, _FailsOnTheWayBack.apply(image)  # type: ignore[no-untyped-call] # torch leaves it untyped

        (block,) = self.transformer_blocks
        block._compiled_call_impl = call

    eager = load_file(run(plan, dataset, tmp_path, Heard()).file)
    monkeypatch.setattr(FluxTransformer2DModel, "compile_repeated_blocks", breaks)
    monkeypatch.setattr("modelkit.training.trainer.compiles", lambda _device: True)
    heard = Heard()
    compiled = load_file(run(plan, dataset, tmp_path, heard).file)
    assert len([line for line in heard.lines if "could not be compiled" in line]) == 1
    assert all(torch.equal(tensor, compiled[name]) for name, tensor in eager.items())


@pytest.mark.parametrize(("examples", "why"), [("none", "has no pictures"), ("broken", "could not be read")])
def test_pictures_that_cannot_be_trained_on_are_refused(
    examples: str, why: str, plan: TrainingPlan, tmp_path: Path
) -> None:
    (tmp_path / "a.png").write_bytes(b"no picture")
    broken = [Example(tmp_path / "a.png", "", (64, 64))] if examples == "broken" else []
    with pytest.raises(TrainingFailed, match=why):
        run(plan, Dataset.of(broken), tmp_path / "run", Heard())


def test_a_folder_without_a_model_is_refused(plan: TrainingPlan, dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(TrainingFailed, match="could not be loaded") as failed:
        run(replace(plan, model=str(tmp_path / "nothing")), dataset, tmp_path / "run", Heard())
    assert failed.value.category == ModelErrorKind.RESOURCE
    assert str(tmp_path) not in failed.value.message
