"""Losses, gradients and Adam steps equal the published ones (golden vectors: 1e-5, gradient norms 1e-4)."""

import numpy as np
import pytest
import torch
from golden_vectors import (
    assert_close,
    assert_near,
    assert_within,
    expected,
    named_buffers,
    named_parameters,
    network,
    sampled,
    tensors,
)

from csdn.losses import embedding_losses, msel_loss, wrt_loss
from csdn.training.prompts import IntegrationPhase, PromptPhase

INPUTS = tensors("inputs")
PUBLISHED_TERMS = {
    "id_gem": "pid_loss",
    "id_pool": "pid_loss_proj",
    "triplet_gem": "triplet_loss",
    "triplet_pool": "triplet_loss_proj",
    "msel_gem": "msel_loss",
    "msel_pool": "msel_loss_proj",
    "hse_visible": "rgb_i2t_pid_loss",
    "hse_infrared": "ir_i2t_pid_loss",
}


def prompt_phase(model):
    embeddings = torch.cat([INPUTS["stage1_img_rgb"], INPUTS["stage1_img_ir"]])
    phase = PromptPhase(model, embeddings, INPUTS["stage1_labels"].repeat(2), plan=lambda epoch: [])
    return phase, (np.arange(8), np.arange(8, 16))


def integration_phase(model):
    texts = [model.text_features(modality).detach() for modality in ("visible", "infrared")]
    model.integration.dropout = 0.0  # the golden steps are without
    labels, images = INPUTS["stage2_labels"], INPUTS["stage2_img"]
    phase = IntegrationPhase(model, images, labels, *texts, plan=lambda epoch: [], seed=0)
    return phase, np.arange(16)


@pytest.mark.parametrize(("name", "build"), [("phase1", prompt_phase), ("phase2", integration_phase)])
def test_stage1_losses_gradients_and_three_adam_steps(name, build):
    model, golden = network(), tensors(name)
    phase, row = build(model)
    trained = {k: p for k, p in named_parameters(model).items() if any(p is q for q in phase.parameters())}
    assert trained
    before = {key: p.detach().clone() for key, p in trained.items()}
    optimizer = torch.optim.Adam(phase.parameters(), weight_decay=1e-4)
    for number, step in enumerate(expected()[name]["steps"]):
        losses = phase.loss(row, epoch=0, step=0)
        for ours, theirs in (("image_to_text", "loss_i2t"), ("text_to_image", "loss_t2i")):
            assert_close(losses[ours].item(), step[theirs], 1e-5, f"stage 1, {phase.name}: losses")
        optimizer.zero_grad()
        losses["loss"].backward()
        if number == 0:
            for key, parameter in trained.items():
                assert_near(parameter.grad, golden[f"grad.{key}"], 1e-4, f"stage 1, {phase.name}: gradients")
        optimizer.param_groups[0]["lr"] = step["lr"]
        optimizer.step()
        for key, parameter in trained.items():
            what = f"stage 1, {phase.name}: three Adam steps"
            assert_same_update(parameter, golden[f"step{number}.{key}"], before[key], what)


def assert_same_update(actual, wanted, before, what, relative=2e-3):
    """Adam divides a gradient by its size, so that rounding shows where a gradient is nearly zero."""
    difference = (actual - wanted).norm() / (wanted - before).norm()
    assert_within(difference.item(), relative, f"{what} (of the change)")


def stage2_losses(model):
    views = [INPUTS[name] for name in ("x_rgb_view1", "x_rgb_view2", "x_ir")]
    return embedding_losses(model, *views, INPUTS["pids"], tensors("phase3")["text_features"])


def test_stage2_text_table_is_the_fused_text():
    with torch.no_grad():
        assert_near(
            network().fused_text_features(), tensors("phase3")["text_features"], what="stage 2: text table"
        )


def test_stage2_features_and_logits():
    model, golden = network().train(), tensors("phase3")
    visible = torch.cat([INPUTS["x_rgb_view1"], INPUTS["x_rgb_view2"]])
    outputs = model({"visible": visible, "infrared": INPUTS["x_ir"]})
    for actual, name in zip(outputs, ("feat_gem", "feat_proj", "cls_gem", "cls_proj"), strict=True):
        assert_near(actual, golden[name], what="stage 2: features and logits")


