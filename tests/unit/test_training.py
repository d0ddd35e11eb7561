"""The training loops learn, resume from any kill to the same bytes, and stop when training diverges."""

import math
import threading
import time
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pytest
import torch

from csdn.data.checkpoint_store import CheckpointStore, CheckpointTimer, open_state
from csdn.data.sampler import pair_plan, pooled_plan
from csdn.data.views import finish_views
from csdn.model import CSDN, ModelConfig
from csdn.params import EmbeddingParams, PhaseParams, TrainingParams
from csdn.runtime.errors import Diverged
from csdn.training.checkpoint import LocalState
from csdn.training.embedding import PLAIN, build_optimizer, freeze_text, train_embedding, training_step
from csdn.training.log import LossLog, check_tensors
from csdn.training.prompts import IntegrationPhase, PromptPhase, text_accuracy, train_phase

PEOPLE, IMAGES, SIZE = 3, 2, (32, 16)
CONFIG = ModelConfig(
    identities=PEOPLE,
    image_size=SIZE,
    depths=(1, 1, 1, 1),
    width=8,
    pool_heads=2,
    embed_dim=16,
    text_width=16,
    text_heads=2,
    text_layers=2,
)
EMBEDDING = EmbeddingParams(
    epochs=3,
    identities_per_batch=PEOPLE,
    images_per_identity=IMAGES,
    padding=0,
    learning_rate=1e-3,
    head_learning_rate=2e-3,
    weight_decay=5e-4,
    schedule={
        "kind": "cosine",
        "lr_update": "step",
        "warmup_epochs": 0.5,
        "warmup_factor": 0.01,
        "gamma": 0.1,
    },
    losses={"identity": 1.0, "msel": 1.0, "triplet": 0.15, "hse_visible": 0.05, "hse_infrared": 0.1},
)
PHASE = PhaseParams(
    epochs=30,
    batch_size=4,
    weight_decay=1e-4,
    lr_update="step",
    learning_rate=0.05,
    warmup_epochs=1,
    warmup_learning_rate=0.01,
    final_learning_rate=1e-4,
)


@dataclass
class Batch:
    visible_view1: torch.Tensor
    visible_view2: torch.Tensor
    infrared: torch.Tensor
    labels: torch.Tensor
    step: int


class RandomLoader:
    """Batches that are a function of (epoch, step): people differ in their mean colour."""

    steps_per_epoch = 4

    def epoch(self, epoch, start=0):
        for step in range(start, self.steps_per_epoch):
            draws = torch.Generator().manual_seed(1000 * epoch + step)
            labels = torch.arange(PEOPLE).repeat_interleave(IMAGES)
            shape = (len(labels), 3, *SIZE)
            views = [
                torch.randn(shape, generator=draws) + labels[:, None, None, None].float() - 1
                for _ in range(3)
            ]
            yield Batch(*views, labels, step)


def small_model():
    torch.manual_seed(0)
    return CSDN(CONFIG)


class Killed(Exception):
    pass


def always():
    """A timer that is always due."""
    return CheckpointTimer(overhead=math.inf, min_s=0)


class EachStep(LocalState):
    """Each checkpoint is written before the next step, so that a timer that is always due saves each step."""

    def save(self, *what):
        super().save(*what)
        self.wait()


def seldom():
    """A timer that is due once."""
    return CheckpointTimer(min_s=math.inf)


def train(tmp_path, kill_after=None, timer=None, training=PLAIN):
    """Train stage 2; with `kill_after`, a first run dies after that many steps and a second one resumes."""

    def report(done, _total, _values):
        if done == kill_after:
            raise Killed

    def once(report):
        model = small_model()
        with open_state("stage", "k", tmp_path) as store, EachStep(store) as state:
            rows = train_embedding(
                model, torch.eye(PEOPLE, 16), RandomLoader(), EMBEDDING, state, report, timer, training
            )
        return model, rows

    if kill_after:
        with pytest.raises(Killed):
            once(report)
    return once(lambda *_: None)


