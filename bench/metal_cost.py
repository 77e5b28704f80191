"""What the hot loops of the Metal kernels cost, counted in LLVM's code for them, and what to expect of Apple's GPUs.

    python bench/metal_cost.py --json bench/results/metal-cost.json

The counts are of optimised LLVM IR (metal_ir.py), not of Apple's machine code, and the shares of the bus are a model's
(metal_model.py), not measurements. A pass is the dearest way through the loop once; codes are those one lane consumes in
it. Attention is one query's, without mask, sinks or softcap, one scale a row, of 4 bits and the codebook lloyd unless the name
says otherwise. quantize (of one side, without a ring), dequantize and merge (of eight splits) have no such loop and are counted whole, for
one value.
"""

import argparse
import json
import re
import sys
from collections import Counter
from pathlib import Path

import llvm_ir
from llvm_liveness import words_alive
from machine import facts
from metal_ir import Case, compile_cases, symbol_of, toolchain
from metal_model import ASSUMPTIONS, LAYOUTS, MACHINES, bus_share, slots
from rich.console import Console
from rich.table import Table

HEAD_DIMS = (64, 128, 256)
DEFAULT = (4, 4, "lloyd")
# Bits of K and of V and a codebook: what is counted at head_dim 128 beside the default.
OTHERS = ((4, 4, "uniform"), (5, 4, "lloyd"), (8, 4, "lloyd"), (3, 3, "lloyd"))
DECODE = ("p.queries == 1", "p.has_mask == 0", "p.softcap == 0.0f", "p.splits == 8", "p.sinks == 0", "p.q.type == INT4KV_FLOAT16",
          *(f"p.{side}.groups == 1" for side in "kv"), *(f"p.{side}_rotation.kind == INT4KV_HADAMARD" for side in "kv"),
          *(f"p.{side}_recent.codes.type == INT4KV_FLOAT16" for side in "kv"))
PREFILL = ("paged == 0", "p.both == 0") + tuple(f"p.sides[0].{fact}" for fact in (
    "x.type == INT4KV_FLOAT16", "has_centre == 1", "centre.type == INT4KV_FLOAT32", "rotation.kind == INT4KV_HADAMARD",
    "recent_rows == 0", "stored.groups == 1", "stored.bits == 4", "stored.codebook == INT4KV_LLOYD", "rotation.block == 128"))
UNPACK = ("p.stored.groups == 1", "p.stored.bits == 4", "p.stored.codebook == INT4KV_LLOYD", "p.rotation.block == 128",
          "p.rotation.kind == INT4KV_HADAMARD", "p.has_centre == 0", "p.out.type == INT4KV_FLOAT16")
MERGE = ("p.splits == 8", "p.head_dim == 128", "p.has_v_centre == 0", "p.v_rotation.kind == INT4KV_HADAMARD",
         "p.v_rotation.block == 128", "p.out.type == INT4KV_FLOAT16")


def decode_case(kernel, head_dim, k_bits, v_bits, codebook):
    constants = (f"k_bits == {k_bits}", f"v_bits == {v_bits}", f"codebook == INT4KV_{codebook.upper()}", "paged == 0",
                 f"decode == {int('matrix' in kernel)}")
    recipe = "" if (k_bits, v_bits, codebook) == DEFAULT else f"_k{k_bits}v{v_bits}_{codebook}"
    stem = kernel if kernel.endswith(f"_{head_dim}") else f"{kernel}_{head_dim}"
    return Case(stem + recipe, kernel, "Int4kvAttend", (*DECODE, *constants, f"p.head_dim == {head_dim}"))


WHOLE = (Case("quantize_128", "quantize_128", "Int4kvQuantize", PREFILL),
         Case("dequantize_128", "dequantize_128", "Int4kvDequantize", UNPACK), Case("merge_128", "merge_128", "Int4kvAttend", MERGE))
CASES = (
    *(decode_case(f"attend_matrix_{d}", d, *DEFAULT) for d in HEAD_DIMS),
    *(decode_case(f"attend_simd_{h}", d, *DEFAULT) for h in (1, 2) for d in HEAD_DIMS),
    *(decode_case(kernel, 128, *recipe) for recipe in OTHERS for kernel in ("attend_matrix_128", "attend_simd_2")),
    *WHOLE,
)
COLUMNS = {
    "float": ("float", "special"), "half": ("half",), "logic": ("integer", "shift"),
    "product": ("multiply", "divide", "wide integer", "wide shift", "wide multiply", "wide divide"),
    "convert": ("half conversion", "number conversion", "width"), "select": ("compare", "select"),
    "shuffle": ("shuffle",), "matrix": ("matrix multiply",), "device": ("device load", "device store"),
    "shared": ("threadgroup load", "threadgroup store"),
    "other": ("address", "branch", "barrier", "constant load"),
}


def head_dim(case):
    return int(re.search(r"_(\d{2,3})(_k|$)", case.name)[1])


def widths(case):
    """Bits of a code of K and of V."""
    return [int(re.search(rf"{side}_bits == (\d+)", " ".join(case.given))[1]) for side in "kv"]


