"""Runs functions of a test module in processes where the device is loaded.

A server imports torch and the test module and calls its prepare(), once; every run is a fork of it, ready in
milliseconds, whose environment, crash and output are its own.

    sandbox = Sandbox(__name__)

    @sandbox.test(RIG_POISON="1")
    def test_something(): ...              # its body runs in the sandbox

    outcome = sandbox.run(function, {"RIG_POISON": "1"}, argument=1)
"""

import functools
import importlib
import inspect
import os
import pickle
import subprocess
import sys
import tempfile
import traceback
from dataclasses import dataclass
from pathlib import Path

TESTS = Path(__file__).resolve().parent.parent


@dataclass
class Outcome:
    status: int  # as of subprocess: 0, or 1 after an exception, or minus the number of the signal that ended it
    output: str


class Sandbox:
    def __init__(self, module):
        self.module = module

    @functools.cached_property
    def server(self):
        command = [sys.executable, "-c", "from rig import sandbox; sandbox.main()", self.module]
        return subprocess.Popen(command, cwd=TESTS, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def run(self, function, environment=None, **arguments):
        """Calls a function of the module, by name, with further environment variables. Returns its Outcome."""
        pickle.dump((function.__name__, environment or {}, arguments), self.server.stdin)
        self.server.stdin.flush()
        try:
            return pickle.load(self.server.stdout)
        except EOFError:
            raise RuntimeError(f"the sandbox's server ended with {self.server.wait()}; it says why above") from None

    def test(self, **environment):
        """A decorator: the test passes when its body, run here with these environment variables, does not raise."""

        def decorate(body):
            @functools.wraps(body)
            def test(**arguments):
                outcome = self.run(body, environment, **arguments)
                assert outcome.status == 0, outcome.output

            return test

        return decorate


def serve(module, requests, replies):
    module.prepare()
    while True:
        try:
            request = pickle.load(requests)
        except EOFError:
            return
        pickle.dump(forked(module, *request), replies)
        replies.flush()


def forked(module, function, environment, arguments):
    with tempfile.TemporaryFile() as output:
        child = os.fork()
        if not child:
            body = inspect.unwrap(getattr(module, function))
            os._exit(call(body, arguments, environment, output.fileno()))
        _, status = os.waitpid(child, 0)
        output.seek(0)
        return Outcome(os.waitstatus_to_exitcode(status), output.read().decode(errors="replace"))


def call(function, arguments, environment, output):
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.environ.update(environment)
    try:
        function(**arguments)
        return 0
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


def main():
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what the module prints must not end up among the replies
    serve(importlib.import_module(sys.argv[1]), sys.stdin.buffer, replies)
