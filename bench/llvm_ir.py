"""LLVM's text form of a function: its instructions and their classes, the loop that reads codes, the dearest way through it.

    header -> ... -> latch -> header        a pass: the dearest path from the header to an edge back to it
"""

import re
from collections import Counter
from typing import NamedTuple

NAME = r'%(?:"[^"]+"|[-\w.$]+)'
TYPE = re.compile(r"(?:<(\d+) x )?\b(i\d+|half|bfloat|float|double|ptr)\b")
INSTRUCTION = re.compile(rf"\s+(?:({NAME}) = )?(?:(?:tail|musttail|notail) )?(\w+) ?(.*)")
FUNCTION = re.compile(r"^define [^\n]*@([\w$.]+)\(([^\n]*)\{\n(.*?)^\}", re.MULTILINE | re.DOTALL)
POINTER = re.compile(rf"ptr(?: addrspace\((\d)\))? (?:{NAME}|@[\w.$]+)")
SPACES = {"1": "device", "3": "threadgroup", "4": "constant"}
BITS = {"half": 16, "bfloat": 16, "float": 32, "double": 64, "ptr": 64}

CLASSES = {
    "float": "fadd fsub fmul llvm.fma llvm.fmuladd llvm.maxnum llvm.minnum llvm.floor",
    "integer": "add sub and or xor llvm.smax llvm.smin llvm.umax llvm.umin llvm.abs",
    "shift": "shl lshr ashr llvm.fshl",
    "multiply": "mul",
    "divide": "udiv urem sdiv srem",
    "compare": "icmp fcmp llvm.is.fpclass",
    "select": "select",
    "half conversion": "fpext fptrunc",
    "number conversion": "sitofp uitofp fptosi fptoui",
    "width": "zext sext trunc",
    "special": "fdiv llvm.exp2 metal_tanh",
    "shuffle": "metal_shuffle metal_shuffle_xor metal_reduce_max metal_reduce_min metal_reduce_sum metal_reduce_any metal_reduce_all",
    "matrix multiply": "metal_matrix_multiply",
    "barrier": "metal_barrier",
    "free": "phi bitcast freeze extractelement insertelement shufflevector extractvalue insertvalue fneg ret unreachable"
            " metal_threadgroup_variable llvm.fabs llvm.assume"
            " llvm.lifetime.start llvm.lifetime.end llvm.experimental.noalias.scope.decl",
}
CLASS_OF = {operation: name for name, operations in CLASSES.items() for operation in operations.split()}
SINGLE = ("load", "store", "call")  # of these a vector is one operation; arithmetic on it is one for each element


class Instruction(NamedTuple):
    result: str
    opcode: str
    rest: str

    def operands(self):
        return re.findall(NAME, re.sub(rf"label {NAME}", "", self.rest))

    def targets(self):
        return re.findall(rf"label ({NAME})", self.rest)

    def operation(self):
        """The opcode, or the function that is called, without the types in the name of an intrinsic."""
        called = re.search(r"@([\w.]+)\(", self.rest) if self.opcode == "call" else None
        return re.sub(r"(\.(v\d+)?[fip]\d+)*$", "", called[1]) if called else self.opcode

    def space(self):
        found = POINTER.findall(self.rest)[-1]
        if found not in SPACES:
            raise ValueError(f"address space {found or 0} is neither device, threadgroup nor constant: {self.rest}")
        return SPACES[found]

    def type(self):
        """(elements, bits of one) of what is computed, stored or compared; (0, 0) of nothing."""
        found = TYPE.search(self.rest.split(",")[1] if self.opcode == "select" else self.rest)
        return (int(found[1] or 1), BITS.get(found[2]) or int(found[2][1:])) if found else (0, 0)

    def bytes(self):
        elements, bits = self.type()
        return elements * bits // 8


class Function(NamedTuple):
    arguments: str
    blocks: dict  # label -> [Instruction]; the first block is where it starts


def functions(text):
    """Every function of a module by its name."""
    return {name: Function(arguments, blocks_of(body)) for name, arguments, body in FUNCTION.findall(text)}


def blocks_of(body):
    blocks = {"%entry": []}
    current = blocks["%entry"]
    for line in re.sub(r"\[\n.*?\]", lambda cases: " ".join(cases[0].split()), body, flags=re.DOTALL).splitlines():
        label = re.match(r'("[^"]+"|[-\w.$]+):', line)
        if label:
            current = blocks["%" + label[1]] = []
        elif line.strip():
            current.append(Instruction(*(part or "" for part in INSTRUCTION.match(line).groups())))
    return {label: block for label, block in blocks.items() if block}


