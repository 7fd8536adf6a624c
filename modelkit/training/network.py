"""The transformer in training: frozen but for its adapter, or for the weights of the same layers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import diffusers
import peft
import structlog
import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import _StopRecomputationError

from modelkit.card import ModelCard
from modelkit.device import Device
from modelkit.errors import ModelErrorKind
from modelkit.training.encoding import loaded
from modelkit.training.errors import TrainingFailed
from modelkit.training.flow import packed, positions
from modelkit.training.plan import TrainingPlan

_log = structlog.get_logger(module=__name__)
FluxTransformer2DModel: Any = diffusers.FluxTransformer2DModel

TARGETS = (
    *("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0"),
    *("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out"),
    *("ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2"),
    *("proj_mlp", "proj_out"),
)
"""Layers of a block that are trained: attention and feed-forward, of both kinds of blocks."""
_BLOCKS = ("transformer_blocks.", "single_transformer_blocks.")
_NAME = "default"  # peft's own name for the first adapter
# Above it, activations are computed twice instead of kept, and a second pass waits for the first.
_LARGE_BYTES = 2 << 30
# A difference of whole weights is written as low-rank layers of at most this rank.
FULL_RANK = 256


class TrainedNetwork:
    """A transformer that learns.

    Args:
        folder: The model's folder.
        card: Its card.
        plan: How to train.
        device: Where.

    Raises:
        TrainingFailed: The model does not load, or has no layers to train.
    """

    def __init__(self, folder: Path, card: ModelCard, plan: TrainingPlan, device: Device) -> None:
        self._device = device
        self._plan = plan
        # The way back through cuDNN's attention touched memory that is not its own (an H200, torch 2.11); the others of
        # torch are as fast. Sampling on the same network goes without it too.
        torch.backends.cuda.enable_cudnn_sdp(False)  # noqa: FBT003 -- torch's own
        self._ids: dict[tuple[int, int, int], tuple[torch.Tensor, torch.Tensor]] = {}
        self.transformer = loaded(
            lambda: (
                FluxTransformer2DModel.from_pretrained(
                    str(folder),
                    subfolder="transformer",
                    dtype=device.dtype,
                    local_files_only=True,
                    use_safetensors=True,
                )
                .to(device.name)
                .requires_grad_(requires_grad=False)
            )
        )
        self.large = sum(parameter.nbytes for parameter in self.transformer.parameters()) > _LARGE_BYTES
        self.linear = {
            name: (module.in_features, module.out_features)
            for name, module in self.transformer.named_modules()
            if isinstance(module, nn.Linear)
        }
        self.layers = target_layers(self.transformer, card)
        if not self.layers:
            raise TrainingFailed(ModelErrorKind.RESOURCE, "The model has no layers that this training adapts.")
        self.compiled = False
        self._base: dict[str, torch.Tensor] = {}
        self._adapted: list[Any] = []
        if plan.training_type == "LORA":
            self._add_adapter()
        else:
            self._free_weights()
        if self.large:
            self.transformer.enable_gradient_checkpointing()
        self.transformer.pos_embed = _RememberedPositions(self.transformer.pos_embed)
        self._embedding = self.transformer.time_text_embed
        self.guided = bool(self.transformer.config.guidance_embeds)
        self._bypass = plan.bypass_guidance and self.guided
        self.transformer.train()

    @property
    def trained(self) -> dict[str, nn.Parameter]:
        """What is trained, by the names that it has in the transformer, in their order there."""
        return {name: parameter for name, parameter in self.transformer.named_parameters() if parameter.requires_grad}

    def predict(
        self, noisy: torch.Tensor, levels: torch.Tensor, pooled: torch.Tensor, tokens: torch.Tensor
    ) -> torch.Tensor:
        """Predict the velocity of noisy latents, as tokens.

        Args:
            noisy: (n, channels, h, w).
            levels: Noise level of each, (n,).
            pooled: (n, width of CLIP).
            tokens: (n, tokens, width of T5).
        """
        count, _, rows, columns = noisy.shape
        text_ids, image_ids = self._positions(tokens.shape[1], rows // 2, columns // 2)
        with self.numbers():
            predicted: torch.Tensor = self.transformer(
                hidden_states=packed(noisy).to(self._device.dtype),
                timestep=levels.to(self._device.dtype),
                # Trained at 1.0, the model keeps its answer to other scales (training scripts of diffusers do so too).
                guidance=torch.full((count,), 1.0, device=noisy.device) if self.guided else None,
                pooled_projections=pooled,
                encoder_hidden_states=tokens,
                txt_ids=text_ids,
                img_ids=image_ids,
                return_dict=False,
            )[0]
        return predicted

    def numbers(self) -> AbstractContextManager[None]:
        """Compute in the device's type of numbers; the adapter itself stays in float32."""
        if self._device.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(torch.device(self._device.name).type, self._device.dtype)

    @contextmanager
    def as_it_was(self) -> Iterator[None]:
        """Compute as the model did before it was trained."""
        if self._adapted:
            for layer in self._adapted:
                layer._disable_adapters = True  # noqa: SLF001 -- peft's own way freezes the adapter besides
            try:
                yield
            finally:
                for layer in self._adapted:
                    layer._disable_adapters = False  # noqa: SLF001 -- as above
            return
        trained = self.trained
        now = {name: parameter.data for name, parameter in trained.items()}
        for name, parameter in trained.items():
            parameter.data = self._base[name]
        try:
            yield
        finally:
            for name, parameter in trained.items():
                parameter.data = now[name]

    @contextmanager
    def training(self) -> Iterator[None]:
        """Bypass the embedding of the guidance scale, where the plan says so; samples are drawn with it."""
        if not self._bypass:
            yield
            return
        self.transformer.time_text_embed = _WithoutGuidance(self._embedding)
        try:
            yield
        finally:
            self.transformer.time_text_embed = self._embedding

    def compile(self, failed: Callable[[Exception], None], backend: str = "inductor") -> None:
        """Compile each kind of block once, at its first use; blocks that do not compile run as they are.

        Args:
            failed: Told why they do not.
            backend: What torch compiles by.
        """
        # By default a block that is met in more than eight forms runs uncompiled: buckets times two kinds of passes.
        torch._dynamo.config.recompile_limit = 64  # noqa: SLF001 -- torch documents it under this name
        # A training has few sizes: code for any size would be slower for each.
        self.transformer.compile_repeated_blocks(backend=backend, dynamic=False)
        self.compiled = True
        for block in self.transformer.modules():
            if block._compiled_call_impl is not None:  # noqa: SLF001 -- torch has no public way around it
                block._compiled_call_impl = self._guarded(block, failed)  # noqa: SLF001 -- as above

    def eager(self) -> None:
        """Undo `compile`."""
        self.compiled = False
        for module in self.transformer.modules():
            module._compiled_call_impl = None  # noqa: SLF001 -- torch has no public way back

    def _guarded(self, block: Any, failed: Callable[[Exception], None]) -> Callable[..., Any]:
        compiled = block._compiled_call_impl  # noqa: SLF001 -- as above

        def call(*positional: Any, **named: Any) -> Any:
            try:
                return compiled(*positional, **named)
            except (torch.cuda.OutOfMemoryError, _StopRecomputationError):
                raise  # the second is how activations that are computed again stop at the last one that is asked for
            except Exception as error:
                self.eager()
                failed(error)
                return block(*positional, **named)

        return call

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return what is trained, on the processor."""
        return {name: parameter.detach().cpu().contiguous() for name, parameter in self.trained.items()}

    def restore(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Take what `tensors` returned."""
        with torch.no_grad():
            for name, parameter in self.trained.items():
                parameter.copy_(tensors[name])

    def low_rank(self) -> tuple[dict[str, torch.Tensor], int]:
        """Return what was learnt as low-rank layers by diffusers' names, and their rank; their scale is 1."""
        kind = torch.float32 if self._device.dtype == torch.float32 else torch.float16
        if self._adapted:
            named = {name.replace(f".{_NAME}.", "."): tensor for name, tensor in self.tensors().items()}
            return {f"transformer.{name}": tensor.to(kind) for name, tensor in named.items()}, self._plan.rank
        trained = self.trained
        rank = min(FULL_RANK, max(min(parameter.shape) for parameter in trained.values()))
        layers: dict[str, torch.Tensor] = {}
        for name, parameter in trained.items():
            up, down = _factored(parameter.detach().float() - self._base[name].float(), rank)
            layer = f"transformer.{name.removesuffix('.weight')}"
            layers[f"{layer}.lora_A.weight"] = down.to("cpu", kind).contiguous()
            layers[f"{layer}.lora_B.weight"] = up.to("cpu", kind).contiguous()
        return layers, rank

    def start_from(self, layers: Mapping[str, torch.Tensor]) -> None:
        """Start from an adapter's low-rank layers, as `low_rank` returns them.

        Raises:
            TrainingFailed: They are of a higher rank than the plan's, or of layers that this training does not adapt.
        """
        unknown = {key.removeprefix("transformer.").partition(".lora_")[0] for key in layers} - set(self.layers)
        if unknown:
            raise TrainingFailed(
                ModelErrorKind.VALIDATION, "The adapter to start from changes layers that this training does not adapt."
            )
        trained = self.trained
        with torch.no_grad():
            for layer in self.layers:
                down, up = (layers.get(f"transformer.{layer}.lora_{half}.weight") for half in "AB")
                if down is None or up is None:
                    continue
                down, up = (half.to(self._device.name, torch.float32) for half in (down, up))
                if not self._adapted:
                    trained[f"{layer}.weight"].add_((up @ down).to(self._device.dtype))
                    continue
                rank = down.shape[0]
                if rank > self._plan.rank:
                    raise TrainingFailed(
                        ModelErrorKind.VALIDATION,
                        f"The adapter to start from has rank {rank}, and this training has {self._plan.rank}.",
                    )
                # A training of a higher rank goes on with the rest of its own layers, which begin without effect.
                trained[f"{layer}.lora_A.{_NAME}.weight"][:rank] = down
                trained[f"{layer}.lora_B.{_NAME}.weight"][:, :rank] = up

    def _add_adapter(self) -> None:
        self.transformer.add_adapter(
            peft.LoraConfig(
                r=self._plan.rank,
                lora_alpha=self._plan.alpha,
                init_lora_weights="gaussian",
                target_modules=list(self.layers),
            )
        )
        # Drawn again on the processor, in float32: every device begins with the same adapter.
        random = torch.Generator().manual_seed(self._plan.seed)
        for name, parameter in self.trained.items():
            drawn = torch.zeros(parameter.shape)
            if ".lora_A." in name:
                drawn = torch.randn(parameter.shape, generator=random) / self._plan.rank
            parameter.data = drawn.to(self._device.name)
        self._adapted = [module for module in self.transformer.modules() if hasattr(module, "lora_A")]
        if torch.device(self._device.name).type == "cpu":
            for layer in self._adapted:
                layer.forward = _lean_forward(layer)

    def _free_weights(self) -> None:
        for layer in self.layers:
            weight = self.transformer.get_submodule(layer).weight
            self._base[f"{layer}.weight"] = weight.detach().clone()
            weight.requires_grad_(requires_grad=True)

    def _positions(self, length: int, rows: int, columns: int) -> tuple[torch.Tensor, torch.Tensor]:
        key = (length, rows, columns)
        if key not in self._ids:
            name, kind = self._device.name, self._device.dtype
            self._ids[key] = (torch.zeros(length, 3).to(name, kind), positions(rows, columns).to(name, kind))
        return self._ids[key]


