"""Follow the opcodes of a pickle that describes tensors, and refuse every other.

Python's unpickler imports what a pickle names and calls it. This does neither: a name stays a text, and what a known
name makes of its arguments is written here. Opcodes: https://docs.python.org/3/library/pickletools.html. Names and
their arguments: torch/_utils.py (`_rebuild_tensor_v2`, `_rebuild_parameter`), torch/serialization.py (`persistent_id`).
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, BinaryIO, Final

MAX_OPCODES: Final = 2_000_000
_MAX_STACK: Final = 100_000
_MAX_TEXT: Final = 1000


class RefusedPickleError(Exception):
    """A pickle holds something else than tensors.

    Args:
        reason: What, in a sentence that may be shown.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Name:
    """Something that the pickle would import, which it is not."""

    text: str


@dataclass(frozen=True, slots=True)
class Storage:
    """Bytes beside the pickle.

    Attributes:
        key: Their name in the archive.
        dtype: Type of the elements, as safetensors calls it; None where the tensor tells.
        elements: How many.
    """

    key: str
    dtype: str | None
    elements: int


@dataclass(frozen=True, slots=True)
class Tensor:
    """A view of a storage.

    Attributes:
        storage: The storage.
        dtype: Type of its elements.
        offset: First element.
        shape: Its shape.
        strides: Elements from one to the next, by dimension.
    """

    storage: Storage
    dtype: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


DTYPES: Mapping[str, str] = MappingProxyType(
    {
        "torch.DoubleStorage": "F64",
        "torch.FloatStorage": "F32",
        "torch.HalfStorage": "F16",
        "torch.BFloat16Storage": "BF16",
        "torch.LongStorage": "I64",
        "torch.IntStorage": "I32",
        "torch.float64": "F64",
        "torch.float32": "F32",
        "torch.float16": "F16",
        "torch.bfloat16": "BF16",
        "torch.float8_e4m3fn": "F8_E4M3",
        "torch.float8_e5m2": "F8_E5M2",
    }
)
"""Names of torch's types, and what safetensors calls them."""
_UNTYPED = "torch.storage.UntypedStorage"
_MARK: Final = object()


def read_pickle(file: BinaryIO) -> Any:
    """Return what a pickle describes: dictionaries, lists, tuples, plain values, `Tensor`s and `Name`s.

    Args:
        file: The pickle; it is left behind its end.

    Raises:
        RefusedPickleError: It holds something else, or is damaged.
    """
    machine = _PickleMachine()
    try:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(file)):
            if count > MAX_OPCODES:
                raise RefusedPickleError("it holds too many instructions")
            if opcode.name == "STOP":
                return machine.pop()
            machine.step(opcode.name, argument)
    except (ValueError, IndexError, KeyError, TypeError, OverflowError, UnicodeError):
        raise RefusedPickleError("it is damaged") from None
    raise RefusedPickleError("it is cut short")


class _PickleMachine:
    def __init__(self) -> None:
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def pop(self) -> Any:
        """Take the topmost value."""
        return self._stack.pop()

    def step(self, opcode: str, argument: Any) -> None:
        """Follow one opcode.

        Raises:
            RefusedPickleError: It is none of a pickle of tensors.
        """
        if opcode in _VALUES:
            if isinstance(argument, str | bytes) and len(argument) > _MAX_TEXT:
                raise RefusedPickleError("it holds a long text")
            self._push(argument)
            return
        follow = _OPCODES.get(opcode)
        if follow is None:
            raise RefusedPickleError(f"it holds the instruction {opcode}")
        follow(self, argument)

    def _push(self, value: Any) -> None:
        if len(self._stack) >= _MAX_STACK:
            raise RefusedPickleError("it is nested too deeply")
        self._stack.append(value)

    def _above_mark(self) -> list[Any]:
        at = len(self._stack) - 1
        while self._stack[at] is not _MARK:
            at -= 1
            if at < 0:
                raise IndexError
        above = self._stack[at + 1 :]
        del self._stack[at:]
        return above

    def constant(self, value: Any) -> None:
        self._push(value)

    def mark(self, _: Any) -> None:
        self._push(_MARK)

    def nothing(self, _: Any) -> None:
        pass

    def empty_dict(self, _: Any) -> None:
        self._push({})

    def empty_list(self, _: Any) -> None:
        self._push([])

    def empty_tuple(self, _: Any) -> None:
        self._push(())

    def tuple_of(self, count: int) -> None:
        items = self._stack[-count:]
        if len(items) < count:
            raise IndexError
        del self._stack[-count:]
        self._push(tuple(items))

    def marked_tuple(self, _: Any) -> None:
        self._push(tuple(self._above_mark()))

    def append(self, _: Any) -> None:
        item = self.pop()
        self._list().append(item)

    def appends(self, _: Any) -> None:
        items = self._above_mark()
        self._list().extend(items)

    def set_item(self, _: Any) -> None:
        value, key = self.pop(), self.pop()
        self._dict()[_key(key)] = value

    def set_items(self, _: Any) -> None:
        items = self._above_mark()
        if len(items) % 2:
            raise ValueError
        target = self._dict()
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[_key(key)] = value

    def put(self, at: int) -> None:
        self._memo[at] = self._stack[-1]

    def memoize(self, _: Any) -> None:
        self._memo[len(self._memo)] = self._stack[-1]

    def get(self, at: int) -> None:
        self._push(self._memo[at])

    def discard(self, _: Any) -> None:
        self.pop()

    def name(self, text: str) -> None:
        self._push(_allowed(text.replace(" ", ".", 1)))

    def stack_name(self, _: Any) -> None:
        name, module = self.pop(), self.pop()
        if not (isinstance(name, str) and isinstance(module, str)):
            raise TypeError
        self._push(_allowed(f"{module}.{name}"))

    def reduce(self, _: Any) -> None:
        arguments, called = self.pop(), self.pop()
        if not isinstance(called, Name) or not isinstance(arguments, tuple):
            raise RefusedPickleError("it calls what is no function")
        make = _MADE.get(called.text)
        if make is None:
            raise RefusedPickleError(f"it would call {called.text[:100]}")
        self._push(make(*arguments))

    def build(self, _: Any) -> None:
        # Attributes of a state dict: torch keeps versions there.
        self.pop()
        self._dict()

    def persistent(self, _: Any) -> None:
        told = self.pop()
        if not isinstance(told, tuple) or len(told) not in {5, 6} or told[0] != "storage":
            raise RefusedPickleError("it refers to what is no storage")
        _, kind, key, _, elements = told[:5]
        if len(told) == 6 and told[5] is not None:
            raise RefusedPickleError("it holds a view of a storage")
        if not isinstance(kind, Name) or (kind.text not in DTYPES and kind.text != _UNTYPED):
            raise RefusedPickleError("it holds a storage of an unknown type")
        if not isinstance(key, str) or not key.isalnum() or not _is_size(elements):
            raise ValueError
        self._push(Storage(key, DTYPES.get(kind.text), elements))

    def _list(self) -> list[Any]:
        target = self._stack[-1]
        if not isinstance(target, list):
            raise TypeError
        return target

    def _dict(self) -> dict[Any, Any]:
        target = self._stack[-1]
        if not isinstance(target, dict):
            raise RefusedPickleError("it sets the state of what is no dictionary")
        return target


