"""What docs/beyond_the_paper.md says of the results is what results/ holds."""

import csv
import json

import pytest

from cnn_gp.evaluation.comparisons import sign_test
from cnn_gp.kernels.architectures import build_kernel
from helpers.documents import table
from helpers.paths import ROOT

RESULTS = ROOT / "results"
POOLING = RESULTS / "pooling"
NTK = RESULTS / "ntk"
#: The page's headings of the data sets.
DATA_SETS = {"mnist": "MNIST", "fashion_mnist": "Fashion-MNIST"}


def section(heading, data_set):
    """The page's text from a heading of the second level, then one of a data set, on."""
    text = (ROOT / "docs" / "beyond_the_paper.md").read_text()
    return text.split(f"\n## {heading}\n")[1].split(f"\n### {DATA_SETS[data_set]}", 1)[1]


def stored(folder, root=POOLING, runs="*"):
    """The results of a folder by their runs."""
    return {path.stem: json.loads(path.read_text()) for path in root.joinpath(folder).glob(f"{runs}.json")}


def test_fashion_mnist_with_all_images_is_what_is_stored():
    results = stored("fashion_mnist", RESULTS)
    page = (ROOT / "docs" / "beyond_the_paper.md").read_text().split("## Fashion-MNIST, 50,000 training images")[1]
    errors, curves = table(page, "Errors in %"), table(page, "N_train images")
    assert errors.keys() == curves.keys() == results.keys()
    for name, r in results.items():
        assert (r["N_train"], r["N_vali"], r["N_test"], r["noise"], r["jitter"]) == (50_000, 10_000, 10_000, 0, 0)
        expected = [f"{r[key]:.2f}" for key in ("validation_error", "test_error")]
        for key in ("negative_log_likelihood", "brier_score", "expected_calibration_error"):
            expected.append(f"{r['scores']['test'][key]:.4f}")
        assert errors[name][1:] == expected
        assert [point["N_train"] for point in r["learning_curve"]] == [500, 1000, 2000, 5000, 10_000, 20_000, 50_000]
        assert curves[name][1:] == [f"{point['test_error']:.2f}" for point in r["learning_curve"]]
    told = " ".join(page.split())
    for other in ("convnet_gp", "residual_cnn_gp"):
        for point, of_resnet in zip(
            results[other]["learning_curve"], results["resnet_gp"]["learning_curve"], strict=True
        ):
            assert of_resnet["test_error"] < point["test_error"]
    right, wrong = differing("fashion_mnist", "test", "convnet_gp", "resnet_gp", RESULTS)
    said = f"{right} test images are right by it and wrong by the ConvNet, {wrong} the other way round"
    assert f"{said} (p = {sign_test(right, wrong):.0e})" in told
    right, wrong = differing("fashion_mnist", "test", "convnet_gp", "residual_cnn_gp", RESULTS)
    assert f"no difference is seen: {wrong} and {right} (p = {sign_test(right, wrong):.1f})" in told


def of_convnet(folder):
    """Those of the ConvNet."""
    return stored(folder, runs="convnet_gp*")


def assert_errors_are_told(rows, results, sizes=(1000, 1000, 1000)):
    """The rows of a table of errors and class probabilities."""
    assert rows.keys() == results.keys()
    for name, r in results.items():
        assert (r["N_train"], r["N_vali"], r["N_test"], r["jitter"]) == (*sizes, 0)
        scores = r["scores"]["test"]
        expected = [f"{r[key]:.2f}" for key in ("validation_error", "test_error")]
        for key in ("negative_log_likelihood", "brier_score", "expected_calibration_error"):
            expected.append(f"{scores[key]:.3f}")
        expected.append(f"{r['scaled_log_marginal_likelihood'] / r['N_train'] / 10:.3f}")
        assert rows[name][1:] == expected


@pytest.mark.parametrize("data_set", DATA_SETS)
def test_the_errors_with_pools_are_what_is_stored(data_set):
    results = of_convnet(data_set)
    assert {r["noise"] for r in results.values()} == {0}
    assert_errors_are_told(table(section("Average pooling", data_set), "training images"), results)
    if data_set != "mnist":
        return
    # As the page says, the marginal likelihood orders them as the validation error does.
    by_error = sorted(results, key=lambda name: results[name]["validation_error"])
    assert by_error == sorted(results, key=lambda name: -results[name]["scaled_log_marginal_likelihood"])