def row(case, function):
    """The figures of one case, for each code or, of WHOLE, for each value."""
    blocks = function.blocks
    if case in WHOLE:
        path, values = llvm_ir.dearest_path(blocks, next(iter(blocks)), blocks, once=True), head_dim(case) // 32
        found = figures(case, function, path, path, blocks, values)
        return found | dict(bytes_per_code=device_bytes(blocks, path) / values)
    header, loop = llvm_ir.hot_loop(blocks)
    edges = llvm_ir.edge_tiles(blocks)
    steady = llvm_ir.dearest_path(blocks, header, loop, edges | llvm_ir.rare_edges(blocks))
    dearest = llvm_ir.dearest_path(blocks, header, loop, edges)
    codes = counted(blocks, steady)["half"] + look_ups(blocks, steady)  # each is placed by one fma or looked up
    scales = device_bytes(blocks, steady) - sum(llvm_ir.code_bytes(blocks[label]) for label in steady)
    found = figures(case, function, steady, dearest, loop, codes)
    return found | dict(bytes_per_code=sum(widths(case)) / 16 + scales / codes / lanes_of_a_token(case))


def figures(case, function, steady, dearest, loop, codes):
    blocks = function.blocks
    counts = counted(blocks, steady)
    low = slots(counts, moved_bytes(blocks, steady), 0)
    high = slots(counted(blocks, dearest), moved_bytes(blocks, dearest), 1)
    return dict(name=case.name, kernel=case.kernel, head_dim=head_dim(case), codes_per_lane_and_pass=codes,
                instructions_per_code=sum(counts.values()) / codes,
                per_code={name: number / codes for name, number in counts.items()},
                slots_per_code=[low / codes, high / codes], words_alive=words_alive(function, loop))


def lanes_of_a_token(case):
    """Lanes that read the same scale: the bus carries it once."""
    return 4 if case.kernel.startswith("attend_matrix") else head_dim(case) // 16


def counted(blocks, path):
    return sum((llvm_ir.count(blocks[label]) for label in path), Counter())


def look_ups(blocks, path):
    return sum(i.operation() == "metal_shuffle" for label in path for i in blocks[label])


def device_bytes(blocks, path):
    return sum(llvm_ir.memory_bytes(blocks[label], "device") for label in path)


def moved_bytes(blocks, path):
    return device_bytes(blocks, path) + sum(llvm_ir.memory_bytes(blocks[label], "threadgroup") for label in path)


def cost_rows():
    """One row of figures for each of CASES."""
    functions = llvm_ir.functions(compile_cases(CASES))
    return [row(case, next(f for name, f in functions.items() if symbol_of(case) in name)) for case in CASES]


def expected_rows(rows):
    """The model's share of the bus, pessimistic and optimistic, of every layout on every machine."""
    by_name = {row["name"]: row for row in rows}
    expected = []
    for (heads, kv_heads, dim), name in LAYOUTS.items():
        kernel = by_name[name]
        shares = {m.name: [bus_share(m, n, kernel["bytes_per_code"]) for n in reversed(kernel["slots_per_code"])] for m in MACHINES}
        expected.append(dict(heads=heads, kv_heads=kv_heads, head_dim=dim, kernel=kernel["kernel"], bus_share=shares))
    return expected


def table_of(title, columns):
    table = Table(title=title, title_justify="left")
    for name in columns:
        table.add_column(name, justify="left" if name == columns[0] else "right", no_wrap=True)
    return table


def cost_table(rows):
    columns = ("loop", "codes of a lane", "instructions", "issue slots", "bytes", "words alive")
    table = table_of("Counted in LLVM IR, for one code; below the loops: a whole kernel, for one value", columns)
    for row in rows:
        low, high = row["slots_per_code"]
        table.add_row(row["name"], str(row["codes_per_lane_and_pass"]), f"{row['instructions_per_code']:.2f}",
                      f"{low:.1f}-{high:.1f}", f"{row['bytes_per_code']:.4f}", str(row["words_alive"]))
    return table


def class_table(rows):
    table = table_of("The same instructions by class", ("loop", *COLUMNS))
    for row in rows:
        shares = (sum(row["per_code"].get(name, 0) for name in names) for names in COLUMNS.values())
        table.add_row(row["name"], *(f"{share:.2f}" for share in shares))
    return table


def expected_table(expected):
    columns = ("query/KV heads, head_dim", "kernel", *(f"{m.name} ({m.affordable():.1f})" for m in MACHINES))
    table = table_of("A model, not a measurement: share of the memory bus, pessimistic-optimistic", columns)
    for row in expected:
        shares = (f"{100 * low:.0f}-{100 * high:.0f} %" for low, high in row["bus_share"].values())
        table.add_row(f"{row['heads']}/{row['kv_heads']}, {row['head_dim']}", row["kernel"], *shares)
    return table


def results(rows):
    machines = [m._asdict() | dict(lane_instructions_per_byte=m.affordable()) for m in MACHINES]
    return facts() | dict(command="python bench/metal_cost.py", compiler=toolchain.compiler_version().splitlines()[0],
                          kind="counts of LLVM IR; bus_share is a model, not a measurement", assumptions=ASSUMPTIONS,
                          rows=rows, machines=machines, expected=expected_rows(rows))


def show(found):
    console = Console(width=max(120, Console().width))
    console.print(cost_table(found["rows"]), class_table(found["rows"]))
    console.print("A matrix multiply is one instruction and at least 16 issue slots, each what a lane does in one cycle.")
    console.print("Words alive: 32-bit words of a lane at the widest point, in LLVM's order; a hint, not an allocation.\n")
    console.print(expected_table(found["expected"]))
    console.print("In brackets: lane-instructions for a byte of the bus.")
    for line in (*ASSUMPTIONS, *(f"{m.name}: {m.source}." for m in MACHINES)):
        console.print(f"- {line}", highlight=False)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", help="write the results here")
    arguments = parser.parse_args()
    try:
        found = results(cost_rows())
    except (toolchain.ToolError, toolchain.MissingTool) as problem:
        sys.exit(str(problem))
    show(found)
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
