"""Pickles are read as data: old and new pandas tables come back, and no payload runs."""

import os
import pickle
import posix
import struct
import sys

import numpy as np
import pandas
import pytest

from xrec.data.unpickling import ReleaseError, load_frame, load_plain


def old_numpy_unpickler(path):
    """What pandas itself makes of a file, with the module numpy renamed given its new name."""

    class Unpickler(pickle.Unpickler):
        def find_class(self, module, name):
            return super().find_class(module.replace("numpy.core", "numpy._core"), name)

    with open(path, "rb") as file:
        return Unpickler(file).load()


def table():
    columns = {"uid": [3, 1, 2], "iid": [7, 8, 9], "title": ["a", "b", "c"], "score": [0.5, 1.5, 2.5]}
    frame = pandas.DataFrame(columns).astype({"title": object})
    frame.columns = frame.columns.astype(object)
    return frame


def write(tmp_path, content):
    path = tmp_path / "file.pkl"
    path.write_bytes(content)
    return path


# What is read --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dataset", ["yelp", "amazon"])
def test_a_published_table_is_what_pandas_reads_in_it(release_data, dataset):
    path = release_data / "xrec-release" / dataset / "tst.pkl"
    expected = old_numpy_unpickler(path)
    columns = load_frame(path)
    assert list(columns) == list(expected.columns)
    for name, values in columns.items():
        assert values.tolist() == expected[name].tolist()


def test_a_published_graph_is_what_pickle_reads_in_it(release_data):
    path = release_data / "xrec-release" / "amazon" / "para_dict.pickle"
    assert load_plain(path) == pickle.loads(path.read_bytes())


@pytest.mark.parametrize("protocol", [4, 5])
@pytest.mark.parametrize("change", [None, "slice", "order", "one column", "narrow numbers", "mixed blocks"])
def test_tables_that_the_installed_pandas_writes_are_read(tmp_path, protocol, change):
    frame = table()
    if change == "slice":
        frame = frame.iloc[1:]
    if change == "order":
        frame = frame[["title", "iid", "score", "uid"]]
    if change == "one column":
        frame = frame[["title"]]
    if change == "narrow numbers":
        frame = frame.astype({"uid": "int32", "score": "float32"})
    if change == "mixed blocks":
        frame["more"] = pandas.Series(["x", None, "z"], dtype=object)
        frame = frame.drop(columns="iid")
    columns = load_frame(write(tmp_path, pickle.dumps(frame, protocol)))
    assert list(columns) == list(frame.columns)
    for name, values in columns.items():
        assert values.tolist() == frame[name].tolist()


# What is refused -----------------------------------------------------------------------------------------------------


