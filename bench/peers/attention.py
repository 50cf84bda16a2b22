"""Exact attention of Fovea, PyTorch and llama.cpp (ggml) on the same shapes, types and threads.

Alternating runs on one machine; medians of seconds and their ratios. PyTorch gets the faster of its two ways to say grouped heads.
ggml holds keys and values in f16, as llama.cpp does, and its causal form reads a mask.
"""
# SPDX-License-Identifier: Apache-2.0
import argparse
import ctypes
import importlib.metadata
import importlib.util
import json
import os
import pathlib
import statistics
import subprocess
import time

import numpy
import torch

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--fovea", required=True)
parser.add_argument("--threads", type=int, default=os.cpu_count())
parser.add_argument("--rounds", type=int, default=3)
parser.add_argument("--output", help="also write the rows as JSON")
parser.add_argument("--without", default="", help="peers to leave out: pytorch, ggml")
parser.add_argument("--shapes", choices=("all", "prompts", "steps"), default="all")
parser.add_argument("--longer", action="store_true", help="prompts of 2k to 16k and caches to 128k: for larger machines")
arguments = parser.parse_args()
skipped = arguments.without.split(",")
torch.set_num_threads(arguments.threads)

# (queries, keys, query heads, kv heads, dim, causal, dtype)
SHAPES = []
if arguments.shapes != "steps":
    SHAPES += [(length, length, 9, 3, dim, causal, dtype) for dtype in ("f32", "bf16") for dim in (64, 128)
               for length in ((2048, 8192, 16384) if arguments.longer else (2048, 4096)) for causal in (False, True)]
if arguments.shapes != "prompts":
    SHAPES += [(1, keys, heads, kv, dim, True, dtype) for dtype in ("bf16", "f16")
               for heads, kv, dim in ((32, 8, 128), (9, 3, 64))
               for keys in ((32768, 131072) if arguments.longer else (8192, 32768))]


class Fovea:
    def __init__(self, queries, keys, heads, kv, dim, causal, dtype):
        self.command = [arguments.fovea, "bench", "flash-attention", "--queries", str(queries), "--length", str(keys), "--heads",
                        f"{heads}/{kv}", "--dim", str(dim), "--dtype", dtype, "--causal" if causal else "--no-causal",
                        "--threads", str(arguments.threads), "--json"]

    def seconds(self):
        return json.loads(subprocess.run(self.command, check=True, capture_output=True, text=True).stdout)[0]["seconds"]


def median_seconds(run):
    run()
    times = []
    while len(times) < 5 or (sum(times) < 0.25 and len(times) < 1000):
        begin = time.perf_counter()
        run()
        times.append(time.perf_counter() - begin)
        if sum(times) > 2:
            break
    return statistics.median(times)


