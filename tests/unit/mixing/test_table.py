"""Tables of simulated models come back from their file as they were."""

import numpy as np

from opmix.mixing.table import ProxyTable

WHOLE = ProxyTable(
    points=("probe a", "half"),
    kinds=("probe", "proxy"),
    domains=("web", "code"),
    metrics=("m", "n"),
    mixtures=np.array([[0.9, 0.1], [0.5, 0.5]]),
    losses=np.array([[1.0, 2.0], [1.5, 2.5]]),
    standard_errors=np.array([[0.1, 0.2], [0.3, 0.4]]),
    probes=("a", "b"),
    weights=np.array([[1.0, 0.0], [0.5, 0.5]]),
    interference=np.array([0.0, 0.25]),
    fitted=(True, False),
)


def test_every_column_comes_back(tmp_path):
    WHOLE.write(tmp_path / "t.csv")
    again = ProxyTable.read(tmp_path / "t.csv")
    for name in ("points", "kinds", "domains", "metrics", "probes", "fitted"):
        assert getattr(again, name) == getattr(WHOLE, name), name
    for name in ("mixtures", "losses", "standard_errors", "weights", "interference"):
        np.testing.assert_allclose(getattr(again, name), getattr(WHOLE, name), err_msg=name)


def test_columns_that_are_not_there_are_none(tmp_path):
    (tmp_path / "t.csv").write_text("run,ratio_web,ratio_code,loss_m\nx,0.5,0.5,3.0\n")
    again = ProxyTable.read(tmp_path / "t.csv")
    assert (again.interference, again.fitted, again.weights, again.standard_errors) == (None, None, None, None)
    assert again.points == ("x",)
