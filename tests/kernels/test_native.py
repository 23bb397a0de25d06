"""The native kernels against plain sums, and how they are called and compiled."""

import ctypes
import logging
import re
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from integer_sums import CASES, by_sums, gradients_by_sums

from qpsnn_jax.kernels import plain, skipping
from qpsnn_jax.kernels.algorithm import ConvSpec
from qpsnn_jax.kernels.convolution import convolve
from qpsnn_jax.kernels.geometry import Geometry
from qpsnn_jax.kernels.native import library
from qpsnn_jax.kernels.skipping import kernel_grad

CASES = [*(CASES[i] for i in (1, 4, 6, 9, 13)), ((7, 6), (1, 1), (2, 3), (0, 0)), ((9, 9), (2, 2), (3, 3), (0, 1))]
SPEC = ConvSpec(Geometry((5, 4), (3, 3), (1, 1), (1, 1)), 2, 3)

pytestmark = pytest.mark.usefixtures("native_library")


def integers(size, density, rng):
    """Small integers, so that every order of sums gives the same."""
    return (rng.integers(-2, 3, size) * (rng.random(size) < density)).astype(np.float32)


def sparse(spec, density=0.5, images=5):
    """Maps, cotangent and kernel; ``density`` may be one for each image."""
    rng, geometry, each = np.random.default_rng(0), spec.geometry, np.reshape(density, (-1, 1, 1, 1))
    x = integers((images, *geometry.input_hw, spec.inputs), each, rng)
    cotangent = integers((images, *geometry.output_hw, spec.outputs), each, rng)
    return x, cotangent, integers((*geometry.kernel, spec.inputs, spec.outputs), np.mean(density), rng)


def assert_exact(spec, density=0.5, images=5):
    x, cotangent, weights = sparse(spec, density, images)
    where = spec.geometry.strides, spec.geometry.padding
    by_x, by_kernel = gradients_by_sums(x, weights, cotangent, *where)
    np.testing.assert_array_equal(skipping.sums(x, weights, spec), by_sums(x, weights, *where))
    np.testing.assert_array_equal(skipping.input_grad(cotangent, weights, spec), by_x)
    np.testing.assert_array_equal(kernel_grad(x, cotangent, spec), by_kernel)


def assert_same_alone(x, weights, spec):
    together = np.asarray(skipping.sums(x, weights, spec))
    alone = [np.asarray(skipping.sums(x[i : i + 1], weights, spec)) for i in range(len(x))]
    np.testing.assert_array_equal(together, np.concatenate(alone))


@pytest.mark.parametrize(("shape", "kernel", "strides", "padding"), CASES)
def test_sums_and_gradients(shape, kernel, strides, padding):
    geometry = Geometry(shape, kernel, strides, padding)
    for inputs, outputs, density in ((3, 6, 0.3), (9, 130, 0.1), (9, 130, 1)):
        assert_exact(ConvSpec(geometry, inputs, outputs), density)


@pytest.mark.parametrize("most", [1, 3, 7, 15, 31, 40])
@pytest.mark.parametrize("strides", [(1, 1), (2, 1)])
def test_spikes_and_integers(most, strides):
    """Weights of every size at every firing rate, beside images that are not spikes."""
    rng = np.random.default_rng(most)
    spec = ConvSpec(Geometry((17, 14), (3, 3), strides, (1, 1)), 13, 18)
    rates = np.linspace(0, 1, 24).reshape(-1, 1, 1, 1)
    x = (rng.random((24, 17, 14, 13)) < rates).astype(np.float32)
    x[5, 3, 2, 1] = 2
    weights = rng.integers(-most, most + 1, (3, 3, 13, 18)).astype(np.float32)
    weights[..., 0] = most
    np.testing.assert_array_equal(skipping.sums(x, weights, spec), by_sums(x, weights, strides, (1, 1)))
    x[7, 0, 0, 0] = np.nan
    sums = np.asarray(skipping.sums(x, weights, spec))
    assert np.isnan(sums[7, 0, 0]).all()
    assert not np.isnan(np.delete(sums, 7, 0)).any()


