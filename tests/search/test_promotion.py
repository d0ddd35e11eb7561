"""A promoted model takes over while the service runs: everything is embedded again, nothing is lost."""

import asyncio
import shutil

import numpy as np
import pytest
from search_models import name_champion, save_small_model
from service_process import copy_gallery, make_gallery

from csdn.data.images import extension_of
from csdn.runtime.errors import UserError
from csdn.search.build import images_of
from csdn.search.embedder import Embedder, hash_of_model
from csdn.search.gallery import Gallery
from csdn.search.promotion import Promotion
from csdn.search.service import Service, Settings


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A model and a gallery, to be copied, and its images."""
    folder = tmp_path_factory.mktemp("made")
    make_gallery(folder / "gallery", save_small_model(folder / "model"), folder / "images")
    return folder


@pytest.fixture(params=["folder", "memory store"])
def service(made, tmp_path, request, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    shutil.copytree(made / "model", tmp_path / "model")
    address = str(tmp_path / "gallery") if request.param == "folder" else f"memory://bucket/{tmp_path.name}"
    copy_gallery(made / "gallery", address)
    return Service(Settings(address, tmp_path / "model", (), {}, "cpu", 1))


def promote_another(service):
    shutil.rmtree(service.settings.model)
    return hash_of_model(save_small_model(service.settings.model, seed=1))


def check_features(service):
    """Every image of the gallery in use, on disk as in memory, has the feature of the model in use."""
    gallery, embedder = (
        Gallery.open(service.settings.gallery),
        Embedder.open(service.settings.model, threads=1),
    )
    assert gallery.manifest == service.state.gallery.manifest
    assert gallery.manifest.model == embedder.model_hash == service.state.embedder.model_hash
    stored = np.concatenate([part.features for part in gallery.parts]).astype(np.float32)
    for image, feature in zip(images_of(gallery)[::7], stored[::7], strict=True):
        picture = embedder.prepare(image.read(), extension_of(image.source))
        wanted = embedder.embed(picture[None], image.modality)[0]
        np.testing.assert_allclose(feature, wanted, atol=2e-3)
    return set(gallery.column("source").to_pylist())


def test_the_gallery_is_embedded_again_and_exchanged_with_the_model(service, tmp_path):
    promotion, before = Promotion(service), check_features(service)
    promotion.look()
    old = service.state
    folder = old.gallery.folder
    folder.with_name(f"{folder.name}.next-00000000").mkdir()  # of a model that was never in use
    promoted = promote_another(service)
    promotion.look()
    assert service.state.embedder.model_hash == promoted != old.embedder.model_hash
    assert check_features(service) == before
    assert not list(tmp_path.rglob("*.next-*"))
    # A search that began before still finds with the old model in the old features.
    assert len(old.searcher.search(np.eye(1, old.embedder.dimension, dtype=np.float32))[0]) == 10


def test_the_project_s_champion_takes_over_wherever_it_is(made, tmp_path):
    """A rollback brings the older version to champion/, a promotion the new one to models/."""
    shutil.copytree(made / "model", tmp_path / "models/embedding")
    copy_gallery(made / "gallery", str(tmp_path / "gallery"))
    start = Settings(str(tmp_path / "gallery"), tmp_path / "models/embedding", (), {}, "cpu", 1, tmp_path)
    service = Service(start)
    promotion, first = Promotion(service), service.state.embedder.model_hash
    older = hash_of_model(save_small_model(tmp_path / "older", seed=1))
    name_champion(tmp_path, "v1", older)
    promotion.look()
    assert service.state.embedder.model_hash == first  # the champion's weights are not here yet
    shutil.copytree(tmp_path / "older", tmp_path / "champion/embedding")
    promotion.look()
    assert service.state.embedder.model_hash == older == Gallery.open(start.gallery).manifest.model
    name_champion(tmp_path, "v2", first)
    promotion.look()
    assert service.state.embedder.model_hash == first


def test_what_is_added_and_removed_during_a_promotion_is_kept(service, made, monkeypatch):
    promotion = Promotion(service)
    file = sorted((made / "images/visible").rglob("*.png"))[0]
    removed = file.parent.name
    catch_up, calls = promotion._catch_up, []

    def meanwhile(following, embedder):
        catch_up(following, embedder)
        if not calls:  # the first pass, during which the gallery is free for changes
            asyncio.run(service.remove(removed))
            asyncio.run(service.add(file.read_bytes(), "a.png", "newcomer", "north", "visible", None))
        calls.append(1)

    monkeypatch.setattr(promotion, "_catch_up", meanwhile)
    promote_another(service)
    promotion.look()
    assert len(calls) == 2
    check_features(service)
    people = set(service.state.gallery.column("person").to_pylist())
    assert "newcomer" in people and removed not in people


def test_what_an_ended_process_has_embedded_does_not_stay(service):
    folder = service.state.gallery.folder
    left = folder.with_name(f"{folder.name}.next-00000000")
    left.mkdir()
    Promotion(service)
    assert not left.exists() and folder.exists()


def test_an_image_that_is_gone_keeps_the_old_model_until_it_is_back(service, made, tmp_path):
    promotion, old = Promotion(service), service.state
    file = next((made / "images").rglob("*.png"))
    file.rename(tmp_path / "away.png")
    promoted = promote_another(service)
    with pytest.raises(UserError, match=file.name):
        promotion.look()
    assert service.state is old
    (tmp_path / "away.png").rename(file)
    promotion.look()
    assert service.state.embedder.model_hash == promoted
    check_features(service)


def test_a_model_that_is_missing_or_damaged_for_a_while_changes_nothing(service):
    promotion, old = Promotion(service), service.state
    weights = service.settings.model / "model.safetensors"
    content = weights.read_bytes()
    weights.unlink()
    promotion.look()
    weights.write_bytes(content[:100])
    with pytest.raises(UserError):
        promotion.look()
    weights.write_bytes(content)
    promotion.look()
    assert service.state is old
