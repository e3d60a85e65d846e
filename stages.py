"""The stages of `results.py`: each tunes, trains, and returns its runs and the text that stands in the documents."""

import argparse
from collections.abc import Callable
from itertools import product

import numpy as np
import pandas as pd
from optuna.trial import FrozenTrial, TrialState
from tqdm import tqdm

import tune
from compare import RESULTS, draw_courses, draw_sensitivity
from options import CONFIGS
from runs import Job, run_all
from store import artifact_dir, client
from tables import bootstrap, differences, markdown, paired_table, with_interval
from workers import each

PLAIN = ["adam", "cosine", "adamw", "adamw_cosine"]
FAMILIES = PLAIN + [f"{arm}_average" for arm in PLAIN]  # tuned on every draw
RIVALS = ["linear", "plateau", "linear_average", "plateau_average", "schedule_free", "descent"]  # on the first draw
TASKS = ["mlp", "conv", "conv_batchnorm", "gru", "deep_layernorm", "digits", "regression"]
STARTS = [1e-6, 1e-4, 1e-3, 1e-2, 1e-1, 1.0]
SGD = ("--model.optimizer=torch.optim.SGD", "--model.optimizer.momentum=0.9")
ON_TASKS: dict[str, tuple[str, tuple[str, ...]]] = {
    "adamw_cosine": ("adamw_cosine", ()),
    "meta": ("meta", ()),
    "meta, SGD": ("meta", SGD),
}
ALONE = ("--model.bracket=false",)
FIXED = ("--model.meta_lr=0",)
VARIANTS: dict[str, tuple[str, ...]] = {
    "meta": (),
    "without the bracket, from .05": (*ALONE, "--model.lr=0.05"),
    "without the bracket, from .005": (*ALONE, "--model.lr=0.005"),
    "without the bracket, from .5": (*ALONE, "--model.lr=0.5"),
    "without stretches": ("--model.stretch=0",),
    "without shrink": ("--model.memory=.inf",),
    "without averaging": ("--config", str(CONFIGS / "ablation" / "no_average.yaml")),
    "shrink not adapted": FIXED,
    "shrink not adapted, memory ÷ 3": (*FIXED, "--model.memory=4"),
    "shrink not adapted, memory × 3": (*FIXED, "--model.memory=36"),
    "memory ÷ 3": ("--model.memory=4",),
    "memory × 3": ("--model.memory=36",),
    "meta rate ÷ 3": ("--model.meta_lr=0.2",),
    "meta rate × 3": ("--model.meta_lr=1.8",),
    "looks ÷ 3": ("--model.every=12288",),
    "looks × 3": ("--model.every=1365",),
    "stretch ÷ 3": ("--model.stretch=0.0267",),
    "stretch × 3": ("--model.stretch=0.24",),
    "trust ÷ 3": ("--model.trust=0.0333",),
    "trust × 3": ("--model.trust=0.3",),
    "tie ÷ 3": ("--model.tie=0.02",),
    "tie × 3": ("--model.tie=0.18",),
    "validation batches ÷ 2": ("--data.val_batch_size=64",),
    "validation batches × 2": ("--data.val_batch_size=256",),
    "window ÷ 3": ("--config", str(CONFIGS / "ablation" / "window_third.yaml")),
    "window × 3": ("--config", str(CONFIGS / "ablation" / "window_triple.yaml")),
    "20 epochs": ("--trainer.max_epochs=20",),
    "150 epochs": ("--trainer.max_epochs=150",),
    "batches of 32": ("--data.batch_size=32",),
    "batches of 512": ("--data.batch_size=512",),
}
SETTINGS: dict[str, tuple[str, ...]] = {
    "batches of 128, 50 epochs": (),
    "batches of 512": ("--data.batch_size=512",),
    "20 epochs": ("--trainer.max_epochs=20",),
}
PAPER = {  # mnist1d's own set-ups (Greydanus & Kobak 2020): batches of 100, 8,000 steps; published accuracy
    "logistic regression": (32, ("--model.network=lightning_modules.MLP", "--model.network.layers=0")),
    "MLP": (68, ("--model.network=lightning_modules.MLP", "--model.network.hidden=256", "--model.network.layers=2")),
    "ConvNet": (94, ("--model.network=lightning_modules.ConvNet",)),
    "GRU": (91, ("--model.network=lightning_modules.GRU",)),
}


