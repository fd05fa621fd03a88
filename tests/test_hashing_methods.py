"""Each method's loss and gradient against its formula, and what else its settings and labels do."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from distindex.errors import InputError
from distindex.hashing.convolution import ImageInput
from distindex.hashing.csbvae import CSBVAE
from distindex.hashing.methods import METHODS, build_method, check_labels
from distindex.hashing.pts3h import PTS3H
from distindex.method_config import MethodConfig
from tests.method_formulas import BITS, CASES, CLASSES, ROWS, WIDTH, Forward, batch, model


def test_every_method_has_its_formula_here() -> None:
    assert {name for name, _, _ in CASES.values()} == set(METHODS)


@pytest.mark.parametrize(("labeled", "share"), [(0.0, 0.0), (0.01, 0.2), (0.05, 1.0), (0.3, 1.0)])
def test_predicted_pairs_count_for_less_where_few_rows_have_labels(labeled: float, share: float) -> None:
    terms = model("csb-vae", False, labeled=labeled)(batch(False))
    every = model("csb-vae", False)(batch(False))
    assert torch.equal(terms["pair"], every["pair"])
    # The total is divided by the largest weight, which is that of the pairs.
    less = (1 - share) * CLASSES / 8 * float(every["pair"].detach())
    assert float(terms["total"].detach()) == pytest.approx(float(every["total"].detach()) - less, rel=1e-9)


def test_pairs_of_vectors_count_by_the_length_of_the_codes() -> None:
    image = ImageInput(8, 8, (0.0,), (1.0,))
    for bits in (16, 64):
        for sparse, shape, share in ((False, None, bits / 16), (True, None, 1.0), (False, image, 1.0)):
            built = build_method(MethodConfig(name="csb-vae"), 64, bits, 8, False, sparse=sparse, image=shape)
            assert isinstance(built, CSBVAE)
            assert built.pair_share == share


@pytest.mark.parametrize("multi", [False, True], ids=["single", "multi"])
@pytest.mark.parametrize("case", CASES)
def test_loss_and_gradient_follow_the_formula(case: str, multi: bool) -> None:
    name, settings, formula = CASES[case]
    method, given = model(name, multi, **settings), batch(multi)
    if isinstance(method, PTS3H):
        # A teacher that differs from its student, three steps into the ramp.
        with torch.no_grad():
            for parameter in method.teacher.parameters():
                parameter.add_(0.05)
        method.step.fill_(3)
    terms = method(given)
    expected = formula(Forward(method, given))
    assert set(terms) == set(expected)
    for term, value in expected.items():
        # The noise is float32, and so are the codes sampled with it to seven digits.
        assert float(terms[term].detach()) == pytest.approx(value, rel=2e-5), term
    terms["total"].backward()
    trained = [(name, p) for name, p in method.named_parameters() if p.requires_grad]
    random = np.random.default_rng(0)
    for parameter_name, parameter in trained:
        assert parameter.grad is not None, f"{parameter_name} is in no term: distributed training would hang"
        direction = torch.from_numpy(random.standard_normal(parameter.shape))
        step = 1e-6
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                parameter.add_(sign * step * direction)
                values.append(formula(Forward(method, given))["total"])
                parameter.sub_(sign * step * direction)
        slope = (values[0] - values[1]) / (2 * step)
        found = float((parameter.grad * direction).sum())
        assert found == pytest.approx(slope, rel=1e-3, abs=1e-6), parameter_name


def test_the_teacher_is_the_moving_average_of_the_student() -> None:
    method = model("pts3h", teacher_decay=0.9)
    assert isinstance(method, PTS3H)
    method.train()
    before = [p.detach().clone() for p in method.teacher.parameters()]
    optimizer = torch.optim.SGD(method.encoder.parameters(), lr=0.1)
    method(batch())["total"].backward()
    optimizer.step()
    method.after_step()
    for old, new, student in zip(before, method.teacher.parameters(), method.encoder.parameters(), strict=True):
        np.testing.assert_allclose(new.detach(), 0.9 * old + 0.1 * student.detach(), rtol=1e-12, atol=1e-12)
        assert new.grad is None
    for mine, student in zip(method.teacher.buffers(), method.encoder.buffers(), strict=True):
        assert torch.equal(mine, student)
    assert method.state_dict()["step"] == 1


def test_the_reference_mode_clips_where_the_clean_one_does_not() -> None:
    given = batch()
    clean, reference = model("ssb-vae", input_dropout=0, dropout=0), model("ssb-vae", reference=True)
    for method in (clean, reference):
        with torch.no_grad():
            method.classifier.weight.zero_()  # type: ignore[union-attr]
            # The label's probability is far below 1e-7.
            method.classifier.bias.copy_(torch.tensor([0.0, 200.0, 0.0]))  # type: ignore[union-attr]
    wrong = float((given.label_BC[:, 1] == 0)[:9].sum())
    assert float(clean(given)["class"].detach()) == pytest.approx(200 * wrong / ROWS)
    assert float(reference(given)["class"].detach()) == pytest.approx(-np.log(1e-7) * wrong / ROWS)


def test_without_labels_the_autoencoders_train_and_the_others_say_why_not() -> None:
    for name, method in METHODS.items():
        config = MethodConfig(name=name, hidden=[8])  # type: ignore[arg-type]
        if method.needs_labels:
            with pytest.raises(InputError, match=f"{name} needs labels"):
                build_method(config, WIDTH, BITS, 0, False, False)
            continue
        check_labels(config, labels=False)
        given = batch()
        given.label_BC = given.label_BC[:, :0]
        terms = build_method(config, WIDTH, BITS, 0, False, False).double()(given)
        assert set(terms) == {"reconstruction", "kl", "total"}


def test_a_batch_without_any_labeled_row_moves_only_what_it_can() -> None:
    for name in METHODS:
        method, given = model(name), batch()
        given.label_BC.zero_()
        terms = method(given)
        terms["total"].backward()
        assert all(np.isfinite(float(value.detach())) for value in terms.values()), name
        assert all(p.grad is not None and p.grad.isfinite().all() for p in method.encoder.parameters()), name
        if name in ("dpsh", "dsh"):
            assert float(terms["total"].detach()) == 0
            assert all(not p.grad.any() for p in method.encoder.parameters())  # type: ignore[union-attr]


def test_settings_that_a_method_does_not_have_are_refused() -> None:
    for settings, message in [
        ({"name": "dpsh", "kl_weight": 1.0}, "kl_weight: dpsh has no such term"),
        ({"name": "vdsh-s", "pair_weight": 1.0}, "pair_weight: vdsh-s has no such term"),
        ({"name": "dsh", "reference": True}, "the reference code has no dsh"),
        ({"name": "ssb-vae", "reference": True, "dropout": 0.1}, "dropout: the reference code has none"),
        ({"name": "pts3h", "teacher_decay": 1.0}, "teacher_decay"),
        ({"name": "pts3h", "ramp_steps": -1}, "ramp_steps"),
        ({"name": "ssdh", "neighbors": 0}, "neighbors"),
        ({"hidden": []}, "hidden"),
        ({"name": "itq", "dropout": 0.1}, "dropout: itq has no such term"),
        ({"name": "ssh", "pair_weight": 1.0}, "pair_weight: ssh has no such term"),
    ]:
        with pytest.raises(InputError, match=message):
            MethodConfig(**settings)  # type: ignore[arg-type]


def test_filled_settings_are_the_methods_own_and_stay_what_they_are() -> None:
    for name in METHODS:
        config = MethodConfig(name=name)  # type: ignore[arg-type]
        filled = config.filled()
        assert filled.weights() == config.weights() == filled.filled().weights()
        assert filled.dropout == (0.4 if name == "csb-vae" else 0.3)
    assert MethodConfig(class_weight=0.5).weights().class_weight == 0.5
    assert MethodConfig(name="ssb-vae", reference=True).weights().dropout == 0
