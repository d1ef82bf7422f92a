#!/usr/bin/env bash
# All experiments: kernels, then classification, of the paper's three networks and of seeds of its random search.
#
# By default the embedded digits, about a minute on two cores. The paper's whole programme on MNIST (its files in
# DATA_DIR; the seeds come first, then the three named kernels, the ResNet last):
#
#   DATASET=mnist DATA_DIR=... SEEDS="$(seq 1 60) 1234" WORKDIR=... bash run_all_experiments.bash
#
# At that size EXTRAS take twice as long as the factorisation that they go with: EXTRAS="--learning_curve=auto" doesn't.
#
# Started again with the same settings it goes on where it was. Every variable can be set in the environment; relative
# paths are those of the folder that it is started in.
set -euo pipefail

DATASET=${DATASET:-digits}        # digits, mnist, fashion_mnist, cifar10, synthetic or FILE.npz
DATA_DIR=${DATA_DIR:-}            # folder of the data set's files; empty: Keras's cache or download
N_TRAIN=${N_TRAIN:-}              # training, validation and test images; empty: the data set's own numbers
N_VALI=${N_VALI:-}
N_TEST=${N_TEST:-}
N_MAX=${N_MAX:-200}               # images on a side of a tile
N_GPUS=${N_GPUS:-0}               # GPUs; 0: the CPU
WORKDIR=${WORKDIR:-runs/$(basename "$DATASET" .npz)}
SEEDS=${SEEDS-1 12 13 36 47}      # seeds of the random search; empty: none
MODELS=${MODELS-convnet_gp residual_cnn_gp resnet_gp}
KERNELS=${KERNELS:-nngp}          # nngp, ntk: of each of the networks above
POOLS=${POOLS:-none}              # average pools before the first dense layer: none, global, or positions of the feature map on a side
KEEP_TILES=${KEEP_TILES:-1}       # 0: delete a run's tiles once its result is verified
EXTRAS=${EXTRAS---variances --leave_one_out --learning_curve=auto}   # of classify_gp.py; empty: errors only
PYTHON=${PYTHON:-python}

given=(--n_max="$N_MAX" --n_gpus="$N_GPUS")
[[ -z $DATA_DIR ]] || given+=(--data_dir="$DATA_DIR")
[[ -z $N_TRAIN ]] || given+=(--N_train="$N_TRAIN")
[[ -z $N_VALI ]] || given+=(--N_vali="$N_VALI")
[[ -z $N_TEST ]] || given+=(--N_test="$N_TEST")
[[ $KEEP_TILES != 0 ]] || given+=(--nokeep_tiles)
[[ -z $EXTRAS ]] || given+=(--extras="$EXTRAS")

# list WORDS...: separated by commas, whatever separated them.
list() { echo "${*//,/ }" | xargs | tr ' ' ','; }
runs=$(list "$SEEDS $MODELS")
[[ -n $runs ]] || { echo "error: SEEDS and MODELS are both empty; name at least one run." >&2; exit 1; }
exec "$PYTHON" "$(dirname "${BASH_SOURCE[0]}")"/scripts/run_experiments.py --dataset="$DATASET" --path="$WORKDIR" \
    --runs="$runs" --kernel="$(list "$KERNELS")" --pool="$(list "$POOLS")" "${given[@]}"