@pytest.mark.parametrize("data_set", DATA_SETS)
def test_the_learning_curves_with_pools_are_what_is_stored(data_set):
    rows = table(section("Average pooling", data_set), "N_train images")
    for name, r in of_convnet(data_set).items():
        assert [point["N_train"] for point in r["learning_curve"]] == [100, 200, 500, 1000]
        assert rows[name][1:] == [f"{point['test_error']:.2f}" for point in r["learning_curve"]]


def test_ten_thousand_images_with_a_pool_are_what_is_stored():
    results = stored("mnist_10000")
    text = section("Average pooling", "mnist").split("\n### MNIST, 10,000 training images\n")[1]
    assert {r["noise"] for r in results.values()} == {0}
    assert_errors_are_told(table(text, "without noise"), results, (10_000, 1000, 10_000))
    rows = table(text, "N_train images")
    for name, r in results.items():
        assert [point["N_train"] for point in r["learning_curve"]] == [500, 1000, 2000, 5000, 10_000]
        assert rows[name][1:] == [f"{point['test_error']:.2f}" for point in r["learning_curve"]]
    right, wrong = differing("mnist_10000", "test", other="convnet_gp_pool_3")
    assert f"makes {right} test images right and {wrong} wrong (p = {sign_test(right, wrong):.0e})" in text
    without, pooled = (
        [point["test_error"] for point in results[name]["learning_curve"]]
        for name in ("convnet_gp", "convnet_gp_pool_3")
    )
    ratios = [with_pool / one for with_pool, one in zip(pooled, without, strict=True)]
    told = (
        f"The ratio of the errors with and without the pool is between {min(ratios):.2f} and {max(ratios):.2f} at all"
    )
    assert told in " ".join(text.split())
    assert_noises_are_told("mnist_10000", table(section("Noise chosen by leave-one-out", "mnist"), "it is the same"))


@pytest.mark.parametrize("data_set", DATA_SETS)
def test_the_noises_are_what_is_stored(data_set):
    assert_noises_are_told(data_set, table(section("Noise chosen by leave-one-out", data_set), "training images"))


def assert_noises_are_told(folder, rows):
    """The rows of a table of leave-one-out densities."""
    results, without = of_convnet(f"{folder}_noise"), of_convnet(folder)
    assert rows.keys() == results.keys() == without.keys()
    for name, r in results.items():
        assert [one["noise"] for one in r["noise_search"]] == [0, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1]
        chosen = [f"{r['noise']:g}", *(f"{one['test_error']:.2f}" for one in (without[name], r))]
        assert rows[name][1:] == [*densities_told(r), *chosen]


def test_the_noises_at_20000_images_are_what_is_stored():
    page = (ROOT / "docs" / "beyond_the_paper.md").read_text().split("training images: it chooses 0.01\n")[1]
    noisy, every = stored("fashion_mnist_20000_noise", RESULTS), stored("fashion_mnist", RESULTS)
    densities, probabilities = table(page, "without a pool"), table(page, "class probabilities of the test images")
    assert densities.keys() == probabilities.keys() == noisy.keys() == every.keys()
    for name, r in noisy.items():
        assert (r["N_train"], r["N_vali"], r["N_test"], r["jitter"]) == (20_000, 10_000, 10_000, 0)
        assert [one["noise"] for one in r["noise_search"]] == [0, 1e-4, 1e-3, 1e-2, 1e-1] and r["noise"] == 0.01
        (without,) = (p["test_error"] for p in every[name]["learning_curve"] if p["N_train"] == 20_000)
        assert without < r["test_error"]
        assert densities[name][1:] == [*densities_told(r), "0.01", f"{without:.2f}", f"{r['test_error']:.2f}"]
        keys = ("negative_log_likelihood", "brier_score", "expected_calibration_error")
        assert probabilities[name][1:] == [f"{r['scores']['test'][key]:.4f}" for key in keys]
        nll = [one["scores"]["test"]["negative_log_likelihood"] for one in (every[name], r)]
        assert nll[1] < nll[0]
        tried = {one["noise"]: one for one in r["noise_search"]}
        assert min(tried, key=lambda noise: tried[noise]["leave_one_out"]["error"]) == 1e-3
        by_validation = min(tried, key=lambda noise: tried[noise]["validation_error"])
        assert by_validation == (1e-2 if name == "residual_cnn_gp" else 1e-3)
    names = ("convnet_gp", "residual_cnn_gp", "resnet_gp")
    left_out = [noisy[name]["noise_search"][2]["leave_one_out"]["error"] for name in names]
    said = f"with 0.001 ({left_out[0]:.3f}, {left_out[1]:.3f} and {left_out[2]:.3f} %)"
    assert said in " ".join(page.split())


