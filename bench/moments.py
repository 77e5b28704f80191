"""What calibration text tells about a model's keys, values and queries, and the bases (write, read) that follow from it.

A basis stores y = write x and reads x = read y; attention needs no more than that: q . (read y) = (read^T q) . y.
"""

from dataclasses import dataclass

import torch

from int4kv.rotation import hadamard_signs, rotate


@dataclass(frozen=True)
class LayerMoments:
    """Of one layer: means [heads, 1, head_dim] float32, second moments [heads, head_dim, head_dim] float64."""

    k_centre: torch.Tensor
    v_centre: torch.Tensor
    k_covariance: torch.Tensor
    v_moment: torch.Tensor
    q_moment: torch.Tensor
    o_metric: torch.Tensor
    k_before_rope: torch.Tensor


def moment(rows: torch.Tensor) -> torch.Tensor:
    return rows.double().transpose(-1, -2) @ rows.double() / rows.shape[-2]


def regularised(matrix: torch.Tensor, share: float) -> torch.Tensor:
    """matrix plus `share` of its mean eigenvalue on the diagonal."""
    mean = matrix.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None]
    return matrix + share * mean * torch.eye(matrix.shape[-1], dtype=matrix.dtype)


def power(matrix: torch.Tensor, exponent: float) -> torch.Tensor:
    """A power of symmetric positive matrices."""
    values, vectors = torch.linalg.eigh(matrix)
    return vectors * values.clamp_min(1e-12 * values.max()).pow(exponent).unsqueeze(-2) @ vectors.transpose(-1, -2)


def turn(rows: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    """RoPE: channels i and i + head_dim / 2 of rows [..., tokens or 1, head_dim] turned by angles [tokens, head_dim / 2]."""
    first, second = rows.chunk(2, -1)
    return torch.cat([first * angles.cos() - second * angles.sin(), second * angles.cos() + first * angles.sin()], -1)


class Moments:
    """Of a Simulator's model, from what it observed: windows of `length` tokens, each starting at position 0."""

    def __init__(self, simulator, length: int, observed: list):
        self.head_dim, self.layers, self.config = simulator.head_dim, simulator.layers, simulator.model.config
        self.hadamard_matrix = self._matrix(hadamard_signs(self.head_dim)).double()
        outputs = [layer.self_attn.o_proj.weight.detach() for layer in simulator.model.model.layers]
        self.of_layer = [self._moments(i, length, *observed[i], outputs[i]) for i in range(self.layers)]

    def _matrix(self, signs):
        return rotate(torch.eye(len(signs))[None], signs)[0].T.contiguous()

    def _moments(self, layer, length, q, k, v, output):
        heads, centre = k.shape[0], k.mean(1, keepdim=True)
        output = output.double().view(len(output), heads, -1, self.head_dim)
        angles = self.angles(layer, length).repeat(k.shape[1] // length, 1)
        return LayerMoments(centre, v.mean(1, keepdim=True), moment(k - centre), moment(v), moment(q.reshape(heads, -1, self.head_dim)),
                            torch.einsum("ohgd,ohge->hde", output, output), turn(k, -angles).mean(1, keepdim=True))

    def angles(self, layer: int, tokens: int) -> torch.Tensor:
        """RoPE's, [tokens, head_dim / 2]."""
        rope = self.config.rope_parameters
        rope = rope.get(self.config.layer_types[layer], rope)
        speed = rope["rope_theta"] ** (-torch.arange(0, self.head_dim, 2) / self.head_dim)
        return torch.arange(tokens)[:, None] * speed

    def slow(self, layer: int, tokens: int) -> torch.Tensor:
        """1.0 for channels that RoPE turns less than half a turn in so many tokens, else 0.0: [head_dim]."""
        return (self.angles(layer, tokens)[-1] < torch.pi).float().repeat(2)

    def turning_centre(self, layer: int, rows: torch.Tensor, step: int = 1) -> torch.Tensor:
        """The mean key before RoPE, turned to the position of each of rows; the mean of that over every `step` tokens."""
        turned = turn(self.of_layer[layer].k_before_rope, self.angles(layer, rows.shape[1]))
        return turned.unflatten(1, (-1, step)).mean(2).repeat_interleave(step, 1)

    def hadamard(self, layer=None):
        """The randomised Hadamard rotation, the same for every layer."""
        return self.hadamard_matrix.float(), self.hadamard_matrix.T.float()

    def hadamard_128(self, layer=None):
        """In blocks of 128, without signs, as SAW-INT4's code has it."""
        block = self._matrix(torch.ones(128))
        matrix = torch.block_diag(*[block] * (self.head_dim // 128))
        return matrix, matrix.T

    def plain(self, layer=None):
        return torch.eye(self.head_dim), torch.eye(self.head_dim)

    def _after(self, matrix):
        """The basis of Hadamard after a symmetric matrix [heads, head_dim, head_dim]."""
        write = self.hadamard_matrix @ matrix
        return write.float(), torch.linalg.inv(write).float()

    def scaled(self, layer: int):
        """Hadamard, then every channel of K divided by its standard deviation (Bergach's lambda, arXiv 2605.05699)."""
        turned = self.hadamard_matrix @ self.of_layer[layer].k_covariance @ self.hadamard_matrix.T
        write = turned.diagonal(dim1=-2, dim2=-1).rsqrt().unsqueeze(-1) * self.hadamard_matrix
        return write.float(), torch.linalg.inv(write).float()

    def balanced(self, layer: int):
        """Of all bases the one with the least E[(q . error)^2] when every channel of y gets the same noise (by Cauchy and Schwarz)."""
        rows, queries = regularised(self.of_layer[layer].k_covariance, 0.01), regularised(self.of_layer[layer].q_moment, 0.01)
        root, inverse = power(rows, 0.5), power(rows, -0.5)
        return self._after(power(inverse @ power(root @ queries @ root, 0.5) @ inverse, 0.5))

    def whitened(self, covariance: torch.Tensor, share: float):
        """Hadamard after whitening: channels of nearly equal variance; `share` regularises the covariance."""
        return self._after(power(regularised(covariance, share), -0.5))
