"""Recursion, which Metal does not have: found in the calls of the unoptimised LLVM code."""
import re

from .translate_tokens import Problem

DEFINITION = re.compile(r'^define [^@\n]*@("[^"]+"|[\w.$]+)\(.*$', re.M)
CALL = re.compile(r'\b(?:call|invoke)\b[^@\n]*@("[^"]+"|[\w.$]+)\(')
DEBUG_REFERENCE = re.compile(r"!dbg !(\d+) \{$")
SUBPROGRAM = re.compile(r'^!(\d+) = distinct !DISubprogram\(name: "([^"]*)".*?file: !(\d+), line: (\d+)', re.M)
FILE = re.compile(r'^!(\d+) = !DIFile\(filename: "([^"]*)"', re.M)


def check_recursion(intermediate, folder):
    """Raises Problem for a function that comes back to itself, naming the way. Relative file names are in `folder`."""
    graph, described = call_graph(intermediate), described_functions(intermediate)
    cycle = find_cycle(graph)
    if cycle:
        places = [described.get(function, (function, "<source>", 0)) for function in cycle]
        way = " -> ".join(name for name, _, _ in places + places[:1])
        raise Problem.at(folder / places[0][1], places[0][2], f"Metal has no recursion: {way}")


def call_graph(intermediate):
    """{function: set of functions that it calls}."""
    graph = {}
    for definition in DEFINITION.finditer(intermediate):
        body = intermediate[definition.end():intermediate.index("\n}", definition.end())]
        graph[definition[1]] = set(CALL.findall(body))
    return graph


def described_functions(intermediate):
    """{function: (name in the source, file, line)} from the debug information."""
    files = dict(FILE.findall(intermediate))
    subprograms = {number: (name, files.get(file, "<source>"), int(line))
                   for number, name, file, line in SUBPROGRAM.findall(intermediate)}
    found = {}
    for definition in DEFINITION.finditer(intermediate):
        reference = DEBUG_REFERENCE.search(definition[0])
        if reference and reference[1] in subprograms:
            found[definition[1]] = subprograms[reference[1]]
    return found


def find_cycle(graph):
    """The functions of one cycle in calling order, or None. Depth first, without recursion of its own."""
    done = set()
    for start in graph:
        path, waiting = [], [(start, iter(graph[start]))] if start not in done else []
        while waiting:
            function, callees = waiting[-1]
            if len(path) < len(waiting):
                path.append(function)
            callee = next((c for c in callees if c in graph and c not in done), None)
            if callee is None:
                done.add(function)
                waiting.pop()
                path.pop()
            elif callee in path:
                return path[path.index(callee):]
            else:
                waiting.append((callee, iter(graph[callee])))
    return None