def densities_told(result):
    """The cells of a result's noises."""
    per_image = [one["leave_one_out"]["log_predictive_density"] / result["N_train"] for one in result["noise_search"]]
    errors = [one["validation_error"] for one in result["noise_search"]]
    return [f"{density:.3f} ({error:.2f})" for density, error in zip(per_image, errors, strict=True)]


def test_the_class_probabilities_with_noise_are_what_is_stored():
    text = section("Noise chosen by leave-one-out", "fashion_mnist")
    assert_errors_are_told(
        table(text, "The class probabilities at the chosen noise"), of_convnet("fashion_mnist_noise")
    )


def test_the_other_kernels_are_what_is_stored():
    everything = stored("mnist")
    results = {name: r for name, r in everything.items() if name not in of_convnet("mnist")}
    page = (ROOT / "docs" / "beyond_the_paper.md").read_text()
    text = " ".join(page.split("\n## The other kernels with pools\n")[1].split("\n## ")[0].split())
    assert_errors_are_told(table(section("The other kernels with pools", "mnist"), "training images"), results)
    noisy = stored("mnist_noise")
    assert noisy.keys() == everything.keys() and {r["noise"] for r in noisy.values()} == {0}
    right, wrong = differing("mnist", "test", "residual_cnn_gp", "residual_cnn_gp_pool_7")
    assert f"makes {right} test images right and {wrong} wrong (p = {sign_test(right, wrong):.0e})" in text
    right, wrong = differing("mnist", "test", "resnet_gp", "resnet_gp_pool_2")
    more = differing("mnist", "test", "resnet_gp_pool_2", "resnet_gp_pool_5")
    p = sign_test(right, wrong)
    assert f"({right} right and {wrong} wrong, p = {p:.2f}; between pools of 2 and 5, {more[0]} and {more[1]})" in text
    of_resnet = {
        name: r["scaled_log_marginal_likelihood"] for name, r in results.items() if name.startswith("resnet_gp")
    }
    assert max(of_resnet, key=of_resnet.get) == "resnet_gp_pool_2"
    best, others = "residual_cnn_gp_pool_7", ("convnet_gp_pool_7", "myrtle5", "residual_cnn_gp_pool_5")
    assert min(everything, key=lambda name: everything[name]["validation_error"]) == best
    smallest = min(r["test_error"] for r in everything.values())
    assert {name for name, r in everything.items() if r["test_error"] == smallest} == {best, others[2]}
    for images in ("validation", "test"):
        assert min(sign_test(*differing("mnist", images, *sorted((best, other)))) for other in others) > 0.1


