"""A file that a user wrote is read, or refused in a sentence with the place of its fault."""

import json
from pathlib import Path
from typing import Any

import pytest

from atelier_cli import documents
from atelier_cli.documents import read_object
from atelier_cli.errors import CliError, ExitCode


def refusal(file: Path) -> str:
    with pytest.raises(CliError) as caught:
        read_object(file)
    assert caught.value.code is ExitCode.USAGE
    assert str(file) in caught.value.sentence
    return caught.value.sentence.removeprefix(str(file))


def written(folder: Path, text: str | bytes, name: str = "w.yaml") -> Path:
    file = folder / name
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return file


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("a: 2026-11-26", "line 2, column 4: a is a date"),
        ("a: 2026-11-26T10:00:00Z", "line 2, column 4: a is a date"),
        ("a: {b: [1, .nan]}", "line 2, column 12: a.b[1] is nan"),
        ("a: -.inf", "line 2, column 4: a is -inf"),
        ("a: !!set {x, y}", "line 2, column 4: a is a set"),
        ("a: !!omap [x: 1]", "line 2, column 4: a is an ordered map"),
        ("a: !!binary aGVsbG8=", "line 2, column 4: a is binary"),
        ("a: {1: x}", "line 2, column 5: the key 1 in a is no text"),
        ("on: x", "line 2, column 1: the key on is no text"),
        ("? [a]\n: x", "line 2, column 3: the key is no text"),
        ("a: &c {x: *c}", "line 2, column 4: a.x contains itself"),
        ('a: "\\ud800"', "line 2, column 4: a is text with half a character (U+D800)"),
        ('"\\ud800": a', "line 2, column 1: the key of \\ud800 is text with half a character"),
        ("b: 1\na: 2\nb: 3", "line 4, column 1: the key 'b' stands here again; line 2 has it already"),
        ("a: !unknown x", "line 2, column 4"),
        ("a: !!python/object/new:os.system [x]", "line 2, column 4"),
        ("a: 'open", "line 3, column 1: while scanning a quoted scalar"),
        ("a: [1, 2", "line 3, column 1"),
        ("a: *nobody", "line 2, column 4: found undefined alias"),
        ("a: 0x_", "line 2, column 4: a is no valid value"),
        ("a: " + "9" * 5000, "line 2, column 4: a is no valid value"),
        ("a: \0", "line 2, column 4: the character U+0000 is not allowed"),
        ("---\nb: 1", "line 2, column 1: expected a single document"),
    ],
)
def test_a_fault_of_a_yaml_file_is_told_with_its_place(tmp_path: Path, line: str, said: str) -> None:
    assert said in refusal(written(tmp_path, f"name: n\n{line}\n"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"a": 1,\n "b": }', "line 2, column 7"),
        ('{"a": 1,\n\t"b": 2,\n\t"a": 3}', "line 3, column 2: the key 'a' stands here again; line 1 has it already"),
        ('{"a": [NaN]}', "a[0] is nan"),
        ('{"a": "\\udfff"}', "a is text with half a character (U+DFFF)"),
        ('{"a": ' + "9" * 5000 + "}", "too many digits"),
        ("[" * 100_000, "nested too deeply"),
        ("[]", "holds no object"),
        ("", "line 1, column 1"),
    ],
)
def test_a_fault_of_a_json_file_is_told_with_its_place(tmp_path: Path, text: str, said: str) -> None:
    assert said in refusal(written(tmp_path, text, "w.json"))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "holds no object"),
        ("- a\n- list\n", "holds no object"),
        ("[" * 5000, "nested too deeply"),
        (b"a: 1\nb: \xff\n", "is not UTF-8: line 2 has the byte 0xff"),
        ("a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
            f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join([f'*{chr(97 + i)}'] * 10)}]\n" for i in range(6)
        ), "holds more than"),
    ],
    ids=["empty", "list", "deep", "latin-1", "aliases of aliases"],
)  # fmt: skip
def test_a_file_that_is_no_definition_is_refused(tmp_path: Path, content: str | bytes, said: str) -> None:
    assert said in refusal(written(tmp_path, content))


def test_what_is_no_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "is a folder" in refusal(tmp_path)
    assert "No such file" in refusal(tmp_path / "none.yaml")
    assert "Not a directory" in refusal(written(tmp_path, "a: 1") / "under.yaml")
    assert "File name too long" in refusal(tmp_path / ("n" * 300))
    monkeypatch.setattr(documents, "_MAX_BYTES", 1024**2)
    assert "larger than 1 MiB" in refusal(Path("/dev/zero"))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a: &x {b: 1, c: 2}\nd: {<<: *x, c: 3}\ne: {<<: *x}\nf: *x", {"a": {"b": 1, "c": 2}, "d": {"b": 1, "c": 3}}),
        ("\ufeffa: x\nd: {b: ~, c: [true, 1.5, -7]}", {"a": "x", "d": {"b": None, "c": [True, 1.5, -7]}}),
        ('{"a":\t1e5,\n\t"d": "\\ud83d\\ude00"}', {"a": 1e5, "d": "😀"}),
        ("{a: 1, d: '2026-11-26'}", {"a": 1, "d": "2026-11-26"}),
    ],
    ids=["merged", "kinds", "json in a yaml file", "flow"],
)
def test_a_definition_is_read_as_it_stands(tmp_path: Path, text: str, value: dict[str, Any]) -> None:
    found = read_object(written(tmp_path, text))
    assert {name: found[name] for name in value} == value
    assert json.loads(json.dumps(found)) == found
