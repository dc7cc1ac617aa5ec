"""PyTorch's decompositions of the matrix that the svd suite wrote to a file; run by it with a job in JSON, answers in JSON lines.

svd           torch.linalg.svd of the float32 matrix, thin
gram-eigh     eigh of the float64 Gram matrix of the shorter side, the other side's vectors by one product
svd_lowrank   the largest `rank` triplets, randomised, with two power iterations
svdvals       torch.linalg.svdvals of the float32 matrix
"""
import json
import statistics
import sys
import time

import torch

job = json.loads(sys.argv[1])
torch.set_num_threads(job["threads"])
torch.manual_seed(0)
rows, cols = job["size"]
matrix = torch.from_file(job["file"], shared=False, size=rows * cols, dtype=torch.float32).reshape(rows, cols).clone()


def svd():
    u, s, vt = torch.linalg.svd(matrix, full_matrices=False)
    return u, s, vt.T


def gram_eigh():
    b = (matrix if rows <= cols else matrix.T).double()
    squares, u = torch.linalg.eigh(b @ b.T)
    s = squares.clamp_min(0).sqrt()
    v = (b.T @ u) / s
    return (u, s, v) if rows <= cols else (v, s, u)


def svd_lowrank():
    return torch.svd_lowrank(matrix, q=job["rank"], niter=2)


def svdvals():
    torch.linalg.svdvals(matrix)


def measure(run):
    """Median seconds and what it returned: of one call that takes more than two seconds, else of several after a warm-up."""
    begin = time.perf_counter()
    result = run()
    first = time.perf_counter() - begin
    if first > 2:
        return first, result
    times = []
    begin = time.perf_counter()
    while len(times) < 3 or time.perf_counter() - begin < job["seconds"]:
        del result
        start = time.perf_counter()
        result = run()
        times.append(time.perf_counter() - start)
    return statistics.median(times), result


def residual(u, s, v):
    """Largest ‖A v − s u‖ and ‖Aᵀu − s v‖ over s₁, in float64."""
    a, u, s, v = (x.double() for x in (matrix, u, s, v))
    return (max((a @ v - u * s).norm(dim=0).max(), (a.T @ u - v * s).norm(dim=0).max()) / s.max()).item()


methods = {"svd": svd, "gram-eigh": gram_eigh, "svd_lowrank": svd_lowrank, "svdvals": svdvals}
for name in job["methods"]:
    seconds, result = measure(methods[name])
    answer = {"method": name, "seconds": seconds}
    if result is not None:
        answer["residual"] = residual(*result)
    print(json.dumps(answer), flush=True)
    del result
