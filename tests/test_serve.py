"""int4kv serve as its users meet it: a real process on loopback, the real openai client."""

import socket
import subprocess
import sys
import threading
import time

import openai
import pytest
import torch
from transformers import AutoTokenizer
from typer.testing import CliRunner

import int4kv
from int4kv import cli, models

pytestmark = pytest.mark.cpu_only  # a server is the same whatever device its model is on
PROMPT = "Changed in version 3.8: "
CHAT = "{% for message in messages %}{{ message['content'] }}{% endfor %}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A bundled model with a chat template and calibrated centres beside it."""
    found = tmp_path_factory.mktemp("model")
    model, tokenizer = models.load("tiny-qwen2", "cpu", torch.float32)
    int4kv.calibrate(model, models.HELDOUT.read_text()[:20000], tokenizer=tokenizer, tokens=512).save(found)
    model.save_pretrained(found)
    tokenizer.chat_template = CHAT
    tokenizer.save_pretrained(found)
    return found


@pytest.fixture(scope="module")
def client(folder):
    """An openai client of a server in a process of its own, which must end by itself when interrupted."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "int4kv.cli", "serve", "--model", str(folder), "--config", str(folder), "--port", str(port),
               "--memory", "0.1", "--requests", "8", "--device", "cpu"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", timeout=120)
    try:
        wait_for(client, server)
        yield client
        server.terminate()
        assert server.wait(timeout=60) in (0, -15), server.stdout.read()
    finally:
        server.kill()
        server.stdout.close()


def wait_for(client, server):
    for _ in range(120):
        try:
            return client.models.list()
        except openai.APIConnectionError:
            assert server.poll() is None, server.stdout.read()
            time.sleep(0.5)
    raise TimeoutError("the server did not answer in 60 s")


@pytest.fixture(scope="module")
def expected(folder):
    """The text that generate() of the same patched model writes."""
    model, _ = models.load(folder, "cpu", torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    int4kv.patch(model, int4kv.Int4KVConfig.load(folder))

    def text(prompt, tokens):
        ids = tokenizer(prompt, return_tensors="pt").input_ids
        return tokenizer.decode(model.generate(ids, max_new_tokens=tokens, do_sample=False)[0, ids.shape[1] :], skip_special_tokens=True)

    return text


def complete(client, prompt=PROMPT, tokens=16, **options):
    return client.completions.create(model=client.models.list().data[0].id, prompt=prompt, max_tokens=tokens, temperature=0, **options)


def test_the_model_is_listed(client, folder):
    assert [model.id for model in client.models.list().data] == [str(folder)]


def test_a_completion_is_what_the_model_writes(client, expected):
    answer = complete(client)
    assert answer.choices[0].text == expected(PROMPT, 16) and answer.usage.completion_tokens == 16


def test_a_streamed_completion_comes_in_parts(client, expected):
    parts = [event.choices[0].text for event in complete(client, stream=True) if event.choices]
    assert len(parts) > 8 and "".join(parts) == expected(PROMPT, 16)


@pytest.mark.parametrize("stream", [False, True])
def test_chat(client, folder, expected, stream):
    answer = client.chat.completions.create(model=str(folder), messages=[dict(role="user", content=PROMPT)], max_tokens=12, temperature=0,
                                            stream=stream)
    if stream:
        found = "".join(event.choices[0].delta.content or "" for event in answer if event.choices)
    else:
        found = answer.choices[0].message.content
    assert found.endswith(expected(PROMPT, 12))  # transformers' parser of Qwen's chat format takes a prompt without its marks for a part


def test_more_clients_than_requests_at_once(client, expected):
    """20 clients, 8 requests at a time: all are answered, each with its own text."""
    prompts, found = [f"Changed in version 3.{i}: " for i in range(20)], {}

    def ask(prompt):
        found[prompt] = complete(client, prompt, 8).choices[0].text

    threads = [threading.Thread(target=ask, args=(prompt,)) for prompt in prompts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {prompt: expected(prompt, 8) for prompt in prompts}


def test_a_request_that_can_never_fit_is_told_and_others_are_served(client, expected):
    with pytest.raises(openai.InternalServerError):
        complete(client, tokens=10_000_000)
    assert complete(client).choices[0].text == expected(PROMPT, 16)


def test_another_model_is_refused(client):
    with pytest.raises(openai.BadRequestError) as refused:
        client.completions.create(model="other", prompt=PROMPT)
    assert refused.value.response.json()["detail"].startswith("Server is pinned to")


def test_mistakes_are_told_in_one_sentence(tmp_path):
    result = CliRunner().invoke(cli.app, ["serve", "--model", "tiny-qwen2", "--config", str(tmp_path)], env={"COLUMNS": "200"})
    assert result.exit_code == 2 and "Traceback" not in result.stderr and "int4kv.json" in result.stderr
