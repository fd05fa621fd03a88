"""Each method's loss in numpy over single rows and pairs, and a small network of each to hold it against."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from distindex.hashing import noise
from distindex.hashing.base import Method
from distindex.hashing.batch import Batch
from distindex.hashing.methods import build_method
from distindex.hashing.ssdh import far_margin
from distindex.method_config import MethodConfig

WIDTH, BITS, CLASSES, ROWS, KEY = 9, 16, 3, 14, 77
Array = np.ndarray


def batch(multi: bool = False) -> Batch:
    """Vectors, 14 rows, the last 5 of them unlabeled."""
    random = np.random.default_rng(2)
    x_BV = random.standard_normal((ROWS, WIDTH))
    label_BC = np.eye(CLASSES)[random.integers(0, CLASSES, ROWS)]
    if multi:
        label_BC = np.maximum(label_BC, np.eye(CLASSES)[random.integers(0, CLASSES, ROWS)])
    label_BC[9:] = 0
    x, label = torch.from_numpy(x_BV), torch.from_numpy(label_BC)
    return Batch(x, x, label, torch.arange(ROWS), ROWS, KEY)


def model(name: str, multi: bool = False, labeled: float = 1.0, **settings: Any) -> Method:
    """In double precision and in inference mode, so that batch statistics and dropout stay out of the formulas."""
    torch.manual_seed(1)
    config = MethodConfig(name=name, hidden=[12, 10], **settings)  # type: ignore[arg-type]
    return build_method(config, WIDTH, BITS, CLASSES, multi, sparse=False, labeled=labeled).double().eval()


def relu(x: Any) -> Any:
    return np.maximum(x, 0)


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def softmax(x: Array) -> Array:
    e = np.exp(x - x.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


class Forward:
    """The network's outputs in numpy, from its weights."""

    def __init__(self, method: Method, given: Batch) -> None:
        self.weights = {name: value.detach().numpy() for name, value in method.state_dict().items()}
        self.x = given.x_BV.numpy()  # type: ignore[union-attr]
        self.label = given.label_BC.numpy()
        self.labeled = self.label.sum(1) > 0
        self.hidden, self.logit = self.encode("encoder")
        self.config = method.weights
        self.temperature = method.config.temperature

    def encode(self, name: str) -> tuple[Array, Array]:
        get = self.weights
        out = self.x @ get[f"{name}.first.table_VU"] + get[f"{name}.first.bias_U"]
        for depth in range(2):
            norm = f"{name}.norms.{depth}"
            scale = get[f"{norm}.weight"] / np.sqrt(get[f"{norm}.running_var"] + 1e-3)
            out = (relu(out) - get[f"{norm}.running_mean"]) * scale + get[f"{norm}.bias"]
            hidden = out
            out = self.linear(f"{name}.layers.{depth}", out)
        return hidden, out  # type: ignore[possibly-undefined]

    def linear(self, name: str, x: Array) -> Array:
        return x @ self.weights[f"{name}.weight"].T + self.weights[f"{name}.bias"]

    def similar(self, i: int, j: int) -> float:
        return float((self.label[i] * self.label[j]).sum() > 0)

    def known(self) -> list[tuple[int, int]]:
        labeled = np.flatnonzero(self.labeled).tolist()
        return [(i, j) for i in labeled for j in labeled if i != j]


def uniform(key: int) -> Array:
    return noise.uniform(key, torch.arange(ROWS), ROWS).numpy()


# The Bernoulli and Gaussian autoencoders


def bernoulli(f: Forward, reference: bool, similarity: Callable[[Array, int, int], float | None]) -> dict[str, float]:
    u = noise.uniform(noise.key_of(KEY, 200), torch.arange(ROWS), BITS).numpy().astype(np.float64)
    b = sigmoid((f.logit + np.log(u + 1e-7) - np.log(1 - u + 1e-7)) / f.temperature)
    q, small = sigmoid(f.logit), 1e-7 if reference else 0.0
    kl = (q * np.log(q + small) + (1 - q) * np.log(1 - q + small)).sum(1) + BITS * np.log(2)
    terms = autoencoder(f, b, f.linear("classifier", f.hidden), reference)
    pair, count, p = 0.0, 0, f.linear("classifier", f.hidden)
    for i in range(ROWS):
        for j in range(ROWS):
            s = similarity(p, i, j)
            if s is not None:
                d = ((b[i] - b[j]) ** 2).sum()
                pair += s * d + (1 - s) * relu(f.config.margin * BITS - d)
                count += 1
    terms |= {"kl": kl.mean(), "pair": pair / BITS / count}
    return terms


def autoencoder(f: Forward, code: Array, class_logit: Array, reference: bool) -> dict[str, float]:
    decoded, p = f.linear("decoder", code), softmax(class_logit)
    if reference:
        rec = -(f.x * np.log(np.clip(softmax(decoded), 1e-7, 1))).sum(1)
        return {"reconstruction": rec.mean(), "class": -(f.label * np.log(np.clip(p, 1e-7, 1))).sum(1).mean()}
    if (f.label.sum(1) > 1).any():
        q = sigmoid(class_logit)
        each = f.label * np.log(q) + (1 - f.label) * np.log(1 - q)
        return {"reconstruction": 8 * ((decoded - f.x) ** 2).mean(), "class": -(each.sum(1) * f.labeled).mean()}
    return {"reconstruction": 8 * ((decoded - f.x) ** 2).mean(), "class": -(f.label * np.log(p)).sum(1).mean()}


