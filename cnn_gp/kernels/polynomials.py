"""
The polynomials that stand in for arcsine and arccosine in float32, in ascending powers.

Shared by the two engines, so that both compute the same kernel. Each was fitted for the smallest largest error; the
bounds are tested over the whole interval (tests/kernels/test_expectations.py, tests/engines/test_fused.py).
"""

#: sin t - t cos t = h^(3/2) P(h), with h = (1 - cos t) / 2 in [0, 1/2]: relative error 1.2e-7.
SIN_MINUS_T_COS = (2.66666634, 0.26671034, 0.0847650362, 0.047081452, -0.00285008014, 0.0482226592)

#: asin(a) = a Q(a^2), a^2 in [0, 1/4]: for the erf, whose slope at |x| = 1 asks for the narrower interval.
ASIN_QUARTER = (0.999999996, 0.166667901, 0.0749443476, 0.0455501852, 0.0238581703, 0.0426356407)

#: asin(a) = a Q(a^2), a^2 in [0, 1/2].
ASIN_HALF = (1.0000001, 0.166647643, 0.0755701798, 0.0383251216, 0.0628143416, -0.0583743892, 0.103156102)
