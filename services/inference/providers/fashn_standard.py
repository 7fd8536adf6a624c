"""FASHN: garments tried on people, and pictures edited, as EDITING tasks.

`POST /v1/run` answers the identifier of a prediction, `GET /v1/status/{id}` tells where it stands. The picture is the
base image, and the garment the first reference. Beside the documented fields, a caller may set the member `fashn` of
`config`, an object: `model` chooses among the models below, and the others are inputs of that model. `config.fit` says
how the result is brought to the asked size, as for the local models.

| model | picture | reference | prompt | further inputs |
|---|---|---|---|---|
| `tryon-v1.6` | `model_image` | `garment_image`, required | not taken | `category`, `garment_photo_type`, `mode`, ... |
| `tryon-max` | `model_image` | `product_image`, required | taken | `generation_mode`, `resolution` |
| `product-to-model` | `model_image` | `product_image`, required | taken | `generation_mode`, `resolution` |
| `model-swap` | `model_image` | `face_reference` | taken | `generation_mode`, `resolution`, `face_reference_mode` |
| `edit` | `image` | `image_context` | taken | `generation_mode`, `resolution` |
| `background-change` | `image` | none | taken | `generation_mode`, `resolution` |
"""

from __future__ import annotations

import base64
import io
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

from atelier.tasks.v1.editing_pb2 import EditingTaskPublic
from atelier.tasks.v1.enums_pb2 import PROVIDER_TYPE_FASHN_STANDARD, TASK_TYPE_EDITING, TaskType
from atelier.tasks.v1.providers_pb2 import FashnStandardConfig
from atelier.tasks.v1.service_requests_pb2 import ServiceRequest
from atelier.tasks.v1.task_pb2 import CreateTask, Task, TaskResult
from google.protobuf.struct_pb2 import Struct
from PIL import Image

from meshkit.fashn import MEMBER, MODELS, FashnModel
from meshkit.validation import apply_defaults
from meshkit.worker.handlers import CallContext, CallHandler, InputRef, Output, OutputFile, image_refs
from modelkit.pictures import Fit, over_white
from services.inference.providers.choices import choice, group, invalid, switch
from services.inference.providers.errors import Fault, ProviderError
from services.inference.providers.given import read_given, was_sent
from services.inference.providers.http import ProviderHttp, ProviderReply
from services.inference.providers.kit import ProviderKit
from services.inference.providers.paid import AcceptedRequest, Order, Pacing, ProviderAnswer, Standing, queued
from services.inference.tasktypes.seeds import seed_of

NAME = "FASHN"
CREDITS_HEADER = "x-fashn-credits-used"

_BASE = "base"
_REFERENCE = "reference"
_RESULT = "image.png"
_DEFAULT_SIDE = 1024
_FITS: tuple[Fit, ...] = ("contain", "cover", "stretch")
_QUALITY_OF_JPEG = 95
# `Pacing` takes up to three tenths off a pause; a caller's interval is the least that it may be.
_LEAST_SHARE = 0.7
_SEEDS = 2**32
_PATH = f"config.{MEMBER}"


@dataclass(frozen=True, slots=True)
class FashnEdit:
    """What is asked of FASHN, but for the pictures.

    Attributes:
        name: The model's name.
        model: What it calls its inputs.
        parameters: Its further inputs.
    """

    name: str
    model: FashnModel
    parameters: Mapping[str, Any]

    def document(self, picture: str, reference: str | None) -> dict[str, Any]:
        """Return the body of a run.

        Args:
            picture: The base image as a data URL.
            reference: The first reference likewise.
        """
        inputs: dict[str, Any] = {self.model.picture: picture, **self.parameters}
        if self.model.reference is not None and reference is not None:
            inputs[self.model.reference] = reference
        return {"model_name": self.name, "inputs": inputs}


