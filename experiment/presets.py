"""What every command knows before torch is imported: the arms, the tasks, and the text of the help."""

import colorsys
import textwrap
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CONFIGS, RESULTS = ROOT / "configs", ROOT / "results"
BASE = CONFIGS / "base.yaml"
ARMS = sorted(path.stem for path in CONFIGS.glob("*.yaml") if path != BASE)
HEADLINE = ["meta", "meta_onestep", "meta_original", "adam", "cosine"]  # what is compared where nothing else is named
TASKS = sorted(path.stem for path in (CONFIGS / "tasks").glob("*.yaml"))
DEFAULT_ARM = "meta"
SUBCOMMANDS = ("fit", "validate", "test", "predict")
QUIET = "--trainer.enable_progress_bar=false"  # of a run among many: there is one bar for all
USAGE = "python train.py [fit | validate | test | predict] [options]"


def _choices(option: str, names: list[str]) -> str:
    start = f"  {option:<22}"
    return textwrap.fill(" ".join(names), 110, initial_indent=start, subsequent_indent=" " * len(start))


HELP = f"""usage: {USAGE}

Train one arm on mnist1d, test it once, keep the run in MLflow.

  python train.py                                      the same as --optimizer meta
  python train.py --optimizer adam --model.lr 0.01     another arm, at another rate
  python train.py --config my_arm.yaml                 an arm of your own, over configs/base.yaml
  python train.py --optimizer meta --print_config      what an arm is made of
  python train.py test --ckpt_path CHECKPOINT          Lightning's own: fit (the default), validate, test, predict
  python train.py fit --help                           every option

{_choices("--optimizer ARM", ARMS)}
{_choices("--task TASK", TASKS)}
  --model.lr RATE       the learning rate that the arm starts from, or keeps; `meta` needs none
  --model.help NAME     the options of a module: SupervisedModule, MetaModule, OneStepModule, SearchDecayModule
  --trainer.max_epochs EPOCHS, --seed_everything SEED, and all that Lightning's Trainer takes

Later options win. Two arms on one line are refused."""


def arm_file(arm: str) -> Path:
    """Return the configuration file of an arm."""
    return CONFIGS / f"{arm}.yaml" if arm in ARMS else Path(arm)


def preset(arm: str) -> list[str]:
    """Return the options of `train.py` that take an arm."""
    return ["--optimizer", arm] if arm in ARMS else ["--config", arm]


COLORS = {  # of Okabe and Ito, for the arms that are most often set side by side
    "meta": "#0072b2",
    "adam": "#d55e00",
    "cosine": "#009e73",
    "meta_search": "#cc79a7",
    "meta_onestep": "#56b4e9",
    "adamw_cosine": "#e69f00",
    "meta_original": "#000000",
}


TITLES = {  # in figures; other arms go by their name
    "meta": "meta",
    "meta_search": "meta_search (rate found before the run)",
    "meta_onestep": "meta_onestep (the plain rule)",
    "meta_original": "meta_original (as published)",
    "adam": "Adam, tuned",
    "cosine": "Adam + cosine, Adam's tuned rate",
    "adamw": "AdamW, tuned",
    "adamw_cosine": "AdamW + cosine, tuned",
    "adamw_average": "AdamW, averaged weights, tuned",
    "adamw_cosine_average": "AdamW + cosine, averaged weights, tuned",
    "adamw_average, best decay": "AdamW, averaged weights, best decay",
    "descent, 1e-7": "hypergradient descent (Baydin et al.)",
}


def color(arm: str) -> str:
    """Return the colour of an arm's runs in MLflow's UI, #rrggbb; hues a golden ratio apart: no two are alike."""
    place = ARMS.index(arm) if arm in ARMS else len(ARMS)
    red, green, blue = colorsys.hls_to_rgb(place * 0.618 % 1, 0.42, 0.8)
    return COLORS.get(arm, f"#{round(255 * red):02x}{round(255 * green):02x}{round(255 * blue):02x}")


def tuned_file(arm: str) -> Path | None:
    """Return the file of `configs/tuned/` that the arm reads; None for one that is not tuned."""
    file = CONFIGS / "tuned" / f"{arm}.yaml"
    return file if f"tuned/{file.name}" in arm_file(arm).read_text(encoding="utf-8") else None
