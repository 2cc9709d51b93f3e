#!/usr/bin/env python3
"""Golden vectors of dsv4 for engines in Python. Needs numpy and h5py; vectors/FORMAT.md has the details.

    from dsv4_vectors import cases, Candidate

    with Candidate("out.h5") as out:
        for case in cases("vectors/v1", operator="rmsnorm"):
            x, weight = case.inputs["x"], case.inputs["weight"]
            eps = case.params["rms_norm_eps"]
            y = x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + eps) * weight
            if case.numerics == "released":
                y = to_bf16(y)
            out.write(case, y=y)

Then: dsv4 verify --candidate out.h5 --op rmsnorm

`python3 dsv4_vectors.py DIR` lists what is in a directory of vector files.
"""

import hashlib
import os
import sys

import h5py
import numpy as np

__all__ = ["Case", "Candidate", "cases", "decode_e4m3", "decode_e2m1", "decode_e8m0", "matrix", "to_bf16"]

NUMERICS = ("exact", "released")
_TEXTS = ("numerics", "reason", "flags", "checkpoint")


def decode_e4m3(codes):
    """FP8 codes (uint8) to float64: 1 sign, 4 exponent (bias 7), 3 mantissa bits; 0x7f and 0xff are NaN."""
    codes = np.asarray(codes, dtype=np.uint8)
    exponent = (codes >> 3 & 15).astype(np.int32)
    mantissa = (codes & 7).astype(np.float64)
    values = np.where(exponent == 0, mantissa * 2.0**-9,
                      np.ldexp(1 + mantissa / 8, exponent - 7))
    values = np.where(codes & 0x7f == 0x7f, np.nan, values)
    return np.where(codes & 0x80, -values, values)


def decode_e2m1(codes):
    """Packed FP4 codes (uint8, the low nibble first) to float64; the last dimension doubles."""
    codes = np.asarray(codes, dtype=np.uint8)
    table = np.array([0, .5, 1, 1.5, 2, 3, 4, 6, -0.0, -.5, -1, -1.5, -2, -3, -4, -6])
    nibbles = np.stack([codes & 15, codes >> 4], axis=-1)
    return table[nibbles.reshape(codes.shape[:-1] + (2 * codes.shape[-1],))]


def decode_e8m0(codes):
    """Scales (uint8) to float64: 2^(code - 127); 255 is NaN."""
    codes = np.asarray(codes, dtype=np.uint8)
    return np.where(codes == 255, np.nan, np.ldexp(1.0, codes.astype(np.int32) - 127))


def to_bf16(x):
    """Rounds float32 or float64 values to bf16, to nearest even, and returns them as float32."""
    x = np.asarray(x)
    single = x.astype(np.float32)
    if x.dtype == np.float64:
        # Rounding twice must not turn a near middle into one: the first rounding is to odd.
        bits = single.view(np.uint32)
        away = np.abs(single.astype(np.float64)) > np.abs(x)
        inexact = np.isfinite(x) & (single.astype(np.float64) != x)
        bits = np.where(inexact, np.where(away, bits - 1, bits) | 1, bits).astype(np.uint32)
    else:
        bits = single.view(np.uint32)
    rounded = (bits + np.uint32(0x7fff) + (bits >> 16 & 1)) & np.uint32(0xffff0000)
    return np.where(np.isnan(single), single, rounded.astype(np.uint32).view(np.float32))


