"""Where things lie: every path of the study, both layouts of robust_samples, and names that are refused."""

import os
from collections.abc import Iterable
from pathlib import Path

import pytest

from mimicry.common.errors import BatchFault, UsageError
from mimicry.study.tree import (
    COUNTERMEASURES,
    DEFAULT_DATA_ROOT,
    PROTECTIONS,
    AdapterId,
    Artist,
    Condition,
    Source,
    StudyTree,
    folders_in,
    sister_folders,
    variant_problem,
)
from tests.hostile_names import HOSTILE_NAMES, over_hostile_names

MONET = Artist("historical", "impressionism", "Claude_Monet")
PLACE = "historical/impressionism/Claude_Monet"


@pytest.fixture
def tree(tmp_path: Path) -> StudyTree:
    make(tmp_path, f"original_art/{PLACE}")
    return StudyTree(tmp_path)


def make(root: Path, *folders: str) -> None:
    for folder in folders:
        (root / folder).mkdir(parents=True, exist_ok=True)


def refusal(tree: StudyTree, *condition: str) -> str:
    with pytest.raises(UsageError) as caught:
        tree.source(Condition(*condition))
    return str(caught.value)


class TestPaths:
    def test_all_of_them(self) -> None:
        tree = StudyTree(DEFAULT_DATA_ROOT)
        root = "data/style_mimicry"
        condition = Condition("mist", "noisy_upscaling")
        outputs = f"{root}/models/lora"
        adapter = AdapterId("s", condition, MONET)
        expected = {
            tree.original_art: f"{root}/original_art",
            tree.protected_art: f"{root}/protected_art",
            tree.robust_samples: f"{root}/robust_samples",
            tree.tracker: f"{root}/progress/progress_tracker.json",
            tree.images_of(tree.original_art, MONET): f"{root}/original_art/{PLACE}",
            tree.quarantine: f"{root}/progress/quarantine.json",
            tree.lora: outputs,
            tree.lora / "s": f"{outputs}/s",
            tree.adapter_dir(adapter): f"{outputs}/s/mist__noisy_upscaling/{PLACE}",
            tree.adapter_dir(AdapterId("hf_diffusers", Condition(), MONET)): (
                f"{outputs}/hf_diffusers/none__none/{PLACE}"
            ),
            tree.base_samples("s"): f"{outputs}/s/base_samples",
            tree.samples_of(adapter): f"{root}/mimic_art/s/mist__noisy_upscaling/{PLACE}",
            tree.samples_of_base("s"): f"{root}/mimic_art/s/base",
        }
        assert {path: str(path) for path in expected} == expected

    def test_names_of_the_study(self) -> None:
        assert PROTECTIONS == ("glaze", "mist", "anti_dreambooth", "style_guard")
        assert COUNTERMEASURES == ("diff_pure", "gaussian_noise", "noisy_upscaling", "impress")
        assert str(MONET) == PLACE
        assert str(Condition()) == "none__none"


