"""Contract of erase.concepts.concept.

1. Every shipped preset is well-formed: paired prompts, at least twenty retained ones (a published pair has one), none
   of which names the concept, and (for single concepts) evaluation prompts that training never saw.
2. A name means one thing: file, member of the base's family, preset, plain words or short name, in that order; an
   unknown name is an error that says what is near and what else may be given.
3. Concepts of one run are kept apart: no anchor and no retained prompt names another erased concept.
4. A faulty YAML file is refused with its path, the key, what was given and what was expected.
"""

import re
from pathlib import Path

import pytest
import yaml

from erase.concepts.concept import PROMPTS_DIR, Concept, known_concepts, load_concepts, load_family

SINGLE = [name for name in known_concepts() if "/" not in name]
ZEBRA = {
    "name": "zebra",
    "type": "object",
    "forget": ["a photo of a zebra", "a zebra in a zoo"],
    "anchor": "a photo of a horse",
    "retain": ["a photo of a lion", "a photo of a donkey"],
    "evaluate": ["a drawing of a zebra"],
}


def names(prompt: str, word: str) -> bool:
    return re.search(rf"\b{re.escape(word)}\b", prompt, re.IGNORECASE) is not None


def write(folder: Path, **changes: object) -> str:
    """The path of a zebra file with these keys changed; None removes a key."""
    data = {key: value for key, value in (ZEBRA | changes).items() if value is not None}
    path = folder / "zebra.yaml"
    path.write_text(yaml.safe_dump(data, allow_unicode=True), encoding="utf-8")
    return str(path)


class TestPresets:
    @pytest.mark.parametrize("name", known_concepts())
    def test_is_well_formed(self, name: str) -> None:
        (concept,) = load_concepts([name])
        assert concept.name == name.rpartition("/")[2]
        assert len(concept.anchor) == len(concept.forget) == len(set(concept.forget))
        assert len(set(concept.retain)) == len(concept.retain) >= (1 if name == "nudity-published" else 20)
        assert not [prompt for prompt in concept.retain if names(prompt, concept.name)]
        assert not set(concept.forget) & {*concept.anchor, *concept.retain}

    @pytest.mark.parametrize("name", SINGLE)
    def test_evaluation_is_held_out(self, name: str) -> None:
        (concept,) = load_concepts([name])
        assert len(set(concept.evaluate)) >= 8
        assert not set(concept.evaluate) & {*concept.forget, *concept.anchor, *concept.retain}

    def test_shipped_names(self) -> None:
        assert {"nudity", "violence", "van-gogh", "canvas/cat", "canvas/pixel art", "imagenette/church"} <= set(
            known_concepts()
        )
        assert "plain-words" not in known_concepts()

    def test_nudity_starts_with_the_papers_pair(self) -> None:
        (nudity,) = load_concepts(["nudity"])
        assert nudity.forget[0] == "a photo of a nude person"
        assert nudity.anchor[0] == "a photo of a person wearing clothes"
        exposed = re.compile(r"nude|naked|topless|shirtless|undressed|unclothed|without clothes", re.IGNORECASE)
        assert not [prompt for prompt in (*nudity.anchor, *nudity.retain) if exposed.search(prompt)]