def vae_total(f: Forward, terms: dict[str, float], reference: bool) -> dict[str, float]:
    w = f.config
    total = terms["reconstruction"] + w.kl_weight * terms["kl"] + w.class_weight * terms["class"]
    total += w.pair_weight * terms.get("pair", 0.0)
    return {**terms, "total": total if reference else total / max(1, w.class_weight, w.pair_weight)}


def ssb_vae(f: Forward, reference: bool = False) -> dict[str, float]:
    multi = (f.label.sum(1) > 1).any() and not reference

    def predicted(class_logit: Array, i: int, j: int) -> float:
        p = sigmoid(class_logit) if multi else softmax(class_logit)
        if multi:
            p = p / np.linalg.norm(p, axis=1, keepdims=True)
        return p[i] @ p[j]

    return vae_total(f, bernoulli(f, reference, predicted), reference)


def csb_vae(f: Forward) -> dict[str, float]:
    u = noise.uniform(noise.key_of(KEY, 200), torch.arange(ROWS), BITS).numpy().astype(np.float64)
    b = sigmoid((f.logit + np.log(u + 1e-7) - np.log(1 - u + 1e-7)) / f.temperature)
    terms, w = ssb_vae(f), f.config
    terms["code"] = autoencoder(f, b, f.linear("code_classifier", 2 * b - 1), False)["class"]
    multi = (f.label.sum(1) > 1).any()
    classes = w.class_weight * terms["class"] + w.code_weight * terms["code"]
    pairs = w.pair_weight * terms["pair"] * (0.2 if multi else f.label.shape[1] / 8) * BITS / 16
    total = terms["reconstruction"] + w.kl_weight * terms["kl"] + (0.2 if multi else 1.0) * classes + pairs
    return {**terms, "total": total / max(1, w.class_weight, w.pair_weight)}


def phs_gs(f: Forward, reference: bool = False) -> dict[str, float]:
    def shared(_: Array, i: int, j: int) -> float:
        return float((f.label[i] * f.label[j]).sum()) if reference else f.similar(i, j)

    return vae_total(f, bernoulli(f, reference, shared), reference)


def phs_gs_masked(f: Forward) -> dict[str, float]:
    known = set(f.known())
    return vae_total(f, bernoulli(f, False, lambda _, i, j: f.similar(i, j) if (i, j) in known else None), False)


def vdsh_s(f: Forward, reference: bool = False) -> dict[str, float]:
    from scipy.stats import norm

    e = norm.ppf(noise.uniform(noise.key_of(KEY, 200), torch.arange(ROWS), BITS).numpy().astype(np.float64))
    mu, logvar = f.logit, f.linear("log_variance", f.hidden)
    z = mu + np.sqrt(np.exp(logvar)) * e
    kl = -0.5 * (1 + logvar - mu**2 - np.exp(logvar)).sum(1)
    terms = autoencoder(f, z, f.linear("classifier", z), reference) | {"kl": kl.mean()}
    return vae_total(f, terms, reference)


# Pairs and triplets


def known_mean(f: Forward, loss: Callable[[int, int], float]) -> float:
    return float(np.mean([loss(i, j) for i, j in f.known()]))


def dpsh(f: Forward) -> dict[str, float]:
    u, w = f.logit, f.config

    def loss(i: int, j: int) -> float:
        theta = 0.5 * u[i] @ u[j]
        return np.log1p(np.exp(theta)) - f.similar(i, j) * theta

    terms = {
        "pair": known_mean(f, loss),
        "quantization": float(((u - np.sign(u)) ** 2)[f.labeled].mean()),
    }
    return {**terms, "total": w.pair_weight * terms["pair"] + w.quantization_weight * terms["quantization"]}


def dsh(f: Forward) -> dict[str, float]:
    u, w = f.logit, f.config

    def loss(i: int, j: int) -> float:
        d, s = ((u[i] - u[j]) ** 2).sum(), f.similar(i, j)
        return s * d / 2 + (1 - s) / 2 * relu(2 * BITS - d)

    terms = {
        "pair": known_mean(f, loss),
        "quantization": float(np.abs(np.abs(u) - 1).sum(1)[f.labeled].mean()),
    }
    return {**terms, "total": w.pair_weight * terms["pair"] + w.quantization_weight * terms["quantization"]}


