"""All families under one budget: FLUX, the upscaler, the vision networks, and one that stands in this folder."""

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from PIL import Image

from meshkit.worker.handlers import HeldModel, Lender, Need
from modelkit.device import release
from modelkit.errors import ModelError, ModelErrorKind
from modelkit.family import FAMILIES
from modelkit.requests import AdapterFile, BatchSettings, ImageRequest
from modelkit.residency import Models
from tests.integration.modelkit.conftest import build
from tests.integration.modelkit.test_flux import Observer
from tests.integration.modelkit.throwaway import ThrowawayFamily

MIB = 1 << 20
FLUX, UPSCALER, VISION = Need("model", "flux"), Need("upscaler", "upscaler"), Need("vision", "vision")
ONE, TWO, FOUR = (Need(name, "throwaway", name) for name in ("one", "two", "four"))


@pytest.fixture(autouse=True)
def registration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FAMILIES, "throwaway", "tests.integration.modelkit.throwaway:ThrowawayFamily")


@pytest.fixture
def journal(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines: list[str] = []
    monkeypatch.setattr(ThrowawayFamily, "journal", lines)
    return lines


@pytest.fixture(scope="module")
def sizes(tiny: Path) -> dict[str, int]:
    models = Models(str(tiny), "cpu", 4 << 30)
    with models.lend([FLUX, UPSCALER, VISION]):
        return {model.family: model.bytes for model in models.resident()}


def serve(tiny: Path, budget: int, *extra: Path) -> Models:
    return Models(str(tiny), "cpu", budget, extra_models=[str(place) for place in extra])


def names(models: Models) -> list[str]:
    return [model.name for model in models.resident()]


def use(models: Models, *needs: Need) -> None:
    with models.lend(needs) as lent:
        assert set(lent) == {need.name for need in needs}
        assert sum(model.bytes for model in models.resident()) <= models.budget_bytes


def test_the_budget_holds_over_all_families_in_turn(tiny: Path, sizes: dict[str, int]) -> None:
    budget = max(sizes["upscaler"] + sizes["flux"], sizes["vision"] + sizes["flux"]) + MIB // 2
    models = serve(tiny, budget)
    for _ in range(2):
        for needs in ([FLUX, UPSCALER], [VISION], [FLUX], [FOUR], [UPSCALER], [VISION, FLUX]):
            use(models, *needs)
            assert models._held() <= budget
    models.free()
    assert models.resident() == []
    assert models._held() == 0


def test_the_least_recently_used_of_any_family_is_evicted_first(tiny: Path, sizes: dict[str, int]) -> None:
    models = serve(tiny, sizes["vision"] + sizes["upscaler"] + MIB)
    for need in (UPSCALER, FLUX, VISION, UPSCALER):
        use(models, need)
    assert names(models) == ["tiny", "mediapipe", "span"]
    use(models, ONE)
    assert names(models) == ["mediapipe", "span", "one"]
    use(models, VISION)
    use(models, FOUR)
    assert names(models) == ["one", "mediapipe", "four"]


def test_what_is_evicted_is_closed_and_works_again_when_it_is_lent_anew(tiny: Path, journal: list[str]) -> None:
    models = serve(tiny, 1 << 30)
    picture = Image.effect_noise((32, 32), 60).convert("RGB")
    with models.lend([UPSCALER, VISION]) as lent:
        upscaler, vision = lent["upscaler"], lent["vision"]
        before = upscaler.enlarge(picture, 64, 64)
        vision.subject(picture)
    assert upscaler._networks
    models.free()
    assert (upscaler._networks, upscaler.holdings()) == ({}, {upscaler: 0})
    assert (vision._networks, vision.holdings()) == ({}, {vision: 0})
    with models.lend([UPSCALER]) as lent:
        assert lent["upscaler"] is not upscaler
        assert lent["upscaler"].enlarge(picture, 64, 64).tobytes() == before.tobytes()


def test_an_evicted_upscaler_gives_its_memory_back_and_holds_what_it_says(tiny: Path) -> None:
    models = serve(tiny, 1 << 30)
    process = psutil.Process()
    release()
    before = process.memory_full_info().uss
    with models.lend([UPSCALER]) as lent:
        for quality in (30, 70, 90):  # small pictures take all networks, JPEGs one that depends on their quality
            lent["upscaler"].enlarge(Image.new("RGB", (64, 64), (9, 9, 9)), 512, 512, jpeg_quality=quality)
            release()
            held = process.memory_full_info().uss - before
            says = sum(lent["upscaler"].holdings().values())
    del lent
    assert says / 1.3 < held < says * 1.3
    models.free()
    assert process.memory_full_info().uss - before < held / 3


def test_a_family_of_one_module_and_one_registration_is_lent_evicted_and_closed(tiny: Path, journal: list[str]) -> None:
    models = serve(tiny, 4 * MIB)
    use(models, ONE)
    use(models, Need("any", "throwaway"))
    assert journal == ["load one"], "the default is the first of the packaged ones"
    use(models, TWO)
    use(models, FOUR)
    assert journal == ["load one", "load two", "close one", "close two", "load four"]
    assert [(model.name, model.family, model.bytes, model.pins) for model in models.resident()] == [
        ("four", "throwaway", 4 * MIB, 0)
    ]


def test_the_card_of_a_folder_decides_its_family(tiny: Path, tmp_path: Path, journal: list[str]) -> None:
    block = tmp_path / "block"
    block.mkdir()
    (block / "atelier.json").write_text(json.dumps({"name": "mine", "architecture": "block"}))
    models = serve(tiny, 1 << 30, block)
    use(models, Need("x", "throwaway", "mine"), FLUX)
    assert names(models) == ["tiny", "mine"]
    with pytest.raises(ModelError, match="cannot do this task") as caught:
        use(models, Need("x", "flux", "mine"))
    assert caught.value.fault is ModelErrorKind.VALIDATION


def test_a_worker_whose_models_are_all_of_another_family_says_so(tmp_path: Path) -> None:
    (tmp_path / "atelier.json").write_text(json.dumps({"name": "mine", "architecture": "unheard-of"}))
    with pytest.raises(ModelError, match="no model of the family flux") as caught:
        use(serve(tmp_path, 1 << 30), FLUX)
    assert caught.value.fault is ModelErrorKind.RESOURCE


def test_a_missing_default_model_does_not_hold_up_other_families(tmp_path: Path) -> None:
    models = serve(tmp_path / "nowhere", 1 << 30)
    use(models, VISION)
    with pytest.raises(ModelError, match="not on this machine"):
        use(models, FLUX)


def test_models_that_are_lent_together_are_pinned_together(tiny: Path) -> None:
    models = serve(tiny, 1 << 30)
    with models.lend([FLUX, UPSCALER]):
        assert {model.family: model.pins for model in models.resident()} == {"flux": 1, "upscaler": 1}
        models.free()
        assert len(models.resident()) == 2
        with models.lend([UPSCALER]):
            assert {model.family: model.pins for model in models.resident()} == {"flux": 1, "upscaler": 2}
    assert {model.pins for model in models.resident()} == {0}


def test_one_model_under_two_names_is_pinned_once(tiny: Path) -> None:
    models = serve(tiny, 1 << 30)
    with models.lend([Need("a", "throwaway", "one"), Need("b", "throwaway", "one")]) as lent:
        assert lent["a"] is lent["b"]
        assert models.resident()[0].pins == 1
    with pytest.raises(ValueError, match="one name"), models.lend([Need("a", "throwaway"), Need("a", "vision")]):
        pass


@pytest.mark.parametrize(
    ("needs", "sentence"),
    [
        ([FOUR], "The model four needs 4 MiB, and this worker's budget is 3 MiB."),
        ([ONE, TWO, FOUR], "The model four needs 4 MiB, and this worker's budget is 3 MiB."),
    ],
)
def test_a_need_above_the_budget_is_refused_and_evicts_nothing(tiny: Path, needs: list[Need], sentence: str) -> None:
    models = serve(tiny, 3 * MIB)
    use(models, ONE)
    with pytest.raises(ModelError) as caught:
        use(models, *needs)
    assert (caught.value.message, caught.value.fault) == (sentence, ModelErrorKind.RESOURCE)
    assert [(model.name, model.pins) for model in models.resident()] == [("one", 0)]


def test_needs_that_fit_the_budget_alone_and_not_together_are_refused_together(tiny: Path) -> None:
    models = serve(tiny, 5 * MIB)
    use(models, TWO)
    with pytest.raises(ModelError) as caught:
        use(models, TWO, FOUR)
    assert caught.value.message == "The models two and four need 6 MiB, and this worker's budget is 5 MiB."
    assert names(models) == ["two"]


def test_two_batches_that_need_more_than_the_budget_together_take_turns(tiny: Path, journal: list[str]) -> None:
    """Each holds one model that the other waits for, if models were pinned one by one."""
    models = serve(tiny, 5 * MIB)
    begin = threading.Barrier(2, timeout=60)
    failures: list[BaseException] = []

    def work(*needs: Need) -> None:
        try:
            begin.wait()
            for _ in range(20):
                with models.lend(needs) as lent:
                    assert all(block.data for block in lent.values())
                    assert models._held() <= models.budget_bytes
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=needs) for needs in ((ONE, FOUR), (FOUR, ONE), (TWO, ONE))]
    begin = threading.Barrier(len(threads), timeout=60)
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert failures == []
    assert {model.pins for model in models.resident()} == {0}