class Call:
    """Pickles as the call of a function."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


def marker(tmp_path):
    return tmp_path / "it-ran"


def payloads(path):
    command = f"touch {path}"
    code = f"open({str(path)!r}, 'w').close()"
    system = Call(os.system, command)
    return {
        "posix.system": system,
        "builtins.eval": Call(eval, code),
        "builtins.exec": Call(exec, code),
        "builtins.getattr": Call(getattr, "text", "upper"),
        "builtins.open": Call(open, str(path), "w"),
        "subprocess.Popen": Call(__import__("subprocess").Popen, ["touch", str(path)]),
        "nested": {"trn_user_nb": [[0, 1], system]},
        "inside a table": pandas.DataFrame({"uid": [1], "title": pandas.Series([system], dtype=object)}),
        "as an argument of something allowed": Call(slice, system, 1, 2),
        "os.spawnl": Call(
            os.spawnl, posix.P_NOWAIT if hasattr(posix, "P_NOWAIT") else 1, "/bin/touch", "touch", str(path)
        ),
        "pickle.loads": Call(pickle.loads, pickle.dumps(system)),
        "numpy.load": Call(np.load, str(path), None, True),
        "pandas.read_pickle": Call(pandas.read_pickle, str(path)),
    }


@pytest.mark.parametrize("name", payloads("x"))
@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_a_payload_is_refused_and_does_not_run(tmp_path, name, protocol):
    path = write(tmp_path, pickle.dumps(payloads(marker(tmp_path))[name], protocol))
    for load in (load_plain, load_frame):
        with pytest.raises(ReleaseError, match=r"file.pkl: it refers to [\w.]+, which .* refused and nothing was run"):
            load(path)
    assert not marker(tmp_path).exists()


def test_the_payloads_are_live(tmp_path):
    """What the test above refuses would have run: otherwise it shows nothing."""
    ran = marker(tmp_path)
    for name in ("posix.system", "builtins.eval", "nested"):
        pickle.loads(pickle.dumps(payloads(ran)[name]))
        assert ran.exists()
        ran.unlink()


def stack_global(module, name):
    def text(value):
        return b"\x8c" + struct.pack("<B", len(value)) + value.encode()

    return text(module) + text(name) + b"\x93"


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("os", "system"),
        ("pandas.core.frame", "DataFrame.eval"),
        ("pandas.core.frame", "DataFrame.__init__.__globals__"),
        ("pandas", "DataFrame.to_pickle"),
        ("numpy", "ndarray.tofile"),
        ("builtins", "slice.__class__"),
        ("numpy.core.multiarray", "os"),
        ("pandas.core.internals.managers", "Any"),
        ("", ""),
    ],
)
def test_a_dotted_or_re_exported_name_is_refused(tmp_path, module, name):
    content = b"\x80\x04" + stack_global(module, name) + b"."
    with pytest.raises(ReleaseError, match="it refers to"):
        load_plain(write(tmp_path, content))


def test_the_extension_registry_and_persistent_ids_are_no_way_in(tmp_path):
    import copyreg

    copyreg.add_extension("posix", "system", 240)
    try:
        content = pickle.dumps(Call(os.system, f"touch {marker(tmp_path)}"), 4)
        assert b"\x82\xf0" in content
        with pytest.raises(ReleaseError, match=r"posix.system"):
            load_plain(write(tmp_path, content))
    finally:
        copyreg.remove_extension("posix", "system", 240)
    with pytest.raises(ReleaseError, match="not a readable pickle"):
        load_plain(write(tmp_path, b"\x80\x04Pposix.system\n."))
    assert not marker(tmp_path).exists()


def test_nothing_that_is_allowed_can_be_changed_for_the_next_load(tmp_path):
    """State set on an allowed global, as pickles may, reaches neither pandas nor the next file."""
    before = dict(vars(pandas.DataFrame))
    for slots in (b"}", b"N}\x8c\x07__len__" + stack_global("builtins", "slice") + b"s\x86"):
        content = b"\x80\x04" + stack_global("pandas.core.frame", "DataFrame") + slots + b"b."
        with pytest.raises(ReleaseError, match="not a readable pickle"):
            load_plain(write(tmp_path, content))
    assert dict(vars(pandas.DataFrame)) == before
    assert list(load_frame(write(tmp_path, pickle.dumps(table())))) == list(table())


def test_reading_imports_nothing_that_the_file_names(tmp_path):
    absent = "antigravity"
    assert absent not in sys.modules
    with pytest.raises(ReleaseError, match=r"antigravity.fly"):
        load_plain(write(tmp_path, b"\x80\x04" + stack_global(absent, "fly") + b"."))
    assert absent not in sys.modules


# What is broken ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [b"", b"\x80\x04", b"user,item\n1,2\n", b"\x80\x04]e.", pickle.dumps([1, 2])[:-3]])
def test_a_broken_file_is_named(tmp_path, content):
    with pytest.raises(ReleaseError, match=r"file.pkl: not a readable pickle .*get the file again"):
        load_plain(write(tmp_path, content))


def test_every_truncation_of_a_table_is_refused(tmp_path):
    content = pickle.dumps(table(), 4)
    for length in range(0, len(content), 7):
        with pytest.raises(ReleaseError):
            load_frame(write(tmp_path, content[:length]))


@pytest.mark.parametrize("value", [[1, 2], {"uid": [1]}, "text", slice(1, 2)])
def test_what_is_no_table_is_named(tmp_path, value):
    with pytest.raises(ReleaseError, match=r"file.pkl: not a pandas table that can be read \(found"):
        load_frame(write(tmp_path, pickle.dumps(value)))


def test_a_column_type_that_is_not_supported_is_named(tmp_path):
    frame = pandas.DataFrame({"when": pandas.to_datetime(["2020-01-01"])})
    with pytest.raises(ReleaseError):
        load_frame(write(tmp_path, pickle.dumps(frame)))
    frame = pandas.DataFrame({"flag": np.array([1 + 2j])})
    frame.columns = frame.columns.astype(object)
    with pytest.raises(ReleaseError, match=r"columns of type 'c16' .* are not supported, write object columns"):
        load_frame(write(tmp_path, pickle.dumps(frame)))


def test_damaged_bytes_never_do_worse_than_an_error(tmp_path):
    """Random damage gives a table or a ReleaseError, nothing else."""
    random, whole = np.random.default_rng(0), pickle.dumps(table(), 4)
    outcomes = {"table": 0, "error": 0}
    for _ in range(2000):
        content = bytearray(whole)
        for place in random.integers(0, len(content), size=int(random.integers(1, 4))):
            content[place] = random.integers(0, 256)
        try:
            columns = load_frame(write(tmp_path, bytes(content)))
        except ReleaseError:
            outcomes["error"] += 1
        else:
            assert all(isinstance(values, np.ndarray) for values in columns.values())
            outcomes["table"] += 1
    assert min(outcomes.values()) > 100
