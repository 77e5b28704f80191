"""95 % confidence intervals of a mean over windows of text, by Student's t: few windows make wide intervals, as they should."""

from dataclasses import dataclass

import torch

# t at 97.5 % for 1 .. 30 degrees of freedom; beyond, 1.96 + 2.45 / degrees is within 0.001.
T_975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101,
         2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042)


@dataclass(frozen=True)
class Estimate:
    """A mean and its 95 % interval; low and high are None where one window tells nothing of the others."""

    mean: float
    low: float | None
    high: float | None

    def map(self, change) -> "Estimate":
        """The same of change(value), for an increasing function."""
        return Estimate(*(None if value is None else change(value) for value in (self.mean, self.low, self.high)))


def student_t(degrees: int) -> float:
    """The 97.5th percentile of Student's t distribution."""
    return T_975[degrees - 1] if degrees <= len(T_975) else 1.96 + 2.45 / degrees


def estimate(values: torch.Tensor) -> Estimate:
    """Of one value per window, [windows]. Windows count as independent samples of text like theirs."""
    values = values.double()
    mean, count = values.mean().item(), len(values)
    if count < 2:
        return Estimate(mean, None, None)
    half = student_t(count - 1) * values.std().item() / count**0.5
    return Estimate(mean, mean - half, mean + half)
