"""What docs/beyond_the_paper.md says of the results is what results/ holds."""

import csv
import json
import statistics

import pytest

from cnn_gp.evaluation.comparisons import sign_test
from cnn_gp.evaluation.training_sets import Files, spreads
from cnn_gp.kernels.architectures import build_kernel
from helpers.documents import table
from helpers.paths import ROOT

RESULTS = ROOT / "results"
POOLING = RESULTS / "pooling"
NTK = RESULTS / "ntk"
#: The page's headings of the data sets.
DATA_SETS = {"mnist": "MNIST", "fashion_mnist": "Fashion-MNIST"}
#: Those of which there are results of the NTK.
TANGENT_DATA_SETS = ["mnist", "fashion_mnist"]


def section(heading, data_set):
    """The page's text from a heading of the second level, then one of a data set, on."""
    text = (ROOT / "docs" / "beyond_the_paper.md").read_text()
    return text.split(f"\n## {heading}\n")[1].split(f"\n### {DATA_SETS[data_set]}", 1)[1]


def stored(folder, root=POOLING, runs="*"):
    """The results of a folder by their runs."""
    return {path.stem: json.loads(path.read_text()) for path in root.joinpath(folder).glob(f"{runs}.json")}


def test_fashion_mnist_with_all_images_is_what_is_stored():
    results = stored("fashion_mnist", RESULTS)
    text = (ROOT / "docs" / "beyond_the_paper.md").read_text().split("\n## Fashion-MNIST, 50,000 training images")[1]
    errors, curves = table(text, "Errors in %"), table(text, "N_train images")
    assert errors.keys() == curves.keys() == results.keys()
    for name, r in results.items():
        assert (r["N_train"], r["N_vali"], r["N_test"], r["noise"], r["jitter"]) == (50_000, 10_000, 10_000, 0, 0)
        expected = [f"{r[key]:.2f}" for key in ("validation_error", "test_error")]
        for key in ("negative_log_likelihood", "brier_score", "expected_calibration_error"):
            expected.append(f"{r['scores']['test'][key]:.4f}")
        assert errors[name][1:] == expected
        assert [point["N_train"] for point in r["learning_curve"]] == [500, 1000, 2000, 5000, 10_000, 20_000, 50_000]
        assert curves[name][1:] == [f"{point['test_error']:.2f}" for point in r["learning_curve"]]
    told = " ".join(text.split())
    for other in ("convnet_gp", "residual_cnn_gp"):
        for point, of_resnet in zip(
            results[other]["learning_curve"], results["resnet_gp"]["learning_curve"], strict=True
        ):
            assert of_resnet["test_error"] < point["test_error"]
    right, wrong = differing("fashion_mnist", "test", "convnet_gp", "resnet_gp", RESULTS)
    said = f"{right} test images are classified correctly by it and wrongly by the ConvNet, {wrong} the other way"
    assert f"{said} round ({p_value(right, wrong)})" in told
    right, wrong = differing("fashion_mnist", "test", "convnet_gp", "residual_cnn_gp", RESULTS)
    assert f"no difference is seen: {wrong} and {right} ({p_value(right, wrong)})" in told
    minutes = [round(results[f"{name}_gp"]["times"]["kernel"] / 60) for name in ("convnet", "residual_cnn", "resnet")]
    took = f"ConvNet took {minutes[0]} minutes, those of the Residual CNN {minutes[1]} and those of the ResNet"
    assert f"{took} {minutes[2]}" in told


def page():
    """All of the page, on one line."""
    return " ".join((ROOT / "docs" / "beyond_the_paper.md").read_text().split())


def p_value(right, wrong):
    """That of the sign test, as the page has it."""
    p = sign_test(right, wrong)
    return f"p = {p:.0e}" if p < 0.00095 else f"p = {p:.{3 if p < 0.0095 else 2 if p < 0.095 else 1}f}"