def tune_one(command: tuple[str, ...]) -> list[FrozenTrial]:
    """Run one tuning to its end and return its trials."""
    study = tune.main(list(command))
    return study.get_trials(states=[TrialState.COMPLETE])


def tuned(
    own: argparse.Namespace, arms: list[str], cases: list[tuple[str, ...]], study: tuple[str, ...] = ()
) -> dict[tuple[str, int], list[FrozenTrial]]:
    """Tune each arm in each case (options of the runs) and return its trials: {(arm, number of the case): trials}.

    study: options of `tune.py` that make it another study.
    """
    keys = list(product(arms, range(len(cases))))
    aside = ("--output", str(artifact_dir() / "tuned.yaml"))  # the arm's own file is for the published draw
    places = [aside if case or study or own.output != RESULTS else () for case in cases]
    given = (f"--trials={own.trials}", *study)
    jobs = [("--optimizer", arm, *given, *cases[case], *places[case]) for arm, case in keys]
    found = {}
    with tqdm(total=len(jobs), desc="tune", unit="study") as bar:
        for number, trials in each(tune_one, jobs, own.pool):
            found[keys[number]] = trials
            bar.update()
    return found


def best_options(trials: list[FrozenTrial], of: int | None = None) -> tuple[str, ...]:
    """Return the options of the best among the first `of` trials."""
    best = min(trials[:of], key=lambda trial: trial.value if trial.value is not None else np.inf)
    return tuple(tune.options(best.params))


def draws(own: argparse.Namespace) -> list[tuple[str, ...]]:
    """Return the options that name each draw."""
    return [(f"--data.draw={draw}",) if draw else () for draw in range(own.draws)]


def main_stage(own: argparse.Namespace) -> tuple[pd.DataFrame, str]:
    """`meta` against the tuned families, each tuned on each draw, all seeds."""
    studies = tuned(own, FAMILIES, draws(own))
    jobs = []
    for draw, seed in product(range(own.draws), range(1, own.seeds + 1)):
        jobs += [Job(arm, arm, seed, draw) for arm in ("meta", "meta_onestep")]
        jobs += [Job(arm, arm, seed, draw, options=best_options(studies[arm, draw])) for arm in FAMILIES]
    runs = run_all(jobs, own.pool, "main")
    shown = runs[runs.arm.isin(["meta", "meta_onestep", "adam", "cosine", "adamw_average"]) & (runs.draw == 0)]
    draw_courses(shown, own.output)
    text = paired_table(runs, tuning=dict.fromkeys(FAMILIES, own.trials))
    return runs, f"{text}\n\n{readings(runs)}"


def readings(runs: pd.DataFrame) -> str:
    """Say what the bars of the claim ask: ratios, the best study, epochs to the tuned loss, draw by draw."""
    means = runs.groupby(["arm", "draw"]).test_loss.mean().unstack()
    overall = means.mean(axis=1)
    best = {arm: min(means.loc[arm] / means.loc["meta"]) for arm in FAMILIES}
    nearest = min(best, key=lambda arm: best[arm])
    pairs = runs.pivot(index=["draw", "seed"], columns="arm", values="val_losses")
    reached = [_first(curve, goal[-1]) for curve, goal in zip(pairs["meta"], pairs["adam"], strict=True)]
    plain = [_first(curve, goal[-1]) for curve, goal in zip(pairs["adam"], pairs["adam"], strict=True)]
    by_draw = markdown(
        ["arm", *(f"draw {draw}" for draw in means.columns)],
        [[f"`{arm}`", *(f"{value:.3f}" for value in means.loc[arm])] for arm in overall.sort_values().index],
    )
    return (
        f"- `meta` / `adam` = {overall['meta'] / overall['adam']:.3f}; `meta` / `cosine` = "
        f"{overall['meta'] / overall['cosine']:.3f}.\n"
        f"- The single study nearest to `meta`, of the {len(FAMILIES) * len(means.columns)}: one of `{nearest}`, with "
        f"{best[nearest]:.3f} times the test loss of `meta` on its draw.\n"
        f"- `meta` reaches the final validation loss of `adam` after {np.mean(reached):.1f} epochs on average (at most "
        f"{np.max(reached):.0f}); `adam` itself first does after {np.mean(plain):.1f}.\n\n{by_draw}"
    )


def _first(curve: list[float], goal: float) -> float:
    return next((epoch for epoch, loss in enumerate(curve, 1) if loss <= goal), np.inf)


