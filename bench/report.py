"""docs/benchmarks.md and its plot from the JSON files that bench/publish.sh measured."""
# SPDX-License-Identifier: Apache-2.0
import json
import pathlib
import platform
import sys

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plot  # noqa: E402  (the backend is chosen before)

results, docs = map(pathlib.Path, sys.argv[1:3])
info = dict(line.split(None, 1) for line in (results / "info.txt").read_text().splitlines() if line.strip())
roofline, kernels, attention, runner = (json.loads((results / f"{name}.json").read_text())
                                        for name in ("roofline", "kernels", "attention", "runner"))
processor = next((line.split(":")[1].strip() for line in open("/proc/cpuinfo", encoding="utf-8") if line.startswith("model name")),
                 platform.machine())
NAMES = {"fovea": "Fovea", "pytorch": "PyTorch", "ggml": "ggml (llama.cpp)"}
COLORS = {"fovea": "#1f6feb", "pytorch": "#d97706", "ggml": "#9ca3af"}


def table(header, rows):
    lines = ["| " + " | ".join(header) + " |", "| " + " | ".join(["---"] + ["---:"] * (len(header) - 1)) + " |"]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def rate(row):
    """Useful GFLOP/s of a prompt, GB/s of a step."""
    heads, kv, keys, dim, queries = (row[key] for key in ("heads_q", "heads_kv", "keys", "dim", "queries"))
    if row["kind"] == "decode":
        return 2 * kv * keys * dim * 2 / 1e9
    pairs = queries * (queries + 1) / 2 if row["causal"] else queries * keys
    return 4 * heads * dim * pairs / 1e9


def label(row):
    return f"{row['dtype']} {row['kind']} {row['keys'] // 1024}k, {row['heads_q']}/{row['heads_kv']} heads, D={row['dim']}"


def draw():
    figure, axes = plot.subplots(1, 2, figsize=(13, 6.5), gridspec_kw={"width_ratios": [3, 2]})
    for axis, step, unit in ((axes[0], False, "GFLOP/s (useful operations)"), (axes[1], True, "GB/s of keys and values")):
        rows = [row for row in attention["rows"] if (row["kind"] == "decode") == step][::-1]
        for index, name in enumerate(NAMES):
            values = [rate(row) / row["seconds"][name] for row in rows]
            axis.barh([i + 0.27 * (1 - index) for i in range(len(rows))], values, 0.27, label=NAMES[name], color=COLORS[name])
        axis.set_yticks(range(len(rows)), [label(row) for row in rows], fontsize=8)
        axis.set_xlabel(unit)
        axis.spines[["top", "right"]].set_visible(False)
    peak, read = roofline[-1]["f32_flops"] / 1e9, roofline[-1]["read_bytes"] / 1e9
    axes[0].axvline(peak, color="black", linewidth=0.8, linestyle="--")
    axes[0].text(peak, len(axes[0].get_yticks()) - 0.4, " f32 peak", fontsize=8)
    axes[1].axvline(read, color="black", linewidth=0.8, linestyle="--")
    axes[1].text(read, len(axes[1].get_yticks()) - 0.4, "read bandwidth", fontsize=8, ha="right")
    axes[1].legend(loc="lower right", frameon=False)
    figure.tight_layout()
    figure.savefig(docs / "benchmarks.svg", metadata={"Date": None})


def seconds(value):
    return f"{1e3 * value:.2f} ms" if value >= 1e-3 else f"{1e6 * value:.0f} us"


def page():
    ceilings = table(["threads", "f32 GFLOP/s", "bf16 dots", "int8 dots GOP/s", "read GB/s", "copy GB/s"],
                     [[str(row["threads"])] + [f"{row[key] / 1e9:.1f}" for key in
                                               ("f32_flops", "bf16_flops", "int8_ops", "read_bytes", "copy_bytes")]
                      for row in roofline])
    own = table(["kernel", "problem", "time", "limit", "of the limit", "work beside", "time beside"],
                [[row["kernel"], row["problem"], seconds(row["seconds"]), row["limit"], f"{100 * row['fraction']:.0f} %"] +
                 [f"{row[key]:.3f}" if row["beside"] else "" for key in ("work_share", "time_share")] for row in kernels])
    beside = table(["shape", "Fovea", "PyTorch", "ggml", "PyTorch / Fovea", "ggml / Fovea"],
                   [[label(row)] + [seconds(row["seconds"][name]) for name in NAMES] +
                    [f"{row['seconds'][name] / row['seconds']['fovea']:.1f}x" for name in ("pytorch", "ggml")]
                    for row in attention["rows"]])
    run = table(["tokens", "phase", "Fovea tokens/s", "llama.cpp tokens/s", "ratio"],
                [[str(row["tokens"]), row["kind"], f"{row['fovea']:.0f}", f"{row['llama.cpp']:.0f}",
                  f"{row['fovea'] / row['llama.cpp']:.1f}x"] for row in runner])
    return f"""# Benchmarks

Written by `bench/publish.sh`, which measures all of it anew: medians, peers in alternating runs. Machine: {processor},
{roofline[-1]['threads']} threads, {info['simd']}; {info['compiler']}; PyTorch {attention['versions']['pytorch']}, {attention['versions']['ggml']}.

![Exact attention beside PyTorch and ggml](benchmarks.svg)

## Ceilings

`fovea bench --roofline`: the most this machine does, from registers and from memory beyond the caches.

{ceilings}

## Exact attention beside PyTorch and ggml

`bench/peers/attention.py`: one layer, same shapes, types and threads. PyTorch is `scaled_dot_product_attention` (the faster of grouped
and repeated heads); ggml is `ggml_flash_attn_ext` with keys and values in f16, as llama.cpp holds them.

{beside}

## The model runner beside llama.cpp

`bench/peers/beside_llama_cpp.sh`: SmolLM2-135M-Instruct Q4_1, the same file.

{run}

## Every kernel beside its ceiling

`fovea bench --kernels`. *Of the limit*: useful operations over the peak of their arithmetic, or bytes over read bandwidth, whichever
binds. *Work beside* and *time beside*: the share of the operations (or bytes) and of the time of the row it is compared with - all keys
for plans, bf16 for compact caches, one thread for threads -, measured in turns.

{own}
"""


draw()
(docs / "benchmarks.md").write_text(page(), encoding="utf-8")
