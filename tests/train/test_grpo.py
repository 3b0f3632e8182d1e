"""GRPO after SFT: one adapter through both, looked at from all sides, stopped by the clock and taken up again."""

from __future__ import annotations

import os
import shutil
import time
from dataclasses import replace
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec
from tiny_gemma import equal, forward
from tiny_run import CONFIG, ROWS, Clock, StopAfter, new_policy, short_tokenizer
from tunix.rl.utils import is_sharing_backbone

from reasonkit.data.rows import GRPO_COLUMNS
from reasonkit.models import cache as kv_cache
from reasonkit.models import checkpoints
from reasonkit.models.checkpoints import restore_lora
from reasonkit.models.lora import fingerprint
from reasonkit.models.mesh import make_mesh
from reasonkit.rewards.mix import RewardMix
from reasonkit.rewards.monitors import probe, suspicious, watcher
from reasonkit.session.manifest import FAILED
from reasonkit.session.run_log import NullLog, RunLog
from reasonkit.session.time_budget import TimeBudget
from reasonkit.settings import GrpoSettings, SftSettings, StageSettings
from reasonkit.text.tags import TAGS
from reasonkit.train import grpo as stage
from reasonkit.train import tunix_compat
from reasonkit.train.grpo import grpo
from reasonkit.train.rollout import generator
from reasonkit.train.sft import sft
from recipes.rewards.controls import constant
from recipes.rewards.rlpr import mean_probability
from recipes.stages.curriculum import Curriculum
from tools.flax import init_random

pytestmark = pytest.mark.usefixtures("compiled")

G = 2
# Two passes of four prompts a step; a random model stops now and then within 16 tokens.
SETTINGS = GrpoSettings(steps=4, prompts_per_step=8, num_generations=G, max_prompt_length=32, max_new_tokens=16,
                        learning_rate=2e-2, micro_prompts=4, save_every=50)


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(jax.devices()[:4], 4, 1)


@pytest.fixture(scope="module")
def base(mesh):
    return init_random(CONFIG, mesh)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return short_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def warm(base, mesh, tokenizer, tmp_path_factory):
    """What SFT leaves: two steps and the adapter handed over as the third."""
    folder = tmp_path_factory.mktemp("warm")
    policy, log = new_policy(base, mesh, tokenizer), RunLog(folder / "log.jsonl")
    settings = SftSettings(steps=2, batch_size=8, max_length=48, learning_rate=2e-2, save_every=1)
    result = sft(policy, mesh, ROWS, settings, TimeBudget(1, 0), log, folder / "checkpoints", seed=0)
    return SimpleNamespace(folder=folder / "checkpoints", step=result.checkpoint_step, log=log,
                           fingerprint=fingerprint(policy.model))


@pytest.fixture
def start(warm, base, mesh, tokenizer, tmp_path):
    """As a notebook starts: the adapter of the last stage in memory, its checkpoints in the folder."""
    return begin(warm, base, mesh, tokenizer, tmp_path / "checkpoints")


def begin(warm, base, mesh, tokenizer, folder):
    if not folder.exists():
        shutil.copytree(warm.folder, folder)
    policy = new_policy(base, mesh, tokenizer, seed=9)
    restore_lora(policy.model, warm.folder, warm.step)
    return policy, folder


def length(prompts, completions, **columns):
    return [len(text) / 10 for text in completions]


def shy(prompts, completions, **columns):
    return [None if len(text) % 2 else 1.0 for text in completions]


def odd(prompts, completions, **columns):
    return [float(len(text) % 2) for text in completions]


def adapter(policy):
    return nnx.state(policy.model, nnx.LoRAParam)


def steps_in(checkpoints):
    return sorted(int(name) for name in os.listdir(checkpoints / "actor"))


def counts(optimizer):
    """The optimiser's step counters: Adam's and the schedule's."""
    flat = nnx.to_flat_state(nnx.state(optimizer, nnx.optimizer.OptState))
    return {int(leaf[...]) for path, leaf in flat if path[-1] == "count"}


