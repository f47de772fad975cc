"""Checkpoints: every type to the bit, whole files whoever writes, damaged and foreign files refused by name."""

import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kayn import checkpoints
from kayn.errors import DataError, DataWarning, KaynError
from kayn.inference.records import PROGRAM, Record

TREE = {"w": np.arange(5.0, dtype=np.float32)}
TYPES = [
    "bfloat16",
    "float8_e4m3fn",
    "float8_e5m2",
    "int4",
    "uint4",
    "float16",
    "float32",
    "int8",
    "uint32",
    "bool_",
    "complex64",
]


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("shape", [(), (0,), (2, 3)])
def test_every_type_comes_back_to_the_bit(tmp_path, kind, shape):
    array = jnp.asarray(np.arange(np.prod(shape, dtype=int)).reshape(shape) % 2).astype(getattr(jnp, kind))
    checkpoints.save(tmp_path / "c", {"x": array})
    found, _ = checkpoints.load(tmp_path / "c", {"x": array})
    assert found["x"].dtype == array.dtype
    assert found["x"].shape == shape
    assert np.asarray(found["x"]).tobytes() == np.asarray(array).tobytes()


def test_keys_of_another_generator_are_refused(tmp_path):
    tree = {"key": jax.random.split(jax.random.key(1, impl="rbg"), 3)}
    checkpoints.save(tmp_path / "c", tree)
    found, _ = checkpoints.load(tmp_path / "c", tree)
    assert np.array_equal(jax.random.key_data(found["key"]), jax.random.key_data(tree["key"]))
    with pytest.raises(KaynError, match="key<rbg>"):
        checkpoints.load(tmp_path / "c", {"key": jnp.zeros((3, 4), jnp.uint32)})


def test_files_of_earlier_releases_are_read(tmp_path):
    """They held no types, and bytes without a name where NumPy knew none."""
    path, half = tmp_path / "c.npz", np.asarray(jnp.arange(3, dtype=jnp.bfloat16))
    np.savez(path, notes=np.asarray("[1]"), **{"['w']": TREE["w"], "['h']": half})
    found, notes = checkpoints.load(path, {"w": jnp.zeros(5), "h": jnp.zeros(3, jnp.bfloat16)})
    assert np.array_equal(found["w"], TREE["w"]) and np.array_equal(found["h"], half) and notes == [1]


def test_two_writers_leave_whole_files(tmp_path):
    path = tmp_path / "c.npz"
    checkpoints.save(path, TREE, 0)

    def write(number):
        for _ in range(20):
            checkpoints.save(path, {"w": np.full(5, number, np.float32)}, number)

    writers = [threading.Thread(target=write, args=(number,)) for number in (1.0, 2.0)]
    [w.start() for w in writers]
    while any(w.is_alive() for w in writers):
        tree, number = checkpoints.load(path, TREE)
        assert number == 0 or (tree["w"] == number).all()
    assert [p.name for p in tmp_path.iterdir()] == ["c.npz"]


def test_what_is_damaged_is_refused_with_its_path(tmp_path):
    path = tmp_path / "c.npz"
    checkpoints.save(path, TREE)
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 255
    pickled = tmp_path / "pickled.npz"
    np.savez(pickled, notes=np.array([{}], object))
    for content in (b"", whole[: len(whole) // 2], b"text", bytes(flipped), pickled.read_bytes()):
        path.write_bytes(content)
        with pytest.raises(KaynError, match=r"c\.npz.*(cannot be read|only in)"):
            checkpoints.load(path, TREE)
    for call in (lambda p: checkpoints.load(p, TREE), lambda p: checkpoints.save(p, TREE)):
        for odd in (tmp_path, pickled / "below.npz"):
            with pytest.raises(KaynError, match="cannot be"):
                call(odd)
    with pytest.raises(KaynError, match="array"):
        checkpoints.save(path, {"f": print})


def test_a_record_knows_its_run(tmp_path):
    def record(data=0.0, **settings):
        return Record(tmp_path / "c.npz", {"data": np.full(3, data)}, {"batch_size": 2, PROGRAM: "a", **settings})

    record().keep(TREE, TREE, [1.0], {})
    assert record().resume(TREE, TREE)[2] == [1.0]
    with pytest.raises(DataError, match="with other data"):
        record(data=1.0).resume(TREE, TREE)
    for changed, name in (({"batch_size": 3}, "batch_size"), ({PROGRAM: "b"}, PROGRAM)):
        with pytest.warns(DataWarning, match=name):
            record(**changed).resume(TREE, TREE)