def _key(key: Any) -> Any:
    if not isinstance(key, str | int | float | bool) and key is not None:
        raise TypeError
    return key


def _allowed(text: str) -> Name:
    if text not in DTYPES and text not in _MADE and text != _UNTYPED:
        raise RefusedPickleError(f"it would call {text[:100]}")
    return Name(text)


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 40


def _ordered(*items: Any) -> dict[Any, Any]:
    if not items:
        return {}
    (pairs,) = items
    return {_key(key): value for key, value in pairs}


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *rest: Any) -> Tensor:
    if not isinstance(storage, Storage) or not isinstance(shape, tuple) or not isinstance(strides, tuple):
        raise TypeError
    if len(shape) != len(strides) or len(shape) > 8 or not all(map(_is_size, (offset, *shape, *strides))):
        raise ValueError
    told = next((DTYPES.get(one.text) for one in rest if isinstance(one, Name)), None)
    dtype = storage.dtype or told
    if dtype is None:
        raise RefusedPickleError("it holds a tensor of an unknown type")
    return Tensor(storage, dtype, offset, shape, strides)


def _parameter(data: Any, *rest: Any) -> Tensor:
    del rest  # whether it was trained, and hooks that nobody runs
    if not isinstance(data, Tensor):
        raise TypeError
    return data


_MADE: Mapping[str, Callable[..., Any]] = MappingProxyType(
    {
        "collections.OrderedDict": _ordered,
        "torch._utils._rebuild_tensor": _tensor,
        "torch._utils._rebuild_tensor_v2": _tensor,
        "torch._utils._rebuild_tensor_v3": _tensor,
        "torch._utils._rebuild_parameter": _parameter,
    }
)
_VALUES: Final = frozenset(
    {
        "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT",
        "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINSTRING", "SHORT_BINSTRING",
    }
)  # fmt: skip
_OPCODES: Final[Mapping[str, Callable[[_PickleMachine, Any], None]]] = MappingProxyType(
    {
        "PROTO": _PickleMachine.nothing,
        "FRAME": _PickleMachine.nothing,
        "NONE": lambda machine, _: machine.constant(None),
        "NEWTRUE": lambda machine, _: machine.constant(True),  # noqa: FBT003 -- the value, not a flag
        "NEWFALSE": lambda machine, _: machine.constant(False),  # noqa: FBT003 -- the value, not a flag
        "MARK": _PickleMachine.mark,
        "EMPTY_DICT": _PickleMachine.empty_dict,
        "EMPTY_LIST": _PickleMachine.empty_list,
        "EMPTY_TUPLE": _PickleMachine.empty_tuple,
        "TUPLE": _PickleMachine.marked_tuple,
        "TUPLE1": lambda machine, _: machine.tuple_of(1),
        "TUPLE2": lambda machine, _: machine.tuple_of(2),
        "TUPLE3": lambda machine, _: machine.tuple_of(3),
        "APPEND": _PickleMachine.append,
        "APPENDS": _PickleMachine.appends,
        "SETITEM": _PickleMachine.set_item,
        "SETITEMS": _PickleMachine.set_items,
        "BINPUT": _PickleMachine.put,
        "LONG_BINPUT": _PickleMachine.put,
        "MEMOIZE": _PickleMachine.memoize,
        "BINGET": _PickleMachine.get,
        "LONG_BINGET": _PickleMachine.get,
        "POP": _PickleMachine.discard,
        "GLOBAL": _PickleMachine.name,
        "STACK_GLOBAL": _PickleMachine.stack_name,
        "REDUCE": _PickleMachine.reduce,
        "BUILD": _PickleMachine.build,
        "BINPERSID": _PickleMachine.persistent,
    }
)