def successors(blocks):
    return {label: block[-1].targets() for label, block in blocks.items()}


def reached(edges, start):
    """The blocks that can follow `start`, itself only if it is in a loop."""
    found, waiting = set(), list(edges[start])
    while waiting:
        label = waiting.pop()
        if label not in found:
            found.add(label)
            waiting += edges[label]
    return found


def hot_loop(blocks):
    """(header, labels) of the loop that reads the most codes. Raises ValueError where there is none."""
    edges = successors(blocks)
    backwards = {label: [before for before, to in edges.items() if label in to] for label in edges}
    reading = [label for label in edges if code_bytes(blocks[label])]
    loops = {frozenset(reached(edges, label) & reached(backwards, label)) for label in reading}
    loop = max(loops, key=lambda loop: sum(code_bytes(blocks[label]) for label in loop), default=())
    if not loop:
        raise ValueError("no loop reads codes")
    return next(label for label in loop if set(backwards[label]) - loop), loop


def code_bytes(block):
    """Codes are the only words that a kernel loads from device memory; lanes may share them."""
    loads = (i for i in block if i.opcode == "load" and re.match(r"(<[24] x )?i32\b", i.rest))
    return sum(load.bytes() for load in loads if load.space() == "device")


def rare_edges(blocks):
    """(block, target) of branches taken when simd_any says yes: the rescale."""
    votes = votes_of(blocks, "metal_reduce_any")
    return {(label, block[-1].targets()[0]) for label, block in blocks.items() if votes & set(block[-1].operands())}


def edge_tiles(blocks):
    """(block, target) of branches taken when simd_all says no: tiles that are not whole, a few of a whole pass."""
    votes = votes_of(blocks, "metal_reduce_all")
    return {(label, block[-1].targets()[1]) for label, block in blocks.items() if votes & set(block[-1].operands())}


def votes_of(blocks, operation):
    """What a vote gave, also once it has gone round the loop."""
    everything = [i for block in blocks.values() for i in block if i.result]
    votes, before = {i.result for i in everything if i.operation() == operation}, 0
    while before != len(votes):
        before = len(votes)
        votes |= {i.result for i in everything if i.opcode == "phi" and votes & set(i.operands())}
    return votes


def dearest_path(blocks, start, within, without=(), once=False):
    """The labels of the path from `start` among `within` that has the most instructions; an edge back or out ends it.

    `once`: another loop on the way is gone through once; otherwise it is a ValueError. Edges of `without` are not taken.
    """
    edges, found, open_ = successors(blocks), {}, []

    def path(label):
        if label in open_:
            if label != start and not once:
                raise ValueError("the hot loop holds another loop, whose passes are not known")
            return 0, []
        if label not in found:
            open_.append(label)
            ways = [path(to) for to in edges[label] if to in within and (label, to) not in without]
            open_.pop()
            cost, rest = max(ways, default=(0, []))
            found[label] = cost + sum(count(blocks[label]).values()), [label] + rest
        return found[label]

    return path(start)[1]


def count(block):
    """A Counter of classes of instructions."""
    counts = Counter()
    for instruction in block:
        whole = instruction.opcode in SINGLE and not instruction.operation().startswith("llvm.")
        counts[class_of(instruction)] += 1 if whole else max(1, instruction.type()[0])
    del counts["free"]
    return counts


def class_of(instruction):
    """The class: one of CLASSES, of 64-bit integers ("wide ..."), "half", "address", "branch" or an access by its space.

    Raises ValueError for an operation of no class.
    """
    opcode, (_, bits) = instruction.opcode, instruction.type()
    if opcode in ("load", "store"):
        return f"{instruction.space()} {opcode}"
    if opcode == "getelementptr":
        return "address" if len(instruction.operands()) > 1 else "free"
    if opcode in ("br", "switch"):
        return "branch" if instruction.operands() else "free"
    name = CLASS_OF.get(instruction.operation())
    if name is None:
        raise ValueError(f"an operation of no known class: {opcode} {instruction.rest}")
    if name == "float" and bits == 16:
        return "half"
    return f"wide {name}" if name in ("integer", "shift", "multiply", "divide") and bits == 64 else name


def memory_bytes(block, space):
    return sum(i.bytes() for i in block if i.opcode in ("load", "store") and i.space() == space)