def test_the_findings_are_what_is_stored():
    def errors_of(folder, root=POOLING):
        return {name: f"{r['test_error']:.2f}" for name, r in stored(folder, root).items()}

    findings = page().split("## Findings")[1].split("## Protocol")[0]
    every, mnist, many = errors_of("fashion_mnist", RESULTS), errors_of("mnist"), errors_of("mnist_10000")
    fashion, noisy, tangent = (
        errors_of("fashion_mnist"),
        errors_of("fashion_mnist_noise"),
        errors_of("mnist", NTK),
    )
    chance = p_value(*differing("fashion_mnist_noise", "test"))
    for said in (
        f"{every['resnet_gp']} % (ResNet), {every['convnet_gp']} % (ConvNet) and {every['residual_cnn_gp']} %",
        f"test error from {mnist['convnet_gp']} to {mnist['convnet_gp_pool_7']} % with 1,000 training images",
        f"from {many['convnet_gp']} to {many['convnet_gp_pool_3']} % with 10,000",
        f"the ResNet less ({mnist['resnet_gp']} to {mnist['resnet_gp_pool_5']} %)",
        f"to {fashion['convnet_gp_pool_5']} from {fashion['convnet_gp']} % and to {fashion['residual_cnn_gp_pool_5']}"
        f" from {fashion['residual_cnn_gp']} %",
        f"from {noisy['convnet_gp']} to {noisy['convnet_gp_pool_5']} % ({chance})",
        f"{tangent['convnet_gp_ntk']}, {tangent['residual_cnn_gp_ntk']} and {tangent['resnet_gp_ntk']} instead of"
        f" {tangent['convnet_gp']}, {tangent['residual_cnn_gp']} and {tangent['resnet_gp']} %",
    ):
        assert said in findings


def of_convnet(folder):
    """Those of the ConvNet."""
    return stored(folder, runs="convnet_gp*")


def three_errors(r):
    """Those of the validation images, of leave-one-out and of the test images, as cells."""
    return [f"{error:.2f}" for error in (r["validation_error"], r["leave_one_out"]["error"], r["test_error"])]


def assert_errors_are_told(rows, results, sizes=(1000, 1000, 1000)):
    """The rows of a table of errors and class probabilities."""
    assert rows.keys() == results.keys()
    for name, r in results.items():
        assert (r["N_train"], r["N_vali"], r["N_test"], r["jitter"]) == (*sizes, 0)
        scores = r["scores"]["test"]
        expected = three_errors(r)
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
        without = results["convnet_gp"]["scaled_log_marginal_likelihood"]
        nats = [results[f"convnet_gp_pool_{k}"]["scaled_log_marginal_likelihood"] - without for k in (2, 3, 5)]
        text = page()
        assert f"{nats[0]:.0f} nats larger with a pool of 2 than without one, {-nats[1]:.0f} smaller with 3" in text
        assert f"and {-nats[2]:.0f} smaller with 5: it" in text
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
    assert f"makes {right} test images right and {wrong} wrong ({p_value(right, wrong)})" in text
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
    text = (ROOT / "docs" / "beyond_the_paper.md").read_text().split("training images: it chooses 0.01\n")[1]
    noisy, every = (stored(f"fashion_mnist_20000{kind}", RESULTS) for kind in ("_noise", ""))
    densities, probabilities = table(text, "without a pool"), table(text, "class probabilities of the test images")
    assert densities.keys() == probabilities.keys() == noisy.keys() == every.keys()
    all_images = stored("fashion_mnist", RESULTS)
    lowered = []
    for name, r in noisy.items():
        assert (r["N_train"], r["N_vali"], r["N_test"], r["jitter"]) == (20_000, 10_000, 10_000, 0)
        assert [one["noise"] for one in r["noise_search"]] == [0, 1e-4, 1e-3, 1e-2, 1e-1] and r["noise"] == 0.01
        without = every[name]["test_error"]
        assert every[name]["noise"] == 0 and without < r["test_error"]
        (on_the_curve,) = (p for p in all_images[name]["learning_curve"] if p["N_train"] == 20_000)
        assert on_the_curve["test_error"] == pytest.approx(without)
        assert densities[name][1:] == [*densities_told(r), "0.01", f"{without:.2f}", f"{r['test_error']:.2f}"]
        keys = ("negative_log_likelihood", "brier_score", "expected_calibration_error")
        scores = [one["scores"]["test"] for one in (every[name], r)]
        assert probabilities[name][1:] == [f"{one[key]:.4f}" for one in scores for key in keys]
        nll = [one["scores"]["test"]["negative_log_likelihood"] for one in (every[name], r, all_images[name])]
        assert nll[1] < nll[2] < nll[0]
        lowered.append(1 - nll[1] / nll[0])
        right, wrong = differing("fashion_mnist_20000_noise", "test", name, f"plain_20000/{name}", RESULTS)
        assert f"{wrong} and {right} ({p_value(right, wrong)})" in " ".join(text.split())
        tried = {one["noise"]: one for one in r["noise_search"]}
        assert min(tried, key=lambda noise: tried[noise]["leave_one_out"]["error"]) == 1e-3
        by_validation = min(tried, key=lambda noise: tried[noise]["validation_error"])
        assert by_validation == (1e-2 if name == "residual_cnn_gp" else 1e-3)
    names = ("convnet_gp", "residual_cnn_gp", "resnet_gp")
    left_out = [noisy[name]["noise_search"][2]["leave_one_out"]["error"] for name in names]
    said = f"with 0.001 ({left_out[0]:.3f}, {left_out[1]:.3f} and {left_out[2]:.3f} %)"
    assert said in " ".join(text.split())
    assert f"by {100 * min(lowered):.0f} % to {100 * max(lowered):.0f} %" in " ".join(text.split())