class Watch:
    """What Tunix was given and what it made of it, run after run."""

    def __init__(self, patch):
        self.rewards, self.calls, self.examples, self.caches, self.clusters = [], [], [], [], []
        make, Learner = tunix_compat.grpo_cluster, stage.Learner
        init_cache, watch = kv_cache._init_cache, self

        class Seen(Learner):
            def __init__(self, cluster, config, reward):
                super().__init__(cluster, config, reward)
                watch.rewards.append(self.reward_manager.reward_fns)

            def _generate_and_compute_advantage(self, batch, mode):
                watch.examples.append(super()._generate_and_compute_advantage(batch, mode))
                return watch.examples[-1]

        def cluster(*args):
            made = make(*args)
            assert made._anchor_policy_state is None, "a copy of the policy in host memory, for each chip"
            actor, optimizer = made.actor_trainer.model, made.actor_trainer.optimizer
            reference = made.inference_worker.get_model("reference") if args[1] else None
            watch.clusters.append(SimpleNamespace(
                reference=reference, anchor=reference and fingerprint(reference), actor=actor,
                adapter=fingerprint(actor), counts=counts(optimizer)))
            return made

        def cache(*args):
            made = init_cache(*args)
            watch.caches += [leaf.sharding for leaf in jax.tree.leaves(made) if leaf.ndim == 4]
            return made

        patch.setattr(stage, "Learner", Seen)
        patch.setattr(tunix_compat, "grpo_cluster", cluster)
        patch.setattr(kv_cache, "_init_cache", cache)

    def reward(self, log):
        composed = RewardMix([(length, 1.0), (shy, 0.5)], log, max_no_signal=1.0)

        def reward(prompts, completions, num_generations, **columns):
            self.calls.append({"prompts": prompts, "completions": completions, **columns})
            return composed(prompts, completions, num_generations, **columns)

        return reward


@pytest.fixture
def watch(monkeypatch):
    return Watch(monkeypatch)


@pytest.fixture(scope="module")
def whole(warm, base, mesh, tokenizer, tmp_path_factory):
    """A run without interruption."""
    policy, checkpoints = begin(warm, base, mesh, tokenizer, tmp_path_factory.mktemp("whole") / "checkpoints")
    log, steps, before = RunLog(checkpoints.parent / "log.jsonl"), [], jax.tree.map(np.asarray, nnx.state(base))
    with pytest.MonkeyPatch.context() as patch:
        watch = Watch(patch)
        reward = watch.reward(log)
        result = grpo(policy, mesh, ROWS, reward, SETTINGS, TimeBudget(1, 0), log, checkpoints, seed=3,
                      start_step=warm.step, on_step=lambda: steps.append(1))
    assert equal(before, nnx.state(base)), "the base moved"
    return SimpleNamespace(policy=policy, checkpoints=checkpoints, log=log, result=result, watch=watch, reward=reward,
                           on_steps=len(steps))


def test_steps_go_on_where_sft_ended(whole, warm):
    result, last = whole.result, warm.step + SETTINGS.steps
    assert (result.steps, result.checkpoint_step, result.stopped) == (4, last, "data")
    assert warm.step == 3 and steps_in(whole.checkpoints)[-1] == last, "the judges would load the adapter of SFT"
    assert (whole.checkpoints / f"actor/{last}/optimizer_state").is_dir()


def test_the_optimiser_starts_fresh(whole):
    assert [cluster.counts for cluster in whole.watch.clusters] == [{0}]


def test_the_reference_is_the_adapter_as_it_was_handed_over(whole, warm):
    (cluster,) = whole.watch.clusters
    assert cluster.anchor == cluster.adapter == warm.fingerprint
    assert fingerprint(cluster.reference) == warm.fingerprint, "the reference moved"
    assert fingerprint(cluster.actor) == fingerprint(whole.policy.model) != warm.fingerprint
    assert is_sharing_backbone(cluster.reference, cluster.actor)
    assert is_sharing_backbone(cluster.actor, whole.policy.model)


