"""The run of a training: encode, train, measure, sample, save, resume."""

from __future__ import annotations

import base64
import math
import random
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import structlog
import torch
from torch import nn

from modelkit.card import read_card
from modelkit.device import Device, release
from modelkit.errors import ModelError, ModelErrorKind
from modelkit.training import adapterfile
from modelkit.training.batches import Batches
from modelkit.training.dataset import Dataset
from modelkit.training.encoding import Latents, Texts, encode_pictures
from modelkit.training.errors import TrainingFailed, TrainingStopped
from modelkit.training.files import put_file
from modelkit.training.network import TrainedNetwork
from modelkit.training.objective import Loss, Objective
from modelkit.training.optimizing import EIGHT_BIT, make_optimizer, rate_of
from modelkit.training.plan import TrainingPlan
from modelkit.training.priors import draw_priors, prior_prompts
from modelkit.training.sampling import FIRST_SEED, Sampler
from modelkit.training.state import RunState, random_state, read_state, restore_random, write_state
from modelkit.training.validation import Validation, chosen
from modelkit.training.watching import Sample, StepReport, Stop, Watcher

_log = structlog.get_logger(module=__name__)
_CLIP = 1.0
_TIMED_STEPS = 20
_UNTIMED_STEPS = 2  # the first ones compile, or fill caches


@dataclass(frozen=True, slots=True)
class TrainedAdapter:
    """What a training ends in.

    Attributes:
        file: The adapter, a safetensors file.
        sha256: Of the file.
        size: Its bytes.
        metadata: The metadata in it.
        thumbnail: A JPEG of its best sample.
    """

    file: Path
    sha256: str
    size: int
    metadata: Mapping[str, str]
    thumbnail: Path


def train(
    plan: TrainingPlan,
    dataset: Dataset,
    *,
    folder: Path,
    resume: Path | None,
    watcher: Watcher,
    device: Device,
    clock: Callable[[], float] = time.monotonic,
) -> TrainedAdapter:
    """Train an adapter.

    It computes with the process's generators of random numbers and by the device's number of threads, so that only one
    training runs in a process at a time.

    Args:
        plan: How.
        dataset: On what.
        folder: Where files are written: `cache/`, `samples/`, `saves/`, `state/`, and the result.
        resume: Folder of a state to go on from.
        watcher: Hears of it, and may stop it.
        device: Where to compute.
        clock: Seconds, for the cadence of states and the time that is left.

    Returns:
        The adapter.

    Raises:
        TrainingFailed: It cannot go on; the state before is kept where there is one.
        TrainingStopped: The watcher stopped it; after a drain its state is kept.
    """
    if device.threads:
        torch.set_num_threads(device.threads)
    try:
        kept = None if resume is None else read_state(resume)
        return _TrainingRun(plan, dataset, folder, kept, watcher=watcher, device=device, clock=clock).go()
    except torch.cuda.OutOfMemoryError as error:
        raise TrainingFailed(ModelErrorKind.RESOURCE, "The device has too little memory for this training.") from error
    except ModelError as error:
        raise TrainingFailed(error.fault, error.message) from error