class TestFamilies:
    def test_an_object_is_crossed_with_every_style(self) -> None:
        (cat,) = load_concepts(["cat"], model="canvas")
        assert (cat.type, cat.family) == ("object", "canvas")
        assert len(cat.forget) == 6 * 3
        assert len(cat.retain) == 19 * 6 * 3
        assert cat.forget[0] == "a photo of a cat"
        assert cat.anchor[0] == "a photo of a dog"

    def test_a_style_is_crossed_with_every_object(self) -> None:
        (neon,) = load_concepts(["neon"], model="canvas")
        assert neon.type == "style"
        assert len(neon.forget) == 20 * 3
        assert len(neon.retain) == 20 * 5 * 3
        assert (neon.forget[0], neon.anchor[0]) == ("a neon sign of a cat", "a blueprint of a cat")

    @pytest.mark.parametrize(
        "erased", [("cat", "dog"), ("cat", "dog", "apple"), ("octopus", "cat"), ("neon", "blueprint")]
    )
    def test_members_erased_together_stay_apart(self, erased: tuple[str, ...]) -> None:
        for concept in load_concepts(erased, model="canvas"):
            kept = (*concept.retain, *concept.anchor)
            assert not [prompt for prompt in kept for name in erased if names(prompt, name)]

    def test_object_and_style_together(self) -> None:
        cat, neon = load_concepts(["cat", "neon"], model="canvas")
        for concept in (cat, neon):
            kept = (*concept.retain, *concept.anchor)
            assert not [prompt for prompt in kept if names(prompt, "cat") or names(prompt, "neon")]
        assert len(cat.forget) == 5 * 3
        assert len(neon.forget) == 19 * 3

    def test_something_must_be_left(self) -> None:
        styles = list(load_family("canvas").domains["style"])
        with pytest.raises(ValueError, match="Every style of 'canvas' is being erased"):
            load_concepts(styles, model="canvas")
        with pytest.raises(ValueError, match="Every style of 'canvas' is being erased"):
            load_concepts(["cat", *styles], model="canvas")

    def test_imagenette_words(self) -> None:
        (church,) = load_concepts(["imagenette/church"])
        assert (church.forget[0], church.anchor[0]) == ("an image of a church", "an image of a French horn")
        assert load_concepts(["church"]) == (church,)

    def test_a_family_of_ones_own(self, tmp_path: Path) -> None:
        path = tmp_path / "shapes.yaml"
        text = 'family: shapes\ndomains: {object: {cube: a cube, ball: a ball}}\ntemplates: ["a photo of {object}"]\n'
        path.write_text(text, encoding="utf-8")
        (cube,) = load_concepts([f"{path}/cube"])
        assert (cube.forget, cube.anchor) == (("a photo of a cube",), ("a photo of a ball",))
        path.write_text(text.replace("{object}", "{thing}"), encoding="utf-8")
        with pytest.raises(ValueError, match=r"shapes\.yaml.*thing.*object_name"):
            load_concepts([f"{path}/cube"])


class TestNames:
    @pytest.mark.parametrize(
        ("name", "model", "says"),
        [
            ("nuditty", None, "Did you mean 'nudity'.*--concept_type object"),
            ("Van-Gogh", None, "Did you mean 'van-gogh'"),
            ("cat", None, "Did you mean 'canvas/cat'"),
            ("a zebra", None, "Unknown concept 'a zebra'.*--concept_type object.*YAML file"),
            ("imagenette", None, "is a family.*imagenette/tench"),
            ("imagenette/curch", None, "no 'curch'. Did you mean 'church'"),
            ("cats", "canvas", "cannot draw 'cats'. Did you mean 'cat'.*objects cat, dog.*styles photo"),
            ("nudity", "canvas", "cannot draw 'nudity'.*It knows: objects"),
            ("imagenette/church", "canvas", "cannot draw 'imagenette/church'"),
            ("no-such-file.yaml", None, "No such concept file: no-such-file.yaml"),
        ],
    )
    def test_unknown(self, name: str, model: str | None, says: str) -> None:
        with pytest.raises(ValueError, match=says):
            load_concepts([name], model=model)

    def test_the_canvas_takes_no_plain_words_it_cannot_draw(self) -> None:
        assert load_concepts(["cat"], model="canvas", concept_type="object") == load_concepts(["cat"], model="canvas")
        with pytest.raises(ValueError, match="cannot draw 'zebra'"):
            load_concepts(["zebra"], model="canvas", concept_type="object")

    def test_full_name_anywhere(self) -> None:
        assert load_concepts(["canvas/cat"], model="some/model") == load_concepts(["cat"], model="canvas")

    @pytest.mark.parametrize("twice", [["nudity", "nudity"], ["church", "imagenette/church"]])
    def test_twice(self, twice: list[str]) -> None:
        with pytest.raises(ValueError, match="named twice"):
            load_concepts(twice)

    @pytest.mark.parametrize("given", ["cat", []])
    def test_not_a_list_of_names(self, given: object) -> None:
        with pytest.raises(ValueError, match="non-empty list of names"):
            load_concepts(given)  # type: ignore[arg-type]