def test_the_other_kernels_on_fashion_mnist_are_what_is_stored():
    without, noisy = (
        {name: r for name, r in stored(folder).items() if not name.startswith("convnet_gp")}
        for folder in ("fashion_mnist", "fashion_mnist_noise")
    )
    rows = table(section("The other kernels with pools", "fashion_mnist"), "leave-one-out chooses")
    assert rows.keys() == without.keys() == noisy.keys()

    def told(r):
        density = r["scaled_log_marginal_likelihood"] / r["N_train"] / 10
        errors = [f"{r[key]:.2f}" for key in ("validation_error", "test_error")]
        return [*errors, f"{r['scores']['test']['negative_log_likelihood']:.3f}", f"{density:.3f}"]

    for name, r in noisy.items():
        assert [one["noise"] for one in r["noise_search"]] == [0, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1]
        assert without[name]["noise"] == 0
        assert rows[name][1:] == [*told(without[name]), f"{r['noise']:g}", *told(r)]
        nll = [one["scores"]["test"]["negative_log_likelihood"] for one in (without[name], r)]
        assert nll[1] < nll[0]
    everything = stored("fashion_mnist_noise")
    assert min(everything, key=lambda name: everything[name]["test_error"]) == "myrtle5"
    assert min(everything, key=lambda name: everything[name]["scores"]["test"]["negative_log_likelihood"]) == "myrtle5"
    page = " ".join((ROOT / "docs" / "beyond_the_paper.md").read_text().split())
    of_residual, of_resnet = (
        [differing("fashion_mnist_noise", images, name, f"{name}_pool_5") for images in ("validation", "test")]
        for name in ("residual_cnn_gp", "resnet_gp")
    )
    (right, wrong), test = of_residual
    said = f"{right} validation images of the Residual CNN right and {wrong} wrong (p = {sign_test(right, wrong):.3f})"
    assert f"{said}, and {test[0]} test images right and {test[1]} wrong" in page
    (right, wrong), test = of_resnet
    said = f"one of 5 makes {right} validation images right and {wrong} wrong, and {test[0]} test images right and"
    assert f"{said} {test[1]} wrong (p = {sign_test(*test):.2f})" in page
    of_myrtle = differing("fashion_mnist_noise", "test", "convnet_gp_pool_5", "myrtle5")
    said = f"{of_myrtle[0]} test images are right by it and wrong by `convnet_gp_pool_5`, {of_myrtle[1]} the other"
    assert f"{said} way round (p = {sign_test(*of_myrtle):.1f})" in page


def test_the_tangent_kernel_is_what_is_stored():
    text = section("The neural tangent kernel", "mnist")
    results = stored("mnist", NTK)
    rows = table(text, "N_train images")
    assert rows.keys() == results.keys()
    for name, r in results.items():
        assert (r["N_train"], r["N_vali"], r["N_test"], r["noise"], r["jitter"]) == (20_000, 1000, 10_000, 0, 0)
        assert [point["N_train"] for point in r["learning_curve"]] == [500, 1000, 2000, 5000, 10_000, 20_000]
        errors = [point["test_error"] for point in r["learning_curve"]]
        assert rows[name][1:] == [f"{error:.2f}" for error in (*errors, r["validation_error"])]
    process, tangent = results["convnet_gp"], results["convnet_gp_ntk"]
    for of_process, of_tangent in zip(process["learning_curve"], tangent["learning_curve"], strict=True):
        assert of_process["test_error"] < of_tangent["test_error"]
    scales = (tangent["ensemble_output_scale"], process["output_scale"], tangent["output_scale"])
    of_outputs = [scale * process["mean_diagonal"] for scale in scales]
    told = " ".join(text.split())
    assert f"their prior variance is {of_outputs[0]:.2f} where leave-one-out of the trained ensemble puts it" in told
    assert f"and {of_outputs[1]:.2f} where the marginal likelihood of `convnet_gp`" in told
    assert f"At the scale at which the NTK is most likely it would be {of_outputs[2]:.3f}" in told
    right, wrong = differing("mnist", "test", other="convnet_gp_ntk", root=NTK)
    said = (
        f"it makes {right} test images right that the Gaussian process of random networks has wrong, and {wrong} others"
    )
    assert f"{said} wrong (p = {sign_test(right, wrong):.0e})" in " ".join(text.split())
    rows = table(text, "by the variance that makes them")
    scores = {
        "convnet_gp": process["scores"],
        "convnet_gp_ntk": tangent["gaussian_process_scores"],
        "--ensemble": tangent["scores"],
    }
    for name, sets in scores.items():
        keys = ("negative_log_likelihood", "brier_score", "expected_calibration_error")
        assert rows[name][1:] == [f"{sets['test'][key]:.4f}" for key in keys]
    nll = {kind: sets["test"]["negative_log_likelihood"] for kind, sets in scores.items()}
    assert f"an NLL that is {nll['--ensemble'] / nll['convnet_gp_ntk'] - 1:.0%} larger".replace("%", " %") in told
    rows = table(text, "Leave-one-out chooses no noise")
    for name, r in stored("mnist_noise", NTK).items():
        assert [one["noise"] for one in r["noise_search"]] == [0, 1e-4, 1e-3, 1e-2] and r["noise"] == 0
        assert rows[name][1:] == [*densities_told(r), "0"]


