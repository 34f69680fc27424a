import numpy as np

from fewscan.storage.phantom.anatomy import BOX_ZYX, draw_head
from fewscan.storage.phantom.lesions import Focus, draw_foci, grow, spots


def test_foci_vary_in_size_and_number() -> None:
    drawn = [draw_foci(np.random.default_rng(seed)) for seed in range(200)]
    volumes_ml = np.array([foci[0].volume_mm3 for foci in drawn]) / 1000
    assert 20 <= volumes_ml.min() < 25
    assert 150 < volumes_ml.max() <= 180
    assert 0.1 < np.mean([len(foci) == 2 for foci in drawn]) < 0.3


def test_a_tumour_has_its_volume_and_keeps_to_its_place() -> None:
    rng = np.random.default_rng(4)
    head = draw_head(rng)
    focus = Focus((10, 0, 30), volume_mm3=20e3, core_share=0.3, crossing_mm=1)
    tumour = grow(rng, [focus], head, enhancing=True)
    oedema, core = tumour.oedema_ZYX > 0, tumour.core_ZYX > 0
    assert 0.98 * 20e3 < 8 * oedema.sum() <= 20e3
    assert 0.98 * 6e3 < 8 * core.sum() <= 6e3
    assert core[tumour.necrosis_ZYX > 0].all()
    whole = oedema | core
    assert (head.brain_ZYX[whole] > 0).all()
    assert (head.ventricles_ZYX[whole] < 0).all()
    assert (head.cortex_ZYX[oedema] > head.sulcus_mm).all()
    assert (head.place[2][whole] > -1).all()


def test_without_enhancement_there_is_no_rim() -> None:
    rng = np.random.default_rng(4)
    tumour = grow(rng, draw_foci(rng), draw_head(rng), enhancing=False)
    np.testing.assert_array_equal(tumour.core_ZYX, tumour.necrosis_ZYX)


def test_spots_at_the_border_of_the_box_are_cut() -> None:
    corners = np.array([0, np.prod(BOX_ZYX) - 1])
    cover_ZYX = spots(np.random.default_rng(0), corners, 20, (2, 3))
    assert cover_ZYX[0, 0, 0] == cover_ZYX[-1, -1, -1] == 1
    assert cover_ZYX[4:-4].max() == 0
    assert spots(np.random.default_rng(0), corners[:0], 20, (2, 3)).max() == 0
