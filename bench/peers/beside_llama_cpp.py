"""Tokens per second of Fovea and llama.cpp on one model file, alternating runs, medians and their ratio."""
# SPDX-License-Identifier: Apache-2.0
import argparse
import json
import os
import statistics
import subprocess
import time

import llama_cpp

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--fovea", required=True)
parser.add_argument("--model", required=True)
parser.add_argument("--text", default="examples/tide_mill.txt")
parser.add_argument("--lengths", default="512,2048")
parser.add_argument("--decode", type=int, default=128)
parser.add_argument("--rounds", type=int, default=5)
parser.add_argument("--threads", type=int, default=os.cpu_count())
parser.add_argument("--output", help="also write the rows as JSON")
arguments = parser.parse_args()


def run_llama(model, tokens, decode):
    """(prefill, decode) tokens per second through the C interface: one batch for the prompt, then one token at a time."""
    model.reset()
    begin = time.perf_counter()
    model.eval(tokens)
    prefill = len(tokens) / (time.perf_counter() - begin)
    begin = time.perf_counter()
    for token in tokens[:decode]:  # which tokens they are does not matter; sampling in Python would
        model.eval([token])
    return prefill, decode / (time.perf_counter() - begin)


def run_fovea(prompt_file, tokens, decode):
    command = [arguments.fovea, "generate", "-m", arguments.model, "--file", prompt_file, "--raw", "-n", str(decode + 1),
               "--ignore-end", "--json", "--threads", str(arguments.threads)]
    stats = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert abs(stats["prompt_tokens"] - tokens) <= 2, stats
    return stats["prefill_tokens_per_second"], stats["decode_tokens_per_second"]


text = open(arguments.text, encoding="utf-8").read()
rows = []
print(f"{'tokens':>7} {'':8} {'fovea':>10} {'llama.cpp':>10} {'ratio':>7}")
for length in map(int, arguments.lengths.split(",")):
    model = llama_cpp.Llama(arguments.model, n_ctx=length + arguments.decode + 8, n_threads=arguments.threads,
                            n_threads_batch=arguments.threads, n_batch=length, n_ubatch=512, verbose=False)
    tokens = model.tokenize(text.encode())[:length]
    prompt_file = "build/peers-prompt.txt"
    with open(prompt_file, "wb") as file:
        file.write(model.detokenize(tokens))
    ours, theirs = [], []
    for _ in range(arguments.rounds):
        ours.append(run_fovea(prompt_file, length, arguments.decode))
        theirs.append(run_llama(model, tokens, arguments.decode))
    for index, what in enumerate(("prefill", "decode")):
        a, b = (statistics.median(run[index] for run in runs) for runs in (ours, theirs))
        rows.append({"tokens": length, "kind": what, "fovea": a, "llama.cpp": b})
        print(f"{length:7} {what:8} {a:10.1f} {b:10.1f} {a / b:7.2f}", flush=True)

if arguments.output:
    with open(arguments.output, "w", encoding="utf-8") as file:
        json.dump(rows, file, indent=1)
