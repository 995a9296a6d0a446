"""The verb `plot`: a figure has the same options on the command line as in Python."""

import inspect

import click
import pytest

from cnnfilterdb.analysis.options import GroupOptions, ShiftOptions
from cnnfilterdb.cli.figures import ARGUMENTS, METHODS, USED, plot
from cnnfilterdb.plots.figures import Figures

#: Where and how a figure is drawn: --title, --style and --output of all kinds.
_COMMON = {"self", "ax", "title", "style"}
_OPTIONS = {"Unpack[GroupOptions]": GroupOptions, "Unpack[ShiftOptions]": ShiftOptions}


def _arguments(kind):
    """The arguments of the method that draws a kind, with those of its options."""
    names = set()
    for name, parameter in inspect.signature(getattr(Figures, METHODS.get(kind, kind))).parameters.items():
        several = parameter.kind is inspect.Parameter.VAR_KEYWORD
        names |= set(_OPTIONS[parameter.annotation].__annotations__) if several else {name}
    return names - _COMMON


@pytest.mark.parametrize("kind", USED)
def test_a_figure_has_the_same_options_in_python_and_on_the_command_line(kind):
    assert {ARGUMENTS.get(option, option) for option in USED[kind]} == _arguments(kind)


def test_every_method_is_a_verb_and_every_option_is_declared():
    methods = {name for name, _ in inspect.getmembers(Figures, inspect.isfunction) if not name.startswith("_")}
    assert {METHODS.get(kind, kind) for kind in USED} == methods
    declared = {parameter.name for parameter in plot.params}
    assert set().union(*USED.values()) <= declared
    listed = inspect.cleandoc(plot.help)
    assert all(f"\n{kind} " in listed for kind in USED)


@pytest.fixture
def drawn(sample_path, sample, tmp_path, monkeypatch):
    """The keyword arguments with which a command line calls the method."""

    def call(kind, *words):
        found = {}

        def method(self, **arguments):
            from cnnfilterdb.plots.page import Figure

            found.update(arguments)
            return Figure(1, 1)

        monkeypatch.setattr(Figures, METHODS.get(kind, kind), method)
        line = [kind, *map(str, words), "--db", str(sample_path), "-o", str(tmp_path / "figure.png")]
        plot.main(line, standalone_mode=False)
        return {name: value for name, value in found.items() if name not in ("title", "style")}

    return call


def test_options_become_arguments(drawn):
    given = ["--model", "custom/face", "--layer", 1, "--top", 4, "--scale", "layer", "--columns", 2]
    expected = {"model_id": "custom/face", "layer": 1, "top": 4, "scale": "layer", "columns": 2}
    assert drawn("filters", *given) == expected
    by = {"by": "domain", "where": None}
    given = ["--within", "family", "--permutations", 9, "--seed", 5, "--top", 3, "--range", -2, 2]
    assert drawn("null", *given) == by | {
        "within": "family", "permutations": 9, "seed": 5, "top": 3, "range": (-2.0, 2.0)
    }  # fmt: skip
    assert drawn("shift", "--order", "none", "--weights", "uniform") == by | {"order": None, "weights": "uniform"}
    assert drawn("ridge", "--xlim=-2,2.5") == by | {"xlim": (-2.0, 2.5)}
    assert drawn("phenotypes", "--components", 2, 0) == by | {"components": (2, 0)}
    assert drawn("means", "--kernel", "3x3,7x7") == by | {"kernel": ["3x3", "7x7"]}
    assert drawn("lineage", "--kurtosis", "rises") == {"kurtosis": "rises"}
    # What is not given is left to the method: models are compared one by one, and large kernels drawn too.
    for kind in USED.keys() - {"filters", "lineage"}:
        assert drawn(kind) == by
    assert drawn("map", "--trained-only")["where"].endswith("untrained IS NOT TRUE")


def test_an_option_of_another_figure_is_refused(drawn):
    with pytest.raises(click.UsageError, match="--within does not apply to `plot ridge`; to: null"):
        drawn("ridge", "--within", "family")
    with pytest.raises(click.UsageError, match="--trained-only does not apply to `plot lineage`; to: shift, ridge"):
        drawn("lineage", "--trained-only")
    with pytest.raises(click.BadParameter, match="expected auto, full, or two numbers such as -2,2"):
        drawn("ridge", "--xlim", "wide")