def test_what_is_said_of_other_images_is_what_is_stored():
    rows = table((ROOT / "docs" / "beyond_the_paper.md").read_text(), "## When not to trust a prediction")
    without, pooled = (
        json.loads((POOLING / "mnist" / "out_of_distribution" / f"{name}.json").read_text())["sets"]
        for name in ("convnet_gp", "convnet_gp_pool_5")
    )
    assert list(rows) == [one["name"] for one in without] == [one["name"] for one in pooled]
    digits = {"error": 1, "mean_entropy": 2, "auroc_entropy": 3, "auroc_relative_variance": 3}
    for pair in zip(without, pooled, strict=True):
        expected = ["" if one.get(key) is None else f"{one[key]:.{n}f}" for key, n in digits.items() for one in pair]
        assert rows[pair[0]["name"]][1:] == expected
    assert all(one["auroc_relative_variance"] > one["auroc_entropy"] for one in pooled[1:])
    page = " ".join((ROOT / "docs" / "beyond_the_paper.md").read_text().split())
    kept = {one["name"]: {point["rejected"]: point for point in one["rejection"]} for one in pooled}
    for name in ("rotation_15", "rotation_30", "rotation_60", "noise_0.4"):
        for score in ("accuracy_by_entropy", "accuracy_by_relative_variance"):
            assert kept[name][80][score] > kept[name][40][score] > kept[name][0][score]
    by_variance = [kept["noise_0.4"][rejected]["accuracy_by_variance"] for rejected in (0, 80)]
    assert f"falls from {by_variance[0]:.0f} to {by_variance[1]:.0f} % at 80 % rejected" in page
    few = kept["shift_2"][30]
    told = [few[f"accuracy_by_{score}"] for score in ("entropy", "relative_variance")]
    assert f"left at 30 % rejected, {told[0]:.1f} % are right by it and {told[1]:.1f} % by the relative" in page
    gains = [one["error"] - other["error"] for one, other in zip(without, pooled, strict=True) if "error" in one]
    assert (
        f"{gains[1]:.1f}, {gains[2]:.1f}, {gains[3]:.1f} and {gains[4]:.1f} points at 15, 30, 60 and 90 degrees" in page
    )
    assert f"on unchanged ones {gains[0]:.1f}" in page


def test_the_costs_are_what_is_stored():
    rows = table((ROOT / "docs" / "beyond_the_paper.md").read_text(), "## What it costs")
    results = stored("mnist")
    assert rows.keys() == results.keys()
    for name, r in results.items():
        model, _, pool = name.partition("_pool_")
        kernel = build_kernel(model, (1, 28, 28), pool=int(pool) if pool else None)
        assert rows[name][1:] == [f"{kernel.n_covariances:,}", f"{r['times']['kernel']:.0f}"]


def test_what_the_readme_says_is_what_is_stored():
    readme = (ROOT / "README.md").read_text()
    lines = [line for line in readme.splitlines() if line.startswith(("| MNIST", "| Fashion-MNIST"))]

    def row(data_set, N_train, kernel, without, pooled=None, size=None):
        cells = [f"{r['test_error']:.2f}" if r else "" for r in (without, pooled)]
        return (
            f"| {data_set} | {N_train:,} | {kernel} | {cells[0]} | {cells[1]} | {f'{size} x {size}' if size else ''} |"
        )

    few, many, fashion = stored("mnist"), stored("mnist_10000"), stored("fashion_mnist_noise")
    every = stored("fashion_mnist", RESULTS)
    assert [" ".join(line.split()) for line in lines] == [
        " ".join(line.split())
        for line in (
            row("MNIST", 1000, "ConvNet GP", few["convnet_gp"], few["convnet_gp_pool_7"], 7),
            row("MNIST", 1000, "Residual CNN GP", few["residual_cnn_gp"], few["residual_cnn_gp_pool_7"], 7),
            row("MNIST", 10_000, "ConvNet GP", many["convnet_gp"], many["convnet_gp_pool_3"], 3),
            row(
                "Fashion-MNIST",
                1000,
                "ConvNet GP, noise by leave-one-out",
                fashion["convnet_gp"],
                fashion["convnet_gp_pool_5"],
                5,
            ),
            *(
                row("Fashion-MNIST", 50_000, f"{kernel} GP", every[f"{name}_gp"])
                for kernel, name in (("ConvNet", "convnet"), ("Residual CNN", "residual_cnn"), ("ResNet", "resnet"))
            ),
        )
    ]
    tangent = stored("mnist", NTK)
    errors = [f"{tangent[name]['test_error']:.2f}" for name in ("convnet_gp_ntk", "convnet_gp")]
    assert f"{errors[0]} and {errors[1]} % with the ConvNet and 20,000 training images" in " ".join(readme.split())