def test_tunix_gets_one_reward_function_and_every_column(whole):
    """It would sum a list with what is missing counted as zero; the composed one leaves nothing missing."""
    assert whole.watch.rewards == [[whole.reward]] and len(whole.watch.calls) == SETTINGS.steps
    by_id = {row["id"]: row for row in ROWS}
    for call, example in zip(whole.watch.calls, whole.watch.examples, strict=True):
        assert {len(values) for name, values in call.items() if name != "mode"} == {8 * G}
        for n, name in enumerate(call["id"]):
            assert call["prompts"][n] == TAGS.template.format(question=by_id[name]["question"])
            assert {column: str(call[column][n]) for column in GRPO_COLUMNS} == {
                column: by_id[name][column] for column in GRPO_COLUMNS}
            assert name == call["id"][n // G * G], "a group has two prompts"
        assert np.isfinite(example.advantages).all() and np.abs(example.advantages).max() > 0
    assert any(row["parts"]["shy"]["no_signal"] for row in whole.log.read("reward")), "no reward was missing"


def test_the_stop_token_is_trained(whole, tokenizer):
    stops = 0
    for example in whole.watch.examples:
        ids_BL, mask_BL = np.asarray(example.completion_ids), np.asarray(example.completion_mask)
        drawn_BL = np.isin(ids_BL, tokenizer.stop_ids)
        assert mask_BL[drawn_BL].all()
        assert (drawn_BL.sum(-1) <= 1).all()
        stops += int(drawn_BL.sum())
        for row_L, drawn_L in zip(mask_BL, drawn_BL, strict=True):
            if drawn_L.any():
                assert not row_L[int(drawn_L.argmax()) + 1:].any(), "something after the stop token is trained"
    assert stops, "no reply stopped: the test shows nothing"


def test_the_rollout_has_its_cache_on_all_chips_and_new_samples_each_step(whole, mesh):
    assert len(whole.watch.caches) == 2 * CONFIG.num_layers * SETTINGS.steps
    assert all(sharding.mesh == mesh and sharding.spec == PartitionSpec("fsdp", None, "tp", None)
               for sharding in whole.watch.caches)
    assert len({str(call["completions"]) for call in whole.watch.calls}) == SETTINGS.steps


def test_each_step_is_logged_once_and_the_log_of_sft_is_left_alone(whole, warm, tokenizer):
    rows = whole.log.read("grpo_step")
    assert [row["step"] for row in rows] == [1, 2, 3, 4] and whole.on_steps == 4
    assert abs(rows[0]["kl"]) < 1e-5 < rows[-1]["kl"], "the first step starts at the reference"
    for row, example in zip(rows, whole.watch.examples, strict=True):  # a random model also draws padding
        drawn_BL = np.isin(example.completion_ids, tokenizer.stop_ids)
        assert row["length"] == np.where(drawn_BL.any(-1), drawn_BL.argmax(-1) + 1, SETTINGS.max_new_tokens).mean()
    assert [(row["event"], row["step"]) for row in warm.log.read()] == [("start", 0), ("sft_step", 1), ("sft_step", 2)]


def test_the_train_step_and_the_reference_are_compiled_once(whole):
    """All passes have one shape. The rollout may meet another number of rows that are still going in a later step."""
    compiled = [row.get("compiled", {}) for row in whole.log.read("grpo_step")]
    for name in ("train_step", "completion_logprobs"):
        assert [any(name in other for other in made) for made in compiled][2:] == [False] * (SETTINGS.steps - 2)
        assert any(name in other for made in compiled[:2] for other in made)


@pytest.mark.parametrize("micro_prompts", [SETTINGS.micro_prompts, 2])
def test_a_run_that_the_clock_stopped_ends_as_one_without_a_break(whole, warm, start, watch, base, mesh, tokenizer,
                                                                  micro_prompts):
    """Also where it goes on with passes of other sizes, because its own did not fit in memory."""
    policy, checkpoints = start
    log, clock = RunLog(checkpoints.parent / "log.jsonl"), StopAfter(1)
    reward = watch.reward(log)
    first = grpo(policy, mesh, ROWS, reward, SETTINGS, clock.budget, log, checkpoints, seed=3, start_step=warm.step,
                 on_step=clock.on_step)
    assert first.stopped == "time" and 0 < first.steps < 4
    assert steps_in(checkpoints)[-1] == first.checkpoint_step == warm.step + first.steps

    again, _ = begin(warm, base, mesh, tokenizer, checkpoints)
    settings = replace(SETTINGS, micro_prompts=micro_prompts)
    second = grpo(again, mesh, ROWS, reward, settings, TimeBudget(1, 0), log, checkpoints, seed=3, start_step=warm.step)
    assert (second.stopped, second.checkpoint_step) == ("data", warm.step + 4)
    assert [cluster.anchor for cluster in watch.clusters] == [warm.fingerprint] * 2, "the reference is another one"
    assert [cluster.counts for cluster in watch.clusters] == [{0}, {first.steps}]
    assert [call["completions"] for call in watch.calls] == [call["completions"] for call in whole.watch.calls]
    assert [row["step"] for row in log.read("grpo_step")] == [1, 2, 3, 4]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7),
                 adapter(again), adapter(whole.policy))