class _TrainingRun:
    """One run, from its first or a resumed step."""

    def __init__(
        self,
        plan: TrainingPlan,
        dataset: Dataset,
        folder: Path,
        kept: RunState | None,
        *,
        watcher: Watcher,
        device: Device,
        clock: Callable[[], float],
    ) -> None:
        if not dataset.examples:
            raise TrainingFailed(ModelErrorKind.VALIDATION, "The dataset of the training has no pictures.")
        self._plan, self._dataset, self._folder = plan, dataset, folder
        self._watcher, self._device, self._clock = watcher, device, clock
        self._model = Path(plan.model)
        self._card = read_card(self._model)
        self._step = 0 if kept is None else kept.facts["step"]
        self._marks = {"validated": -1, "sampled": -1, "saved": 0}
        self._best: dict[str, Any] = {}
        if kept is not None:
            self._check(kept)
        _seed(plan.seed)
        cache = folder / "cache"
        self._texts = Texts(
            self._model,
            self._card.max_sequence_length,
            device,
            cache=cache / "texts.safetensors",
            pause=self._pause,
        )
        self._captions = [plan.captioned(example.caption) for example in dataset.examples]
        self._prompts = [plan.named(prompt) for prompt in plan.sample_prompts]
        pictures = self._encode(cache)
        release()  # of what encoded them, before the network comes
        self._network = TrainedNetwork(self._model, self._card, plan, device)
        self._sampler = Sampler(
            self._model,
            self._card,
            self._network,
            device,
            side=plan.resolution,
            steps=plan.sample_steps,
            pause=self._pause,
        )
        priors = draw_priors(
            self._sampler,
            self._network,
            self._texts,
            plan,
            cache / "priors.safetensors",
            done=lambda done: watcher.cached(self._cached + done, self._to_cache),
        )
        self._draws = torch.Generator().manual_seed(plan.seed)
        self._objective = Objective(
            self._network,
            plan,
            pictures=pictures,
            captions=self._captions,
            texts=self._texts,
            priors=priors,
            scheduler=self._sampler.scheduler,
            random=self._draws,
            device=device,
        )
        trained, measured = chosen(len(pictures), plan.validation_share)
        self._batches = Batches([example.bucket for example in dataset.examples], trained, plan.batch_size, plan.seed)
        self._validation = Validation(
            [pictures[number] for number in measured], [self._captions[number] for number in measured], device
        )
        self._parameters = list(self._network.trained.values())
        self._optimizer, self._optimizer_name = make_optimizer(
            plan.optimizer, self._parameters, plan.learning_rate, device
        )
        self._seconds: deque[float] = deque(maxlen=_TIMED_STEPS)
        self._taken = 0
        if kept is None:
            self._start()
        else:
            self._restore(kept)
        if compiles(device):
            self._network.compile(self._not_compiled)
        self._state_at = clock()

    # Before the first step

    def _check(self, kept: RunState) -> None:
        """Refuse a state of another training."""
        if kept.facts["dataset"] != self._dataset.hash:
            raise TrainingFailed(
                ModelErrorKind.VALIDATION, "The training cannot be resumed: its pictures or captions have changed."
            )
        binding = {**self._plan.binding(), "model": self._card.name}
        changed = sorted(name for name, value in binding.items() if kept.facts["plan"].get(name) != value)
        if changed:
            raise TrainingFailed(
                ModelErrorKind.VALIDATION, f"The training cannot be resumed with another {', '.join(changed)}."
            )

    def _encode(self, cache: Path) -> list[Latents]:
        plan, examples = self._plan, self._dataset.examples
        texts = [*self._captions, "", *self._prompts, plan.trigger_word, self._card.guidance.negative_prompt]
        if plan.preservation == "output":
            texts += plan.preservation_prompts or [plan.unnamed(caption) for caption in self._captions]
        before = len(set(texts))
        self._cached = before + len(examples)
        self._to_cache = total = self._cached + len(prior_prompts(plan))
        self._texts.encode(texts, lambda done: self._watcher.cached(done, total))
        return encode_pictures(
            self._model,
            self._dataset,
            self._device,
            cache / "latents.safetensors",
            pause=self._pause,
            done=lambda done: self._watcher.cached(before + done, total),
        )

    def _start(self) -> None:
        plan = self._plan
        if plan.start_from is not None:
            self._network.start_from(adapterfile.read_adapter(plan.start_from, self._network.linear))
        layers, count = len(self._network.layers), sum(parameter.numel() for parameter in self._parameters)
        self._watcher.noted(f"{plan.training_type}: {count:,} numbers in {layers} layers of {self._card.name}.")
        self._watcher.noted(f"Learning rate: {plan.learning_rate:g}.")
        if self._optimizer_name != plan.optimizer:
            why = " 8-bit AdamW needs CUDA and the library bitsandbytes." if plan.optimizer == EIGHT_BIT else ""
            self._watcher.noted(f"Optimiser: {self._optimizer_name} instead of {plan.optimizer}.{why}")
        if plan.bypass_guidance and not self._network.guided:
            self._watcher.noted("The model has no embedding of a guidance scale to bypass.")

    def _restore(self, kept: RunState) -> None:
        self._network.restore(kept.weights)
        try:
            self._optimizer.load_state_dict(dict(kept.optimizer))
        except (ValueError, KeyError, RuntimeError) as error:
            raise TrainingFailed(
                ModelErrorKind.RESOURCE, "The training cannot be resumed here: this worker has another optimiser."
            ) from error
        self._draws.set_state(kept.random["draws"])
        restore_random(kept.random)
        facts = kept.facts
        self._batches.position = facts["position"]
        self._marks, self._best = dict(facts["marks"]), dict(facts["best"])
        self._watcher.noted(f"Resumed after step {self._step}.")

    # The steps

    def go(self) -> TrainedAdapter:
        """Take all steps that are left; return the adapter."""
        try:
            self._due()
            while self._step < self._plan.steps:
                self._pause()
                self._draw_wanted()
                self._take_step()
                self._due()
            return self._result()
        except TrainingStopped as stopped:
            if stopped.stop == Stop.DRAIN:
                self._keep_state()
            raise

    def _pause(self) -> None:
        stop = self._watcher.stopping()
        if stop is not None:
            raise TrainingStopped(stop, self._step)

    def _due(self) -> None:
        """Do what is due after this step and is not done; a run that was stopped meanwhile finds it here again."""
        plan, step, last = self._plan, self._step, self._step >= self._plan.steps
        if self._marks["validated"] < step and (last or step % plan.measured_every == 0):
            self._watcher.validated(self._validation.measure(self._network, self._texts, step))
            self._marks["validated"] = step
        if self._marks["sampled"] < step and (last or step % plan.sample_every == 0):
            self._draw_samples()
            self._marks["sampled"] = step
        if self._marks["saved"] < step and not last and step % plan.save_every == 0:
            file = self._folder / "saves" / f"step-{step:09d}.safetensors"
            self._write_adapter(file)
            self._watcher.kept_save(step, file)
            self._marks["saved"] = step
        if step and (last or self._clock() - self._state_at >= plan.state_seconds):
            self._keep_state()

    def _take_step(self) -> None:
        began = self._clock()
        before = (self._batches.position, self._draws.get_state())
        rate = rate_of(self._step, self._plan.learning_rate)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        losses = self._passes(before)
        loss = sum(each.picture for each in losses) / len(losses)
        kept = [each.preservation for each in losses if each.preservation is not None]
        norm = float(nn.utils.clip_grad_norm_(self._parameters, _CLIP))
        if not (math.isfinite(loss) and math.isfinite(norm)):
            self._rewind(before)
            self._keep_state()
            raise TrainingFailed(
                ModelErrorKind.VALIDATION,
                f"The loss of step {self._step + 1} is not a number, so the training stopped with the state before it. "
                "A lower learning_rate may help.",
            )
        self._optimizer.step()
        self._step += 1
        self._taken += 1
        if self._taken > _UNTIMED_STEPS:
            self._seconds.append(self._clock() - began)
        self._watcher.stepped(
            StepReport(
                self._step, self._plan.steps, loss, sum(kept) / len(kept) if kept else None, rate, norm, self._left()
            )
        )

    def _passes(self, before: tuple[int, torch.Tensor]) -> list[Loss]:
        """Compute the gradient of a step; again, without compiled blocks, where their way back does not compile."""
        try:
            return self._gradient()
        except torch.cuda.OutOfMemoryError:
            raise
        except Exception as error:
            if not self._network.compiled:
                raise
            self._network.eager()
            self._not_compiled(error)
            self._rewind(before)
            return self._gradient()

    def _not_compiled(self, error: Exception) -> None:
        _log.warning("training_compile_failed", exc_info=error)
        self._watcher.noted("The network could not be compiled here, and runs as it is.")

    def _gradient(self) -> list[Loss]:
        self._optimizer.zero_grad(set_to_none=True)
        count = self._plan.gradient_accumulation
        return [self._objective.backward(self._batches.take(), 1 / count) for _ in range(count)]

    def _rewind(self, before: tuple[int, torch.Tensor]) -> None:
        self._batches.position = before[0]
        self._draws.set_state(before[1])
        self._optimizer.zero_grad(set_to_none=True)

    def _left(self) -> float | None:
        left = self._plan.steps - self._step
        return sum(self._seconds) / len(self._seconds) * left if self._seconds and left else None

    def _keep_state(self) -> None:
        step = self._step
        facts = {
            "dataset": self._dataset.hash,
            "plan": {**self._plan.binding(), "model": self._card.name},
            "step": step,
            "position": self._batches.position,
            "marks": self._marks,
            "best": self._best,
        }
        drawn = {**random_state(), "draws": self._draws.get_state()}
        state = RunState(facts, self._network.tensors(), self._optimizer.state_dict(), drawn)
        self._watcher.kept_state(step, write_state(self._folder / "state", step, state))
        self._state_at = self._clock()

    # Pictures and files

    def _draw_wanted(self) -> None:
        wanted = [self._plan.named(prompt) for prompt in self._watcher.wanted_samples()]
        if wanted:
            self._texts.encode(wanted)
            self._draw(list(enumerate(wanted, len(self._prompts))))

    def _draw_samples(self) -> None:
        samples = self._draw(list(enumerate(self._prompts)))
        if samples and self._step:
            self._note_best([sample.path for sample in samples])

    def _draw(self, prompts: list[tuple[int, str]]) -> list[Sample]:
        samples: list[Sample] = []
        if not prompts:
            return samples
        with self._sampler.drawing() as draw:
            for index, prompt in prompts:
                path = self._folder / "samples" / f"step-{self._step:09d}-{index}.png"
                image = draw.picture(self._texts[prompt], self._negative(), FIRST_SEED + index)
                put_file(path, lambda fresh, image=image: image.save(fresh, "PNG"))  # type: ignore[misc] # of this turn
                samples.append(Sample(self._step, index, prompt, FIRST_SEED + index, path))
                self._watcher.sampled(samples[-1])
        return samples

    def _negative(self) -> Any:
        return None if self._sampler.negative is None else self._texts[self._sampler.negative]

    def _note_best(self, samples: list[Path]) -> None:
        path, distance = adapterfile.closest(samples, [example.image for example in self._dataset.examples])
        if not self._best or distance < self._best["distance"]:
            picture = base64.b64encode(adapterfile.thumbnail_of(path)).decode()
            self._best = {"distance": distance, "picture": picture}

    def _write_adapter(self, file: Path) -> tuple[str, dict[str, str]]:
        layers, rank = self._network.low_rank()
        metadata = adapterfile.metadata_of(
            self._plan,
            self._card,
            self._network.layers,
            rank=rank,
            steps=self._step,
            pictures=len(self._dataset.examples),
            side=self._sampler.side,
            dataset=self._dataset.hash,
            optimizer=self._optimizer_name,
            thumbnail=base64.b64decode(self._best["picture"]) if self._best else None,
        )
        return adapterfile.write_adapter(file, layers, metadata)

    def _result(self) -> TrainedAdapter:
        if not self._best:  # no prompt was given to draw: the trigger word says what the adapter is of
            picture = self._folder / "cache" / "thumbnail.png"
            with self._sampler.drawing() as draw:
                image = draw.picture(self._texts[self._plan.trigger_word], self._negative(), FIRST_SEED)
            put_file(picture, lambda fresh: image.save(fresh, "PNG"))
            self._note_best([picture])
        file, small = self._folder / "adapter.safetensors", base64.b64decode(self._best["picture"])
        sha256, metadata = self._write_adapter(file)
        thumbnail = put_file(self._folder / "thumbnail.jpg", lambda fresh: _write(fresh, small))
        return TrainedAdapter(file, sha256, file.stat().st_size, metadata, thumbnail)


def compiles(device: Device) -> bool:
    """Tell whether blocks are compiled on a device: making code for a processor takes minutes."""
    return torch.device(device.name).type == "cuda"


def _seed(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def _write(path: Path, content: bytes) -> None:
    path.write_bytes(content)