def differing(folder, images, run="convnet_gp", other="convnet_gp_pool_5", root=POOLING):
    """(how many images only ``other`` has right, only ``run``), from the comparisons that report.py wrote."""
    with open(root / folder / "comparisons.csv") as file:
        (row,) = [r for r in csv.DictReader(file) if (r["run"], r["other"], r["images"]) == (run, other, images)]
    right, wrong = int(row["only_other_right"]), int(row["only_run_right"])
    assert float(row["p_value"]) == pytest.approx(sign_test(right, wrong))
    return right, wrong


def test_the_images_that_become_right_and_wrong_are_counted():
    page = " ".join((ROOT / "docs" / "beyond_the_paper.md").read_text().split())
    right, wrong = differing("mnist", "test", other="convnet_gp_pool_7")
    assert f"the one with a pool of 7 gets {right} right, and it gets {wrong} others wrong (p = 4e-10)" in page
    assert f"{sign_test(right, wrong):.0e}" == "4e-10"
    assert differing("mnist", "test", "convnet_gp_pool_5", "convnet_gp_pool_7") == (5, 0)
    assert f"5 test images become right and none wrong (p = {sign_test(5, 0):.2f})" in page
    vali, test = (differing("fashion_mnist", images) for images in ("validation", "test"))
    assert f"({vali[0]} images become right, {vali[1]} wrong, p = {sign_test(*vali):.3f})" in page
    assert f"({test[0]} become right, {test[1]} wrong)" in page
    assert f"it was {vali[0] + test[0]} and {vali[1] + test[1]} (p = 0.03)" in page
    vali, test = (differing("fashion_mnist_noise", images) for images in ("validation", "test"))
    assert f"makes {vali[0]} validation images right and {vali[1]} wrong, and {test[0]} test images right and" in page
    both = vali[0] + test[0], vali[1] + test[1]
    assert f"both sets together {both[0]} and {both[1]} (p = {sign_test(*both):.3f})" in page


def test_what_noise_is_worth():
    without, noisy = of_convnet("fashion_mnist"), of_convnet("fashion_mnist_noise")
    names = ("convnet_gp", "convnet_gp_pool_2", "convnet_gp_pool_3", "convnet_gp_pool_5")

    def gains(error):
        return [round(error(without[name]) - error(noisy[name]), 6) for name in names]

    test, vali = (gains(lambda r, key=key: r[key]) for key in ("test_error", "validation_error"))
    left_out = gains(lambda r: r["leave_one_out"]["error"])
    page = " ".join((ROOT / "docs" / "beyond_the_paper.md").read_text().split())
    assert f"noise lowers the test errors by {min(test):.1f} to {max(test):.1f} points" in page
    assert f"without a pool and with one of 2 (by {vali[0]:.1f} and {vali[1]:.1f})" in page and max(vali[2:]) < 0
    assert f"with pools of 3 and 5 (by {left_out[2]:.1f} and {left_out[3]:.1f}; {-left_out[0]:.1f} and" in page
    assert f"and {-left_out[1]:.1f} more without a pool and with one of 2)" in page
    for key in ("negative_log_likelihood", "brier_score", "expected_calibration_error"):
        assert all(noisy[name]["scores"]["test"][key] < without[name]["scores"]["test"][key] for name in names)
    for results in (without, noisy):
        errors = [results[name]["scores"]["test"]["expected_calibration_error"] for name in names]
        assert min(errors) == errors[0]
    pair = differing("fashion_mnist_noise", "test", "convnet_gp_pool_2", "convnet_gp_pool_5")
    assert f"16.00 and 15.20 %, don't differ significantly (p = {sign_test(*pair):.1f})" in page
