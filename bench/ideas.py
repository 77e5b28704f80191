"""Which ideas lower the KL of a 4-bit cache at equal bytes: one function per idea, each measured against the recipe that it changes.

    python bench/ideas.py --json bench/results/ideas.json

Simulated decoding (bench/simulate.py) of both bundled models on tests/data/heldout.txt, calibrated on the demonstration's text.
"""

import argparse
import json
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import rounding
import torch
from machine import facts
from moments import Moments, regularised
from rounding import feedback_matrix, lloyd, unbiased, with_feedback
from simulate import Recipe, Simulator

from int4kv import models
from int4kv.centre import first_real_centre
from int4kv.evaluation.evaluate import windows

TEXT = Path(__file__).parent.parent / "tests" / "data" / "heldout.txt"


def side(of: Moments, round=lloyd, basis=None, centre=None):
    """Keys or values through centre, basis and rounding, and back.

    round: function of the rows, or one per layer. basis(layer) -> (write, read), y = write (x - centre) and x = read y + centre; the
    randomised Hadamard rotation by default. centre(layer, rows) -> what is subtracted.
    """
    def give_back(layer, rows):
        write, read = (basis or of.hadamard)(layer)
        constant = centre(layer, rows) if centre else 0.0
        y = (rows - constant) @ write.transpose(-1, -2)
        return (round[layer] if isinstance(round, list) else round)(y) @ read.transpose(-1, -2) + constant
    return give_back


def prompt_mean(layer, rows, tokens=32):
    return rows[:, :tokens].mean(1, keepdim=True)


def shrunk_mean(layer, rows, tokens=32):
    """What int4kv subtracts: the prompt's mean, drawn towards 0 where its keys disagree."""
    first = torch.ones(1, rows.shape[1], dtype=torch.bool)
    return first_real_centre(rows.unsqueeze(0), first, tokens)[0].unsqueeze(1)


def default(of, *, k=None, v=None, **changes):
    """The shipped recipe with a plain prompt mean, and something else for K or V, or other bits, ring or sinks."""
    return replace(Recipe(k or side(of, centre=prompt_mean), v or side(of)), **changes)


def saw_with_centre(of):
    """SAW-INT4 (arXiv 2604.19157): K rotated in blocks of 128 without signs, V as it is, asymmetric; a centre added, no ring."""
    return default(of, k=side(of, rounding.asymmetric, of.hadamard_128, prompt_mean), v=side(of, rounding.asymmetric, of.plain),
                   row_bits=32, recent=0)


def rounded(of, round, v_round=None, **changes):
    return default(of, k=side(of, round, centre=prompt_mean), v=side(of, v_round or round), **changes)


def bits(of, k, v):
    return rounded(of, partial(lloyd, bits=k), partial(lloyd, bits=v), k_bits=k, v_bits=v)


def scaled(of, scale, **changes):
    return rounded(of, partial(lloyd, scale=scale), **changes)


def clips(of, *shares):
    return rounded(of, partial(lloyd, clips=shares))


def lloyd_max_levels(of):
    """The real levels for a Gaussian instead of small integers; `lloyd` of format.h is their companding formula, rounded."""
    return rounded(of, partial(lloyd, table=rounding.gaussian_levels(4)))


def query_weighted(of):
    """The clip of least error as queries see it: channels weighted with E[q^2] in the rotated basis."""
    write, read = of.hadamard()
    turned = [write @ layer.q_moment.float() @ read for layer in of.of_layer]
    weights = [m.diagonal(dim1=-2, dim2=-1).unsqueeze(1) for m in turned]
    return default(of, k=side(of, [partial(rounding.lloyd_weighted, weights=w) for w in weights], centre=prompt_mean))


def gram(read):
    """What an inner product of rows is in a basis."""
    return read.transpose(-1, -2) @ read


def k_basis(of, basis):
    """Another linear transform of K, with a scale that stays unbiased in K's own inner product."""
    rounds = [partial(lloyd, scale=partial(unbiased, gram=gram(basis(layer)[1]))) for layer in range(of.layers)]
    return default(of, k=side(of, rounds, basis, prompt_mean))


def k_centre(of, centre):
    return default(of, k=side(of, centre=centre))


def calibrated_mean(of):
    return lambda layer, rows: of.of_layer[layer].k_centre


def slow_pairs_only(of):
    """A centre where RoPE turns less than half a turn in 2048 tokens; fast pairs have no constant."""
    return k_centre(of, lambda layer, rows: prompt_mean(layer, rows) * of.slow(layer, 2048))


def ends_wider(of):
    """Bits by layer at equal bytes: K of the first and last layer 5 bits, V of two layers between 3."""
    k = [partial(lloyd, bits=5 if layer in (0, of.layers - 1) else 4) for layer in range(of.layers)]
    v = [partial(lloyd, bits=3 if layer in (1, 2) else 4) for layer in range(of.layers)]
    return default(of, k=side(of, k, centre=prompt_mean), v=side(of, v))