@pytest.mark.parametrize(
    ("kill_after", "timer"), [(1, always), (2, always), (4, seldom), (5, always), (7, seldom), (12, always)]
)
def test_a_killed_and_resumed_run_gives_the_same_bytes(tmp_path, kill_after, timer):
    model, rows = train(tmp_path / "a")
    again, rows_again = train(tmp_path / "b", kill_after, timer())
    assert rows_again == rows
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name


class BusyStore(CheckpointStore):
    """Writes nothing before the last step is done."""

    def __init__(self, folder):
        super().__init__(folder)
        self.last_step, self.positions = threading.Event(), []

    def save(self, position, tensors):
        assert self.last_step.wait(60), "the training waited for the store"
        self.positions.append((position["epoch"], position["step"], len(position["log"])))
        super().save(position, tensors)


def test_a_slow_store_does_not_delay_the_steps(tmp_path):
    store, model = BusyStore(tmp_path / "k"), small_model()

    def report(done, total, _values):
        if done == total:
            store.last_step.set()

    with LocalState(store) as state:
        rows = train_embedding(
            model, torch.eye(PEOPLE, 16), RandomLoader(), EMBEDDING, state, report, always()
        )
    assert store.positions[0] == (0, 1, 1), "the log of that step, too"
    assert len(store.positions) <= 2, "no further one was begun meanwhile"
    plain, plain_rows = train(tmp_path)
    assert rows == plain_rows
    assert all(torch.equal(plain.state_dict()[n], tensor) for n, tensor in model.state_dict().items())


def test_a_checkpoint_that_cannot_be_written_ends_the_training(tmp_path):
    steps = []

    def report(done, *_):
        (tmp_path / "k").write_text("in the way")
        steps.append(done)
        time.sleep(0.1)  # for the thread

    with pytest.raises(FileExistsError), LocalState(CheckpointStore(tmp_path / "k")) as state:
        train_embedding(
            small_model(), torch.eye(PEOPLE, 16), RandomLoader(), EMBEDDING, state, report, always()
        )
    assert steps == [1, 2]


def test_stage_2_learns_and_does_not_change_the_text_side(tmp_path):
    before = small_model().state_dict()
    model, rows = train(tmp_path)
    assert rows[-1]["total"] < rows[0]["total"]
    changed = {
        n.split(".")[0] for n, tensor in model.state_dict().items() if not torch.equal(tensor, before[n])
    }
    assert changed == {"stems", "layers", "gem", "gem_neck", "attention_pool", "pool_neck"}


def test_every_trained_parameter_is_in_one_group():
    model = small_model()
    groups = build_optimizer(model, EMBEDDING).param_groups
    grouped = [id(parameter) for group in groups for parameter in group["params"]]
    assert len(grouped) == len(set(grouped)) == len(list(model.image_parameters()))
    assert {id(parameter) for parameter in model.head_parameters()} == {id(p) for p in groups[1]["params"]}


def phases(model):
    """Both phases over 4 visible and 3 infrared embeddings of each person, well apart."""
    draws = torch.Generator().manual_seed(0)
    labels = torch.arange(PEOPLE).repeat(7)
    modalities = np.repeat([0, 1], [4 * PEOPLE, 3 * PEOPLE])
    embeddings = 3 * torch.eye(PEOPLE, 16)[labels] + 0.1 * torch.randn(len(labels), 16, generator=draws)
    prompts = PromptPhase(
        model, embeddings, labels, lambda epoch: pair_plan(labels.numpy(), modalities, 4, 0, epoch)
    )
    text = [torch.randn(PEOPLE, 16, generator=draws) for _ in range(2)]
    integration = IntegrationPhase(
        model, embeddings, labels, *text, lambda epoch: pooled_plan(len(labels), 8, 0, epoch), seed=0
    )
    return {"prompts": prompts, "integration": integration}


