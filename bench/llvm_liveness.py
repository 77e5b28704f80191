"""How many 32-bit words a lane holds at the widest point of a loop, in the order that LLVM left its instructions in.

A hint, not what a GPU's compiler allocates: that reorders and recomputes values. Left out are comparisons, what is the same
for every lane (it depends on no loaded value, no other lane and no index) and what only code after the loop needs.
"""

import re

from llvm_ir import NAME, TYPE, successors

LOADED_OR_EXCHANGED = ("device", "threadgroup")


def words_alive(function, loop):
    """The largest number of words alive between two instructions of the blocks `loop`."""
    varying = varying_values(function)
    bits = {i.result: result_bits(i) for block in function.blocks.values() for i in block if i.result in varying}
    widest = max(sum(bits.get(name, 0) for name in live) for live in live_sets(function.blocks, loop))
    return -(-widest // 32)


def result_bits(instruction):
    """Bits of the result; none of a comparison, a predicate, and of a constant distance, which is part of an access."""
    if instruction.opcode in ("icmp", "fcmp"):
        return 0
    if instruction.opcode == "getelementptr":
        if len(instruction.operands()) == 1:
            return 0
        return 32 if "addrspace(3)" in instruction.rest else 64
    text = instruction.rest.split(" to ")[-1]
    elements, bits = instruction._replace(rest=text).type() if TYPE.search(text) else (0, 0)
    elements = 1 if instruction.opcode == "extractelement" else elements
    return 0 if bits == 1 else elements * bits


def varying_values(function):
    """The names of values that may differ between lanes; indices come as 32-bit arguments."""
    varying = set(re.findall(rf"\bi32 [^,]*?({NAME})", function.arguments))
    everything = [i for block in function.blocks.values() for i in block if i.result]
    varying |= {i.result for i in everything if differs(i)}
    before = -1
    while before != len(varying):
        before = len(varying)
        varying |= {i.result for i in everything if not varying.isdisjoint(i.operands())}
    return varying


def differs(instruction):
    if instruction.opcode == "load":
        return instruction.space() in LOADED_OR_EXCHANGED
    return instruction.operation().startswith("metal_")


def live_sets(blocks, loop):
    """The values alive before every instruction of the loop, and after it, that the loop itself needs."""
    edges, alive, changed = successors(blocks), {label: set() for label in loop}, True
    while changed:
        found = {label: list(walk(blocks[label], live_after(blocks, edges[label], alive, label))) for label in loop}
        changed = any(found[label][-1] != alive[label] for label in loop)
        alive = {label: sets[-1] for label, sets in found.items()}
    return [live for sets in found.values() for live in sets]


def live_after(blocks, following, alive, label):
    """What the blocks of the loop that follow need; of a phi, the value that comes from here."""
    needed = set()
    for to in alive.keys() & following:
        phis = [i for i in blocks[to] if i.opcode == "phi"]
        needed |= alive[to] - {phi.result for phi in phis}
        incoming = (pair for phi in phis for pair in re.findall(rf"\[ ({NAME}), ({NAME}) \]", phi.rest))
        needed |= {value for value, origin in incoming if origin == label}
    return needed


def walk(block, live):
    """The live sets of a block from its end to its first instruction that is no phi."""
    live = set(live)
    yield set(live)
    for instruction in reversed(block):
        if instruction.opcode == "phi":
            break
        live.discard(instruction.result)
        live |= set(instruction.operands())
        yield set(live)
