"""The emulated mps device: torch works on it as on the CPU. Every test runs where the device is loaded (rig/sandbox.py)."""

import copy
import io
import pickle
import subprocess
import sys

import pytest
import torch

from rig import build, device
from rig.sandbox import Sandbox

# CPU kernels over the device's memory: the same code, sums in another order at most.
TOLERANCE = dict(rtol=1e-5, atol=1e-6)

sandbox = Sandbox(__name__)


def prepare():
    torch.set_num_threads(1)
    device.load()


def values(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def both(*shape, seed=0):
    """The same numbers on the CPU and on the device."""
    cpu = values(*shape, seed=seed)
    return cpu, cpu.to("mps")


def same(actual, expected):
    assert actual.device.type == "mps"
    torch.testing.assert_close(actual.cpu(), expected, **TOLERANCE)


@sandbox.test()
def test_torch_finds_the_device():
    assert torch.backends.mps.is_available() and torch.backends.mps.is_built()
    assert torch.accelerator.current_accelerator().type == "mps"
    assert torch.mps.device_count() == 1
    assert torch.backends.mps.get_name() == "Rig GPU (CPU)"
    assert torch.backends.mps.get_core_count() == device.core_count() == 8


@sandbox.test()
def test_operators_equal_the_cpu():
    (a, x), (b, y) = both(5, 7), both(7, 3, seed=1)
    same(x @ y, a @ b)
    same(torch.softmax(x, -1).cumsum(0), torch.softmax(a, -1).cumsum(0))
    same(torch.cat([x, x]).half().float(), torch.cat([a, a]).half().float())
    same(torch.where(x > 0, x, 0.5), torch.where(a > 0, a, 0.5))
    assert torch.equal(x.argmax(1).cpu(), a.argmax(1))
    assert "device='mps:0'" in repr(x)


@sandbox.test()
def test_views_share_the_storage():
    a, x = both(6, 8)
    view = x[1:, ::2].t()
    assert view.storage_offset() == 8 and view.untyped_storage().data_ptr() == x.untyped_storage().data_ptr()
    view.mul_(10)
    a[1:, ::2] *= 10
    same(x, a)
    same(x.unfold(1, 3, 2), a.unfold(1, 3, 2))
    same(x.as_strided((3, 2), (2, 1), 5), a.as_strided((3, 2), (2, 1), 5))


@sandbox.test()
def test_out_arguments_are_resized_and_kept():
    (a, x), (b, y) = both(4, 5), both(4, 5, seed=1)
    out = torch.empty(0, device="mps")
    assert torch.add(x, y, out=out) is out
    same(out, a + b)
    whole = torch.zeros(8, 5, device="mps")
    torch.mul(x, y, out=whole[2:6])
    same(whole[2:6], a * b)
    assert not whole[:2].any() and not whole[6:].any()


@sandbox.test()
def test_copies_between_devices_dtypes_and_layouts():
    a, x = both(4, 6)
    same(x.t().to(torch.bfloat16).contiguous().float(), a.t().to(torch.bfloat16).float())
    x[:, 1:3].copy_(a[:, 3:5], non_blocking=True)
    a[:, 1:3] = a[:, 3:5].clone()
    same(x, a)
    assert torch.equal(x.to("cpu"), a)
    same(torch.complex(x, x).conj().imag, torch.complex(a, a).conj().imag)


@sandbox.test()
def test_indexing_with_indices_of_either_device():
    a, x = both(5, 3)
    index = torch.tensor([4, 0])
    same(x[index], a[index])
    same(x[index.to("mps")], a[index])
    x[index.to("mps")] = 1
    a[index] = 1
    same(x, a)
    same(x[x > 0], a[a > 0])


@sandbox.test()
def test_gradients_and_an_optimiser_step():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 4), torch.nn.LayerNorm(4), torch.nn.Linear(4, 1))
    twin = copy.deepcopy(model).to("mps")
    inputs, moved = both(3, 6)
    for each, data in ((model, inputs), (twin, moved)):
        each(data).square().sum().backward()
        torch.optim.AdamW(each.parameters(), lr=0.1).step()
    for mine, expected in zip(twin.parameters(), model.parameters()):
        same(mine.grad, expected.grad)
        same(mine.detach(), expected.detach())


