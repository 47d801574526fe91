"""The base model as files: found, judged, downloaded, or refused with what to do next."""

import json
import shutil
from pathlib import Path
from typing import Any

import diffusers
import pytest
from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError

from mimicry.common.errors import BatchFault
from mimicry.tuning.hf_diffusers.spec.base_model import COMPONENTS, BaseModel, access_problem
from mimicry.tuning.options.config import TuningConfig
from tests.hostile_names import over_hostile_names
from tests.tuning.model_files import (
    COMMIT,
    OTHER_COMMIT,
    make_cached_model,
    make_model,
    write_json_file,
)


def config_for(name: str | Path, **values: Any) -> TuningConfig:
    return TuningConfig(pretrained_model_name_or_path=str(name), **values)


class TestFind:
    @over_hostile_names
    def test_a_folder(self, hostile_name: str, tmp_path: Path) -> None:
        folder = make_model(tmp_path / hostile_name)
        model = BaseModel.find(config_for(folder))
        assert model == BaseModel(folder=folder)
        assert model.problems(64) == []

    def test_a_folder_below_the_working_and_the_home_folder(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        make_model(tmp_path / "lab" / "model")
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("HOME", str(tmp_path))
        for name in ("lab/model", "~/lab/model"):
            assert BaseModel.find(config_for(name)) == BaseModel(folder=tmp_path / "lab" / "model")

    @pytest.mark.parametrize(
        "name", ["lab/model", "/nowhere/at/all", "~nobody-of-this-name/x", "x" * 300, "a/b/c", "../..x", "-x"]
    )
    def test_nothing_there(self, name: str, tmp_path: Path) -> None:
        assert BaseModel.find(config_for(name, cache_dir=str(tmp_path))) is None

    def test_a_snapshot_in_the_cache(self, tmp_path: Path) -> None:
        snapshot = make_cached_model(tmp_path)
        make_cached_model(tmp_path, commit=OTHER_COMMIT, ref="refs/pr/1")
        found = BaseModel.find(config_for("lab/model", cache_dir=str(tmp_path)))
        assert found == BaseModel(folder=snapshot, name="lab/model", revision=COMMIT)
        assert found.identity() == {"name": "lab/model", "revision": COMMIT}
        for revision in (OTHER_COMMIT, "refs/pr/1"):
            config = config_for("lab/model", cache_dir=str(tmp_path), revision=revision)
            found = BaseModel.find(config)
            assert found is not None
            assert found.revision == OTHER_COMMIT
        config = config_for("lab/model", cache_dir=str(tmp_path), revision="dev")
        assert BaseModel.find(config) is None

    @pytest.mark.parametrize(
        "missing",
        [
            "vae",
            "tokenizer_3",
            "text_encoder_3",
            "transformer/model.safetensors",
            "text_encoder_3/model.safetensors",
        ],
    )
    def test_a_download_that_did_not_end(self, missing: str, tmp_path: Path) -> None:
        """Half a model must be fetched again: not refused, and above all not trained without its T5."""
        path = make_cached_model(tmp_path) / missing
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        assert BaseModel.find(config_for("lab/model", cache_dir=str(tmp_path))) is None

    @pytest.mark.parametrize("variant", ["", ".fp16"])
    def test_all_shards_must_be_there(self, variant: str, tmp_path: Path) -> None:
        folder = make_cached_model(tmp_path) / "transformer"
        (folder / "model.safetensors").unlink()
        shards = [f"model{variant}-0000{number}-of-00002.safetensors" for number in (1, 2)]
        write_json_file(
            folder / f"model.safetensors.index{variant}.json",
            {"weight_map": {"a": shards[0], "b": shards[1], "c": shards[0]}},
        )
        config = config_for("lab/model", cache_dir=str(tmp_path))
        (folder / shards[0]).touch()
        assert BaseModel.find(config) is None
        (folder / shards[1]).touch()
        assert BaseModel.find(config) is not None

    def test_a_model_without_t5_is_whole(self, tmp_path: Path) -> None:
        snapshot = make_cached_model(tmp_path)
        shutil.rmtree(snapshot)
        make_model(snapshot, t5=False)
        model = BaseModel.find(config_for("lab/model", cache_dir=str(tmp_path)))
        assert model is not None
        assert model.problems(64) == []

    @pytest.mark.parametrize("text", ["", "[]", "{", '{"vae": []}', '{"vae": 3}'])
    def test_a_broken_index_is_never_a_traceback(self, text: str, tmp_path: Path) -> None:
        snapshot = make_cached_model(tmp_path)
        (snapshot / "model_index.json").write_text(text)
        found = BaseModel.find(config_for("lab/model", cache_dir=str(tmp_path)))
        assert (found is None) == (text != '{"vae": 3}')


class TestProblems:
    @pytest.mark.parametrize("resolution", [16, 64, 768])
    def test_none(self, resolution: int, tmp_path: Path) -> None:
        assert BaseModel(make_model(tmp_path)).problems(resolution) == []

    @pytest.mark.parametrize(
        ("resolution", "nearest"),
        [(8, 16), (17, 16), (70, 64), (75, 80), (767, 768), (784, 768), (4096, 768)],
    )
    def test_resolutions(self, resolution: int, nearest: int, tmp_path: Path) -> None:
        model = BaseModel(make_model(tmp_path / "tiny"))
        (problem,) = model.problems(resolution)
        assert problem == (
            f"--resolution {resolution}: tiny takes multiples of 16 up to 768; type --resolution {nearest}"
        )
        assert model.problems(nearest) == []

    def test_a_hub_model_is_called_by_its_name(self, tmp_path: Path) -> None:
        model = BaseModel(make_model(tmp_path / COMMIT), "lab/model", COMMIT)
        assert "lab/model takes multiples" in model.problems(17)[0]

    @pytest.mark.parametrize("component", COMPONENTS)
    def test_a_missing_component(self, component: str, tmp_path: Path) -> None:
        shutil.rmtree(make_model(tmp_path) / component)
        problems = BaseModel(tmp_path).problems(64)
        if component.endswith("_3"):
            assert problems == []
        else:
            (problem,) = problems
            assert f"it lacks {component};" in problem
            assert "--pretrained-model-name-or-path" in problem

    def test_all_missing_components_at_once(self, tmp_path: Path) -> None:
        (problem,) = BaseModel(tmp_path).problems(64)
        assert all(name in problem for name in ("scheduler", "text_encoder_2", "transformer", "vae"))

    @pytest.mark.parametrize("text", ["", "[]", "{}", '{"patch_size": "x", "pos_embed_max_size": 1}'])
    def test_an_unreadable_config(self, text: str, tmp_path: Path) -> None:
        (make_model(tmp_path) / "transformer" / "config.json").write_text(text)
        (problem,) = BaseModel(tmp_path).problems(64)
        assert "no readable config" in problem

    def test_the_real_thing(self, demo_dir: Path) -> None:
        assert BaseModel(demo_dir / "tiny_sd3").problems(64) == []


class TestIdentity:
    def test_covers_names_and_contents(self, tmp_path: Path) -> None:
        model = BaseModel(make_model(tmp_path / "m"))
        first = model.identity()
        assert first["name"] is None
        (tmp_path / "m" / "vae" / "model.safetensors").rename(tmp_path / "m" / "vae" / "other.safetensors")
        second = model.identity()
        (tmp_path / "m" / "vae" / "other.safetensors").write_bytes(b"VAE")
        assert len({value["fingerprint"] for value in (first, second, model.identity())}) == 3

    def test_large_files_are_told_by_size_head_and_tail(self, tmp_path: Path) -> None:
        model = BaseModel(make_model(tmp_path))
        weights = tmp_path / "transformer" / "model.safetensors"
        size = (64 << 20) + 5
        seen = []
        for size_now, place in ((size, None), (size, 0), (size, size - 1), (size + 1, None)):
            with weights.open("wb") as file:
                file.truncate(size_now)
                if place is not None:
                    file.seek(place)
                    file.write(b"x")
            seen.append(model.identity()["fingerprint"])
        assert len(set(seen)) == 4

    def test_a_snapshot_under_no_commit_is_told_by_its_files(self, tmp_path: Path) -> None:
        model = BaseModel.downloaded("lab/model", make_model(tmp_path / "main"))
        assert model.revision is None
        assert set(model.identity()) == {"name", "fingerprint"}


def hub_error(kind: Any, text: str = "refused\nsecond line") -> Exception:
    """Return an error of huggingface_hub without the response that its constructor wants."""
    error: Exception = kind.__new__(kind)
    Exception.__init__(error, text)
    return error


class TestAccessProblem:
    def test_gated(self) -> None:
        problem = access_problem("lab/gated", hub_error(GatedRepoError))
        assert "https://huggingface.co/lab/gated" in problem
        assert "licence" in problem
        assert "HF_TOKEN" in problem

    def test_gated_inside_an_error_of_diffusers(self) -> None:
        error = OSError("Cannot load model: an error occurred while trying to fetch metadata")
        error.__cause__ = hub_error(GatedRepoError)
        assert "licence" in access_problem("lab/gated", error)

    @pytest.mark.parametrize("kind", [RepositoryNotFoundError, HFValidationError])
    def test_unknown(self, kind: type[Any]) -> None:
        problem = access_problem("lab/typo", hub_error(kind))
        assert problem.startswith("--pretrained-model-name-or-path lab/typo: no such folder here")

    def test_anything_else_in_one_line(self) -> None:
        problem = access_problem("lab/model", ConnectionError("no route\nto host"))
        assert "no route; check the network" in problem
        assert "TimeoutError" in access_problem("lab/model", TimeoutError())


class TestResolve:
    @staticmethod
    def fake_download(monkeypatch: pytest.MonkeyPatch, result: Any) -> list[dict[str, Any]]:
        calls: list[dict[str, Any]] = []

        def download(name: str, **options: Any) -> Any:
            calls.append({"name": name, **options})
            if isinstance(result, Exception):
                raise result
            return result

        monkeypatch.setattr(diffusers.StableDiffusion3Pipeline, "download", download)
        return calls

    def test_what_is_here_is_not_downloaded(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        calls = self.fake_download(monkeypatch, OSError("no network in tests"))
        folder = make_model(tmp_path / "mine")
        snapshot = make_cached_model(tmp_path)
        assert BaseModel.resolve(config_for(folder)).folder == folder
        assert BaseModel.resolve(config_for("lab/model", cache_dir=str(tmp_path))).folder == snapshot
        assert calls == []

    @pytest.mark.parametrize(
        "error", [OSError("disk full"), ValueError("no index"), Exception("an HTTP library's own")], ids=repr
    )
    def test_a_download_that_fails(
        self, error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.fake_download(monkeypatch, error)
        with pytest.raises(BatchFault, match=str(error)):
            BaseModel.resolve(config_for("lab/model", cache_dir=str(tmp_path)))

    def test_a_download_that_was_cut_short_goes_on(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        snapshot = make_cached_model(tmp_path)
        shutil.rmtree(snapshot / "text_encoder_3")
        calls = self.fake_download(monkeypatch, str(snapshot))
        config = config_for("lab/model", cache_dir=str(tmp_path), revision="main", variant="fp16")
        assert BaseModel.resolve(config) == BaseModel(folder=snapshot, name="lab/model", revision=COMMIT)
        assert calls == [
            {"name": "lab/model", "revision": "main", "variant": "fp16", "cache_dir": str(tmp_path)}
        ]


def test_config_of(tmp_path: Path) -> None:
    model = BaseModel(make_model(tmp_path))
    assert model.config_of("vae") == {"block_out_channels": [8, 8, 8, 8]}
    (tmp_path / "vae" / "config.json").write_text(json.dumps([1]))
    assert model.config_of("vae") == {}
