"""The sections of the report in their order. A section without data says in a sentence why it is empty."""

from collections.abc import Callable, Sequence

import yaml

from p3o.report.blocks import Block, Code, Facts, Figure, FollowedBlock, Panel, Section, TableBlock, TextsBlock
from p3o.report.calibration import (
    Checked,
    agreement_table,
    calibration_bins,
    calibration_chart,
    checked_pairs,
    expected_calibration_error,
)
from p3o.report.charts import Yardstick, frontier_chart, proxy_gold_chart, shift_chart
from p3o.report.curves import Line, curve_chart
from p3o.report.frontiers import (
    Measure,
    best_of_n,
    best_of_n_kl,
    frontiers,
    judge,
    over_optimisation,
    value_of,
)
from p3o.report.headtohead import head_to_head_section
from p3o.report.numbers import duration, number, percent
from p3o.report.palette import Palette, readable
from p3o.report.rundata import RunData, TrainingStep
from p3o.report.tables import (
    evaluation_table,
    fit_table,
    over_optimisation_table,
    shift_table,
)
from p3o.report.texts import EVEN_PROMPTS, before_and_after, followed

# Key in metrics.jsonl, heading, axis title, axis number format.
_CURVES = (
    ("reward", "Training reward", "mean per response", ""),
    ("kl_k1", "KL to SFT, estimator k1", "nats per response", ""),
    ("length", "Length", "tokens per response", ""),
    ("ended", "Finished responses", "share of responses", "~%"),
    ("clip_fraction", "Clip fraction", "share of loss terms", "~%"),
    ("effective_sample_share", "Effective sample size", "share of the responses", "~%"),
    ("ratio_max", "Largest importance ratio", "π / π_old of a response", ""),
    ("tie_fraction", "Ties", "share of pairs", "~%"),
    ("reward_gap", "Reward gap", "mean |difference|", ""),
    ("half_squared_log_ratio", "Distance from the sampling policy", "½ (log-ratio)², nats²", ""),
    ("updates", "Updates", "per step", ""),
    ("loss", "Loss, each algorithm's own", "per batch", ""),
)
_TESTS = {
    "pairs": "Held-out pairs",
    "prompts": "Distinct prompts in them",
    "accuracy_labels": "Ranked as labelled",
    "accuracy_gold": "Agrees with the gold order",
    "accuracy_cross_prompt": "Prefers an answer to this prompt",
}
_SMALL = 190
"""Height of a chart among many, in pixels."""


def all_sections(data: RunData, palette: Palette) -> list[Section]:
    """Every section, in the order of the page."""
    builders: list[Callable[[RunData, Palette], Section | None]] = [
        frontier_section,
        over_optimisation_section,
        training_section,
        head_to_head_section,
        shift_section,
        reward_model_section,
        texts_section,
        evaluation_section,
        run_section,
    ]
    return [section for build in builders if (section := build(data, palette)) is not None]


def yardsticks(data: RunData, measure: Measure) -> list[Yardstick]:
    """What needs no reinforcement learning: SFT samples, the greedy SFT model, the best of n samples of it."""
    found = []
    for row in data.evaluations:
        value = value_of(row, measure)
        if row.algorithm is not None or value is None:
            continue
        n = best_of_n(row)
        if n is not None:
            found.append(Yardstick(f"best of {n}", *value, kl=best_of_n_kl(n)))
        elif row.decoding == "sample":
            found.append(Yardstick("SFT", *value, kl=0.0))
        else:
            found.append(Yardstick(f"SFT, {row.decoding}", *value, kl=None))
    return found


