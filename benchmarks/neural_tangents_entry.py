"""
Time of one kernel entry in neural-tangents, for kernel_entries.py to compare with.

neural-tangents needs an older JAX than TensorFlow 2.21 can live with, so it has a virtual environment of its own (its
README line: pip install neural-tangents==0.6.5 jax==0.4.30 jaxlib==0.4.30 'numpy<2' tf2jax==0.3.6 'scipy<1.14').
This file is run by that environment's Python, with images.npy (float32 [N, H, W, 1]) and an entry's name; it prints
one line of JSON: microseconds per entry, processor time too, the first kernel values, and the process's peak memory.
"""

import argparse
import json
import resource
import time
from typing import Any

import jax
import numpy as np
from neural_tangents import stax

#: stax's (init_fn, apply_fn, kernel_fn).
StaxLayer = tuple[Any, Any, Any]


def nonlinearity(sqrt2: bool) -> StaxLayer:
    return stax.ABRelu(0.0, 2.0**0.5) if sqrt2 else stax.Relu()


def readout(pool: str) -> list[StaxLayer]:
    """From a map to numbers: Flatten, whose Dense takes the mean over positions, or a pool before it."""
    if pool == "none":
        return [stax.Flatten()]
    if pool == "global":
        return [stax.GlobalAvgPool()]
    size = (int(pool), int(pool))
    return [stax.AvgPool(size, (1, 1), "SAME", normalize_edges=False), stax.Flatten()]


def myrtle(stages: tuple[int, ...]) -> StaxLayer:
    """As cnn_gp.kernels.myrtle."""
    layers: list[StaxLayer] = []
    for n in stages:
        layers += n * [stax.Conv(1, (3, 3), (1, 1), "SAME", W_std=2**0.5, b_std=None), stax.Relu()]
        layers.append(stax.AvgPool((2, 2), (2, 2), "VALID"))
    return stax.serial(*layers[:-1], stax.GlobalAvgPool(), stax.Dense(1, W_std=2**0.5, b_std=None))


def resnet(pool: str, depth: int = 32, n_blocks: int = 3) -> StaxLayer:
    """The paper's ResNet; stax.Conv divides by the fan-in, and Flatten + Dense take the mean over positions."""

    def conv(size: int, stride: int = 1) -> StaxLayer:
        return stax.Conv(1, (size, size), (stride, stride), "SAME", W_std=1.0, b_std=None)

    def branch(stride: int) -> StaxLayer:
        return stax.serial(conv(3, stride), stax.Relu(), conv(3))

    units = []
    for block in range(n_blocks):
        stride = 1 if block == 0 else 2
        shortcut = stax.serial(conv(1, stride))
        units += [stax.Relu(), stax.FanOut(2), stax.parallel(shortcut, branch(stride)), stax.FanInSum()]
        for _ in range((depth - 2) // (2 * n_blocks) - 1):
            inner = stax.serial(stax.Relu(), branch(1))
            units += [stax.FanOut(2), stax.parallel(stax.Identity(), inner), stax.FanInSum()]
    dense = stax.Dense(1, W_std=1.0, b_std=None)
    return stax.serial(conv(3), *units, *readout(pool), dense, stax.Relu(), dense)


def deep(pool: str, n_layers: int, size: int, var_weight: float, var_bias: float, skip: bool) -> StaxLayer:
    """The random search's networks: the weight variance isn't divided by the patch."""
    w, b = (var_weight * size * size) ** 0.5, var_bias**0.5

    def mix() -> StaxLayer:
        # neural-tangents only adds Gaussian maps: a 1x1 convolution makes them so and leaves their covariances.
        return stax.Conv(1, (1, 1), W_std=1.0, b_std=None)

    layers = [mix()] if skip else []
    for i in range(n_layers):
        block = [stax.Conv(1, (size, size), (1, 1), "SAME", W_std=w, b_std=b), nonlinearity(True)]
        if skip and i < n_layers - 1:
            layers += [stax.FanOut(2), stax.parallel(stax.Identity(), stax.serial(*block, mix())), stax.FanInSum()]
        else:
            layers += block
    return stax.serial(*layers, *readout(pool), stax.Dense(1, W_std=var_weight**0.5, b_std=b))


NETWORKS = {
    "resnet_gp": resnet,
    "convnet_gp": lambda pool: deep(pool, 7, 7, 2.788430573284125, 7.864844532152, skip=False),
    "residual_cnn_gp": lambda pool: deep(pool, 9, 4, 7.273299257681071, 4.689324322120274, skip=True),
    "myrtle5": lambda pool: myrtle((2, 1, 1)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", choices=NETWORKS)
    parser.add_argument("images", help="a .npy file, float32 [N, H, W, C]")
    parser.add_argument("--kernel", choices=["nngp", "ntk"], default="nngp")
    parser.add_argument(
        "--pool", default="none", help="before the readout: none, positions of the feature map on a side, or global"
    )
    parser.add_argument("--batches", default="8,16,32", help="batch sizes to try; the best is reported")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    images = np.load(arguments.images)
    _, _, kernel_fn = NETWORKS[arguments.network](arguments.pool)
    # Where only the covariances at equal positions are needed (no pooling) neural-tangents finds that out by itself.
    kernel = jax.jit(lambda a, b: kernel_fn(a, b, arguments.kernel))
    best = None
    for batch in map(int, arguments.batches.split(",")):
        a, b = images[:batch], images[batch : 2 * batch]
        values = np.asarray(kernel(a, b))
        seconds, of_processor = [], []
        for _ in range(arguments.repeats):
            start, processor = time.perf_counter(), time.process_time()
            kernel(a, b).block_until_ready()
            seconds.append(time.perf_counter() - start)
            of_processor.append(time.process_time() - processor)
        us = 1e6 * float(np.median(seconds)) / batch**2
        if best is None or us < best["us_per_entry"]:
            best = {"us_per_entry": us, "batch": batch, "first_values": values[0, :3].astype(float).tolist()}
            best["processor_us"] = 1e6 * float(np.median(of_processor)) / batch**2
            best["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    print(json.dumps(best))


if __name__ == "__main__":
    main()
