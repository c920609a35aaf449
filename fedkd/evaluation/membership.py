"""Membership inference: can someone who holds a model tell which pictures it was made from?

Two attacks on a diffusion model's own training loss (Yeom et al. 2018 for the threshold, Carlini et al. 2022 for the
reference, brought to diffusion by Matsumoto et al. 2023): a picture that the model has seen is predicted better than
one that it has not; and, since some pictures are easier for any model, better than a reference model predicts it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from datasets import Dataset
from diffusers import DiffusionPipeline
from sklearn.metrics import roc_auc_score, roc_curve
from torch.nn import functional as F

from fedkd.models.conditioning import predict, take
from fedkd.models.pipeline import denoiser_of
from fedkd.training.examples import encode_examples
from fedkd.training.noise import NoiseSchedule

LOW_FPR = 0.01
TIMES, NOISES = 6, 2  # probes of a picture: so many noise levels, so many draws at each


@dataclass(frozen=True)
class Attack:
    """What an attack achieves: `auc` (0..1, 0.5 is a guess) and `tpr`, the members found at 1% false alarms."""

    auc: float
    tpr: float


@torch.no_grad()
def denoising_losses(
    pipe: DiffusionPipeline, dataset: Dataset, *, resolution: int, seed: int, batch_size: int = 128
) -> np.ndarray:
    """(N,) mean squared error of the model's own prediction for each captioned picture, at fixed noise levels.

    The noise of a probe is the same for every picture and every model, so that losses of models can be compared.
    The pipeline's denoiser is taken as it is, adapter included.
    """
    denoiser, schedule = denoiser_of(pipe), NoiseSchedule.of(pipe.scheduler, pipe.device)
    examples = encode_examples(pipe, dataset, resolution)
    shape = tuple(examples.latents.shape[1:])
    total = torch.zeros(len(examples))
    for probe in range(TIMES * NOISES):
        level = (2 * (probe // NOISES) + 1) * len(schedule) // (2 * TIMES)
        generator = torch.Generator("cpu").manual_seed(seed * 1009 + probe)
        one = torch.randn((1, *shape), generator=generator)
        for rows in torch.arange(len(examples)).split(batch_size):
            x0 = examples.latents[rows]
            index, noise = torch.full((len(rows),), level), one.expand(len(rows), *shape).to(x0)
            conditions = take(examples.conditions, examples.caption[rows])
            timesteps = schedule.timesteps[index].to(x0.device)
            output = predict(denoiser, schedule.add_noise(x0, noise, index), timesteps, conditions)
            error = F.mse_loss(output.float(), schedule.target(x0, noise, index).float(), reduction="none")
            total[rows] += error.flatten(1).mean(1).cpu() / (TIMES * NOISES)
    return total.numpy()


def loss_threshold(members: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Scores (M + O,) of the threshold attack, members first: the lower the loss, the likelier a member."""
    return -np.concatenate([members, others])


def against_reference(
    members: np.ndarray, others: np.ndarray, reference_members: np.ndarray, reference_others: np.ndarray
) -> np.ndarray:
    """Scores (M + O,) of the reference attack: how far the model's loss is below the reference's, as a ratio."""
    reference = np.concatenate([reference_members, reference_others])
    return np.log(reference.clip(min=1e-12)) - np.log(np.concatenate([members, others]).clip(min=1e-12))


def success(scores: np.ndarray, is_member: np.ndarray, groups: Sequence[object]) -> Attack:
    """How well `scores` (N,) tell members from others, within each group and averaged by the groups' members.

    A group is what the attacker knows in any case, such as the caption's concept: a model that was taught a concept
    predicts all pictures of it better, which says nothing of a single one. ValueError when no group has both kinds.
    """
    names = np.asarray([str(group) for group in groups])
    weights, aucs, tprs = [], [], []
    for name in sorted(set(names)):
        of = names == name
        truth = is_member[of]
        if truth.all() or not truth.any():
            continue
        fpr, tpr, _ = roc_curve(truth, scores[of])
        weights.append(int(truth.sum()))
        aucs.append(float(roc_auc_score(truth, scores[of])))
        tprs.append(float(tpr[fpr <= LOW_FPR].max()))
    if not weights:
        raise ValueError("no group holds both members and others; give pictures of the same concepts")
    return Attack(float(np.average(aucs, weights=weights)), float(np.average(tprs, weights=weights)))