def frontier_section(data: RunData, palette: Palette) -> Section:
    """KL–reward frontiers: gold and proxy side by side."""
    title = "Reward against KL"
    measures: list[Measure] = ["reward", "gold"] if data.has_gold else ["reward"]
    panels: list[Panel] = []
    blocks: list[Block] = []
    for measure in measures:
        found = frontiers(data, measure)
        if found:
            heading = "Gold reward" if measure == "gold" else "Proxy reward (maximised in training)"
            chart = frontier_chart(found, yardsticks(data, measure), measure, palette).specification(
                palette, height=380
            )
            panels.append(Panel(heading, chart, f"{heading} against KL to the SFT model, per algorithm"))
            name = "Gold" if measure == "gold" else "Proxy"
            blocks.append(TableBlock(fit_table(found, palette), f"{name} reward: fit, and best value at equal KL"))
    if not panels:
        return Section("frontier", title, "No policy trained by reinforcement learning was evaluated in this run.")
    intro = (
        "Each point is a policy at one step of training, with a larger mark at the last step. It shows how much "
        "reward the policy gets and how far it has moved from the SFT model (KL): higher is better, and further "
        "left is closer to SFT. Bars are 95\N{NO-BREAK SPACE}% intervals over prompts; the curves are fits of "
        "reward(SFT) + a·√KL + b·KL. Greedy SFT and best-of-n are shown for comparison; they need no RL."
    )
    caption = (
        "KL is summed over the whole vocabulary at each token and over the tokens of the response. The level of a "
        "reward model's scores has no meaning, only their differences. Best of n is drawn at log n − (n−1)/n "
        "nats, an upper bound of its KL."
    )
    if not data.has_gold:
        caption += (
            " This run has no gold reward, so these results cannot tell real improvement from exploiting "
            "flaws of the reward."
        )
    names = [f.algorithm for f in frontiers(data, "reward")]
    return Section("frontier", title, intro, [Figure(panels, names, caption, columns=len(panels)), *blocks])


def over_optimisation_section(data: RunData, palette: Palette) -> Section:
    """Proxy against gold."""
    title = "Proxy against gold"
    if not data.has_gold:
        return Section("overoptimisation", title, "Left out: this run has no gold reward to compare the proxy with.")
    gold = {frontier.algorithm: frontier for frontier in frontiers(data, "gold")}
    pairs = [(proxy, gold[proxy.algorithm]) for proxy in frontiers(data, "reward") if proxy.algorithm in gold]
    if not pairs:
        return Section("overoptimisation", title, "Left out: no trained policy was evaluated with the gold reward.")
    intro = (
        "For the same policies: the gain on the proxy that training maximised, and the gain on the gold reward. A "
        "path that bends down has begun to exploit the reward model's mistakes. Bars are 95\N{NO-BREAK SPACE}% "
        "intervals of the gold reward."
    )
    chart = proxy_gold_chart(pairs, palette).specification(palette, height=340)
    panel = Panel(
        "Gold gained against proxy gained", chart, "Gold reward gained against proxy reward gained, per algorithm"
    )
    table = over_optimisation_table(data, over_optimisation(data), palette)
    figure = Figure([panel], [proxy.algorithm for proxy, _ in pairs], columns=1)
    return Section("overoptimisation", title, intro, [figure, TableBlock(table)])


def training_section(data: RunData, palette: Palette) -> Section:
    """Curves of reinforcement learning and, behind them, of supervised fine-tuning."""
    title = "Training curves"
    panels = [
        panel
        for key, heading, y_title, y_format in _CURVES
        if (panel := _curve_panel(data, palette, key, heading, y_title, y_format))
    ]
    blocks: list[Block] = []
    if panels:
        names = list(dict.fromkeys(a for steps in data.training.values() for s in steps if (a := s.algorithm)))
        blocks.append(
            Figure(
                panels,
                names,
                "Each step samples responses to one batch of prompts and trains on them. Lines are moving means; "
                "the raw values are faint. To compare algorithms, use the frontier above, which evaluates all of "
                "them on the same held-out prompts: here each step has different prompts, and the level of a "
                "reward model's scores has no meaning.",
                columns=3,
            )
        )
    losses = [("loss", "training loss"), ("heldout_loss", "held-out loss")]
    sft = _stage_panels(data.sft, palette, losses, "nats per token")
    if sft:
        heldout = [step.values["heldout_loss"] for step in data.sft if "heldout_loss" in step.values]
        end = f" Final held-out loss: {number(heldout[-1], 3)} nats per token." if heldout else ""
        blocks.append(Figure(sft, [], f"Supervised fine-tuning of the model that RL starts from.{end}", columns=3))
    if not blocks:
        return Section("training", title, "Left out: metrics.jsonl has no training steps.")
    intro = "Metrics of each algorithm during training, on its training prompts." if panels else "No RL steps yet."
    return Section("training", title, intro, blocks)