def test_a_need_waits_for_the_pins_of_another_family(tiny: Path, sizes: dict[str, int]) -> None:
    models = serve(tiny, sizes["vision"] + MIB)
    waiting, lent = threading.Event(), threading.Event()

    def other() -> None:
        waiting.set()
        with models.lend([FOUR]):
            lent.set()

    thread = threading.Thread(target=other)
    with models.lend([VISION]):
        thread.start()
        assert waiting.wait(30)
        assert not lent.wait(0.3)
        assert names(models) == ["mediapipe"]
    assert lent.wait(30)
    thread.join(30)
    assert names(models) == ["four"]


def test_a_wait_for_memory_ends(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("modelkit.residency._PIN_WAIT_SECONDS", 0.1)
    models = serve(tiny, 4 * MIB)
    with models.lend([ONE]), pytest.raises(ModelError, match="No memory came free for the model four") as caught:
        use(models, FOUR)
    assert (caught.value.fault, caught.value.retryable) == (ModelErrorKind.RESOURCE, True)


@pytest.mark.parametrize("fault", [MemoryError(), ModelError("It does not load.", ModelErrorKind.RESOURCE)])
def test_a_load_that_fails_pins_nothing(tiny: Path, monkeypatch: pytest.MonkeyPatch, fault: Exception) -> None:
    models = serve(tiny, 1 << 30)
    monkeypatch.setattr(ThrowawayFamily, "fault", fault)
    with pytest.raises(ModelError, match=r"too little memory|does not load") as caught:
        use(models, VISION, ONE)
    assert caught.value.fault is ModelErrorKind.RESOURCE
    assert [(model.family, model.pins) for model in models.resident()] == [("vision", 0)]
    monkeypatch.setattr(ThrowawayFamily, "fault", None)
    use(models, VISION, ONE)


def test_what_grew_in_use_is_made_up_for_and_the_first_need_stays_longest(tiny: Path, journal: list[str]) -> None:
    models = serve(tiny, 8 * MIB)
    use(models, ONE)
    with models.lend([FOUR, TWO]) as lent:
        lent["four"].grown = 2 * MIB
    assert names(models) == ["two", "four"]
    with models.lend([FOUR, TWO]) as lent:
        lent["four"].grown = 3 * MIB
    assert names(models) == ["four"]
    with models.lend([FOUR]) as lent:
        lent["four"].grown = 9 * MIB
    assert names(models) == ["four"], "the last one stays: it would only be loaded again"


def test_adapters_count_for_the_budget(tiny: Path, make_lora: Callable[..., Path], sizes: dict[str, int]) -> None:
    models = serve(tiny, 1 << 30)
    adapters = (AdapterFile(make_lora(), 1.0, "styles/a.safetensors"),)
    with models.lend([FLUX, UPSCALER]) as lent:
        lent["model"].generate(
            BatchSettings(64, 64, steps=1, adapters=adapters), [ImageRequest("a", 1, Observer())], lent["upscaler"]
        )
    [flux] = [model for model in models.resident() if model.family == "flux"]
    assert flux.bytes == sizes["flux"] + 2 * 4 * 32 * 4  # two matrices of rank 4
    assert flux.loras == ("styles/a.safetensors",)


def test_models_are_listed_while_another_thread_loads_adapters(tiny: Path, make_lora: Callable[..., Path]) -> None:
    models = serve(tiny, 1 << 30)
    loras = [AdapterFile(make_lora(str(seed), seed), 1.0, str(seed)) for seed in range(6)]
    failures: list[BaseException] = []

    def draw() -> None:
        try:
            for lora in loras:
                settings = BatchSettings(32, 32, steps=1, adapters=(lora,))
                with models.lend([FLUX, UPSCALER]) as lent:
                    lent["model"].generate(settings, [ImageRequest("a", 1, Observer())], lent["upscaler"])
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=draw) for _ in range(2)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        for model in models.resident():
            assert model.loras == tuple(sorted(model.loras))
        models.free()
        threads[0].join(0.001)
    assert failures == []


@pytest.fixture
def twin(tmp_path: Path) -> Path:
    return build(tmp_path / "twin", seed=9, name="twin")


def test_models_lends_as_the_handlers_protocol_says(tiny: Path, twin: Path) -> None:
    lender: Lender = serve(tiny, 1 << 30, twin)
    with lender.lend([Need("a", "flux", "twin")]) as lent:
        held: list[HeldModel] = list(lender.resident())
        assert lent["a"].card.name == held[0].name == "twin"
    lender.free()
    assert list(lender.resident()) == []


def test_only_the_families_that_are_served_are_imported(tiny: Path) -> None:
    models: Any = Models(str(tiny), "cpu", 1 << 30, families=["vision"])
    use(models, VISION)
    assert set(models._served._families) == {"vision"}