@pytest.mark.parametrize("name", ["prompts", "integration"])
def test_a_phase_trains_only_its_own_parameters_and_resumes_exactly(tmp_path, name):
    def run(folder, kill_after=None):
        def report(done, _total, _values):
            if done == kill_after:
                raise Killed

        model = small_model()
        with open_state("stage", "k", folder) as state:
            rows = train_phase(phases(model)[name], PHASE, state.part(name), report, always())
        return model, rows

    before = small_model().state_dict()
    model, rows = run(tmp_path / "a")
    with pytest.raises(Killed):
        run(tmp_path / "b", kill_after=11)
    again, rows_again = run(tmp_path / "b")
    assert rows_again == rows
    assert rows[-1]["loss"] < 0.9 * rows[0]["loss"]
    for key, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[key], tensor), key
        assert key.startswith(name) or torch.equal(tensor, before[key]), f"{key} was trained in {name}"


def test_texts_and_their_accuracy_are_those_of_one_block(monkeypatch):
    model, phase = small_model(), phases(small_model())["prompts"]
    modality = np.repeat([0, 1], [4 * PEOPLE, 3 * PEOPLE])

    def found():
        figures = text_accuracy(model, phase.embeddings, phase.labels, modality)
        with torch.no_grad():
            return figures, model.fused_text_features()

    figures, fused = found()
    assert len(set(figures.values())) > 1
    monkeypatch.setattr("csdn.model.network.TEXT_BLOCK", 2)
    monkeypatch.setattr("csdn.training.prompts.BLOCK_PRODUCTS", 4 * PEOPLE)
    blocks, fused_by_blocks = found()
    assert blocks == figures
    assert torch.allclose(fused_by_blocks, fused, rtol=1e-6, atol=1e-6)


def test_finished_phases_are_not_trained_again(tmp_path):
    def run():
        with open_state("stage", "k", tmp_path) as state:
            train_phase(phases(small_model())["prompts"], PHASE, state.part("prompts"), calls.append_all)
            raise Killed  # in the phase that follows

    calls = _Calls()
    with pytest.raises(Killed):
        run()
    first = calls.count
    with pytest.raises(Killed):
        run()
    assert first > 0 and calls.count == first


class _Calls:
    count = 0

    def append_all(self, *_):
        self.count += 1


@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 0), ("tf32", 0), ("bf16", 0.05)])
def test_lower_precision_gives_nearly_the_losses_of_float32(precision, tolerance):
    batch = next(RandomLoader().epoch(0))
    found = {}
    for name in ("float32", precision):
        model = small_model().train()
        optimizer = build_optimizer(model, EMBEDDING)
        found[name] = training_step(model, optimizer, batch, torch.eye(PEOPLE, 16), EMBEDDING, name)
        assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    exact, lower = (torch.stack(list(found[name].values())) for name in ("float32", precision))
    assert lower.dtype == torch.float32
    assert torch.allclose(lower, exact, rtol=tolerance, atol=0)
    assert torch.equal(lower, exact) == (precision != "bf16")


class SpoiltLoader(RandomLoader):
    """A value of one batch is not finite."""

    def __init__(self, epoch, step, value):
        self.at, self.value = (epoch, step), value

    def epoch(self, epoch, start=0):
        for batch in super().epoch(epoch, start):
            if (epoch, batch.step) == self.at:
                batch.infrared[0, 0, 0, 0] = self.value
            yield batch


