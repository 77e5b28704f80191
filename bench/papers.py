"""What the three papers measured, row by row, and the recipe that comes nearest to each row here."""

from dataclasses import dataclass

PLAIN = dict(centre=None, recent=0)
OURS_ELSE = "scales are fp16 here; text and model are other ones"


@dataclass(frozen=True)
class Row:
    """recipe: fields of Int4KVConfig. calibrate: arguments of int4kv.calibrate, or None. paper: its number. differs: from the paper's setting."""

    name: str
    recipe: dict
    paper: str
    differs: str = OURS_ELSE
    calibrate: dict | None = None


@dataclass(frozen=True)
class PaperTable:
    about: str
    rows: tuple


ABSMAX = PLAIN | dict(codebook="absmax")
NOT_CENTRED = dict(centre=False)
OURS = (
    Row("ours, default", {}, "", "centre from the prompt, newest 32 tokens exact"),
    Row("ours, K 5 bits, V 3 bits", dict(bits=(5, 3)), "", "the bytes of the default"),
    Row("ours, calibrated centre", {}, "", "centre from other text in place of the prompt", dict(centre=True)),
)

BERGACH = PaperTable(
    "Bergach, arXiv 2605.05699: Qwen2.5-1.5B, perplexity added by a 4-bit cache, one scale per vector. Corpus and protocol are not stated.",
    (
        Row("naive int4", ABSMAX | dict(rotation=None), "+7975"),
        Row("SRFT", ABSMAX | dict(rotation="srft"), "+638.6 (fused kernel)", "whether its kernel had lambda on is not stated"),
        Row("SRHT", ABSMAX, "as SRFT, statistically"),
        Row("SRFT, groups of 32", ABSMAX | dict(rotation="srft", group_size=32), "",
            "its 3x smaller cache fits groups of 32 and fp32 scales, not one scale per vector"),
        Row("SRFT + lambda", ABSMAX | dict(rotation="srft"), "calibration error -50.3 %", "lambda by our formula: its is not public",
            NOT_CENTRED | dict(channel_lambda=True)),
        Row("learned R + lambda", ABSMAX, "calibration error -84.9 %, perplexity worse than with a random base", "Cayley, 64 steps",
            NOT_CENTRED | dict(rotation="learned", base=None, channel_lambda=True)),
        Row("learned R on SRFT + lambda", ABSMAX, "better perplexity than without the base", "Cayley, 64 steps",
            NOT_CENTRED | dict(rotation="learned", base="srft", channel_lambda=True)),
        Row("Householder, D / 2 reflectors", ABSMAX, "'effectively lossless' at head_dim 256", "learned on SRFT, 64 steps",
            NOT_CENTRED | dict(rotation="householder", base="srft")),
        Row("SRFT + centre", ABSMAX | dict(rotation="srft", centre="prompt"), "", "the centre is ours"),
        *OURS,
    ),
)

BLOCKS = PLAIN | dict(codebook="asymmetric")
SAW = PaperTable(
    "SAW-INT4, arXiv 2604.19157: Qwen3-4B-Thinking, mean score of five tasks at 32K, BF16 75.64. Here: perplexity and KL of a language model.",
    (
        Row("INT4 plain", BLOCKS | dict(rotation=None), "0"),
        *(Row(f"BDR-{n}", BLOCKS | dict(rotation="sylvester", hadamard_block=n), score, OURS_ELSE)
          for n, score in ((16, "54.83"), (64, "72.29"), (128, "73.11"))),
        Row("BDR-128, K only", BLOCKS | dict(rotation=("sylvester", None), hadamard_block=128), "73.78"),
        Row("BDR-128, K only + centre", BLOCKS | dict(rotation=("sylvester", None), hadamard_block=128, centre="prompt"), "", "the centre is ours"),
        *OURS,
    ),
)

LLOYD = PLAIN | dict(codebook="lloyd")
LEVELS = "its scale is the norm; here the best of four clips, unbiased. Its 3-bit words waste 2 of 32 bits"
TURBOQUANT = PaperTable(
    "TurboQuant-MLX (arXiv 2504.19874): Qwen2.5-7B. KL and top-1 are its users' (mlx-lm#1060), the ratios are counted from its code.",
    (
        Row("3 bits", LLOYD | dict(bits=3), "4.57x, headline 4.6x", LEVELS),
        Row("4 bits", LLOYD, "3.76x; KL 6.86, top-1 10.5 %, needle 0/15", LEVELS),
        Row("K fp16, V 4 bits", LLOYD | dict(bits=(16, 4)), "KL 0.003, top-1 98.1 %, needle 15/15", LEVELS),
        Row("K 8 bits, V 4 bits", LLOYD | dict(bits=(8, 4)), "'same text'; memory -18 % at 32K", LEVELS),
        Row("3 bits, first and last layer fp16", LLOYD | dict(bits=3, skip_layers=(0, -1)), "2.4x with 4 + 4 of 28 layers", "1 + 1 of the bundled models' few layers"),
        Row("3 bits + centre", LLOYD | dict(bits=3, centre="prompt"), "", "the centre is ours"),
        Row("ours, 3 bits", dict(bits=3), "", "centre from the prompt, newest 32 tokens exact"),
        *OURS,
    ),
)

TABLES = {"bergach-qwen": BERGACH, "saw-bdr": SAW, "turboquant": TURBOQUANT}
