"""One rank of a tensor-parallel model, started by torchrun: python tensor_parallel_worker.py FOLDER

FOLDER/cases.json: {name: [model folder, options of int4kv.patch, options of generate]}. Each rank writes what it generated into
FOLDER/rank0.json and so on, with the KV heads it holds, or the error it met. A case named "dies" ends rank 1 in the middle of generating.
"""

import json
import os
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, LogitsProcessor, LogitsProcessorList

import int4kv
from int4kv.naming import as_argument

RANK = int(os.environ.get("RANK", 0))
NEW, DIES_AT, EXIT_CODE = 24, 5, 7


class Death(LogitsProcessor):
    """Ends rank 1 like a crash would, while the others wait for its part of the sixth token."""

    def __call__(self, input_ids, scores):
        self.tokens = getattr(self, "tokens", -1) + 1
        if RANK == 1 and self.tokens == DIES_AT:
            os._exit(EXIT_CODE)
        return scores


def prompt(batch=2, tokens=60):
    return torch.randint(1, 300, (batch, tokens), generator=torch.Generator().manual_seed(1))


def load(folder, **how):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **how).eval()
    model.generation_config.pad_token_id, model.generation_config.eos_token_id = 0, None
    return model


def generate(model, folder, options, given):
    """Tokens of the prompt with an int4 cache, and the heads that it holds. options: those of int4kv.patch, or the folder of a config."""
    config = int4kv.Int4KVConfig.load(folder) if options == "calibrated" else int4kv.Int4KVConfig(**options)
    int4kv.patch(model, config)
    cache = int4kv.Int4Cache(model.config, config)
    tokens = model.generate(prompt().to(model.device), do_sample=False, max_new_tokens=NEW, **as_argument(cache), **given)
    return dict(tokens=tokens.tolist(), heads=[layer.num_heads for layer in cache.layers])


def generate_or_refuse(*arguments):
    try:
        return generate(*arguments)
    except ValueError as error:
        return dict(error=str(error))


def run(folder):
    results = {}
    for name, (path, options, given) in json.loads((folder / "cases.json").read_text()).items():
        extra = dict(logits_processor=LogitsProcessorList([Death()])) if name == "dies" else {}
        results[name] = generate_or_refuse(load(path, tp_plan="auto"), path, options, given | extra)
        (folder / f"rank{RANK}.json").write_text(json.dumps(results))


if __name__ == "__main__":
    torch.set_num_threads(1)
    run(Path(sys.argv[1]))
    torch.distributed.destroy_process_group()