@pytest.mark.parametrize("levels", [(-1, 1), (-3, -1, 1, 3), (-1, 0, 1), (-4, 0, 4), (-7, -5, -3, -1, 1, 3, 5, 7)])
def test_numbers_with_weights_of_few_levels(levels):
    """Maps and cotangents that are no spikes, of whose sums with signs there are tables."""
    rng = np.random.default_rng(len(levels))
    for shape, kernel, padding, inputs, outputs in (
        ((17, 14), (3, 3), (1, 1), 13, 18),
        ((9, 13), (2, 1), (3, 2), 16, 5),
        ((8, 8), (1, 1), (0, 0), 30, 130),
        ((4, 4), (3, 3), (1, 1), 140, 40),
    ):
        spec = ConvSpec(Geometry(shape, kernel, (1, 1), padding), inputs, outputs)
        x, cotangent, _ = sparse(spec, 1, 64)
        weights = rng.choice(levels, (*kernel, inputs, outputs)).astype(np.float32)
        by_x, _ = gradients_by_sums(x, weights, cotangent, (1, 1), padding)
        np.testing.assert_array_equal(skipping.sums(x, weights, spec), by_sums(x, weights, (1, 1), padding))
        np.testing.assert_array_equal(skipping.input_grad(cotangent, weights, spec), by_x)


@pytest.mark.parametrize("levels", [(-1, 1), (-3, -1, 1, 3), (-1, 0, 1)])
def test_images_have_the_same_sums_alone_and_together(levels):
    """Bit for bit, whatever numbers they are: a stream is equal to all of its steps at once."""
    rng = np.random.default_rng(0)
    spec = ConvSpec(Geometry((12, 12), (3, 3), (1, 1), (1, 1)), 10, 32)
    x = rng.normal(size=(64, 12, 12, 10)).astype(np.float32)
    weights = rng.choice(levels, (3, 3, 10, 32)).astype(np.float32)
    assert_same_alone(x, weights, spec)


def test_sparse_images_have_the_same_sums_alone_and_together():
    """Half of each image is full: one image is listed or not by bands of rows, many are as a whole."""
    rng = np.random.default_rng(0)
    spec = ConvSpec(Geometry((16, 16), (3, 3), (2, 2), (1, 1)), 32, 16)
    x = (rng.random((16, 16, 16, 32)) < np.repeat((0.08, 0.9), 8)[:, None, None]).astype(np.float32)
    weights = rng.normal(size=(3, 3, 32, 16)).astype(np.float32)
    assert_same_alone(x, weights, spec)


def test_a_weight_of_zero_adds_nothing():
    """Not even the rounding of a large cotangent."""
    rng = np.random.default_rng(0)
    spec = ConvSpec(Geometry((12, 12), (3, 3), (1, 1), (1, 1)), 16, 20)
    weights = rng.choice((-1, 0, 1), (3, 3, 16, 20)).astype(np.float32)
    weights[:, :, :4, 0] = 0
    cotangent = rng.normal(size=(16, 12, 12, 20)).astype(np.float32)
    expected = np.asarray(skipping.input_grad(cotangent, weights, spec))[..., :4]
    cotangent[..., 0] *= 1e7
    np.testing.assert_array_equal(np.asarray(skipping.input_grad(cotangent, weights, spec))[..., :4], expected)


def test_weights_of_few_levels_and_one_more():
    spec = ConvSpec(Geometry((8, 8), (3, 3), (1, 1), (1, 1)), 16, 16)
    _, cotangent, weights = sparse(spec, 1, 32)
    weights = np.where(weights > 0, 3, -1).astype(np.float32)
    for more in (0, 2, -9, np.inf, np.nan):
        weights[1, 1, 4, 5] = more
        with np.errstate(invalid="ignore"):  # infinity times 0
            by_x, _ = gradients_by_sums(cotangent, weights, cotangent, (1, 1), (1, 1))
        np.testing.assert_array_equal(skipping.input_grad(cotangent, weights, spec), by_x)


def test_wide_layers():
    """More outputs and inputs than one block has, and strides."""
    stride_1, stride_2 = Geometry((3, 4), (3, 2), (1, 1), (1, 0)), Geometry((5, 4), (3, 3), (2, 2), (1, 1))
    # Some of the outputs fill up their last block, for vectors of 4, 8 and 16 numbers.
    for geometry, inputs, outputs in (
        (stride_1, 140, 130),
        (stride_2, 140, 130),
        (stride_1, 140, 70),
        (stride_1, 70, 140),
        (stride_1, 130, 256),
        (stride_1, 130, 40),
    ):
        assert_exact(ConvSpec(geometry, inputs, outputs))


