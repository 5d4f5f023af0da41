"""Contract of erase.concepts.wording, and of the concepts that rest on it.

1. Prompts that differ in case, article, hyphen, English plural, possessive or Unicode form alone are the same words;
   prompts that differ in a word are not, and a part of a word is no word.
2. In a script without blanks a word is found wherever its characters stand.
3. A concept whose retain prompt, or whose anchor, says what its forget prompt says is refused; evaluation prompts may
   say anything. Concepts erased together are kept apart by the same rule.
"""

from typing import Any

import pytest

from erase import Concept, load_concepts
from erase.concepts.wording import bare, named, same

SAME = [
    ("a photo of cats", "a photo of a cat"),
    ("A Photo of the CAT", "a photo of a cat"),
    ("a pop-art poster", "a pop art poster"),
    ("Artist_Sketch", "artist sketch"),
    ("two churches", "two church"),
    ("foxes", "fox"),
    ("ponies", "pony"),
    ("movies", "movie"),
    ("wolves", "wolf"),
    ("knives", "knife"),
    ("gloves", "glove"),
    ("buses", "bus"),
    ("octopi", "octopus"),
    ("women", "a woman"),
    ("firemen", "fireman"),
    ("mice and geese", "mouse and goose"),
    ("children", "child"),
    ("people", "person"),
    ("chateaux", "chateau"),
    ("oases", "oasis"),
    ("a cafe\u0301", "a caf\u00e9"),
    ("\uff43\uff41\uff54", "cat"),
    ("soft\u00adhyphen", "softhyphen"),
    ("the artist's model", "artist model"),
    ("\u2764\ufe0f", "\u2764"),
    ("a cat, neon", "cat neon"),
    ("STRASSE", "stra\u00dfe"),
]
OTHER = [
    ("a photo of a cat", "a photo of a car"),
    ("a photo of a cat", "a photo of a caterpillar"),
    ("a princess", "princes"),
    ("news", "new"),
    ("cares", "cars"),
    ("a cat on a sofa", "a sofa on a cat"),
    ("caf\u00e9", "cafe"),
    ("letter a", "letter b"),
    ("!!!", "???"),
]
INSIDE = [
    ("猫", "一只猫"),
    ("猫", "猫の写真"),
    ("แมว", "รูปแมวดำ"),
    ("ແມວ", "ຮູບແມວ"),
    ("ឆ្មា", "រូបឆ្មាមួយ"),
    ("ကြောင်", "ကြောင်ပုံ"),
    ("고양이", "고양이가 있는 사진"),
    ("cat", "一只cat"),
    ("a cat", "two cats, asleep"),
    ("🐱", "a 🐱🐶"),
    ("C++", "a c++ book"),
]
CAT: dict[str, Any] = {
    "name": "cat",
    "type": "object",
    "forget": ("a photo of cats",),
    "anchor": ("a photo of dogs",),
    "retain": ("a photo of an apple",),
    "evaluate": ("a cat",),
}


@pytest.mark.parametrize(("one", "other"), SAME)
def test_the_same_words(one: str, other: str) -> None:
    assert same(one, other) and same(other, one)


@pytest.mark.parametrize(("one", "other"), OTHER)
def test_other_words(one: str, other: str) -> None:
    assert not same(one, other) and not same(other, one)


@pytest.mark.parametrize(("phrase", "text"), INSIDE)
def test_named_within(phrase: str, text: str) -> None:
    assert named([phrase], text) == phrase and named(["zebra", phrase], text) == phrase


@pytest.mark.parametrize(("phrase", "text"), [("cat", "a category"), ("a", "a cat"), ("!", "a cat!"), ("狗", "一只猫")])
def test_not_named(phrase: str, text: str) -> None:
    assert named([phrase], text) is None


@pytest.mark.parametrize(("text", "left"), [("a zebra", "zebra"), ("The Who", "Who"), ("anchor", "anchor"), ("a", "a")])
def test_bare(text: str, left: str) -> None:
    assert bare(text) == left


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"retain": ("a photo of a cat",)}, "retain prompt 'a photo of a cat' contains .* but for .* plural"),
        ({"retain": ("The photo of a CAT, asleep",)}, "contains the forget prompt 'a photo of cats'"),
        ({"forget": ("猫",), "retain": ("一只猫",)}, "retain prompt '一只猫' contains the forget prompt '猫'; remove"),
        ({"forget": ("a T-shirt",), "retain": ("t shirts on a line",)}, "contains the forget prompt 'a T-shirt'"),
        ({"anchor": ("the photo of a Cat",)}, "anchor equals .*'a photo of cats'.*plural: 'the photo of a Cat'"),
        ({"anchor": ("a photo of cats",)}, "anchor equals the forget prompt 'a photo of cats'; nothing would go"),
    ],
)
def test_a_concept_that_keeps_what_it_forgets_is_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Concept(**CAT | changes)


def test_what_is_scored_may_say_what_is_forgotten() -> None:
    assert Concept(**CAT | {"evaluate": ("a photo of a cat",)}).evaluate == ("a photo of a cat",)


def test_concepts_of_one_run_are_kept_apart_in_any_number() -> None:
    zebra, people = load_concepts(["a zebra", "People"], concept_type="object")
    assert (zebra.name, people.name) == ("zebra", "People")
    sunflower, _ = load_concepts(["a sunflower", "a child"], concept_type="object")
    assert not [prompt for prompt in sunflower.retain if "sunflowers" in prompt or "children" in prompt]
    with pytest.raises(ValueError, match="named twice"):
        load_concepts(["a zebra", "zebras"], concept_type="object")