def test_a_stage_goes_on_where_the_clock_has_time_for_more(start, warm, mesh, monkeypatch):
    policy, checkpoints = start
    stretches, stretch = [], tunix_compat.scale_schedule
    monkeypatch.setattr(tunix_compat, "scale_schedule", lambda *args: (stretches.append(args[1]), stretch(*args)))
    settings, log = replace(SETTINGS, steps=2, most_steps=4), RunLog(checkpoints.parent / "log.jsonl")
    result = grpo(policy, mesh, ROWS, length, settings, TimeBudget(1, 0), log, checkpoints, 0, warm.step)
    assert (result.steps, result.stopped) == (4, "data") and steps_in(checkpoints)[-1] == warm.step + 4
    assert stretches == [1.0, 0.5], "the schedule of two steps, then over four"


def test_a_pass_may_be_the_whole_step_and_the_reference_left_out(start, warm, watch, mesh):
    policy, checkpoints = start
    log = RunLog(checkpoints.parent / "log.jsonl")
    settings = replace(SETTINGS, steps=2, micro_prompts=0, beta=0.0)
    result = grpo(policy, mesh, ROWS, watch.reward(log), settings, TimeBudget(1, 0), log, checkpoints, seed=3,
                  start_step=warm.step)
    assert (result.steps, result.checkpoint_step) == (2, warm.step + 2)
    assert fingerprint(policy.model) != warm.fingerprint and watch.clusters[0].reference is None
    assert "kl" not in log.last("grpo_step")


def train(warm, base, mesh, tokenizer, folder, parts, **changes):
    """A policy trained by these parts of a reward, and the log."""
    policy, checkpoints = begin(warm, base, mesh, tokenizer, folder / "checkpoints")
    log = RunLog(folder / "log.jsonl")
    grpo(policy, mesh, ROWS, RewardMix(parts, log, max_no_signal=1.0), replace(SETTINGS, **changes), TimeBudget(1, 0),
         log, checkpoints, seed=3, start_step=warm.step)
    return policy, log


def solved(prompts, completions, id, **columns):
    """Some problems always, the others never: every group is all right or all wrong."""
    return [float(int(name[0]) % 2) for name in id]


def silent(prompts, completions, **columns):
    """A judge that gives every reply the same, or nothing."""
    return [None if len(text) % 2 else 0.7 for text in completions]


@pytest.mark.parametrize("penalty", [{"beta": 0.0}, {"beta": 0.02}, {"beta": 0.02, "kl_loss_mode": "mse_kl"}], ids=str)
def test_rewards_that_are_equal_within_each_group_teach_nothing(penalty, warm, base, mesh, tokenizer, tmp_path):
    parts = [(constant, 1.0), (solved, 1.0), (silent, 0.3)]
    policy, log = train(warm, base, mesh, tokenizer, tmp_path, parts, **penalty)
    assert {row["flat_groups"] for row in log.read("reward")} == {1.0}
    assert all(0 < row["parts"]["solved"]["mean"] < 1 and 0 < row["parts"]["silent"]["no_signal"] < 1
               for row in log.read("reward")), "no group was right, or none wrong, or the judge said nothing or all"
    assert fingerprint(policy.model) == warm.fingerprint, "bit for bit"


def test_a_large_penalty_holds_the_policy_to_its_reference(warm, base, mesh, tokenizer, tmp_path):
    """By the exact KL over the vocabulary, at each place of the same replies."""
    def kl(policy):
        rows_BT = jax.numpy.asarray(np.random.default_rng(0).integers(4, 300, (8, 24)))
        p, q = (jax.nn.log_softmax(forward(model, rows_BT)) for model in (policy.model, anchor.model))
        return float((jax.numpy.exp(p) * (p - q)).sum(-1).mean())

    anchor, _ = begin(warm, base, mesh, tokenizer, tmp_path / "anchor")
    free, held = (kl(train(warm, base, mesh, tokenizer, tmp_path / str(beta), [(length, 1.0)], steps=48,
                         learning_rate=5e-3, beta=beta)[0])
                  for beta in (0.0, 100.0))
    assert 0 <= held <= free / 10


def test_truncated_completions_are_counted_and_may_be_left_out(start, warm, watch, mesh, tokenizer):
    policy, checkpoints = start
    log = RunLog(checkpoints.parent / "log.jsonl")
    grpo(policy, mesh, ROWS, watch.reward(log), replace(SETTINGS, steps=2, beta=0.0, mask_truncated=True),
         TimeBudget(1, 0), log, checkpoints, seed=3, start_step=warm.step)
    for example, row in zip(watch.examples, log.read("grpo_step"), strict=True):
        ended_B = np.isin(example.completion_ids, tokenizer.stop_ids).any(-1)
        assert row["truncated"] == 1 - ended_B.mean() and 0 < ended_B.mean() < 1
        mask_BL = np.asarray(example.completion_mask)
        assert mask_BL[ended_B].any(-1).all() and not mask_BL[~ended_B].any()