def test_noise_beside_none_is_what_is_stored():
    rows = table(section("Noise chosen by leave-one-out", "fashion_mnist"), "beside the same kernel without noise")
    names = of_convnet("fashion_mnist_noise")
    assert rows.keys() == names.keys()
    for name in names:
        expected = []
        for images in ("validation", "test"):
            only_without, only_with = differing("fashion_mnist_noise", images, name, f"plain/{name}")
            expected += [str(only_with), str(only_without), p_value(only_with, only_without).removeprefix("p = ")]
        assert rows[name][1:] == expected
    left_out = [f"{names[name]['leave_one_out']['error']:.1f}" for name in sorted(names)]
    assert f"({', '.join(left_out[:3])} and {left_out[3]} % with noise)" in page()
    densities = [names[name]["scaled_log_marginal_likelihood"] for name in ("convnet_gp", "convnet_gp_pool_5")]
    assert f"log marginal likelihood is {densities[1] - densities[0]:.0f} nats larger" in page()
    for images in ("validation", "test"):
        right, wrong = differing("fashion_mnist_noise", images)
        assert f"{right} {images} images right and {wrong} wrong ({p_value(right, wrong)})" in page()


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
    text = page()
    assert_errors_are_told(table(section("The other kernels with pools", "mnist"), "training images"), results)
    noisy = stored("mnist_noise")
    assert noisy.keys() == everything.keys() and {r["noise"] for r in noisy.values()} == {0}
    right, wrong = differing("mnist", "test", "residual_cnn_gp", "residual_cnn_gp_pool_7")
    assert f"makes {right} test images right and {wrong} wrong ({p_value(right, wrong)})" in text
    test, vali = (differing("mnist", images, "resnet_gp", "resnet_gp_pool_2") for images in ("test", "validation"))
    more = differing("mnist", "test", "resnet_gp_pool_2", "resnet_gp_pool_5")
    said = (
        f"({test[0]} test images right and {test[1]} wrong, {p_value(*test)}; {vali[0]} and {vali[1]} validation images"
    )
    assert f"{said}, {p_value(*vali)}; between pools of 2 and 5, {more[0]} and {more[1]} test images)" in text
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
    assert sum(r["test_error"] < without[name]["test_error"] for name, r in noisy.items()) == len(noisy) == 9
    assert rows.keys() == without.keys() == noisy.keys()

    def told(r):
        density = r["scaled_log_marginal_likelihood"] / r["N_train"] / 10
        return [*three_errors(r), f"{r['scores']['test']['negative_log_likelihood']:.3f}", f"{density:.3f}"]

    for name, r in noisy.items():
        assert [one["noise"] for one in r["noise_search"]] == [0, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1]
        assert without[name]["noise"] == 0
        assert rows[name][1:] == [*told(without[name]), f"{r['noise']:g}", *told(r)]
        nll = [one["scores"]["test"]["negative_log_likelihood"] for one in (without[name], r)]
        assert nll[1] < nll[0]
    everything = stored("fashion_mnist_noise")
    assert min(everything, key=lambda name: everything[name]["test_error"]) == "myrtle5"
    assert min(everything, key=lambda name: everything[name]["scores"]["test"]["negative_log_likelihood"]) == "myrtle5"
    for name in noisy:
        tested = [differing("fashion_mnist_noise", images, name, f"plain/{name}") for images in ("validation", "test")]
        assert sign_test(*tested[0]) > 0.05 and (name == "myrtle5" or sign_test(*tested[1]) > 0.05)
        if name == "myrtle5":
            wrong, right = tested[1]
            assert f"`myrtle5`'s by more than chance would ({right} images right and {wrong} wrong" in page()
    for name, opening in (
        ("residual_cnn_gp", "validation images of the Residual CNN"),
        ("resnet_gp", "validation images"),
    ):
        vali, test = (differing("fashion_mnist_noise", i, name, f"{name}_pool_5") for i in ("validation", "test"))
        said = f"{vali[0]} {opening} right and {vali[1]} wrong ({p_value(*vali)}), and {test[0]} test images right and"
        assert f"{said} {test[1]} wrong ({p_value(*test)})" in page()
    right, wrong = differing("fashion_mnist_noise", "test", "convnet_gp_pool_5", "myrtle5")
    said = (
        f"differs from that of `convnet_gp_pool_5` by {right} images right and {wrong} wrong ({p_value(right, wrong)})"
    )
    assert said in page()


