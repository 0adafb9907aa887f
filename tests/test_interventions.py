"""do(.) on images: right content, right seeds, clear errors."""

import functools
import random
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import PIL
import pytest
import torch
import torchvision
from PIL import Image, ImageDraw, ImageOps
from torchvision.transforms import v2

from skclip_icm._images.decoding import digest
from skclip_icm.interventions import (
    IMAGE_INTERVENTIONS,
    PHOTOMETRIC,
    intervene,
    intervention_key,
    resolve_interventions,
)
from skclip_icm.interventions import _intervene as interventions
from skclip_icm.interventions._recipes import RANDOM_CHOICE, RECIPES

FACTOR = 3  # a global that functions below refer to


def picture(seed=0, size=(96, 80)):
    noise = np.random.default_rng(seed).integers(0, 256, (40, 48, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)


def to_tensor(image):
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def add_noise(image, rng):
    noise = rng.integers(-20, 20, (*image.size[::-1], 3))
    return np.clip(np.asarray(image).astype(int) + noise, 0, 255).astype(np.uint8)


def add_global_noise(image):
    pixels = np.asarray(image).astype(int)
    noise = np.random.randint(-20, 20, pixels.shape) + random.randint(0, 9)
    return np.clip(pixels + noise, 0, 255).astype(np.uint8)


def test_names():
    assert IMAGE_INTERVENTIONS[:7] == RANDOM_CHOICE
    assert IMAGE_INTERVENTIONS[7:] == ("photometric", "hue", "random_choice")


def test_random_choice_draws_each_of_the_seven_alike(monkeypatch):
    drawn = []
    for name in RANDOM_CHOICE:
        monkeypatch.setitem(
            RECIPES,
            name,
            lambda image, rng, name=name: drawn.append(name) or image,
        )
    for draw in range(700):
        intervene(picture(), "random_choice", draw=draw)
    counts = [drawn.count(name) for name in RANDOM_CHOICE]
    assert len(drawn) == 700 and 70 < min(counts) <= max(counts) < 130


@pytest.mark.parametrize("name", IMAGE_INTERVENTIONS)
class TestNamed:
    def test_type_and_size_are_kept_and_the_image_is_not_touched(self, name):
        image = picture()
        before = image.copy()
        result = intervene(image, name)
        assert result.mode == "RGB" and result.size == image.size
        assert image == before
        assert result != image

    def test_pil_and_tensor_agree(self, name):
        image = picture()
        result = intervene(to_tensor(image), name)
        assert result.dtype == torch.uint8
        assert torch.equal(result, to_tensor(intervene(image, name)))

    def test_depends_on_content_seed_and_draw_alone(self, name):
        images = [picture(seed) for seed in range(6)]
        random.seed(1)
        torch.manual_seed(1)
        one_by_one = [intervene(image, name, draw=1).tobytes() for image in images]
        torch.manual_seed(2)
        with ThreadPoolExecutor(4) as pool:
            work = pool.map(lambda im: intervene(im, name, draw=1), images[::-1])
            assert [r.tobytes() for r in work][::-1] == one_by_one

    def test_seeds_and_draws_differ(self, name):
        if name in ("grayscale", "invert", "equalize"):
            pytest.skip("has no parameters")
        results = {
            intervene(picture(), name, random_state=s, draw=d).tobytes()
            for s in range(3)
            for d in range(4)
        }
        fewest = {"posterize": 2, "random_choice": 5}  # some of the seven have none
        assert len(results) >= fewest.get(name, 10)

    def test_extreme_images_survive(self, name):
        for colour, size in [("black", (2, 2)), ("white", (3, 200)), ("red", (2, 5))]:
            assert intervene(Image.new("RGB", size, colour), name).size == size


class TestEffects:
    def test_invert_twice_is_the_image(self):
        assert intervene(intervene(picture(), "invert"), "invert") == picture()

    def test_grayscale_has_no_colour(self):
        red, green, blue = intervene(picture(), "grayscale").split()
        assert red == green == blue

    def test_posterize_leaves_few_levels(self):
        for draw in range(8):
            assert len(np.unique(intervene(picture(), "posterize", draw=draw))) <= 16

    def test_equalize_spreads_a_flat_histogram(self):
        flat = Image.fromarray(np.asarray(picture()) // 8 + 100)
        assert np.std(intervene(flat, "equalize")) > 3 * np.std(flat)

    def test_solarize_inverts_the_bright_side_alone(self):
        image = Image.new("RGB", (4, 4), (10, 10, 250))
        assert intervene(image, "solarize").getpixel((0, 0)) == (10, 10, 5)

    def test_blur_takes_the_same_share_of_small_and_large_images(self):
        large = picture(size=(448, 448))  # smooth: 40 patches a side
        small = large.resize((224, 224), Image.Resampling.BOX)

        def blur(image):
            rng = np.random.default_rng(0)
            return RECIPES["gaussian_blur"](image, rng)

        reduced = blur(large).resize((224, 224), Image.Resampling.BOX)
        assert np.abs(np.int16(reduced) - np.int16(blur(small))).max() <= 4

    def test_hue_moves_colours_far_and_nothing_else(self):
        image = Image.new("RGB", (8, 4), "red")
        image.paste((200, 200, 200), (4, 0, 8, 4))
        for draw in range(20):
            result = intervene(image, "hue", draw=draw)
            hue, saturation, value = result.convert("HSV").getpixel((0, 0))
            assert 40 <= hue <= 215 and saturation > 250 and value > 250
            assert result.getpixel((6, 0)) == (200, 200, 200)

    def test_photometric_applies_at_least_one_part(self, monkeypatch):
        for name in PHOTOMETRIC:
            monkeypatch.setitem(PHOTOMETRIC, name, 0.0)
        for draw in range(20):
            assert intervene(picture(), "photometric", draw=draw) != picture()


class TestCallables:
    @pytest.mark.parametrize("function", [add_noise, add_global_noise])
    def test_random_functions_are_seeded(self, function):
        first = intervene(picture(), function)
        np.random.seed(5)
        assert intervene(picture(), function) == first
        assert intervene(picture(), function, draw=1) != first
        assert intervene(picture(), function, random_state=1) != first
        assert intervene(picture(1), function) != first

    def test_global_generators_are_restored_even_after_an_error(self):
        def fail(image):
            random.random(), np.random.rand(), torch.rand(1)
            raise RuntimeError("broken")

        random.seed(3), np.random.seed(3), torch.manual_seed(3)
        expected = random.random(), np.random.rand(), torch.rand(1)
        random.seed(3), np.random.seed(3), torch.manual_seed(3)
        with pytest.raises(RuntimeError) as caught:
            intervene(picture(), fail)
        assert "intervention 'fail'" in caught.value.__notes__[0]
        assert (random.random(), np.random.rand(), torch.rand(1)) == expected

    def test_torchvision_transforms_in_threads(self):
        transform = v2.RandomResizedCrop(16)
        images = [picture(seed) for seed in range(8)]
        expected = [intervene(image, transform).tobytes() for image in images]
        with ThreadPoolExecutor(4) as pool:
            results = pool.map(lambda im: intervene(im, transform), images)
            assert [r.tobytes() for r in results] == expected
        assert len(set(expected)) == 8

    def test_functions_with_optional_parameters_get_no_generator(self):
        result = intervene(picture(), ImageOps.autocontrast)
        assert result == ImageOps.autocontrast(picture())

    @pytest.mark.parametrize(
        "convert", [np.asarray, to_tensor, lambda im: im.convert("RGBA"), lambda im: im]
    )
    def test_what_may_be_returned(self, convert):
        smaller = intervene(picture(), lambda im: convert(im.resize((9, 8))))
        assert smaller.mode == "RGB" and smaller == picture().resize((9, 8))
        tensor = intervene(to_tensor(picture()), lambda im: convert(im.resize((9, 8))))
        assert tensor.shape == (3, 8, 9)

    def test_drawing_on_the_image_leaves_the_original(self):
        def cover(image):
            ImageDraw.Draw(image).rectangle((0, 0, 20, 20), fill="black")
            return image

        image = picture()
        assert intervene(image, cover) != image
        assert image == picture()

    @pytest.mark.parametrize("output", [None, 3, np.zeros((4, 4, 3)) + 9, "a.jpg"])
    def test_no_image_returned(self, output):
        def broken(image):
            return output

        with pytest.raises(TypeError, match="'broken' returned a"):
            intervene(picture(), broken)


class TestArguments:
    def test_unknown_name_lists_close_ones(self):
        with pytest.raises(ValueError, match="Did you mean 'grayscale'"):
            intervene(picture(), "greyscale")
        with pytest.raises(ValueError, match="photometric"):
            resolve_interventions(["invert", "nonsense"])

    @pytest.mark.parametrize("image", [None, "a.jpg", np.zeros((4, 4, 3), np.uint8)])
    def test_no_image(self, image):
        with pytest.raises(TypeError, match="expected a PIL image"):
            intervene(image)

    @pytest.mark.parametrize("argument", ["random_state", "draw"])
    def test_seeds_are_ints(self, argument):
        with pytest.raises(TypeError, match=f"{argument} is 0.5"):
            intervene(picture(), **{argument: 0.5})

    def test_grey_pil_image_becomes_rgb(self):
        assert intervene(picture().convert("L"), "invert").mode == "RGB"

    @pytest.mark.parametrize("spec", [[], ()])
    def test_empty(self, spec):
        with pytest.raises(ValueError, match="empty"):
            resolve_interventions(spec)

    @pytest.mark.parametrize("spec", [None, 3, [None], ["invert", 3]])
    def test_wrong_type(self, spec):
        with pytest.raises(TypeError, match="not an intervention"):
            resolve_interventions(spec)

    @pytest.mark.parametrize("spec", [["hue", "hue"], [add_noise, add_noise]])
    def test_twice(self, spec):
        with pytest.raises(ValueError, match="twice.*n_interventions"):
            resolve_interventions(spec)

    def test_resolved_functions_do_what_intervene_does(self):
        transform = v2.ColorJitter(hue=0.2)
        spec = ["hue", add_noise, transform, functools.partial(add_noise)]
        resolved = dict(resolve_interventions(spec))
        assert list(resolved) == ["hue", "add_noise", "ColorJitter", "add_noise-2"]
        for function, entry in zip(resolved.values(), spec, strict=True):
            result = function(picture(), random_state=2, draw=3)
            assert result == intervene(picture(), entry, random_state=2, draw=3)

    def test_one_name_or_callable(self):
        assert [name for name, _ in resolve_interventions("invert")] == ["invert"]
        assert [name for name, _ in resolve_interventions(add_noise)] == ["add_noise"]


class TestKeys:
    def test_names(self, monkeypatch):
        before = intervention_key("photometric")
        assert before != intervention_key("invert")
        monkeypatch.setitem(PHOTOMETRIC, "solarize", 0.9)
        assert intervention_key("photometric") != before

    @pytest.mark.parametrize("library", [PIL, torchvision])
    def test_another_version_of_what_makes_the_pixels(self, monkeypatch, library):
        before = intervention_key("gaussian_blur")
        monkeypatch.setattr(library, "__version__", "99.0")
        assert intervention_key("gaussian_blur") != before

    def test_another_version_of_this_code(self, monkeypatch):
        before = intervention_key("invert")
        monkeypatch.setattr(interventions, "_VERSION", 99)
        assert intervention_key("invert") != before

    def test_callables_have_the_one_they_are_given(self):
        def turn(image):
            return image.rotate(90)

        assert intervention_key(turn) is None
        turn.cache_key = "turn-1"
        assert "turn-1" in intervention_key(turn)
        turn.cache_key = 1
        with pytest.raises(TypeError, match="'turn' has the cache_key 1"):
            intervention_key(turn)

    def test_a_key_that_functools_copied_is_not_taken(self):
        def turn(image):
            return image.rotate(90)

        turn.cache_key = "turn-1"
        wrapper = functools.wraps(turn)(lambda image: turn(image).rotate(90))
        assert intervention_key(wrapper) is None
        wrapper.cache_key = "turned twice"
        assert "turned twice" in intervention_key(wrapper)

    def test_same_in_another_process(self):
        code = (
            "import sys; sys.path[:0] = ['tests', '.']; import test_interventions as t;"
            "print(t.intervention_key('hue'), t.digest(t.intervene(t.picture())))"
        )
        output = subprocess.run(
            [sys.executable, "-c", code],
            cwd=Path(__file__).parents[1],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        expected = digest(intervene(picture()))
        assert output == f"{intervention_key('hue')} {expected}\n"