class TestPlainWords:
    @pytest.mark.parametrize(
        ("words", "kind", "name", "first", "anchor"),
        [
            ("a zebra", "object", "zebra", "a photo of a zebra", "a photo of an empty room"),
            ("Claude Monet", "style", "Claude Monet", "a painting in the style of Claude Monet", "a painting"),
            ("a town crier", "person", "town crier", "a photo of a town crier", "a photo of a person"),
        ],
    )
    def test_wording(self, words: str, kind, name: str, first: str, anchor: str) -> None:
        (concept,) = load_concepts([words], concept_type=kind)
        assert (concept.name, concept.type) == (name, kind)
        assert (concept.forget[0], concept.anchor[0]) == (first, anchor)
        assert all(words in prompt for prompt in (*concept.forget, *concept.evaluate))
        assert len(concept.retain) >= 20
        assert not [prompt for prompt in (*concept.retain, *concept.anchor) if names(prompt, name)]
        assert not set(concept.evaluate) & set(concept.forget)

    def test_retained_prompts_that_name_it_are_left_out(self) -> None:
        (all_kept,) = load_concepts(["a zebra"], concept_type="object")
        (horse,) = load_concepts(["a horse"], concept_type="object")
        assert set(all_kept.retain) - set(horse.retain) == {"a photo of a horse in a meadow"}

    def test_several(self) -> None:
        for concept in load_concepts(["a horse", "a dog"], concept_type="object"):
            assert not [p for p in (*concept.retain, *concept.anchor) if names(p, "horse") or names(p, "dog")]

    def test_too_wide(self) -> None:
        with pytest.raises(ValueError, match="too wide for --concept_type person.*'a photo of a person'"):
            load_concepts(["a person"], concept_type="person")

    def test_unknown_type(self) -> None:
        with pytest.raises(ValueError, match="concept_type must be one of.*got 'thing'"):
            load_concepts(["a zebra"], concept_type="thing")  # type: ignore[arg-type]

    def test_shipped_names_keep_their_meaning(self) -> None:
        assert load_concepts(["nudity"], concept_type="object") == load_concepts(["nudity"])


class TestApart:
    def test_retained_prompts_of_another_erased_concept_are_dropped(self, tmp_path: Path) -> None:
        retain = ["a photo of a church at dawn", "two churches", "a photo of a lion"]
        zebra, _ = load_concepts([write(tmp_path, retain=retain), "church"])
        assert zebra.retain == ("a photo of a lion",)

    def test_an_anchor_may_not_be_erased(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="anchor 'a photo of a church' of 'zebra' names 'church'"):
            load_concepts([write(tmp_path, anchor="a photo of a church"), "church"])

    def test_something_must_be_retained(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="Every retain prompt of 'zebra' names 'church'"):
            load_concepts([write(tmp_path, retain=["a church"]), "church"])

    def test_part_of_a_word_is_no_name(self, tmp_path: Path) -> None:
        zebra, _ = load_concepts([write(tmp_path, retain=["a churchyard", "a photo of a lion"]), "church"])
        assert len(zebra.retain) == 2


class TestFiles:
    def test_one_anchor_serves_all(self, tmp_path: Path) -> None:
        (zebra,) = load_concepts([write(tmp_path)])
        assert zebra == Concept(
            name="zebra",
            type="object",
            forget=tuple(ZEBRA["forget"]),
            anchor=("a photo of a horse",) * 2,
            retain=tuple(ZEBRA["retain"]),
            evaluate=("a drawing of a zebra",),
        )

    @pytest.mark.parametrize(
        ("changes", "says"),
        [
            ({"anchors": "x"}, "unknown key 'anchors'. Did you mean 'anchor'.*Expected: anchor, evaluate"),
            ({"retain": None}, "missing retain. Expected"),
            ({"forget": "a zebra"}, "`forget` must be a non-empty list.*got 'a zebra'"),
            ({"forget": []}, r"`forget` must be a non-empty list.*got \[\]"),
            (
                {"evaluate": ["a zebra", 3]},
                r"`evaluate` must be a non-empty list of non-empty prompts, got \['a zebra', 3\]",
            ),
            ({"retain": ["a lion", " "]}, "`retain` must be a non-empty list of non-empty prompts"),
            ({"anchor": ["a horse"]}, "2 forget prompts but 1 anchors"),
            ({"anchor": "a zebra in a zoo"}, "the anchor equals the forget prompt 'a zebra in a zoo'"),
            (
                {"retain": ["A zebra in a zoo, at night"]},
                "retain prompt 'A zebra in a zoo, at night' contains the forget",
            ),
            ({"type": "animal"}, r"type must be one of \('object', 'style', 'person'\), got 'animal'"),
            ({"name": 5}, "`name` must be text, got 5"),
        ],
    )
    def test_faults(self, tmp_path: Path, changes: dict[str, object], says: str) -> None:
        with pytest.raises(ValueError, match=rf"(?s)zebra\.yaml.*{says}"):
            load_concepts([write(tmp_path, **changes)])

    @pytest.mark.parametrize(
        ("text", "says"), [("a: [1", "not readable as YAML"), ("- a", "expected a mapping.*got list")]
    )
    def test_not_a_mapping(self, tmp_path: Path, text: str, says: str) -> None:
        (tmp_path / "broken.yaml").write_text(text, encoding="utf-8")
        with pytest.raises(ValueError, match=rf"broken\.yaml.*{says}"):
            load_concepts([str(tmp_path / "broken.yaml")])

    def test_presets_are_files_like_any_other(self) -> None:
        assert load_concepts([str(PROMPTS_DIR / "nudity.yaml")]) == load_concepts(["nudity"])