def read_edit(config: Struct, *, default: str, prompt: str, seed: int, references: int) -> FashnEdit:
    """Read what a task asks of FASHN.

    Args:
        config: The task's `config`.
        default: Name of the model where the task names none.
        prompt: The task's prompt.
        seed: The task's seed.
        references: Number of its reference images.

    Raises:
        TaskFailed: It names a model or an input that is not known, or lacks the reference that the model needs.
    """
    chosen = group(config, MEMBER)
    name = choice(chosen, "model", MODELS, path=_PATH) or default
    model = MODELS[name]
    if model.needs_reference and not references:
        raise invalid(f"FASHN's {name} needs a reference image: the garment.")
    known = {"model", *model.choices, *model.switches}
    if unknown := sorted(set(chosen.fields) - known):
        raise invalid(f"{_PATH} has no member {unknown[0]} for {name}; it has {', '.join(sorted(known))}.")
    parameters: dict[str, Any] = {"output_format": "png", "seed": seed % _SEEDS}
    if model.prompted:
        parameters["prompt"] = prompt
    further = {option: choice(chosen, option, values, path=_PATH) for option, values in model.choices.items()}
    switches = {option: switch(chosen, option, path=_PATH) for option in model.switches}
    given = {option: value for option, value in {**further, **switches}.items() if value is not None}
    return FashnEdit(name, model, {**parameters, **given})


class FashnEditing:
    """Has FASHN edit pictures.

    Args:
        kit: What the providers of the worker share.
        http: The connections to FASHN.
    """

    def __init__(self, kit: ProviderKit, http: ProviderHttp) -> None:
        self._kit = kit
        self._http = http

    def inputs(self, spec: CreateTask, task: Task) -> Sequence[InputRef]:
        """Name the picture, and the reference that the model takes."""
        references = list(task.editing.reference_images)[:1] if self._edit(spec, task).model.reference else []
        return [InputRef(_BASE, task.editing.base_image_path, "image"), *image_refs(_REFERENCE, references)]

    async def run(self, context: CallContext) -> Output:
        """Have FASHN edit the picture; see `CallHandler.run`."""
        began = time.monotonic()
        edit, asked = self._edit(context.spec, context.task), context.spec.editing
        how = choice(_config(context.spec, context.task), "fit", _FITS) or "contain"
        size = (
            asked.width if asked.HasField("width") else _DEFAULT_SIDE,
            asked.height if asked.HasField("height") else _DEFAULT_SIDE,
        )
        settings = _settings(context.task)
        order = Order(
            PROVIDER_TYPE_FASHN_STANDARD,
            NAME,
            target=edit.name,
            operation="edit",
            seconds=self._seconds(settings),
            pacing=_pacing(settings.poll_interval),
        )

        async def finish(answer: ProviderAnswer[str]) -> None:
            await self._kit.results.picture(NAME, answer.value, context.folder / _RESULT, size=size, how=how)

        sent = was_sent(context, PROVIDER_TYPE_FASHN_STANDARD)
        document = {} if sent else await _document(edit, context.inputs, settings.max_image_height)
        await queued(context, _Prediction(self._http, document), order, finish)
        return Output(
            TaskResult(editing=EditingTaskPublic(seed=_seed(context.spec, context.task))),
            (OutputFile(_RESULT, "image/png", "result_image_path"),),
            time.monotonic() - began,
        )

    def _seconds(self, settings: FashnStandardConfig) -> float:
        """Return how long FASHN may take: no longer than an attempt may, whose end would leave what it has paid for."""
        longest = self._kit.seconds(TASK_TYPE_EDITING)
        return min(settings.max_wait_seconds, longest) if settings.HasField("max_wait_seconds") else longest

    def _edit(self, spec: CreateTask, task: Task) -> FashnEdit:
        return read_edit(
            _config(spec, task),
            default=self._kit.settings.fashn_model,
            prompt=spec.editing.prompt,
            seed=_seed(spec, task),
            references=len(task.editing.reference_images),
        )


