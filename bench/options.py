"""The options of the scripts that time one op on head layouts."""

import timing  # before torch: it pins the threads
import output
import torch
from shapes import DEFAULT, parse_layout


def add_options(parser) -> None:
    """--layout, --codebook, --bits, --device, --threads, --rounds, and those of output."""
    parser.add_argument("--layout", type=parse_layout, nargs="+", default=DEFAULT, help="like 12q2kv128, or a model's name")
    parser.add_argument("--codebook", choices=("lloyd", "uniform", "absmax", "asymmetric"), default="lloyd")
    parser.add_argument("--bits", type=int, choices=(3, 4, 5, 8), default=4)
    parser.add_argument("--device", choices=("cpu", "mps", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, help="of torch; default: torch's own choice")
    parser.add_argument("--rounds", type=int, default=timing.ROUNDS)
    output.add_options(parser)


def parse(parser):
    """The arguments, with torch's threads set to what they say."""
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    return arguments