@pytest.mark.parametrize("images", [16, 35])
@pytest.mark.parametrize("shape", [(1, 1), (2, 2), (5, 7)])
def test_many_small_maps(shape, images):
    """Several images at once, of which some are full and others empty."""
    density = np.linspace(-0.3, 1.3, images)[np.random.default_rng(1).permutation(images)]
    for kernel, strides, padding in (((3, 3), (1, 1), (1, 1)), ((3, 3), (2, 2), (1, 1)), ((1, 1), (1, 1), (0, 0))):
        for inputs, outputs in ((3, 6), (140, 130)):
            assert_exact(ConvSpec(Geometry(shape, kernel, strides, padding), inputs, outputs), density, images)


def test_nothing_to_compute():
    spec = ConvSpec(Geometry((4, 4), (3, 3), (1, 1), (1, 1)), 2, 3)
    none, weights = np.zeros((0, 4, 4, 2), np.float32), np.ones((3, 3, 2, 3), np.float32)
    assert skipping.sums(none, weights, spec).shape == (0, 4, 4, 3)
    sums = np.zeros((0, 4, 4, 3), np.float32)
    assert skipping.input_grad(sums, weights, spec).shape == (0, 4, 4, 2)
    np.testing.assert_array_equal(kernel_grad(none, sums, spec), np.zeros_like(weights))
    narrow, maps, empty = spec._replace(outputs=0), np.ones((1, 4, 4, 2), np.float32), np.ones((1, 4, 4, 0), np.float32)
    np.testing.assert_array_equal(skipping.input_grad(empty, weights[..., :0], narrow), np.zeros_like(maps))
    assert kernel_grad(maps, empty, narrow).shape == (3, 3, 2, 0)


def operands(spec, images):
    return [np.tile(x[:1], (images, 1, 1, 1)) for x in sparse(spec)[:2]]


def by_jax(x, cotangent, spec):
    return plain.kernel_grad(x, cotangent, spec.geometry)


@pytest.mark.parametrize(
    "transform",
    [
        lambda run, x, y: jax.vmap(run, (0, None))(jnp.stack([x, 2 * x]), y),
        lambda run, x, y: jax.jvp(run, (x, y), (y[..., :2], x[..., :1] + y))[1],
        lambda run, x, y: jax.grad(lambda x: jnp.sum(run(x, y) ** 2))(x),
    ],
    ids=["vmap", "jvp", "grad"],
)
def test_transformations_are_those_of_the_definition(transform):
    x, cotangent = operands(SPEC, 4)
    runs = [partial(run, spec=SPEC) for run in (kernel_grad, by_jax)]
    native, wanted = jax.jit(lambda *given: [transform(run, *given) for run in runs])(x, cotangent)
    np.testing.assert_allclose(native, wanted, rtol=1e-6)