class _RememberedPositions(nn.Module):
    """The embedding of positions, computed once for each size of pictures: a training has few.

    Args:
        inner: The embedding.
    """

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self._inner = inner
        self._made: dict[tuple[int, ...], Any] = {}

    def forward(self, ids: torch.Tensor) -> Any:
        """Embed positions, which the last row tells: it is that of the picture's last token."""
        if ids.device.type != "cpu":  # to look at a number there would wait for the device
            return self._inner(ids)
        key = (len(ids), int(ids[-1, 1]), int(ids[-1, 2]))
        if key not in self._made:
            self._made[key] = self._inner(ids)
        return self._made[key]


def _lean_forward(layer: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return peft's computation of a layer with one adapter of scale 1, without what it does for other kinds.

    On a processor, steps of a small model are mostly the bookkeeping of small operations.
    """
    inner, down, up = layer.base_layer, layer.lora_A[_NAME], layer.lora_B[_NAME]

    def forward(x: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = functional.linear(x, inner.weight, inner.bias)
        if layer.disable_adapters:
            return made
        low = functional.linear(x, down.weight)
        rows = torch.addmm(made.view(-1, made.shape[-1]), low.view(-1, low.shape[-1]), up.weight.t())
        return rows.view(made.shape)

    return forward


class _WithoutGuidance(nn.Module):
    """The embedding of timestep and pooled text alone.

    Args:
        inner: The embedding of timestep, guidance scale and pooled text.
    """

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self._inner = inner

    def forward(self, timestep: torch.Tensor, _guidance: torch.Tensor, pooled: torch.Tensor) -> torch.Tensor:
        """Embed; the guidance scale is not looked at."""
        steps = self._inner.timestep_embedder(self._inner.time_proj(timestep).to(pooled.dtype))
        embedded: torch.Tensor = steps + self._inner.text_embedder(pooled)
        return embedded


def target_layers(transformer: nn.Module, card: ModelCard) -> list[str]:
    """Return the names of the layers of a model that are trained: those that its card names, else `TARGETS`."""
    wanted = tuple(f".{name}" for name in card.lora.target_modules or TARGETS)
    return [
        name
        for name, module in transformer.named_modules()
        if isinstance(module, nn.Linear) and name.startswith(_BLOCKS) and name.endswith(wanted)
    ]


def _factored(difference: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Factor a difference of weights (out, in) into (out, rank) and (rank, in): the best of that rank."""
    left, values, right = torch.linalg.svd(difference, full_matrices=False)
    kept = min(rank, len(values))
    roots = values[:kept].sqrt()
    up = torch.zeros(difference.shape[0], rank, device=difference.device)
    down = torch.zeros(rank, difference.shape[1], device=difference.device)
    up[:, :kept], down[:kept] = left[:, :kept] * roots, roots[:, None] * right[:kept]
    return up, down
