"""Run as a script: trains in one process or in two, and writes what each rank ended with. See test_lightning.py.

meta_lr: of the plain rule; below 0: no callback; infinite: the whole rule.
"""

import math
import os
import sys
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Trainer, seed_everything
from torch.utils.data import DataLoader, Subset

from hypergradient.lightning import AdaptLearningRate, AdaptOneStep
from tests.hypergradient.lightning_cases import Plain, mlp, samples, sgd


def main(folder: Path, processes: int, meta_lr: float) -> None:
    torch.set_num_threads(1)
    seed_everything(3)
    several: dict[str, Any] = {"strategy": "ddp", "devices": processes} if processes > 1 else {"devices": 1}
    quiet: dict[str, Any] = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    whole = meta_lr == math.inf
    adapt = AdaptLearningRate(Plain.loss) if whole else AdaptOneStep(Plain.loss, meta_lr=meta_lr)
    callbacks = [] if meta_lr < 0 else [adapt]
    off: dict[str, Any] = {"enable_checkpointing": False, "num_sanity_val_steps": 0, "callbacks": callbacks}
    off["use_distributed_sampler"] = False  # which would shuffle; here the batches of the ranks make up the joined one
    trainer = Trainer(accelerator="cpu", max_epochs=4, default_root_dir=folder, **off, **several, **quiet)
    data: Any = samples("classes").dataset
    own = Subset(data, range(int(os.environ.get("LOCAL_RANK", "0")), len(data), processes))
    train, val = (DataLoader(own, batch_size=8 // processes) for _ in range(2))
    module = Plain(mlp(), sgd)
    trainer.fit(module, train, val)
    kept: dict[str, Any] = {"weights": module.state_dict()}
    if isinstance(adapt, AdaptLearningRate):
        kept["rate"] = adapt.adapter.last["lr"]
    elif callbacks:
        kept["log_scale"] = adapt.adapter.log_scale
    torch.save(kept, folder / f"rank{trainer.global_rank}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]))
