from __future__ import annotations

import numpy as np

from mlops_assets.modelling import plots
from mlops_assets_tests.modelling.windows import day, true_probability

PNG = b"\x89PNG\r\n\x1a\n"


def test_each_plot_is_a_small_png_and_the_same_twice() -> None:
    features, label = day(3_000, 0, seed=1)
    probability = true_probability(features)

    def draw() -> list[bytes]:
        importance = plots.importance({"app": 0.1, "hour": -0.01})
        return [plots.roc(label, probability), plots.calibration(label, probability, np.ones(len(label))), importance]

    for image, again in zip(draw(), draw(), strict=True):
        assert image.startswith(PNG)
        assert 2_000 < len(image) < 100_000
        assert image == again


def test_the_plots_take_what_a_bad_day_gives() -> None:
    assert plots.calibration(np.zeros(10), np.zeros(10), np.ones(10)).startswith(PNG), (
        "no install, and a model that expects none"
    )
    assert plots.importance({}).startswith(PNG)
