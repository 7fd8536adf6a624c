from uuid import UUID

import pytest
from atelier.tasks.v1 import task_pb2, worker_service_pb2

from meshkit.catalog import TASK_TYPES, TaskTypeSpec
from services.tasks.domain import AttemptRef
from services.tasks.scheduling.result_paths import misplaced

# Fixed: a parameter names its test, and names have to be the same in every process that runs the tests.
JOB, OTHER_JOB = UUID(int=1), UUID(int=2)
REF = AttemptRef(JOB, 2)


def completion(*objects: str, result: task_pb2.TaskResult | None = None) -> worker_service_pb2.Completion:
    return worker_service_pb2.Completion(
        result=result, objects=[worker_service_pb2.ResultObject(path=path) for path in objects]
    )


def generation(path: str) -> task_pb2.TaskResult:
    result = task_pb2.TaskResult()
    result.generation.result_image_path = path
    return result


def backgrounds(*paths: str) -> task_pb2.TaskResult:
    result = task_pb2.TaskResult()
    result.background_remove.result_image_paths.extend(paths)
    return result


def test_objects_of_the_attempt_are_its_own() -> None:
    path = f"generations/{JOB}/2/image.png"
    assert misplaced(REF, completion(path, result=generation(path))) is None
    assert misplaced(REF, completion(f"noops/{JOB}/2/result.bin")) is None
    assert misplaced(REF, completion()) is None


@pytest.mark.parametrize(
    "path",
    [
        f"generations/{OTHER_JOB}/2/image.png",
        f"generations/{JOB}/1/image.png",
        f"generations/{JOB}/inputs/reference.png",
        f"elsewhere/{JOB}/2/image.png",
        f"other/generations/{JOB}/2/image.png",
        f"generations/{JOB}/2/../1/image.png",
        f"generations/{JOB}/2//image.png",
        f"generations/{JOB}/2/",
        f"generations/{JOB}/2/a\\b.png",
        "",
    ],
)
def test_an_object_that_lies_elsewhere_is_refused(path: str) -> None:
    own = f"generations/{JOB}/2/image.png"
    error = misplaced(REF, completion(own, path))
    assert error is not None
    assert error.violations[0].path == "objects[1].path"


def test_a_path_in_the_result_that_lies_elsewhere_is_refused() -> None:
    error = misplaced(REF, completion(result=generation("identities/somebody.png")))
    assert error is not None
    assert error.violations[0].path == "result.generation.result_image_path"


def test_each_of_several_paths_is_judged() -> None:
    own, foreign = f"backgrounds/{JOB}/2/a.png", f"backgrounds/{OTHER_JOB}/2/a.png"
    assert misplaced(REF, completion(result=backgrounds(own, own))) is None
    error = misplaced(REF, completion(result=backgrounds(own, foreign)))
    assert error is not None
    assert error.violations[0].path == "result.background_remove.result_image_paths[1]"


def test_empty_text_may_stand_where_an_item_failed() -> None:
    own = f"backgrounds/{JOB}/2/a.png"
    assert misplaced(REF, completion(result=backgrounds(own, "", own))) is None


@pytest.mark.parametrize("spec", TASK_TYPES.values(), ids=TASK_TYPES)
def test_every_declared_output_of_every_type_is_judged(spec: TaskTypeSpec) -> None:
    for output in spec.outputs:
        result = task_pb2.TaskResult()
        detail = getattr(result, spec.detail)
        if output.many:
            getattr(detail, output.field).append("elsewhere/x.png")
        else:
            setattr(detail, output.field, "elsewhere/x.png")
        assert misplaced(REF, completion(result=result)) is not None


def test_a_result_of_one_type_does_not_lie_in_the_folder_of_another() -> None:
    assert misplaced(REF, completion(result=generation(f"noops/{JOB}/2/image.png"))) is not None