@sandbox.test()
def test_convolutions_and_their_gradients():
    results = []
    for place in ("cpu", "mps"):
        x, w = (values(*shape, seed=i).to(place).requires_grad_() for i, shape in enumerate([(1, 3, 8, 8), (4, 3, 3, 3)]))
        y = torch.nn.functional.conv2d(x, w, values(4).to(place))
        y.square().sum().backward()
        results.append([y.detach(), x.grad, w.grad])
    for mine, expected in zip(results[1], results[0]):
        torch.testing.assert_close(mine.cpu(), expected, rtol=1e-4, atol=1e-4)


@sandbox.test()
def test_scaled_dot_product_attention():
    (q, k, v), mask = (values(1, 4, 5, 16, seed=i) for i in range(3)), torch.rand(1, 1, 5, 5) > 0.3
    mask[..., 0] = True
    attention = torch.nn.functional.scaled_dot_product_attention
    for options in (dict(is_causal=True), dict(attn_mask=mask), dict(attn_mask=values(5, 5)), dict(scale=0.3)):
        moved = {name: x.to("mps") if isinstance(x, torch.Tensor) else x for name, x in options.items()}
        same(attention(q.to("mps"), k.to("mps"), v.to("mps"), **moved), attention(q, k, v, **options))
    grouped = attention(q.to("mps"), k[:, :2].to("mps"), v[:, :2].to("mps"), enable_gqa=True)
    same(grouped, attention(q, k[:, :2], v[:, :2], enable_gqa=True))


@sandbox.test()
def test_random_numbers_repeat():
    torch.manual_seed(3)
    first = torch.rand(4, device="mps")
    torch.manual_seed(3)
    assert torch.equal(first, torch.rand(4, device="mps"))
    generator = torch.Generator("mps").manual_seed(5)
    state = generator.get_state()
    drawn = torch.randn(4, device="mps", generator=generator)
    generator.set_state(state)
    assert torch.equal(drawn, torch.randn(4, device="mps", generator=generator))
    assert torch.Generator("mps").manual_seed(5).initial_seed() == 5


@sandbox.test()
def test_saving_loading_and_copying():
    a, x = both(3, 4)
    file = io.BytesIO()
    torch.save({"x": x, "view": x[1:]}, file)
    file.seek(0)
    loaded = torch.load(file)
    same(loaded["x"], a)
    assert loaded["view"].untyped_storage().data_ptr() == loaded["x"].untyped_storage().data_ptr()
    file.seek(0)
    assert torch.equal(torch.load(file, map_location="cpu")["x"], a)
    same(copy.deepcopy(x), a)
    same(pickle.loads(pickle.dumps(x)), a)


@sandbox.test()
def test_events_streams_and_memory():
    first, second = torch.mps.Event(enable_timing=True), torch.mps.Event(enable_timing=True)
    first.record()
    before = torch.mps.current_allocated_memory()
    x = torch.ones(1000, device="mps")
    second.record()
    second.synchronize()
    assert first.elapsed_time(second) >= 0
    assert torch.mps.current_allocated_memory() - before == 4000
    del x
    assert torch.mps.current_allocated_memory() == before
    torch.accelerator.synchronize()
    torch.mps.set_rng_state(torch.mps.get_rng_state())
    assert torch.accelerator.current_stream().device.type == "mps"


@sandbox.test()
def test_what_mps_refuses():
    x = torch.ones(3, device="mps")
    with pytest.raises(TypeError, match="doesn't support"):
        x.double()
    with pytest.raises(RuntimeError, match="at least two devices, mps:0 and cpu"):
        x + torch.ones(3)
    with pytest.raises(TypeError, match="Tensor.cpu"):
        x.numpy()
    assert (x + torch.tensor(2.0)).sum() == 9


def test_loading_too_late_is_an_error():
    code = "import torch; torch.backends.mps.is_available(); from rig import device; device.load()"
    done = subprocess.run([sys.executable, "-c", code], cwd=build.RIG.parent, capture_output=True, text=True)
    assert done.returncode == 1
    assert "torch was asked for mps before rig.device.load()" in done.stderr


def test_the_device_must_be_loaded_to_be_asked(monkeypatch):
    monkeypatch.setattr(device, "_device", None)
    with pytest.raises(RuntimeError, match="load\\(\\) was not called"):
        device.counters()


def test_a_missing_compiler_is_named(monkeypatch):
    build.objective_c_headers.cache_clear()
    monkeypatch.setattr(build, "CLANG", "clang++-0")
    with pytest.raises(build.BuildError, match="needs clang\\+\\+-0, GNUstep.*apt-get install clang-19 libgnustep-base-dev"):
        build.objective_c_headers()
    build.objective_c_headers.cache_clear()
