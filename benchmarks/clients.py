"""Networks of other packages and their data, small enough for one core."""

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from data.scikit import DigitsDataModule, FriedmanDataModule
from data.text import TextDataModule

Batch = tuple[Tensor, Tensor]
SIZE = 32


@dataclass(frozen=True)
class Task:
    """A network, its loss (network, batch) -> 0-d, and its data: train, val and test samples."""

    description: str
    network: Callable[[int], nn.Module]
    loss: Callable[[nn.Module, Batch], Tensor]
    data: Callable[[], dict[str, Batch]]
    steps: int

    def draw(self, seed: int) -> Iterator[Batch]:
        """Yield training batches without end."""
        x, y = self.data()["train"]
        order = torch.Generator().manual_seed(seed)
        while True:
            for part in torch.randperm(len(y), generator=order).split(SIZE)[: len(y) // SIZE]:
                yield x[part], y[part]

    def batches(self, part: str) -> list[Batch]:
        """Return a part of the data in large batches."""
        x, y = self.data()[part]
        return list(zip(x.split(256), y.split(256), strict=True))

    def looks(self) -> list[Batch]:
        """Return the validation batches of looks."""
        x, y = self.data()["val"]
        return list(zip(x.split(SIZE), y.split(SIZE), strict=True))[: len(y) // SIZE]


@functools.cache
def read(module: type[Any]) -> dict[str, Batch]:
    """Return the parts of a data module."""
    return dict(zip(("train", "val", "test"), module().samples(), strict=True))


def gpt2(seed: int) -> nn.Module:
    """Return a byte-level GPT-2 of 117,000 weights."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(seed)
    sizes: dict[str, Any] = {"vocab_size": 256, "n_positions": 64, "n_embd": 64, "n_layer": 2, "n_head": 4}
    still: dict[str, Any] = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    return GPT2LMHeadModel(GPT2Config(**sizes, **still, bos_token_id=0, eos_token_id=0))


def vit(seed: int) -> nn.Module:
    """Return a vision transformer for 8 × 8 pixels."""
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(seed)
    sizes: dict[str, Any] = {"image_size": 8, "patch_size": 2, "num_channels": 1, "hidden_size": 64}
    layers: dict[str, Any] = {"num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 128}
    return ViTForImageClassification(ViTConfig(**sizes, **layers | {"num_labels": 10}))


def mlp(seed: int) -> nn.Module:
    """Return a plain network for 20 features."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1))


@functools.cache
def pretrained() -> dict[str, Tensor]:
    """Return the weights of a GPT-2 after 600 steps on the text."""
    network, draw = gpt2(100), TASKS["GPT-2, bytes"].draw(100)
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=0.0)
    for _ in range(600):
        optimizer.zero_grad()
        next_byte(network, next(draw)).backward()
        optimizer.step()
    return network.state_dict()


def lora(seed: int) -> nn.Module:
    """Return the trained GPT-2 with low-rank adapters, which alone are trained."""
    from peft import LoraConfig, get_peft_model

    network: Any = gpt2(100)
    network.load_state_dict(pretrained())
    torch.manual_seed(seed)
    config = LoraConfig(r=8, lora_alpha=16, target_modules=["c_attn", "c_fc", "c_proj"], fan_in_fan_out=True)
    found: nn.Module = get_peft_model(network, config)
    return found


def next_byte(network: nn.Module, batch: Batch) -> Tensor:
    """Return the mean cross-entropy of the bytes that follow."""
    found: Tensor = network(input_ids=batch[0], labels=batch[0]).loss
    return found


def digit(network: nn.Module, batch: Batch) -> Tensor:
    """Return the mean cross-entropy of the digits."""
    found: Tensor = network(pixel_values=batch[0].view(-1, 1, 8, 8), labels=batch[1]).loss
    return found


def value(network: nn.Module, batch: Batch) -> Tensor:
    """Return the mean squared error."""
    return mse_loss(network(batch[0]).squeeze(1), batch[1])


@functools.cache
def swapped() -> dict[str, Batch]:
    """Return the text with its upper and lower case exchanged: another text, for a network that knows the first."""
    table = torch.tensor(list(bytes(range(256)).swapcase()))
    return {part: (table[x], table[y]) for part, (x, y) in read(TextDataModule).items()}


TASKS: dict[str, Task] = {
    "GPT-2, bytes": Task(
        "a GPT-2 of transformers, 2 layers of 64, on sources of Python's standard library; 200 steps",
        gpt2,
        next_byte,
        functools.partial(read, TextDataModule),
        200,
    ),
    "ViT, digits": Task(
        "a ViT of transformers, 3 layers of 64, on scikit-learn's digits; 400 steps",
        vit,
        digit,
        functools.partial(read, DigitsDataModule),
        400,
    ),
    "MLP, tabular": Task(
        "an MLP 20-64-64-1 on Friedman's first problem with noise, 1,000 samples; 600 steps",
        mlp,
        value,
        functools.partial(read, FriedmanDataModule),
        600,
    ),
    "LoRA, GPT-2": Task(
        "low-rank adapters (peft, r = 8) on that GPT-2, trained before on the same text; fine-tuned on it with upper "
        "and lower case exchanged; 200 steps",
        lora,
        next_byte,
        swapped,
        200,
    ),
}
