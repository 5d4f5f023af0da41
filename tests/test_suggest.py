"""Contract of erase.suggest: what was probably meant is one sentence to put after another, empty if nothing is near."""

import pytest

from erase.suggest import did_you_mean, meant, need_mask, need_name, refuse_near

METHODS = ("salun", "salun-soft", "salun-anchored", "uce")


@pytest.mark.parametrize(
    ("name", "choices", "said"),
    [
        ("salum", {"n": 1}, " Did you mean salun?"),
        ("salun-sof", {"n": 2}, " Did you mean salun-soft or salun?"),
        ("salun-sof", {"n": 1, "quoted": True}, " Did you mean 'salun-soft'?"),
        ("salun-sof", {"cutoff": 0.9}, " Did you mean salun-soft?"),
        ("ue", {"cutoff": 0.9}, ""),
        ("nothing", {}, ""),
        ("", {}, ""),
    ],
)
def test_the_nearest_names_are_asked_for(name: str, choices: dict[str, float], said: str) -> None:
    assert did_you_mean(name, METHODS, **choices) == said  # type: ignore[arg-type]


def test_names_found_in_another_way_are_said_once() -> None:
    assert meant(["b", "a", "b"], quoted=True) == " Did you mean 'b' or 'a'?"
    assert meant(iter(())) == ""


def test_errors_end_the_sentence_before_they_ask() -> None:
    with pytest.raises(ValueError, match=r"^Unknown method 'uc'\. Did you mean uce\? There are salun, .*uce\.$"):
        need_name("method", "uc", METHODS)
    with pytest.raises(ValueError, match=r"^Unknown method 'x'\. There are salun, "):
        need_name("method", "x", METHODS)
    with pytest.raises(ValueError, match=r"^--model salum: nothing here has that name\. Did you mean salun\?$"):
        refuse_near("--model", "salum", METHODS)
    refuse_near("--model", "sal", METHODS)
    with pytest.raises(ValueError, match=r"there is no file nonne\. Did you mean none\?$"):
        need_mask("nonne")
