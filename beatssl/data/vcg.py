"""Dower's matrices between the twelve leads and the vectorcardiogram (Dower 1980; Edenbrandt and
Pahlm 1988)."""

import numpy as np

# Rows I, II, V1..V6; columns X (left), Y (down), Z (back).
DOWER = np.array([
    [0.632, -0.235, 0.059], [0.235, 1.066, -0.132], [-0.515, 0.157, -0.917],
    [0.044, 0.164, -1.387], [0.882, 0.098, -1.277], [1.213, 0.127, -0.601],
    [1.125, 0.127, -0.086], [0.831, 0.076, 0.230],
])  # fmt: skip

# Rows X, Y, Z; columns I, II, V1..V6.
INVERSE_DOWER = np.array([
    [0.156, -0.010, -0.172, -0.074, 0.122, 0.231, 0.239, 0.194],
    [-0.227, 0.887, 0.057, -0.019, -0.106, -0.022, 0.041, 0.048],
    [0.022, 0.102, -0.229, -0.310, -0.246, -0.063, 0.055, 0.108],
])  # fmt: skip

# Twelve leads from the eight independent ones: III = II - I, aVR = -(I + II)/2,
# aVL = I - II/2, aVF = II - I/2.
LIMB = [[-1.0, 1.0], [-0.5, -0.5], [1.0, -0.5], [-0.5, 1.0]]
EXPAND = np.insert(np.eye(8), [2] * 4, np.pad(LIMB, ((0, 0), (0, 6))), axis=0)  # (12, 8)

TO_VCG = np.insert(INVERSE_DOWER, [2] * 4, 0.0, axis=1)  # (3, 12)
FROM_VCG = EXPAND @ DOWER  # (12, 3)