def starts_stage(own: argparse.Namespace) -> tuple[pd.DataFrame, str]:
    """Final test loss against the starting rate."""
    studies = tuned(own, ["adam", "adamw_average"], draws(own)[:1])
    decay = [option for option in best_options(studies["adamw_average", 0]) if "decay" in option]
    arms = {
        "meta": ("meta", ()),
        "meta, stretches alone": ("meta", ALONE),
        "meta_onestep": ("meta_onestep", ()),
        "adamw_average, best decay": ("adamw_average", tuple(decay)),
        "adam": ("adam", ()),
        "descent, 1e-7": ("descent", ("--model.hyper_lr=1e-7",)),
    }
    cells = product(range(1, 4), arms.items(), STARTS)
    jobs = [Job(label, arm, seed, 0, lr, options) for seed, (label, (arm, options)), lr in cells]
    runs = run_all(jobs, own.pool, "starts")
    draw_sensitivity(runs, own.output)
    means = runs.pivot_table(index="arm", columns="start_lr", values="test_loss", aggfunc="mean", sort=False)
    rows = [[f"`{arm}`", *(f"{value:.3f}" for value in means.loc[arm])] for arm in arms]
    return runs, markdown(["from", *(f"{lr:g}" for lr in STARTS)], rows)


def ablation_stage(own: argparse.Namespace) -> tuple[pd.DataFrame, str]:
    """What each part adds, and what each constant bears."""
    cells = list(product(range(min(2, own.draws)), range(1, 4)))
    jobs = [Job(label, "meta", seed, draw, options=given) for label, given in VARIANTS.items() for draw, seed in cells]
    runs = run_all(jobs, own.pool, "ablation")
    base = runs[runs.arm == "meta"].test_loss.mean()
    rows = []
    for label in VARIANTS:
        own_runs = runs[runs.arm == label]
        change = f"{100 * (own_runs.test_loss.mean() / base - 1):+.1f} %"
        rows.append([label, with_interval(own_runs.test_loss), change, f"{own_runs.passes.mean():.2f}"])
    return runs, markdown(["`meta`", "test loss", "change", "passes"], rows)


def tasks_stage(own: argparse.Namespace) -> tuple[pd.DataFrame, str]:
    """The same constants on other tasks, beside AdamW with cosine, tuned on each."""
    cases: list[tuple[str, ...]] = [("--task", task) for task in TASKS]
    studies = tuned(own, ["adamw_cosine"], cases)
    jobs = []
    for (number, task), seed in product(enumerate(TASKS), range(1, 6)):
        best = best_options(studies["adamw_cosine", number])
        for label, (arm, options) in ON_TASKS.items():
            given = best if arm == "adamw_cosine" else options
            jobs.append(Job(f"{task}: {label}", arm, seed, options=(*cases[number], *given)))
    runs = run_all(jobs, own.pool, "tasks")
    grouped = runs.groupby("arm")
    losses, accuracy = grouped.test_loss, grouped.test_accuracy.mean()
    rows = []
    for task in TASKS:
        labels = [f"{task}: {label}" for label in ON_TASKS]
        base = losses.mean()[labels[0]]
        cells = [f"{with_interval(losses.get_group(a))} / {accuracy[a]:.3f}" for a in labels]
        rows.append([task, *cells, *(f"{losses.mean()[a] / base:.2f}" for a in labels[1:])])
    return runs, markdown(["task", *ON_TASKS, *(f"ratio of {label}" for label in list(ON_TASKS)[1:])], rows)


def rivals_stage(own: argparse.Namespace) -> tuple[pd.DataFrame, str]:
    """The other rivals on the published draw, and what the validation samples are worth."""
    studies = tuned(own, RIVALS, draws(own)[:1])
    studies |= tuned(own, ["adam"], draws(own)[:1])
    seeds = range(1, 6)
    jobs = [Job(arm, arm, seed, options=best_options(studies[arm, 0])) for arm in RIVALS for seed in seeds]
    jobs += [Job(arm, arm, seed) for arm in ("meta", "prodigy", "dadaptation") for seed in seeds]
    jobs += [Job("adam_all", "adam_all", seed, options=best_options(studies["adam", 0])) for seed in seeds]
    runs = run_all(jobs, own.pool, "rivals")
    replays = []
    for row in runs[runs.arm == "meta"].itertuples():
        path = client().download_artifacts(str(row.run_id), "schedule.csv")
        replays.append(Job("replay", "replay", int(row.seed), options=(f"--model.schedule.path={path}",)))
    runs = pd.concat([runs, run_all(replays, own.pool, "replay")], ignore_index=True)
    return runs, paired_table(runs, tuning=dict.fromkeys(RIVALS, own.trials) | {"adam_all": own.trials})