@pytest.mark.parametrize("strides", [(1, 1), (2, 1)])
def test_convolutions_have_derivatives_of_every_order_in_every_mode(strides):
    """Those of XLA, up to the order of sums; the third derivative passes through each of the three maps."""
    geometry = Geometry((5, 4), (3, 3), strides, (1, 1))
    x, _, weights = sparse(ConvSpec(geometry, 2, 3))
    both = np.stack([x, x[::-1]])

    def checks(run):
        loss = lambda x, k: jnp.sum(run(x, k) ** 3)  # noqa: E731
        hessian = lambda x, k: jax.jvp(jax.grad(loss, (0, 1)), (x, k), (x, k))[1]  # noqa: E731
        yield jax.jvp(run, (x, weights), (2 * x, weights))[1]
        yield from hessian(x, weights)
        yield jax.grad(lambda k: jnp.vdot(hessian(x, k)[1], weights))(weights)
        yield jax.vmap(run, (0, None))(both, weights)
        yield jax.vmap(run)(both, np.stack([weights, 2 * weights]))
        yield from jax.vmap(jax.grad(loss, (0, 1)), (0, None))(both, weights)

    found, wanted = (
        jax.jit(lambda run=run: list(checks(run)))()
        for run in (
            partial(convolve, strides=strides, padding=(1, 1)),
            lambda x, k: plain.convolution(x, k, geometry),
        )
    )
    for got, expected in zip(found, wanted, strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


def test_exact_convolutions_call_nothing():
    x, _, weights = sparse(SPEC)

    def text(**options):
        run = partial(convolve, padding=(1, 1), **options)
        return jax.jit(jax.grad(lambda x, k: run(x, k).sum(), (0, 1))).lower(x, weights).as_text()

    assert text().count("custom_call @qpsnn") == 2
    assert "custom_call" not in text(precision="exact")


def test_a_program_calls_the_library_unless_it_is_exported_or_spread():
    run, shapes = jax.jit(partial(kernel_grad, spec=SPEC)), [jax.typeof(x) for x in operands(SPEC, 4)]
    assert "custom_call" in run.lower(*shapes).as_text()
    for platform in ("cpu", "tpu", "cuda"):
        assert "custom_call" not in jax.export.export(run, platforms=[platform])(*shapes).mlir_module()
    (b,) = jax.export.symbolic_shape("b")
    symbolic = [jax.ShapeDtypeStruct((b, *x.shape[1:]), x.dtype) for x in shapes]
    exported = jax.export.export(run)(*symbolic).call
    np.testing.assert_array_equal(exported(*operands(SPEC, 3)), run(*operands(SPEC, 3)))


def test_threads_call_at_once():
    spec = SPEC._replace(inputs=8, outputs=16)
    x, cotangent = operands(spec, 64)
    run, results = jax.jit(partial(kernel_grad, spec=spec)), []
    threads = [threading.Thread(target=lambda: results.append(np.asarray(run(x, cotangent)))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 8
    for result in results:
        np.testing.assert_array_equal(result, by_jax(x, cotangent, spec))


@pytest.fixture
def quick(tmp_path):
    """A compiler that copies the compiled library, and counts its calls."""
    script = tmp_path / "compiler.py"
    known = library.find_or_compile(library.cache_directory(), library.compiler())
    script.write_text(
        "import sys, shutil\n"
        "if '--version' in sys.argv: sys.exit()\n"
        f"if '-c' not in sys.argv: open({str(tmp_path / 'count')!r}, 'a').write('x')\n"
        f"shutil.copyfile({str(known)!r}, sys.argv[sys.argv.index('-o') + 1])\n"
    )
    return [sys.executable, str(script)]


def compilations(tmp_path):
    return len((tmp_path / "count").read_text())


def test_the_library_is_compiled_once(quick, tmp_path):
    found = [library.find_or_compile(tmp_path / "cache", quick) for _ in range(3)]
    assert found[0] == found[1] == found[2]
    assert compilations(tmp_path) == 1
    library.find_or_compile(tmp_path / "cache", [*quick, "-DOTHER"])
    assert compilations(tmp_path) == 2


def test_a_damaged_library_is_compiled_again(quick, tmp_path):
    good = library.find_or_compile(tmp_path / "cache", quick)
    content = good.read_bytes()
    for damaged in (content[: len(content) // 2], b"", content[:-1] + bytes([content[-1] ^ 1])):
        good.write_bytes(damaged)
        assert library.find_or_compile(tmp_path / "cache", quick).read_bytes() == content
    assert compilations(tmp_path) == 4
    assert list((tmp_path / "cache").iterdir()) == [good]  # no partial file is left


def test_what_others_can_write_is_not_loaded(quick, tmp_path):
    good = library.find_or_compile(tmp_path / "cache", quick)
    good.chmod(0o777)
    library.find_or_compile(tmp_path / "cache", quick)
    assert compilations(tmp_path) == 2
    assert not good.stat().st_mode & 0o022
    (tmp_path / "cache").chmod(0o777)
    with pytest.raises(PermissionError, match="other users can write .*cache"):
        library.find_or_compile(tmp_path / "cache", quick)


def test_processes_compile_at_once(quick, tmp_path):
    code = (
        "from pathlib import Path\n"
        "from qpsnn_jax.kernels.native import library\n"
        f"print(library.find_or_compile(Path({str(tmp_path / 'cache')!r}), {quick!r}))"
    )
    started = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    printed = {process.communicate(timeout=120)[0].strip() for process in started}
    assert [process.returncode for process in started] == [0, 0]
    assert printed == {str(library.find_or_compile(tmp_path / "cache", quick))}


def unreachable(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))


def failing(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CXX", f"{sys.executable} {tmp_path / 'missing.py'}")


def unreadable(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "compiler.py").write_text("import sys; sys.stderr.buffer.write(b'error: \\xe9\\xff'); sys.exit(1)")
    monkeypatch.setenv("CXX", f"{sys.executable} {tmp_path / 'compiler.py'}")


def unbalanced(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CXX", 'g++ "x')


def homeless(tmp_path, monkeypatch):
    def raises(path):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "expanduser", raises)


def without_compiler(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))


@pytest.mark.parametrize(
    ("corrupt", "reason"),
    [
        (unreachable, "Not a directory"),
        (failing, "python.* failed"),
        (unreadable, "python.* failed: error: "),
        (unbalanced, "CXX is not a command: No closing quotation"),
        (homeless, "Could not determine home directory"),
        (without_compiler, "no C\\+\\+ compiler is installed; install g\\+\\+ or clang\\+\\+, or set CXX"),
    ],
)
def test_without_the_library_jax_computes_and_one_sentence_says_so(corrupt, reason, tmp_path, monkeypatch, caplog):
    corrupt(tmp_path, monkeypatch)
    monkeypatch.setattr(library, "load", library.load.__wrapped__)
    with caplog.at_level(logging.WARNING):
        assert library.load() is None
    (record,) = caplog.records
    assert re.search(f"XLA computes everything, more slowly: .*{reason}", record.message)
    monkeypatch.setattr(library, "load", lambda: None)
    x, cotangent = operands(SPEC, 6)
    assert "custom_call" not in jax.jit(partial(kernel_grad, spec=SPEC)).lower(x, cotangent).as_text()


def test_it_can_be_switched_off(monkeypatch, caplog):
    monkeypatch.setenv("QPSNN_NATIVE", "0")
    assert library.load.__wrapped__() is None
    assert not caplog.records


def test_every_handler_turns_exceptions_into_errors():
    """Each is defined by the one macro that does so."""
    folder = Path(library.__file__).parent
    sources, headers = ([path for path in folder.glob(f"*.{end}") if path.stem != "handlers"] for end in ("cc", "h"))
    assert sources
    assert all("QPSNN_HANDLER(" in path.read_text() for path in sources)
    assert not any("XLA_FFI_DEFINE" in path.read_text() for path in (*sources, *headers))


def test_a_kernel_without_memory_raises_and_the_process_goes_on(tmp_path):
    """One of its threads fails, as where its scratch memory cannot be allocated."""
    sources = Path(library.__file__).parent
    (tmp_path / "fails.cc").write_text(
        '#include "handlers.h"\n'
        "static void Fails(const qpsnn::Call& call) {\n"
        "  const auto fail = [](int64_t item, int) { if (item == 50) throw std::bad_alloc(); };\n"
        "  qpsnn::parallel_for(call.pool(), 100, fail);\n"
        "}\n"
        "QPSNN_HANDLER(fails, Fails);\n"
    )
    built = tmp_path / "fails.so"
    flags = ["-std=c++17", "-O0", "-fPIC", "-shared", "-w", f"-I{sources}", f"-I{jax.ffi.include_dir()}"]
    subprocess.run([*library.compiler(), *flags, str(tmp_path / "fails.cc"), "-o", str(built)], check=True)
    target = jax.ffi.pycapsule(ctypes.CDLL(str(built)).fails)
    jax.ffi.register_ffi_target("qpsnn_jax_test_fails", target, platform="cpu")
    for _ in range(2):
        with pytest.raises(jax.errors.JaxRuntimeError, match="out of memory in a native kernel of qpsnn_jax"):
            jax.ffi.ffi_call("qpsnn_jax_test_fails", jax.ShapeDtypeStruct((3,), np.float32))().block_until_ready()
    x, cotangent, _ = sparse(SPEC)
    assert np.isfinite(kernel_grad(x, cotangent, SPEC)).all()