def of_tangent(data_set):
    """[(the network, its result as a Gaussian process, that of its NTK)] at 20,000 images."""
    results = stored(data_set, NTK)
    networks = [name for name in results if not name.endswith("_ntk")]
    assert results.keys() == {name + kind for name in networks for kind in ("", "_ntk")}
    return [(name, results[name], results[f"{name}_ntk"]) for name in networks]


@pytest.mark.parametrize("data_set", TANGENT_DATA_SETS)
def test_the_errors_of_the_tangent_kernel_are_what_is_stored(data_set):
    rows = table(section("The neural tangent kernel", data_set), "N_train images")
    results = stored(data_set, NTK)
    assert rows.keys() == results.keys()
    for name, r in results.items():
        assert (r["N_train"], r["N_vali"], r["N_test"], r["noise"], r["jitter"]) == (20_000, 1000, 10_000, 0, 0)
        assert [point["N_train"] for point in r["learning_curve"]] == [500, 1000, 2000, 5000, 10_000, 20_000]
        errors = [point["test_error"] for point in r["learning_curve"]]
        assert rows[name][1:] == [f"{error:.2f}" for error in (*errors, r["validation_error"])]
    if data_set != "mnist":
        (_, process, tangent), *none = of_tangent(data_set)
        pairs = zip(process["learning_curve"], tangent["learning_curve"], strict=True)
        assert [round(b["test_error"] - a["test_error"], 6) > 0 for a, b in pairs] == [False] * 4 + [
            True
        ] * 2 and not none
        return
    for _, process, tangent in of_tangent(data_set):
        for of_process, of_tangent_kernel in zip(process["learning_curve"], tangent["learning_curve"], strict=True):
            assert of_process["test_error"] < of_tangent_kernel["test_error"]


@pytest.mark.parametrize("data_set", TANGENT_DATA_SETS)
def test_the_counts_and_scales_of_the_tangent_kernel_are_what_is_stored(data_set):
    rows = table(section("The neural tangent kernel", data_set), "\nThe number of test images")
    networks = of_tangent(data_set)
    assert rows.keys() == {name for name, _, _ in networks}
    for name, process, tangent in networks:
        right, wrong = differing(data_set, "test", name, f"{name}_ntk", NTK)
        scales = (tangent["ensemble_output_scale"], process["output_scale"], tangent["output_scale"])
        variances = [f"{scale * process['mean_diagonal']:#.3g}" for scale in scales]
        assert rows[name][1:] == [str(right), str(wrong), p_value(right, wrong).removeprefix("p = "), *variances]
    if data_set != "mnist":
        return
    smaller = [1 - tangent["ensemble_output_scale"] / process["output_scale"] for _, process, tangent in networks]
    said = f"the former is {100 * min(smaller):.0f} to {100 * max(smaller):.0f} % smaller"
    assert said in " ".join(section("The neural tangent kernel", data_set).split())


