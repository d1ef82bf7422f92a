"""The package's metadata; pyproject.toml holds the settings of its tools."""

from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION: dict[str, str] = {}
exec((ROOT / "cnn_gp" / "_version.py").read_text(), VERSION)

setup(
    name="cnn_gp",
    version=VERSION["__version__"],
    description="Gaussian processes equivalent to deep convolutional networks, as GPflow kernels",
    long_description=(ROOT / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="BSD-3-Clause",
    license_files=["LICENSE"],
    packages=find_packages(include=["cnn_gp", "cnn_gp.*"]),
    package_data={"cnn_gp": ["py.typed", "*.pyi"]},
    # GPflow 2.11 needs NumPy 1, for which there are no wheels from Python 3.13 on.
    python_requires=">=3.11,<3.13",
    install_requires=[
        "tensorflow>=2.20,<2.22",
        "tf_keras>=2.20,<2.22",
        "tensorflow-probability>=0.25,<0.26",
        "gpflow>=2.11,<2.12",
        "check_shapes>=1.1,<2",
        "numpy>=1.26,<2",
        "scipy>=1.13,<2",
        "h5py>=3.11,<4",
        "numba>=0.61,<1",
        "absl-py>=2.1,<3",
        "tqdm>=4.66,<5",
        "lazy_loader>=0.4,<1",
        "psutil>=6,<8",
        "tabulate>=0.9,<1",
        "scikit-learn>=1.5,<2",
        # TensorFlow Probability imports distutils, which Python 3.12 leaves to setuptools.
        "setuptools>=68",
    ],
    extras_require={
        "gpu": ["tensorflow[and-cuda]>=2.20,<2.22"],
        "figures": ["matplotlib>=3.9,<4"],
        "cluster": ["dask[distributed]>=2025.1", "dask-jobqueue>=0.9"],
        "test": [
            "matplotlib>=3.9,<4",
            "dask[distributed]>=2025.1",
            "pytest>=8,<10",
            "pytest-xdist>=3.6,<4",
            "hypothesis>=6.100,<7",
            "import-linter>=2.1,<3",
            "ruff>=0.12,<1",
            "mypy>=1.14,<3",
        ],
    },
    classifiers=[
        "License :: OSI Approved :: BSD License",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
)
