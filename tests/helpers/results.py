"""Made results."""

from dataclasses import replace

from cnn_gp.evaluation.hyperparameters import hyperparameters
from cnn_gp.evaluation.metrics import Scores
from cnn_gp.evaluation.results import LeaveOneOutScores, NoiseTried, Result, SetScores
from cnn_gp.regression.learning_curve import Point

CONV = {"layer": "Conv", "filter_size": [3, 5], "stride": 2, "padding": "SAME", "var_weight": 2.0, "var_bias": 0.5}
RELU = {"layer": "ExReLU", "exponent": 1, "multiply_by_sqrt2": True}
LAYERS = [CONV, RELU, {"layer": "Sum", "branches": [{**CONV, "filter_size": 3}, RELU]}, {"layer": "ExErf"}]
KERNEL = {"input_shape": [1, 8, 8], "network": {"layer": "Sequential", "layers": LAYERS}}

PLAIN = Result(
    run="made",
    model="convnet_gp",
    dataset="digits",
    fingerprint="ab",
    N_train=1000,
    N_vali=20,
    N_test=30,
    jitter_asked=0.0,
    noise_asked=(0.0, 0.1),
    training_error=0.0,
    validation_error=5.0,
    test_error=10.0,
    jitter=1e-9,
    noise=0.1,
    mean_diagonal=2.0,
    output_scale=0.5,
    relative_residual=1e-12,
    refinements=0,
    log_marginal_likelihood=-3.0,
    scaled_log_marginal_likelihood=-2.0,
    log_marginal_likelihoods=(-1.0, -2.0),
    log_determinant=4.0,
    extreme_eigenvalues=(0.1, 10.0),
    condition_number=100.0,
    noise_search=(NoiseTried(0.0, 6.0), NoiseTried(0.1, 5.0)),
    hyperparameters=hyperparameters(KERNEL),
    kernel=KERNEL,
    float_type="float32",
    n_max=200,
    command="python scripts/classify_gp.py",
    versions={"numpy": "1"},
    times={"kernel": 2.0, "solve": 0.25, "predict": 0.5},
    kernel_computed_by=({"engine": "fused"},),
    extras=(),
    peak_memory_bytes=10**9,
)
SCORES = Scores(0.1, 0.2, 0.3)
FULL = replace(
    PLAIN,
    extras=("variances", "leave_one_out", "learning_curve"),
    noise_by="loo",
    noise_search=(
        NoiseTried(0.0, 6.0, LeaveOneOutScores(5.0, -8000.0)),
        NoiseTried(0.1, 5.0, LeaveOneOutScores(4.0, -7000.0)),
    ),
    learning_curve=(Point(500, 8.0, 9.0, -1.5), Point(1000, 5.0, 10.0, -1.25)),
    scores=SetScores(SCORES, SCORES),
    leave_one_out=LeaveOneOutScores(4.0, -7.0),
)