@pytest.mark.parametrize("data_set", TANGENT_DATA_SETS)
def test_the_class_probabilities_of_the_tangent_kernel_are_what_is_stored(data_set):
    rows = table(section("The neural tangent kernel", data_set), "by the variance that makes them")
    scores = {}
    for name, process, tangent in of_tangent(data_set):
        scores[name] = process["scores"]
        scores[f"{name}_ntk"] = tangent["gaussian_process_scores"]
        scores[f"{name}_ntk --ensemble"] = tangent["scores"]
    assert rows.keys() == scores.keys()
    for name, sets in scores.items():
        keys = ("negative_log_likelihood", "brier_score", "expected_calibration_error")
        assert rows[name][1:] == [f"{sets['test'][key]:.4f}" for key in keys]
    more = {"ensemble": [], "process": [], "brier": []}
    for _, process, tangent in of_tangent(data_set):
        ours, trained = tangent["gaussian_process_scores"]["test"], tangent["scores"]["test"]
        nll = "negative_log_likelihood"
        more["ensemble"].append(trained[nll] / ours[nll] - 1)
        more["process"].append(ours[nll] / process["scores"]["test"][nll] - 1)
        more["brier"].append(ours["brier_score"] / process["scores"]["test"]["brier_score"] - 1)
        assert trained["brier_score"] == pytest.approx(ours["brier_score"], rel=0.03)
    text = " ".join(section("The neural tangent kernel", data_set).split())
    if data_set != "mnist":
        (_, process, tangent), *none = of_tangent(data_set)
        ours, trained, processes = (
            scores["test"]["negative_log_likelihood"]
            for scores in (tangent["gaussian_process_scores"], tangent["scores"], process["scores"])
        )
        said = (
            f"variance is {100 * (1 - ours / processes):.0f} % smaller than that of the NNGP and that of the ensemble"
        )
        assert f"{said} {100 * (1 - trained / processes):.0f} %." in text and not none
        with_noise = stored(f"{data_set}_noise", NTK)["convnet_gp"]["scores"]["test"]["negative_log_likelihood"]
        assert f"an NLL of {with_noise:.4f}, the NTK without noise one of {ours:.4f}." in text
        return
    said = {kind: f"{100 * min(shares):.0f} to {100 * max(shares):.0f} %" for kind, shares in more.items()}
    assert f"an NLL that is {said['ensemble']} larger" in text
    assert f"is {said['process']} larger than that of the NNGP, the Brier score {said['brier']}." in text


@pytest.mark.parametrize("data_set", TANGENT_DATA_SETS)
def test_the_noises_of_the_tangent_kernel_are_what_is_stored(data_set):
    rows = table(section("The neural tangent kernel", data_set), "\nLeave-one-out tries noise 0")
    results, without = stored(f"{data_set}_noise", NTK), stored(data_set, NTK)
    assert rows.keys() == results.keys() == without.keys()
    for name, r in results.items():
        assert [one["noise"] for one in r["noise_search"]] == [0, 1e-4, 1e-3, 1e-2]
        errors = [f"{one['test_error']:.2f}" for one in (without[name], r)]
        assert rows[name][1:] == [*densities_told(r), f"{r['noise']:g}", *errors]


#: By the heading: where the results lie, and pairs that the page compares at a size.
OTHER_SETS = {
    "MNIST, other training sets with and without a pool": (
        POOLING / "mnist_10000",
        [("convnet_gp", "convnet_gp_pool_3", 1000)],
    ),
    "MNIST, other training sets of the NTK": (
        NTK / "mnist",
        [(name, f"{name}_ntk", 2000) for name in ("convnet_gp", "residual_cnn_gp", "resnet_gp")],
    ),
    "Fashion-MNIST, other training sets of the ConvNet's NTK": (
        NTK / "fashion_mnist",
        [("convnet_gp", "convnet_gp_ntk", 1000)],
    ),
    "Fashion-MNIST, other training sets": (
        RESULTS / "fashion_mnist",
        [(name, "resnet_gp", 5000) for name in ("convnet_gp", "residual_cnn_gp")],
    ),
}