def diverge(folder, loader=None, settings=EMBEDDING, report=lambda *_: None):
    """(the error, the last checkpoint's step over all epochs, whether all of it is finite) of a stage 2."""
    with (
        pytest.raises(Diverged) as error,
        open_state("stage", "k", folder) as store,
        EachStep(store) as state,
    ):
        train_embedding(
            small_model(), torch.eye(PEOPLE, 16), loader or RandomLoader(), settings, state, report, always()
        )
    with pytest.raises(Killed), open_state("stage", "k", folder) as state:
        position, tensors = state.load() or ({"epoch": 0, "step": 0}, {})
        raise Killed
    done = position["epoch"] * RandomLoader.steps_per_epoch + position["step"]
    return str(error.value), done, all(tensor.isfinite().all() for tensor in tensors.values())


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize(("epoch", "step"), [(0, 0), (1, 2), (2, 3)])
def test_a_loss_that_is_not_finite_ends_stage_2_at_its_step(tmp_path, epoch, step, value, fault):
    said, saved, finite = diverge(tmp_path, SpoiltLoader(epoch, step, value))
    bad = 4 * epoch + step + 1
    assert f"epoch {epoch + 1}, step {bad}, at learning rate " in said
    assert "total = nan" in said and "lower learning_rate" in said and "training.precision" in said
    assert (saved, finite) == (bad - 1, True)
    if (epoch, step) == (1, 2):
        fault("training", "a loss becomes NaN in the middle of stage 2", said)


def test_a_learning_rate_of_1000_ends_stage_2_and_a_second_run_too(tmp_path):
    """The second run continues from the checkpoint of the first and raises the same error."""
    settings = EMBEDDING.model_copy(update={"learning_rate": 1000.0, "head_learning_rate": 1000.0})
    first = diverge(tmp_path, settings=settings)
    assert "epoch 1, step 2, at learning rate 505" in first[0]
    assert first[1:] == (1, True)
    steps = []
    assert diverge(tmp_path, settings=settings, report=lambda done, *_: steps.append(done)) == first
    assert set(steps) <= {2}, "step 1 is not made again"


@pytest.mark.parametrize("saves", [True, False])
def test_weights_that_are_not_finite_are_never_saved_even_if_losses_are_finite(tmp_path, monkeypatch, saves):
    """Neither in a checkpoint nor, where none was due, as the model of the last step."""
    from csdn.training import embedding

    real = embedding.training_step

    def step_that_spoils(model, optimizer, batch, *rest):
        losses = real(model, optimizer, batch, *rest)
        if batch.step == 3:
            with torch.no_grad():
                next(iter(model.stems.parameters())).view(-1)[0] = math.inf
        return losses

    monkeypatch.setattr(embedding, "training_step", step_that_spoils)
    if not saves:
        monkeypatch.setattr(embedding, "checkpoint_due", lambda *_: False)
    said, saved, finite = diverge(tmp_path, settings=EMBEDDING.model_copy(update={"epochs": 1}))
    assert "epoch 1, step 4, " in said and "model.stems." in said
    assert (saved, finite) == (3 if saves else 0, True)


def test_the_error_names_the_first_bad_step_of_a_row():
    log = LossLog(60, "lower it")  # a row each three steps
    for step, value in ((1, 1.0), (2, math.inf)):
        assert not log.add({"loss": torch.tensor(value)}, 0.5, epoch=3, step=step, phase="integration")
    with pytest.raises(
        Diverged, match=r"phase integration, epoch 4, step 2, at learning rate 0\.5: .*loss = inf"
    ):
        log.add({"loss": torch.tensor(math.nan)}, 0.4, epoch=3, step=3, phase="integration")
    assert log.rows == []


def test_a_value_that_is_not_finite_in_one_worker_ends_all_workers(monkeypatch):
    """Every worker uses the reduced values: a worker that continued alone would wait for the others."""
    means = {1: 1.0, 2: math.nan, 3: 1.0}
    monkeypatch.setattr(
        "csdn.training.log.mean_over_ranks",
        lambda losses: {name: torch.tensor(means.get(int(loss), math.nan)) for name, loss in losses.items()},
    )
    log = LossLog(60, "lower it")
    log.add({"loss": torch.tensor(1.0)}, 0.5, epoch=0, step=1)
    log.add({"loss": torch.tensor(2.0)}, 0.5, epoch=0, step=2)
    with pytest.raises(Diverged, match="step 2, "):
        log.add({"loss": torch.tensor(3.0)}, 0.5, epoch=0, step=3)
    monkeypatch.setattr("csdn.training.log.all_reduce_any", lambda own: True)
    with pytest.raises(Diverged, match="weights of another worker"):
        check_tensors({"a": torch.ones(1)}, {"epoch": 0, "step": 1, "learning_rate": 1.0}, "lower it")


