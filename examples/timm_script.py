"""Run timm's own training script with the penalty, without a change to it.

    python examples/timm_script.py path/to/train.py --data-dir … --model resnet18 --amp …

The script makes its optimizer by timm.optim.create_optimizer_v2 when the model is on its device and
before it is compiled or wrapped for several GPUs: the regularizer is made there. It is attached to
the criterion when that is first called to train. From then on the penalty is part of the loss, and
the script's accumulation, loss scaling and clipping are done to it too.
"""

import runpy
import sys
from functools import wraps
from typing import Any

import timm.optim
import torch
from torch import nn

import convsim

create_optimizer = timm.optim.create_optimizer_v2


@wraps(create_optimizer)
def with_penalty(model: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """Make the optimizer, and a regularizer of the model that waits for its criterion."""
    regularizer = convsim.Regularizer(model)
    print(regularizer)

    def attach(module: nn.Module, _: Any) -> None:
        of_timm = type(module).__module__.startswith("timm.loss")
        if torch.is_grad_enabled() and (of_timm or isinstance(module, nn.modules.loss._Loss)):
            regularizer.attach(module)
            handle.remove()

    handle = nn.modules.module.register_module_forward_pre_hook(attach)
    return create_optimizer(model, *args, **kwargs)


if __name__ == "__main__":
    timm.optim.create_optimizer_v2 = with_penalty
    del sys.argv[0]
    runpy.run_path(sys.argv[0], run_name="__main__")
