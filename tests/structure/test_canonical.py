"""The convolution pass: the same numbers, one form everywhere, no derivative after it."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.extend.core import jaxprs_in_params

from secateur.core.errors import SecateurError
from secateur.structure.canonical import canonical
from secateur.structure.convolutions import apart

NHWC, NCHW = ("NHWC", "HWIO", "NHWC"), ("NCHW", "OIHW", "NCHW")


def conv(x, w, numbers=NHWC, stride=1, **options):
    return lax.conv_general_dilated(
        x, w, (stride, stride), "SAME", dimension_numbers=numbers, **options
    )


def drawn(*shape, seed=0, dtype=np.float64):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape).astype(dtype))


def equations(jaxpr):
    for eqn in jaxpr.eqns:
        yield eqn
        for inner in jaxprs_in_params(eqn.params):
            yield from equations(inner)


def wrong(function, *args):
    """Convolutions out of the one form, and poolings by the primitive, at any depth."""
    found = []
    for eqn in equations(jax.make_jaxpr(function)(*args).jaxpr):
        if eqn.primitive.name == "conv_general_dilated":
            n = eqn.params["dimension_numbers"]
            k = eqn.invars[0].aval.ndim - 1
            space = tuple(range(1, k))
            form = ((0, k, *space), (k, k - 1, *range(k - 1)), (0, k, *space))
            if (n.lhs_spec, n.rhs_spec, n.out_spec) != form:
                found.append(n)
        if eqn.primitive.name == "select_and_scatter_add":
            found.append(eqn.primitive.name)
    return found


def same(function, *args, tolerance=1e-13):
    """The pass leaves nothing wrong and no number changed; the program had something wrong."""
    assert wrong(function, *args)
    assert not wrong(canonical(function), *args)
    expected, got = jax.jit(function)(*args), jax.jit(canonical(function))(*args)
    assert jax.tree.structure(expected) == jax.tree.structure(got)
    for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(got), strict=True):
        assert a.dtype == b.dtype
        assert a.shape == b.shape
        scale = np.max(np.abs(np.asarray(a, float)), initial=1e-300)
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * scale)


# ---- numbers -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"stride": 2},
        {"rhs_dilation": (2, 1)},
        {"feature_group_count": 2},
        {"numbers": NCHW},
        {"numbers": ("CHWN", "IHWO", "NHWC"), "stride": 2},
    ],
    ids=str,
)
def test_gradients_of_convolutions_are_the_same_numbers(options, x64):
    numbers = options.get("numbers", NHWC)
    groups = options.get("feature_group_count", 1)
    sizes = {"N": 3, "H": 5, "W": 6, "C": 4}
    kernel = {"H": 3, "W": 2, "I": 4 // groups, "O": 6}
    x = drawn(*(sizes[a] for a in numbers[0]))
    w = drawn(*(kernel[a] for a in numbers[1]), seed=1)

    def step(x, w):
        return jax.grad(lambda x, w: jnp.sum(jnp.sin(conv(x, w, **options))), (0, 1))(x, w)

    same(step, x, w)


def test_float32_agrees_to_rounding():
    x, w = drawn(2, 6, 6, 8, dtype=np.float32), drawn(3, 3, 8, 8, seed=1, dtype=np.float32)
    step = jax.grad(lambda w, x: jnp.sum(jnp.tanh(conv(x, w))))
    same(step, w, x, tolerance=3e-6)


def test_a_large_transposition_is_kept_from_fusing_and_changes_nothing(x64):
    x, w = drawn(15, 20, 20, 20), drawn(3, 3, 20, 2, seed=1)  # an odd number is not parted
    step = jax.grad(lambda w, x: jnp.sum(jnp.sin(conv(jnp.tanh(x), w))))
    same(step, w, x)
    assert 'inlineable = "false"' in jax.jit(canonical(step)).lower(w, x).as_text()
    small = jax.jit(canonical(step)).lower(w, x[:4]).as_text()
    assert "inlineable" not in small


@pytest.mark.parametrize("n", [16, 24, 60, 100])
@pytest.mark.parametrize("stride", [1, 2])
def test_the_gradient_of_a_kernel_goes_by_parts_of_the_examples(n, stride, x64):
    """The largest even number of at most ten that divides them; the sum is the same."""
    x, w = drawn(n, 20, 20, 20), drawn(3, 3, 20, 2, seed=1)
    step = jax.grad(lambda w, x: jnp.sum(jnp.sin(conv(x, w, stride=stride))))
    same(step, w, x)
    loops = [
        eqn
        for eqn in equations(jax.make_jaxpr(canonical(step))(w, x).jaxpr)
        if eqn.primitive.name == "scan"
    ]
    part = {16: 8, 24: 8, 60: 10, 100: 10}[n]
    assert [eqn.params["length"] for eqn in loops] == [n // part]


def lengths_and_convolutions(step, *args):
    """How long the loops of a rewritten program are, and how many convolutions it has."""
    eqns = list(equations(jax.make_jaxpr(canonical(step))(*args).jaxpr))
    loops = [e.params["length"] for e in eqns if e.primitive.name == "scan"]
    return loops, sum(e.primitive.name == "conv_general_dilated" for e in eqns)


@pytest.mark.parametrize(
    ("n", "size", "channels", "length"),
    [
        (12, 32, 24, 3),  # 1.8 MB of patches an image: six of them would leave the cache
        (4, 64, 40, 2),  # 11.8 MB: two are the fewest
        (12, 12, 6, 0),  # .7 MB for all: at once
        (15, 32, 8, 0),  # no even number divides 15
    ],
)
def test_the_patches_of_a_part_stay_in_the_cache(n, size, channels, length, x64):
    x, w = drawn(n, size, size, channels), drawn(3, 3, channels, 2, seed=1)
    step = jax.grad(lambda w, x: jnp.sum(jnp.sin(conv(x, w))))
    loops, _ = lengths_and_convolutions(step, w, x)
    assert loops == ([length] if length else [])
    if n == 12:
        same(step, w, x)


def unpadded(numbers, strides):
    def step(x, w):
        call = lambda x: lax.conv_general_dilated(x, w, strides, "VALID", dimension_numbers=numbers)
        return jax.grad(lambda x: jnp.sum(jnp.sin(call(x))))(x)

    return step


@pytest.mark.parametrize(
    ("numbers", "image", "kernel"),
    [
        (NHWC, (40, 10, 9, 6), (5, 4, 6, 16)),
        pytest.param(NCHW, (40, 6, 10, 9), (16, 6, 5, 4), marks=pytest.mark.long),
        (("NHC", "HIO", "NHC"), (90, 40, 4), (17, 4, 20)),
    ],
    ids=["NHWC", "NCHW", "one axis"],
)
def test_the_gradient_for_the_input_of_a_large_kernel_is_one_product(numbers, image, kernel, x64):
    """No convolution is left but the one forward, and the numbers are those of JAX."""
    x, w = drawn(*image), drawn(*kernel, seed=1)
    step = unpadded(numbers, (1,) * (x.ndim - 2))
    same(step, x, w)
    assert lengths_and_convolutions(step, x, w)[1] == 1


@pytest.mark.parametrize(
    ("strides", "image", "kernel"),
    [
        ((2, 1), (40, 13, 9, 6), (5, 4, 6, 16)),  # with a stride it is not a full convolution
        ((1, 1), (40, 10, 9, 6), (5, 4, 6, 8)),  # too few channels to pay for the sums
        ((1, 1), (12, 20, 20, 6), (3, 3, 6, 16)),  # the map grows by a quarter
        ((1, 1), (4, 10, 9, 6), (5, 4, 6, 16)),  # too small to matter
    ],
)
def test_other_gradients_for_an_input_stay_convolutions(strides, image, kernel):
    x, w = drawn(*image, dtype=np.float32), drawn(*kernel, seed=1, dtype=np.float32)
    assert lengths_and_convolutions(unpadded(NHWC, strides), x, w)[1] == 2


# ---- programs inside programs --------------------------------------------------------------------


def loss(w, x):
    return jnp.sum(jnp.sin(conv(x, w)))


grad = jax.grad(loss)


def through_scan(w, x):
    def body(carry, scale):
        w, total = carry
        g = grad(w, x * scale)
        return (w - 0.01 * g, total + 1), jnp.sum(g)

    return lax.scan(body, (w, 0), jnp.arange(3.0), reverse=True)


def through_fori(w, x):
    return lax.fori_loop(0, 3, lambda i, w: w - 0.01 * grad(w, x), w)


def through_while(w, x):
    return lax.while_loop(
        lambda c: jnp.sum(grad(c[0], x)) + c[1] < 1e9 + 3,
        lambda c: (c[0] - 0.01 * grad(c[0], x), c[1] + 5e8),
        (w, 0.0),
    )


def through_cond(w, x):
    return lax.cond(jnp.sum(x) > 0, grad, lambda w, x: 2 * w, w, x)


def through_switch(w, x):
    return lax.switch(2, [lambda w: w, lambda w: -w, lambda w: grad(w, x)], w)


def through_jit_and_remat(w, x):
    @jax.checkpoint
    def block(w, x):
        return jnp.tanh(conv(x, w))

    return jax.grad(lambda w: jnp.sum(jax.jit(block)(w, block(w, x))))(w)


def through_custom_jvp(w, x):
    """relu is one; its derivative at 0 is 0, which max(x, 0) does not have."""
    clipped = x.at[0].set(0.0)
    return jax.grad(lambda w: jnp.sum(conv(jax.nn.relu(conv(clipped, w)), w)))(w)


def through_custom_vjp(w, x):
    """A convolution with a backward pass of its own, which is not its derivative."""

    @jax.custom_vjp
    def odd(w):
        return grad(w, x)

    odd.defvjp(lambda w: (odd(w), w), lambda w, t: (3 * t * grad(w, x),))
    return odd(w), jax.grad(lambda w: jnp.sum(odd(w)))(w)


def through_loop_in_loop(w, x):
    def outer(w, _):
        inner = lambda i, w: lax.cond(i > 0, lambda w: w - 0.01 * grad(w, x), lambda w: w, w)
        return lax.fori_loop(0, 2, inner, w), jnp.max(w)

    return lax.scan(outer, w, None, length=2)


def forward_over_reverse(w, x):
    return jax.jvp(lambda w: grad(w, x), (w,), (jnp.cos(w),))[1]


NESTS = [
    through_scan,
    through_fori,
    through_while,
    through_cond,
    through_switch,
    through_jit_and_remat,
    through_custom_jvp,
    through_custom_vjp,
    through_loop_in_loop,
    forward_over_reverse,
]


@pytest.mark.parametrize("nest", NESTS, ids=lambda f: f.__name__)
def test_nested_programs_are_entered(nest, x64):
    same(nest, drawn(3, 3, 2, 2), drawn(2, 4, 4, 2, seed=1))


@pytest.mark.parametrize(
    "nest",
    [
        through_while,
        pytest.param(through_scan, marks=pytest.mark.long),
        pytest.param(through_cond, marks=pytest.mark.long),
    ],
)
def test_vmap_before_it_and_after_it(nest, x64):
    w, x = drawn(2, 3, 3, 2, 2), drawn(2, 4, 4, 2, seed=1)
    lanes = jax.vmap(nest, in_axes=(0, None))
    same(lanes, w, x)
    after = jax.jit(jax.vmap(canonical(nest), in_axes=(0, None)))(w, x)
    for a, b in zip(jax.tree.leaves(lanes(w, x)), jax.tree.leaves(after), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)


def test_what_holds_nothing_to_rewrite_keeps_its_rules_and_calls(x64):
    """The relu of a dense part stays a call by its name, beside a rewritten convolution."""

    def step(w, x):
        return grad(w, x), jax.nn.relu(jnp.sum(x))

    program = jax.make_jaxpr(canonical(step))(drawn(3, 3, 2, 2), drawn(2, 4, 4, 2))
    assert any(eqn.params.get("name") == "relu" for eqn in equations(program.jaxpr))


# ---- laws ----------------------------------------------------------------------------------------


def test_twice_is_once(x64):
    w, x = drawn(3, 3, 20, 2), drawn(15, 20, 20, 20, seed=1)
    once, twice = canonical(through_scan), canonical(canonical(through_scan))
    count = lambda f: len(list(equations(jax.make_jaxpr(f)(w, x).jaxpr)))
    # One more custom_jvp_call: the guard of the outer one.
    assert count(twice) == count(once) + 1
    texts = [jax.jit(f).lower(w, x).as_text() for f in (once, twice)]
    assert texts[0].count("inlineable") == texts[1].count("inlineable") > 0


@pytest.mark.parametrize(
    "again",
    [jax.grad, jax.jacfwd, lambda f: lambda w: jax.linearize(f, w)],
    ids=["grad", "jacfwd", "linearize"],
)
def test_differentiating_it_is_refused(again):
    """Also where nothing had to be rewritten: its new convolutions would be slow again."""
    w, x = drawn(3, 3, 2, 2, dtype=np.float32), drawn(2, 4, 4, 2, seed=1, dtype=np.float32)
    for step in (lambda w: jnp.sum(grad(w, x)), lambda w: loss(w, x)):
        derivative = again(canonical(step))
        with pytest.raises(SecateurError, match="differentiate first"):
            derivative(w)


def test_dense_programs_are_left_alone():
    """The same traced program, and it may be differentiated."""
    step = lambda w, x: jnp.sum(jax.nn.relu(x @ w))
    w, x = drawn(3, 2, dtype=np.float32), drawn(4, 3, seed=1, dtype=np.float32)
    assert str(jax.make_jaxpr(canonical(step))(w, x)) == str(jax.make_jaxpr(step)(w, x))
    np.testing.assert_array_equal(jax.grad(canonical(step))(w, x), jax.grad(step)(w, x))


def test_no_other_backend_is_touched(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    w, x = drawn(3, 3, 2, 2, dtype=np.float32), drawn(2, 4, 4, 2, seed=1, dtype=np.float32)
    assert str(jax.make_jaxpr(canonical(grad))(w, x)) == str(jax.make_jaxpr(grad)(w, x))


def test_literals_none_keys_and_integers_pass_through():
    def step(state, key=None):
        g = grad(state["w"], state["x"])
        return {"g": g, "none": None, "one": 1.0, "count": 3, "key": key, "n": state["n"] + 1}

    state = {
        "w": drawn(3, 3, 2, 2, dtype=np.float32),
        "x": drawn(2, 4, 4, 2, dtype=np.float32),
        "n": 2,
    }
    for run in (canonical(step), jax.jit(canonical(step))):
        out = run(state, key=jax.random.key(1))
        assert out["none"] is None
        assert (float(out["one"]), int(out["count"]), int(out["n"])) == (1.0, 3, 3)
        assert out["key"] == jax.random.key(1)


def test_a_leaf_that_is_no_array_is_refused():
    with pytest.raises(SecateurError, match="partition"):
        canonical(lambda f, x: f(x))(jnp.sin, jnp.ones(3))


# ---- pooling -------------------------------------------------------------------------------------


def pooled(x, window=(1, 2, 2, 1), stride=None, padding="VALID"):
    return lax.reduce_window(x, -jnp.inf, lax.max, window, stride or window, padding)


def unpool(x, **options):
    out, pull = jax.vjp(lambda x: pooled(x, **options), x)
    return pull(1.0 + jnp.arange(out.size, dtype=x.dtype).reshape(out.shape))[0]


@pytest.mark.parametrize("window", [(1, 2, 2, 1), (1, 3, 2, 1), (1, 1, 2, 3)])
def test_poolings_gradient_with_odd_sizes(window, x64):
    same(lambda x: unpool(x, window=window), drawn(2, 7, 5, 3))


def test_pooling_decides_ties_nan_and_infinity_as_the_primitive():
    rng = np.random.default_rng(0)
    x = rng.choice([0.0, 1.0, -0.0, np.nan, -np.inf, np.inf], size=(4, 8, 8, 3))
    step = lambda x: unpool(x, window=(1, 2, 2, 1))
    x = jnp.asarray(x, jnp.float32)
    assert wrong(step, x)
    assert not wrong(canonical(step), x)
    np.testing.assert_array_equal(jax.jit(step)(x), jax.jit(canonical(step))(x))


def test_pooling_under_vmap_and_in_a_loop(x64):
    step = lambda x: lax.scan(lambda c, _: (c + 0.1 * unpool(c), None), x, None, length=2)[0]
    same(jax.vmap(step), drawn(3, 2, 4, 4, 2))


@pytest.mark.parametrize("window", [3, 2], ids=["overlapping", "padded alone"])
def test_overlapping_or_padded_windows_stay_with_the_primitive(window, x64):
    window = (1, window, window, 1)
    step = lambda x: unpool(x, window=window, stride=(1, 2, 2, 1), padding="SAME")
    x = drawn(2, 5, 5, 2)
    assert wrong(canonical(step), x) == ["select_and_scatter_add"]
    np.testing.assert_array_equal(jax.jit(step)(x), jax.jit(canonical(step))(x))


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="only the CPU's loops are kept apart")
def test_what_is_apart_is_no_part_of_the_loop_that_reads_it():
    x, y = drawn(50, 30), drawn(30)
    product = lambda x, y: apart({"a": x * y})["a"]
    step = lambda x, y: jnp.concatenate([product(x, y).ravel(), y]) > 0
    np.testing.assert_array_equal(jax.jit(product)(x, y), x * y)
    np.testing.assert_array_equal(jax.jit(jax.vmap(product, (0, None)))(x, y), x * y)
    program = jax.jit(step).lower(x, y).compile().as_text()
    assert " call(" in program
