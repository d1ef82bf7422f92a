"""A run's description: its fingerprint is in the files of runs that were computed before."""

from dataclasses import replace

from cnn_gp.store.description import Description, differences
from helpers.small_runs import make_data, make_description


def test_the_fingerprint_of_a_description_stays():
    description = Description(
        model="convnet_gp",
        kernel={"input_shape": [1, 1, 2], "network": {"layer": "Dense", "var_weight": 1.0, "var_bias": 0.1}},
        dataset="made",
        data_hash="ab" * 32,
        image_shape=(1, 1, 2),
        n_classes=3,
        N_train=23,
        N_vali=9,
        N_test=7,
        n_max=5,
        float_type="float32",
    )
    assert description.fingerprint == "cf8b3489d4d4cd3cd63fcf002374678642b9a6859efe5da5e04fdae027d84d40"
    assert Description.from_json(description.to_json()) == description


def test_a_data_sets_description_has_its_sizes():
    description = make_description(make_data(N_train=20, N_vali=6, N_test=3))
    assert (description.N_train, description.N_vali, description.N_test, description.n_classes) == (20, 6, 3, 3)
    assert description.data_hash == make_data(N_train=20, N_vali=6, N_test=3).data_hash()


def test_preprocessing_is_part_of_the_fingerprint():
    without = make_description(make_data())
    assert "preprocessing" not in without.to_json()
    whitened = replace(without, preprocessing={"flip": True, "zca": 0.01})
    assert Description.from_json(whitened.to_json()) == whitened
    prints = {one.fingerprint for one in (without, whitened, replace(without, preprocessing={"zca": 0.01}))}
    assert len(prints) == 3
    said = 'preprocessing is {} there and {"flip": true, "zca": 0.01} asked for'
    assert differences(without, whitened) == said