def _recipe_bytes(seed, count):
    """The first bytes of recipe splitmix64."""
    with np.errstate(over="ignore"):
        x = np.arange(1, (count + 7) // 8 + 1, dtype=np.uint64) * np.uint64(0x9e3779b97f4a7c15)
        x += np.uint64(seed)
        x = (x ^ x >> np.uint64(30)) * np.uint64(0xbf58476d1ce4e5b9)
        x = (x ^ x >> np.uint64(27)) * np.uint64(0x94d049bb133111eb)
        x ^= x >> np.uint64(31)
    return x.astype("<u8").view(np.uint8)[:count]


def _make(attributes):
    """An array that a recipe describes."""
    recipe, fmt = _text(attributes["recipe"]), _text(attributes["format"])
    shape = tuple(int(n) for n in np.atleast_1d(attributes["shape"]))
    if recipe != "splitmix64":
        raise ValueError(f"unknown recipe '{recipe}'")
    data = _recipe_bytes(int(attributes["recipe_seed"]), int(np.prod(shape, dtype=np.int64)))
    if fmt == "e4m3":
        data = data & np.uint8(0xbf)
    elif fmt == "e8m0":
        data = np.uint8(118) + data % np.uint8(4)
    elif fmt in ("f32", "bf16"):
        data = data.view(np.int8).astype(np.float32) / np.float32(128)
    elif fmt != "e2m1":
        raise ValueError(f"recipe '{recipe}' of format '{fmt}'")
    if hashlib.sha256(np.ascontiguousarray(data).tobytes()).hexdigest() != _text(attributes["sha256"]):
        raise ValueError(f"the values of recipe '{recipe}' are not those of the vector file")
    return data.reshape(shape)


def _text(value):
    return value.decode() if isinstance(value, bytes) else str(value)


class Case:
    """One case: .operator .name .numerics .reason .flags (a set) .params (dict of float) .inputs and
    .outputs (dicts of arrays; FP8, FP4 and scales as uint8) .formats (of all of them, by "in/x", "out/y")
    .tolerances ({slot: {"fp32": (row, element, rms), "bf16": ...}}) .checkpoint (a directory, or None)"""

    def __init__(self, operator, name, group, directory):
        self.operator, self.name = operator, name
        texts = {key: _text(group.attrs.get(key, "")) for key in _TEXTS}
        self.numerics, self.reason = texts["numerics"], texts["reason"]
        self.flags = set(texts["flags"].split())
        self.checkpoint = os.path.join(directory, texts["checkpoint"]) if texts["checkpoint"] else None
        self.params = {key: float(value) for key, value in group.attrs.items() if key not in _TEXTS}
        self.formats, self.tolerances = {}, {}
        self.inputs = self._read(group, "in")
        self.outputs = self._read(group, "out")

    def _read(self, group, side):
        arrays = {}
        for slot, dataset in group.get(side, {}).items():
            self.formats[f"{side}/{slot}"] = _text(dataset.attrs["format"])
            arrays[slot] = _make(dataset.attrs) if "recipe" in dataset.attrs else dataset[()]
            if side == "out":
                self.tolerances[slot] = {tier: tuple(float(t) for t in dataset.attrs[f"tolerance_{tier}"])
                                         for tier in ("fp32", "bf16")}
        return arrays

    def __repr__(self):
        return f"<{self.operator}/{self.name}>"


def matrix(case, slot):
    """Matrix `slot` ("w": inputs "w.weight" and "w.scale", or "w" itself), dequantised to float64."""
    name = slot if slot in case.inputs else f"{slot}.weight"
    weight, fmt = case.inputs[name], case.formats[f"in/{name}"]
    if fmt not in ("e4m3", "e2m1"):
        return weight.astype(np.float64)
    values = decode_e4m3(weight) if fmt == "e4m3" else decode_e2m1(weight)
    scale = decode_e8m0(case.inputs[f"{slot}.scale"])
    rows, columns = (128, 128) if fmt == "e4m3" else (1, 32)
    spread = np.repeat(np.repeat(scale, rows, axis=-2), columns, axis=-1)
    return values * spread[..., :values.shape[-2], :values.shape[-1]]


def cases(directory, operator=None, numerics=None):
    """Yields the cases of a directory of vector files, file by file; of one operator or contract where
    asked for."""
    for name in sorted(os.listdir(directory)):
        stem, extension = os.path.splitext(name)
        op, _, contract = stem.rpartition("_")
        if extension != ".h5" or contract not in NUMERICS:
            continue
        if (operator is not None and op != operator) or (numerics is not None and contract != numerics):
            continue
        with h5py.File(os.path.join(directory, name), "r") as file:
            if _text(file.attrs.get("format", "")) != "dsv4-vectors-1":
                raise ValueError(f"{name}: expected format dsv4-vectors-1")
            for case, group in file[op].items():
                yield Case(op, case, group, directory)


class Candidate:
    """A file of answers, for `dsv4 verify --candidate`."""

    def __init__(self, path):
        self._file = h5py.File(path, "w")

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.close()

    def write(self, case, **outputs):
        """The outputs of a case by slot: write(case, y=array). Floats of any width, integers for indices;
        outputs that are optional may be left out. For names that are no identifiers:
        write(case, **{"a.b": array})."""
        for slot, values in outputs.items():
            if slot not in case.outputs:
                raise KeyError(f"{case!r} has no output '{slot}', but: {', '.join(case.outputs)}")
            self._file[f"{case.operator}/{case.name}/out/{slot}"] = np.asarray(values)

    def close(self):
        self._file.close()


def main():
    if len(sys.argv) != 2 or sys.argv[1] in ("-h", "--help"):
        print("usage: dsv4_vectors.py DIR", file=sys.stderr)
        return 2
    if not os.path.isdir(sys.argv[1]):
        print(f"{sys.argv[1]}: no such directory", file=sys.stderr)
        return 2
    counts = {}
    for case in cases(sys.argv[1]):
        row = counts.setdefault(case.operator, dict.fromkeys(NUMERICS, 0))
        row[case.numerics] += 1
    print(f"{'operator':20}  {'exact':>5}  {'released':>8}")
    for operator, row in counts.items():
        print(f"{operator:20}  {row['exact']:5}  {row['released']:8}")
    print(f"{sum(sum(row.values()) for row in counts.values())} cases")
    return 0 if counts else 1


if __name__ == "__main__":
    sys.exit(main())
