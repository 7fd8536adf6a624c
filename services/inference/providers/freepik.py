"""Freepik's upscalers by Magnific: what the creative and the precise one have in common.

A POST answers the identifier of a task, a GET of the same path with the identifier tells where it stands. Freepik sends
no name of an error with a task that has failed, says nothing of costs, and can neither stop a task nor tell which task
came of which request.
"""

from __future__ import annotations

import base64
import io
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import quote

from atelier.tasks.v1.enums_pb2 import TASK_TYPE_REFINE, ProviderType
from atelier.tasks.v1.refine_pb2 import RefineTaskPublic
from atelier.tasks.v1.service_requests_pb2 import ServiceRequest
from atelier.tasks.v1.task_pb2 import CreateTask, Task, TaskResult
from PIL import Image

from meshkit.worker.handlers import CallContext, InputRef, Output, OutputFile
from services.inference.providers.choices import invalid
from services.inference.providers.errors import Fault, ProviderError
from services.inference.providers.given import read_given, was_sent
from services.inference.providers.http import ProviderHttp, ProviderReply
from services.inference.providers.kit import ProviderKit
from services.inference.providers.paid import AcceptedRequest, Order, ProviderAnswer, Standing, queued
from services.inference.targets import target_size
from services.inference.tasktypes.pictures import save_png

NAME = "Freepik"

_BASE = "base"
_RESULT = "image.png"


@dataclass(frozen=True, slots=True)
class Upscale:
    """What is asked of Freepik, but for the picture.

    Attributes:
        path: Path that it is asked for at.
        body: The body without the picture.
    """

    path: str
    body: Mapping[str, Any]


# Chooses what is asked for a picture of a size whose result is to have another.
Chooser = Callable[[CreateTask, Task, tuple[int, int], tuple[int, int]], Upscale]


class FreepikUpscaling:
    """Has Freepik enlarge pictures.

    Args:
        kit: What the providers of the worker share.
        http: The connections to Freepik.
        provider_type: The provider, as tasks name it.
        target: Name of the upscaler.
        choose: Chooses what is asked for.
    """

    def __init__(
        self,
        kit: ProviderKit,
        http: ProviderHttp,
        provider_type: ProviderType.ValueType,
        target: str,
        choose: Chooser,
    ) -> None:
        self._kit = kit
        self._http = http
        self._provider_type = provider_type
        self._target = target
        self._choose = choose

    def inputs(self, spec: CreateTask, task: Task) -> list[InputRef]:  # noqa: ARG002 -- the protocol's signature
        """Name the picture."""
        return [InputRef(_BASE, task.refine.base_image_path, "image")]

    async def run(self, context: CallContext) -> Output:
        """Have Freepik enlarge the picture; see `CallHandler.run`.

        Where nothing is to be enlarged, the picture stays as it is, and Freepik is not asked.
        """
        began = time.monotonic()
        base, made = context.inputs[_BASE], context.folder / _RESULT
        size = await read_given(base, lambda image: image.size)
        requested = context.spec.refine
        if requested.HasField("upscale_enabled") and not requested.upscale_enabled:
            await read_given(base, lambda image: save_png(image, made))
        else:
            wanted = target_size(size, requested)
            upscale = self._choose(context.spec, context.task, size, wanted)
            order = Order(
                self._provider_type,
                NAME,
                target=self._target,
                operation="upscale",
                seconds=self._kit.seconds(TASK_TYPE_REFINE),
                pacing=self._kit.pacing,
            )

            async def finish(answer: ProviderAnswer[str]) -> None:
                await self._kit.results.picture(NAME, answer.value, made, size=wanted, how="stretch", alpha_of=base)

            image = "" if was_sent(context, self._provider_type) else await read_given(base, encoded)
            await queued(context, _UpscaleTask(self._http, upscale, image), order, finish)
        return Output(
            TaskResult(refine=RefineTaskPublic()),
            (OutputFile(_RESULT, "image/png", "result_image_path"),),
            time.monotonic() - began,
        )


def connections(kit: ProviderKit) -> ProviderHttp:
    """Return the worker's connections to Freepik.

    Raises:
        ValueError: The installation has no key of Freepik.
    """
    key = kit.settings.freepik_key.get_secret_value()
    if not key:
        raise ValueError("providers of Freepik need ATELIER_FREEPIK_KEY or ATELIER_FREEPIK_KEY_FILE")
    return kit.http(NAME, kit.settings.freepik_url, {"x-freepik-api-key": key})