def test_a_reward_that_asks_the_policy_sees_the_weights_of_the_moment(start, warm, mesh):
    """From Tunix's own thread, between the steps that replace them."""
    policy, checkpoints = start
    probability, seen = mean_probability(policy, mesh, 64, 4), []

    def reward(prompts, completions, **columns):
        seen.append(float(probability([TAGS.prompt("1 plus 2")], ["3"])[0]))
        return length(prompts, completions)

    grpo(policy, mesh, ROWS, reward, replace(SETTINGS, steps=3, beta=0.0), TimeBudget(1, 0), NullLog(), checkpoints,
         seed=3, start_step=warm.step)
    assert len(set(seen)) == 3 and all(0 < value < 1 for value in seen)


def test_a_killed_run_practises_the_same_problems_and_is_probed(warm, watch, base, mesh, tokenizer, tmp_path):
    """With a curriculum: five steps at once, and five of which the last is killed after a save two steps before."""
    settings = replace(SETTINGS, steps=5, save_every=2, beta=0.0)

    def train(folder, on_reward=lambda: None):
        policy, checkpoints = begin(warm, base, mesh, tokenizer, folder / "checkpoints")
        log = RunLog(folder / "log.jsonl")
        curriculum, calls = Curriculum(log), []
        reward = RewardMix([(length, 1.0), (curriculum.watch(odd), 0.0), (suspicious(log), 0.0)], log)
        generate = generator(policy.model, tokenizer, mesh, max_prompt_length=32, max_new_tokens=16, batch_size=8)
        asked = []

        def greedy(prompts):
            asked.append(fingerprint(policy.model))
            return generate(prompts)

        def noted(prompts, completions, num_generations, **columns):
            on_reward()
            calls.append(([str(name) for name in columns["id"]], completions))
            return reward(prompts, completions, num_generations, **columns)

        ask, look = probe(greedy, list(ROWS)[:8], 8, log, every=2), watcher(log)
        result = grpo(policy, mesh, ROWS, noted, settings, TimeBudget(1, 0), log, checkpoints, seed=3,
                      start_step=warm.step, on_step=lambda: (ask(), look()), curriculum=curriculum)
        return SimpleNamespace(policy=policy, log=log, calls=calls, asked=asked, result=result)

    class Killed(Exception):
        pass

    left = iter(range(4, -1, -1))

    def kill():
        if not next(left):
            deadline = time.monotonic() + 60  # the save runs in the background
            while checkpoints.latest_step(tmp_path / "killed/checkpoints") < 6 and time.monotonic() < deadline:
                time.sleep(0.1)
            raise Killed

    one = train(tmp_path / "one")
    with pytest.raises(Killed):
        train(tmp_path / "killed", kill)
    with (tmp_path / "killed/log.jsonl").open("ab") as file:
        file.write(b'{"event": "pass_rates", "step": 5, "rat')
    rest = train(tmp_path / "killed")
    assert rest.result.steps == one.result.steps == 5 and len(rest.calls) == 2
    assert rest.calls == one.calls[3:], "problems and samples"
    rates = [[list(row["rates"].items()) for row in part.log.read("pass_rates")] for part in (one, rest)]
    assert rates[0] == rates[1] and len(rest.log.read("reward")) == 5, "step 4 was scored twice, and counts once"
    assert [row["step"] for row in rest.log.read("grpo_step")] == [1, 2, 3, 4, 5]
    assert len({str(name) for name, _ in one.calls}) == 5 and len(one.calls[0][0]) == 8 * G
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7),
                 adapter(rest.policy), adapter(one.policy))
    assert [row["step"] for row in one.log.read("probe")] == [2, 4]
    before, after = one.asked
    assert warm.fingerprint != before != after, "the probe sees the weights as they are trained"


