"""The model of scaling: its arithmetic by hand, and its table for a small network."""

import pytest
from small_networks import residual_graph

from experiments import scaling
from qpsnn_jax.model.nodes import Quantizer


def test_collectives_are_counted_with_their_bytes():
    text = """
      %all-reduce.1 = (f32[3,4]{1,0}, bf16[8]{0}) all-reduce(%a, %b), replica_groups={}
      %ar = f32[] all-reduce-start(%c), to_apply=%add
      %ag = s32[2,5]{1,0} all-gather(%d), dimensions={0}
      %sum = f32[7]{0} add(%all-reduce.1, %ag)
    """
    assert scaling.collectives(text) == {"all-reduce": (2, 48 + 16 + 4), "all-gather": (1, 40)}


def test_a_roofline_is_the_longer_of_two_and_the_collectives():
    peak = scaling.Peak(10.0, 5.0, lambda n: 2.0 * n)
    work = scaling.Work(40.0, 10.0, {"all-reduce": (3, 64), "all-gather": (1, 32)})
    assert scaling.seconds(work, peak, 1) == 4
    assert scaling.seconds(work._replace(moved=50.0), peak, 1) == 10
    assert scaling.seconds(work, peak, 4) == 4 + (2 * 64 + 32) * 3 / 4 / 8
    assert scaling.peaks("fast")["H200"].flops > 2 * scaling.peaks("auto")["H200"].flops
    assert scaling.peaks("auto")["H200"].links(8) == 9 * scaling.peaks("auto")["H200"].links(9)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--devices", "0"], "--devices, --batch and --width must be positive"),
        (["--width", "nan"], "--devices, --batch and --width must be positive"),
        (["--devices", "1", "--layout", "data×model"], "needs even numbers of --devices"),
    ],
)
def test_a_wrong_option_is_named(words, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        scaling.main(words)
    assert message in capsys.readouterr().err


def test_the_table_of_a_small_network(monkeypatch, capsys):
    monkeypatch.setitem(scaling.NETWORKS, "resnet20", lambda bits, width: residual_graph(Quantizer(bits)))
    assert scaling.main(["--simulated", "--devices", "1", "--batch", "4"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("A model, not a measurement")
    row = out.splitlines()[-1].split("|")
    assert row[1].strip() == "1"
    assert row[4].strip() == "none"
    assert all(float(cell) > 0 for cell in (*row[2:4], *row[5:8]))
