"""Metal Shading Language into C++: only the words that C++ does not have are rewritten, types are left to the compiler.

Newlines and line markers stay, so the C++ compiler's messages name the lines of the .metal file.
"""
import re
from dataclasses import dataclass
from pathlib import Path

from .lint_pointers import check_body, check_declaration, check_parameters
from .lint_words import check_words
from .toolchain import CLANG, ToolError, run
from .translate_declarations import declarations, head_end, without_template
from .translate_dialects import Running
from .translate_instantiations import instantiation, is_instantiation
from .translate_kernels import (
    check_attributes, check_return_type, function_name, host_name, is_kernel, outside_parameters, parameter_list,
    plain_head)
from .translate_literals import with_metal_literals
from .translate_overloads import Scope, with_method_space, without_method_spaces
from .translate_threadgroup import lift_variables
from .translate_tokens import (
    Problem, closing, code, generated, layout, one_line, source_text, tokenize, without_attributes)

HEADERS = Path(__file__).parent / "headers"
METAL_VERSION = 310


@dataclass
class Translation:
    """`text` is C++; `host_names` the kernels registered in it, `files` everything the preprocessor read."""
    text: str
    host_names: list
    files: list


def preprocess(source, include_dirs=(), defines=()):
    """The source after `clang -E` in an environment that has Metal's headers and nothing else."""
    command = [CLANG, "-E", "-x", "c++", "-std=c++17", "-nostdinc", "-nostdinc++", "-undef", "-Wno-everything",
               "-D__METAL__=1", f"-D__METAL_VERSION__={METAL_VERSION}", "-D__METAL_MACOS__=1", "-D__HAVE_BFLOAT__=1",
               "-isystem", str(HEADERS)]
    command += [f"-I{folder}" for folder in include_dirs] + [f"-D{define}" for define in defines] + [str(source)]
    try:
        return run(command)
    except ToolError as error:
        raise Problem.of_compiler(str(error)) from None


def translate(source, include_dirs=(), defines=(), only=None, dialect=None):
    """Translates the file `source`. `only` is a pattern: kernels whose host name does not match it are left out.

    Raises Problem for what Metal's compiler would reject and a C++ compiler would not.
    """
    tokens = tokenize(preprocess(source, include_dirs, defines), str(source))
    files = sorted({token.file for token in tokens if token.file and not token.file.startswith("<")})
    check_words(tokens, Path(source))
    translator = Translator(dialect or Running(), only)
    text = source_text(translator.scope(with_metal_literals(tokens), in_class=False))
    return Translation(f'#include "{translator.dialect.header}"\n{text}\n', sorted(translator.host_names), files)


class Translator:
    """Walks namespaces and classes; knows the kernels seen so far."""

    def __init__(self, dialect, only=None):
        self.dialect, self.only = dialect, only
        self.kernels, self.host_names = {}, set()

    def scope(self, tokens, in_class):
        seen, out = Scope(), []
        for declaration in declarations(tokens):
            out += self.written(declaration, seen, in_class)
        return out

    def written(self, declaration, seen, in_class):
        if declaration.kind == "layout":
            return declaration.head
        if declaration.kind == "simple":
            return self.simple(declaration, in_class)
        if declaration.kind in ("function", "type") and self.is_repeated(declaration, seen):
            return layout(declaration.head + declaration.body)
        if declaration.kind == "function":
            return self.function(declaration, in_class)
        head, attributes = without_attributes(declaration.head)
        check_attributes(attributes)
        body = declaration.body
        if declaration.kind != "enum":
            body = self.scope(body, in_class=declaration.kind == "type")
        return head + [declaration.opening] + body + [declaration.closing]

    def is_repeated(self, declaration, seen):
        return not self.dialect.keeps_address_spaces and seen.repeats(declaration)

    def function(self, declaration, in_class):
        head, parameters = declaration.head, declaration.parameters
        if parameters is None:
            raise Problem("cannot read this declaration", code(head)[0])
        check_declaration(without_template(head))
        check_parameters(head[parameters + 1:closing(head, parameters)])
        check_body(declaration.body)
        if is_kernel(head):
            return self.kernel(declaration)
        head = self.method_head(head, parameters) if in_class else head
        check_attributes(without_attributes(outside_parameters(declaration.head, declaration.parameters))[1])
        return without_attributes(head)[0] + self.body(declaration, in_kernel=False)

    def method_head(self, head, parameters):
        change = with_method_space if self.dialect.keeps_address_spaces else without_method_spaces
        return change(head, parameters)

    def body(self, declaration, in_kernel):
        tokens, attributes = without_attributes(lift_variables(declaration.body, self.dialect, in_kernel))
        check_attributes(attributes)
        return [declaration.opening] + tokens + [declaration.closing]

    def kernel(self, declaration):
        head, parameters = declaration.head, declaration.parameters
        name = function_name(head, parameters)
        check_return_type(head[:parameters], name)
        kept, bindings = parameter_list(head[parameters + 1:closing(head, parameters)], name.text)
        self.kernels[name.text] = bindings
        out = plain_head(head, parameters, kept) + self.body(declaration, in_kernel=True)
        if declaration.words[0] == "template":
            return out
        own_name = host_name(without_attributes(head)[1]) or name.text
        return out + [generated(self.entry(own_name, name.text, name.text, None, name), name)]

    def entry(self, own_name, kernel_name, function, parameters, place):
        if own_name in self.host_names:
            raise Problem(f"two kernels are named '{own_name}'", place)
        if kernel_name not in self.kernels:
            raise Problem(f"'{kernel_name}' is instantiated as a kernel but is not one", place)
        if self.only and not re.search(self.only, own_name):
            return ""
        self.host_names.add(own_name)
        return self.dialect.kernel_entry(own_name, function, parameters, self.kernels[kernel_name])

    def simple(self, declaration, in_class):
        if is_instantiation(declaration.head):
            return self.instantiated(declaration)
        tokens, attributes = without_attributes(declaration.head)
        check_attributes(without_attributes(outside_parameters(declaration.head, declaration.parameters))[1])
        constant = next((a for a in attributes if a[0].text == "function_constant"), None)
        if constant:
            return self.function_constant(tokens, constant)
        return self.plain_declaration(tokens, declaration.parameters, in_class)

    def instantiated(self, declaration):
        found = instantiation(declaration.head)
        if found is None:
            return without_attributes(declaration.head)[0]
        place = code(declaration.head)[0]
        text = self.entry(found.host_name, found.kernel, found.function, found.parameters, place)
        return [generated(text, place)] + layout(declaration.head)

    def function_constant(self, tokens, attribute):
        words = [token for token in code(tokens) if token.text not in ("constant", "const", "static", "constexpr", ";")]
        if any(token.text == "=" for token in words):
            raise Problem("a function constant cannot have an initialiser", words[-1])
        index = one_line(attribute[2:-1])
        text = self.dialect.function_constant(one_line(words[:-1]), words[-1].text, index)
        return [generated(text, words[-1])] + layout(tokens)

    def plain_declaration(self, tokens, parameters, in_class):
        words = code(tokens)
        if words[0].text == "threadgroup" and not in_class and not any(token.text in ("*", "&") for token in words):
            raise Problem("a threadgroup variable must be declared in a kernel", words[0])
        check_declaration(without_template(tokens))
        tokens = [token for token in tokens if token.text != "kernel"]
        is_method = in_class and parameters is not None and "=" not in [token.text for token in words]
        return self.method_head(tokens, head_end(tokens, 0)[1]) if is_method else tokens