def shift_section(data: RunData, palette: Palette) -> Section | None:
    """The same algorithms under per-prompt reward offsets; absent unless the run made the comparison."""
    if not data.shifted:
        return None
    measure = judge(data)
    shifts = sorted({row.reward_shift for row in data.shifted})
    shifted = [
        (shift, frontier)
        for shift in shifts
        for frontier in frontiers(data, measure, [row for row in data.shifted if row.reward_shift == shift])
    ]
    names = {frontier.algorithm for _, frontier in shifted}
    plain = [frontier for frontier in frontiers(data, measure) if frontier.algorithm in names]
    if not plain or not shifted:
        return None
    intro = (
        "Each algorithm was trained a second time with a random offset added to all rewards of each prompt. Such "
        "offsets do not change any comparison between two responses to the same prompt, and a reward model's own "
        "offsets are arbitrary; an algorithm that uses only reward differences is not affected by them. Solid "
        "lines are without offsets, dashed lines with them."
    )
    chart = shift_chart(plain, shifted, measure, palette).specification(palette, height=360)
    panel = Panel("With and without per-prompt offsets", chart, "Frontiers with and without per-prompt reward offsets")
    figure = Figure([panel], [frontier.algorithm for frontier in plain], columns=1)
    table = TableBlock(shift_table(plain, shifted, measure, palette))
    return Section("shift", "Per-prompt reward offsets", intro, [figure, table])


def reward_model_section(data: RunData, palette: Palette) -> Section:
    """Accuracy of the reward model, and its training."""
    title = "Reward model"
    facts = [
        (_TESTS.get(name, readable(name)), _test_value(name, value))
        for name, value in (data.reward_test or {}).items()
        if isinstance(value, int | float | str)
    ]
    panels = [
        panel
        for key, unit in (("loss", "nats per pair"), ("accuracy", "share of pairs"))
        for panel in _stage_panels(data.reward_training, palette, [(key, key)], unit)
    ]
    truth, pairs = checked_pairs(data)
    if not facts and not panels and not pairs:
        return Section("rewardmodel", title, "Left out: this run trained no reward model of its own.")
    learned = bool(facts or panels)
    intro = (
        "The proxy reward, trained on labelled pairs (Bradley–Terry) and tested on held-out pairs. An accuracy of "
        "50 % is chance."
        if learned
        else "The proxy reward was given, not trained in this run. An agreement of 50 % is chance."
    )
    blocks: list[Block] = [Facts("On held-out pairs", facts)] if facts else []
    if panels:
        blocks.append(Figure(panels, [], "Training of the reward model."))
    if pairs:
        # Only of a reward that was fitted to comparisons are differences log-odds, which say how sure it is.
        blocks += _calibration(truth, pairs, palette) if learned or _is_a_model(data) else []
        name = _truth_name(truth)
        blocks.append(TableBlock(agreement_table(pairs), f"Agreement with {name}, by which response is longer"))
    return Section("rewardmodel", title, intro, blocks)


def _is_a_model(data: RunData) -> bool:
    """Whether the configuration names a reward model."""
    settings = yaml.safe_load(data.config)
    reward = settings.get("reward") if isinstance(settings, dict) else None
    return isinstance(reward, dict) and bool(reward.get("model"))


def _truth_name(truth: str) -> str:
    return "the gold reward" if truth == "gold" else truth


def _calibration(truth: str, pairs: Sequence[Checked], palette: Palette) -> list[Block]:
    """How sure the proxy is of what the policies wrote, and how often it is right."""
    name = _truth_name(truth)
    bins = calibration_bins(pairs)
    chart = calibration_chart(bins, palette).specification(palette, height=260)
    caption = (
        f"Responses of two policies to the same held-out prompt, {len(pairs)} pairs, compared with {name}. Bars are 95 % "
        f"intervals. Mean distance from the dashed line: {number(expected_calibration_error(bins), 3)}. A reward "
        f"model learns how often people agree. A reference without noise agrees more often than people do, so "
        f"points above the line are not a fault."
    )
    panel = Panel(
        "Calibration on the policies' responses", chart, "Agreement of the proxy with the truth against its confidence"
    )
    return [Figure([panel], [], caption, columns=1)]


