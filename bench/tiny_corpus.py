"""Text and tokenizer of the two bundled models: the Python standard library and Python's documentation.

Everything is read from this machine. Whole files are held out by a hash of their name.
"""

import ast
import hashlib
import platform
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

VOCAB_SIZE = 4096
END, PAD = "<|endoftext|>", "<|pad|>"
# Newer transformers give every model of type qwen2 the Qwen2 normalizer and pattern, whatever its file says.
QWEN2_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEST_TOKENS, DEMO_TOKENS = 47_000, 10_000

PYTHON = f"python{sys.version_info.major}.{sys.version_info.minor}"
DEFAULT_DOCS = Path(f"/usr/share/doc/{PYTHON}/html/_sources")
DEFAULT_STDLIB = Path(sysconfig.get_paths()["stdlib"])

SKIPPED_FOLDERS = {"test", "tests", "idlelib", "lib2to3", "encodings", "turtledemo", "__pycache__", "site-packages"}
SKIPPED_FOLDERS |= {"dist-packages", "pydoc_data", "ensurepip"}
REPEATED = ("reference/", "library/stdtypes", "library/string", "library/pdb", "library/constants")
TEST_BUCKET, DEMO_BUCKET, BUCKETS = 0, 1, 50

console = Console()


@dataclass
class Document:
    name: str
    text: str

    @property
    def bucket(self) -> int:
        """Hash of the file's name; pages that the topics of pydoc repeat are never held out."""
        if self.name.startswith(REPEATED):
            return -1
        return int(hashlib.md5(self.name.encode()).hexdigest(), 16) % BUCKETS


@dataclass
class Split:
    prose: list[Document]
    code: list[Document]
    test: list[Document]
    demo: list[Document]


def read_tree(root: Path, pattern: str) -> list[Document]:
    documents = []
    for path in sorted(root.rglob(pattern)):
        name = path.relative_to(root).as_posix()
        folders = set(name.split("/")[:-1])
        if folders & SKIPPED_FOLDERS or name.startswith("config-"):
            continue
        text = path.read_text("utf-8", errors="ignore").strip()
        documents += [Document(name, text)] if text else []
    return documents


def read_topics(stdlib: Path) -> list[Document]:
    """The language reference as plain text, which pydoc shows on `help("topic")`."""
    path = stdlib / "pydoc_data" / "topics.py"
    if not path.exists():
        return []
    literal = path.read_text("utf-8").partition("topics = ")[2]
    return [Document(f"topic/{name}", text.strip()) for name, text in ast.literal_eval(literal).items()]


def report(label: str, root: Path, documents: list[Document]) -> None:
    size = sum(len(d.text.encode()) for d in documents)
    console.print(f"{label}: {len(documents)} files, {size:,} bytes from {root}", soft_wrap=True)


def read_split(stdlib: Path, docs: Path) -> Split:
    code, pages, topics = read_tree(stdlib, "*.py"), read_tree(docs, "*.txt"), read_topics(stdlib)
    for label, root, found in (("stdlib", stdlib, code), ("docs", docs, pages), ("topics", stdlib, topics)):
        report(label, root, found)
    held = [d for d in pages + code if d.bucket in (TEST_BUCKET, DEMO_BUCKET)]
    names = {d.name for d in held}
    return Split(
        prose=[d for d in pages if d.name not in names] + topics,
        code=[d for d in code if d.name not in names],
        test=[d for d in held if d.bucket == TEST_BUCKET],
        demo=[d for d in held if d.bucket == DEMO_BUCKET],
    )


def train_tokenizer(documents: list[Document]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(QWEN2_PATTERN), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[END, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((d.text for d in documents), trainer)
    return tokenizer


def held_out_text(documents: list[Document], tokenizer: Tokenizer, budget: int) -> str:
    """Documents in the order of their hashes, blank lines between them, cut at a paragraph near the budget."""
    ordered = sorted(documents, key=lambda d: hashlib.md5(d.name.encode()).hexdigest())
    text = "\n\n\n".join(d.text for d in ordered) + "\n"
    encoding = tokenizer.encode(text)
    if len(encoding.ids) <= budget:
        return text
    start = encoding.offsets[budget][0]
    return text[: max(start, text.find("\n\n", start))] + "\n"


def encode(documents: list[Document], tokenizer: Tokenizer) -> np.ndarray:
    end = tokenizer.token_to_id(END)
    rows = tokenizer.encode_batch([d.text for d in documents])
    return np.concatenate([np.array([end, *row.ids], dtype=np.uint16) for row in rows])


def build(folder: Path, stdlib: Path, docs: Path) -> None:
    """Write tokenizer, token streams and held-out texts into `folder`."""
    split = read_split(stdlib, docs)
    if not split.code:
        raise SystemExit(f"no Python sources under {stdlib}")
    prose = split.prose or split.code
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = train_tokenizer(prose + split.code)
    (folder / "python.txt").write_text(platform.python_version())
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    for name, documents in (("prose", prose), ("code", split.code)):
        stream = encode(documents, tokenizer)
        np.save(folder / f"{name}.npy", stream)
        console.print(f"{name}: {len(stream):,} tokens")
    for name, documents, budget in (("test", split.test, TEST_TOKENS), ("demo", split.demo, DEMO_TOKENS)):
        text = held_out_text(documents, tokenizer, budget)
        (folder / f"{name}.txt").write_text(text, "utf-8")
        console.print(f"held out ({name}): {len(tokenizer.encode(text).ids):,} tokens")