def budget_stage(own: argparse.Namespace) -> tuple[pd.DataFrame, str]:
    """What 1, 5, 20 and 60 trials buy each baseline."""
    arms, nearest, most = ["adam", "cosine"], ["adamw_average", "adamw_cosine_average"], 3 * own.trials
    studies = tuned(own, arms + nearest, draws(own))
    longer = tuned(own, nearest, draws(own), (f"--trials={most}", "--seed=1"))
    columns = [(budget, studies, arms + nearest) for budget in (1, 5, own.trials)] + [(most, longer, nearest)]
    jobs = [
        Job(f"{arm}, {budget}", arm, seed, draw, options=best_options(found[arm, draw], budget))
        for budget, found, tried in columns
        for arm, draw, seed in product(tried, range(own.draws), range(1, 6))
    ]
    jobs += [Job("meta", "meta", seed, draw) for draw, seed in product(range(own.draws), range(1, 6))]
    runs = run_all(jobs, own.pool, "budget")
    losses = {label: with_interval(own_runs.test_loss) for label, own_runs in runs.groupby("arm")}
    rows = []
    for arm in arms + nearest:
        row = [f"`{arm}`", *(losses.get(f"{arm}, {budget}", "–") for budget, *_ in columns), "–"]
        if arm in nearest:
            paired = differences(runs.assign(start_lr=-1.0), f"{arm}, {most}", "meta")
            row[-1] = f"{np.mean(paired):+.3f} ({{:+.3f}} … {{:+.3f}})".format(*bootstrap(paired))
        rows.append(row)
    header = ["trials", *(str(budget) for budget, *_ in columns), f"{most}, minus `meta` (95 %)"]
    table = markdown(header, rows)
    return runs, f"{table}\n\n`meta`, without a trial: {losses['meta']}."


def settings_stage(own: argparse.Namespace) -> tuple[pd.DataFrame, str]:
    """Where `meta` loses most of its own, few steps, beside the closest rival, tuned for it."""
    cells = list(product(range(min(2, own.draws)), SETTINGS))
    studies = tuned(own, ["adamw_average"], [(*draws(own)[draw], *SETTINGS[name]) for draw, name in cells])
    jobs = []
    for number, (draw, name) in enumerate(cells):
        given = {"adamw_average": best_options(studies["adamw_average", number]), "meta": ()}
        for (arm, options), seed in product(given.items(), range(1, 4)):
            jobs.append(Job(f"{name}: {arm}", arm, seed, draw, options=(*SETTINGS[name], *options)))
    runs = run_all(jobs, own.pool, "settings")
    rows = []
    for name in SETTINGS:
        rival, meta = (runs[runs.arm == f"{name}: {arm}"].test_loss for arm in ("adamw_average", "meta"))
        rows.append([name, with_interval(rival), with_interval(meta), f"{meta.mean() / rival.mean():.2f}"])
    return runs, markdown(["setting", "`adamw_average`, tuned there", "`meta`", "ratio"], rows)


def paper_stage(own: argparse.Namespace) -> tuple[pd.DataFrame, str]:
    """Check of the set-up: the accuracies that the mnist1d paper gives, with Adam at 1e-2."""
    shared = ("--model.lr=0.01", "--data.batch_size=100", "--trainer.max_epochs=200")
    jobs = [Job(name, "adam", 1, options=(*given, *shared)) for name, (_, given) in PAPER.items()]
    runs = run_all(jobs, own.pool, "paper").set_index("arm", drop=False)
    rows = [
        [name, f"{published} %", f"{100 * runs.test_accuracy[name]:.0f} %"] for name, (published, _) in PAPER.items()
    ]
    return runs.reset_index(drop=True), markdown(["network", "published", "here"], rows)


Stage = Callable[[argparse.Namespace], tuple[pd.DataFrame, str]]
STAGES: dict[str, Stage] = {
    "main": main_stage,
    "starts": starts_stage,
    "ablation": ablation_stage,
    "tasks": tasks_stage,
    "rivals": rivals_stage,
    "budget": budget_stage,
    "settings": settings_stage,
    "paper": paper_stage,
}