@pytest.mark.parametrize(("changes", "start_step", "message"), [
    ({"micro_prompts": 1}, 3, "GRPO micro_prompts x num_generations = 2 rows cannot be split over fsdp=4 chips"),
    ({"micro_prompts": 6}, 3, "grpo_micro_prompts=6: each of these must be a multiple of the next"),
    ({"temperature": 0.5}, 5, "is at step 3, and this stage goes from step 5 to 9: give it the step that was handed"),
    ({"steps": 1}, 1, "is at step 3, and this stage goes from step 1 to 2"),
])
def test_settings_that_cannot_be_trained_are_named(start, mesh, changes, start_step, message):
    policy, checkpoints = start
    with pytest.raises(ValueError, match=message):
        grpo(policy, mesh, ROWS, length, replace(SETTINGS, **{"micro_prompts": 0, **changes}), TimeBudget(1, 0),
             NullLog(), checkpoints, seed=0, start_step=start_step)
    assert steps_in(checkpoints)[-1] == 3


@pytest.mark.parametrize(("changes", "message"), [
    ({"prompts_per_step": 32}, "30 rows are fewer than one batch of 32: add rows or lower the batch size"),
    ({"max_prompt_length": 20}, "0 rows are fewer than one batch of 8")])
def test_too_few_rows_end_the_stage_and_not_the_run(start, mesh, warm, capsys, changes, message):
    """SFT has trained for hours, and the evaluation is still to come."""
    policy, checkpoints = start
    result = grpo(policy, mesh, ROWS, length, replace(SETTINGS, **{"micro_prompts": 0, **changes}), TimeBudget(1, 0),
                  NullLog(), checkpoints, seed=0, start_step=3)
    assert (result.steps, result.checkpoint_step) == (0, 3) and fingerprint(policy.model) == warm.fingerprint
    assert result.stopped.startswith(f"{FAILED}TooFewRows: {message}")
    assert "the run goes on with the adapter it began with" in capsys.readouterr().err


def test_a_session_without_time_keeps_what_the_stage_began_with(start, mesh, warm, capsys):
    """The evaluation is still to come, and a notebook that stops here has none."""
    policy, checkpoints = start
    clock = Clock()
    budget = TimeBudget(1, 20, clock=clock)
    clock.now = 45 * 60.0
    result = grpo(policy, mesh, ROWS, length, SETTINGS, budget, NullLog(), checkpoints, seed=0, start_step=warm.step)
    assert (result.steps, result.checkpoint_step) == (0, warm.step)
    assert result.stopped == "time", "the next session trains it"
    assert ("grpo has no time left, and the run goes on with the adapter it began with. BudgetError: stage 'grpo' "
            "would begin with 0 minutes: 45.0 of 60") in capsys.readouterr().err
    assert fingerprint(policy.model) == warm.fingerprint


# _tunix


def test_batches_that_are_skipped_cost_no_time():
    guarded = []

    def guard(rest):
        for batch in rest:
            guarded.append(batch)
            yield batch

    assert list(tunix_compat.remaining_steps(iter("abcdefg"), 2, 3, guard)) == list("abcde") and guarded == list("cde")


def test_the_latest_step_is_the_highest_number(tmp_path):
    assert checkpoints.latest_step(tmp_path) == 0
    for name in ("9", "10", "11.orbax-checkpoint-tmp", "x"):
        (tmp_path / "actor" / name).mkdir(parents=True)
    assert checkpoints.latest_step(tmp_path) == 10


def test_only_a_stages_own_copy_is_taken_back(tmp_path):
    """Never a step that carries training on, nor one that was handed to this stage."""
    def leave(*steps):
        shutil.rmtree(tmp_path / "actor", ignore_errors=True)
        for step, trained in steps:
            (tmp_path / "actor" / str(step) / ("optimizer_state" if trained else "model_params")).mkdir(parents=True)

    for start_step, before, after in (
        (0, [(4, True), (5, False)], [4]), (0, [(4, True), (5, True)], [4, 5]), (0, [(5, False)], [5]),
        (0, [(3, True), (5, False)], [3, 5]), (5, [(4, True), (5, False)], [4, 5]),
    ):
        leave(*before)
        checkpoints.undo_handover(tmp_path, start_step)
        assert steps_in(tmp_path) == after
    checkpoints.undo_handover(tmp_path / "empty", 0)


def test_the_learning_rate_warms_up_and_decays():
    """Steps 0, at the end of the warm-up and at the last, read off the updates of a constant gradient."""
    optimizer, weights = tunix_compat.adamw(StageSettings(steps=20, learning_rate=0.1, warmup=0.25)), np.float32(1.0)
    state, sizes = optimizer.init(weights), []
    for _ in range(21):
        update, state = optimizer.update(np.float32(0.5), state, weights)
        sizes.append(-float(update))
    np.testing.assert_allclose([sizes[0], sizes[5], sizes[20]], [0.1 / 6, 0.1, 0.01], rtol=1e-3)