def _test_value(name: str, value: int | float | str) -> str:
    if isinstance(value, str):
        return value
    return percent(value, 1) if name.startswith("accuracy") else f"{value:.6g}"


def texts_section(data: RunData, _palette: Palette) -> Section:
    """Responses before and after."""
    title = "Texts before and after"
    shown = before_and_after(data)
    blocks: list[Block] = [TextsBlock(shown)] if shown else []
    if data.samples:
        blocks.append(FollowedBlock(followed(data.samples)))
    if not blocks:
        return Section(
            "texts",
            title,
            "Left out: responses.jsonl does not have responses of both the SFT model and a trained policy.",
        )
    intro = (
        f"Each response was sampled once, at the training temperature. The prompts are selected by a fixed rule: "
        f"{EVEN_PROMPTS} evenly spaced through the held-out set, and for each algorithm those with the largest "
        f"rise and the largest fall in {'gold' if judge(data) == 'gold' else 'proxy'} reward compared with SFT, "
        f"and with the highest and the lowest reward. The extremes show what can happen, not what is typical."
    )
    return Section("texts", title, intro, blocks)


def evaluation_section(data: RunData, palette: Palette) -> Section:
    """All evaluations."""
    if not data.evaluations:
        return Section("evaluations", "All evaluations", "Left out: metrics.jsonl has no evaluations.")
    intro = "Means over held-out prompts ± one standard error; KL in nats per response."
    table = TableBlock(evaluation_table(data, palette), f"{len(data.evaluations)} evaluations", folded=True)
    return Section("evaluations", "All evaluations", intro, [table])


def run_section(data: RunData, _palette: Palette) -> Section:
    """Configuration, versions, seeds, machine, time."""
    info = data.info
    basics = [("Run", info.name), ("Status", "complete" if info.finished else info.status), ("Seed", str(info.seed))]
    if info.threads is not None:
        basics.append(("Threads", str(info.threads)))
    blocks: list[Block] = [Facts("Run", basics)]
    if info.machine:
        blocks.append(Facts("Machine", [(readable(name), str(value)) for name, value in info.machine.items()]))
    if info.versions:
        blocks.append(Facts("Versions", list(info.versions.items())))
    if info.seconds:
        total = [("Total", duration(sum(info.seconds.values())))] if "total" not in info.seconds else []
        blocks.append(Facts("Time", [*((readable(n), duration(s)) for n, s in info.seconds.items()), *total]))
    blocks.append(Code("config.yaml with all settings", data.config))
    return Section("run", "How this run was made", "", blocks)


def _curve_panel(data: RunData, palette: Palette, key: str, heading: str, y_title: str, y_format: str) -> Panel | None:
    lines = [
        Line(steps[0].algorithm, run, [float(s.step) for s in rows], [s.values[key] for s in rows])
        for run, steps in data.training.items()
        if (rows := [s for s in steps if key in s.values])
    ]
    if not lines:
        return None
    chart = curve_chart(lines, palette, y_title=y_title, y_format=y_format)
    return Panel(heading, chart.specification(palette, height=_SMALL), f"{heading} during training, per algorithm")


def _stage_panels(
    steps: Sequence[TrainingStep], palette: Palette, keys: Sequence[tuple[str, str]], unit: str
) -> list[Panel]:
    """A panel for each quantity that a stage before reinforcement learning recorded."""
    panels = []
    for key, name in keys:
        rows = [step for step in steps if key in step.values]
        if len(rows) > 1:
            line = Line(None, name, [float(s.step) for s in rows], [s.values[key] for s in rows])
            chart = curve_chart([line], palette, y_title=unit, x_title="Update")
            heading = f"{name[:1].upper()}{name[1:]}"
            panels.append(Panel(heading, chart.specification(palette, height=_SMALL), f"{heading}, {unit}"))
    return panels