@pytest.mark.parametrize("heading", OTHER_SETS)
def test_the_errors_with_other_training_sets_are_what_is_stored(heading):
    folder, pairs = OTHER_SETS[heading]
    text = (ROOT / "docs" / "beyond_the_paper.md").read_text().split(f"\n### {heading}\n")[1].split("\n##")[0]
    rows = table(text, "training images")
    found = {path.stem: Files(folder, path.stem).read() for path in folder.glob("training_sets/*.json")}
    assert rows.keys() == found.keys()
    for name, its in found.items():
        sizes = spreads(its.sets)
        assert rows[name][1:] == [f"{s.test_mean:.2f} ({s.test_deviation:.2f})" for s in sizes]
        assert " | ".join(f"{s.N_train:,}: {s.sets} sets" for s in sizes) in text
    told = " ".join(text.split())
    for name, other, n in pairs:
        errors, others = ([one.test_error for one in found[run].sets if one.N_train == n] for run in (name, other))
        differences = [b - a for a, b in zip(errors, others, strict=True)]
        said = f"{abs(statistics.mean(differences)):.2f} points ({statistics.stdev(differences):.2f})"
        assert said in told, (name, other, said)
        less, more = sum(d < 0 for d in differences), sum(d > 0 for d in differences)
        if less and more:
            assert f"errs less in {less} of 20 sets and more in {more} ({p_value(less, more)})" in told
            assert f"it errs less in {less} of 20." in page()


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
    text = page()
    kept = {one["name"]: {point["rejected"]: point for point in one["rejection"]} for one in pooled}
    for name in ("rotation_15", "rotation_30", "rotation_60", "noise_0.4"):
        for score in ("accuracy_by_entropy", "accuracy_by_relative_variance"):
            assert kept[name][80][score] > kept[name][40][score] > kept[name][0][score]
    turned = [
        f"{kept['rotation_90'][rejected][f'accuracy_by_{score}']:.0f}"
        for rejected in (0, 60, 80)
        for score in ("entropy", "relative_variance")
    ]
    said = (
        f"({turned[0]} % without rejection, {turned[2]} and {turned[3]} % there, {turned[4]} and {turned[5]} % at 80 %"
    )
    assert said in text
    by_variance = [kept["noise_0.4"][rejected]["accuracy_by_variance"] for rejected in (0, 80)]
    assert f"falls from {by_variance[0]:.0f} to {by_variance[1]:.0f} % at 80 % rejected" in text
    few = kept["shift_2"][30]
    told = [few[f"accuracy_by_{score}"] for score in ("entropy", "relative_variance")]
    assert f"left at 30 % rejected, {told[0]:.1f} % are right by it and {told[1]:.1f} % by the relative" in text
    gains = [one["error"] - other["error"] for one, other in zip(without, pooled, strict=True) if "error" in one]
    assert (
        f"{gains[1]:.1f}, {gains[2]:.1f}, {gains[3]:.1f} and {gains[4]:.1f} points at 15, 30, 60 and 90 degrees" in text
    )
    assert f"on unchanged ones {gains[0]:.1f}" in text


def test_the_costs_are_what_is_stored():
    rows = table((ROOT / "docs" / "beyond_the_paper.md").read_text(), "## What it costs")
    results, on_fashion = stored("mnist"), stored("fashion_mnist")
    assert rows.keys() == results.keys()
    for name, r in results.items():
        model, _, pool = name.partition("_pool_")
        kernel = build_kernel(model, (1, 28, 28), pool=int(pool) if pool else None)
        seconds = [f"{one['times']['kernel']:.0f}" if one else "" for one in (r, on_fashion.get(name))]
        assert rows[name][1:] == [f"{kernel.n_covariances:,}", *seconds]


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
    right, wrong = differing("mnist", "test", other="convnet_gp_pool_7")
    said = f"the one with a pool of 7 gets {right} right, and it gets {wrong} others wrong"
    assert f"{said} ({p_value(right, wrong)})" in page()
    assert differing("mnist", "test", "convnet_gp_pool_5", "convnet_gp_pool_7") == (5, 0)
    assert f"5 test images become right and none wrong ({p_value(5, 0)})" in page()
    vali, test = (differing("fashion_mnist", images) for images in ("validation", "test"))
    assert f"({vali[0]} images become right, {vali[1]} wrong, {p_value(*vali)})" in page()
    assert f"({test[0]} become right, {test[1]} wrong)" in page()


def test_what_noise_is_worth():
    without, noisy = of_convnet("fashion_mnist"), of_convnet("fashion_mnist_noise")
    names = ("convnet_gp", "convnet_gp_pool_2", "convnet_gp_pool_3", "convnet_gp_pool_5")
    left_out = [without[name]["leave_one_out"]["error"] - noisy[name]["leave_one_out"]["error"] for name in names]
    assert [gain > 0 for gain in left_out] == [False, False, True, True]
    for key in ("negative_log_likelihood", "brier_score", "expected_calibration_error"):
        assert all(noisy[name]["scores"]["test"][key] < without[name]["scores"]["test"][key] for name in names)
    for results in (without, noisy):
        errors = [results[name]["scores"]["test"]["expected_calibration_error"] for name in names]
        assert min(errors) == errors[0]
    pair = differing("fashion_mnist_noise", "test", "convnet_gp_pool_2", "convnet_gp_pool_5")
    assert f"16.00 and 15.20 %, don't differ significantly ({p_value(*pair)})" in page()