def handlers(kit: ProviderKit) -> Mapping[TaskType.ValueType, CallHandler]:
    """Return the handlers of the provider.

    Raises:
        ValueError: The installation has no key of FASHN, or names a model that is not known.
    """
    key = kit.settings.fashn_key.get_secret_value()
    if not key:
        raise ValueError("FASHN_STANDARD needs ATELIER_FASHN_KEY or ATELIER_FASHN_KEY_FILE")
    if kit.settings.fashn_model not in MODELS:
        raise ValueError(f"ATELIER_FASHN_MODEL must be one of {', '.join(MODELS)}")
    http = kit.http(NAME, kit.settings.fashn_url, {"authorization": f"Bearer {key}"})
    return {TASK_TYPE_EDITING: FashnEditing(kit, http)}


class _Prediction:
    """One prediction; see `QueuedApi`."""

    def __init__(self, http: ProviderHttp, document: Mapping[str, Any]) -> None:
        self._http = http
        self._document = document

    async def submit(self) -> AcceptedRequest:
        """Send it."""
        return accepted(await self._http.pay("/v1/run", document=self._document))

    async def look(self, request: ServiceRequest) -> Standing:
        """Tell where it stands."""
        return standing(await self._status(request))

    async def fetch(self, request: ServiceRequest) -> ProviderAnswer[str]:
        """Return the address of its picture."""
        return answer(await self._status(request))

    async def call_off(self, request: ServiceRequest) -> bool:  # noqa: ARG002 -- the protocol's signature
        """Do nothing: FASHN has no way to stop a prediction."""
        return False

    async def _status(self, request: ServiceRequest) -> ProviderReply:
        return await self._http.get(f"/v1/status/{quote(request.service_task_id, safe='')}")


async def _document(edit: FashnEdit, inputs: Mapping[str, Path], max_height: int) -> dict[str, Any]:
    """Return the body of a run."""
    encode = partial(data_url, max_height=max_height)
    picture = await read_given(inputs[_BASE], encode)
    reference = inputs.get(f"{_REFERENCE}[0]")
    return edit.document(picture, None if reference is None else await read_given(reference, encode))


def data_url(image: Image.Image, max_height: int) -> str:
    """Return a picture as FASHN is sent it: a JPEG over white, reduced to a height where it is higher."""
    image = over_white(image)
    if image.height > max_height:
        width = max(1, round(image.width * max_height / image.height))
        image = image.resize((width, max_height), Image.Resampling.LANCZOS, reducing_gap=3.0)
    out = io.BytesIO()
    image.save(out, "JPEG", quality=_QUALITY_OF_JPEG)
    return f"data:image/jpeg;base64,{base64.b64encode(out.getvalue()).decode('ascii')}"


def _config(spec: CreateTask, task: Task) -> Struct:
    return task.config if task.HasField("config") else spec.config


def _settings(task: Task) -> FashnStandardConfig:
    settings = FashnStandardConfig()
    settings.CopyFrom(task.provider_config.fashn_standard)
    apply_defaults(settings)
    return settings


def _pacing(interval: int) -> Pacing:
    pause = interval / _LEAST_SHARE
    return Pacing(first=pause, last=pause)


def _seed(spec: CreateTask, task: Task) -> int:
    if task.editing.HasField("seed"):
        return task.editing.seed
    return spec.editing.seed if spec.editing.HasField("seed") else seed_of(task.id)


def accepted(reply: ProviderReply) -> AcceptedRequest:
    """Read the answer to a run.

    Raises:
        ProviderError: FASHN did not take it, or nobody knows whether it did.
    """
    if not reply.ok:
        raise refusal(reply)
    document = reply.document()
    name = document.get("id")
    if isinstance(name, str) and name:
        return AcceptedRequest(name, http_status=reply.status)
    if isinstance(document.get("error"), str):
        raise reply.error(Fault.BROKEN, document["error"])
    raise reply.error(Fault.UNKNOWN)


