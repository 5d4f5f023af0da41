"""Contract: the examples run as they stand and show what they say."""

import importlib.util
from pathlib import Path
from types import ModuleType

EXAMPLES = Path(__file__).parents[1] / "examples"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_language_model_forgets_a_fact_and_keeps_the_rest() -> None:
    figures = load("forget_a_fact").main()
    assert (figures["forgotten before"], figures["kept before"]) == (1.0, 1.0)
    assert figures["forgotten after"] == 0.0 and figures["answer's probability"] < 0.05
    assert figures["kept after"] >= 0.96
    assert figures["weights changed"] <= 0.2001


def test_a_tabular_model_forgets_patients_so_that_an_attacker_takes_them_for_strangers() -> None:
    rates = load("forget_patients").main()
    assert rates["before"]["ua"] < 8 and rates["before"]["mia"] < 8
    assert rates["salun"]["mia"] > 20 and rates["salun"]["ra"] > 90
    assert abs(rates["salun"]["mia"] - rates["retrain"]["mia"]) < 20
