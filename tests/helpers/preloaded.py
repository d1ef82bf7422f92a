"""What the scripts import, imported once by the server that forks them (:mod:`.forked`), which uses nothing of it."""

import gpflow  # noqa: F401
import h5py  # noqa: F401
import scipy.linalg
import scipy.sparse.linalg
import scipy.special  # noqa: F401
import tensorflow  # noqa: F401

import cnn_gp.engines.fused.engine
import cnn_gp.kernels.architectures  # noqa: F401