def factor_of(size: tuple[int, int], wanted: tuple[int, int], factors: tuple[int, ...], most_pixels: int) -> int:
    """Return the factor to ask for: the least that reaches the size, or else the largest that may be asked for.

    Args:
        size: Size of the picture.
        wanted: Size that its result is to have.
        factors: Those that there are, in rising order.
        most_pixels: Pixels that a result may have at the provider.

    Raises:
        TaskFailed: The result would be too large.
    """
    width, height = size
    needed = max(wanted[0] / width, wanted[1] / height)
    possible = [factor for factor in factors if width * height * factor * factor <= most_pixels]
    largest = max(wanted[0] * wanted[1], width * height * factors[0] ** 2)
    if largest > most_pixels or not possible:
        raise invalid(
            f"{NAME} makes at most {most_pixels / 1e6:.1f} million pixels. A picture of {width} x {height} becomes "
            f"{wanted[0]} x {wanted[1]}, and is enlarged {factors[0]} times at least."
        )
    # A factor is a float's quotient: 300.0000001 percent are 3.
    return next((factor for factor in possible if factor >= needed - 1e-6), possible[-1])


class _UpscaleTask:
    """One task at Freepik; see `QueuedApi`."""

    def __init__(self, http: ProviderHttp, upscale: Upscale, image: str) -> None:
        self._http = http
        self._upscale = upscale
        self._image = image

    async def submit(self) -> AcceptedRequest:
        """Send it."""
        path = self._upscale.path
        reply = await self._http.pay(path, document={"image": self._image, **self._upscale.body})
        # Another attempt asks where it was sent, whatever the settings say by then.
        return replace(accepted(reply), resume={"path": path})

    async def look(self, request: ServiceRequest) -> Standing:
        """Tell where it stands."""
        return standing(await self._status(request))

    async def fetch(self, request: ServiceRequest) -> ProviderAnswer[str]:
        """Return the address of its picture."""
        return answer(await self._status(request))

    async def call_off(self, request: ServiceRequest) -> bool:  # noqa: ARG002 -- the protocol's signature
        """Do nothing: Freepik has no way to stop a task."""
        return False

    async def _status(self, request: ServiceRequest) -> ProviderReply:
        path = dict(request.resume).get("path", self._upscale.path)
        return await self._http.get(f"{path}/{quote(request.service_task_id, safe='')}")


def encoded(image: Image.Image) -> str:
    """Return a picture as Freepik is sent it: an opaque PNG as base64."""
    out = io.BytesIO()
    _opaque(image).save(out, "PNG", compress_level=1)
    return base64.b64encode(out.getvalue()).decode("ascii")


def _opaque(image: Image.Image) -> Image.Image:
    """Return a picture without its transparency, white where nothing of it is seen.

    Where it is seen in part, it keeps its colours: the transparency is given back to the result, and white that was
    mixed in would be seen as a fringe.
    """
    if image.mode != "RGBA":
        return image
    opaque = Image.new("RGB", image.size, "white")
    opaque.paste(image.convert("RGB"), mask=image.getchannel("A").point(lambda level: 255 if level else 0))
    return opaque


def accepted(reply: ProviderReply) -> AcceptedRequest:
    """Read the answer to a request.

    Raises:
        ProviderError: Freepik did not take it, or nobody knows whether it did.
    """
    if not reply.ok:
        raise refusal(reply)
    name = (_data(reply) or {}).get("task_id")
    if not (isinstance(name, str) and name):
        raise reply.error(Fault.UNKNOWN)
    return AcceptedRequest(name, http_status=reply.status)


def refusal(reply: ProviderReply) -> ProviderError:
    """Return what an answer with an error's status means."""
    document = reply.json()
    said = document if isinstance(document, dict) else {}
    if isinstance(said.get("problem"), dict):
        said = said["problem"]
    parameters = said.get("invalid_params")
    reasons = [
        one["reason"]
        for one in (parameters if isinstance(parameters, list) else [])
        if isinstance(one, dict) and isinstance(one.get("reason"), str)
    ]
    message = said.get("message")
    return reply.error(reason="; ".join(reasons) or (message if isinstance(message, str) else ""))


def standing(reply: ProviderReply) -> Standing:
    """Read where a task stands.

    Raises:
        ProviderError: It has ended without a result, or Freepik could not be asked.
    """
    status = _stands(reply).get("status")
    if status == "CREATED":
        return Standing(queued=True)
    if status == "FAILED":
        raise ProviderError(Fault.FAILED, NAME, http_status=reply.status, retryable=True)
    return Standing(finished=status == "COMPLETED")


def answer(reply: ProviderReply) -> ProviderAnswer[str]:
    """Read the address of a task's picture.

    Raises:
        ProviderError: There is none.
    """
    made = _stands(reply).get("generated")
    if not (isinstance(made, list) and made and isinstance(made[0], str) and made[0]):
        raise reply.error(Fault.EMPTY)
    return ProviderAnswer(made[0], http_status=reply.status)


def _stands(reply: ProviderReply) -> dict[str, Any]:
    if reply.status == 404:
        # What has become of it is not known any more.
        raise reply.error(Fault.FAILED)
    if not reply.ok:
        raise refusal(reply)
    data = _data(reply)
    if data is None:
        # It says nothing of the task, which has been paid: it is looked at again.
        raise reply.error(Fault.BROKEN)
    return data


def _data(reply: ProviderReply) -> dict[str, Any] | None:
    document = reply.json()
    data = document.get("data") if isinstance(document, dict) else None
    return data if isinstance(data, dict) else None
