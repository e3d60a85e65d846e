"""Run as a script: trains in one process or in two, and writes what each rank ended with. See test_lightning.py."""

import os
import sys
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, Trainer, seed_everything

from hypergradient.lightning import AdaptLearningRate
from tests.hypergradient.lightning_cases import QUIET, Plain, mlp, samples, sgd


class Rates(Callback):
    """Keeps the rate of each step."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        self.seen.append(float(trainer.optimizers[0].param_groups[0]["used_lr"]))


def main(folder: Path, processes: int) -> None:
    torch.set_num_threads(1)
    seed_everything(3)
    several: dict[str, Any] = {"strategy": "ddp", "devices": processes} if processes > 1 else {"devices": 1}
    rates = Rates()
    several |= {"callbacks": [AdaptLearningRate(Plain.loss), rates], "enable_checkpointing": False}
    # of the batches of the ranks, each is a part of the joined one
    several |= {"use_distributed_sampler": False, "default_root_dir": folder}
    trainer = Trainer(accelerator="cpu", max_epochs=4, **several, **QUIET)
    share = (int(os.environ.get("LOCAL_RANK", "0")), processes)
    module = Plain(mlp(), sgd)
    trainer.fit(module, samples("classes", share), samples("classes", share))
    torch.save({"weights": module.state_dict(), "rates": rates.seen}, folder / f"rank{trainer.global_rank}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
