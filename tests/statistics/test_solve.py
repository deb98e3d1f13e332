"""Conjugate gradients solve in as many steps as there are unknowns, and stop where they have."""

import torch

from instamap.statistics.solve import conjugate_gradients


def system(n: int = 5) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(n, n, generator=generator, dtype=torch.float64)
    solution = torch.randn(n, generator=generator, dtype=torch.float64)
    matrix = root @ root.T + torch.eye(n)
    return matrix, solution, matrix @ solution


def test_five_steps_solve_five_equations():
    matrix, solution, right = system()
    start = torch.zeros(5, dtype=torch.float64)
    torch.testing.assert_close(conjugate_gradients(lambda x: matrix @ x, start, right, 5), solution)


def test_each_step_comes_nearer_from_wherever_it_starts():
    matrix, solution, right = system()
    start = torch.ones(5, dtype=torch.float64)
    errors = []
    for steps in range(6):
        x = conjugate_gradients(lambda x: matrix @ x, start, right - matrix @ start, steps)
        errors.append(float((x - solution) @ matrix @ (x - solution)))
    assert errors == sorted(errors, reverse=True) and errors[-1] < 1e-20 * errors[0]


def test_a_solution_stays():
    matrix, solution, _ = system()
    x = conjugate_gradients(lambda x: matrix @ x, solution, torch.zeros_like(solution), 3)
    assert torch.equal(x, solution)