def calibrated(of, k_bits=4, v_bits=4, *, k=None, v=None):
    """The default with a calibrated centre: what the ideas that need a calibration are measured against."""
    k = k or side(of, partial(lloyd, bits=k_bits), centre=calibrated_mean(of))
    return Recipe(k, v or side(of, partial(lloyd, bits=v_bits)), k_bits, v_bits)


def fed_back(of, covariance, metric, whitening, bits, centre=None):
    """Rounding with error feedback towards `metric`, in the Hadamard basis, or (whitening a number) in one that first whitens the rows."""
    bases = [of.hadamard() if whitening is None else of.whitened(getattr(layer, covariance), whitening) for layer in of.of_layer]
    rounds = []
    for (_, read), layer in zip(bases, of.of_layer):
        read = read.double().expand(len(layer.k_centre), -1, -1)
        inner = read.transpose(-1, -2) @ regularised(getattr(layer, metric), 0.1) @ read
        rounds.append(partial(with_feedback, feedback=feedback_matrix(inner), gram=gram(read).float(), bits=bits))
    return side(of, rounds, bases.__getitem__, centre)


def k_feedback(of, whitening=None, bits=4, centre=None):
    return fed_back(of, "k_covariance", "q_moment", whitening, bits, centre or calibrated_mean(of))


def v_feedback(of, whitening=None, bits=4):
    """The metric is W_o^T W_o: it needs no text."""
    return fed_back(of, "v_moment", "o_metric", whitening, bits)


def both_feedback(of, k_bits=4, v_bits=4, whitening=0.3):
    return calibrated(of, k_bits, v_bits, k=k_feedback(of, whitening, k_bits), v=v_feedback(of, whitening, v_bits))


DEFAULT, CALIBRATED, UNEVEN, NARROW = "default", "calibrated centre", "calibrated centre, K 5 V 3", "calibrated centre, 3 bits"
# name: (recipe, the idea that it is measured against, whether int4kv offers it)
IDEAS = {
    DEFAULT: (default, DEFAULT, True),
    "SAW-INT4 with a centre": (saw_with_centre, DEFAULT, False),
    "least-squares scale": (lambda of: scaled(of, rounding.least_squares), DEFAULT, False),
    "norm-preserving scale": (lambda of: scaled(of, rounding.norm_preserving), DEFAULT, False),
    "scale of 8 bits, logarithmic": (lambda of: scaled(of, rounding.logarithmic, row_bits=8), DEFAULT, False),
    "one clip": (lambda of: clips(of, 0.9), DEFAULT, False),
    "two clips": (lambda of: clips(of, 0.84, 0.95), DEFAULT, False),
    "nine clips": (lambda of: clips(of, *(0.72 + 0.04 * i for i in range(9))), DEFAULT, False),
    "Lloyd-Max's own levels": (lloyd_max_levels, DEFAULT, False),
    "uniform levels": (lambda of: rounded(of, rounding.uniform), DEFAULT, False),
    "uniform levels, unbiased scale": (lambda of: rounded(of, partial(rounding.uniform, scale=unbiased)), DEFAULT, False),
    "pairs of channels, 256 points": (lambda of: rounded(of, rounding.pairs), DEFAULT, False),
    "clip weighted by queries": (query_weighted, DEFAULT, False),
    "lambda per channel, K": (lambda of: k_basis(of, of.scaled), DEFAULT, False),
    "balanced transform, K": (lambda of: k_basis(of, of.balanced), DEFAULT, False),
    "V not rotated": (lambda of: default(of, v=side(of, basis=of.plain)), DEFAULT, False),
    "V centred": (lambda of: default(of, v=side(of, centre=lambda layer, rows: of.of_layer[layer].v_centre)), DEFAULT, False),
    "centre shrunk where keys disagree": (lambda of: k_centre(of, shrunk_mean), DEFAULT, True),
    "centre of 128 tokens": (lambda of: k_centre(of, partial(prompt_mean, tokens=128)), DEFAULT, False),
    "centre of slow RoPE pairs only": (slow_pairs_only, DEFAULT, False),
    "centre before RoPE": (lambda of: k_centre(of, of.turning_centre), CALIBRATED, False),
    "centre before RoPE, in steps of 64": (lambda of: k_centre(of, partial(of.turning_centre, step=64)), CALIBRATED, False),
    "4 sinks": (lambda of: default(of, sinks=4), DEFAULT, False),
    "ring of 16": (lambda of: default(of, recent=16), DEFAULT, False),
    "ring of 48": (lambda of: default(of, recent=48), DEFAULT, False),
    "ring of 64": (lambda of: default(of, recent=64), DEFAULT, False),
    "ring of 128": (lambda of: default(of, recent=128), DEFAULT, False),
    "K 5 V 3": (lambda of: bits(of, 5, 3), DEFAULT, True),
    "K 5 V 4": (lambda of: bits(of, 5, 4), DEFAULT, True),
    "K 4 V 3": (lambda of: bits(of, 4, 3), DEFAULT, False),
    "3 bits": (lambda of: bits(of, 3, 3), DEFAULT, True),
    "3 bits, ring of 48": (lambda of: replace(bits(of, 3, 3), recent=48), "3 bits", False),
    "K of first and last layer 5, V of two 3": (ends_wider, DEFAULT, False),
    CALIBRATED: (calibrated, DEFAULT, True),
    "feedback, K, prompt's centre": (lambda of: calibrated(of, k=k_feedback(of, centre=prompt_mean)), DEFAULT, False),
    "feedback, K": (lambda of: calibrated(of, k=k_feedback(of)), CALIBRATED, False),
    "feedback, V": (lambda of: calibrated(of, v=v_feedback(of)), CALIBRATED, False),
    "feedback, K and V": (lambda of: both_feedback(of, whitening=None), CALIBRATED, False),
    "feedback and whitening, K": (lambda of: calibrated(of, k=k_feedback(of, 0.3)), CALIBRATED, False),
    "feedback and whitening, V": (lambda of: calibrated(of, v=v_feedback(of, 0.3)), CALIBRATED, False),
    "feedback and whitening, K and V": (both_feedback, CALIBRATED, False),
    UNEVEN: (lambda of: calibrated(of, 5, 3), CALIBRATED, True),
    "K 5 V 3, feedback and whitening": (lambda of: both_feedback(of, 5, 3), UNEVEN, False),
    NARROW: (lambda of: calibrated(of, 3, 3), "3 bits", True),
    "3 bits, feedback": (lambda of: both_feedback(of, 3, 3, None), NARROW, False),
    "3 bits, feedback and whitening": (lambda of: both_feedback(of, 3, 3), NARROW, False),
}


