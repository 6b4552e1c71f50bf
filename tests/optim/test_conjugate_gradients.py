"""Conjugate gradients against a dense solution, and where they stop and what they keep."""

import pytest
import torch
from torch.testing import assert_close

from lit_tbptt.optim.conjugate_gradients import conjugate_gradients


def problem(size, condition):
    """A symmetric matrix with eigenvalues from 1 to `condition`, and a gradient."""
    generator = torch.Generator().manual_seed(7)
    basis = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))[0]
    gradient = torch.randn(size, generator=generator, dtype=torch.float64)
    return basis @ torch.diag(torch.logspace(0, condition, size, dtype=torch.float64)) @ basis.T, gradient


def value(matrix, gradient, x):
    return float(x @ matrix @ x / 2 + gradient @ x)


def krylov_minima(matrix, gradient, start, count):
    """The least values over start + span(r, A r, ...), which conjugate gradients pass, by dense least squares."""
    residual, space, minima = matrix @ start + gradient, [], [value(matrix, gradient, start)]
    for _ in range(count):
        vector = matrix @ space[-1] if space else residual
        for each in space * 2:
            vector = vector - (vector @ each) * each
        space.append(vector / vector.norm())
        basis = torch.stack(space, 1)
        x = start - basis @ torch.linalg.solve(basis.T @ matrix @ basis, basis.T @ residual)
        minima.append(value(matrix, gradient, x))
    return minima


@pytest.mark.parametrize("near", [False, True])
def test_as_many_iterations_as_unknowns_solve_the_system(near):
    matrix, gradient = problem(9, 1)
    solution = -torch.linalg.solve(matrix, gradient)
    start = 0.9 * solution if near else torch.zeros(9, dtype=torch.float64)
    calls = []

    def product(vector):
        calls.append(vector)
        return matrix @ vector

    found = conjugate_gradients(product, gradient, start, 9)
    assert_close(found[-1].solution, solution, rtol=0, atol=1e-12)
    assert found[-1].value == pytest.approx(value(matrix, gradient, solution), abs=1e-12)
    assert len(calls) == 9 + near


@pytest.mark.parametrize(("condition", "least"), [(2, 11), (5, 110)])  # of 110 and more iterations a tenth counts
def test_it_stops_when_the_last_iterations_gave_little(condition, least):
    matrix, gradient = problem(150, condition)
    start, values, calls = torch.zeros(150, dtype=torch.float64), [0.0], []
    for count in range(1, 400):
        calls.clear()
        values.append(conjugate_gradients(lambda x: calls.append(x) or matrix @ x, gradient, start, count)[-1].value)
        if len(calls) < count:
            break
    iterations = len(calls)
    assert iterations > least
    too_little = [
        (values[i] - values[i - since]) / values[i] < since * 5e-4
        for i in range(1, iterations + 1)
        if i > (since := max(10, i // 10))
    ]
    assert too_little == [False] * (iterations - 11) + [True]


def test_iterates_are_kept_at_growing_distances():
    matrix, gradient = problem(150, 2)
    start = torch.zeros(150, dtype=torch.float64)
    minima = krylov_minima(matrix, gradient, start, 23)
    found = conjugate_gradients(lambda x: matrix @ x, gradient, start, 23)
    places = [1, 2, 3, 4, 6, 7, 10, 12, 16, 20, 23]
    assert [each.value for each in found] == pytest.approx([minima[place] for place in places], rel=1e-9)
    for each in found:
        assert value(matrix, gradient, each.solution) == pytest.approx(each.value, rel=1e-12)


def test_a_start_that_is_no_better_than_the_origin_is_not_used():
    matrix, gradient = problem(9, 1)
    from_origin = conjugate_gradients(lambda x: matrix @ x, gradient, torch.zeros(9, dtype=torch.float64), 4)
    from_above = conjugate_gradients(lambda x: matrix @ x, gradient, gradient.clone(), 4)
    assert torch.equal(from_above[-1].solution, from_origin[-1].solution)


def test_it_ends_where_the_matrix_is_not_positive():
    matrix, gradient = torch.diag(torch.tensor([1.0, -1.0]).double()), torch.tensor([1.0, 2.0]).double()
    (only,) = conjugate_gradients(lambda x: matrix @ x, gradient, torch.zeros(2).double(), 5)
    assert only.solution.tolist() == [0, 0]
    assert only.value == 0


def test_without_a_gradient_nothing_is_left_to_do():
    (only,) = conjugate_gradients(lambda x: pytest.fail("no product is needed"), torch.zeros(3), torch.zeros(3), 5)
    assert only.solution.tolist() == [0, 0, 0]
