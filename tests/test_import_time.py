"""Importing convsim, once its bytecode is written, costs little beside torch."""

import os
import subprocess
import sys
from statistics import median

CODE = """
from time import process_time
start = process_time()
import torch
between = process_time()
import convsim
print((process_time() - start) / (between - start))
"""


def test_import_takes_little_more_than_torch():
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    ratios = [
        float(subprocess.check_output([sys.executable, "-c", CODE], text=True, env=environment))
        for _ in range(3)
    ]
    assert median(ratios) < 1.2, ratios