@pytest.mark.parametrize("name", ["prompts", "integration"])
def test_a_phase_of_stage_1_ends_at_its_first_bad_step(tmp_path, name):
    phase = phases(small_model())[name]
    phase.embeddings[5] = math.nan
    rows = (np.concatenate(row) if name == "prompts" else row for row in phase.plan(0))
    bad = 1 + next(step for step, row in enumerate(rows) if 5 in row)
    with pytest.raises(Diverged) as error, open_state("stage", "k", tmp_path) as state:
        train_phase(phase, PHASE, state.part(name), lambda *_: None, always())
    assert f"phase {name}, epoch 1, step {bad}, " in str(error.value)
    assert f"lower prompts.{name}.learning_rate" in str(error.value)


def test_a_high_learning_rate_ends_a_phase_of_stage_1(tmp_path):
    settings = PHASE.model_copy(update={"learning_rate": 1e38, "warmup_learning_rate": 1e38})
    with pytest.raises(Diverged, match="at learning rate"), open_state("stage", "k", tmp_path) as state:
        phase = phases(small_model())["integration"]
        train_phase(phase, settings, state, lambda *_: None, always())


def test_empty_and_integer_tensors_count_as_finite():
    row = {"epoch": 0, "step": 1, "learning_rate": 1.0}
    check_tensors({"empty": torch.empty(0), "count": torch.tensor(3)}, row, "lower it")
    with pytest.raises(Diverged, match="c, d, e and 1 more"):
        check_tensors(
            {"a": torch.ones(2)} | {n: torch.tensor([1, -math.inf]) for n in "cdef"}, row, "lower it"
        )


def test_a_step_never_waits_for_the_device():
    """Tensors of the device "meta" have no values: reading one, which would wait for a GPU, raises."""
    device = torch.device("meta")
    model = small_model().to(device).train()
    freeze_text(model)
    optimizer = torch.optim.SGD(model.image_parameters(), lr=0.1)  # torch has no fused Adam for this device
    batch = next(RandomLoader().epoch(0))
    batch = replace(batch, **{name: getattr(batch, name).to(device) for name in list(vars(batch))[:-1]})
    text_table = torch.eye(PEOPLE, 16, device=device)
    losses = training_step(model, optimizer, batch, text_table, EMBEDDING)
    log = LossLog(100, "")
    assert not log.add(losses, 0.1, epoch=0, step=1)
    with pytest.raises(RuntimeError, match="meta"):
        log.add(losses, 0.1, due=True, epoch=0, step=2)


def test_views_are_finished_without_waiting_for_the_device():
    shapes = (3, 4, 3, 32, 16), (3, 4, 4), (3, 4)
    pixels, boxes, channels = (torch.zeros(shape, dtype=torch.int64, device="meta") for shape in shapes)
    for view in finish_views(pixels.to(torch.uint8), boxes, channels, "imagenet"):
        assert view.shape == pixels.shape[1:] and view.is_contiguous(memory_format=torch.channels_last)


def test_a_compiled_run_resumes_to_the_same_bytes(tmp_path, monkeypatch):
    """Traced as for the compiler, and run as it is: compiling takes a minute."""
    traced = partial(torch.compile, backend="eager")
    monkeypatch.setattr("csdn.training.embedding.compiled", traced)
    compiled = TrainingParams(precision="float32", deterministic=True, compile=True)
    plain, rows = train(tmp_path / "plain")
    found, compiled_rows = train(tmp_path / "compiled", 5, always(), compiled)
    assert compiled_rows == rows
    for name, tensor in plain.state_dict().items():
        assert torch.equal(found.state_dict()[name], tensor), name