class PyTorch:
    def __init__(self, queries, keys, heads, kv, dim, causal, dtype):
        kind = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}[dtype]
        q, k, v = (torch.randn(1, h, t, dim).to(kind) for h, t in ((heads, queries), (kv, keys), (kv, keys)))
        wide = [x.repeat_interleave(heads // kv, dim=1) for x in (k, v)]
        attend = torch.nn.functional.scaled_dot_product_attention
        masked = causal and queries > 1  # with one query, the last, every key is visible
        self.ways = [lambda: attend(q, k, v, is_causal=masked, enable_gqa=True), lambda: attend(q, *wide, is_causal=masked)]

    def seconds(self):
        with torch.inference_mode():
            return min(median_seconds(way) for way in self.ways)


class Ggml:
    """ggml_flash_attn_ext through the shared libraries that llama-cpp-python carries."""

    class Parameters(ctypes.Structure):
        _fields_ = [("mem_size", ctypes.c_size_t), ("mem_buffer", ctypes.c_void_p), ("no_alloc", ctypes.c_bool)]

    F32, F16 = 0, 1
    base = cpu = None

    @classmethod
    def load(cls):
        folder = pathlib.Path(importlib.util.find_spec("llama_cpp").origin).parent / "lib"
        cls.base, cls.cpu = (ctypes.CDLL(str(folder / name)) for name in ("libggml-base.so", "libggml-cpu.so"))

    def call(self, name, *values, library=None):
        function = getattr(library or self.base, name)
        function.restype = ctypes.c_void_p
        return function(*values)

    def tensor(self, kind, *shape):
        shape = list(shape) + [1] * (4 - len(shape))
        tensor = self.call("ggml_new_tensor_4d", self.context, ctypes.c_int(kind), *map(ctypes.c_int64, shape))
        return ctypes.c_void_p(tensor)

    def fill(self, tensor, values):
        ctypes.memmove(self.call("ggml_get_data", tensor), values.ctypes.data, values.nbytes)

    def __init__(self, queries, keys, heads, kv, dim, causal, dtype):
        bytes_needed = 4 * dim * queries * heads * 2 + 2 * 2 * dim * keys * kv + 2 * queries * keys + (1 << 28)
        self.context = ctypes.c_void_p(self.call("ggml_init", self.Parameters(bytes_needed, None, False)))
        random = numpy.random.default_rng(1)
        q = self.tensor(self.F32, dim, queries, heads)
        self.fill(q, random.standard_normal((heads, queries, dim), dtype=numpy.float32))
        k, v = (self.tensor(self.F16, dim, keys, kv) for _ in range(2))
        for x in (k, v):
            self.fill(x, random.standard_normal((kv, keys, dim), dtype=numpy.float32).astype(numpy.float16))
        mask = ctypes.c_void_p()
        if causal and queries > 1:
            mask = self.tensor(self.F16, keys, queries)
            self.fill(mask, numpy.triu(numpy.full((queries, keys), -numpy.inf, numpy.float32), 1).astype(numpy.float16))
        result = self.call("ggml_flash_attn_ext", self.context, q, k, v, mask, ctypes.c_float(dim**-0.5), ctypes.c_float(0),
                           ctypes.c_float(0))
        self.graph = ctypes.c_void_p(self.call("ggml_new_graph", self.context))
        self.call("ggml_build_forward_expand", self.graph, ctypes.c_void_p(result))

    def run(self):
        assert (self.call("ggml_graph_compute_with_ctx", self.context, self.graph, ctypes.c_int(arguments.threads),
                          library=self.cpu) or 0) & 0xFFFFFFFF == 0

    def seconds(self):
        return median_seconds(self.run)

    def __del__(self):
        self.call("ggml_free", self.context)


if "ggml" not in skipped:
    Ggml.load()
peers = {"fovea": Fovea} | {name: peer for name, peer in (("pytorch", PyTorch), ("ggml", Ggml)) if name not in skipped}
rows = []
print(f"{'shape':44}" + "".join(f"{name + ' ms':>12}" for name in peers) + "".join(f"{'/ ' + name:>11}" for name in list(peers)[1:]))
for shape in SHAPES:
    subjects = {name: peer(*shape) for name, peer in peers.items()}
    times = {name: [] for name in peers}
    for _ in range(arguments.rounds):
        for name, subject in subjects.items():
            times[name].append(subject.seconds())
    seconds = {name: statistics.median(values) for name, values in times.items()}
    queries, keys, heads, kv, dim, causal, dtype = shape
    kind = "decode" if queries == 1 else "causal" if causal else "full"
    rows.append({"queries": queries, "keys": keys, "heads_q": heads, "heads_kv": kv, "dim": dim, "causal": causal, "dtype": dtype,
                 "kind": kind, "seconds": seconds})
    print(f"{f'{dtype} {kind} Tk={keys} heads {heads}/{kv} D={dim}':44}" + "".join(f"{1e3 * s:12.2f}" for s in seconds.values()) +
          "".join(f"{seconds[name] / seconds['fovea']:10.2f}x" for name in list(peers)[1:]), flush=True)

if arguments.output:
    versions = {"pytorch": torch.__version__}
    if "ggml" not in skipped:
        versions["ggml"] = "llama-cpp-python " + importlib.metadata.version("llama_cpp_python")
    pathlib.Path(arguments.output).write_text(json.dumps({"threads": arguments.threads, "versions": versions, "rows": rows}, indent=1))