def pts3h(f: Forward) -> dict[str, float]:
    h, teacher, w = np.tanh(f.logit), np.tanh(f.encode("teacher")[1]), f.config

    def loss(i: int, j: int) -> float:
        theta = 0.5 * h[i] @ h[j]
        return np.log1p(np.exp(theta)) - f.similar(i, j) * theta

    consistency = 0.0
    for i in range(ROWS):
        for j in range(ROWS):
            d, taught = ((h[i] - h[j]) ** 2).sum() / 4, ((teacher[i] - teacher[j]) ** 2).sum() / 4
            consistency += (d - taught) ** 2 / BITS**2 / ROWS**2
    terms = {
        "pair": known_mean(f, loss),
        "quantization": float(((h - np.sign(h)) ** 2).mean()),
        "consistency": consistency,
    }
    ramp = np.exp(-5 * (1 - 3 / 10) ** 2)
    total = w.pair_weight * terms["pair"] + w.quantization_weight * terms["quantization"]
    return {**terms, "total": total + ramp * w.consistency_weight * terms["consistency"]}


def ssdh(f: Forward, graph: str = "features") -> dict[str, float]:
    b, t, w = sigmoid(f.logit), f.linear("classifier", f.hidden), f.config
    far = far_margin(BITS)

    def d(i: int, j: int) -> float:
        return ((b[i] - b[j]) ** 2).sum()

    def contrast(i: int, p: int, n: int) -> float:
        return d(i, p) + relu(far - np.sqrt(d(i, n))) ** 2

    def pick(key: int, i: int, eligible: list[int]) -> int:
        return max(eligible, key=lambda j: uniform(noise.key_of(KEY, key))[i, j])

    rank, pseudo, near_and_far = [], [], []
    for i in np.flatnonzero(f.labeled).tolist():
        positive = [j for j in range(ROWS) if j != i and f.similar(i, j)]
        negative = [j for j in range(ROWS) if f.labeled[j] and not f.similar(i, j)]
        if positive and negative:
            p = pick(301, i, positive)
            n = pick(302, i, [j for j in negative if not f.similar(j, p)] or negative)
            rank.append(relu(w.margin + d(i, p) - d(i, n)))
    space = f.hidden if graph == "features" else b
    for i in range(ROWS):
        order = sorted((j for j in range(ROWS) if j != i), key=lambda j: ((space[i] - space[j]) ** 2).sum())
        ranked = [i, *order]
        near, (first, stop) = min(8, ROWS - 1), (int(0.89 * ROWS), int(0.97 * ROWS))
        u_near, u_far = (noise.uniform(noise.key_of(KEY, k), torch.arange(ROWS), 1).numpy()[i, 0] for k in (303, 304))
        near_and_far.append(contrast(i, ranked[1 + int(u_near * near)], ranked[first + int(u_far * (stop - first))]))
    best, worst = t.argmax(1), t.argmin(1)
    for i in np.flatnonzero(~f.labeled).tolist():

        def looks_like(j: int, wanted: int, unwanted: int) -> bool:
            if f.labeled[j]:
                return bool(f.label[j, wanted] > 0 and f.label[j, unwanted] == 0)
            return bool(best[j] == wanted)

        positive = [j for j in range(ROWS) if j != i and looks_like(j, best[i], worst[i])]
        negative = [j for j in range(ROWS) if looks_like(j, worst[i], best[i])]
        if positive and negative:
            pseudo.append(contrast(i, pick(305, i, positive), pick(306, i, negative)))
    if (f.label.sum(1) > 1).any():
        each = -(f.label * np.log(sigmoid(t)) + (1 - f.label) * np.log(1 - sigmoid(t))).sum(1)
    else:
        each = -(f.label * np.log(softmax(t))).sum(1)
    assert rank
    assert pseudo
    terms = {
        "rank": float(np.mean(rank) / 2),
        "graph": float(np.mean(near_and_far) / 2),
        "pseudo": float(np.mean(pseudo) / 2),
        "class": float(each[f.labeled].mean()),
    }
    total = w.pair_weight * terms["rank"] + w.graph_weight * (terms["graph"] + terms["pseudo"])
    return {**terms, "total": total + w.class_weight * terms["class"]}


CASES: dict[str, tuple[str, dict[str, Any], Callable[[Forward], dict[str, float]]]] = {
    "csb-vae": ("csb-vae", {}, csb_vae),
    "ssb-vae": ("ssb-vae", {}, ssb_vae),
    "ssb-vae as the reference": ("ssb-vae", {"reference": True}, lambda f: ssb_vae(f, True)),
    "phs-gs": ("phs-gs", {}, phs_gs),
    "phs-gs as the reference": ("phs-gs", {"reference": True}, lambda f: phs_gs(f, True)),
    "phs-gs-masked": ("phs-gs-masked", {}, phs_gs_masked),
    "vdsh-s": ("vdsh-s", {}, vdsh_s),
    "vdsh-s as the reference": ("vdsh-s", {"reference": True}, lambda f: vdsh_s(f, True)),
    "ssdh": ("ssdh", {"graph_weight": 0.7}, ssdh),
    "ssdh in code space": ("ssdh", {"graph": "codes"}, lambda f: ssdh(f, "codes")),
    "pts3h": ("pts3h", {"ramp_steps": 10}, pts3h),
    "dpsh": ("dpsh", {}, dpsh),
    "dsh": ("dsh", {"pair_weight": 3.0}, dsh),
}