# What `error` of an answer with an error's status says, where its status alone does not.
_REFUSALS: Mapping[str, Fault] = {
    "OutOfCredits": Fault.DENIED,
    "UnauthorizedAccess": Fault.DENIED,
    "RateLimitExceeded": Fault.LIMITED,
    "ConcurrencyLimitExceeded": Fault.LIMITED,
    "BadRequest": Fault.INVALID,
}


def refusal(reply: ProviderReply) -> ProviderError:
    """Return what an answer with an error's status means."""
    document = reply.json()
    said = document if isinstance(document, dict) else {}
    fault = _REFUSALS.get(said["error"]) if isinstance(said.get("error"), str) else None
    return reply.error(fault, _text(said.get("message")))


# What `error.name` of a prediction that failed says: the fault, and whether the same request may succeed another time.
# FASHN takes no credits for predictions that fail.
_FAILURES: Mapping[str, tuple[Fault, bool]] = {
    "ImageLoadError": (Fault.INVALID, False),
    "PoseError": (Fault.INVALID, False),
    "InputValidationError": (Fault.INVALID, False),
    "ContentModerationError": (Fault.REFUSED, False),
    "ThirdPartyError": (Fault.FAILED, False),  # the pictures or the prompt do not suit another's model
    "3rdPartyProviderError": (Fault.FAILED, True),
    "PipelineError": (Fault.FAILED, True),
    "InternalServerError": (Fault.FAILED, True),
    "PollingTimeout": (Fault.LATE, True),
}
_WAITING = frozenset({"starting", "in_queue"})
_COMPLETED, _FAILED, _LATE, _CANCELED = "completed", "failed", "time_out", "canceled"
_ENDED = frozenset({_FAILED, _LATE, _CANCELED})


def standing(reply: ProviderReply) -> Standing:
    """Read where a prediction stands.

    Raises:
        ProviderError: It has ended without a result, or FASHN could not be asked.
    """
    document = _status(reply)
    status = document.get("status")
    if status in _WAITING:
        return Standing(queued=True)
    if status == _COMPLETED:
        return Standing(finished=True)
    if status in _ENDED:
        raise _failure(reply, status, document.get("error"))
    return Standing()  # a stage that FASHN has come to know since


def answer(reply: ProviderReply) -> ProviderAnswer[str]:
    """Read the address of a prediction's picture, and what it costs.

    Raises:
        ProviderError: There is none.
    """
    output = _status(reply).get("output")
    if not (isinstance(output, list) and output and isinstance(output[0], str) and output[0]):
        raise reply.error(Fault.EMPTY)
    return ProviderAnswer(output[0], http_status=reply.status, cost=_credits(reply), currency="credits")


def _status(reply: ProviderReply) -> dict[str, Any]:
    if reply.status == 404:
        # Predictions are kept for three days. What has become of one is not known any more.
        raise reply.error(Fault.FAILED)
    if not reply.ok:
        raise refusal(reply)
    document = reply.json()
    if not isinstance(document, dict):
        # It says nothing of the prediction, which has been paid: it is looked at again.
        raise reply.error(Fault.BROKEN)
    return document


def _failure(reply: ProviderReply, status: object, error: object) -> ProviderError:
    name = _text(error.get("name")) if isinstance(error, dict) else ""
    said = _text(error.get("message")) if isinstance(error, dict) else _text(error)
    if status == _LATE:
        fault, retryable = Fault.LATE, True
    elif status == _FAILED:
        fault, retryable = _FAILURES.get(name, (Fault.FAILED, True))
    else:  # cancelled, and not by us: it offers no way to
        fault, retryable = Fault.FAILED, False
    reason = f"{name}: {said}" if name and said else name or said
    return ProviderError(fault, NAME, reason, http_status=reply.status, retryable=retryable)


def _credits(reply: ProviderReply) -> float | None:
    try:
        used = float(reply.headers.get(CREDITS_HEADER, ""))
    except ValueError:
        return None
    return used if 0 <= used < 1e9 else None


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""