def with_references(asked) -> list[str]:
    """The ideas asked for and all that they are measured against."""
    wanted = set(asked)
    while (more := wanted | {IDEAS[idea][1] for idea in wanted}) != wanted:
        wanted = more
    return [idea for idea in IDEAS if idea in wanted]


def measure(name: str, count: int, length: int, chosen) -> list[dict]:
    """One row per idea on one model."""
    torch.set_num_threads(1)
    simulator = Simulator(name)
    of = Moments(simulator, length, simulator.observe(models.HELDOUT.read_text(), length, 8 * 1024 // length))
    recipes = {idea: IDEAS[idea][0](of) for idea in chosen}
    found = [simulator.divergence(ids, recipes) for ids in windows(simulator.tokenizer, TEXT.read_text(), length, count)]
    kl = {idea: torch.stack([window[idea][0] for window in found]) for idea in recipes}
    change = {idea: torch.stack([window[idea][1] for window in found]).mean().exp().item() - 1 for idea in recipes}
    return [dict(model=name, idea=idea, against=IDEAS[idea][1], kept=IDEAS[idea][2], bits=recipe.bits_per_value(of.head_dim),
                 bits_32768=recipe.bits_per_value(of.head_dim, 32768), kl=kl[idea].mean().item(), kl_999=kl[idea].quantile(0.999).item(),
                 perplexity_change=change[idea], **ratio(kl[idea].mean(1), kl[IDEAS[idea][1]].mean(1))) for idea, recipe in recipes.items()]


def ratio(kl, reference) -> dict:
    """Mean KL relative to the reference's, and its standard error over windows, paired."""
    value = kl.mean() / reference.mean()
    return dict(ratio=value.item(), standard_error=((kl - value * reference).std() / len(kl) ** 0.5 / reference.mean()).item())


def line(row: dict) -> str:
    change = f"{row['ratio']:.3f} +- {row['standard_error']:.3f}"
    return (f"{row['model']:12} {row['bits']:6.3f} {row['kl']:9.6f}  {change:24} {100 * row['perplexity_change']:+9.3f}% "
            f"{'kept' if row['kept'] else '':5}{row['idea']}" + (f" (against: {row['against']})" if row["against"] != DEFAULT else ""))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", help="write the results here")
    parser.add_argument("--windows", type=int, default=4, help="windows of held-out text (4)")
    parser.add_argument("--length", type=int, default=1024, help="tokens of a window (1024)")
    parser.add_argument("--processes", type=int, default=2, help="models measured at once (2)")
    parser.add_argument("--only", nargs="+", choices=list(IDEAS), metavar="IDEA", help="these ideas, and what they are measured against")
    arguments = parser.parse_args()
    if arguments.windows < 2:
        parser.error(f"--windows is {arguments.windows}; accepted: 2 or more, for a standard error")
    work = partial(measure, count=arguments.windows, length=arguments.length, chosen=with_references(arguments.only or IDEAS))
    rows = []
    print(f"{'model':12} {'bits':>6} {'KL':>9}  {'of that of its reference':24} {'perplexity':>10}")
    with ProcessPoolExecutor(arguments.processes) as pool:
        for found in pool.map(work, models.NAMES):
            rows += found
            print("\n".join(map(line, found)), flush=True)
    if arguments.json:
        settings = dict(threads=1, windows=arguments.windows, length=arguments.length)
        Path(arguments.json).write_text(json.dumps(facts() | settings | dict(rows=rows), indent=1))


if __name__ == "__main__":
    main()
