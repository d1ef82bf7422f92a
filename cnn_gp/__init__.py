"""
Gaussian processes equivalent to deep convolutional networks.

The kernels of Garriga-Alonso, Rasmussen & Aitchison, "Deep Convolutional Networks as shallow Gaussian Processes"
(ICLR 2019), as GPflow kernels, and what it takes to classify tens of thousands of images with them.

The names below are imported when they are first used: ``import cnn_gp`` alone doesn't import TensorFlow.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
