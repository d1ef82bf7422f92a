#!/usr/bin/env bash
# All experiments: kernels, then classification, of the paper's three networks and of seeds of its random search.
#
# By default the embedded digits, a few minutes on two cores. The paper's whole programme on MNIST (its files in
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
POOLS=${POOLS:-none}              # average pools before the first dense layer: none, global, or pixels on a side
KEEP_TILES=${KEEP_TILES:-1}       # 0: delete a run's tiles once its result is verified
EXTRAS=${EXTRAS---variances --leave_one_out --learning_curve=auto}   # of classify_gp.py; empty: errors only
PYTHON=${PYTHON:-python}

scripts=$(dirname "${BASH_SOURCE[0]}")/scripts
SEEDS=${SEEDS//,/ }
MODELS=${MODELS//,/ }
seeds=()
for seed in $SEEDS; do
    [[ $seed =~ ^[0-9]+$ ]] || { echo "error: SEEDS has '$seed'; expected whole numbers." >&2; exit 1; }
    # Not as an octal number, which 08 would be.
    seeds+=($((10#$seed)))
done

sizes=()
[[ -z $N_TRAIN ]] || sizes+=(--N_train="$N_TRAIN")
[[ -z $N_VALI ]] || sizes+=(--N_vali="$N_VALI")
[[ -z $N_TEST ]] || sizes+=(--N_test="$N_TEST")
data=(--dataset="$DATASET" "${sizes[@]}" --n_max="$N_MAX" --n_gpus="$N_GPUS")
[[ -z $DATA_DIR ]] || data+=(--data_dir="$DATA_DIR")
keep=--keep_tiles
[[ $KEEP_TILES != 0 ]] || keep=--nokeep_tiles

runs=$(echo ${seeds[*]} $MODELS | tr ' ' ',')
[[ -n $runs ]] || { echo "error: SEEDS and MODELS are both empty; name at least one run." >&2; exit 1; }
"$PYTHON" "$scripts"/job_size.py "${data[@]}" --runs="$runs" --kernel="${KERNELS// /,}" --pool="${POOLS// /,}"

shrunk=()
# run_each NAME FLAGS...: both stages of a network's runs, with each pool and kernel.
run_each() {
    local pool kernel name
    for pool in $POOLS; do
        for kernel in $KERNELS; do
            name=$1
            [[ $pool == none ]] || name+=_pool_$pool
            [[ $kernel == nngp ]] || name+=_$kernel
            run_one "$name" "${@:2}" --pool="$pool" --kernel="$kernel"
        done
    done
}

# run_one NAME FLAGS...: both stages of one run. Where its result is there, stage 2 only checks and prints it.
run_one() {
    local name=$1 status=0
    shift
    echo
    if [[ ! -e $WORKDIR/results/$name.json ]]; then
        "$PYTHON" "$scripts"/save_kernels.py "${data[@]}" --path="$WORKDIR" "$@" || status=$?
        if [[ $status == 3 ]]; then
            echo "$name is skipped: its network shrinks below one pixel."
            shrunk+=("$name")
            return
        fi
        [[ $status == 0 ]] || exit "$status"
    fi
    "$PYTHON" "$scripts"/classify_gp.py "${sizes[@]}" --path="$WORKDIR" "$@" $EXTRAS "$keep"
}

for seed in ${seeds[*]}; do
    run_each "$(printf 'seed_%02d' "$seed")" --model=random --seed="$seed"
done
for model in $MODELS; do
    run_each "$model" --model="$model"
done

echo
[[ ${#shrunk[@]} == 0 ]] || echo "No kernel, because the network shrinks below one pixel: ${shrunk[*]}"
figures=--figures
"$PYTHON" -c "import matplotlib" 2> /dev/null || figures=--nofigures
"$PYTHON" "$scripts"/report.py --path="$WORKDIR" "$figures"