class TestArtists:
    def test_all_with_a_folder_in_order(self, tmp_path: Path) -> None:
        make(tmp_path, "b/s/y", "a/t/z", "a/s/x", "a/s/X", "a/empty", ".git/s/x", "a/.s/x", "a/s/.x")
        (tmp_path / "a" / "s" / "file").touch()
        (tmp_path / "file").touch()
        artists = StudyTree(tmp_path).artists(tmp_path)
        assert list(map(str, artists)) == ["a/s/X", "a/s/x", "a/t/z", "b/s/y"]

    def test_no_folder_no_artist(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        for root in (tmp_path / "none", tmp_path / "file"):
            assert StudyTree(tmp_path).artists(root) == []

    @over_hostile_names
    def test_hostile_names(self, hostile_name: str, tmp_path: Path) -> None:
        (tmp_path / hostile_name / hostile_name / hostile_name).mkdir(parents=True)
        artist = Artist(hostile_name, hostile_name, hostile_name)
        tree = StudyTree(tmp_path)
        assert tree.artists(tmp_path) == ([] if hostile_name.startswith(".") else [artist])
        assert tree.images_of(tmp_path, artist).is_dir()

    def test_links(self, tmp_path: Path) -> None:
        make(tmp_path, "art", "elsewhere/s/x")
        (tmp_path / "art" / "link").symlink_to(tmp_path / "elsewhere")
        (tmp_path / "art" / "dangling").symlink_to("nowhere")
        (tmp_path / "art" / "itself").symlink_to("itself")
        assert folders_in(tmp_path / "art") == ["link"]
        assert StudyTree(tmp_path).artists(tmp_path / "art") == [Artist("link", "s", "x")]


class TestSource:
    def test_original(self, tree: StudyTree) -> None:
        assert tree.source(Condition()) == Source(tree.original_art, names_protection=True)

    @pytest.mark.parametrize("protection", [*PROTECTIONS, "my_own"])
    def test_protected(self, tree: StudyTree, protection: str) -> None:
        make(tree.data_root, f"protected_art/{protection}")
        assert tree.source(Condition(protection)) == Source(tree.protected_art / protection, True)

    @pytest.mark.parametrize("countermeasure", [*COUNTERMEASURES, "my_own"])
    def test_countered_in_the_users_layout(self, tree: StudyTree, countermeasure: str) -> None:
        make(tree.data_root, f"robust_samples/{countermeasure}/{PLACE}", "protected_art/mist")
        source = tree.source(Condition("mist", countermeasure))
        assert source == Source(tree.robust_samples / countermeasure, names_protection=False)
        assert tree.artists(source.root) == [MONET]

    def test_countered_in_the_layout_that_names_the_protection(self, tree: StudyTree) -> None:
        make(tree.data_root, *(f"robust_samples/diff_pure/{name}/{PLACE}" for name in ("mist", "none")))
        for protection in ("mist", "none"):
            source = tree.source(Condition(protection, "diff_pure"))
            assert source == Source(tree.robust_samples / "diff_pure" / protection, names_protection=True)
            assert tree.artists(source.root) == [MONET]

    def test_the_second_layout_wins_over_splits_beside_it(self, tree: StudyTree) -> None:
        make(tree.data_root, f"robust_samples/diff_pure/{PLACE}", f"robust_samples/diff_pure/mist/{PLACE}")
        assert tree.source(Condition("mist", "diff_pure")).names_protection
        assert tree.source(Condition("mist", "diff_pure")).root == tree.robust_samples / "diff_pure" / "mist"

    def test_the_layouts_are_never_mixed(self, tree: StudyTree) -> None:
        make(tree.data_root, f"robust_samples/diff_pure/{PLACE}", "robust_samples/diff_pure/mist")
        problem = refusal(tree, "glaze", "diff_pure")
        assert "laid out by protection and has no folder of that name" in problem
        assert "mist" in problem

    def test_a_protection_of_the_labs_own_makes_the_second_layout_too(self, tree: StudyTree) -> None:
        make(tree.data_root, "protected_art/my_own", f"robust_samples/impress/my_own/{PLACE}")
        source = tree.source(Condition("my_own", "impress"))
        assert source == Source(tree.robust_samples / "impress" / "my_own", names_protection=True)

    def test_a_countermeasure_alone_has_no_protection_to_name(self, tree: StudyTree) -> None:
        make(tree.data_root, f"robust_samples/impress/{PLACE}")
        problem = refusal(tree, "none", "impress")
        assert "--protection none --countermeasure impress" in problem
        assert str(tree.robust_samples / "impress" / "none") in problem


class TestRefusedNames:
    def test_a_canonical_name_without_a_folder(self, tree: StudyTree) -> None:
        make(tree.data_root, "protected_art/glaze", "robust_samples/impress")
        problem = refusal(tree, "mist")
        assert f"{tree.protected_art / 'mist'} is not a folder" in problem
        assert "glaze" in problem
        assert "--data-root" in problem
        assert f"{tree.robust_samples / 'diff_pure'} is not a folder" in refusal(tree, "mist", "diff_pure")

    def test_no_original_art(self, tmp_path: Path) -> None:
        assert f"{tmp_path / 'original_art'} is not a folder" in refusal(StudyTree(tmp_path))

    def test_misspelt(self, tree: StudyTree) -> None:
        make(tree.data_root, "protected_art/my_own")
        assert "did you mean 'mist'?" in refusal(tree, "mst")
        assert "did you mean 'my_own'?" in refusal(tree, "myown")
        assert "did you mean 'noisy_upscaling'?" in refusal(tree, "mist", "noisy")
        assert "did you mean 'mist'?" in refusal(tree, "MIST")

    def test_both_at_once(self, tree: StudyTree) -> None:
        with pytest.raises(UsageError) as caught:
            tree.source(Condition("mst", "noisy"))
        assert [problem.split()[0] for problem in caught.value.problems] == [
            "--protection",
            "--countermeasure",
        ]

    @pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/", "../original_art", "a__b", "_a", "a_", "_"])
    def test_no_name_of_a_folder(self, tree: StudyTree, name: str) -> None:
        if name and "/" not in name:
            make(tree.data_root, f"protected_art/{name}", f"robust_samples/{name}")
        for condition in ((name,), ("mist", name)):
            assert f"is {name!r}; it takes the name of a folder" in refusal(tree, *condition)

    @over_hostile_names
    def test_hostile_names(self, tree: StudyTree, hostile_name: str) -> None:
        condition = Condition(hostile_name)
        assert "--protection" in refusal(tree, hostile_name)
        (tree.protected_art / hostile_name).mkdir(parents=True)
        if hostile_name.startswith(".") or "__" in hostile_name:
            assert "--protection" in refusal(tree, hostile_name)
        else:
            assert tree.source(condition).root == tree.protected_art / hostile_name


def some_conditions() -> Iterable[Condition]:
    names = [*HOSTILE_NAMES[:9], "none", "mist", "anti_dreambooth", "a_b"]
    return (Condition(one, other) for one in names for other in names if "__" not in one + other)


class TestCondition:
    @pytest.mark.parametrize("condition", [Condition(), Condition("mist"), Condition("a_b", "c_d")], ids=str)
    def test_round_trip(self, condition: Condition) -> None:
        assert Condition.parse(str(condition)) == condition

    @pytest.mark.parametrize("name", ["", "mist", "mist_none", "base_samples", "_", "base"])
    def test_other_folders_are_not_conditions(self, name: str) -> None:
        assert Condition.parse(name) is None


class TestAdapterId:
    def test_key_and_folder(self) -> None:
        adapter = AdapterId("sd15", Condition("mist", "impress"), MONET)
        assert adapter.key == f"sd15/mist/impress/{PLACE}"
        assert adapter.folder == Path(f"sd15/mist__impress/{PLACE}")

    def test_a_variant_stands_beside_the_stack(self) -> None:
        usual = AdapterId("sd15", Condition(), MONET)
        variant = AdapterId("sd15", Condition(), MONET, variant="r32")
        assert variant.key == f"sd15@r32/none/none/{PLACE}"
        assert variant.folder == Path(f"sd15@r32/none__none/{PLACE}")
        assert variant != usual

    def test_round_trip(self) -> None:
        artists = [MONET, *(Artist(name, "s", name) for name in HOSTILE_NAMES)]
        seen = set()
        for condition in some_conditions():
            for artist in artists:
                for variant in (None, "r32"):
                    adapter = AdapterId("stack", condition, artist, variant)
                    path = StudyTree(Path("/data")).adapter_dir(adapter)
                    assert AdapterId.parse(path) == adapter
                    seen.add(path)
        assert len(seen) == 2 * len(list(some_conditions())) * len(artists)

    @over_hostile_names
    def test_round_trip_of_stacks(self, hostile_name: str) -> None:
        for variant in (None, "r32", hostile_name, "a@b"):
            adapter = AdapterId(hostile_name, Condition(), MONET, variant)
            assert AdapterId.parse(StudyTree(Path("/data")).adapter_dir(adapter)) == adapter

    @pytest.mark.parametrize("series", ["stack", "stack@r32", "stack@", "@", "@r32", "a@b@c", "a@@"])
    def test_a_folder_of_any_name_is_found_again(self, series: str, tmp_path: Path) -> None:
        tree = StudyTree(tmp_path)
        folder = tree.lora / series / "none__none" / PLACE
        folder.mkdir(parents=True)
        parsed = AdapterId.parse(folder)
        assert parsed is not None
        assert tree.adapter_dir(parsed) == folder
        assert tree.adapters() == [parsed]

    def test_relative_and_unnormalised(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        folder = tmp_path / "stack" / "mist__none" / "s" / "t" / "a"
        folder.mkdir(parents=True)
        expected = AdapterId("stack", Condition("mist"), Artist("s", "t", "a"))
        monkeypatch.chdir(folder)
        assert AdapterId.parse(Path()) == expected
        monkeypatch.chdir(folder.parents[1])
        assert AdapterId.parse(Path("t/../t/a")) == expected

    def test_a_link_means_what_it_is_called(self, tmp_path: Path) -> None:
        make(tmp_path, "store/none__none/s/t/b", "stack/mist__none/s/t")
        link = tmp_path / "stack" / "mist__none" / "s" / "t" / "a"
        link.symlink_to(tmp_path / "store/none__none/s/t/b")
        assert AdapterId.parse(link) == AdapterId("stack", Condition("mist"), Artist("s", "t", "a"))

    @pytest.mark.parametrize(
        "path",
        [
            "/",
            "/a",
            "/mist__none/s/t",
            "/mist__none/s/t/a",
            "/x/mist_none/s/t/a",
            "/stack/x/mist_none/s/t/a",
            "/stack/mist__none/s/t/a/b",
        ],
    )
    def test_of_another_form(self, path: str) -> None:
        assert AdapterId.parse(Path(path)) is None


class TestAdapters:
    def test_every_folder_of_an_adapter_in_order(self, tmp_path: Path) -> None:
        tree = StudyTree(tmp_path)
        make(
            tree.lora,
            "s/none__none/a/t/y",
            "s/none__none/a/t/x",
            "s/mist__impress/b/t/x",
            "s/mist__none/a/t/x",
            "r/none__none/a/t/x",
            "s@big/none__none/a/t/x",
            "s/base_samples/a/t/x",
            "s/none__none/a/t/.hidden",
            "s/none__none/a/empty",
            ".s/none__none/a/t/x",
        )
        (tree.lora / "s" / "none__none" / "a" / "t" / "file").touch()
        x, y = Artist("a", "t", "x"), Artist("a", "t", "y")
        mine = [
            AdapterId("s", Condition("mist", "impress"), Artist("b", "t", "x")),
            AdapterId("s", Condition("mist"), x),
            AdapterId("s", Condition(), x),
            AdapterId("s", Condition(), y),
        ]
        other, variant = AdapterId("r", Condition(), x), AdapterId("s", Condition(), x, "big")
        assert tree.adapters("s") == mine
        assert tree.adapters("r") == [other]
        assert tree.adapters("s@big") == [variant]
        assert tree.adapters() == [other, *mine, variant]
        assert all(tree.adapter_dir(adapter).is_dir() for adapter in tree.adapters())

    def test_there_are_none_yet(self, tree: StudyTree) -> None:
        assert tree.adapters() == []
        assert tree.adapters("s") == []


class TestSisterFolders:
    def test_the_same_artist_in_other_conditions(self, tmp_path: Path) -> None:
        tree, artist = StudyTree(tmp_path), Artist("a", "t", "x")
        make(
            tree.lora,
            "s/none__none/a/t/x",
            "s/mist__none/a/t/x",
            "s/mist__impress/a/t/x",
            "s/glaze__none/a/t/another",
            "s/base_samples/a/t/x",
            "r/style_guard__none/a/t/x",
            "s@big/glaze__none/a/t/x",
        )
        own = tree.adapter_dir(AdapterId("s", Condition("mist"), artist))
        expected = {
            name: tree.lora / "s" / name / "a" / "t" / "x" for name in ("mist__impress", "none__none")
        }
        assert sister_folders(own) == expected
        # One that is still to be trained has them too.
        unmade = tree.adapter_dir(AdapterId("s", Condition("anti_dreambooth"), artist))
        assert sister_folders(unmade) == expected | {"mist__none": own}

    def test_of_a_variant(self, tmp_path: Path) -> None:
        tree = StudyTree(tmp_path)
        make(tree.lora, "s@big/none__none/a/t/x", "s/none__none/a/t/x", "s@big/mist__none/a/t/x")
        folder = tree.lora / "s@big" / "mist__none" / "a" / "t" / "x"
        assert sister_folders(folder) == {"none__none": tree.lora / "s@big" / "none__none" / "a" / "t" / "x"}

    def test_a_relative_path(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        make(tmp_path, "s/mist__none/a/t/x", "s/none__none/a/t/x")
        monkeypatch.chdir(tmp_path / "s" / "mist__none")
        assert sister_folders(Path("a/t/x")) == {"none__none": tmp_path / "s" / "none__none" / "a/t/x"}

    def test_an_adapter_elsewhere_has_none(self, tmp_path: Path) -> None:
        make(tmp_path, "out", "none__none/a/t/x")
        assert sister_folders(tmp_path / "out") == {}
        assert sister_folders(Path("/out")) == {}

    @over_hostile_names
    def test_hostile_names(self, hostile_name: str, tmp_path: Path) -> None:
        tree, artist = StudyTree(tmp_path), Artist(hostile_name, hostile_name, hostile_name)
        own, other = (
            tree.adapter_dir(AdapterId("s", condition, artist)) for condition in (Condition("m"), Condition())
        )
        other.mkdir(parents=True)
        assert sister_folders(own) == {"none__none": other}


def test_folders_in_keeps_names_as_they_are(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9")
    (tmp_path / name).mkdir()
    assert folders_in(tmp_path) == [name]


def test_a_tree_that_cannot_be_listed_is_a_fault_of_the_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("os.scandir", refuse)

    with pytest.raises(BatchFault, match="cannot be listed: Permission denied"):
        StudyTree(tmp_path).artists(tmp_path)


class TestVariants:
    def test_those_of_a_stack(self, tmp_path: Path) -> None:
        tree = StudyTree(tmp_path)
        for name in ("s", "s@big", "s@a", "other@x", "s@", "ss@y"):
            (tree.lora / name).mkdir(parents=True)
        assert tree.variants("s") == ["a", "big"]
        assert tree.variants("t") == []
        assert tree.stacks() == ["other", "s", "ss"]

    @pytest.mark.parametrize("name", ["rank-32", "seed_43", "a", "x.y", "A" * 40])
    def test_names(self, name: str) -> None:
        assert variant_problem(name) == ""

    @pytest.mark.parametrize("name", ["", "-a", "a-", "a b", "a/b", "a@b", "é", "A" * 41, "..", "a\n"])
    def test_what_is_no_name(self, name: str) -> None:
        assert repr(name) in variant_problem(name)

    @pytest.mark.parametrize("name", ["none", "all", "None", "ALL"])
    def test_a_word_for_several_is_no_name(self, name: str) -> None:
        assert variant_problem(name).startswith(f"{name!r} is not a name: ")

    @pytest.mark.parametrize("variant", [None, "big"])
    def test_the_tree_around_an_adapter(self, variant: str | None, tmp_path: Path) -> None:
        tree = StudyTree(tmp_path / "study")
        adapter = AdapterId("s", Condition("mist"), Artist("a", "b", "c"), variant)
        assert StudyTree.around(tree.adapter_dir(adapter)) == tree
        assert StudyTree.around(tmp_path / "elsewhere/s/mist__none/a/b/c") is None
        assert StudyTree.around(tmp_path) is None
