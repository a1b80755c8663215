"""What several sweeps go through: every option of the form, and kernels of every geometry."""

from itertools import product

from convsim.similarity import Options

OPTIONS = [
    Options(*values)
    for values in product(
        ("all", "adjacent"), ("crossed", "matched"), ("unit", "raw"), ("mean", "sum")
    )
]
GEOMETRIES = [  # weight shape, stride, dilation, groups
    ((4, 3, 5), 1, 1, 1),
    ((4, 2, 4), 3, 1, 2),
    ((3, 2, 3, 3), 1, 1, 1),
    ((4, 2, 3, 2), (2, 1), 1, 2),
    ((3, 1, 1, 5), (1, 2), (1, 3), 1),
    ((3, 2, 4, 3), 2, 2, 1),
    ((3, 2, 3, 3), 3, 2, 1),
    ((4, 1, 3, 3), 1, 1, 4),
    ((4, 3, 1, 1), 1, 1, 2),
    ((3, 2, 2, 3, 2), (1, 2, 1), 1, 1),
]
