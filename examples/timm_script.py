"""Run timm's own training script with the penalty, without a change to it.

    python examples/timm_script.py path/to/train.py --data-dir … --model resnet18 --amp …

The script makes its optimizer by timm.optim.create_optimizer_v2 when the model is on its device and
before it is compiled or wrapped for several GPUs; the regularizer is attached there. From then on
the script's accumulation, clipping and loss scaling come first and the penalty's gradient last.
"""

import runpy
import sys
from functools import wraps
from typing import Any

import timm.optim
from torch import nn

import convsim

create_optimizer = timm.optim.create_optimizer_v2


@wraps(create_optimizer)
def with_penalty(model: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """Make the optimizer and attach a regularizer of the model to it."""
    optimizer = create_optimizer(model, *args, **kwargs)
    print(convsim.Regularizer(model).attach(optimizer))
    return optimizer


if __name__ == "__main__":
    timm.optim.create_optimizer_v2 = with_penalty
    del sys.argv[0]
    runpy.run_path(sys.argv[0], run_name="__main__")
