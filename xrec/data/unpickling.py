"""Reads the pickles of a published XRec release without running anything that they say.

A pickle is a program: it names globals and calls them. Here every global on a short list becomes an inert record that
only remembers how it was called, and every other global is refused by name. A pandas table is then read out of the
tree of records, so neither the file nor the installed pandas decides what happens, and old pickles stay readable.

Supported: plain lists, dictionaries, strings and numbers; `pandas.DataFrame` with integer, float and object columns,
as pandas 1.3 and later write it (protocol 4 and 5).
"""

import os
import pickle
from typing import Any

import numpy as np

# What the unpickler raises on damaged bytes; a damaged length may ask for absurd amounts of memory.
_DAMAGE = (
    pickle.UnpicklingError,
    EOFError,
    AttributeError,
    TypeError,
    ValueError,
    LookupError,
    OverflowError,
    MemoryError,
)


class ReleaseError(ValueError):
    """A file of a published release is not what it should be; the message names the file, what is wrong, the remedy."""


class _Record:
    """What a pickle said about one object: the arguments of the call and the state that was set."""

    state: Any = None
    args: tuple = ()

    def __init__(self, *args: Any):
        self.args = args

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Array(_Record):
    """`numpy._reconstruct(type, shape, code)` and then state, or `_frombuffer(buffer, dtype, shape, order)`."""


class _BufferArray(_Record):
    pass


class _DType(_Record):
    pass


class _Slice(_Record):
    pass


class _Index(_Record):
    pass


class _Block(_Record):
    pass


class _Manager(_Record):
    pass


class _Frame(_Record):
    pass


class _Class(_Record):
    """A class that only occurs as an argument, such as `Index` in `_new_Index(Index, {…})`."""


_ALLOWED: dict[tuple[str, str], type[_Record]] = {
    ("builtins", "slice"): _Slice,
    ("numpy", "dtype"): _DType,
    ("numpy", "ndarray"): _Class,
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.multiarray", "_reconstruct"): _Array,
    ("numpy.core.numeric", "_frombuffer"): _BufferArray,
    ("numpy._core.numeric", "_frombuffer"): _BufferArray,
    ("pandas._libs.internals", "_unpickle_block"): _Block,
    ("pandas.core.internals.managers", "BlockManager"): _Manager,
    ("pandas.core.indexes.base", "_new_Index"): _Index,
    ("pandas.core.indexes.base", "Index"): _Class,
    ("pandas.core.indexes.numeric", "Int64Index"): _Class,
    ("pandas.core.indexes.range", "RangeIndex"): _Class,
    ("pandas", "Index"): _Class,
    ("pandas", "RangeIndex"): _Class,
    ("pandas.core.frame", "DataFrame"): _Frame,
    ("pandas", "DataFrame"): _Frame,
}
_NUMBERS = ("i4", "i8", "f4", "f8")


class _Unpickler(pickle.Unpickler):
    def find_class(self, module_name: str, global_name: str, /) -> Any:
        if (module_name, global_name) not in _ALLOWED:
            raise ReleaseError(
                f"it refers to {module_name}.{global_name}, which a published XRec file has no use for, so it was "
                "refused and nothing was run; get the file from a source you trust, or write it again as a plain "
                "pandas table with object columns"
            )
        return _ALLOWED[module_name, global_name]


def load_plain(path: str | os.PathLike) -> Any:
    """The plain value (lists, dictionaries, strings, numbers) in a pickle.

    Raises:
        ReleaseError: it refers to a global that is not allowed, or is not a readable pickle.
    """
    return _load(path)


def load_frame(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """The columns of the pandas table in a pickle, each `[rows]`; its row index is left out.

    Raises:
        ReleaseError: it refers to a global that is not allowed, is not a readable pickle, or holds no such table.
    """
    loaded = _load(path)
    try:
        return _columns(loaded)
    except (ValueError, TypeError, LookupError) as error:
        raise ReleaseError(f"{os.fspath(path)}: not a pandas table that can be read ({error})") from error


def _load(path: str | os.PathLike) -> Any:
    with open(path, "rb") as file:
        try:
            return _Unpickler(file).load()
        except ReleaseError as error:
            raise ReleaseError(f"{os.fspath(path)}: {error}") from error
        except _DAMAGE as error:
            raise ReleaseError(
                f"{os.fspath(path)}: not a readable pickle ({type(error).__name__}: {error}); get the file again"
            ) from error


def _columns(frame: Any) -> dict[str, np.ndarray]:
    match frame:
        case _Frame(state={"_mgr": _Manager(args=([*blocks], [_Index(args=(_, {"data": names})), *_]))}):
            labels = _values(names)
        case _:
            raise ValueError(f"found {type(frame).__name__.lstrip('_')}")
    columns: dict[str, np.ndarray] = {}
    for block in blocks:
        match block:
            case _Block(args=(values, _Slice(args=(int(), int(), int() | None) as bounds), _)):
                placed = labels[slice(*bounds)]
            case _Block(args=(values, places, _)):
                placed = labels[_values(places)]
            case _:
                raise ValueError("a block of columns is malformed")
        rows = _values(values)
        if rows.ndim != 2 or any(len(column) != rows.shape[1] for column in columns.values()):
            raise ValueError("its columns differ in length")
        columns.update(zip(placed.tolist(), rows, strict=True))
    return {name: columns[name] for name in labels.tolist() if name in columns}


def _values(array: Any) -> np.ndarray:
    match array:
        case _Array(state=(_, shape, _DType() as dtype, bool() as fortran, data)):
            order = "F" if fortran else "C"
        case _BufferArray(args=(data, _DType() as dtype, shape, "C" | "F" as order)):
            pass
        case _:
            raise ValueError(f"expected an array, found {type(array).__name__.lstrip('_')}")
    code, byte_order = dtype.args[0], dtype.state[1] if dtype.state else "<"
    if code in _NUMBERS and byte_order == "<":
        return np.frombuffer(data, dtype="<" + code).reshape(shape, order=order)
    if code in ("O", "O8") and isinstance(data, list):
        values = np.empty(len(data), dtype=object)
        values[:] = data
        return values.reshape(shape, order=order)
    raise ValueError(f"columns of type {code!r} (byte order {byte_order!r}) are not supported, write object columns")
