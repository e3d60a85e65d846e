import hashlib
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mnist1d.data import make_dataset

import data.mnist1d
from data import MNIST1DDataModule
from data.mnist1d import PUBLISHED, generate


def module(**options: Any) -> MNIST1DDataModule:
    data = MNIST1DDataModule(**options)
    data.setup("fit")
    return data


def checksum(tensor: torch.Tensor) -> str:
    """Of values rounded to 1e-4: the last bits of a float differ between machines."""
    return hashlib.sha256(np.round(tensor.numpy().astype(float), 4).__add__(0.0).tobytes()).hexdigest()[:16]


def test_the_arrays_are_the_published_ones() -> None:
    arrays = generate(PUBLISHED)
    assert {name: (tuple(t.shape), checksum(t)) for name, t in arrays.items()} == {
        "x": ((4000, 40), "8f2e7e88dceb64f0"),
        "y": ((4000,), "c3f43f41c77404ec"),
        "x_test": ((1000, 40), "b54a741476921157"),
        "y_test": ((1000,), "2156f6b8bb81225f"),
    }


def test_drawing_leaves_the_global_random_streams() -> None:
    generate.cache_clear()
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    expected = random.random(), np.random.rand(), torch.rand(1)
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    generate(PUBLISHED)
    assert (random.random(), np.random.rand(), torch.rand(1)) == expected


def test_the_sets_of_two_draws_have_their_sizes_and_share_no_sample() -> None:
    sets = [x for data in (module(), module(seed=1)) for x, _ in (data.train, data.val, data.test)]
    assert [len(x) for x in sets] == [4000, 1000, 1000] * 2
    assert len(torch.cat(sets).unique(dim=0)) == 12_000


@pytest.mark.parametrize(("batch_size", "val_batch_size"), [(128, 64), (1000, 128), (4000, 1)])
def test_an_epoch_is_one_pass_over_the_training_samples_in_pairs(batch_size: int, val_batch_size: int) -> None:
    data = module(batch_size=batch_size, val_batch_size=val_batch_size)
    batches = [batch for batch, _, _ in data.train_dataloader()]
    assert torch.equal(torch.cat([batch["train"][0] for batch in batches]).sort(0)[0], data.train[0].sort(0)[0])
    assert all(len(batch["val"][0]) == val_batch_size for batch in batches)


@pytest.mark.parametrize("options", [{"batch_size": 4001}, {"batch_size": 0}, {"seed": -1}])
def test_sizes_that_do_not_fit_the_data_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"--data.\w+ must lie between"):
        MNIST1DDataModule(**options)


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["none", "cut short", "a byte changed", "empty"])
# of joblib, which generates them again
@pytest.mark.filterwarnings("ignore:Exception while loading results")
def test_a_draw_is_generated_once_and_again_if_its_file_is_damaged(
    damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []

    def counted(args: Any) -> Any:
        calls.append(args.seed)
        return make_dataset(args)

    monkeypatch.setattr(data.mnist1d, "make_dataset", counted)
    monkeypatch.setenv("HYPERGRADIENT_CACHE", str(tmp_path))
    generate.cache_clear()
    whole = generate(PUBLISHED)
    [file] = tmp_path.rglob("output.pkl")
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= damage == "a byte changed"
    file.write_bytes({"cut short": bytes(content[:1000]), "empty": b""}.get(damage, bytes(content)))
    generate.cache_clear()
    again = generate(PUBLISHED)
    generate.cache_clear()
    assert calls == [PUBLISHED] * (1 if damage == "none" else 2)
    assert all(torch.equal(whole[name], again[name]) for name in whole)