def test_stage2_eight_losses_every_gradient_and_bn_statistics():
    model, golden, wanted = network().train(), tensors("phase3"), expected()["phase3"]
    losses = stage2_losses(model)
    assert set(losses) == {*PUBLISHED_TERMS, "total"}
    for ours, theirs in PUBLISHED_TERMS.items():
        assert_close(losses[ours].item(), wanted["losses"][theirs], 1e-5, f"stage 2: loss {ours}")
    assert_close(losses["total"].item(), wanted["total"], 1e-5, "stage 2: loss total")
    losses["total"].backward()
    gradients = {k: p.grad for k, p in named_parameters(model).items() if p.grad is not None}
    # The bias of the attention pool's keys has no effect: its gradient is 0 and ours is not there.
    assert set(wanted["grad_norm"]) - set(gradients) == {"attnpool.k_proj.bias"}
    for key, gradient in gradients.items():
        assert_close(gradient.norm().item(), wanted["grad_norm"][key], 1e-4, "stage 2: norm of each gradient")
        assert_near(sampled(gradient), golden[f"grad.{key}"], 1e-4, "stage 2: entries of each gradient")
    for key, buffer in named_buffers(model).items():
        assert_near(buffer, golden[f"buffers.{key}"], what="stage 2: running statistics of each batch norm")


def test_stage2_in_float64():
    model, wanted = network().double().train(), expected()["phase3"]
    views = [INPUTS[name].double() for name in ("x_rgb_view1", "x_rgb_view2", "x_ir")]
    table = tensors("phase3")["text_features"].double()
    losses = embedding_losses(model, *views, INPUTS["pids"], table)
    for ours, theirs in PUBLISHED_TERMS.items():
        what = "stage 2 in float64: the eight losses"
        assert_close(losses[ours].item(), wanted["losses_f64"][theirs], 1e-9, what)
    losses["total"].backward()
    for key, parameter in named_parameters(model).items():
        if parameter.grad is not None:
            what = "stage 2 in float64: norm of each gradient"
            assert_close(parameter.grad.norm().item(), wanted["grad_norm_f64"][key], 1e-7, what)


def test_stage2_three_adam_steps():
    model, golden = network().train(), tensors("phase3")
    initial = {key: sampled(tensor) for key, tensor in tensors("state_dict").items()}
    heads = list(model.head_parameters())
    backbone = [p for p in model.image_parameters() if not any(p is head for head in heads)]
    optimizer = torch.optim.Adam([{"params": backbone}, {"params": heads}], weight_decay=5e-4)
    for number, step in enumerate(expected()["phase3"]["steps"]):
        losses = stage2_losses(model)
        for ours, theirs in PUBLISHED_TERMS.items():
            assert_close(
                losses[ours].item(), step["losses"][theirs], 1e-5, "stage 2: losses over three Adam steps"
            )
        for group, rate in zip(optimizer.param_groups, (step["lr"], step["lr_heads"]), strict=True):
            group["lr"] = rate
        optimizer.zero_grad()
        losses["total"].backward()
        optimizer.step()
        trained = {k: p for k, p in named_parameters(model).items() if p.grad is not None}
        actual, wanted, before = (
            torch.cat([sampled(values[prefix + key]) for key in trained])
            for values, prefix in ((trained, ""), (golden, f"step{number}."), (initial, ""))
        )
        assert_same_update(actual, wanted, before, "stage 2: three Adam steps")
    for key, buffer in named_buffers(model).items():
        assert_near(buffer, golden[f"step2.{key}"], what="stage 2: running statistics after three Adam steps")


@pytest.mark.parametrize("case", ["", "_dup"])
def test_triplet_and_msel_in_float64_also_with_a_duplicated_row(case):
    golden, wanted = tensors("losses"), expected()["losses_unit"]
    labels = golden["y"]
    features = golden[f"z{case}"].clone().requires_grad_()
    triplet = wrt_loss(features, labels)
    what = "in float64, with a row twice" if case else "in float64"
    assert_close(triplet.item(), wanted[f"wrt{case}"], 1e-9, f"weighted triplet {what}")
    gradient = torch.autograd.grad(triplet, features)[0]
    assert_near(gradient, golden[f"wrt{case}_grad"], 1e-9, f"weighted triplet {what}: gradient")
    loss = msel_loss(features[:8], features[8:16], labels[:8], 4)
    assert_close(loss.item(), wanted[f"msel{case}_on_first16"], 1e-9, f"MSEL {what}")
    gradient = torch.autograd.grad(loss, features)[0]
    assert_near(gradient, golden[f"msel{case}_grad"], 1e-9, f"MSEL {what}: gradient")
